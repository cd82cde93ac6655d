"""The folder of an evaluation: whose run it is, the pictures it has so far, its report.

Everything in it is written whole or not at all, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from PIL import Image
from tqdm import tqdm

from underdraw.errors import InputError, NotFoundError, WeightError
from underdraw.formats import arrays, leftovers
from underdraw.formats.json_text import read_object
from underdraw.formats.leftovers import is_empty
from underdraw.formats.writing import write_file, write_new, writing_file

RUN, REPORT, TABLE, SHEET = "run.json", "report.json", "table.txt", "sheet.png"
Item = TypeVar("Item")


class Report(Protocol):
    """What an evaluation found."""

    def table(self) -> str: ...

    def to_json(self) -> dict[str, Any]: ...


def write_report(folder: Path, report: Report) -> None:
    """As JSON and as a table."""
    write_file(folder / REPORT, json.dumps(report.to_json(), indent=1).encode())
    write_file(folder / TABLE, (report.table() + "\n").encode())


def generate_kept(
    generate: Callable[[list[Item], list[int]], np.ndarray],
    items: Sequence[Item],
    seed: int,
    batch: int,
    folder: Path | None,
    progress: bool,
) -> np.ndarray:
    """A picture per item, item i from the seed `seed + i`: uint8 (n, height, width, 3).

    Each batch is kept in `folder`, and what that holds is not made again.
    """
    pictures: dict[int, np.ndarray] = {}
    if folder is not None:
        for i in range(len(items)):
            kept = _read(_picture_path(folder, i))
            if kept is not None:
                pictures[i] = kept
    missing = [i for i in range(len(items)) if i not in pictures]
    bar = tqdm(total=len(items), initial=len(pictures), unit="picture", disable=not progress)
    with bar:
        for start in range(0, len(missing), batch):
            numbers = missing[start : start + batch]
            made = generate([items[i] for i in numbers], [seed + i for i in numbers])
            for i, picture in zip(numbers, made, strict=True):
                pictures[i] = picture
                if folder is not None:
                    write_picture(_picture_path(folder, i), Image.fromarray(picture))
            bar.update(len(numbers))
    return _stacked([pictures[i] for i in range(len(items))])


def _stacked(pictures: list[np.ndarray]) -> np.ndarray:
    """One array of pictures of one size."""
    sizes = {picture.shape for picture in pictures}
    if len(sizes) > 1:
        raise InputError(f"generated pictures differ in shape: {sorted(sizes)}")
    return np.stack(pictures)


def claim(folder: Path, settings: dict[str, Any]) -> None:
    """Make the folder this run's, or find that it is.

    Raises:
        InputError: it is another run's, or holds something else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run = folder / RUN
    leftovers.clear(folder, RUN)
    if not run.exists():
        if not (is_empty(folder) or run.exists()):  # which may have come since
            raise InputError(f"folder={str(folder)!r} is not empty and holds no {RUN}")
        if not write_new(run, json.dumps(settings, indent=1).encode()):
            raise InputError(
                f"folder={str(folder)!r} has just become another evaluation's; name another one, "
                "or give the same command again when that has ended"
            )
        return
    try:
        kept = read_object(run)
    except WeightError as error:
        raise InputError(f"folder={str(folder)!r}: {error}; name another one") from error
    changed = [name for name in settings if kept.get(name) != settings[name]]
    if changed:
        raise InputError(
            f"folder={str(folder)!r} holds a run with other {', '.join(changed)}; name another one"
        )


def write_picture(path: Path, picture: Any) -> None:
    """A PIL image as PNG, whole or not at all."""
    with writing_file(path) as file:
        picture.save(file, "PNG")


def write_arrays(path: Path, named: Mapping[str, np.ndarray]) -> None:
    """Arrays by name, whole or not at all."""
    with writing_file(path) as file:
        np.savez(file, **named)  # type: ignore[arg-type]


def read_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """What `write_arrays` wrote; None where there is none, or a file that cannot be read."""
    try:
        return arrays.read_arrays(path)
    except (NotFoundError, WeightError):
        return None


def _picture_path(folder: Path, number: int) -> Path:
    return folder / f"{number:04d}.png"


def _read(path: Path) -> np.ndarray | None:
    """A kept picture; None where there is none, or one that cannot be read."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, zlib.error):  # Pillow's, for torn files
        return None
