"""Folders that are whole whenever somebody looks: as before, or as they were to be.

A new one is prepared whole and takes its place in one step; one that is there already is replaced
as `weights.replacing` tells. Single files are written by `formats.writing`.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from underdraw.errors import InputError
from underdraw.formats import leftovers
from underdraw.formats.writing import sync
from underdraw.weights.replacing import NEW, replace_files, settle


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
