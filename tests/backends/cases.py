"""Calls of every operation, with odd sizes: what each backend must answer like the reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Input = Callable[[np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class Case:
    """One call. `fixed` says which dtype comes out where it is not that of the first array."""

    operation: str
    note: str
    call: Callable[..., Any]
    inputs: tuple[Input, ...]
    fixed: str | None = None
    scale: float = 1.0
    """Factor on the tolerance, where rounding the inputs of a step inside must show."""

    def __str__(self) -> str:
        return f"{self.operation}-{self.note}"


def normal(*shape: int, mean: float = 0.0, spread: float = 1.0) -> Input:
    return lambda random: random.standard_normal(shape) * spread + mean


def uniform(low: float, high: float, *shape: int) -> Input:
    return lambda random: random.uniform(low, high, shape)


def integers(high: int, *shape: int) -> Input:
    return lambda random: random.integers(0, high, shape)


def exactly(values: Any) -> Input:
    return lambda random: np.asarray(values)


def case(operation: str, note: str, call: Callable[..., Any], *inputs: Input, **more: Any) -> Case:
    return Case(operation, note, call, inputs, **more)


def _convolution(kernel: int, stride: int, padding: int | None, bias: bool = True) -> Case:
    return case(
        "conv2d",
        f"kernel {kernel} stride {stride} padding {padding} bias {bias}",
        lambda nn, p, x: nn.conv2d(p.leaf, x, 5, kernel, stride, padding, bias),
        normal(3, 4, 9, 12),
    )


def _elementwise(name: str, low: float, high: float, **more: Any) -> Case:
    return case(
        name,
        f"{low} to {high}",
        lambda nn, p, x: getattr(nn, name)(x),
        uniform(low, high, 3, 5, 7),
        **more,
    )


def _attention(note: str, queries: int, keys: int, mask: tuple[int, ...] | None, **k: Any) -> Case:
    def call(nn: Any, p: Any, q: Any, k: Any, v: Any, mask: Any = None) -> Any:
        return nn.attention(q, k, v, mask)

    inputs = [normal(3, 2, n, 6, **k) for n in (queries, keys, keys)]
    if mask is not None:
        inputs.append(normal(*mask, spread=3.0))
    return case("attention", note, call, *inputs, scale=2)


_MIX = exactly([[1, 3, 3, 0, 2], [2, 2, 2, 2, 2], [0, 0, 1, 0, 5]])
_HALF_SPLIT = exactly(np.linspace(-2, 2, 15).reshape(3, 5))

CASES = [
    case("linear", "tokens", lambda nn, p, x: nn.linear(p.leaf, x, 5), normal(3, 7, 4)),
    case("linear", "rows", lambda nn, p, x: nn.linear(p.leaf, x, 9), normal(3, 6)),
    case("linear", "one row", lambda nn, p, x: nn.linear(p.leaf, x, 1), normal(1, 1)),
    case("linear", "no bias", lambda nn, p, x: nn.linear(p.leaf, x, 5, False), normal(3, 2, 7, 4)),
    case("linear", "long", lambda nn, p, x: nn.linear(p.leaf, x, 3), normal(3, 2049)),
    *(_convolution(kernel, 1, None) for kernel in (1, 2, 3, 4, 5, 7)),
    *(_convolution(kernel, 2, None) for kernel in (1, 2, 3, 4)),
    _convolution(3, 2, 0),
    _convolution(3, 2, 1, bias=False),
    _convolution(3, 1, 0),
    _convolution(1, 1, 2),
    _convolution(4, 4, 0, bias=False),
    _convolution(3, 3, 2),
    case(
        "conv2d",
        "one group per channel",
        lambda nn, p, x: nn.conv2d(p.leaf, x, 4, 7, groups=4),
        normal(3, 4, 9, 12),
    ),
    case(
        "conv2d",
        "two groups, stride 2, no bias",
        lambda nn, p, x: nn.conv2d(p.leaf, x, 6, 4, 2, 1, False, 2),
        normal(3, 4, 9, 12),
    ),
    case("group_norm", "image", lambda nn, p, x: nn.group_norm(p.leaf, x, 3), normal(3, 6, 5, 7)),
    case("group_norm", "tokens", lambda nn, p, x: nn.group_norm(p.leaf, x, 2), normal(3, 4, 11)),
    case(
        "group_norm", "one group", lambda nn, p, x: nn.group_norm(p.leaf, x, 1), normal(2, 5, 3, 4)
    ),
    case(
        "group_norm",
        "a group per channel, large eps",
        lambda nn, p, x: nn.group_norm(p.leaf, x, 5, 0.5),
        normal(3, 5, 3, 4),
    ),
    case(
        "group_norm",
        "sums that overflow float16",
        lambda nn, p, x: nn.group_norm(p.leaf, x, 2, 1e-6),
        normal(3, 4, 31, 33, mean=200.0, spread=40.0),
    ),
    case("layer_norm", "tokens", lambda nn, p, x: nn.layer_norm(p.leaf, x), normal(3, 5, 7)),
    case("layer_norm", "rows, eps", lambda nn, p, x: nn.layer_norm(p.leaf, x, 0.3), normal(3, 7)),
    case(
        "layer_norm",
        "sums that overflow float16",
        lambda nn, p, x: nn.layer_norm(p.leaf, x),
        normal(3, 5, 1025, mean=150.0, spread=60.0),
    ),
    case(
        "embedding",
        "tokens",
        lambda nn, p, ids: nn.embedding(p.leaf, ids, 11, 4),
        integers(11, 3, 7),
        fixed="parameters",
    ),
    case(
        "embedding",
        "labels",
        lambda nn, p, ids: nn.embedding(p.leaf, ids, 11, 4),
        exactly([0, 10, 5]),
        fixed="parameters",
    ),
    case(
        "parameter",
        "gate",
        lambda nn, p, x: nn.parameter(p.inner, "copy", (4,)) * x,
        normal(3, 5, 4),
    ),
    case(
        "parameter",
        "at the root",
        lambda nn, p, x: nn.parameter(p, "items", (5, 4)) + x,
        normal(5, 4),
    ),
    _elementwise("silu", -20, 20),
    _elementwise("gelu", -6, 6),
    _elementwise("quick_gelu", -8, 8),
    _elementwise("tanh", -6, 6),
    _elementwise("sin", -1000, 1000),
    _elementwise("cos", 0, 1000),
    _elementwise("exp", -10, 4),
    case(
        "exp",
        "small and large alike",
        lambda nn, p, x: nn.exp(x) * nn.exp(-x),
        uniform(-8, 8, 3, 70),
        scale=1.5,
    ),
    case("clip", "numbers", lambda nn, p, x: nn.clip(x, -0.5, 0.75), normal(3, 5, 7)),
    case(
        "clip", "arrays", lambda nn, p, x, s: nn.clip(x, -s, s), normal(3, 5), uniform(0, 1, 3, 1)
    ),
    case(
        "clip",
        "a number and an array",
        lambda nn, p, x, s: nn.clip(nn.clip(x, 0.0, s), -s, 0.25),
        normal(3, 5),
        uniform(0, 1, 3, 1),
    ),
    case("where", "arrays", lambda nn, p, x, y: nn.where(x > y, x, y), normal(3, 5), normal(3, 5)),
    case(
        "where", "broadcast", lambda nn, p, x, y: nn.where(y > 0, x, y), normal(3, 5), normal(3, 1)
    ),
    case("where", "number left", lambda nn, p, x: nn.where(x > 0, 1.5, x), normal(3, 5)),
    case("where", "number right", lambda nn, p, x: nn.where(x > 0, x, -1.5), normal(3, 5)),
    case("mean", "one axis", lambda nn, p, x: nn.mean(x, (1,)), normal(3, 5, 7)),
    case("mean", "axes gone", lambda nn, p, x: nn.mean(x, (1, -1), False), normal(3, 5, 7)),
    case(
        "mean",
        "sums that overflow float16",
        lambda nn, p, x: nn.mean(x, (1, 2)),
        normal(3, 40, 50, mean=300.0),
    ),
    case("std", "image", lambda nn, p, x: nn.std(x, (1, 2, 3)), normal(3, 4, 5, 7)),
    case("std", "axes gone", lambda nn, p, x: nn.std(x, (-1,), False), normal(3, 5, 7)),
    case(
        "std",
        "squares that overflow float16",
        lambda nn, p, x: nn.std(x, (1,)),
        normal(3, 70, spread=900.0),
    ),
    case("norm", "last axis", lambda nn, p, x: nn.norm(x), normal(3, 5, 7)),
    case("norm", "first axis", lambda nn, p, x: nn.norm(x, 0), normal(3, 5, 7)),
    case(
        "norm",
        "squares that overflow float16",
        lambda nn, p, x: nn.norm(x),
        normal(3, 70, spread=900.0),
    ),
    case("quantile_abs", "0.995", lambda nn, p, x: nn.quantile_abs(x, 0.995), normal(3, 4, 5, 7)),
    case("quantile_abs", "0.3", lambda nn, p, x: nn.quantile_abs(x, 0.3), normal(3, 7)),
    case(
        "quantile_abs",
        "ends",
        lambda nn, p, x: nn.quantile_abs(x, 0.0) + nn.quantile_abs(x, 1.0),
        normal(3, 7),
    ),
    case("argmax", "ids, ties", lambda nn, p, x: nn.argmax(x, 1), _MIX, fixed="integer"),
    case("argmax", "columns", lambda nn, p, x: nn.argmax(x, 0), _MIX, fixed="integer"),
    case("argmax", "equal to", lambda nn, p, x: nn.argmax(x == 3, 1), _MIX, fixed="integer"),
    case("argmax", "equal to 2", lambda nn, p, x: nn.argmax(x == 2, -1), _MIX, fixed="integer"),
    case("argmax", "numbers", lambda nn, p, x: nn.argmax(x, 1), normal(3, 5, 7), fixed="integer"),
    case("softmax", "scores", lambda nn, p, x: nn.softmax(x), normal(3, 2, 5, 7, spread=3.0)),
    case("softmax", "large", lambda nn, p, x: nn.softmax(x), normal(3, 7, spread=200.0)),
    case(
        "softmax", "masked", lambda nn, p, x: nn.softmax(x + nn.causal_mask(7, x)), normal(3, 7, 7)
    ),
    case("softmax", "many", lambda nn, p, x: nn.softmax(x), normal(2, 5003), scale=2),
    case(
        "matmul",
        "heads",
        lambda nn, p, a, b: nn.matmul(a, b),
        normal(3, 2, 5, 7),
        normal(3, 2, 7, 4),
    ),
    case("matmul", "broadcast", lambda nn, p, a, b: nn.matmul(a, b), normal(3, 5, 7), normal(7, 4)),
    case("matmul", "matrices", lambda nn, p, a, b: nn.matmul(a, b), normal(5, 7), normal(7, 4)),
    _attention("self", 7, 7, None),
    _attention("cross", 5, 11, None),
    _attention("mask per key", 5, 7, (3, 1, 1, 7)),
    _attention("mask per query and key", 5, 7, (5, 7)),
    _attention("mask per head", 5, 7, (1, 2, 5, 7)),
    _attention("scores that overflow float16", 5, 7, None, spread=250.0),
    case(
        "attention",
        "causal",
        lambda nn, p, q: nn.attention(q, q, q, nn.causal_mask(7, q)[None, None]),
        normal(3, 2, 7, 4),
        scale=2,
    ),
    case("permute", "all axes", lambda nn, p, x: nn.permute(x, (0, 2, 3, 1)), normal(3, 4, 5, 7)),
    case(
        "permute",
        "then reshape",
        lambda nn, p, x: nn.permute(x, (0, 2, 1)).reshape(3, 5, 2, -1),
        normal(3, 4, 5),
    ),
    case("tokens", "of an image", lambda nn, p, x: nn.tokens(x), normal(3, 4, 5, 7)),
    case(
        "image",
        "of other channels",
        lambda nn, p, x, like: nn.image(x, like),
        normal(3, 35, 4),
        normal(3, 2, 5, 7),
    ),
    case(
        "concat",
        "channels",
        lambda nn, p, x, y: nn.concat((x, y), 1),
        normal(3, 4, 5),
        normal(3, 2, 5),
    ),
    case(
        "concat",
        "last of a list",
        lambda nn, p, x, y: nn.concat([x, y, x], -1),
        normal(3, 4),
        normal(3, 1),
    ),
    case("pad", "one and two", lambda nn, p, x: nn.pad(x, 1, 2), normal(3, 2, 5, 7)),
    case("pad", "nothing below", lambda nn, p, x: nn.pad(x, 0, 3), normal(3, 2, 5, 7)),
    case("upsample", "double", lambda nn, p, x: nn.upsample(x, 10, 14), normal(3, 2, 5, 7)),
    case("upsample", "odd", lambda nn, p, x: nn.upsample(x, 9, 13), normal(3, 2, 5, 7)),
    case("upsample", "any size", lambda nn, p, x: nn.upsample(x, 12, 8), normal(3, 2, 5, 7)),
    case("upsample", "same", lambda nn, p, x: nn.upsample(x, 5, 7), normal(3, 2, 5, 7)),
    case(
        "gather_rows",
        "found by argmax",
        lambda nn, p, x, i: nn.gather_rows(x, nn.argmax(i, 1)),
        normal(3, 5, 4),
        _MIX,
    ),
    case(
        "gather_rows",
        "given",
        lambda nn, p, x, i: nn.gather_rows(x, i),
        normal(3, 5, 4),
        exactly([4, 0, 2]),
    ),
    case("expand", "batch", lambda nn, p, x: nn.expand(x, (3, 5, 7)), normal(1, 5, 7)),
    case("expand", "two axes", lambda nn, p, x: nn.expand(x, (3, 5, 7)), normal(1, 5, 1)),
    case("arange", "seven", lambda nn, p, x: nn.arange(7, x), normal(3), fixed="float32"),
    case("causal_mask", "odd", lambda nn, p, x: nn.causal_mask(5, x), normal(3, 5)),
    case("causal_mask", "one", lambda nn, p, x: nn.causal_mask(1, x), normal(3, 5)),
    case("float32", "numbers", lambda nn, p, x: nn.float32(x), normal(3, 5), fixed="float32"),
    case(
        "float32",
        "integers",
        lambda nn, p, x: nn.float32(x),
        exactly([0, 999, 501]),
        fixed="float32",
    ),
    case("cast", "down", lambda nn, p, x: nn.cast(nn.float32(x), x), normal(3, 5)),
    case("cast", "integers", lambda nn, p, x, y: nn.cast(y, x), normal(3, 5), exactly([1, 0, 3])),
    # Not operations, but promised beside them.
    case(
        "python", "+ -", lambda nn, p, x, y: 2.5 + x - y + (1 - x) - 0.5, normal(3, 5), normal(3, 1)
    ),
    case(
        "python",
        "* /",
        lambda nn, p, x, y: 2 * x * y / (y * y + 1) / 3,
        normal(3, 5),
        normal(5),
        scale=2,
    ),
    case("python", "**", lambda nn, p, x: x**2 + (x * x + 1) ** 0.5, normal(3, 5)),
    case("python", "1 /", lambda nn, p, x: 1.0 / (x * x + 1), normal(3, 5)),
    case("python", "minus", lambda nn, p, x: -x, normal(3, 5)),
    case(
        "python",
        "< <= >= ==",
        lambda nn, p, x, y: nn.where(x < y, x, nn.where(x >= 0.5, y, x)),
        normal(3, 5),
        normal(3, 5),
    ),
    case(
        "python", "integers and None", lambda nn, p, x: x[:, 0][:, None, :, None], normal(3, 4, 5)
    ),
    case(
        "python",
        "slices",
        lambda nn, p, x: x[:, 1:3, :, 2:] + x[:, -2:, :, :-2],
        normal(3, 4, 5, 7),
    ),
    case("python", "one image", lambda nn, p, x: x[1], normal(3, 4, 5)),
    case("python", "reshape", lambda nn, p, x: x.reshape(x.shape[0], -1, 2), normal(3, 4, 5)),
]
