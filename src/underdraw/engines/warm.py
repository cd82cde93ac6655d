"""What PyTorch compiled, found again by the next process.

PyTorch keeps what it compiled in a folder of its own, which a restart of the machine or another
container empties. Here it is kept beside the graphs of OpenVINO, within their limit of size, as one
file for each question that met something new: of all that its process had compiled by then.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from underdraw.backends.tree import flatten, signature
from underdraw.engines.engine import Question
from underdraw.engines.kept import Kept
from underdraw.engines.keys import key_of
from underdraw.formats.writing import write_file

LOG = logging.getLogger(__name__)


@dataclass
class Warm:
    """Around each first question of its kind: finds before it and keeps behind it."""

    kept: Kept | None
    loaded: int = 0
    """How many files were found and taken."""
    _seen: WeakKeyDictionary[Any, set[Any]] = field(default_factory=WeakKeyDictionary, repr=False)

    @contextmanager
    def around(self, question: Question, how: str) -> Iterator[None]:
        """What compiles inside finds what was compiled for such a question.

        Args:
            how: the way it is compiled, part of the name of the file.
        """
        framework, kept = question.model._framework, self.kept
        if kept is None or not hasattr(framework, "take_artifacts"):
            yield
            return
        leaves, structure = flatten(question.inputs)
        seen = self._seen.setdefault(question.model, set())
        kind = (question.program, question.nn, structure, signature(leaves))
        key = None if kind in seen else key_of(question, leaves, structure)
        seen.add(kind)
        if key is None:
            yield
            return
        name = f"{key}-{how}-{framework.maker()}"
        if kept.is_private() and (found := kept.find(name)) is not None:
            if framework.take_artifacts(found[:]):
                self.loaded += 1
                yield
                return
            kept.discard(name)
        yield
        self._keep(kept, name, framework.made_artifacts(), question, leaves)

    def _keep(
        self, kept: Kept, name: str, made: bytes | None, question: Question, leaves: list[Any]
    ) -> None:
        if made is None or not kept.fits(len(made)) or not kept.is_private():
            return
        about = {
            "program": question.program.name,
            "network": type(question.model).__name__,
            "inputs": [list(one.shape) for one in leaves if hasattr(one, "shape")][:1],
        }
        try:
            with kept.making(name) as folder:
                file = folder / "artifacts"
                write_file(file, made)
                kept.put(name, file, about)
        except OSError as error:
            LOG.warning("%s: what was compiled cannot be kept: %s", kept.folder, error)
