"""Pictures inside of the records of others that were made from them."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from underdraw.cli.files import read_plain
from underdraw.errors import InputError, NotFoundError

MOST_KEPT = 2**20
"""Bytes of a picture that is kept whole."""
MOST_PIXELS = 2**24
MOST_SIGNS = 1000
"""Of its name."""


def kept(picture: Any, name: str) -> dict[str, Any]:
    """A picture as the record of another holds it: whole if it is small, else by name and hash."""
    told = {"name": name, "size": list(picture.size), "sha256": fingerprint(picture)}
    file = io.BytesIO()
    try:
        picture.save(file, format="PNG")
    except OSError:  # PNG has no such pixels
        return told
    if file.tell() <= MOST_KEPT:
        told["png"] = base64.b64encode(file.getvalue()).decode("ascii")
    return told


def by_name(record: Any) -> Any:
    """A record whose pictures are held by name alone."""
    if isinstance(record, Mapping):
        return {name: by_name(part) for name, part in record.items() if name != "png"}
    return [by_name(part) for part in record] if isinstance(record, list) else record


def fingerprint(picture: Any) -> str:
    """A short name for the pixels of a picture."""
    told = hashlib.sha256(repr((picture.mode, picture.size)).encode())
    told.update(picture.tobytes())
    return told.hexdigest()


def restored(entry: Any, where: str) -> Any:
    """The picture of a record, None where only its name is there.

    Raises InputError where the entry is none, or damaged.
    """
    from PIL import Image

    name = entry.get("name") if isinstance(entry, Mapping) else None
    if not isinstance(name, str) or len(name) > MOST_SIGNS:
        raise InputError(f"{where} is damaged: it is no picture")
    if "png" not in entry:
        return None
    try:
        held = base64.b64decode(entry["png"], validate=True)
        with Image.open(io.BytesIO(held), formats=("PNG",)) as image:
            if image.width * image.height > 2**24:
                raise ValueError("it is too large")
            image.load()
            return image.copy()
    except (ValueError, TypeError, OSError, SyntaxError) as error:
        raise InputError(f"{where} is damaged: {error}") from error


def named(path: str, where: str) -> Any:
    """A picture in a file.

    Raises:
        NotFoundError, InputError: there is none; the message begins with `where`.
    """
    try:
        return read_plain(Path(path))
    except NotFoundError as error:
        raise NotFoundError(f"{where}: there is no picture {path!r}") from error
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def picture(held: str | Mapping[str, Any], where: str, option: str) -> Any:
    """A picture that is named by its path, or held by a record.

    Args:
        option: of the command line, which gives it anew.

    Raises:
        NotFoundError: there is no such file.
        InputError: it is no picture, or the record does not hold it.
    """
    if isinstance(held, str):
        return named(held, where)
    found = restored(held, where)
    if found is None:
        raise InputError(
            f"{where} was {held['name']}, which was too large to be kept; give it with {option}"
        )
    return found
