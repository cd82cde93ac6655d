"""What code written for diffusers sees of a run on the pipeline itself.

Callbacks read and change `pipe._guidance_scale`, `pipe._interrupt` and their like. These are views
on the run whose callback is at work in this thread; a run itself is an argument, never an attribute
of a pipeline, so that several may go on at once. Afterwards they tell what the last run of the
thread has left.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock, local
from typing import Any
from weakref import ref


@dataclass
class View:
    """The state of a run by the names of diffusers."""

    guidance: Any = 1.0
    interrupted: bool = False
    rescale: float = 0.0
    calls: int = 0
    skip: int | None = None
    run: Any = None
    """Follows what is changed here, while its callback is at work."""

    def change(self, name: str, value: Any) -> None:
        """Set a field, and that of the run."""
        setattr(self, name, value)
        if self.run is not None:
            setattr(self.run, name, value)


class Views:
    """The runs of one pipeline."""

    def __init__(self) -> None:
        self._thread, self._lock = local(), Lock()
        self._going: list[Any] = []
        """Runs in progress, in any thread."""

    @property
    def now(self) -> View:
        """On the run whose callback is at work in this thread, or else what the last run of this
        thread has left."""
        inside = getattr(self._thread, "inside", None)
        return self.left if inside is None else inside

    @property
    def left(self) -> View:
        """What the last run of this thread has left, or the last step of one in progress."""
        return getattr(self._thread, "left", View())

    @property
    def last(self) -> Any:
        """The run that this thread has gone on with last; None where it is gone."""
        known = getattr(self._thread, "last", None)
        return None if known is None else known()

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Of the latents of the run that began last in this thread."""
        return getattr(self._thread, "shape", None)

    def begun(self, shape: Sequence[int]) -> None:
        """Note the shape of latents with which a run begins."""
        self._thread.shape = tuple(shape)

    @contextmanager
    def inside(self, run: Any, skip: int | None) -> Iterator[None]:
        """While a callback of this run is at work; calls inside of it do not change the view."""
        outer = getattr(self._thread, "inside", None)
        self._thread.inside = view_of(run, skip, run)
        try:
            yield
        finally:
            self._thread.inside = outer

    @contextmanager
    def going(self, run: Any) -> Iterator[None]:
        """While this run is in progress."""
        with self._lock:
            self._going.append(run)
        try:
            yield
        finally:
            with self._lock:
                self._going[:] = [one for one in self._going if one is not run]

    def leave(self, run: Any, skip: int | None) -> None:
        """Note the state of a run for whoever reads it afterwards in this thread."""
        self._thread.left, self._thread.last = view_of(run, skip), ref(run)

    def change(self, name: str, value: Any) -> None:
        """Change what `now` tells; inside of a callback, the run itself."""
        view = self.now
        view.change(name, value)
        if view.run is None:
            self._thread.left = view

    def interrupt(self, value: bool) -> None:
        """End a run after its current step: the one whose callback is at work in this thread; else
        the one whose step this thread was handed last, if it is in progress; in a thread that has
        none, all runs in progress. False takes back what the same callback said, and nothing that
        was asked of a run from outside, by whomever."""
        self.change("interrupted", value)
        if self.now.run is not None or not value:
            return
        last = self.last
        with self._lock:
            mine = [run for run in self._going if run is last]
            for run in mine or self._going:
                run.ended = True

    def __reduce__(self) -> Any:
        """For copies and pickles: runs stay with the pipeline that began them."""
        return Views, ()


def view_of(run: Any, skip: int | None, follows: Any = None) -> View:
    """A view on the state that a run has now."""
    interrupted = run.interrupted or run.ended
    return View(run.guidance, interrupted, run.rescale, run.calls, skip, follows)
