"""Maps on the command line: `--structure NET MAP SCALE`, `--edges PHOTO`, `--depth MAP`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from underdraw.cli import embedded
from underdraw.cli.options import MOST_SIDE
from underdraw.errors import InputError
from underdraw.limits import LARGEST_FACTOR
from underdraw.schema import Length, Range, Schema, read, within

OPTION = "--structure"
PARTS = 3
USAGE = f"{OPTION} takes a net, a map and a number: {OPTION} ./canny-net edges.png 0.8"
EDGES, DEPTH = "edges", "depth"
"""Nets of a model's own, by the names of the options that ask for them."""


Side = Annotated[int, Range(1, MOST_SIDE)]


@dataclass(frozen=True)
class Entry(Schema):
    """One net and its map, as a record keeps them."""

    net: Annotated[str, Length(1, 4096)]
    map: Annotated[str, Length(1, 4096)] | Mapping[str, Any]
    """A path, or what a record holds of a picture."""
    scale: Annotated[float, Range(-LARGEST_FACTOR, LARGEST_FACTOR)] = 1.0
    own: bool = False
    """Whether `net` names one that belongs to the model."""
    lines: tuple[Side, Side] | None = None
    """Height and width at which the edges of a photograph are drawn, which are the map then."""


def read_maps(
    options: Sequence[str] | None, edges: Path | None = None, depth: Path | None = None
) -> list[dict[str, Any]] | None:
    """What `--structure`, `--edges` and `--depth` say, checked; None without any.

    Raises:
        InputError, NotFoundError: one is none, or there is no such map.
    """
    entries = [_option(text) for text in options or ()]
    for number, entry in enumerate(entries, 1):
        map_of(entry, f"map {number}")
    for net, path in ((EDGES, edges), (DEPTH, depth)):
        if path is not None:
            entries.append({"net": net, "map": str(path.resolve()), "scale": 1.0, "own": True})
            map_of(entries[-1], f"--{net}")
    return entries or None


def draw_lines(entries: Sequence[dict[str, Any]], height: int, width: int) -> None:
    """Let the edges of photographs be drawn at the size of the result: of those of a larger picture
    little would be left at its size."""
    for entry in entries:
        if entry.get("own") and entry["net"] == EDGES and isinstance(entry["map"], str):
            entry["lines"] = [height, width]


def _option(text: str) -> dict[str, Any]:
    from underdraw.formats import json_text

    parts = json_text.parse(text, OPTION, fault=InputError) if text.startswith("[") else [text]
    if len(parts) != PARTS:
        raise InputError(f"{USAGE}; got {' '.join(parts)!r}")
    try:
        scale = float(parts[2])
    except ValueError as error:
        raise InputError(f"{USAGE}; got {' '.join(parts)!r}") from error
    entry = {"net": parts[0], "map": parts[1], "scale": scale}
    with within(OPTION):
        read(Entry, entry)
    return {**entry, "map": str(Path(parts[1]).resolve())}


def check_nets(entries: Sequence[Mapping[str, Any]], model: str) -> None:
    """Raise a NotFoundError where a net is nowhere, an InputError where a model has none of its
    own."""
    from underdraw.cli.early import check_grounding
    from underdraw.pipelines.components.structure import own_structures

    for net in nets_of(entries):
        check_grounding(net)
    there = own_structures(model)
    for entry in entries:
        if entry.get("own") and entry["net"] not in there:
            raise InputError(
                f"--{entry['net']} needs a net of the model's own, and {model:.200} has none for "
                f"{entry['net']}; name one with {OPTION} NET MAP SCALE"
            )


def map_of(entry: Mapping[str, Any], where: str) -> Any:
    """The map of an entry: read from its file, or restored from a record.

    Raises:
        NotFoundError: there is no such file.
        InputError: it is no picture, or the record does not hold it.
    """
    read(Entry, entry)
    found = embedded.picture(entry["map"], where, OPTION)
    return found if entry.get("lines") is None else _lines(found, *entry["lines"])


def _lines(photo: Any, height: int, width: int) -> Any:
    from PIL import Image

    from underdraw.preprocessors import canny

    return canny(photo.resize((width, height), Image.Resampling.LANCZOS))


def check_recorded(path: Path, entries: Any) -> None:
    """Raise an InputError where what a record says of maps is damaged, or shows maps that it does
    not hold; a record names no file."""
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"{path}: its structures are damaged: {entries!r:.80}")
    for number, entry in enumerate(entries, 1):
        where = f"{path}: its map {number}"
        with within(where):
            read(Entry, entry)
        if isinstance(entry["map"], str):
            raise InputError(f"{where} is damaged: it is no picture")
        map_of(entry, where)


def with_maps(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Entries that hold their maps instead of naming files, for the record of what is made."""

    def held(entry: Mapping[str, Any]) -> dict[str, Any]:
        if not isinstance(entry["map"], str):
            return dict(entry)
        kept = embedded.kept(map_of(entry, entry["map"]), Path(entry["map"]).name)
        return {**{name: value for name, value in entry.items() if name != "lines"}, "map": kept}

    return [held(entry) for entry in entries]


def nets_of(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """What names the nets that do not belong to the model, each once."""
    return list(dict.fromkeys(entry["net"] for entry in entries if not entry.get("own")))


def inputs_of(entries: Sequence[Mapping[str, Any]]) -> dict[str, Path]:
    """The files of the maps, by what they are called in an error."""
    files = [entry["map"] for entry in entries if isinstance(entry["map"], str)]
    return {f"the map {path} of {OPTION}": Path(path) for path in files}


def options_of(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What would say the same on the command line: values by option."""
    own = {entry["net"]: entry["map"] for entry in entries if entry.get("own")}
    named = [[e["net"], e["map"], e["scale"]] for e in entries if not e.get("own")]
    return {**({"structure": named} if named else {}), **own}


def attach(pipe: Any, entries: Sequence[Mapping[str, Any]]) -> None:
    """Load the nets into a pipeline, under what names them."""
    for net in nets_of(entries):
        pipe.load_structure(net, name=net)


def controls_of(entries: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The controls of entries."""
    from underdraw.controls.structure import Structure

    return [
        Structure(entry["net"], map_of(entry, f"map {number}"), float(entry.get("scale", 1.0)))
        for number, entry in enumerate(entries, 1)
    ]
