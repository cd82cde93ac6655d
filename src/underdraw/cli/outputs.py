"""Where pictures go."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import typer

from underdraw.cli import embedded
from underdraw.cli.failures import listed
from underdraw.errors import InputError

LONGEST = 48
"""Letters of a prompt in a file name."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
"""Of pictures; the same as `pictures.writing.FORMATS`, which would import numpy."""
WRITTEN = f"pictures are written as {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"


class Target:
    """Names of the pictures of one command, checked before any work.

    Args:
        out: with the suffix of a picture the file of a single one, or the sheet of several, which
            then stand beside it as -0, -1, ...; anything else is a folder, in which nothing is ever
            overwritten. None: the folder of the shell.
        inputs: option -> file that the command reads: none of them is written over.
        force: write over other files that are there.
        suffix: of pictures in a folder.
        beside: names of views that are written beside each picture, as NAME-view.
        sheet: whether several pictures also come on one sheet.

    Raises:
        InputError: a file is there, is an input, or cannot be written.
    """

    def __init__(
        self,
        out: Path | None,
        prompts: list[str],
        seeds: list[int],
        *,
        inputs: Mapping[str, Path | None] | None = None,
        force: bool = False,
        suffix: str | None = None,
        beside: Sequence[str] = (),
        sheet: bool = False,
    ) -> None:
        self.out, self.several = out, len(prompts) > 1
        self.names = [f"{slug(p)}-{seed}" for p, seed in zip(prompts, seeds, strict=True)]
        self.written: list[Path] = []
        self.previews: dict[int, Path] = {}
        self.file = out is not None and is_picture(out)
        if self.file and suffix is not None and out is not None and out.suffix.lower() != suffix:
            raise InputError(f"--out {out} is a file, so --format does not go with it")
        self.suffix = suffix or ".png"
        folder = (out.parent if self.file else out) if out is not None else None
        self.folder = folder or Path()
        planned = self.planned(beside, sheet)
        check_folder(self.folder, [path.name for path in planned] or self.names)
        check_free(planned, inputs or {}, force)

    def planned(self, beside: Sequence[str], sheet: bool) -> list[Path]:
        """Files whose names are fixed; in a folder they are chosen when they are written."""
        if not self.file or self.out is None:
            return []
        pictures = [self.place(i) for i in range(len(self.names))]
        views = [view_of(path, view) for path in pictures for view in beside]
        return [*pictures, *views, *([self.out] if sheet and self.several else [])]

    def write(self, index: int, image: Any, record: dict[str, Any]) -> Path:
        """Write a picture with its metadata and return where; its preview goes."""
        path = self.place(index)
        save(image, path, record)
        self.written.append(path)
        if (shown := self.previews.pop(index, None)) is not None:
            shown.unlink(missing_ok=True)
        return path

    def write_preview(self, index: int, image: Any, record: dict[str, Any]) -> None:
        """Write a picture that is being made beside the place where it will be."""
        if index not in self.previews:
            path = self.place(index)
            self.previews[index] = free(path.with_stem(f"{path.stem}-preview"))
        save(image, self.previews[index], record)

    def write_beside(self, path: Path, view: str, image: Any) -> Path:
        """Write another view of the picture at `path` beside it, and return where."""
        place = view_of(path, view)
        place = place if self.file else free(place)
        save(image, place, {"view": view, "of": path.name})
        return place

    def place(self, index: int) -> Path:
        """Where a picture goes that is not yet written."""
        if self.file and self.out is not None:
            return self.out.with_stem(f"{self.out.stem}-{index}") if self.several else self.out
        return free(self.folder / f"{self.names[index]}{self.suffix}")

    def write_sheet(self, columns: int | None = None) -> None:
        """All pictures written so far on one sheet."""
        from PIL import Image

        from underdraw.pictures.writing import grid

        pictures = [Image.open(path) for path in self.written]
        if self.file and self.out is not None:
            path = self.out
        else:
            path = free(self.folder / f"{self.names[0]}-grid{self.suffix}")
        save(grid(pictures, columns), path, {"sheet": [path.name for path in self.written]})
        for picture in pictures:
            picture.close()
        typer.echo(path)

    def kept(self) -> str:
        """What an interrupted command leaves."""
        kept = [str(path) for path in (*self.written, *self.previews.values())]
        return f"kept {listed(kept)}" if kept else "no picture was finished"


def save(image: Any, path: Path, record: dict[str, Any]) -> None:
    """Write a picture into a folder, which is made if it is not there."""
    from underdraw.pictures.writing import FORMATS, MOST_EXIF, save_picture

    if FORMATS[path.suffix.lower()] == "JPEG" and len(json.dumps(record)) > MOST_EXIF:
        record = embedded.by_name(record)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_picture(image, path, record)


def is_picture(out: Path) -> bool:
    """Whether a name is that of a picture, and not of a folder.

    Raises InputError where it is that of another kind of file.
    """
    if os.path.isdir(out):  # which takes names of any length
        return False
    if out.suffix.lower() in SUFFIXES:
        return True
    if re.fullmatch(r"\.[A-Za-z]\w{1,4}", out.suffix):
        raise InputError(f"--out {out}: {WRITTEN}, or into a folder")
    return False


def check_folder(folder: Path, names: Iterable[str] = ()) -> None:
    """Make sure that files of such names can be written into a folder, which need not be there
    yet: one of the longest name is, and removed. Nothing is left, no folder is made.

    Raises:
        InputError: it is a file, may not be written to, or a name is too long.
    """
    place, missing, names = folder.absolute(), list[str](), list(names)
    while not os.path.exists(place):
        missing.append(place.name)
        place = place.parent
    if ".." in missing:
        raise InputError(f"{folder}: there is no folder {place / missing[-1]}")
    if not place.is_dir():
        raise InputError(f"{place} is a file; a folder to write into was expected")
    token = secrets.token_hex(4)
    # Files are written under their name, a dot before it and such a token behind.
    beside = [f".{name}.{token}" for name in names]
    longest = max(len(os.fsencode(name)) for name in [*missing, *beside, token])
    probe = place / f".{token}".ljust(longest, "x")
    try:
        probe.touch(exist_ok=False)
    except OSError as error:
        told = str(folder)
        if error.errno == errno.ENAMETOOLONG:
            told = f"{max((*missing, *names), key=lambda name: len(os.fsencode(name))):.60}..."
        raise InputError(f"{told} cannot be written to: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            probe.unlink()


def check_free(
    paths: Iterable[Path], inputs: Mapping[str, Path | None], force: bool = False
) -> None:
    """Make sure that nothing is lost by writing files: on a terminal by asking.

    Raises:
        InputError: a file is one of the inputs; or it is there, and neither `force` nor the person
            at the terminal says that it may go.
    """
    there = []
    for path in paths:
        if not os.path.exists(path):
            continue
        for option, read in inputs.items():
            if read is not None and os.path.exists(read) and path.samefile(read):
                raise InputError(f"{path} is {option}, which would be lost; name another --out")
        if not path.is_file():
            raise InputError(f"{path} exists and is no file; name another --out")
        there.append(str(path))
    if not there or force:
        return
    verb = "exists" if len(there) == 1 else "exist"
    if sys.stdin.isatty() and sys.stderr.isatty():
        if typer.confirm(f"{listed(there)} {verb}; write over it?", err=True):
            return
        raise InputError("nothing was written")
    raise InputError(f"{listed(there)} {verb}; --force writes over it, or name another --out")


def view_of(path: Path, view: str) -> Path:
    """Where a view of a picture stands."""
    return path.with_stem(f"{path.stem}-{view}")


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
