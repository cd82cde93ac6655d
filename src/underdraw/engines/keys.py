"""What a compiled program depends on, as a name that is the same in every process."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

from underdraw.backends.tree import Structure, is_array, is_parameters, no_data
from underdraw.engines.engine import Question


def key_of(question: Question, leaves: Sequence[Any], structure: Structure) -> str | None:
    """A name of program, kind and layout of the network, and structure, shapes and dtypes of the
    inputs, but of no number; None where something in it means nothing to another process.

    Args:
        leaves, structure: of the question's inputs (`backends.tree.flatten`).
    """
    if no_data(structure) is not None or any(map(is_parameters, leaves)):
        return None
    model = question.model
    arrays = [
        (tuple(leaf.shape), str(leaf.dtype), str(leaf.device)) if is_array(leaf) else "number"
        for leaf in leaves
    ]
    layers = [(name, tuple(p.shape), p.stride()) for name, p in model.named_parameters()]
    said = repr(
        (
            *(question.program.name, type(model).__name__, model.config, question.nn),
            *(str(model.dtype), str(model.device), layers, structure, arrays),
        )
    )
    # Where an object has no words of its own, its address stands in them.
    return None if " at 0x" in said else blake2b(said.encode(), digest_size=16).hexdigest()
