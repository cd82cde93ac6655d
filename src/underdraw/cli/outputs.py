"""Where pictures go."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from underdraw.cli.failures import listed
from underdraw.errors import InputError

LONGEST = 48
"""Letters of a prompt in a file name."""


class Target:
    """Names of the pictures of one command, checked before any work.

    `out` ending in .png is the file of a single picture, or the sheet of several, which then stand
    beside it as -0, -1, ...; anything else is a folder, in which nothing is ever overwritten.
    """

    def __init__(self, out: Path | None, prompts: list[str], seeds: list[int]) -> None:
        self.out, self.several = out, len(prompts) > 1
        self.names = [f"{slug(p)}-{seed}" for p, seed in zip(prompts, seeds, strict=True)]
        self.written: list[Path] = []
        self.previews: dict[int, Path] = {}
        self.file = out is not None and out.suffix.lower() == ".png" and not out.is_dir()
        suffix = "" if out is None or self.file or out.is_dir() else out.suffix
        if re.fullmatch(r"\.[A-Za-z]\w{1,4}", suffix):
            raise InputError(f"--out {out}: pictures are written as .png, which keep their data")
        self.folder = (out.parent if self.file else out) if out is not None else Path()
        prepare_folder(self.folder)

    def write(self, index: int, image: Any, record: dict[str, Any]) -> Path:
        """Write a picture with its metadata and return where; its preview goes."""
        from underdraw.pictures.writing import save_png

        path = self.place(index)
        save_png(image, path, record)
        self.written.append(path)
        if (shown := self.previews.pop(index, None)) is not None:
            shown.unlink(missing_ok=True)
        return path

    def write_preview(self, index: int, image: Any, record: dict[str, Any]) -> None:
        """Write a picture that is being made beside the place where it will be."""
        from underdraw.pictures.writing import save_png

        if index not in self.previews:
            path = self.place(index)
            self.previews[index] = free(path.with_stem(f"{path.stem}-preview"))
        save_png(image, self.previews[index], record)

    def write_beside(self, path: Path, what: str, image: Any) -> Path:
        """Write another view of the picture at `path` beside it, and return where."""
        from underdraw.pictures.writing import save_png

        place = free(path.with_stem(f"{path.stem}-{what}"))
        save_png(image, place, {"view": what, "of": path.name})
        return place

    def place(self, index: int) -> Path:
        """Where a picture goes that is not yet written."""
        if self.file and self.out is not None:
            return self.out.with_stem(f"{self.out.stem}-{index}") if self.several else self.out
        return free(self.folder / f"{self.names[index]}.png")

    def write_sheet(self, columns: int | None = None) -> None:
        """All pictures written so far on one sheet."""
        import typer
        from PIL import Image

        from underdraw.pictures.writing import grid, save_png

        pictures = [Image.open(path) for path in self.written]
        if self.file and self.out is not None:
            path = self.out
        else:
            path = free(self.folder / f"{self.names[0]}-grid.png")
        save_png(grid(pictures, columns), path, {"sheet": [path.name for path in self.written]})
        for picture in pictures:
            picture.close()
        typer.echo(path)

    def kept(self) -> str:
        """What an interrupted command leaves."""
        kept = [str(path) for path in (*self.written, *self.previews.values())]
        return f"kept {listed(kept)}" if kept else "no picture was finished"


def prepare_folder(folder: Path) -> None:
    """Make sure that files can be written into a folder.

    Raises InputError, or PermissionError.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; a folder to write into was expected")
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise InputError(f"{folder or '.'} cannot be written to")


def slug(text: str) -> str:
    """A prompt as a file name."""
    words = re.sub(r"\W+", "-", text.lower()).strip("-")
    return words[:LONGEST].rstrip("-") or "picture"


def free(path: Path) -> Path:
    """`path`, or with -2, -3, ... the first that is not there."""
    number, found = 1, path
    while found.exists():
        number += 1
        found = path.with_stem(f"{path.stem}-{number}")
    return found
