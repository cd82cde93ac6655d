"""Boxes on the command line, in layout files, and drawn over pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from underdraw.cli import embedded
from underdraw.cli.files import read_plain
from underdraw.errors import InputError, InputTypeError
from underdraw.schema import Length, Range, Schema, read, within

BOX = "--box"
NUMBERS = 4
NAMES = {"phrase": ("phrase", "label"), "box": ("box", "bbox"), "image": ("image",)}

Number = Annotated[float, Range(-1e6, 1e6)]
Picture = Annotated[str, Length(1, 4096)] | Mapping[str, Any]
"""A path, or what a record holds of a picture."""


@dataclass(frozen=True)
class Entry(Schema):
    """A box of a layout; whether its numbers make one is `Box`'s to say."""

    box: Annotated[tuple[Number, ...], Length(0, 100)] = ()
    phrase: str | None = None
    image: Picture | None = None


@dataclass(frozen=True)
class Whole(Schema):
    """A layout as JSON keeps it."""

    boxes: tuple[Any, ...] = ()
    prompt: str | None = None
    style: Picture | None = None
    strength: tuple[Number, Number, Number] | None = None


def read_boxes(options: list[str] | None, layout: Path | None) -> dict[str, Any] | None:
    """The layout of a command as JSON keeps it, checked; None without one.

    Raises:
        InputError, InputTypeError, NotFoundError: a box is none, or the file is no layout.
    """
    if layout is not None and options:
        raise InputError(f"{BOX} and --layout are both given; only one of them can be")
    if layout is not None:
        found = read_layout(layout)
        with within(layout):
            controls_of(found)
    elif options:
        found = {"boxes": [_option(text) for text in options]}
        controls_of(found)
    else:
        return None
    return found


def _option(text: str) -> dict[str, Any]:
    from underdraw.formats import json_text

    listed = text.startswith("[")
    parts = json_text.parse(text, BOX, fault=InputError) if listed else [text]
    usage = f'{BOX} takes a phrase and four numbers: {BOX} "a red sphere" 0.1 0.2 0.4 0.6'
    if len(parts) != 1 + NUMBERS:
        raise InputError(f"{usage}; got {' '.join(parts)!r}")
    try:
        return {"phrase": parts[0], "box": [float(part) for part in parts[1:]]}
    except ValueError as error:
        raise InputError(f"{usage}; got {' '.join(parts)!r}") from error


def read_layout(path: Path) -> dict[str, Any]:
    """A layout file: `{"prompt": ..., "boxes": [{"phrase": ..., "box": [x_min, y_min, x_max,
    y_max]}], "style": "image.png", "strength": [on, decay, off]}`, of which all but the boxes may
    be left out, or the list of boxes alone. `label` and `bbox`, as annotations have them, are the
    same as `phrase` and `box`; `image` names a picture beside the file."""
    from underdraw.formats import json_text

    content = json_text.read(path, fault=InputError)
    if isinstance(content, list):
        content = {"boxes": content}
    if not isinstance(content, dict) or not isinstance(content.get("boxes", []), list):
        raise InputTypeError(f"{path} holds neither a list of boxes nor an object with 'boxes'")
    if unknown := sorted(set(content) - {"prompt", "boxes", "style", "strength"}):
        raise InputError(
            f"{path} has {', '.join(map(repr, unknown))}; allowed: 'prompt', 'boxes', 'style', "
            "'strength'"
        )
    boxes = []
    for i, entry in enumerate(content.get("boxes", [])):
        allowed = {name for names in NAMES.values() for name in names}
        if not isinstance(entry, dict) or set(entry) - allowed:
            raise InputError(
                f"{path}: boxes[{i}] is {json.dumps(entry)[:80]}; needed is an object with "
                f"{', '.join(map(repr, sorted(allowed)))}"
            )
        box = {
            name: next(entry[n] for n in names if n in entry)
            for name, names in NAMES.items()
            if any(n in entry for n in names)
        }
        boxes.append(_placed(box, "image", path))
    return _placed({**content, "boxes": boxes}, "style", path)


def _placed(entry: dict[str, Any], name: str, path: Path) -> dict[str, Any]:
    """With a picture's path made absolute, so that it is found from any folder."""
    if isinstance(entry.get(name), str):
        entry[name] = str((path.parent / entry[name]).resolve())
    return entry


def controls_of(layout: Mapping[str, Any]) -> list[Any]:
    """The control of a layout."""
    from underdraw.controls.boxes import Box, Layout, Style

    parts: list[Any] = []
    read(Whole, layout)
    for i, entry in enumerate(layout["boxes"]):
        where = f"box {i + 1}"
        with within(where):
            read(Entry, entry)
        image = None if entry.get("image") is None else _picture(entry["image"], where)
        try:
            parts.append(Box(entry.get("phrase"), entry.get("box", ()), image))
        except (InputError, InputTypeError) as error:
            raise type(error)(f"{where}: {error}") from error
    if layout.get("style") is not None:
        parts.append(Style(_picture(layout["style"], "style")))
    return [Layout(tuple(parts), layout.get("strength"))]


def _picture(held: Any, where: str) -> Any:
    """A picture of a layout: a path, or what a record holds of it."""
    if isinstance(held, str):
        return embedded.named(held, where)
    return embedded.restored(held, f"the picture of {where}")


def with_pictures(layout: Mapping[str, Any]) -> dict[str, Any]:
    """A layout that holds its pictures instead of naming files, for the record of what is made."""

    def held(entry: Mapping[str, Any], name: str) -> dict[str, Any]:
        if not isinstance(entry.get(name), str):
            return dict(entry)
        path = Path(entry[name])
        return {**entry, name: embedded.kept(read_plain(path), path.name)}

    return {**held(layout, "style"), "boxes": [held(box, "image") for box in layout["boxes"]]}


def files_of(layout: Mapping[str, Any]) -> list[str]:
    """Files of the pictures that a layout names."""
    named = [layout.get("style"), *(box.get("image") for box in layout["boxes"])]
    return [name for name in named if isinstance(name, str)]


def drawn(image: Any, layout: Mapping[str, Any]) -> Any:
    """A copy of a picture with the boxes and their phrases over it."""
    from underdraw.scenes.draw import draw_boxes

    boxes = layout["boxes"]
    scale = max(1, round(512 / max(image.size)))
    labels = [box.get("phrase") or "image" for box in boxes]
    return draw_boxes(image, [box["box"] for box in boxes], labels, scale)
