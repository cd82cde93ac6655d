"""Values that callers pass by mistake: of the wrong type, out of range, of odd shapes.

What an argument may be is read from its annotation (`sensible`), so an argument that is added later
is tried by itself. Where the annotation says nothing (`Any`, arrays) a test lists what works.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image


class Unprintable:
    """Says nothing of itself, and has neither a truth value nor a length nor an equal."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    def __bool__(self) -> bool:
        raise RuntimeError("no truth")

    def __len__(self) -> int:
        raise RuntimeError("no length")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no equality")

    __hash__ = None  # type: ignore[assignment]


class Counting:
    """Looks like a sequence, and has no end."""

    def __getitem__(self, index: int) -> int:
        return index


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def looped() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


ZOO: dict[str, Callable[[], Any]] = {
    # numbers
    "nan": lambda: math.nan,
    "inf": lambda: math.inf,
    "-inf": lambda: -math.inf,
    "0": lambda: 0,
    "-1": lambda: -1,
    "0.5": lambda: 0.5,
    "-0.5": lambda: -0.5,
    "1.5": lambda: 1.5,
    "1": lambda: 1,
    "2**31": lambda: 2**31,
    "2**63": lambda: 2**63,
    "10**400": lambda: 10**400,
    "-10**400": lambda: -(10**400),
    "1e30": lambda: 1e30,
    "-1e30": lambda: -1e30,
    "complex": lambda: 1 + 2j,
    "decimal": lambda: Decimal("0.5"),
    "fraction": lambda: Fraction(1, 2),
    "true": lambda: True,
    "false": lambda: False,
    # texts
    "empty text": lambda: "",
    "text": lambda: "text",
    "number as text": lambda: "1",
    "long text": lambda: "text " * 400 + "(",
    "surrogate": lambda: "\ud800",
    "null byte": lambda: "a\0b",
    "bytes": lambda: b"text",
    "bytearray": lambda: bytearray(3),
    "path": lambda: Path("nowhere"),
    # nothing, and containers
    "none": lambda: None,
    "ellipsis": lambda: ...,
    "empty list": list,
    "empty tuple": tuple,
    "empty dict": dict,
    "dict": lambda: {"a": 1},
    "set": lambda: {"a"},
    "list of None": lambda: [None],
    "list of nan": lambda: [math.nan],
    "list of text": lambda: ["text"],
    "list of bytes": lambda: [b"a"],
    "list of huge": lambda: [10**400],
    "list of arrays": lambda: [np.ones(3)],
    "list of lists": lambda: [[1.0], [1.0, 2.0]],
    "list of objects": lambda: [object()],
    "list of unprintable": lambda: [Unprintable()],
    "deep list": lambda: nested(50),
    "looped list": looped,
    "long list": lambda: list(range(5000)),
    "deque": lambda: deque([1, 2]),
    "range": lambda: range(3),
    "generator": lambda: (x for x in "abc"),
    "iterator": lambda: iter([1.0]),
    "endless": Counting,
    # objects
    "object": object,
    "class": lambda: dict,
    "function": lambda: print,
    "module": lambda: math,
    "error": lambda: ValueError("text"),
    "unprintable": Unprintable,
    # numbers and arrays of numpy
    "numpy float": lambda: np.float32(0.5),
    "numpy nan": lambda: np.float64(math.nan),
    "numpy int": lambda: np.int64(1),
    "numpy bool": lambda: np.bool_(True),
    "numpy text": lambda: np.str_("text"),
    "numpy scalar": lambda: np.array(1),
    "numpy one": lambda: np.array([1]),
    "numpy two": lambda: np.array([1.0, 0.5]),
    "numpy empty": lambda: np.zeros((0,), np.float32),
    "numpy matrix": lambda: np.ones((2, 3), np.float32),
    "numpy nan matrix": lambda: np.full((4, 4), math.nan),
    "numpy five axes": lambda: np.ones((1, 2, 3, 4, 5)),
    "numpy objects": lambda: np.array([None, object()], dtype=object),
    "numpy texts": lambda: np.array(["a", "b"]),
    "numpy complex": lambda: np.ones((1, 4, 8, 8), np.complex64),
    "numpy dates": lambda: np.array(["2020-01-01"], dtype="datetime64[D]"),
    "numpy records": lambda: np.zeros(2, dtype=[("a", "f4")]),
    # tensors
    "tensor scalar": lambda: torch.tensor(0.5),
    "tensor two": lambda: torch.tensor([1.0, 2.0]),
    "tensor bool": lambda: torch.tensor([True, False]),
    "tensor empty": lambda: torch.zeros(0),
    "tensor no rows": lambda: torch.zeros(0, 4, 8, 8),
    "tensor matrix": lambda: torch.ones(2, 3),
    "tensor odd": lambda: torch.ones(3, 5, 7, 9),
    "tensor nan": lambda: torch.full((1, 4, 8, 8), math.nan),
    "tensor complex": lambda: torch.ones(1, 4, 8, 8, dtype=torch.complex64),
    "tensor whole": lambda: torch.ones(1, 4, 8, 8, dtype=torch.int64),
    "tensor five axes": lambda: torch.ones(1, 2, 3, 4, 5),
    "tensor sparse": lambda: torch.ones(1, 4, 8, 8).to_sparse(),
    "tensor elsewhere": lambda: torch.ones(1, 4, 8, 8, device="meta"),
    "dtype": lambda: torch.float16,
    # pictures
    "picture": lambda: Image.new("RGB", (16, 16), "red"),
    "empty picture": lambda: Image.new("RGB", (0, 0)),
    "pictures": lambda: [Image.new("L", (16, 16), 255), Image.new("L", (8, 16))],
}

Test = Callable[[Any], bool]


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool | np.bool_)


def _is_texts(value: Any) -> bool:
    return (
        isinstance(value, list | tuple) and bool(value) and all(isinstance(v, str) for v in value)
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not _is_bool(value)


PLAIN: dict[str, Test] = {
    "bool": _is_bool,
    "Literal[True]": _is_bool,
    "Literal[False]": _is_bool,
    "int": lambda value: isinstance(value, Integral) and not _is_bool(value),
    "float": lambda value: _is_number(value) and abs(value) < 1e9 and math.isfinite(value),
    "str": lambda value: isinstance(value, str),
    "list[str]": _is_texts,
    "None": lambda value: value is None,
    "Sequence[int]": lambda value: isinstance(value, list | tuple | np.ndarray | range),
    "Sequence[float]": lambda value: isinstance(value, list | tuple | np.ndarray | torch.Tensor),
    "Path": lambda value: isinstance(value, Path),
    "os.PathLike[str]": lambda value: isinstance(value, Path),
    "Callable[..., Any]": callable,
}
"""What the parts of an annotation allow."""


def sensible(annotation: str, value: Any) -> bool | None:
    """Whether a value is of a type that an annotation names, as far as it does; None where the
    annotation says too little to tell."""
    parts = [part.strip() for part in annotation.split(" | ")]
    if any(PLAIN[part](value) for part in parts if part in PLAIN):
        return True
    return None if any(part not in PLAIN for part in parts) else False
