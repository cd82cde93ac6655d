"""Files that commands read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from underdraw.errors import InputError, NotFoundError


def read(path: Path) -> Any:
    """A PIL picture, upright as cameras mean it.

    Raises:
        NotFoundError: there is no such file.
        InputError: it is no picture.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image)
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no file {str(path)!r}") from error
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise InputError(f"{str(path)!r} is not a picture: {error}") from error
