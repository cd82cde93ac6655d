"""Files that commands read."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def read(path: Path) -> Any:
    """A PIL picture, upright as cameras mean it.

    Raises:
        NotFoundError: there is no such file.
        InputError: it is no picture, or too large a one.
    """
    from underdraw.pictures.files import read_file

    return read_file(path)


def read_plain(path: Path) -> Any:
    """As `read`, in RGB."""
    from underdraw.pictures.modes import plain

    return plain(repr(str(path)), read(path))
