"""The folder of an evaluation: whose run it is, the pictures it has so far, its report.

Everything in it is written whole or not at all, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from PIL import Image
from tqdm import tqdm

from underdraw.errors import InputError, WeightError
from underdraw.formats.json_text import read_object

RUN, REPORT, TABLE, SHEET = "run.json", "report.json", "table.txt", "sheet.png"
Item = TypeVar("Item")


class Report(Protocol):
    """What an evaluation found."""

    def table(self) -> str: ...

    def to_json(self) -> dict[str, Any]: ...


def write_report(folder: Path, report: Report) -> None:
    """As JSON and as a table."""
    _write(folder / REPORT, json.dumps(report.to_json(), indent=1).encode())
    _write(folder / TABLE, (report.table() + "\n").encode())


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
                    _keep(_picture_path(folder, i), picture)
            bar.update(len(numbers))
    return _stacked([pictures[i] for i in range(len(items))])


def _stacked(pictures: list[np.ndarray]) -> np.ndarray:
    """One array of pictures of one size."""
    sizes = {picture.shape for picture in pictures}
    if len(sizes) > 1:
        raise InputError(f"generated pictures differ in shape: {sorted(sizes)}")
    return np.stack(pictures)


def claim(folder: Path, settings: dict[str, Any]) -> None:
    """Make the folder this run's, or find that it is."""
    folder.mkdir(parents=True, exist_ok=True)
    run = folder / RUN
    if not run.exists():
        if any(folder.iterdir()):
            raise InputError(f"folder={str(folder)!r} is not empty and holds no {RUN}")
        _write(run, json.dumps(settings, indent=1).encode())
        return
    try:
        kept = read_object(run)
    except WeightError:
        kept = {}
    changed = [name for name in settings if kept.get(name) != settings[name]]
    if changed:
        raise InputError(
            f"folder={str(folder)!r} holds a run with other {', '.join(changed)}; name another one"
        )


def _picture_path(folder: Path, number: int) -> Path:
    return folder / f"{number:04d}.png"


def _keep(path: Path, picture: np.ndarray) -> None:
    partial = path.with_suffix(".tmp")
    Image.fromarray(picture).save(partial, "PNG")
    os.replace(partial, path)


def _read(path: Path) -> np.ndarray | None:
    """A kept picture; None where there is none, or one that cannot be read."""
    if not path.exists():
        return None
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except OSError:
        return None


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(f"{path.name}.tmp")
    partial.write_bytes(content)
    os.replace(partial, path)
