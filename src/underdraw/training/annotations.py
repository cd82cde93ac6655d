"""Pictures with captions and boxes: JSON beside them, or COCO annotations.

    metadata.jsonl      {"file_name": "cat.png", "text": "a cat on a mat",
                         "objects": [{"label": "a cat", "bbox": [0.1, 0.2, 0.5, 0.9]}]}
    cat.bbox, .jsonl    {"label": "a cat", "bbox": [0.1, 0.2, 0.5, 0.9]}     one object per line
    cat.json            a list of such objects, or {"text": ..., "objects": [...]}
    cat.txt             the caption, for the last two

`bbox` is `[x_min, y_min, x_max, y_max]`, by default in [0, 1] of the picture's width and height as
current trainers write it; with `coordinates="pixels"` in pixels of the file. It is never guessed:
a number above 1 where [0, 1] is expected is an error. COCO's `[x, y, width, height]` in pixels is
what its own files define, and is read as that.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from underdraw.errors import InputError, NotFoundError
from underdraw.formats import json_text
from underdraw.formats.opening import (
    LINE,
    MB,
    is_regular,
    read_blocks,
    read_lines,
    read_text,
)
from underdraw.training.data import to_signed
from underdraw.training.layouts import MOST, Layout

COORDINATES = ("relative", "pixels")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
SIDECARS = (".bbox", ".jsonl", ".json")
_OBJECT = '{"label": "a cat", "bbox": [0.1, 0.2, 0.5, 0.9]}'
_LINE = f'{{"file_name": "cat.png", "text": "a cat", "objects": [{_OBJECT}]}}'


_OBJECTS = json_text.Limits(nan=True)  # told with the object it is in


@dataclass(frozen=True)
class Annotated:
    """A picture file, its captions to choose from (none: its phrases are listed), and where things
    are; boxes in pixels of the file if `pixels`."""

    path: Path
    texts: tuple[str, ...]
    layout: Layout
    pixels: bool = False


class GroundedFolder:
    """`GroundedExamples` of annotated picture files, from `read_folder` or `read_coco`.

    Pictures are cut to a square and scaled to `size`. Each has `views`: the middle, the middle
    mirrored, then random squares, every other one mirrored (captions that tell left from right
    want `views=1`). A view is an example of its own, always the same, so that it can be encoded
    ahead; boxes follow the cut.
    """

    def __init__(self, pictures: Iterable[Annotated], size: int, views: int = 1) -> None:
        if size < 8 or size % 8:
            raise InputError(f"size={size} must be a multiple of 8 and at least 8")
        if views < 1:
            raise InputError(f"views={views} must be at least 1")
        self.pictures, self.size, self.views = list(pictures), size, views
        if not self.pictures:
            raise InputError("there is no annotated picture")

    def __len__(self) -> int:
        return len(self.pictures) * self.views

    def images(self, indices: np.ndarray) -> Tensor:
        return to_signed(np.stack([self._open(int(i)) for i in indices]))

    def captions(self, indices: np.ndarray, rng: np.random.Generator) -> list[str]:
        told = []
        for index in indices:
            picture, _ = self._view(int(index))
            texts = picture.texts or (", ".join(picture.layout.phrases[:MOST]),)
            told.append(texts[int(rng.integers(len(texts)))])
        return told

    def layouts(self, indices: np.ndarray, rng: np.random.Generator) -> list[Layout]:
        found = []
        for index in indices:
            picture, view = self._view(int(index))
            width, height = _size(picture.path)
            layout = picture.layout
            if picture.pixels:
                sides = np.array([width, height] * 2, np.float32)
                layout = Layout(layout.phrases, layout.boxes / sides)
            left, top, side = self._square(int(index), width, height)
            window = (left / width, top / height, (left + side) / width, (top + side) / height)
            cut = layout.cut(window)
            found.append((cut.mirrored() if view % 2 else cut).at_most(MOST, rng))
        return found

    def _view(self, index: int) -> tuple[Annotated, int]:
        number, view = divmod(index % len(self), self.views)
        return self.pictures[number], view

    def _square(self, index: int, width: int, height: int) -> tuple[float, float, int]:
        """Left, top and side of the view's square in pixels of the file."""
        side = min(width, height)
        _, view = self._view(index)
        at = np.array([0.5, 0.5])
        if view > 1:
            at = np.random.default_rng([index // self.views, view]).random(2)
        return float(at[0] * (width - side)), float(at[1] * (height - side)), side

    def _open(self, index: int) -> np.ndarray:
        picture, view = self._view(index)
        try:
            with Image.open(picture.path) as file:
                image = file.convert("RGB")
        except (UnidentifiedImageError, OSError) as error:
            raise InputError(f"{picture.path} is not a readable image: {error}") from error
        left, top, side = self._square(index, *image.size)
        whole = (self.size, self.size)
        box = (left, top, left + side, top + side)
        image = image.resize(whole, Image.Resampling.LANCZOS, box=box)
        return np.asarray(ImageOps.mirror(image) if view % 2 else image)


def _size(path: Path) -> tuple[int, int]:
    """Width and height, read from the head of the file."""
    try:
        with Image.open(path) as file:
            return file.size
    except (UnidentifiedImageError, OSError) as error:
        raise InputError(f"{path} is not a readable image: {error}") from error


# -- JSON beside pictures ------------------------------------------------------------------------
def read_folder(folder: str | Path, coordinates: str = "relative") -> list[Annotated]:
    """The pictures of a folder with what is told of them, by `metadata.jsonl` or by files beside
    each picture; a picture of which nothing is told is left out.

    Raises:
        NotFoundError: no folder, a picture that `metadata.jsonl` names is missing, or nothing
            is told of any picture.
        InputError: a file does not hold what it should; the message names file and line.
    """
    if coordinates not in COORDINATES:
        allowed = ", ".join(map(repr, COORDINATES))
        raise InputError(f"coordinates={coordinates!r}; allowed: {allowed}")
    folder, pixels = Path(folder), coordinates == "pixels"
    if not folder.is_dir():
        raise NotFoundError(f"{folder} is not a folder")
    listed = folder / "metadata.jsonl"
    if listed.is_file():
        found = [_listed(folder, raw, at, pixels) for raw, at in _lines(listed)]
    else:
        files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in PICTURES)
        beside = [_beside(path, pixels) for path in files]
        found = [picture for picture in beside if picture is not None]
    if not found:
        raise NotFoundError(
            f"{folder} holds no annotated picture: wanted is metadata.jsonl, each line {_LINE}, or "
            f"beside each picture a file {', '.join(SIDECARS)}, each line {_OBJECT}"
        )
    return found


def _listed(folder: Path, raw: Any, at: str, pixels: bool) -> Annotated:
    if not isinstance(raw, dict) or not isinstance(raw.get("file_name"), str):
        raise InputError(f"{at} lacks a file_name; each line: {_LINE}")
    path = folder / raw["file_name"]
    if not is_regular(path):
        raise NotFoundError(f"{at}: there is no image {path}")
    layout = _layout(raw.get("objects", []), at, pixels)
    return Annotated(path, _texts(raw.get("text"), at), layout, pixels)


def _beside(path: Path, pixels: bool) -> Annotated | None:
    sidecar = next((s for s in map(path.with_suffix, SIDECARS) if is_regular(s)), None)
    if sidecar is None:
        return None
    told = path.with_suffix(".txt")
    texts = (read_text(told, LINE, fault=InputError).strip(),) if is_regular(told) else ()
    if sidecar.suffix == ".json":
        raw = json_text.read(sidecar, _OBJECTS, fault=InputError)
        if isinstance(raw, dict) and "objects" in raw:
            texts = _texts(raw.get("text"), str(sidecar)) or texts
            raw = raw["objects"]
        objects = [raw] if isinstance(raw, dict) else raw
    else:
        objects = [raw for raw, _ in _lines(sidecar)]
    return Annotated(path, texts, _layout(objects, str(sidecar), pixels), pixels)


def _layout(objects: Any, where: str, pixels: bool) -> Layout:
    if not isinstance(objects, list):
        raise InputError(f"{where}: objects={objects!r} is not a list; each object: {_OBJECT}")
    labels, boxes = [], []
    for number, raw in enumerate(objects, 1):
        at = f"{where}, object {number}"
        label, box = (raw.get(k) if isinstance(raw, dict) else None for k in ("label", "bbox"))
        if not isinstance(label, str) or not label.strip():
            raise InputError(f"{at} lacks a label; each object: {_OBJECT}")
        boxes.append(_box(box, at, pixels))
        labels.append(label.strip())
    return Layout(tuple(labels), np.array(boxes, np.float32).reshape(-1, 4))


def _box(box: Any, at: str, pixels: bool) -> list[float]:
    """`[x_min, y_min, x_max, y_max]`, checked."""
    if not isinstance(box, list) or len(box) != 4 or not all(map(_finite, box)):
        raise InputError(f"{at}: bbox={box!r} is not [x_min, y_min, x_max, y_max]")
    if not pixels and max(box) > 1.001:
        raise InputError(
            f"{at}: bbox={box!r} reaches over 1; it is in [0, 1] of width and height, unless "
            "coordinates='pixels'"
        )
    if min(box) < -0.001 or box[2] <= box[0] or box[3] <= box[1]:
        raise InputError(
            f"{at}: bbox={box!r} is not [x_min, y_min, x_max, y_max] with 0 <= min < max"
        )
    return box


def _finite(number: Any) -> bool:
    numeric = isinstance(number, (int, float)) and not isinstance(number, bool)
    return numeric and math.isfinite(number)


def _texts(text: Any, at: str) -> tuple[str, ...]:
    """Captions to choose from; none where nothing is told."""
    if text is None:
        return ()
    listed = text if isinstance(text, list) else [text]
    if not listed or not all(isinstance(one, str) for one in listed):
        raise InputError(f"{at}: text={text!r} is not a text or a list of texts")
    return tuple(listed)


def _lines(path: Path) -> Iterator[tuple[Any, str]]:
    """What each line of a JSON lines file holds, and where that is."""
    for number, line in read_lines(path, fault=InputError):
        at = f"{path}:{number}"
        yield json_text.parse(line, at, _OBJECTS, fault=InputError, told=" is not JSON"), at


# -- COCO ----------------------------------------------------------------------------------------
def read_coco(
    folder: str | Path, instances: str | Path, captions: str | Path | None = None
) -> list[Annotated]:
    """The pictures of `folder` with COCO annotations: boxes are `instances`' annotations other than
    crowds, their phrases the names of the categories; without `captions` (another file of the set)
    the phrases are listed. Pictures without boxes stay, files that are not there are an error.

    Raises:
        NotFoundError: a file is missing.
        InputError: a file is not of this format.
    """
    folder = Path(folder)
    raw = _coco(instances, ("images", "annotations", "categories"))
    told = {} if captions is None else _captions(_coco(captions, ("annotations",)))
    try:
        names = {c["id"]: str(c["name"]) for c in raw["categories"]}
        objects: dict[Any, list[tuple[str, list[float]]]] = {}
        for annotation in raw["annotations"]:
            x, y, width, height = (float(v) for v in annotation["bbox"])
            if annotation.get("iscrowd") or not (width > 0 and height > 0):
                continue
            thing = names[annotation["category_id"]], [x, y, x + width, y + height]
            objects.setdefault(annotation["image_id"], []).append(thing)
        images = [(image["id"], folder / image["file_name"]) for image in raw["images"]]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{instances} is not COCO's format: {error!r}") from error
    found = []
    for number, path in images:
        if not path.is_file():
            raise NotFoundError(f"{instances}: there is no image {path}")
        things = objects.get(number, [])
        boxes = np.array([box for _, box in things], np.float32).reshape(-1, 4)
        layout = Layout(tuple(name for name, _ in things), boxes)
        found.append(Annotated(path, told.get(number, ()), layout, pixels=True))
    return found


def _coco(path: str | Path, parts: tuple[str, ...]) -> dict[str, Any]:
    path = Path(path)
    if not path.exists():
        raise NotFoundError(f"there are no annotations {path}")
    text = _without_outlines(path)
    raw = json_text.parse(text, str(path), _COCO, fault=InputError, told=" is not JSON")
    missing = [p for p in parts if not isinstance(raw, dict) or not isinstance(raw.get(p), list)]
    if missing:
        raise InputError(f"{path} is not COCO's format: it lacks {', '.join(missing)}")
    return raw


_OUTLINE = re.compile(rb'"segmentation"\s*:\s*\[[-+.,\d\seE\[\]]*\]')
_COCO = json_text.Limits(size=256 * MB, values=16_000_000)  # the set of 2017 has 11 million
_LARGEST, _LONGEST = 1024 * MB, 64 * MB


def _without_outlines(path: Path) -> bytes:
    """The text of a file without the polygons of its objects, which are most of it."""
    parts: list[bytes] = []
    rest, kept = b"", 0
    for more in read_blocks(path, _LARGEST, fault=InputError):
        # No polygon has a brace in it, so none is cut.
        block = rest + more
        end = block.rfind(b"}") + 1
        parts.append(_OUTLINE.sub(b'"segmentation":0', block[:end]))
        rest, kept = block[end:], kept + len(parts[-1])
        if kept > _COCO.size or len(rest) > _LONGEST:
            raise InputError(f"{path} holds more than annotations have: over {kept:,} bytes")
    return b"".join([*parts, rest])


def _captions(raw: dict[str, Any]) -> dict[Any, tuple[str, ...]]:
    told: dict[Any, tuple[str, ...]] = {}
    for annotation in raw["annotations"]:
        try:
            number, text = annotation["image_id"], str(annotation["caption"]).strip()
        except (KeyError, TypeError) as error:
            raise InputError(f"the captions are not COCO's format: {error!r}") from error
        told[number] = (*told.get(number, ()), text)
    return told
