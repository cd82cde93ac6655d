"""The learning curve as a table and as a picture."""

from __future__ import annotations

import csv
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from underdraw.formats.opening import read_lines

COLUMNS = ("step", "seconds", "images", "rate", "loss")


class Curve:
    """Means over every `every` steps, in `curve.csv`, drawn in `curve.png`; what previews measured
    goes to `measured.csv`."""

    def __init__(self, folder: Path, every: int) -> None:
        self.folder, self.every = folder, every
        self.rows: list[dict[str, float]] = []
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
        path = self.folder / "measured.csv"
        new = not path.exists()
        with open(path, "a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(["step", *measured])
            writer.writerow([step, *measured.values()])
        text = "  ".join(f"{name} {value:.4g}" for name, value in measured.items())
        if not sys.stderr.isatty():
            print(time.strftime("%H:%M:%S"), f"measured at step {step}: {text}", flush=True)

    def flush(self) -> None:
        """Write both files."""
        if not self.rows:
            return
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        path = self.folder / "curve.csv"
        with open(path.with_suffix(".tmp"), "w", newline="") as file:
            writer = csv.DictWriter(file, names, restval="")
            writer.writeheader()
            writer.writerows(self.rows)
        path.with_suffix(".tmp").replace(path)
        draw(self.rows, self.folder / "curve.png")

    def rewind(self, step: int) -> None:
        """Go on from a checkpoint of `step`: forget what was noted after it."""
        path = self.folder / "curve.csv"
        if not path.exists():
            return
        lines = csv.DictReader(line for _, line in read_lines(path))
        rows = [{k: float(v) for k, v in row.items() if v} for row in lines]
        self.rows = [row for row in rows if row["step"] <= step]


def draw(rows: list[dict[str, float]], path: Path, width: int = 640, height: int = 360) -> None:
    """The loss over the images seen, on a logarithmic scale."""
    points = [(r["images"], r["loss"]) for r in rows if r.get("loss", 0) > 0]
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
    picture.save(path)
