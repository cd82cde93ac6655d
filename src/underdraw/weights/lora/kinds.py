"""From the parts of a module in a file to the difference that they are.

Kinds are told apart by the names of their parts, OFT and BOFT by their axes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from underdraw.backends.deltas import Delta, Full, LowRank, Sum
from underdraw.backends.layout import Leaf
from underdraw.backends.lycoris import (
    Decomposed,
    Factors,
    Hadamard,
    Kronecker,
    OfInput,
    Rescaled,
    Rotated,
)
from underdraw.errors import WeightError
from underdraw.formats.stored import StoredTensor
from underdraw.weights.quantised import numbers

Parts = Mapping[str, StoredTensor]
Make = Callable[[np.ndarray], Any]
"""Numbers -> an array of the pipeline's backend."""
MAGNITUDES = ("magnitude", "dora_scale")
LORA = ("up", "down", "mid")
LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
LOKR = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
OFT = ("oft_blocks", "rescale")
GLORA = ("a1", "a2", "b1", "b2", "bm")
IA3 = ("weight", "on_input")
FULL = ("diff", "diff_b", "w_norm", "b_norm")


def delta_of(module: str, parts: Parts, leaf: Leaf, make: Make, alpha: float | None) -> Delta:
    """The difference that the parts of a module are to a layer.

    Args:
        parts: by their names in `spellings.PARTS`.
        alpha: where a file says it elsewhere; the module's own comes first.

    Raises:
        WeightError: they are parts of no kind, or some of them are missing.
        ControlError: the difference does not fit the layer.
    """
    array = _Reader(module, parts, make, alpha)
    for kind, (names, read) in KINDS.items():
        there = set(names).intersection(parts)
        if not there:
            continue
        extra = set(parts) - set(names) - {"alpha", "scalar", *MAGNITUDES}
        if extra:
            raise WeightError(
                f"module {module!r} has parts of more than one kind: {', '.join(sorted(parts))}"
            )
        delta = read(array, leaf)
        if kind in ("LoRA", "LoHa", "LoKr"):
            delta = _with_magnitude(array, leaf, delta)
        elif any(name in parts for name in MAGNITUDES):
            raise WeightError(f"module {module!r} has a magnitude beside parts of {kind}")
        delta.check(leaf)
        return delta
    raise WeightError(f"module {module!r} has no difference, only {', '.join(sorted(parts))}")


class _Reader:
    """Parts of one module as arrays."""

    def __init__(self, module: str, parts: Parts, make: Make, alpha: float | None) -> None:
        self.module, self.parts, self.make, self._alpha = module, parts, make, alpha

    def numbers(self, name: str) -> np.ndarray:
        """Float32; WeightError where the part is missing."""
        if name not in self.parts:
            raise WeightError(
                f"module {self.module!r} lacks {name!r}; there are {', '.join(sorted(self.parts))}"
            )
        values = numbers(self.parts[name])
        if not np.isfinite(values).all():
            raise WeightError(f"module {self.module!r}: {name!r} holds NaN or infinity")
        return values

    def __call__(self, name: str, *shape: int) -> Any:
        """An array of the backend, in another shape if one is given and the size is right."""
        values = self.numbers(name)
        if shape and _fills(values.size, shape):
            values = values.reshape(shape)
        return self.make(values)

    def maybe(self, name: str) -> Any:
        """The same, None where the part is missing."""
        return self(name) if name in self.parts else None

    def number(self, name: str, default: float) -> float:
        """A part that is a single number."""
        if name not in self.parts:
            return default
        values = self.numbers(name).reshape(-1)
        if values.size != 1 or not np.isfinite(values[0]):
            raise WeightError(
                f"module {self.module!r}: {name} must be one finite number, and is {values.shape}"
            )
        return float(values[0])

    def scale(self, rank: int) -> float:
        """`alpha / rank`; without alpha, and where it is 0, 1."""
        alpha = self.number("alpha", self._alpha or 0.0)
        return (alpha / rank if alpha else 1.0) * self.number("scalar", 1.0)


def _fills(size: int, shape: tuple[int, ...]) -> bool:
    known = int(np.prod([side for side in shape if side >= 0], dtype=np.int64))
    if -1 in shape:
        return known > 0 and size % known == 0
    return size == known


def _low_rank(array: _Reader, leaf: Leaf, down: str, up: str, mid: str) -> LowRank:
    ones = (1, 1) if leaf.kind == "conv2d" else ()
    inner = array(mid) if mid in array.parts else None
    if inner is None:
        first = array(down, -1, *leaf.shape[1:])
        rank = first.shape[0]
    else:
        first, rank = array(down, -1, leaf.shape[1], *ones), inner.shape[0]
    last = array(up, -1, rank, *ones)
    # Alpha counts the rank that the file has at the input, as LyCORIS does.
    return LowRank(first, last, array.scale(first.shape[0]), inner)


