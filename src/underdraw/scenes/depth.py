"""How far away everything in a scene is, without drawing it."""

from __future__ import annotations

import numpy as np

from .render import trace
from .world import FOCAL, WALL_Y, Scene


def depth_of(scene: Scene, height: int = 128, width: int = 128) -> np.ndarray:
    """The z-depth in metres at the middle of each pixel, float32 `(height, width)`: that of
    `render(scene).depth`, which is a mean over a pixel's samples. A few ms at 128 x 128."""
    camera = scene.camera
    down = (height / 2 - 0.5 - np.arange(height)) / (FOCAL * min(height, width))
    _, up, forward = camera.axes
    ray_y, ray_z = forward[1] + down * up[1], forward[2] + down * up[2]
    with np.errstate(divide="ignore"):
        to_table = np.where(ray_z < 0, -camera.origin[2] / ray_z, np.inf)
        to_wall = np.where(ray_y > 0, (WALL_Y - camera.origin[1]) / ray_y, np.inf)
    behind = np.minimum(to_table, to_wall).astype(np.float32)[:, None]
    hits = trace(scene, height, width, fine=1)
    return np.where(hits.ids > 0, hits.depth, behind).astype(np.float32)
