"""Files that commands read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from underdraw.errors import InputError


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


def with_scale(option: str, text: str, allowed: str) -> tuple[Path, float | None]:
    """The file and the number of `FILE` or `FILE:0.8`; a file may have such a name itself.

    Args:
        allowed: what an error says of such texts.

    Raises:
        InputError: what stands behind the last colon is no number.
    """
    path, colon, scale = text.rpartition(":")
    if not colon or Path(text).exists():
        return Path(text), None
    try:
        return Path(path), float(scale)
    except ValueError as error:
        raise InputError(
            f"{option} {text!r:.200}: {scale!r:.40} is no scale; allowed: {allowed}"
        ) from error
