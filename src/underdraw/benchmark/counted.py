"""How much arithmetic questions are: their programs run on shapes."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch

from underdraw.backends.counting import Counting, Work
from underdraw.backends.shapes import Path, Shape
from underdraw.backends.tree import flatten, is_array, is_parameters, map_arrays, unflatten
from underdraw.engines.engine import Question


def counted(question: Question) -> Work:
    """The work of one question."""
    return _on_shapes(question)[0]


class Counts:
    """An engine that computes nothing: it counts, and answers with zeros.

    Args:
        names: of the programs that count; None: all.
    """

    def __init__(self, names: Collection[str] | None = None) -> None:
        self.names = names
        self.work = Work()
        """Of all questions until now."""
        self._known: dict[Any, tuple[Work, Any]] = {}

    def run(self, question: Question) -> Any:
        """Zeros of the shapes of its outputs. What is asked again in the same shapes is not gone
        through again."""
        model = question.model
        leaves, structure = flatten(question.inputs)
        shapes = tuple(tuple(leaf.shape) if is_array(leaf) else None for leaf in leaves)
        key = (question.program, model, structure, shapes)
        if key not in self._known:
            self._known[key] = _on_shapes(question)
        work, made = self._known[key]
        if self.names is None or question.program.name in self.names:
            self.work.matrix += work.matrix
            self.work.convolution += work.convolution
        zero = torch.zeros((), dtype=model.dtype, device=model.device)
        return map_arrays(lambda shape: zero.expand(shape.shape), made)


def _on_shapes(question: Question) -> tuple[Work, Any]:
    """The work, and the outputs as shapes."""
    nn = Counting({})
    leaves, structure = flatten(question.inputs)
    inputs = unflatten(structure, [_unnumbered(leaf) for leaf in leaves])
    made = question.program(nn, Path(), question.model.config, *inputs)
    return nn.work, made


def _unnumbered(leaf: Any) -> Any:
    if is_parameters(leaf):
        return Path("beside")
    return Shape(*leaf.shape) if is_array(leaf) else leaf
