"""Files that are whole whenever somebody looks: as before, or as they were to be.

Everything that this package writes goes through here, or, for whole folders, through
`weights.atomic`. A file is written beside its place, flushed to disk and moved over the old one in
one step.
"""

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from underdraw.errors import InputError
from underdraw.formats import leftovers
from underdraw.shown import shown

NO_LINKS = (errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOSYS, errno.EOPNOTSUPP)
"""How disks say that they have no second names for a file."""


@contextmanager
def writing_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """An open file that becomes `path` when the block ends well, and vanishes when not.

    Raises:
        InputError: a folder is there.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"path={shown(str(path))} is a folder; give the name of a file")
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


def write_new(path: str | os.PathLike[str], content: bytes) -> bool:
    """Write a file where there is none, whole or not at all. False: there is one by now, which
    stays; of several who try at the same moment one succeeds."""
    path = Path(path)
    leftovers.clear(path.parent, path.name)
    with leftovers.held_file(path.parent, path.name) as (beside, file):
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        try:
            os.link(beside, path)  # a rename would move it over what is there
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            if path.exists():  # the best that such a disk can do
                return False
            os.replace(beside, path)
        finally:
            if not leftovers.CAN_LOCK:  # such systems remove no open files
                file.close()
            beside.unlink(missing_ok=True)
    sync([path.parent])
    return True


def sync(paths: Iterable[Path]) -> None:
    """Make files, and renames in folders, last through a power cut, where the system can.

    Raises OSError where the disk is full or broken.
    """
    for path in paths:
        try:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:  # others only say that this system cannot
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
                raise
