"""Which seeds make the images of a batch again."""

from __future__ import annotations

import torch

from underdraw.backends.torch_operations import Generators


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
