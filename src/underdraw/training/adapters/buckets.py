"""Sizes for pictures of several proportions, and an order in which batches are of one size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

MOST_UNLIKE = 2.25
"""The longer side of a picture over its shorter one; what is longer is cut."""


def sizes_around(side: int, multiple: int) -> list[tuple[int, int]]:
    """Sizes (height, width) of at most `side * side` pixels whose sides are multiples of
    `multiple`, the square first: for each width the largest height."""
    found = [(side, side)]
    for width in range(multiple, int(side * math.sqrt(MOST_UNLIKE)) + 1, multiple):
        height = side * side // width // multiple * multiple
        if height and max(height, width) <= MOST_UNLIKE * min(height, width):
            found.append((height, width))
    return sorted(set(found), key=lambda size: (size != (side, side), size))


def nearest(size: tuple[int, int], sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Of some sizes the one whose proportions are nearest to those of a picture (height, width);
    of equally near ones the first."""
    wanted = math.log(size[0] / size[1])
    return min(sizes, key=lambda one: abs(math.log(one[0] / one[1]) - wanted))


def ordered(groups: Sequence[int], first: int, count: int, batch: int, seed: int = 0) -> np.ndarray:
    """Numbers `first` to `first + count - 1` of an endless stream in which every run of
    `len(groups)` is a permutation of `range(len(groups))`, as of `data.shuffled`, and in which the
    `batch` numbers from each multiple of `batch` on are of one group as far as the groups allow.

    Args:
        groups: of each example the number of its group, such as its size.
    """
    known = tuple(int(group) for group in groups)
    pairs = [divmod(place, len(known)) for place in range(first, first + count)]
    return np.array([_epoch(known, epoch, batch, seed)[at] for epoch, at in pairs])


@lru_cache(maxsize=4)
def _epoch(groups: tuple[int, ...], epoch: int, batch: int, seed: int) -> np.ndarray:
    rng, count = np.random.default_rng([seed, epoch, len(groups)]), len(groups)
    before = min(-epoch * count % batch, count)  # what is left of a batch that began earlier
    room = (count - before) // batch
    whole: list[np.ndarray] = []
    rest: list[np.ndarray] = []
    for group in rng.permutation(np.unique(groups)):
        own = rng.permutation(np.flatnonzero(np.equal(groups, group)))
        end = len(own) // batch * batch
        whole += np.split(own[:end], len(own) // batch) if end else []
        rest.append(own[end:])
    whole = [whole[i] for i in rng.permutation(len(whole))]
    left = np.concatenate([*rest, *whole[room:]]).astype(int)
    return np.concatenate([left[:before], *whole[:room], left[before:]]).astype(int)
