"""Engines that run programs compiled: one compiled program for each structure of its inputs.

Another prompt, seed, guidance, strength or step is other numbers in the same structure and compiles
nothing; another size, number of images or kind of control is another structure.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from threading import RLock
from types import FunctionType
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

from underdraw import checks
from underdraw.backends.adapted import Adapted
from underdraw.backends.tree import Structure, flatten, signature, unflatten
from underdraw.engines.engine import Question
from underdraw.engines.kept import Kept, default
from underdraw.engines.programs import Programs
from underdraw.engines.warm import Warm
from underdraw.errors import InputError
from underdraw.networks.program import Program


@dataclass
class Compiled:
    """Compiles each program as a whole: `jax.jit` on JAX, `torch.compile` on PyTorch, `ms.jit` on
    MindSpore.

    On JAX and MindSpore the networks' parameters are arguments of what is compiled, so two networks
    of one config share it.
    """

    compiler: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None
    """What compiles a function; None: the backend's own."""
    loops: ClassVar[bool] = True
    """It is asked for many calls at once where a run allows that."""
    donates: bool = False
    """Whether `compiler` takes the number of an argument, too, whose arrays nobody needs
    afterwards; the backend's own does where networks are values."""
    kept: Kept | None = field(default_factory=default)
    """Where what PyTorch and JAX compile is kept between processes; None: nowhere but in folders of
    their own. What another `compiler` makes of PyTorch's is not."""
    compiled: list[tuple[Program, Structure]] = field(default_factory=list)
    """What was compiled, in order: a program as often as it met another structure."""
    _programs: dict[Hashable, _Whole] = field(default_factory=dict, repr=False)
    _lock: Any = field(default_factory=RLock, repr=False)
    _warm: Warm | None = field(default=None, repr=False)

    def run(self, question: Question) -> Any:
        """The outputs of the program that was compiled for such inputs."""
        model = question.model
        if question.program.once and not _is_value(model):
            return question.program(question.nn, model, model.config, *question.inputs)
        leaves, structure = flatten(question.inputs)
        if not _is_value(model):  # PyTorch would compile again for another number
            array, device = model._framework.array, model.device
            leaves = [array(x, device=device) if isinstance(x, float) else x for x in leaves]
        key = (question.program, question.nn, _kind(model), structure, signature(leaves))
        with self._lock:
            whole = self._programs.get(key)
            if whole is None:
                self._keep(model._framework)
                donates = _is_value(model) if self.compiler is None else self.donates
                whole = _Whole(question, structure, self.compiler or _compiler(model), donates)
                self._programs[key] = whole
                self.compiled.append((question.program, structure))
        with _warm(self, question, "whole"):
            return whole(model, leaves)

    def _keep(self, framework: Any) -> None:
        """Tell the backend where programs are kept, if it keeps any by itself."""
        if self.kept is None or not hasattr(framework, "keep_programs"):
            return
        where = Programs.within(self.kept)
        if where.prepare():
            framework.keep_programs(str(where.folder), where.most)

    def __reduce__(self) -> Any:
        """For copies and pickles: what was compiled stays here."""
        return type(self), (self.compiler, self.donates, self.kept)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


SPENT = 1
"""Number of the argument of what is compiled whose memory may become that of outputs."""


class _Whole:
    """One program for one structure."""

    def __init__(
        self, question: Question, structure: Structure, compiler: Any, donates: bool
    ) -> None:
        program, nn = question.program, question.nn
        spends = program.spends and donates
        self._spent = len(flatten(question.inputs[0])[0]) if spends else 0

        def call(model: Any, spent: list[Any], others: list[Any]) -> list[Any]:
            """What is compiled: arrays in, arrays out."""
            inputs = unflatten(structure, [*spent, *others])
            made, outputs.structure = flatten(program(nn, model, model.config, *inputs))
            return made

        outputs = self
        self.structure: Structure | None = None
        """Of the outputs; known since the first trace."""
        self._compiled = compiler(_own_code(call), *([SPENT] if spends else []))

    def __call__(self, model: Any, leaves: list[Any]) -> Any:
        made = self._compiled(model, leaves[: self._spent], leaves[self._spent :])
        assert self.structure is not None
        return unflatten(self.structure, made)


