"""Trainable differences to a network that itself stays as it is: low-rank ones, or a copy of the
network of which the difference is taken in the end."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from underdraw.backends.deltas import Delta, Deltas, Full, LowRank
from underdraw.backends.layout import Leaf
from underdraw.backends.lycoris import Decomposed
from underdraw.backends.node import at
from underdraw.errors import InputError

Chosen = Callable[[str, Leaf], bool]
"""Whether a leaf of this path gets a difference."""


def inside_blocks(path: str, leaf: Leaf) -> bool:
    """Layers of a UNet's blocks that see the picture or the text; not those of times."""
    return path.split(".")[0] in ("down_blocks", "mid_block", "up_blocks") and (
        "time_emb" not in path
    )


def every_layer(path: str, leaf: Leaf) -> bool:
    """All."""
    return True


class Differences(nn.Module):
    """Low-rank differences (Hu et al. 2021) to linear layers and convolutions of one network.

    Args:
        model: that network; nothing of it is kept.
        rank: of those that are new, which change nothing to begin with; 0 for none.
        chosen: which leaves get one.
        begin: differences to go on with; where new ones meet them, ranks add up.
        seed: of the starting weights.
        scale: a factor for all of them, alpha over rank.
        decomposed: also train the length of each channel's weights (DoRA, Liu et al. 2024).
        ranks: of paths that have another rank than `rank`.

    Raises:
        InputError: there is nothing to train, or `begin` has differences of another kind.
    """

    def __init__(
        self,
        model: Any,
        rank: int,
        chosen: Chosen = inside_blocks,
        begin: Deltas | None = None,
        seed: int = 0,
        *,
        scale: float = 1.0,
        decomposed: bool = False,
        ranks: Callable[[str], int] | None = None,
    ) -> None:
        super().__init__()
        self.scale, self.decomposed = scale, decomposed
        leaves, begin = type(model).layout(model.config).leaves, begin or {}
        paths = [
            path
            for path, leaf in leaves.items()
            if path in begin or (rank and leaf.kind in ("linear", "conv2d") and chosen(path, leaf))
        ]
        if not paths:
            raise InputError(f"{type(model).__name__} has no layer that is chosen for differences")
        self.paths = tuple(paths)
        self.parts = nn.ParameterDict()
        generator = torch.Generator().manual_seed(seed)
        for path in self.paths:
            downs: list[Tensor] = []
            ups: list[Tensor] = []
            if (known := begin.get(path)) is not None:
                if not isinstance(known, LowRank):
                    raise InputError(f"begin[{path!r}] is no low-rank difference")
                downs, ups = [_tensor(known.down)], [_tensor(known.up)]
            if rank and chosen(path, leaves[path]):
                out, *rest = leaves[path].shape
                least = min(rank if ranks is None else ranks(path), out, math.prod(rest))
                down = torch.empty(least, *rest)
                downs.append(down.normal_(0, math.prod(rest) ** -0.5, generator=generator))
                ups.append(torch.zeros(out, least, *[1] * (len(rest) - 1)))
            self._put(path, "down", torch.cat(downs))
            self._put(path, "up", torch.cat(ups, 1))
            if decomposed:
                weight = at(model, path).weight.detach().float()
                self._put(path, "magnitude", weight.flatten(1).norm(dim=1).cpu())

    def _put(self, path: str, name: str, value: Tensor) -> None:
        self.parts[f"{path}.{name}".replace(".", "/")] = nn.Parameter(value)

    def deltas(self) -> dict[str, Delta]:
        """They as they stand, sharing their parameters."""
        return self._made(lambda path, name: self.parts[f"{path}.{name}".replace(".", "/")])

    def forward(self) -> dict[str, Delta]:
        return self.deltas()

    def arrays(self) -> dict[str, Delta]:
        """They as numpy arrays, for an `Overlay` or a file."""
        return self._made(lambda path, name: _array(self.parts[f"{path}.{name}".replace(".", "/")]))

    def _made(self, part: Callable[[str, str], Any]) -> dict[str, Delta]:
        made: dict[str, Delta] = {}
        for path in self.paths:
            made[path] = LowRank(part(path, "down"), part(path, "up"), self.scale)
            if self.decomposed:
                made[path] = Decomposed(made[path], part(path, "magnitude"))
        return made


def copy_with(model: Any, begin: Deltas) -> Any:
    """A copy of a network with low-rank differences added to its weights, whose layers are to be
    trained."""
    made = copy.deepcopy(model)
    with torch.no_grad():
        for path, delta in begin.items():
            if not isinstance(delta, LowRank):
                raise InputError(f"begin[{path!r}] is no low-rank difference")
            down, up = _tensor(delta.down), _tensor(delta.up)
            weight = at(made, path).weight
            product = up.flatten(1) @ down.flatten(1)
            weight += product.view_as(weight).to(weight)
    made.requires_grad_(True)
    for path, leaf in type(model).layout(model.config).leaves.items():
        if (
            leaf.kind == "parameter"
        ):  # of which rows of a batch cannot have differences of their own
            at(made, path).requires_grad_(False)
    return made


def difference(model: Any, trained: Any) -> dict[str, Delta]:
    """What training has made of a copy: whole differences as numpy arrays, where there are any."""
    made: dict[str, Delta] = {}
    for path, leaf in type(model).layout(model.config).leaves.items():
        old, new = at(model, path), at(trained, path)
        if leaf.kind == "parameter":
            continue
        weight = _array(new.weight) - _array(old.weight)
        bias = None
        if getattr(old, "bias", None) is not None:
            bias = _array(new.bias) - _array(old.bias)
        if weight.any() or (bias is not None and bias.any()):
            made[path] = Full(weight, bias)
    return made


def _tensor(x: Any) -> Tensor:
    return torch.as_tensor(np.asarray(x), dtype=torch.float32).clone()


def _array(x: Any) -> np.ndarray:
    return x.detach().float().cpu().numpy()
