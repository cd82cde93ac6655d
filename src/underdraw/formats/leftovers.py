"""What a writer makes before it is in its place, and what a killed one leaves of it.

Such files and folders are named `.NAME.saving-XXXXXXXX`. Who writes one holds a lock on it (on the
file `LOCK` inside a folder), which the system drops with the process, however that ends. So what
nobody holds may be removed by whoever comes next. Where a system or a disk has no such locks,
nobody can tell, and leftovers stay.
"""

import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = "lock"
CAN_LOCK = fcntl is not None
NAME = re.compile(r"\.(.*)\.saving-\w{8}")


def new_name(name: str) -> str:
    """Under which `name` is made; no two are alike."""
    return f".{name}.saving-{secrets.token_hex(4)}"


@contextmanager
def held_file(folder: Path, name: str) -> Iterator[tuple[Path, BinaryIO]]:
    """A new file on the way to `name`, open for writing and held; it goes when the block fails."""
    while True:
        path = folder / new_name(name)
        file = open(path, "xb")  # noqa: SIM115 (closed below)
        if hold(file, path):
            break
        file.close()
    try:
        with file:
            yield path, file
    except BaseException:
        with suppress(OSError):
            os.unlink(path)
        raise


@contextmanager
def held_folder(folder: Path, name: str) -> Iterator[Path]:
    """A new folder on the way to `name`, held; it goes with the block."""
    while True:
        path = folder / new_name(name)
        os.mkdir(path)
        try:
            file = open(path / LOCK, "xb")  # noqa: SIM115 (closed below)
        except FileNotFoundError:  # somebody took it for a leftover before it was held
            continue
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise
        if hold(file, path / LOCK):
            break
        file.close()
    with file:
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)


def hold(file: BinaryIO, path: Path) -> bool:
    """Lock an open file. False: another process holds it, or it is not at `path` any more."""
    try:
        if fcntl is not None:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # no locks on this disk
        return True
    return is_at(file, path)


def is_at(file: BinaryIO, path: Path) -> bool:
    """Whether an open file is the one at `path`."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def is_private(path: Path) -> bool:
    """Whether a place lies in a folder that is being made, which appears as a whole anyway."""
    return any(NAME.fullmatch(part) for part in path.parts[:-1])


def clear(folder: Path, *names: str) -> None:
    """Remove what killed writers of `names` (of anything, without) have left in a folder; what a
    living one holds stays."""
    with suppress(OSError):
        for entry in os.listdir(folder):
            found = NAME.fullmatch(entry)
            if found and (not names or found[1] in names):
                with suppress(OSError):
                    _remove(folder / entry)


def is_empty(folder: Path) -> bool:
    """Whether there is nothing in a folder but what killed writers have left."""
    return all(NAME.fullmatch(entry) for entry in os.listdir(folder))


def open_lock(path: Path) -> BinaryIO:
    """A file to be held, open; FileNotFoundError where there is none. Links and pipes are none."""
    if not stat.S_ISREG(os.lstat(path).st_mode):
        raise FileNotFoundError(path)
    return open(path, "rb")


def _remove(path: Path) -> None:
    folder = stat.S_ISDIR(os.lstat(path).st_mode)
    lock = path / LOCK if folder else path
    try:
        with open_lock(lock) as file:
            if not _dead(file):
                return
            if folder:
                shutil.rmtree(path, ignore_errors=True)
            else:
                os.unlink(path)
    except FileNotFoundError:
        if folder:  # a writer makes its lock first; so it was killed before, or while tidying up
            try:
                os.rmdir(path)
            except OSError:
                shutil.rmtree(path, ignore_errors=True)


def _dead(file: BinaryIO) -> bool:
    """Whether nobody holds a file, as far as that can be told."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