def _lora(array: _Reader, leaf: Leaf) -> Delta:
    return _low_rank(array, leaf, *("down", "up", "mid"))


def _glora(array: _Reader, leaf: Leaf) -> Delta:
    first = _low_rank(array, leaf, "b2", "b1", "bm")
    inside = leaf.shape[1]
    down = array("a2", -1, inside)
    up = array("a1", inside, -1)
    return Sum((OfInput(down, up, array.scale(down.shape[0])), first))


def _loha(array: _Reader, leaf: Leaf) -> Delta:
    first, second = (_factors(array, f"hada_w{i}_a", f"hada_w{i}_b", f"hada_t{i}") for i in (1, 2))
    return Hadamard(first, second, array.scale(array.numbers("hada_w1_b").shape[0]))


def _lokr(array: _Reader, leaf: Leaf) -> Delta:
    def side(name: str, kernel: str) -> Any:
        if name in array.parts:
            return array(name)
        return _factors(array, f"{name}_a", f"{name}_b", kernel)

    first, second = side("lokr_w1", ""), side("lokr_w2", "lokr_t2")
    rank = next((_rank(part) for part in (second, first) if isinstance(part, Factors)), None)
    # Two whole matrices have no rank, and LyCORIS then passes over alpha.
    scale = array.number("scalar", 1.0) if rank is None else array.scale(rank)
    return Kronecker(first, second, scale)


def _factors(array: _Reader, a: str, b: str, kernel: str) -> Factors:
    """`a` and `b`; beside a kernel LyCORIS keeps `a` the other way round, `(rank, out)`."""
    if kernel not in array.parts:
        return Factors(array(a), array(b))
    return Factors(array.make(np.ascontiguousarray(array.numbers(a).T)), array(b), array(kernel))


def _rank(factors: Factors) -> int:
    return int(factors.down.shape[0])


def _rotations(array: _Reader, leaf: Leaf) -> Delta:
    blocks = array.numbers("oft_blocks").astype(np.float64)
    if blocks.ndim not in (3, 4) or blocks.shape[-1] != blocks.shape[-2]:
        raise WeightError(
            f"module {array.module!r}: oft_blocks is {blocks.shape}; needed are square blocks, "
            "(count, size, size) or (stages, count, size, size)"
        )
    butterfly = blocks.ndim == 4
    limit = array.number("alpha", 0.0) * leaf.shape[0]
    turned = _cayley(blocks, limit).astype(np.float32)
    if not butterfly:  # which multiplies from the other side
        turned = np.swapaxes(turned, -1, -2)[None]
    factors = array("rescale", -1) if "rescale" in array.parts else None
    return Rotated(array.make(np.ascontiguousarray(turned)), factors, butterfly)


def _cayley(blocks: np.ndarray, limit: float) -> np.ndarray:
    """`(I + Q) (I - Q)^-1` of the skew-symmetric `Q = blocks - blocks^T` (Qiu et al. 2023), whose
    norm is at most `limit`, if that is above 0."""
    skew = blocks - np.swapaxes(blocks, -1, -2)
    if limit > 0:
        length = float(np.sqrt((skew**2).sum())) + 1e-8
        skew = skew * min(1.0, limit / length)
    identity = np.eye(blocks.shape[-1])
    return (identity + skew) @ np.linalg.inv(identity - skew)


def _rescaled(array: _Reader, leaf: Leaf) -> Delta:
    return Rescaled(array("weight", -1), array.number("on_input", 0.0) != 0)


def _full(array: _Reader, leaf: Leaf) -> Delta:
    weight = next(
        (array(name, *leaf.shape) for name in ("diff", "w_norm") if name in array.parts), None
    )
    bias = next((array(name) for name in ("diff_b", "b_norm") if name in array.parts), None)
    if (
        bias is not None
        and not leaf.bias
        and not array.numbers("diff_b" if "diff_b" in array.parts else "b_norm").any()
    ):
        bias = None
    return Full(weight, bias, array.number("scalar", 1.0))


def _with_magnitude(array: _Reader, leaf: Leaf, delta: Delta) -> Delta:
    """DoRA, where there is a magnitude: PEFT's is of the output, LyCORIS' tells by its shape."""
    if "magnitude" in array.parts:
        return Decomposed(delta, array("magnitude", -1))
    if "dora_scale" not in array.parts:
        return delta
    shape = array.parts["dora_scale"].shape
    on_input = len(shape) > 1 and shape[0] == 1 and leaf.shape[0] != 1
    return Decomposed(delta, array("dora_scale", -1), on_input)


KINDS: Mapping[str, tuple[tuple[str, ...], Callable[[_Reader, Leaf], Delta]]] = {
    "LoRA": (LORA, _lora),
    "LoHa": (LOHA, _loha),
    "LoKr": (LOKR, _lokr),
    "OFT": (OFT, _rotations),
    "GLoRA": (GLORA, _glora),
    "a full difference": (FULL, _full),
    "IA3": (IA3, _rescaled),
}
