"""Every file operation of this process counted, and one of them made the last that happens.

`Disk(monkeypatch)` stands in for the functions that change files. Nothing is timed: for each number
of an operation the writer is run once, so that no place between two operations is missed.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHANGES = (
    *("replace", "rename", "unlink", "remove", "rmdir", "mkdir", "link", "symlink"),
    *("fsync", "utime", "chmod", "truncate", "ftruncate"),
)
TAKE_SPACE = ("mkdir", "link", "symlink", "fsync", "open", "write")
FAULTS = ("killed", "stopped", "full")


class Killed(BaseException):
    """Stands for the end of the process: whatever its handlers then try fails, too."""


class Stopped(BaseException):
    """As Ctrl-C: it comes once, and handlers may tidy up."""


class Disk:
    """Counts operations; with a `fault`, operation number `at` is met by it.

    "killed": it and all later ones raise; a write was half done. "stopped": it raises, once.
    "full": it and all later ones that take space raise ENOSPC. At most `writes` of a file count.
    """

    def __init__(self, monkeypatch: Any, writes: int = 2) -> None:
        self.count, self.at, self.fault, self.writes = 0, 0, "", writes
        self.met = False
        for name in CHANGES:
            monkeypatch.setattr(os, name, self._counted(name, getattr(os, name)))
        monkeypatch.setattr(os, "open", self._opening(os.open))
        opened = self._opened(builtins.open)
        monkeypatch.setattr(builtins, "open", opened)
        monkeypatch.setattr(io, "open", opened)

    def run(self, fault: str, at: int, write: Callable[[], Any]) -> BaseException | None:
        """What `write` ended with; None: it was through before its operation number `at`."""
        self.count, self.at, self.fault, self.met = 0, at, fault, False
        try:
            write()
        except (Killed, Stopped, OSError) as error:
            assert self.met, error
            return error
        finally:
            self.fault = ""
        return None if not self.met else Stopped()  # met, but what it hit did not matter

    def happens(self, name: str) -> None:
        if not self.fault:
            return
        self.count += 1
        late = self.count >= self.at
        if self.fault == "killed" and late:
            self.met = True
            raise Killed(name)
        if self.fault == "stopped" and self.count == self.at:
            self.met = True
            raise Stopped(name)
        if self.fault == "full" and late and name in TAKE_SPACE:
            self.met = True
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _counted(self, name: str, original: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            self.happens(name)
            if name == "fsync":  # slow, and what it is for cannot be tried here
                return None
            return original(*args, **options)

        return call

    def _opening(self, original: Any) -> Any:
        def call(path: Any, flags: int, *args: Any, **options: Any) -> Any:
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                self.happens("open")
            return original(path, flags, *args, **options)

        return call

    def _opened(self, original: Any) -> Any:
        def call(path: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
            if not set(mode) & set("wax+"):
                return original(path, mode, *args, **options)
            self.happens("open")
            file = original(path, mode, *args, **options)
            return Written(file, self) if self.fault else file

        return call


class Written:
    """An open file whose writes are counted, and may be cut."""

    def __init__(self, file: Any, disk: Disk) -> None:
        self._file, self._disk, self._left = file, disk, disk.writes

    def write(self, content: Any) -> Any:
        if self._left:
            self._left -= 1
            try:
                self._disk.happens("write")
            except BaseException:
                self._file.write(content[: len(content) // 2])
                self._file.flush()
                raise
        return self._file.write(content)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> Written:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __iter__(self) -> Any:
        return iter(self._file)


def files_in(folder: Path, hidden: bool = True) -> dict[str, bytes]:
    """Files by their path in a folder; without `hidden` those that everybody sees."""
    found = {}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if path.is_file() and (hidden or not any(p.startswith(".") for p in inside.parts)):
            found[inside.as_posix()] = path.read_bytes()
    return found
