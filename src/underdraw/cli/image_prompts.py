"""Pictures beside the prompt on the command line: `--image-prompt PICTURE[:SCALE]`, `--ip-adapter
FILE`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from underdraw.cli import embedded
from underdraw.cli.files import read_plain, with_scale
from underdraw.errors import InputError
from underdraw.limits import LARGEST_FACTOR
from underdraw.schema import Length, Range, Schema, read, within

OPTION, WEIGHTS = "--image-prompt", "--ip-adapter"


@dataclass(frozen=True)
class Entry(Schema):
    """A picture and how much of it, as a record keeps them."""

    image: Annotated[str, Length(1, 4096)] | Mapping[str, Any]
    """A path, or what a record holds of a picture."""
    scale: Annotated[float, Range(-LARGEST_FACTOR, LARGEST_FACTOR)] = 1.0


Entries = Sequence[Mapping[str, Any]]


def read_prompts(options: Sequence[str] | None) -> list[dict[str, Any]] | None:
    """What the options say, checked; None without any.

    Raises:
        InputError, NotFoundError: a scale is no number, or there is no such picture.
    """
    if not options:
        return None
    entries = [_option(text) for text in options]
    controls_of(entries)
    return entries


def _option(text: str) -> dict[str, Any]:
    path, scale = with_scale(OPTION, text, "PICTURE or PICTURE:0.6")
    entry = {"image": str(path.resolve()), "scale": 1.0 if scale is None else scale}
    with within(OPTION):
        read(Entry, entry)
    return entry


def check(entries: Entries | None, weights: str | None) -> None:
    """Raise an InputError where one of the two options lacks the other, a NotFoundError where the
    weights are nowhere."""
    from underdraw.cli.early import check_grounding

    if entries and weights is None:
        raise InputError(f"{OPTION} needs {WEIGHTS} FILE, an IP-Adapter for the model")
    if weights is not None:
        if not entries:
            raise InputError(f"{WEIGHTS} needs {OPTION} PICTURE")
        check_grounding(weights)


def controls_of(entries: Entries) -> list[Any]:
    """The controls of entries."""
    from underdraw.controls.image_prompt import ImagePrompt

    return [
        ImagePrompt(_picture(entry, f"image prompt {number}"), float(entry.get("scale", 1.0)))
        for number, entry in enumerate(entries, 1)
    ]


def _picture(entry: Mapping[str, Any], where: str) -> Any:
    with within(where):
        known = read(Entry, entry)
    return embedded.picture(known.image, where, OPTION)


def check_recorded(path: Path, entries: Sequence[Any], named: bool) -> None:
    """Raise an InputError where what a record says of image prompts is damaged, shows pictures that
    it does not hold, or nobody names an IP-Adapter: a record chooses none."""
    if not named:
        raise InputError(f"{path} was made with pictures beside the prompt; add {WEIGHTS} FILE")
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, Mapping) or not isinstance(entry.get("image"), Mapping):
            raise InputError(f"{path}: its image prompt {number} is damaged: {entry!r:.80}")
        _picture(entry, f"{path}: its image prompt {number}")


def with_pictures(entries: Entries) -> list[dict[str, Any]]:
    """Entries that hold their pictures instead of naming files, for the record of what is made."""
    made = []
    for entry in entries:
        image = entry["image"]
        if isinstance(image, str):
            image = embedded.kept(read_plain(Path(image)), Path(image).name)
        made.append({**entry, "image": image})
    return made


def files_of(entries: Entries) -> list[str]:
    """Files of the pictures."""
    return [entry["image"] for entry in entries if isinstance(entry["image"], str)]
