"""Generators that a caller brings, and which seeds make the images of a batch again.

They are PyTorch's or numpy's, on every backend; PyTorch is imported when a call is made, for what
only looks at pipelines does without."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from underdraw.checks import shown
from underdraw.errors import InputError, InputTypeError


def seeds_of(generators: Any, count: int) -> list[int | None]:
    """The seed that gives each image the noise it gets, or None: its generator was used before,
    serves other images too, is on another device than the CPU, or is numpy's.
    """
    import torch

    if not isinstance(generators, list | tuple):
        generators = [generators] if count == 1 else None
    seeds: list[int | None] = []
    for one in generators or [None] * count:
        seed = None
        if isinstance(one, torch.Generator) and one.device.type == "cpu":
            seed = one.initial_seed()
            fresh = torch.Generator("cpu").manual_seed(seed)
            seed = seed if torch.equal(fresh.get_state(), one.get_state()) else None
        seeds.append(seed)
    return seeds


def generators(generator: Any, seed: Any, count: int) -> Any:
    """What draws the noise of `count` images: a generator, a list with one per image, or None."""
    from underdraw.backends.torch_operations import seeded

    if seed is None:
        return check_generators(generator, count)
    if generator is not None:
        raise InputError("generator and seed are both given; only one of them can be")
    return seeded(seed, count)


def check_generators(generator: Any, count: int) -> Any:
    """A generator argument: None, one generator, or a list with one per image.

    Raises:
        InputTypeError: it is something else.
        InputError: the list has another length than there are images.
    """
    import torch

    listed = generator if isinstance(generator, list | tuple) else [generator]
    for one in listed:
        if one is not None and not isinstance(one, torch.Generator | np.random.Generator):
            raise InputTypeError(
                f"generator={shown(one)} is not a torch.Generator, nor a np.random.Generator"
            )
    if listed is generator and len(listed) != count:
        raise InputError(f"generator has {len(listed)} entries; the call makes {count} images")
    return generator


@contextmanager
def global_seed(seed: int | None) -> Iterator[None]:
    """PyTorch's global stream begins at `seed` inside, and goes on as before behind; None leaves it
    alone. For other libraries' models, which draw from nothing else."""
    if seed is None:
        yield
        return
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
