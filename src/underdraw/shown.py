"""How values are shown in short: nobody wants to read a million numbers in a prompt or a log."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from dataclasses import fields
from io import BytesIO
from typing import Any

MOST = 3
"""Items of a list that are shown one by one."""
PICTURES = 16
"""Pictures of an output that a notebook shows."""
LONGEST = 20
"""Entries of a list that are looked at for a message."""
MOST_SHOWN = 80
"""Characters of a value in a message."""


def short(value: Any) -> str:
    """A value in a few words: arrays by dtype and shape, pictures by size, lists by length."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and dtype is not None:
        return f"{str(dtype).split('.')[-1]} {tuple(shape)}"
    if is_picture(value):
        return f"{type(value).__name__} {value.width}x{value.height}"
    if isinstance(value, Mapping):
        return _several("{}", [f"{name!r}: {short(one)}" for name, one in value.items()], "entries")
    if isinstance(value, list | tuple):
        said = [short(one) for one in value]
        if len(said) > 1 and len(set(said)) == 1 and not _is_plain(value[0]):
            return f"[{len(said)} x {said[0]}]"
        return _several("[]" if isinstance(value, list) else "()", said, "items")
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def of_fields(value: Any, *names: str) -> str:
    """The class and these attributes of a value in short; by default the fields of its dataclass
    that are not None."""
    if not names:
        names = tuple(one.name for one in fields(value) if getattr(value, one.name) is not None)
    told = ", ".join(f"{name}={short(getattr(value, name, None))}" for name in names)
    return f"{type(value).__name__}({told})"


def is_picture(value: Any) -> bool:
    """Whether it is a picture of Pillow, which is not imported for this."""
    return hasattr(value, "getbands") and hasattr(value, "save")


def html(*rows: Any) -> str | None:
    """Pictures as a notebook shows them, at most `PICTURES` a row; None where there are none."""
    lines = []
    for row in rows:
        pictures = [one for one in row if is_picture(one)] if isinstance(row, list | tuple) else []
        tags = [f'<img src="data:image/png;base64,{_base64(one)}">' for one in pictures[:PICTURES]]
        if more := len(pictures) - len(tags):
            tags.append(f"and {more} more")
        if tags:
            lines.append(f"<div>{' '.join(tags)}</div>")
    return "".join(lines) or None


def png(picture: Any) -> bytes:
    """A picture of Pillow as a PNG."""
    file = BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def _base64(picture: Any) -> str:
    return b64encode(png(picture)).decode()


def _several(brackets: str, said: list[str], what: str) -> str:
    if len(said) > MOST:
        said = [*said[:MOST], f"... {len(said)} {what}"]
    return brackets[0] + ", ".join(said) + brackets[1]


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | bool)


def shown(value: Any) -> str:
    """A value in a message: one short line, whatever it is."""
    try:
        shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
        if isinstance(shape, tuple) and len(shape) > 0 and dtype is not None:
            return f"{type(value).__name__} of shape {tuple(shape)}"
        long = isinstance(value, list | tuple | str | bytes) and len(value) > MOST_SHOWN
        text = repr(value[:LONGEST] if long and not isinstance(value, str) else value)
    except Exception:  # of a caller's own class, or numbers and lists too large to print
        return f"an object of {type(value).__name__}"
    text = " ".join(text.split())
    return text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN - 3]}..."
