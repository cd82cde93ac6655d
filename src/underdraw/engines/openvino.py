"""The engine `openvino`: network programs as graphs that OpenVINO compiles for the processor.

The program builds the graph: it runs on values instead of arrays, and its parameters are constants
that share memory with the network's. Everything that a call brings is an input: latents, times,
context, and what controls bring as data. So one graph serves all calls of one structure, and the
network's own program stays the only one.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import count
from threading import RLock
from typing import Any, Literal, get_args
from weakref import WeakKeyDictionary

from underdraw import backends, checks
from underdraw.backends import hardware
from underdraw.backends.tree import Structure, flatten, is_parameters, unflatten, unseen
from underdraw.checks import shown
from underdraw.engines.as_written import AsWritten
from underdraw.engines.eager import EAGER
from underdraw.engines.engine import Question
from underdraw.engines.graph import Built, arrays_of, as_given, build, signature
from underdraw.engines.kept import Kept, default
from underdraw.errors import (
    InputError,
    InputTypeError,
    NotExpressibleError,
    UnderdrawError,
)
from underdraw.names import __version__
from underdraw.networks.program import Program

LOG = logging.getLogger(__name__)
LAYERS = 6
"""Programs of fewer layers are over before a graph of them is compiled."""
SHARE = 0.4
"""Of the machine's memory that compiled graphs may hold if not told otherwise."""
REMEMBERED = 256
"""Structures of a network of which it is known that they run as they are written."""

Precision = Literal["auto", "float32", "bfloat16", "int8"]


Key = tuple[Program, Structure, tuple[Any, ...], tuple[tuple[int, int], ...]]
"""Program, structure and shapes of inputs, and the state of the weights."""


@dataclass
class Graph:
    """A compiled graph and what its outputs are."""

    compiled: Any
    outputs: Structure
    dtypes: tuple[str, ...]
    size: int
    """Bytes of its weights, prepared."""
    used: int = 0


@dataclass
class _Network:
    """What is known of one network."""

    graphs: OrderedDict[Key, Graph | None] = field(default_factory=OrderedDict)
    """None runs as it is written."""
    asked: set[Program] = field(default_factory=set)
    """What was asked in this run, of what runs once and of steps."""


