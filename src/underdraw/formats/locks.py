"""Places where one run at a time is at work.

Who is at work in a folder holds a lock on a file there. The system drops it with the process,
however that ends; so a file that a killed one left is nobody's, and stops nobody. Where a system or
a disk has no such locks, nobody can tell who else is there.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from underdraw.formats import leftovers


@contextmanager
def locked(folder: Path, name: str) -> Iterator[bool]:
    """Hold `.NAME.lock` in a folder that is there, which goes with the block. False: somebody else
    holds it, be it another thread of this process."""
    if not leftovers.CAN_LOCK:
        yield True
        return
    path = folder / f".{name}.lock"
    while True:
        # For writing, although nothing is written: disks over a network lock no other files.
        file = open(path, "ab", buffering=0)  # noqa: SIM115 (closed below)
        if leftovers.hold(file, path):
            break
        with file:
            if leftovers.is_at(file, path):
                yield False
                return
        # Whoever held it ended meanwhile, and took it away.
    _HELD.add(file)
    try:
        yield True
    finally:
        _HELD.discard(file)
        try:
            # Away before it is let go, so that nobody holds a file that is about to vanish.
            if not file.closed and leftovers.is_at(file, path):
                path.unlink()
        finally:
            file.close()


_HELD: set[Any] = set()
"""The open files that this process holds."""


def _let_go() -> None:
    """A lock ends with the last process that has its file open. Those that this one forks (to draw
    examples) may outlive it when it is killed, and are not who is at work."""
    for file in _HELD:
        file.close()
    _HELD.clear()


if leftovers.CAN_LOCK:
    os.register_at_fork(after_in_child=_let_go)
