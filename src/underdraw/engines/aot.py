"""The engines `Packing(folder)` and `Packaged(folder)`: programs compiled ahead of time.

`Packing` writes packages: it answers as `eager`, and compiles each program that it meets for inputs
of this structure. `Packaged` runs them. A package holds compiled code and no weights, so it serves
every network of one config and layout; its name tells what it was made for.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import RLock
from typing import Any
from weakref import WeakKeyDictionary

from underdraw import checks
from underdraw.backends.counting import Counting
from underdraw.backends.shapes import Path as Node, Shape
from underdraw.backends.tree import Structure, flatten, map_arrays, signature, unflatten
from underdraw.engines.as_written import AsWritten
from underdraw.engines.eager import EAGER
from underdraw.engines.engine import Question
from underdraw.engines.keys import key_of
from underdraw.errors import InputError, NotFoundError, UnderdrawError
from underdraw.formats.archives import check_entries, open_archive
from underdraw.formats.opening import map_file
from underdraw.formats.writing import write_file
from underdraw.networks.program import Program

LOG = logging.getLogger(__name__)
SUFFIX = ".pt2"
LAYERS = 6
"""Programs of fewer layers are left as they are."""


@dataclass(frozen=True)
class Named:
    """The package of a question."""

    file: str
    structure: Structure
    """Of the inputs."""
    outputs: Structure


@dataclass
class Packing:
    """Writes a package for each program it is asked for, and answers as `eager`.

    Args:
        folder: where to; it is made where there is none.

    Raises:
        InputTypeError: it is no path.
    """

    folder: Any
    written: list[Path] = field(default_factory=list, init=False)
    """Files, in order."""

    def __post_init__(self) -> None:
        self.folder = Path(checks.path("folder", self.folder))

    def run(self, question: Question) -> Any:
        """The outputs.

        Raises:
            InputError: nothing compiles here, or this program cannot be exported.
        """
        model, program = question.model, question.program
        framework = model._framework
        if not hasattr(framework, "packaged"):
            raise InputError(
                f"packages are compiled by PyTorch; {question.nn.name!r} has nothing like it"
            )
        if gains(program):
            leaves, structure = flatten(question.inputs)
            reason = framework.Watch(model).look(False)
            name = named(question, leaves, structure) if reason is None else reason
            if isinstance(name, str):
                raise InputError(f"{program.name} cannot be packed: {name}")
            if name is not None and not (self.folder / name.file).exists():
                self._write(question, name, arrays_of(question, leaves))
        return EAGER.run(question)

    def _write(self, question: Question, name: Named, arrays: Sequence[Any]) -> None:
        program, nn, config = question.program, question.nn, question.model.config

        def function(model: Any, arrays: Sequence[Any]) -> list[Any]:
            made, outputs = flatten(program(nn, model, config, *unflatten(name.structure, arrays)))
            if outputs != name.outputs:
                raise InputError(f"{program.name} gives something else than its shapes tell")
            return made

        self.folder.mkdir(parents=True, exist_ok=True)
        made = question.model._framework.packaged(function, question.model, arrays, name.file)
        write_file(self.folder / name.file, made)
        self.written.append(self.folder / name.file)

    def __repr__(self) -> str:
        return f"Packing({str(self.folder)!r})"


@dataclass
class _Network:
    """What is known of one network: whether it is as it was, and packages by question."""

    watch: Any
    packages: dict[Any, tuple[Named, Any] | None] = field(default_factory=dict)
    state: Any = None
    """Of the watch, when they were found."""


@dataclass
class Packaged:
    """Runs programs from the packages of a folder. What there is no package for (other sizes,
    numbers of images, controls) runs as `eager`, which a line of the log tells once.

    A package is compiled code: running one is running a program of whoever made it. Only files of
    this folder are run, and only those whose name tells that they were made for such a question,
    by this version of PyTorch, for a processor like this one.

    Args:
        folder: what `underdraw compile`, or `Packing`, has written.

    Raises:
        InputTypeError: it is no path.
        NotFoundError: there is no such folder, or no package in it.
    """

    folder: Any
    used: set[str] = field(default_factory=set, init=False, repr=False)
    """Files that were run."""
    _files: dict[str, Any] = field(default_factory=dict, init=False, repr=False)
    _networks: WeakKeyDictionary[Any, _Network] = field(
        default_factory=WeakKeyDictionary, init=False, repr=False
    )
    _as_written: AsWritten = field(
        default_factory=lambda: AsWritten("packages (Packaged, --packages)", LOG),
        init=False,
        repr=False,
    )
    _lock: Any = field(default_factory=RLock, init=False, repr=False)

    def __post_init__(self) -> None:
        self.folder = Path(checks.path("folder", self.folder))
        if not any(self.folder.glob(f"*{SUFFIX}")):
            raise NotFoundError(f"{self.folder} holds no packages ({SUFFIX})")

    def run(self, question: Question) -> Any:
        """The outputs."""
        if gains(question.program):
            leaves, structure = flatten(question.inputs)
            with self._lock:
                found = self._found(question, leaves, structure)
                if found is not None:
                    name, package = found
                    made = package(question.model, arrays_of(question, leaves))
                    self.used.add(name.file)
                    return unflatten(name.outputs, made)
        return EAGER.run(question)

    def _found(
        self, question: Question, leaves: Sequence[Any], structure: Structure
    ) -> tuple[Named, Any] | None:
        """The package of a question; None: it runs as it is written."""
        model, framework = question.model, question.model._framework
        if not hasattr(framework, "Package"):
            return self._as_written.tell(question.program, f"{question.nn.name!r} runs no packages")
        known = self._networks.setdefault(model, _Network(framework.Watch(model)))
        if (odd := known.watch.look(False)) is not None:
            return self._as_written.tell(question.program, odd)
        if framework.recording(model, leaves):
            return self._as_written.tell(question.program, "a gradient is recorded")
        if known.state != known.watch.state:  # what was known is of other layers
            known.packages, known.state = {}, known.watch.state
        key = (question.program, question.nn, structure, signature(leaves))
        if key not in known.packages:
            known.packages[key] = self._opened(question, named(question, leaves, structure))
        return known.packages[key]

    def _opened(self, question: Question, name: Named | str | None) -> tuple[Named, Any] | None:
        if name is None:
            return None
        if isinstance(name, str):
            return self._as_written.tell(question.program, name)
        file = self.folder / name.file
        if not file.is_file():
            return self._as_written.tell(
                question.program, f"{self.folder} holds no package for such inputs"
            )
        if name.file not in self._files:
            try:
                with map_file(file) as mapped, open_archive(mapped) as archive:
                    check_entries(archive, len(mapped))  # PyTorch runs what was damaged
                package = question.model._framework.Package(file)
            except Exception as error:  # whatever a damaged file makes of its reader
                return self._as_written.tell(
                    question.program, f"{file} cannot be loaded: {str(error)[:300]}"
                )
            if package.made_for != name.file:  # its code would read past other arrays
                return self._as_written.tell(
                    question.program, f"{file} was made for {str(package.made_for)[:200]}"
                )
            self._files[name.file] = package
        return name, self._files[name.file]

    def __reduce__(self) -> Any:
        """For copies and pickles: what was loaded stays here."""
        return type(self), (self.folder,)

    def __repr__(self) -> str:
        return f"Packaged({str(self.folder)!r})"


def named(question: Question, leaves: Sequence[Any], structure: Structure) -> Named | str | None:
    """How the package for a question is called; else why there can be none, or None where it would
    gain nothing."""
    model, program = question.model, question.program
    key = key_of(question, leaves, structure)
    if key is None:
        return "its inputs are no plain data"
    counting = Counting({})
    try:
        shapes = map_arrays(lambda array: Shape(*array.shape), question.inputs)
        made = program(counting, Node(), model.config, *shapes)
    except UnderdrawError:
        return None  # as it is written it is refused in better words
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    if len(counting.leaves) < LAYERS:
        return None
    file = f"{program.name}-{key}-{model._framework.maker()}{SUFFIX}"
    return Named(file, structure, flatten(made)[1])


def arrays_of(question: Question, leaves: Sequence[Any]) -> list[Any]:
    """What a package is called with: numbers that may change are arrays, too."""
    model = question.model
    array = model._framework.array
    return [array(x, device=model.device) if isinstance(x, float) else x for x in leaves]


def gains(program: Program) -> bool:
    """Whether a package of it would be worth it: what runs once in a run is not."""
    return not (program.once or program.as_written)
