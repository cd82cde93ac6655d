"""The one place where random numbers are drawn: always by PyTorch, whatever backend they go to.

Backends differ in their random streams, so noise is drawn once, on the generator's own device, and
handed over. With `seed=` every image has its own CPU generator: an image then depends neither on
the batch it sits in nor on where it was made.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch

from underdraw.errors import InputError, InputTypeError

Generators = torch.Generator | Sequence[torch.Generator] | None


def draw(shape: Sequence[int], generator: Generators, device: Any, dtype: Any) -> torch.Tensor:
    """Standard normal numbers of `shape (batch, ...)`.

    One generator draws for the whole batch, a list of `batch` generators one image each, None takes
    PyTorch's global stream on `device`. A CPU generator serves every device.

    Raises:
        InputError: a list has another length than the batch.
    """
    shape = tuple(shape)
    if isinstance(generator, list | tuple):
        if len(generator) == 1:
            return draw(shape, generator[0], device, dtype)
        if len(generator) != shape[0]:
            raise InputError(
                f"generator has {len(generator)} entries; the batch has {shape[0]} images"
            )
        parts = [draw((1, *shape[1:]), g, device, dtype) for g in generator]
        return torch.cat(parts)
    assert not isinstance(generator, Sequence)  # told apart above
    place = device if generator is None else generator.device
    return torch.randn(shape, generator=generator, device=place, dtype=dtype).to(device)


def seeded(seed: int | Sequence[int], count: int) -> list[torch.Generator]:
    """A CPU generator per image: image `i` of one seed gets `seed + i`, of a list its own entry.

    Raises:
        InputError: a seed is negative or too large, or a list has another length than `count`.
        InputTypeError: a seed is not an integer.
    """
    listed = list(seed) if isinstance(seed, Sequence) else [seed]
    for one in listed:
        if isinstance(one, bool) or not isinstance(one, Integral):
            raise InputTypeError(f"seed={one!r} is not an integer")
    seeds = [int(one) for one in listed]
    if not isinstance(seed, Sequence):
        seeds = [seeds[0] + i for i in range(count)]
    if len(seeds) != count:
        raise InputError(f"seed has {len(seeds)} entries; the call makes {count} images")
    for one in seeds:
        if not 0 <= one < 2**63:
            raise InputError(f"seed={one} is out of range; allowed: 0 .. 2**63 - 1")
    return [torch.Generator("cpu").manual_seed(one) for one in seeds]


def check(generator: Any, count: int) -> Generators:
    """A generator argument: None, one generator, or a list with one per image.

    Raises:
        InputTypeError: it is something else.
        InputError: the list has another length than there are images.
    """
    listed = generator if isinstance(generator, list | tuple) else [generator]
    for one in listed:
        if one is not None and not isinstance(one, torch.Generator):
            raise InputTypeError(f"generator={one!r} is not a torch.Generator")
    if listed is generator and len(listed) != count:
        raise InputError(f"generator has {len(listed)} entries; the call makes {count} images")
    return generator


def seeds_of(generators: Generators, count: int) -> list[int | None]:
    """The seed that gives each image the noise it gets, or None: its generator was used before,
    serves other images too, or is on another device than the CPU.
    """
    if isinstance(generators, torch.Generator):
        generators = [generators] if count == 1 else None
    seeds: list[int | None] = []
    for one in generators or [None] * count:
        seed = None if one is None or one.device.type != "cpu" else one.initial_seed()
        if seed is not None and one is not None:
            fresh = torch.Generator("cpu").manual_seed(seed)
            seed = seed if torch.equal(fresh.get_state(), one.get_state()) else None
        seeds.append(seed)
    return seeds
