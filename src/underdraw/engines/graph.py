"""A question as a graph: a program run on values, whose weights are constants."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from underdraw import backends
from underdraw.backends.tree import ARRAY, Structure, flatten, is_array, is_parameters, unflatten
from underdraw.engines.engine import Question
from underdraw.errors import NotExpressibleError

INTEGERS = ("int64", "int32", "int16", "int8", "uint8")


@dataclass
class Weights:
    """Constants of the trees in a question, each once."""

    nn: Any
    """`backends.graphs()`."""
    known: dict[int, tuple[Any, Any]] = field(default_factory=dict)
    """A parameter and its value by the parameter's identity."""
    holds: list[np.ndarray] = field(default_factory=list)
    """What the constants share memory with."""

    def value(self, framework: Any, path: str, tensor: Any) -> Any:
        """The constant of a parameter."""
        if id(tensor) not in self.known:
            dtype, array = framework.to_bits(tensor)
            self.holds.append(array)
            self.known[id(tensor)] = tensor, self.nn.weight(array, dtype, path)
        return self.known[id(tensor)][1]

    def compressed(self, framework: Any, path: str, codes: Any, scale: Any, dtype: str) -> Any:
        """The weight of a layer in 8 bits, which stays in them."""
        if id(codes) not in self.known:
            numbers, by = framework.to_bits(codes)[1], framework.to_bits(scale)[1]
            self.holds += [numbers, by]
            self.known[id(codes)] = codes, self.nn.compressed(numbers, by, dtype, path)
        return self.known[id(codes)][1]

    @property
    def bytes(self) -> int:
        """What they take when they are prepared: in float32, or half of it; matrices in 8 bits stay
        as they are."""
        eight = sum(a.size for a in self.holds if a.dtype == np.int8 and a.ndim == 2)
        return 4 * sum(array.size for array in self.holds) - 3 * eight

    @property
    def layers(self) -> int:
        """How many products and convolutions there are."""
        return sum(len(value.shape) > 1 for _, value in self.known.values())

    @property
    def convolves(self) -> bool:
        """Whether any is a convolution."""
        return any(len(value.shape) == 4 for _, value in self.known.values())


class Place:
    """A node of a parameter tree whose parameters are constants of the graph."""

    def __init__(self, node: Any, framework: Any, weights: Weights, path: str) -> None:
        self._node, self._framework, self._weights, self._path = node, framework, weights, path

    def _of(self, name: str, child: Any) -> Any:
        path = f"{self._path}.{name}"
        if self._framework.is_array(child):
            return self._weights.value(self._framework, path, child)
        return child if child is None else Place(child, self._framework, self._weights, path)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name == "weight" and (eight := self._framework.eight_bits(self._node)) is not None:
            dtype = str(self._node.kept.dtype).removeprefix("torch.")
            path, (codes, scale) = f"{self._path}.{name}", eight
            return self._weights.compressed(self._framework, path, codes, scale, dtype)
        return self._of(name, getattr(self._node, name))

    def __getitem__(self, index: int) -> Any:
        return self._of(str(index), self._node[index])

    def __len__(self) -> int:
        return len(self._node)

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self)))


@dataclass(frozen=True)
class Built:
    """A program as a graph."""

    graph: Any
    weights: Weights
    outputs: Structure
    dtypes: tuple[str, ...]
    """Of the outputs, as the program on arrays would give them."""


def build(question: Question, leaves: Sequence[Any], structure: Structure) -> Built:
    """Run the program of a question on values in place of its arrays.

    Raises:
        Exception: whatever the program raises that cannot run on values, or not at all.
    """
    ov, framework = backends.graphs(), question.model._framework
    weights = Weights(ov)
    values, given = [], []
    for number, leaf in enumerate(leaves):
        if is_parameters(leaf):
            values.append(Place(leaf, framework, weights, f"{number}"))
            continue
        shape, dtype = ((), "float32") if isinstance(leaf, float) else kind(leaf)
        given.append(ov.parameter(shape, dtype))
        values.append(given[-1])
    place = Place(question.model, framework, weights, "")
    inputs = unflatten(structure, values)
    made = question.program(ov.operations, place, question.model.config, *inputs)
    outputs, template = flatten(made)
    if not all(isinstance(one, ov.Value) for one in outputs):
        raise NotExpressibleError("an output is no array of the graph")
    dtypes = tuple(one.dtype for one in outputs)
    return Built(ov.model(given, outputs), weights, template, dtypes)


def kind(array: Any) -> tuple[tuple[int, ...], str]:
    """Shape and dtype of an input, all whole numbers as int64.

    Raises:
        NotExpressibleError: graphs have no such numbers.
    """
    ov = backends.graphs()
    name = str(array.dtype).removeprefix("torch.")
    name = "int64" if name in INTEGERS else name
    if name not in (*ov.FLOATS[1:], "int64", "bool"):
        raise NotExpressibleError(f"an input is {name}")
    return tuple(array.shape), name


def as_given(framework: Any, leaf: Any) -> np.ndarray:
    """An input as the graph takes it: floats in float32; memory is shared where it can be."""
    if isinstance(leaf, float):
        return np.array(leaf, np.float32)
    array = framework.to_numpy(leaf) if framework.is_array(leaf) else np.asarray(leaf)
    wanted = {"f": np.float32, "b": np.bool_}.get(array.dtype.kind, np.int64)
    if array.dtype == wanted and array.flags.c_contiguous and array.flags.writeable:
        return array
    return np.array(array, wanted, order="C")


def arrays_of(leaves: Sequence[Any]) -> list[Any]:
    """The leaves that are inputs of the graph, in its order."""
    return [leaf for leaf in leaves if not is_parameters(leaf)]


def signature(leaves: Sequence[Any]) -> tuple[Any, ...]:
    """Shapes and dtypes of arrays; floats are numbers that may change."""
    return tuple(
        (tuple(leaf.shape), str(leaf.dtype))
        if is_array(leaf) and not is_parameters(leaf)
        else ARRAY
        if isinstance(leaf, float)
        else None
        for leaf in leaves
    )
