"""Maps on the command line: `--structure NET MAP SCALE`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from underdraw.checks import LARGEST_FACTOR
from underdraw.cli import embedded
from underdraw.cli.files import read_plain
from underdraw.errors import InputError, NotFoundError
from underdraw.schema import Length, Range, Schema, read, within

OPTION = "--structure"
PARTS = 3
USAGE = f"{OPTION} takes a net, a map and a number: {OPTION} ./canny-net edges.png 0.8"


@dataclass(frozen=True)
class Entry(Schema):
    """One net and its map, as a record keeps them."""

    net: Annotated[str, Length(1, 4096)]
    map: Annotated[str, Length(1, 4096)] | Mapping[str, Any]
    """A path, or what a record holds of a picture."""
    scale: Annotated[float, Range(-LARGEST_FACTOR, LARGEST_FACTOR)] = 1.0


def read_structures(options: Sequence[str] | None) -> list[dict[str, Any]] | None:
    """What the options say, checked; None without any.

    Raises:
        InputError, NotFoundError: one is none, or there is no such map.
    """
    if not options:
        return None
    entries = [_option(text) for text in options]
    for number, entry in enumerate(entries, 1):
        map_of(entry, f"map {number}")
    return entries


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


def check_nets(entries: Sequence[Mapping[str, Any]]) -> None:
    """Raise a NotFoundError where a net is nowhere."""
    from underdraw.cli.early import check_grounding

    for net in nets_of(entries):
        check_grounding(net)


def map_of(entry: Mapping[str, Any], where: str) -> Any:
    """The map of an entry: read from its file, or restored from a record.

    Raises:
        NotFoundError: there is no such file.
        InputError: it is no picture, or the record does not hold it.
    """
    read(Entry, entry)
    if isinstance(entry["map"], str):
        try:
            return read_plain(Path(entry["map"]))
        except NotFoundError as error:
            raise NotFoundError(f"{where}: there is no picture {entry['map']!r}") from error
    picture = embedded.restored(entry["map"], where)
    if picture is None:
        raise InputError(
            f"{where} was {entry['map']['name']}, which was too large to be kept; give it with "
            f"{OPTION}"
        )
    return picture


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
        path = Path(entry["map"])
        return {**entry, "map": embedded.kept(read_plain(path), path.name)}

    return [held(entry) for entry in entries]


def nets_of(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """What names the nets, each once."""
    return list(dict.fromkeys(entry["net"] for entry in entries))


def files_of(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Files of the maps."""
    return [entry["map"] for entry in entries if isinstance(entry["map"], str)]


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
