"""The learning curve as a table and as a picture."""

from __future__ import annotations

import csv
import io
import math
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from underdraw.errors import NotFoundError, WeightError
from underdraw.formats.opening import MB, read_bytes
from underdraw.formats.writing import write_file, writing_file

CURVE, PICTURE, MEASURED = "curve.csv", "curve.png", "measured.csv"
Row = dict[str, float]


class Curve:
    """Means over every `every` steps, in `curve.csv`, drawn in `curve.png`; what previews measured
    goes to `measured.csv`. All are written whole."""

    def __init__(self, folder: Path, every: int) -> None:
        self.folder, self.every = folder, every
        self.rows: list[Row] = []
        self.measured: list[Row] = []
        self.pending: list[Mapping[str, Any]] = []

    def add(
        self, step: int, seconds: float, images: int, rate: float, values: Mapping[str, Any]
    ) -> None:
        """Take in one step; values are numbers, or tensors of one, read with their row."""
        self.pending.append(values)
        if step % self.every:
            return
        means = {
            name: float(sum(row[name] for row in self.pending)) / len(self.pending)
            for name in values
        }
        row = {"step": step, "seconds": round(seconds, 2), "images": images, "rate": rate, **means}
        self.rows.append(row)
        self.pending = []
        text = "  ".join(f"{name} {value:.4g}" for name, value in row.items())
        if not sys.stderr.isatty():
            print(time.strftime("%H:%M:%S"), text, f" {images / seconds:.2f}/s", flush=True)

    def note(self, step: int, measured: Mapping[str, float]) -> None:
        """Keep what was measured on the averaged weights at a step."""
        if not measured:
            return
        earlier = [row for row in self.measured if row["step"] < step]
        self.measured = [*earlier, {"step": step, **measured}]
        _write(self.folder / MEASURED, self.measured)
        text = "  ".join(f"{name} {value:.4g}" for name, value in measured.items())
        if not sys.stderr.isatty():
            print(time.strftime("%H:%M:%S"), f"measured at step {step}: {text}", flush=True)

    def flush(self) -> None:
        """Write both files."""
        if not self.rows:
            return
        _write(self.folder / CURVE, self.rows)
        draw(self.rows, self.folder / PICTURE)

    def rewind(self, step: int) -> None:
        """Go on from a checkpoint of `step`: forget what was noted after it. Rows that cannot be
        read are left out: they are for looking at, and no reason not to go on."""
        self.rows = [row for row in _read(self.folder / CURVE) if row["step"] <= step]
        self.measured = [row for row in _read(self.folder / MEASURED) if row["step"] <= step]


def _write(path: Path, rows: list[Row]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, names, restval="")
    writer.writeheader()
    writer.writerows(rows)
    write_file(path, text.getvalue().encode())


def _read(path: Path) -> list[Row]:
    try:
        text = read_bytes(path, 64 * MB).decode("utf-8", "replace").replace("\0", "")
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    except (NotFoundError, WeightError):
        return []
    whole = text[: text.rfind("\n") + 1]  # of a torn number nobody can tell
    found: list[Row] = []
    with suppress(csv.Error):
        for row in csv.DictReader(whole.splitlines()):
            with suppress(ValueError, TypeError, OverflowError):  # text, too many numbers, infinity
                numbers = {name: float(value) for name, value in row.items() if value}
                if "step" in numbers:
                    found.append({**numbers, "step": int(numbers["step"])})
    return found


def draw(rows: list[Row], path: Path, width: int = 640, height: int = 360) -> None:
    """The loss over the images seen, on a logarithmic scale."""
    told = [(r.get("images", 0.0), r.get("loss", 0.0)) for r in rows]
    points = [(n, loss) for n, loss in told if n > 0 and 0 < loss < math.inf]
    if len(points) < 2:
        return
    picture = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(picture)
    left, top, right, bottom = 56, 16, width - 16, height - 28
    logs = [math.log(loss) for _, loss in points]
    low, high = min(logs), max(logs) + 1e-9
    last = points[-1][0]
    for k in range(5):
        y = bottom - (bottom - top) * k / 4
        pen.line((left, y, right, y), fill="#dddddd")
        pen.text((4, y - 6), f"{math.exp(low + (high - low) * k / 4):.3g}", fill="#444444")
    places = [
        (
            left + (right - left) * images / last,
            bottom - (bottom - top) * (log - low) / (high - low),
        )
        for (images, _), log in zip(points, logs, strict=True)
    ]
    pen.line(places, fill="#2255aa", width=2)
    pen.text((left, bottom + 8), f"loss over images seen, 0 to {last:,.0f}", fill="#444444")
    with writing_file(path) as file:
        picture.save(file, "PNG")