@dataclass
class Regional:
    """Compiles blocks, not networks: a transformer block is compiled once for all places where one
    of its shape stands, so the first call comes many times sooner. Programs without blocks of that
    kind run as they are written.

    Args:
        compiler: what compiles a function; None: `torch.compile`.
        dynamic: compile blocks for all sizes and numbers of images at once, so that others compile
            nothing, or once more where numbers that differ now were equal at first.
        kept: as of `Compiled`.

    Raises:
        InputError, InputTypeError: an argument is none of those.
    """

    compiler: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None
    dynamic: bool = False
    kept: Kept | None = field(default_factory=default)
    _blocks: dict[Hashable, Callable[..., Any]] = field(default_factory=dict, repr=False)
    _shapes: WeakKeyDictionary[Any, Hashable] = field(default_factory=WeakKeyDictionary, repr=False)
    _lock: Any = field(default_factory=RLock, repr=False)
    _warm: Warm | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        checks.flag("dynamic", self.dynamic)
        if self.dynamic and self.compiler is not None:
            raise InputError("dynamic=True is for `torch.compile`; compiler= decides by itself")

    def run(self, question: Question) -> Any:
        """The outputs; blocks of programs that have some are run compiled."""
        model, program, nn = question.model, question.program, question.nn
        if self.compiler is None and _is_value(model):
            raise InputError(
                f"engine='compiled' compiles blocks, which the backend {nn.name!r} does not; "
                "allowed there: 'eager', 'jit'"
            )
        compiler = self.compiler or _compiler(model)
        if self.dynamic:
            compiler = partial(compiler, dynamic=True)
        if not program.in_blocks:
            return program(nn, model, model.config, *question.inputs)

        def run(block: Callable[..., Any], nn: Any, p: Any, x: Any, *arguments: Any) -> Any:
            with self._lock:
                # Compiled for all sizes, one serves them all.
                size = len(x.shape) if self.dynamic else tuple(x.shape[1:])
                key = (block, self._shapes_of(p), size, str(x.dtype))
                if key not in self._blocks:
                    self._blocks[key] = compiler(_own_code(block))
                compiled = self._blocks[key]
            return compiled(nn, p, x, *arguments)

        with _warm(self, question, "dynamic" if self.dynamic else "blocks"):
            return program(nn, model, model.config, *question.inputs, run=run)

    def _shapes_of(self, p: Any) -> Hashable:
        """Names and shapes of the parameters of a block."""
        if isinstance(p, Adapted):
            p = p._node
        if p not in self._shapes:
            self._shapes[p] = tuple((name, tuple(a.shape)) for name, a in p.named_parameters())
        return self._shapes[p]

    def __reduce__(self) -> Any:
        """For copies and pickles: what was compiled stays here."""
        return type(self), (self.compiler, self.dynamic, self.kept)

    def __repr__(self) -> str:
        return f"Regional({'dynamic=True' if self.dynamic else ''})"


def _warm(engine: Compiled | Regional, question: Question, how: str) -> AbstractContextManager[Any]:
    """Around a question: what an earlier process has compiled is found."""
    if engine.compiler is not None:
        return nullcontext()
    if engine._warm is None:
        engine._warm = Warm(engine.kept)
    return engine._warm.around(question, how)


def _own_code(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function with a code object of its own: PyTorch keeps what it compiled by code
    object, and gives up after a few for one."""
    f: Any = function
    made = FunctionType(
        f.__code__.replace(), f.__globals__, f.__name__, f.__defaults__, f.__closure__
    )
    made.__kwdefaults__ = f.__kwdefaults__
    return made


def _kind(model: Any) -> Hashable:
    """What compiled programs depend on besides the structure: the network itself, or on backends
    whose networks are values (JAX) its class and config."""
    if _is_value(model):
        return type(model), model.config, str(model.dtype)
    return id(model)


def _is_value(model: Any) -> bool:
    return hasattr(model._framework, "networks_are_values")


def _compiler(model: Any) -> Callable[..., Any]:
    framework = model._framework
    if not hasattr(framework, "compiled"):
        raise InputError(
            f"engine: nothing compiles on the backend {framework.operations.name!r}; allowed: "
            "'eager'"
        )
    return framework.compiled
