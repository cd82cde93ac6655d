"""Where one object is with respect to another, as seen in the picture.

"left of" and "right of" compare the middles across the picture; "in front of" and "behind"
compare how far down the picture objects stand, for on a table what is nearer stands lower. Both
can therefore be checked on boxes alone, without knowing the scene.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from .solids import SOLIDS
from .vocabulary import RELATIONS, check_choice
from .world import Camera, Scene, SceneObject

# Captions state a relation only when it holds by this share of the picture's shorter side.
MARGIN_ACROSS = 0.14
MARGIN_DOWN = 0.10


def scene_relations(scene: Scene, first: int, second: int) -> tuple[str, ...]:
    """All relations that `scene.objects[first]` clearly has to `scene.objects[second]`."""
    a, b = (_anchors(scene.objects[i], scene.camera) for i in (first, second))
    found = []
    across = a[0] - b[0]
    if abs(across) >= MARGIN_ACROSS:
        found.append("left of" if across < 0 else "right of")
    # The foot and the front rim must agree, or a large and a small object could be told wrong.
    foot, rim = a[1] - b[1], a[2] - b[2]
    if min(foot, rim) >= MARGIN_DOWN:
        found.append("in front of")
    elif max(foot, rim) <= -MARGIN_DOWN:
        found.append("behind")
    return tuple(found)


def box_relation(
    first: Sequence[float], second: Sequence[float], kind: str, margin: float = 0.0
) -> bool:
    """Whether box `first` is `kind` (one of RELATIONS) box `second` by more than `margin`.

    Boxes are (x_min, y_min, x_max, y_max) in [0, 1]. Middles decide left and right, lower edges
    decide front and behind.
    """
    check_choice("kind", kind, RELATIONS)
    across = (first[0] + first[2]) / 2 - (second[0] + second[2]) / 2
    down = first[3] - second[3]
    amount = {"left of": -across, "right of": across, "in front of": down, "behind": -down}
    return bool(amount[kind] > margin)


def _anchors(obj: SceneObject, camera: Camera) -> tuple[float, float, float]:
    """Middle across, foot down and front rim down, in shares of the shorter side."""
    _, deep, high = (side * obj.radius for side in SOLIDS[obj.shape].extent)
    x, y = obj.position
    return _seen(x, y, high / 2, deep, camera)


@lru_cache(maxsize=64)  # a caption compares the same few objects with each other
def _seen(
    x: float, y: float, middle: float, deep: float, camera: Camera
) -> tuple[float, float, float]:
    points = np.array([[x, y, middle], [x, y, 0], [x, y - deep, 0]], np.float32)
    found = camera.project(points, 1, 1)
    return float(found[0, 0]), float(found[1, 1]), float(found[2, 1])
