"""Patterns of floors and of textured subjects, as linear-light colours."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from .vocabulary import COLOUR_VALUES
from .world import Floor, Texture

# Linear light is display value squared; the renderer ends with a square root (gamma 2).
LINEAR = {name: np.array(rgb, np.float32) ** 2 for name, rgb in COLOUR_VALUES.items()}


def edge_square(phase: np.ndarray, blur: np.ndarray | float) -> np.ndarray:
    """A 0/1 square wave of period 1, its edges softened to `blur` periods (antialiasing)."""
    triangle = np.abs(phase - np.floor(phase) - np.float32(0.5)) - np.float32(0.25)
    return np.clip(triangle / np.maximum(blur, 1e-4) + np.float32(0.5), 0, 1)


@lru_cache(maxsize=16)
def _noise_table(seed: int) -> np.ndarray:
    table = np.random.default_rng(seed).random((64, 64), np.float32)
    table.setflags(write=False)
    return table


def noise(x: np.ndarray, y: np.ndarray, seed: int) -> np.ndarray:
    """Smooth value noise in [0, 1] with features of length 1, repeating after 64."""
    table = _noise_table(seed % 16).ravel()
    i, j = np.floor(x), np.floor(y)
    u, v = x - i, y - j
    u, v = u * u * (3 - 2 * u), v * v * (3 - 2 * v)
    i, j = i.astype(np.int32), j.astype(np.int32)
    left, right = (i & 63) << 6, ((i + 1) & 63) << 6
    low, high = j & 63, (j + 1) & 63
    near = table[left | low] * (1 - u) + table[right | low] * u
    far = table[left | high] * (1 - u) + table[right | high] * u
    return near * (1 - v) + far * v


def floor_albedo(floor: Floor, x: np.ndarray, y: np.ndarray, blur: np.ndarray) -> np.ndarray:
    """Colour (3, ...) of the table at x, y (...).

    `blur`, which broadcasts with x, is the size of a pixel there; it softens pattern edges.
    """
    c, s = np.float32(np.cos(floor.angle)), np.float32(np.sin(floor.angle))
    u, v = c * x + s * y, c * y - s * x
    shift = np.float32((floor.seed % 97) / 97)
    bright = _brightness(floor)
    tint = np.array([1.0, 0.985, 0.96], np.float32)
    if floor.kind == "plain":
        value = bright * (0.96 + 0.08 * noise(u * 1.5, v * 1.5, floor.seed))
    elif floor.kind == "checkered":
        first = edge_square(u * 0.55 + shift, blur * 0.55)
        second = edge_square(v * 0.55 + shift, blur * 0.55)
        same = first * second + (1 - first) * (1 - second)
        value = bright * (0.50 + 0.50 * same)
    elif floor.kind == "striped":
        value = bright * (0.58 + 0.42 * edge_square(u * 0.8 + shift, blur * 0.8))
    elif floor.kind == "tiled":
        line = np.maximum(_line(u * 0.8 + shift, blur), _line(v * 0.8 + shift, blur))
        shade = noise(np.floor(u * 0.8 + shift), np.floor(v * 0.8 + shift), floor.seed)
        value = bright * (0.90 + 0.16 * shade) * (1 - 0.45 * line)
    elif floor.kind == "marble":
        bend = noise(u * 0.9, v * 0.9, floor.seed) + 0.4 * noise(u * 2.3, v * 2.3, floor.seed + 1)
        vein = 1 - np.abs(np.sin(u * 1.3 + 0.6 * v + 3.2 * bend))
        value = bright * (1.08 - 0.42 * vein**3 - 0.22 * bend)
    else:
        board = np.floor(v * 1.4 + shift)
        grain = noise(u * 0.9 + board * 7.3, v * 14, floor.seed)
        shade = noise(board * 3.7, board * 0 + 0.5, floor.seed + 1)
        value = bright * (0.74 + 0.22 * shade + 0.22 * grain)
        value = value * (1 - 0.45 * _line(v * 1.4 + shift, blur * 1.75))
        tint = np.array([1.08, 0.87, 0.68], np.float32)
    return tint.reshape(3, *[1] * value.ndim) * value


def floor_mean(floor: Floor) -> np.ndarray:
    """The table's mean colour, (3,), near enough for light that it throws back."""
    return np.full(3, 0.8 * _brightness(floor), np.float32)


def _brightness(floor: Floor) -> np.float32:
    """Linear light of the lighter part of the pattern."""
    return np.float32(0.18 + 0.45 * floor.tone)


def _line(phase: np.ndarray, blur: np.ndarray) -> np.ndarray:
    """1 on thin lines at whole numbers of `phase`, fading to their mean where pixels are wide."""
    distance = np.abs(phase - np.floor(phase + np.float32(0.5)))
    width = np.float32(0.022)
    spread = np.maximum(blur, 0.01)
    return np.clip((width + spread / 2 - distance) / spread, 0, 1) * np.minimum(
        1, 2.5 * width / spread
    )


def wall_albedo(tone: float, z: np.ndarray) -> np.ndarray:
    """Colour (3, ...) of the backdrop at height z: a soft vertical gradient."""
    value = np.float32(0.20 + 0.22 * (1 - tone)) * (0.85 + 0.12 * np.minimum(z, 4))
    return np.array([0.97, 0.99, 1.03], np.float32).reshape(3, *[1] * z.ndim) * value


def texture_albedo(
    texture: Texture, first: str, points: np.ndarray, normals: np.ndarray
) -> np.ndarray:
    """Colour (3, n) of a textured object at `points` (3, n) facing `normals`, in its own axes.

    The pattern fills space and the surface cuts through it, so it has no seams and looks the
    same from every side.
    """
    rng = np.random.default_rng(texture.seed)
    shift = rng.random(3).astype(np.float32)
    axis = rng.normal(size=3).astype(np.float32)
    axis[1] *= 0.3  # mostly across the picture, so that the pattern shows from the front
    axis /= np.linalg.norm(axis)
    f = np.float32(texture.frequency)
    if texture.kind == "striped":
        amount = edge_square((axis @ points) * f * 0.8 + shift[0], 0.08 * f)
    elif texture.kind == "dotted":
        cell = points * (f * np.float32(0.9)) + shift[:, None]
        cell = cell - np.floor(cell) - np.float32(0.5)
        # Dots are seen along the axis that the surface faces most, so they stay round.
        x, y, z = cell * cell
        towards = np.abs(normals).argmax(0)
        nearest = np.where(towards == 0, y + z, np.where(towards == 1, x + z, x + y))
        amount = np.clip((np.float32(0.30) - np.sqrt(nearest)) / 0.06 / f + 0.5, 0, 1)
    elif texture.kind == "checked":
        waves = edge_square(points * (f * np.float32(0.6)) + shift[:, None], 0.05 * f)
        a, b, c = 2 * waves - 1
        amount = (1 + a * b * c) / 2
    else:
        angle = np.arctan2(points[0], -points[1]) / np.float32(2 * np.pi)
        turns = max(1, round(texture.frequency))
        amount = edge_square(angle * turns + points[2] * f * 0.5 + shift[0], 0.05 * f)
    amount = amount.astype(np.float32)
    return LINEAR[first][:, None] * (1 - amount) + LINEAR[texture.second][:, None] * amount


def frosted(albedo: np.ndarray, height: np.ndarray) -> np.ndarray:
    """Colour (3, n) of things with snow on their upper third; `height` (n,) is 1 at their top."""
    snow = np.clip((height - np.float32(0.66)) * 12, 0, 1)
    return albedo * (1 - snow) + np.float32(0.9) * snow
