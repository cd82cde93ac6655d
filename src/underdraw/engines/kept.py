"""What was compiled, on disk, so that the next process need not do it: a folder within a size.

Two files for each: what OpenVINO or PyTorch wrote, mapped when it is loaded, and a few words about
it. A graph of OpenVINO holds the weights as they were prepared, so those of a whole Stable
Diffusion have three gigabytes; PyTorch's kernels have a few megabytes and no weights. Its key tells
of everything it was made of; one that does not load is made again.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from underdraw.errors import InputError, UnderdrawError
from underdraw.formats import json_text, leftovers, opening
from underdraw.formats.writing import write_file

FOLDER, SIZE = "UNDERDRAW_CACHE", "UNDERDRAW_CACHE_SIZE"
"""Variables of the environment: where (empty: nothing is kept), and gigabytes at most."""
GIGABYTES = 12.0
BLOB, ABOUT = ".blob", ".json"


@dataclass(frozen=True)
class Entry:
    """A compiled graph that is kept."""

    path: Path
    size: int
    """Bytes."""
    used: float
    """When it was last loaded or written, seconds since 1970."""
    network: str
    program: str
    shapes: tuple[tuple[int, ...], ...]
    """Of the first inputs."""


@dataclass(frozen=True)
class Kept:
    """A folder of compiled graphs; the longest unused go when it grows over `most` bytes."""

    folder: Path
    most: int

    def entries(self) -> list[Entry]:
        """What is there, last used first; what is not whole is passed over."""
        found = []
        with suppress(OSError):
            for path in self.folder.glob(f"*{BLOB}"):
                with suppress(OSError, UnderdrawError):
                    status = path.stat()
                    about = json_text.read_object(path.with_suffix(ABOUT))
                    if about.get("size") == status.st_size:
                        found.append(Entry(path, status.st_size, status.st_mtime, *_told(about)))
        return sorted(found, key=lambda entry: -entry.used)

    def find(self, key: str) -> Any:
        """A mapping of the graph under a key, or None; it counts as used."""
        path = self.folder / f"{key}{BLOB}"
        try:
            about = json_text.read_object(path.with_suffix(ABOUT))
            mapped = opening.map_file(path)
        except UnderdrawError:
            return None
        if about.get("size") != len(mapped):
            return None
        with suppress(OSError):
            os.utime(path)
        return mapped

    def is_private(self) -> bool:
        """Whether nobody but this user writes there: what is read as code has to come from them."""
        try:
            status = self.folder.stat()
        except OSError:
            return False
        return os.name == "nt" or (status.st_uid == os.getuid() and not status.st_mode & 0o022)

    @contextmanager
    def making(self, key: str) -> Iterator[Path]:
        """An empty folder to compile into; it goes with the block."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        leftovers.clear(self.folder)
        with leftovers.held_folder(self.folder, key) as place:
            inside = place / "new"
            inside.mkdir()
            yield inside

    def put(self, key: str, made: Path, about: Mapping[str, Any]) -> None:
        """Keep a file that was made in `making`, and remove what is then too much."""
        size = made.stat().st_size
        if size > self.most:
            return
        self.make_room(size)
        path = self.folder / f"{key}{BLOB}"
        text = json.dumps({**about, "size": size}, indent=1)
        write_file(path.with_suffix(ABOUT), text.encode())
        made.chmod(0o600)
        os.replace(made, path)

    def fits(self, size: int) -> bool:
        """Whether something of about this size may be kept, and the disk has twice the room, for it
        and what it is made from."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            return size <= self.most and 2 * size <= shutil.disk_usage(self.folder).free
        except OSError:
            return False

    def make_room(self, size: int = 0) -> None:
        """Remove the longest unused until `size` more bytes fit."""
        entries = self.entries()
        total = sum(entry.size for entry in entries) + size
        for entry in reversed(entries):
            if total <= self.most:
                return
            self.remove(entry.path)
            total -= entry.size

    def remove(self, path: Path) -> None:
        """Remove a graph; processes that have it loaded go on with it."""
        with suppress(OSError):
            path.with_suffix(ABOUT).unlink(missing_ok=True)
            path.unlink(missing_ok=True)

    def discard(self, key: str) -> None:
        """Remove the graph under a key."""
        self.remove(self.folder / f"{key}{BLOB}")

    def clear(self) -> int:
        """Remove everything; how many bytes that were."""
        entries = self.entries()
        with suppress(OSError):
            for path in [*self.folder.glob(f"*{BLOB}"), *self.folder.glob(f"*{ABOUT}")]:
                path.unlink(missing_ok=True)
        leftovers.clear(self.folder)
        return sum(entry.size for entry in entries)


def _told(about: Mapping[str, Any]) -> tuple[str, str, tuple[tuple[int, ...], ...]]:
    """What a file tells of a graph, as far as it is what was written; it is for people only."""
    names = (about.get(name) for name in ("network", "program"))
    network, program = (name if isinstance(name, str) else "?" for name in names)
    shapes = about.get("inputs")
    lists = [one for one in shapes if isinstance(one, list)] if isinstance(shapes, list) else []
    whole = tuple(tuple(n for n in one if isinstance(n, int)) for one in lists)
    return network[:80], program[:80], whole


def default() -> Kept | None:
    """The folder that the environment names, or that of the user; None where nothing is kept, as
    for a user without a home.

    Raises:
        InputError: `UNDERDRAW_CACHE_SIZE` is no number of gigabytes.
    """
    named = os.environ.get(FOLDER)
    if named == "":
        return None
    size = os.environ.get(SIZE) or str(GIGABYTES)
    try:
        most = float(size)
    except ValueError:
        most = -1.0
    if not 0 <= most < 1e6:
        raise InputError(f"{SIZE}={size!r} is no number of gigabytes; allowed: 0 .. 1000000")
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        folder = Path(named or Path(home, "underdraw", "graphs")).expanduser()
    except RuntimeError:
        return None
    return Kept(folder, int(most * 1e9))
