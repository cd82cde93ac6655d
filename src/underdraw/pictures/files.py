"""Picture files, opened with their size checked before a pixel of them is decoded."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Lock

from PIL import Image, UnidentifiedImageError

from underdraw.errors import InputError, NotFoundError
from underdraw.formats.opening import open_regular
from underdraw.pictures import modes

LOG = logging.getLogger("underdraw")
_filters = Lock()  # `catch_warnings` is not made for threads


def read_file(path: str | os.PathLike[str]) -> Image.Image:
    """The picture in a file, decoded and upright as cameras mean it, in the mode of the file; of an
    animated one the first frame, with a note in the log.

    Raises:
        NotFoundError: there is no such file.
        InputError: it is no picture, has no pixels or more than `modes.MOST_PIXELS`, is damaged, or
            of a kind that a program of its own would have to draw.
    """
    with opened(path) as picture:
        # A photo (MPO) may carry further views of itself.
        if getattr(picture, "is_animated", False) and picture.format != "MPO":
            LOG.warning("%s holds several pictures; its first is used", os.fspath(path))
        found = modes.upright(_named(path), picture)
        return found if found is not picture else picture.copy()


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[Image.Image]:
    """The head of a picture file: size, mode and notes; raises as `read_file` does."""
    name, path = _named(path), Path(path)
    if not path.exists():
        raise NotFoundError(f"there is no file {name}")
    if not path.is_file():  # a folder; or a pipe or device, whose end never comes
        raise InputError(f"{name} is not a picture: it is no file")
    with ExitStack() as stack:
        try:
            with _filters, warnings.catch_warnings():
                # Pillow warns of sizes that are refused here.
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                file = stack.enter_context(open_regular(path, fault=InputError))
                picture = stack.enter_context(Image.open(file))
        except Image.DecompressionBombError:
            raise InputError(
                f"{name} is too large a picture; allowed: {modes.MOST_PIXELS:,} pixels, such as "
                "8,192 x 8,192"
            ) from None
        except UnidentifiedImageError:
            raise InputError(
                f"{name} is not a picture: it is of no kind that is known, or damaged"
            ) from None
        except Exception as error:  # readers of heads raise whatever they stumble over
            raise InputError(f"{name} is not a picture: {modes.first_line(error)}") from None
        modes.check_sides(name, *picture.size)
        if picture.format == "EPS":  # Pillow has Ghostscript run it
            raise InputError(f"{name} is PostScript, a program; make a PNG or JPEG of it first")
        yield picture


def _named(path: str | os.PathLike[str]) -> str:
    return repr(os.fspath(path))
