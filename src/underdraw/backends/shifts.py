"""Whole numbers drawn at random, by PyTorch unless numpy's generators are given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from underdraw.backends.torch_operations import Generators


def whole_number(generators: Generators, image: int, below: int) -> int:
    """One of `0 .. below - 1` from the generator of an image, or from the one that all share."""
    import torch

    if isinstance(generators, Sequence):
        one = generators[min(image, len(generators) - 1)]
    else:
        one = generators
    if isinstance(one, np.random.Generator):
        return int(one.integers(below))
    place = "cpu" if one is None else one.device
    return int(torch.randint(below, (1,), generator=one, device=place))
