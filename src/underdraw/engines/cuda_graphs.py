"""The engine `graph`: each program recorded once as a CUDA graph, and replayed from then on.

A step of a UNet is some thousand operations. For small pictures an accelerator computes them sooner
than Python starts them; a graph is started as a whole. Another prompt, seed, guidance, strength or
step is other numbers in the same memory and records nothing; another size, number of images or kind
of control is another structure.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from threading import RLock
from typing import Any
from weakref import WeakKeyDictionary

from underdraw import checks
from underdraw.backends.tree import (
    Structure,
    flatten,
    is_array,
    is_parameters,
    signature,
    unflatten,
    unseen,
)
from underdraw.engines.as_written import AsWritten
from underdraw.engines.eager import EAGER
from underdraw.engines.engine import Question
from underdraw.errors import InputError
from underdraw.networks.program import Program

LOG = logging.getLogger(__name__)


class _Told:
    """What a program gave when it was recorded: leaves, and their structure."""

    leaves: list[Any]
    structure: Structure


@dataclass(frozen=True)
class _Recorded:
    """A recording, and what it was made of."""

    recording: Any
    places: list[Any]
    """Where the parameters lay that it reads."""
    outputs: Structure
    others: list[Any]
    """Leaves of the outputs, those that are no arrays in their places."""


@dataclass
class CudaGraphs:
    """Records programs of networks on a CUDA device. What asks once in a run, and what no graph can
    hold, runs as it is written; of the latter a line of the log tells once.

    Args:
        fused: let `torch.compile` fuse norms and activations first, for which it takes minutes.
        most: recordings that are kept of a network; the longest unused go first.

    Raises:
        InputError, InputTypeError: an argument is none of those; a network is on no CUDA device.
    """

    fused: bool = False
    most: int = 16
    recorded: list[tuple[Program, Structure]] = field(default_factory=list, init=False, repr=False)
    """What was recorded, in order."""
    _networks: WeakKeyDictionary[Any, OrderedDict[Hashable, _Recorded]] = field(
        default_factory=WeakKeyDictionary, init=False, repr=False
    )
    _trees: WeakKeyDictionary[Any, Any] = field(
        default_factory=WeakKeyDictionary, init=False, repr=False
    )
    _as_written: AsWritten = field(
        default_factory=lambda: AsWritten("engine 'graph'", LOG), init=False, repr=False
    )
    _lock: Any = field(default_factory=RLock, init=False, repr=False)

    def __post_init__(self) -> None:
        checks.flag("fused", self.fused)
        checks.whole("most", self.most, 1)

    def run(self, question: Question) -> Any:
        """The outputs of the program that was recorded for such inputs."""
        program, model = question.program, question.model
        self._check(question)
        if program.once:
            return EAGER.run(question)
        leaves, structure = flatten(question.inputs)
        reason, trees = self._unfit(question, leaves, structure), []
        if reason is None:
            roots = (model, *filter(is_parameters, leaves))
            trees = [self._tree(root, model._framework) for root in roots]
            reason = next((odd for tree in trees if (odd := tree.odd()) is not None), None)
        if reason is not None:
            self._as_written.tell(program, reason)
            return EAGER.run(question)
        array, device = model._framework.array, model.device
        leaves = [
            array(leaf, device=device) if is_array(leaf) or isinstance(leaf, float) else leaf
            for leaf in leaves
        ]
        with self._lock:  # a recording's memory is for one call at a time
            recorded = self._recorded(question, leaves, structure, trees)
            made = recorded.recording.replay([leaf for leaf in leaves if is_array(leaf)])
            copies = iter([one.clone() for one in made])
        filled = [next(copies) if other is None else other for other in recorded.others]
        return unflatten(recorded.outputs, filled)

    def _check(self, question: Question) -> None:
        model = question.model
        if question.nn.name != "torch" or model.device.type != self._kind():
            where = model.device if question.nn.name == "torch" else question.nn.name
            raise InputError(
                f"engine='graph' records CUDA graphs; {type(model).__name__} is on {where}; "
                "allowed there: 'eager', 'compiled'"
            )

    def _kind(self) -> str:
        """The kind of device whose programs can be recorded."""
        return "cuda"

    def _unfit(self, question: Question, leaves: Sequence[Any], structure: Structure) -> str | None:
        """Why a question is none for a graph, whatever the weights are; None where it may be."""
        model = question.model
        framework = model._framework
        if framework.compiler_of(model) is not None:
            return "the network was wrapped by torch.compile"
        if framework.recording(model, leaves):
            return "a gradient is recorded"
        return unseen(structure)

    def _tree(self, root: Any, framework: Any) -> Any:
        """The modules and parameters of a network, looked up anew where some were replaced."""
        tree = self._trees.get(root)
        if tree is None or not tree.stands():
            tree = self._trees[root] = framework.Tree(vars(root))
        return tree

    def _recorded(
        self, question: Question, leaves: Sequence[Any], structure: Structure, trees: Sequence[Any]
    ) -> _Recorded:
        """That of a question, recorded now if parameters have moved in memory since."""
        model = question.model
        known = self._networks.setdefault(model, OrderedDict())
        key = (question.program, question.nn, structure, signature(leaves))
        places = [tree.places() for tree in trees]
        if key not in known or known[key].places != places:
            known.pop(key, None)  # before another takes memory
            known[key] = self._record(question, leaves, structure, places)
            self.recorded.append((question.program, structure))
            while len(known) > self.most:
                known.popitem(last=False)
        known.move_to_end(key)
        return known[key]

    def _record(
        self, question: Question, leaves: Sequence[Any], structure: Structure, places: list[Any]
    ) -> _Recorded:
        program, nn, model = question.program, question.nn, question.model
        told = _Told()

        def call(arrays: list[Any]) -> list[Any]:
            given = iter(arrays)
            inputs = unflatten(structure, [next(given) if is_array(x) else x for x in leaves])
            told.leaves, told.structure = flatten(program(nn, model, model.config, *inputs))
            return [leaf for leaf in told.leaves if is_array(leaf)]

        function: Callable[[list[Any]], list[Any]] = call
        if self.fused:
            function = model._framework.compiled(call, dynamic=False)
        arrays = [leaf for leaf in leaves if is_array(leaf)]
        recording = self._make(model._framework, function, arrays, model.device)
        others = [None if is_array(leaf) else leaf for leaf in told.leaves]
        return _Recorded(recording, places, told.structure, others)

    def _make(self, framework: Any, function: Any, arrays: list[Any], device: Any) -> Any:
        return framework.Recording(function, arrays, device)

    def __reduce__(self) -> Any:
        """For copies and pickles: what was recorded stays here."""
        return type(self), (self.fused, self.most)

    def __repr__(self) -> str:
        return f"CudaGraphs({'fused=True' if self.fused else ''})"
