"""Whole numbers drawn at random, by PyTorch as all randomness is."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from underdraw.backends.torch_operations import Generators


def whole_number(generators: Generators, image: int, below: int) -> int:
    """One of `0 .. below - 1` from the generator of an image, or from the one that all share."""
    import torch

    one = generators if isinstance(generators, torch.Generator) else None
    if one is None and generators is not None:
        one = generators[min(image, len(generators) - 1)]  # type: ignore[index]
    place = "cpu" if one is None else one.device
    return int(torch.randint(below, (1,), generator=one, device=place))
