"""Truth drawn on pictures, and sheets of pictures, for people to look at. Needs Pillow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from underdraw.errors import InputError
from underdraw.pictures import modes

from .captions import phrases
from .stream import Sample

# Told apart on every floor; object i has mark i, and after the last it starts anew.
MARKS = ((255, 64, 64), (64, 200, 64), (72, 128, 255), (255, 200, 0), (220, 80, 220), (0, 210, 210))


def to_image(picture: np.ndarray | Image.Image) -> Image.Image:
    """A float (height, width, 3) or (height, width) array in [0, 1] as a PIL picture in RGB."""
    if isinstance(picture, Image.Image):
        return modes.plain("picture", picture)
    array = np.asarray(picture)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        raise InputError(
            f"picture has shape {array.shape}; (height, width, 3) or (height, width) is needed"
        )
    if array.dtype != np.uint8:
        array = np.round(np.clip(array.astype(np.float32), 0, 1) * 255).astype(np.uint8)
    return Image.fromarray(array).convert("RGB")


def draw_boxes(
    picture: np.ndarray | Image.Image,
    boxes: Sequence[Sequence[float]] | np.ndarray,
    labels: Sequence[str] | None = None,
    scale: int = 1,
) -> Image.Image:
    """A copy with boxes (x_min, y_min, x_max, y_max) in [0, 1] and their labels, `scale` times
    as large (labels are hard to read on small pictures)."""
    if labels is not None and len(labels) != len(boxes):
        raise InputError(f"labels has {len(labels)} entries for {len(boxes)} boxes")
    image = _scaled(to_image(picture), scale)
    pen = ImageDraw.Draw(image)
    width, height = image.size
    for i, (x_min, y_min, x_max, y_max) in enumerate(boxes):
        mark = MARKS[i % len(MARKS)]
        corner = (round(x_min * width), round(y_min * height))
        far = (round(x_max * width) - 1, round(y_max * height) - 1)
        pen.rectangle((*corner, max(far[0], corner[0]), max(far[1], corner[1])), outline=mark)
        if labels is not None:
            left, top, right, bottom = pen.textbbox((0, 0), labels[i])
            x = min(max(corner[0], 0), max(width - (right - left) - 2, 0))
            y = max(corner[1] - (bottom - top) - 3, 0)
            pen.rectangle((x, y, x + right - left + 2, y + bottom - top + 2), fill=mark)
            pen.text((x + 1 - left, y + 1 - top), labels[i], fill=(0, 0, 0))
    return image


def draw_segmentation(
    picture: np.ndarray | Image.Image, segmentation: np.ndarray, strength: float = 0.55
) -> Image.Image:
    """A copy with each object of `segmentation` (int, 0 = background) tinted in its mark."""
    base = np.asarray(to_image(picture), np.float32)
    if segmentation.shape != base.shape[:2]:
        raise InputError(
            f"segmentation has shape {segmentation.shape}, the picture {base.shape[:2]}"
        )
    tint = np.array(MARKS, np.float32)[(segmentation - 1) % len(MARKS)]
    mix = base * (1 - strength) + tint * strength
    shown = np.where((segmentation > 0)[..., None], mix, base)
    return Image.fromarray(np.round(shown).astype(np.uint8))


def draw_edges(edges: np.ndarray) -> Image.Image:
    """`edges` (bool) as white lines on black."""
    return to_image(edges.astype(np.float32))


def draw_depth(depth: np.ndarray) -> Image.Image:
    """`depth` as gray, near is white; scaled to the picture's own range in 1 / depth."""
    near = 1 / np.maximum(depth, 1e-6)
    return to_image((near - near.min()) / max(float(np.ptp(near)), 1e-9))


def draw_normals(normals: np.ndarray) -> Image.Image:
    """Unit `normals` (height, width, 3) as colours, (x, y, z) from [-1, 1] to (r, g, b)."""
    return to_image(normals / 2 + 0.5)


def contact_sheet(
    pictures: Sequence[np.ndarray | Image.Image], columns: int = 8, gap: int = 2
) -> Image.Image:
    """Pictures of one size in a grid, row by row."""
    if not pictures:
        raise InputError("pictures is empty; at least one is needed")
    images = [to_image(picture) for picture in pictures]
    width, height = images[0].size
    if any(image.size != (width, height) for image in images):
        raise InputError(f"pictures differ in size: {sorted({image.size for image in images})}")
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    size = (columns * (width + gap) + gap, rows * (height + gap) + gap)
    sheet = Image.new("RGB", size, (24, 24, 24))
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        sheet.paste(image, (gap + column * (width + gap), gap + row * (height + gap)))
    return sheet


def truth_sheet(samples: Sequence[Sample], scale: int = 2) -> Image.Image:
    """One row per sample: picture, boxes with phrases, segmentation, depth, edges, normals."""
    cells: list[Image.Image] = []
    for sample in samples:
        truth = sample.rendering
        plain = _scaled(to_image(truth.image), scale)
        cells += [plain, draw_boxes(truth.image, truth.boxes, phrases(sample.scene), scale)]
        for image in (
            draw_segmentation(truth.image, truth.segmentation),
            draw_depth(truth.depth),
            draw_edges(truth.edges),
            draw_normals(truth.normals),
        ):
            cells.append(_scaled(image, scale))
    return contact_sheet(cells, columns=6)


def _scaled(image: Image.Image, scale: int) -> Image.Image:
    if not isinstance(scale, int) or scale < 1:
        raise InputError(f"scale={scale!r} is not an integer of at least 1")
    return (
        image.copy()
        if scale == 1
        else image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    )
