"""Judged pictures on one sheet, for people to check the judge. Needs Pillow."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from underdraw.errors import InputError
from underdraw.scenes.draw import to_image

from .images import as_images, same_length
from .judging import Judgement

GREEN, RED, GRAY = (70, 190, 90), (230, 70, 60), (150, 150, 150)
_PAPER, _INK = (24, 24, 24), (235, 235, 235)
_LINE = 11


def judged_sheet(
    images: Any, judgements: Sequence[Judgement], columns: int = 8, scale: int = 1
) -> Image.Image:
    """Every picture with the boxes of what was seen (green: what the caption means, red: what it
    does not), its caption, and what was wrong in red. The frame is green where all is right.

    Raises InputError for lists of different length, columns or scale below 1.
    """
    for name, value in (("columns", columns), ("scale", scale)):
        if not isinstance(value, int) or value < 1:
            raise InputError(f"{name}={value!r} is not an integer of at least 1")
    pictures = as_images(images)
    same_length(images=pictures, judgements=judgements)
    cells = [_cell(p, j, scale) for p, j in zip(pictures, judgements, strict=True)]
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    heights = [max(cell.height for cell in row) + 4 for row in rows]
    width = cells[0].width + 4
    sheet = Image.new("RGB", (len(rows[0]) * width, sum(heights)), _PAPER)
    for number, row in enumerate(rows):
        for column, cell in enumerate(row):
            sheet.paste(cell, (column * width + 2, sum(heights[:number]) + 2))
    return sheet


def wrong(judgement: Judgement) -> list[str]:
    """What is wrong, in words; nothing where all is right."""
    said = []
    pairs = list(zip(judgement.caption.mentions, judgement.found, strict=True))
    said += [f"no {mention.phrase()[2:].strip()}" for mention, place in pairs if place is None]
    for relation, held in zip(judgement.caption.relations, judgement.relations, strict=True):
        if held is False:
            said.append(f"not {relation.kind}")
    for name in ("material", "size"):
        for mention, place in pairs:
            if place is not None:
                thing = judgement.detections[place]
                if not thing.shows(mention, name):
                    said.append(f"{getattr(thing, name)} {thing.shape}")
    return said


def _cell(picture: np.ndarray, judgement: Judgement, scale: int) -> Image.Image:
    image = to_image(picture)
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.LANCZOS)
    pen = ImageDraw.Draw(image)
    meant = {place for place in judgement.found if place is not None}
    for k, thing in enumerate(judgement.detections):
        x0, y0, x1, y1 = thing.box
        corners = (x0 * image.width, y0 * image.height, x1 * image.width - 1, y1 * image.height - 1)
        pen.rectangle(corners, outline=GREEN if k in meant else RED)
    font = ImageFont.load_default()
    letters = max(12, int(image.width / (font.getlength("the red sphere") / 14)))
    lines = [(line, _INK) for line in textwrap.wrap(judgement.caption.text, letters)]
    problems = wrong(judgement)
    lines += [(line, RED) for p in problems for line in textwrap.wrap(p, letters)]
    cell = Image.new("RGB", (image.width + 4, image.height + 8 + _LINE * len(lines)), _PAPER)
    frame = GREEN if not problems else RED if not judgement.right else GRAY
    ImageDraw.Draw(cell).rectangle(
        (0, 0, image.width + 3, image.height + 3), outline=frame, width=2
    )
    cell.paste(image, (2, 2))
    pen = ImageDraw.Draw(cell)
    for number, (line, colour) in enumerate(lines):
        pen.text((2, image.height + 5 + number * _LINE), line, fill=colour, font=font)
    return cell