@dataclass
class OpenVino:
    """Runs programs as compiled graphs on the CPU. What no graph can hold runs as it is written,
    which a line of the log tells once.

    Args:
        precision: in which products are computed. "auto": bfloat16 for networks in bfloat16 where
            the processor is faster by it, float32 otherwise, also for networks in float16. "int8":
            as "auto", but products with matrices in 8 bits (`pipe.quantize("int8")`) round their
            inputs to 8 bits, too, in groups of 32, where the processor is faster by it (VNNI, AMX).
        memory: bytes that compiled graphs may hold together, their weights prepared for the
            processor; the longest unused go first. None: 0.4 of the machine's memory.
        kept: where compiled graphs are kept between processes; None: nowhere. By default in
            `~/.cache/underdraw/graphs`, or the folder that the variable `UNDERDRAW_CACHE` names.

    Raises:
        InputError, InputTypeError: an argument is none of those; at the first call, the package
            openvino is not installed.
    """

    precision: Precision = "auto"
    memory: int | None = None
    kept: Kept | None = field(default_factory=default)
    compiled: list[tuple[Program, Structure]] = field(default_factory=list, init=False, repr=False)
    """What was compiled or loaded, in order."""
    loaded: int = field(default=0, init=False, repr=False)
    """How many of these came from disk."""
    _networks: WeakKeyDictionary[Any, _Network] = field(
        default_factory=WeakKeyDictionary, init=False, repr=False
    )
    _watches: WeakKeyDictionary[Any, Any] = field(
        default_factory=WeakKeyDictionary, init=False, repr=False
    )
    _tables: set[Program] = field(default_factory=set, init=False, repr=False)
    """What is asked once and is but products whose sizes change from call to call."""
    _as_written: AsWritten = field(
        default_factory=lambda: AsWritten("engine 'openvino'", LOG), init=False, repr=False
    )
    _clock: Any = field(default_factory=count, init=False, repr=False)
    _lock: Any = field(default_factory=RLock, init=False, repr=False)

    def __post_init__(self) -> None:
        checks.choice("precision", self.precision, get_args(Precision))
        if self.memory is not None:
            checks.whole("memory", self.memory, 0)
        if not isinstance(self.kept, Kept | None):
            raise InputTypeError(
                f"kept={shown(self.kept)} is no folder; allowed: None, or engines.kept.Kept"
            )

    def run(self, question: Question) -> Any:
        """The outputs of the graph that was compiled for such inputs."""
        leaves, structure = flatten(question.inputs)
        check(question)
        with self._lock:
            graph = self._graph(question, leaves, structure)
        if graph is None:
            return EAGER.run(question)
        framework = question.model._framework
        made = graph.compiled([as_given(framework, leaf) for leaf in arrays_of(leaves)])
        arrays = [
            framework.array(one, framework.resolve_dtype(dtype) if "float" in dtype else None)
            for one, dtype in zip(made, graph.dtypes, strict=True)
        ]
        return unflatten(graph.outputs, arrays)

    # -- which graph
    def _graph(
        self, question: Question, leaves: Sequence[Any], structure: Structure
    ) -> Graph | None:
        """That of a question; None: it runs as it is written."""
        program, model = question.program, question.model
        if program.as_written:
            return None
        trees = [model, *(leaf for leaf in leaves if is_parameters(leaf))]
        network = self._networks.setdefault(model, _Network())
        stepped = program.in_blocks and program in network.asked
        if program.once or program.in_blocks:
            self._note(program, trees)
        if program in self._tables:
            return None
        reason = self._unfit(question, leaves, structure) or self._look(program, trees)
        if reason is not None:
            return self._as_written.tell(program, reason)
        watches = [self._watches[tree] for tree in trees]
        key = (program, structure, signature(leaves), tuple(watch.state for watch in watches))
        if key not in network.graphs and stepped:
            # What is compiled later in a run, and kept on disk, is of the numbers as they are then.
            for watch in watches:
                watch.look(whole=True)
            key = (*key[:-1], tuple(watch.state for watch in watches))
        if key not in network.graphs:
            self._forget(network, key)
            network.graphs[key] = self._made(question, leaves, structure, watches)
        graph = network.graphs[key]
        network.graphs.move_to_end(key)
        if graph is not None:
            graph.used = next(self._clock)
            self._make_room(graph)
        return graph

    def _unfit(self, question: Question, leaves: Sequence[Any], structure: Structure) -> str | None:
        """Why a question is none for a graph, whatever the weights are; None where it may be."""
        model = question.model
        framework = model._framework
        if framework.compiler_of(model) is not None:
            return "the network was wrapped by torch.compile"
        if str(model.dtype).removeprefix("torch.") not in backends.graphs().FLOATS[1:]:
            return f"the network is in {model.dtype}"
        if framework.recording(model, leaves):
            return "a gradient is recorded"
        return unseen(structure)

    def _note(self, program: Program, trees: Sequence[Any]) -> None:
        """Note what is asked in a run. What runs once, asked again or behind steps, begins another
        run, in which all numbers are looked at one time: of a whole Stable Diffusion that takes
        half a second."""
        for tree in trees:
            asked = self._networks.setdefault(tree, _Network()).asked
            if program.once and (program in asked or any(one.in_blocks for one in asked)):
                asked.clear()
                self._watch(tree, trees[0]._framework).due = True
            asked.add(program)

    def _look(self, program: Program, trees: Sequence[Any]) -> str | None:
        """Look whether the weights are as they were; what of them no graph can hold, or None. Calls
        within a run look at some of the numbers."""
        whole = not (program.in_blocks or program.once)
        for tree in trees:
            if (odd := self._watch(tree, trees[0]._framework).look(whole)) is not None:
                return odd
        return None

    def _watch(self, tree: Any, framework: Any) -> Any:
        if tree not in self._watches:
            self._watches[tree] = framework.Watch(tree)
        return self._watches[tree]

    # -- made, kept and forgotten
    def _made(
        self,
        question: Question,
        leaves: Sequence[Any],
        structure: Structure,
        watches: Sequence[Any],
    ) -> Graph | None:
        program = question.program
        try:
            built = build(question, leaves, structure)
        except Exception as error:
            # What breaks a contract does so as it is written, too, and says it better there.
            if isinstance(error, NotExpressibleError) or not isinstance(error, UnderdrawError):
                self._as_written.tell(program, f"{type(error).__name__}: {str(error)[:200]}")
            return None
        if built.weights.layers < LAYERS:
            return None
        if program.once and not built.weights.convolves:
            self._tables.add(program)
            return None
        about = {
            "program": program.name,
            "network": type(question.model).__name__,
            "inputs": [list(one.shape) for one in leaves if hasattr(one, "shape")][:1],
        }
        try:
            compiled = self._compiled(built, self._settings(question.model), watches, about)
        except RuntimeError as error:
            self._as_written.tell(program, f"OpenVINO: {str(error)[:200]}")
            return None
        self.compiled.append((program, structure))
        return Graph(compiled, built.outputs, built.dtypes, built.weights.bytes)

    def _settings(self, model: Any) -> dict[str, Any]:
        half = self.precision == "bfloat16"
        if self.precision in ("auto", "int8") and "bfloat16" in str(model.dtype):
            half = hardware.bfloat16_pays()
        eight = self.precision == "int8" and hardware.int8_pays()
        return backends.graphs().settings(half, hardware.threads(), eight)

    def _compiled(
        self, built: Built, how: Mapping[str, Any], watches: Sequence[Any], about: Any
    ) -> Any:
        """The graph from disk, or compiled and kept there."""
        ov, kept, reads = backends.graphs(), self.kept, [built.weights.holds]
        if kept is None or not kept.fits(built.weights.bytes):
            return ov.compiled(built.graph, how, reads)
        made_of = (__version__, ov.version(), ov.processor(), sorted(how.items()))
        seen = blake2b(repr(made_of).encode(), digest_size=20)
        for part in (ov.described(built.graph), *(watch.fingerprint for watch in watches)):
            seen.update(part.encode())
        key = seen.hexdigest()
        mapped = kept.find(key)
        if mapped is not None:
            try:
                made = ov.loaded(mapped, how)
            except ValueError as error:
                LOG.debug("a compiled graph is made again: %s", error)
                kept.discard(key)
            else:
                self.loaded += 1
                return made
        compiled = None
        try:
            with kept.making(key) as folder:
                reads.append(ov.widened(built.graph, folder))
                compiled, file = ov.compiled_into(built.graph, how, reads, folder)
                if file is None:
                    return compiled
                kept.put(key, file, about)
        except OSError as error:
            LOG.warning("%s: compiled graphs cannot be kept: %s", kept.folder, error)
            return ov.compiled(built.graph, how, reads) if compiled is None else compiled
        if all(array.itemsize >= 4 for array in built.weights.holds):
            return compiled
        # From what was kept, for the weights in float32 stay on the disk as long as they are read.
        mapped = kept.find(key)
        if mapped is None:
            return compiled
        compiled.release()
        try:
            return ov.loaded(mapped, how)
        except ValueError as error:
            LOG.debug("a compiled graph is made again: %s", error)
            kept.discard(key)
            return ov.compiled(built.graph, how, reads)

    def _forget(self, network: _Network, key: Key) -> None:
        """Drop what was made of weights that are no more, and the oldest of too many."""
        *_, state = key
        for other in [known for known in network.graphs if known[-1][0] != state[0]]:
            del network.graphs[other]
        while len(network.graphs) >= REMEMBERED:
            network.graphs.popitem(last=False)

    def _make_room(self, latest: Graph) -> None:
        """Drop the graphs unused for longest until the others fit into `memory`."""
        most = hardware.memory() * SHARE if self.memory is None else self.memory
        graphs = [
            (graph.used, graph.size, network.graphs, key)
            for network in self._networks.values()
            for key, graph in network.graphs.items()
            if graph is not None
        ]
        total = sum(size for _, size, _, _ in graphs)
        for used, size, owner, key in sorted(graphs, key=lambda each: each[0]):
            if total <= most or used == latest.used:
                return
            del owner[key]
            total -= size

    def __reduce__(self) -> Any:
        """For copies and pickles: what was compiled stays here."""
        return type(self), (self.precision, self.memory, self.kept)

    def __repr__(self) -> str:
        return f"OpenVino(precision={self.precision!r})"


def check(question: Question) -> None:
    """Refuse what this engine is not for.

    Raises:
        InputError: the network is none of PyTorch's, or is not on the CPU.
    """
    model = question.model
    if not hasattr(model._framework, "Watch"):
        raise InputError(
            f"engine='openvino' runs networks of the backend 'torch', not of {question.nn.name!r}; "
            "allowed there: 'eager', 'jit'"
        )
    if model.device.type != "cpu":
        raise InputError(
            f"engine='openvino' computes on the CPU; {type(model).__name__} is on {model.device}; "
            "allowed there: 'eager', 'compiled', 'jit'"
        )
