"""Files and folders that are whole whenever somebody looks: as before, or as they were to be.

Everything that this package writes goes through here. A file is written beside its place, flushed
to disk and moved over the old one in one step; a folder is prepared whole and takes its place in
one step, or, where there is one already, as `weights.replacing` tells.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from underdraw.errors import InputError
from underdraw.weights import leftovers
from underdraw.weights.replacing import NEW, replace_files, settle, sync


@contextmanager
def writing_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """An open file that becomes `path` when the block ends well, and vanishes when not."""
    path = Path(path)
    if leftovers.is_private(path):
        with open(path, "wb") as file:
            yield file
        return
    leftovers.clear(path.parent, path.name)
    with leftovers.held_file(path.parent, path.name) as (beside, file):
        yield file
        file.flush()
        os.fsync(file.fileno())
        if not leftovers.CAN_LOCK:  # such systems move no open files
            file.close()
        os.replace(beside, path)
    sync([path.parent])


def write_file(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file, whole or not at all."""
    with writing_file(path) as file:
        file.write(content)


@contextmanager
def writing_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """A staging folder that becomes `folder` when the block ends well, and vanishes when not.

    A new folder appears in one step. In a folder that exists the files are replaced as a whole;
    other files in it stay, weights replaced by weights of another form (`save_weights`) go. If that
    fails or is interrupted (Ctrl-C), everything is moved back. A process killed at any moment
    leaves what was there, or what was to be: never both, and what is left to be moved is moved by
    whoever reads or writes the folder next. Other leftovers of it go with the next save.
    """
    target = Path(os.path.abspath(folder))
    if leftovers.is_private(target):
        os.makedirs(target, exist_ok=True)
        yield target
        return
    if target.exists() and not target.is_dir():
        raise InputError(f"{folder} is a file; a folder to write into was expected")
    settle(target)
    _clear(target)
    home = target if target.exists() else target.parent
    os.makedirs(home, exist_ok=True)
    with leftovers.held_folder(home, target.name) as staging:
        new = staging / NEW
        os.mkdir(new)
        yield new
        sync(Path(at, name) for at, _, names in os.walk(new) for name in (*names, "."))
        if home == target:
            replace_files(staging, target)
        elif not _appear(new, target):
            with leftovers.held_folder(target, target.name) as place:
                os.rename(new, place / NEW)
                replace_files(place, target)
        sync([home])


def _clear(target: Path) -> None:
    """Remove leftovers of the folder, of parts of it, and of what it is a part of."""
    leftovers.clear(target.parent, target.name, target.parent.name)
    leftovers.clear(target)
    with suppress(OSError), os.scandir(target) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                leftovers.clear(Path(entry))


def _appear(new: Path, target: Path) -> bool:
    """Whether `target` could be made in one step; not where somebody else has made it meanwhile."""
    try:
        os.rename(new, target)
    except OSError:
        if not target.is_dir():
            raise
        return False
    return True
