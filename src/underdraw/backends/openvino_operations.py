"""The operations of network programs, building an OpenVINO graph instead of computing.

`backends.contract` says what each promises; `engines.openvino` runs programs on them. They are no
backend of networks: weights belong to a framework, and are constants of a graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as op

from underdraw.backends.adapted import AdaptedLeaf
from underdraw.backends.deltas import Arrays
from underdraw.backends.openvino_values import (
    WEIGHT,
    Value,
    as_values,
    constant,
    converted,
    element,
    floating,
    joint,
)

LOWEST = {
    "float16": float(np.finfo(np.float16).min),
    "bfloat16": -float.fromhex("0x1.fep127"),
}


def axes_of(*axes: int) -> np.ndarray:
    return np.array(axes, np.int64)


@dataclass(frozen=True)
class OpenVino:
    """`Operations` on `Value`s."""

    name: str = "openvino"
    _careful: bool = False
    """Whether a norm is part of a sum with what is computed of its input."""

    def linear(self, p: Any, x: Value, width: int, bias: bool = True) -> Value:
        if isinstance(p, AdaptedLeaf):
            return p.linear(self, x, width, bias)
        y = Value(op.matmul(x.node, p.weight.node, False, True), x.dtype)
        return y if p.bias is None else Value(op.add(y.node, p.bias.node), x.dtype)

    def conv2d(
        self,
        p: Any,
        x: Value,
        width: int,
        kernel: int,
        stride: int = 1,
        padding: int | None = None,
        bias: bool = True,
        groups: int = 1,
    ) -> Value:
        if isinstance(p, AdaptedLeaf):
            return p.conv2d(self, x, width, kernel, stride, padding, bias, groups)
        side = kernel // 2 if padding is None else padding
        how = [stride] * 2, [side] * 2, [side] * 2, [1, 1]
        weight = p.weight
        if groups == 1:
            y = op.convolution(x.node, weight.node, *how)
        else:
            weight = weight.reshape(groups, width // groups, *weight.shape[1:])
            y = op.group_convolution(x.node, weight.node, *how)
        if p.bias is not None:
            y = op.add(y, p.bias.reshape(1, width, 1, 1).node)
        return Value(y, x.dtype)

    def group_norm(self, p: Any, x: Value, groups: int, eps: float = 1e-5) -> Value:
        if isinstance(p, AdaptedLeaf):
            return p.group_norm(replace(self, _careful=True), x, groups, eps)
        if not (self._careful or isinstance(p, Arrays)):
            y = op.group_normalization(x.node, p.weight.node, p.bias.node, groups, eps)
            return Value(y, x.dtype)
        # Where that operation and what is computed of its input are added, as differences to a norm
        # are, OpenVINO 2026.4 ends the process; so it does where a reshape before the scale looks
        # like it. Over 262,144 numbers, this is off by 2e-6 of the largest, that by 4e-7.
        parts = x.reshape(x.shape[0], groups, x.shape[1] // groups, -1)
        y = Value(op.mvn(parts.node, axes_of(2, 3), True, eps, "inside_sqrt"), x.dtype)
        both: tuple[Any, Any] = (p.weight, p.bias)
        weight, bias = (one.reshape(1, groups, -1, 1) for one in both)
        return (y * weight + bias).reshape(*x.shape)

    def layer_norm(self, p: Any, x: Value, eps: float = 1e-5) -> Value:
        if isinstance(p, AdaptedLeaf):
            return p.layer_norm(self, x, eps)
        y = op.mvn(x.node, axes_of(-1), True, eps, "inside_sqrt")
        return Value(op.add(op.multiply(y, p.weight.node), p.bias.node), x.dtype)

    def embedding(self, p: Any, ids: Value, count: int, width: int) -> Value:
        if isinstance(p, AdaptedLeaf):
            return p.embedding(self, ids, count, width)
        rows = Value(op.gather(p.weight.node, ids.node, np.array(0)), p.weight.dtype)
        # As on JAX: a graph cannot raise, and the nearest row would be a silent mistake.
        known = op.logical_and((ids >= 0).node, (ids < count).node)
        known = op.unsqueeze(known, axes_of(-1))
        return Value(op.select(known, rows.node, np.float32(np.nan)), rows.dtype)

    def parameter(
        self, p: Any, name: str, shape: tuple[int, ...], start: float | None = None
    ) -> Value:
        value = getattr(p, name)
        return value.parameter(self, shape) if isinstance(value, AdaptedLeaf) else value

    # -- elementwise
    def silu(self, x: Value) -> Value:
        return Value(op.swish(x.node), x.dtype)

    def gelu(self, x: Value) -> Value:
        return Value(op.gelu(x.node, "erf"), x.dtype)

    def quick_gelu(self, x: Value) -> Value:
        return x * Value(op.sigmoid((x * 1.702).node), x.dtype)

    def tanh(self, x: Value) -> Value:
        return Value(op.tanh(x.node), x.dtype)

    def sin(self, x: Value) -> Value:
        return Value(op.sin(x.node), x.dtype)

    def cos(self, x: Value) -> Value:
        return Value(op.cos(x.node), x.dtype)

    def exp(self, x: Value) -> Value:
        return Value(op.exp(x.node), x.dtype)

    def clip(self, x: Value, low: Any, high: Any) -> Value:
        for operation, bound in ((op.maximum, low), (op.minimum, high)):
            x, other = as_values(x, bound)
            x = Value(operation(x.node, other.node), x.dtype)
        return x

    def where(self, condition: Value, x: Any, y: Any) -> Value:
        x, y = as_values(x, y)
        return Value(op.select(condition.node, x.node, y.node), x.dtype)

    # -- reductions
    def mean(self, x: Value, axes: tuple[int, ...], keepdims: bool = True) -> Value:
        return Value(op.reduce_mean(x.node, axes_of(*axes), keepdims), x.dtype)

    def std(self, x: Value, axes: tuple[int, ...], keepdims: bool = True) -> Value:
        count = prod(x.shape[axis] for axis in axes)
        centred = x - self.mean(x, axes)
        squares = Value(op.reduce_sum((centred * centred).node, axes_of(*axes), keepdims), x.dtype)
        return Value(op.sqrt((squares / float(count - 1)).node), x.dtype)

    def norm(self, x: Value, axis: int = -1) -> Value:
        return Value(op.reduce_l2(x.node, axes_of(axis), True), x.dtype)

    def quantile_abs(self, x: Value, q: float) -> Value:
        flat = op.abs(x.reshape(x.shape[0], -1).node)
        count = flat.output(0).get_shape()[1]
        ordered = Value(op.topk(flat, np.array(count), 1, "min", "value").output(0), x.dtype)
        place = q * (count - 1)
        below = min(int(place), count - 1)
        first, second = ordered[:, below], ordered[:, min(below + 1, count - 1)]
        return first + (second - first) * (place - below)

    def argmax(self, x: Value, axis: int) -> Value:
        if x.dtype == "bool":
            x = converted(x, "int64")
        largest = op.reduce_max(x.node, axes_of(axis), True)
        size, sizes = x.shape[axis], [1] * len(x.shape)
        sizes[axis] = size
        places = constant(np.arange(size).reshape(sizes), "int64")
        found = op.select(op.equal(x.node, largest), places.node, np.int64(size))
        return Value(op.reduce_min(found, axes_of(axis), False), "int64")

    def softmax(self, x: Value) -> Value:
        return Value(op.softmax(x.node, -1), x.dtype)

    def matmul(self, a: Value, b: Value) -> Value:
        return Value(op.matmul(a.node, b.node, False, False), a.dtype)

    def attention(self, q: Value, k: Value, v: Value, mask: Value | None = None) -> Value:
        more = [] if mask is None else [floating(mask).node]
        return Value(op.scaled_dot_product_attention(q.node, k.node, v.node, *more), q.dtype)

    # -- shape and type
    def permute(self, x: Value, axes: Sequence[int]) -> Value:
        return Value(op.transpose(x.node, axes_of(*axes)), x.dtype)

    def tokens(self, x: Value) -> Value:
        return self.permute(x.reshape(*x.shape[:2], -1), (0, 2, 1))

    def image(self, x: Value, like: Value) -> Value:
        return self.permute(x, (0, 2, 1)).reshape(x.shape[0], x.shape[2], *like.shape[2:])

    def concat(self, xs: Sequence[Value], axis: int) -> Value:
        dtype = joint([x.dtype for x in xs])
        return Value(op.concat([converted(x, dtype).node for x in xs], axis), xs[0].dtype)

    def pad(self, x: Value, bottom: int, right: int) -> Value:
        sides = axes_of(0, 0, 0, 0), axes_of(0, 0, bottom, right)
        return Value(op.pad(x.node, *sides, "constant", np.float32(0)), x.dtype)

    def upsample(self, x: Value, height: int, width: int) -> Value:
        before = x.shape[2:]
        if (height, width) == before:
            return x
        if height % before[0] or width % before[1]:  # a quotient in float32 may lie below its row
            for axis, size, new in ((2, before[0], height), (3, before[1], width)):
                rows = np.arange(new, dtype=np.int64) * size // new
                x = Value(op.gather(x.node, rows, np.array(axis)), x.dtype)
            return x
        y = op.interpolate(
            x.node,
            axes_of(height, width),
            mode="nearest",
            shape_calculation_mode="sizes",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
            axes=axes_of(2, 3),
        )
        return Value(y, x.dtype)

    def gather_rows(self, x: Value, index: Value) -> Value:
        return Value(op.gather(x.node, index.node, np.array(1), 1), x.dtype)

    def expand(self, x: Value, shape: Sequence[int]) -> Value:
        return Value(op.broadcast(x.node, axes_of(*shape)), x.dtype)

    def arange(self, count: int, like: Value) -> Value:
        return constant(np.arange(count), "float32")

    def causal_mask(self, count: int, like: Value) -> Value:
        low = LOWEST.get(like.dtype, float(np.finfo(np.float32).min))
        return constant(np.triu(np.full((count, count), low), 1), like.dtype)

    def float32(self, x: Value) -> Value:
        return converted(x, "float32")

    def cast(self, x: Value, like: Value) -> Value:
        return converted(x, like.dtype)


operations = OpenVino()


def parameter(shape: Sequence[int], dtype: str) -> Value:
    """An input of a graph."""
    return Value(op.parameter(list(shape), element(dtype)), dtype)


def weight(array: np.ndarray, dtype: str, name: str) -> Value:
    """A constant under a name that shares the memory of an array, which must outlive it. bfloat16,
    which numpy does not know, comes as its bits in uint16."""
    bits = dtype == "bfloat16"
    given = ov.Tensor(array, ov.Shape(array.shape), ov.Type.bf16) if bits else array
    node = op.constant(given, shared_memory=True)
    node.set_friendly_name(WEIGHT + name)
    wanted = element(dtype)
    if node.get_element_type() != wanted:
        node = op.convert(node, wanted)
    return Value(node, dtype)


def compressed(codes: np.ndarray, scale: np.ndarray, dtype: str, name: str) -> Value:
    """A weight that is the product of whole numbers in 8 bits and a scale for each output. Products
    of matrices read it so; for a convolution OpenVINO computes it once."""
    parts = []
    for array, part in ((codes, "codes"), (scale, "scale")):
        node = op.constant(array, shared_memory=True)
        node.set_friendly_name(f"{WEIGHT}{name}:{part}")
        parts.append(node)
    return Value(op.multiply(op.convert(parts[0], element(dtype)), parts[1]), dtype)
