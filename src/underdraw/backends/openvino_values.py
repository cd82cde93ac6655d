"""An array of a graph that is being built: an output of an OpenVINO node.

Numbers are computed in float32, whatever the dtype of the network is; a value remembers in which
dtype its array would be, so that outputs come in the dtypes that the framework would give.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as op

from underdraw.errors import NotExpressibleError

FLOATS = ("float64", "float32", "bfloat16", "float16")
"""Names of floating-point dtypes; where two meet, the result has the first of them."""

WEIGHT = "weight:"
"""What the names of constants begin with that are weights: the path follows."""


class Value:
    """What network programs may do with an array (`backends.contract`)."""

    __slots__ = ("dtype", "node")

    def __init__(self, node: Any, dtype: str) -> None:
        self.node = node.output(0) if hasattr(node, "output") else node
        self.dtype = dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.node.get_shape())

    def reshape(self, *sizes: Any) -> Value:
        if len(sizes) == 1 and isinstance(sizes[0], tuple | list):
            sizes = tuple(sizes[0])
        return Value(op.reshape(self.node, np.array(sizes, np.int64), False), self.dtype)

    def __getitem__(self, index: Any) -> Value:
        x, axis = self.node, 0
        for item in index if isinstance(index, tuple) else (index,):
            if item is None:
                x = op.unsqueeze(x, np.array([axis], np.int64)).output(0)
                axis += 1
            elif isinstance(item, slice):
                size = x.get_shape()[axis]
                start, stop, step = item.indices(size)
                if step < 1:
                    raise NotExpressibleError(f"a slice goes backwards: {item}")
                if (start, stop, step) != (0, size, 1):
                    at = (np.array([n], np.int64) for n in (start, max(start, stop), step, axis))
                    x = op.slice(x, *at).output(0)
                axis += 1
            elif isinstance(item, int):
                size = x.get_shape()[axis]
                if not -size <= item < size:
                    raise IndexError(f"index {item} is out of range; axis {axis} has {size}")
                x = op.gather(x, np.array(item % size), np.array(axis)).output(0)
            else:
                raise NotExpressibleError(f"an index is {type(item).__name__}")
        return Value(x, self.dtype)

    # -- arithmetic
    def __add__(self, other: Any) -> Value:
        return _binary(op.add, self, other)

    def __radd__(self, other: Any) -> Value:
        return _binary(op.add, other, self)

    def __sub__(self, other: Any) -> Value:
        return _binary(op.subtract, self, other)

    def __rsub__(self, other: Any) -> Value:
        return _binary(op.subtract, other, self)

    def __mul__(self, other: Any) -> Value:
        return _binary(op.multiply, self, other)

    def __rmul__(self, other: Any) -> Value:
        return _binary(op.multiply, other, self)

    def __truediv__(self, other: Any) -> Value:
        return _binary(op.divide, floating(self), other)

    def __rtruediv__(self, other: Any) -> Value:
        return _binary(op.divide, other, floating(self))

    def __pow__(self, other: Any) -> Value:
        if other == 2 and not isinstance(other, Value):
            return self * self
        return _binary(op.power, self, other)

    def __neg__(self) -> Value:
        return Value(op.negative(self.node), self.dtype)

    def __lt__(self, other: Any) -> Value:
        return _compare(op.less, self, other)

    def __le__(self, other: Any) -> Value:
        return _compare(op.less_equal, self, other)

    def __gt__(self, other: Any) -> Value:
        return _compare(op.greater, self, other)

    def __ge__(self, other: Any) -> Value:
        return _compare(op.greater_equal, self, other)

    def __eq__(self, other: Any) -> Value:  # type: ignore[override]
        return _compare(op.equal, self, other)

    def __ne__(self, other: Any) -> Value:  # type: ignore[override]
        return _compare(op.not_equal, self, other)

    __hash__ = None  # type: ignore[assignment]

    def _no_numbers(self, *_: Any) -> Any:
        raise NotExpressibleError("a program asks for the numbers of an array")

    __bool__ = __float__ = __int__ = __index__ = __iter__ = __array__ = __len__ = _no_numbers

    def __repr__(self) -> str:
        return f"Value({self.shape}, {self.dtype})"


def is_float(dtype: str) -> bool:
    """Whether it names floating-point numbers."""
    return dtype in FLOATS


def element(dtype: str) -> Any:
    """The type of the graph's numbers for a dtype."""
    if is_float(dtype):
        return ov.Type.f32
    return ov.Type.boolean if dtype == "bool" else ov.Type.i64


def floating(x: Value) -> Value:
    """Whole numbers and switches as float32."""
    return x if is_float(x.dtype) else Value(op.convert(x.node, ov.Type.f32), "float32")


def constant(values: Any, dtype: str) -> Value:
    """Numbers that are part of the graph."""
    kind = {ov.Type.f32: np.float32, ov.Type.i64: np.int64}.get(element(dtype), np.bool_)
    return Value(op.constant(np.asarray(values, kind)), dtype)


def as_values(a: Any, b: Any) -> tuple[Value, Value]:
    """Two operands of one type; a number has the dtype of the other where that can hold it."""
    if not isinstance(a, Value):
        b, a = as_values(b, a)
        return a, b
    if not isinstance(b, Value):
        if not isinstance(b, int | float | np.number):
            raise NotExpressibleError(
                f"an array meets {type(b).__name__}, which is none of the graph's"
            )
        if isinstance(b, float | np.floating):
            a = floating(a)
        elif a.dtype == "bool" and not isinstance(b, bool):
            a = Value(op.convert(a.node, ov.Type.i64), "int64")
        return a, constant(b, a.dtype)
    dtype = joint((a.dtype, b.dtype))
    return converted(a, dtype), converted(b, dtype)


def joint(dtypes: Sequence[str]) -> str:
    """The dtype in which values of several meet."""
    for name in (*FLOATS, "int64"):
        if name in dtypes:
            return name
    return dtypes[0]


def converted(x: Value, dtype: str) -> Value:
    """The same numbers in another dtype."""
    if element(x.dtype) == element(dtype):
        return x if x.dtype == dtype else Value(x.node, dtype)
    return Value(op.convert(x.node, element(dtype)), dtype)


def _binary(operation: Any, a: Any, b: Any) -> Value:
    one, two = as_values(a, b)
    return Value(operation(one.node, two.node), one.dtype)


def _compare(operation: Any, a: Any, b: Any) -> Value:
    one, two = as_values(a, b)
    return Value(operation(one.node, two.node), "bool")
