"""How far a command has come: a bar on a terminal, elsewhere a line every few seconds."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any, TextIO

from underdraw.cli import logs

EVERY = 5.0
"""Seconds between lines; what takes less gets none."""
_BAR = re.compile(r"\|[^|]*\|")


class Lines:
    """A stream for bars that are no longer drawn over, as in the log of a job.

    A bar begins each of its states with a carriage return. Of these the first after every `every`
    seconds becomes a line, without the drawn bar; all other text goes through as it is.
    """

    def __init__(
        self,
        stream: TextIO,
        every: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stream, self.clock = stream, clock
        self.every = EVERY if every is None else every
        self.last: float | None = None
        """When a line was written, or the bar began; None while there is no bar."""
        self.open = False
        """Whether other text stands in a line that has not ended."""

    def write(self, text: str) -> int:
        if text.startswith("\r"):
            self.state(plain(text.rsplit("\r", 1)[1]))
        elif text.strip() or self.last is None or self.open:
            self.stream.write(text)
            self.open = not text.endswith("\n") if text else self.open
        else:  # what ends a bar
            self.last = None
        return len(text)

    def state(self, told: str) -> None:
        """One state of a bar; an empty one has been wiped away."""
        now = self.clock()
        if not told:
            self.last = None
        elif self.last is None:
            self.last = now
        elif now - self.last >= self.every:
            self.last = now
            self.stream.write(f"{told}\n")
            self.stream.flush()

    def flush(self) -> None:
        self.stream.flush()

    def isatty(self) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def plain(state: str) -> str:
    """A state of a bar without what is drawn."""
    return " ".join(_BAR.sub(",", state).replace("\x1b[A", "").split())


@contextmanager
def followed() -> Iterator[None]:
    """Bars inside are drawn where somebody watches, and told by lines elsewhere."""
    if sys.stderr.isatty():
        yield
        return
    with redirect_stderr(Lines(sys.stderr)):  # type: ignore[type-var]
        yield


def wanted() -> bool:
    """Whether bars are wanted at all."""
    return not logs.quiet()


def bar_options(label: str | None = None) -> dict[str, Any]:
    """Of a bar that leaves nothing behind, as `tqdm` takes them."""
    return {"desc": label, "leave": False, "disable": not wanted()}
