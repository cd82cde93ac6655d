"""The solids: where a ray meets them, which way they face there, how far a point is from them.

Every solid stands on z = 0 in its own coordinates, about 2 wide; `SceneObject.radius` scales it.
`points` and `directions` are float32 arrays whose first axis holds x, y, z.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .world import SceneObject

CUBE = 0.80  # half an edge
TUBE, TUBE_HEIGHT = 0.80, 1.75
CONE, CONE_HEIGHT = 1.00, 1.95
RING, RING_TUBE = 0.73, 0.31
BEVEL = 0.10  # over this width shading bends at an edge, which catches the light as real edges do
SHARP = 0.005  # the same for the truth
EDGED = ("cube", "cylinder")


@dataclass(frozen=True)
class Solid:
    """The three functions of a shape, and its extent: half width, half thickness (y), height.

    `normal(points, bevel)` is not of unit length."""

    intersect: Callable[[np.ndarray, np.ndarray], np.ndarray]
    normal: Callable[[np.ndarray, float], np.ndarray]
    distance: Callable[[np.ndarray], np.ndarray]
    extent: tuple[float, float, float]


def _sphere_hit(origin: np.ndarray, directions: np.ndarray) -> np.ndarray:
    return _ball_interval(origin - np.array([0, 0, 1], np.float32), directions, 1.0)[0]


def _ball_interval(
    origin: np.ndarray, directions: np.ndarray, radius: float
) -> tuple[np.ndarray, np.ndarray]:
    a = (directions * directions).sum(0)
    b = origin @ directions
    c = np.float32(origin @ origin - radius * radius)
    with np.errstate(invalid="ignore"):  # a negative root is a miss and becomes inf below
        root = np.sqrt(b * b - a * c)
    enter, leave = (-b - root) / a, (-b + root) / a
    return np.where(np.isnan(root), np.inf, enter), leave


def _slab(origin: float, direction: np.ndarray, low: float, high: float):
    with np.errstate(divide="ignore"):
        inverse = np.float32(1) / direction
    first, second = (low - origin) * inverse, (high - origin) * inverse
    return np.minimum(first, second), np.maximum(first, second)


def _cube_hit(origin: np.ndarray, directions: np.ndarray) -> np.ndarray:
    enter, leave = _slab(origin[2], directions[2], 0, 2 * CUBE)
    for axis in (0, 1):
        near, far = _slab(origin[axis], directions[axis], -CUBE, CUBE)
        enter, leave = np.maximum(enter, near), np.minimum(leave, far)
    return np.where(enter <= leave, enter, np.inf)


def _cylinder_hit(origin: np.ndarray, directions: np.ndarray) -> np.ndarray:
    a = directions[0] ** 2 + directions[1] ** 2
    b = origin[0] * directions[0] + origin[1] * directions[1]
    c = np.float32(origin[0] ** 2 + origin[1] ** 2 - TUBE**2)
    with np.errstate(invalid="ignore"):
        root = np.sqrt(b * b - a * c)
    near, far = _slab(origin[2], directions[2], 0, TUBE_HEIGHT)
    enter, leave = np.maximum(near, (-b - root) / a), np.minimum(far, (-b + root) / a)
    return np.where(enter <= leave, enter, np.inf)  # nan (a miss) compares as false


def _cone_hit(origin: np.ndarray, directions: np.ndarray) -> np.ndarray:
    # The base is never seen: the camera is above the table. The first root may be on the mirrored
    # upper cone, then the second one counts.
    k = np.float32((CONE / CONE_HEIGHT) ** 2)
    x, y, z = origin[0], origin[1], origin[2] - CONE_HEIGHT
    dx, dy, dz = directions
    a = dx * dx + dy * dy - k * dz * dz
    b = x * dx + y * dy - k * z * dz
    c = np.float32(x * x + y * y - k * z * z)
    with np.errstate(invalid="ignore"):
        root = np.sqrt(b * b - a * c)
        first, second = (-b - root) / a, (-b + root) / a
        first, second = np.minimum(first, second), np.maximum(first, second)
        z_first, z_second = z + first * dz, z + second * dz
        good_first = (z_first <= 0) & (z_first >= -CONE_HEIGHT)
        good_second = (z_second <= 0) & (z_second >= -CONE_HEIGHT)
    return np.where(good_first, first, np.where(good_second, second, np.inf))


def _torus_hit(origin: np.ndarray, directions: np.ndarray) -> np.ndarray:
    # Sphere tracing: steps by the distance to the ring never pass through it.
    outer = RING + RING_TUBE
    lifted = origin - np.array([0, 0, outer], np.float32)
    enter, leave = _ball_interval(lifted, directions, outer)
    result = np.full(enter.shape, np.inf, np.float32)
    alive = np.flatnonzero(np.isfinite(enter))
    if alive.size == 0:
        return result
    rays = directions[:, alive]
    speed = 1 / np.sqrt((rays * rays).sum(0))
    t, end = enter[alive], leave[alive]
    for step in range(28):
        gap = _torus_distance(origin[:, None] + t * rays)
        t = t + gap * speed
        if step % 4 == 3:
            hit = gap < 2e-3
            result[alive[hit]] = t[hit]
            going = ~hit & (t < end)
            if not going.any():
                break
            alive, rays, speed = alive[going], rays[:, going], speed[going]
            t, end = t[going], end[going]
    return result


def _sphere_normal(points: np.ndarray, bevel: float) -> np.ndarray:
    return points - np.array([[0], [0], [1]], np.float32)


def _cube_normal(points: np.ndarray, bevel: float) -> np.ndarray:
    offset = points - np.array([[0], [0], [CUBE]], np.float32)
    return np.sign(offset) * np.maximum(np.abs(offset) - (CUBE - bevel), 1e-5)


def _cylinder_normal(points: np.ndarray, bevel: float) -> np.ndarray:
    radial = np.sqrt(points[0] ** 2 + points[1] ** 2) + 1e-6
    side = np.maximum(radial - (TUBE - bevel), 0) / radial
    half = TUBE_HEIGHT / 2
    level = points[2] - half
    top = np.sign(level) * np.maximum(np.abs(level) - (half - bevel), 0)
    return np.stack([points[0] * side, points[1] * side, top + 1e-6])


def _cone_normal(points: np.ndarray, bevel: float) -> np.ndarray:
    radial = np.sqrt(points[0] ** 2 + points[1] ** 2) + 1e-6
    slope = np.full_like(radial, CONE / CONE_HEIGHT)
    return np.stack([points[0] / radial, points[1] / radial, slope])


def _torus_normal(points: np.ndarray, bevel: float) -> np.ndarray:
    z = points[2] - (RING + RING_TUBE)
    radial = np.sqrt(points[0] ** 2 + z * z) + 1e-6
    pull = 1 - RING / radial
    return np.stack([points[0] * pull, points[1], z * pull])


def _sphere_distance(points: np.ndarray) -> np.ndarray:
    return np.sqrt(points[0] ** 2 + points[1] ** 2 + (points[2] - 1) ** 2) - 1


def _cube_distance(points: np.ndarray) -> np.ndarray:
    x, y = np.abs(points[0]) - CUBE, np.abs(points[1]) - CUBE
    z = np.abs(points[2] - CUBE) - CUBE
    outside = np.sqrt(np.maximum(x, 0) ** 2 + np.maximum(y, 0) ** 2 + np.maximum(z, 0) ** 2)
    return outside + np.minimum(np.maximum(np.maximum(x, y), z), 0)


def _cylinder_distance(points: np.ndarray) -> np.ndarray:
    side = np.sqrt(points[0] ** 2 + points[1] ** 2) - TUBE
    level = np.abs(points[2] - TUBE_HEIGHT / 2) - TUBE_HEIGHT / 2
    outside = np.sqrt(np.maximum(side, 0) ** 2 + np.maximum(level, 0) ** 2)
    return outside + np.minimum(np.maximum(side, level), 0)


def _cone_distance(points: np.ndarray) -> np.ndarray:
    # A lower bound (exact beside the slope), which is all that shadows need.
    length = (CONE**2 + CONE_HEIGHT**2) ** 0.5
    radial = np.sqrt(points[0] ** 2 + points[1] ** 2)
    slope = radial * (CONE_HEIGHT / length) + (points[2] - CONE_HEIGHT) * (CONE / length)
    return np.maximum(slope, -points[2])


def _torus_distance(points: np.ndarray) -> np.ndarray:
    # The ring stands upright and shows its hole along y.
    z = points[2] - (RING + RING_TUBE)
    ring = np.sqrt(points[0] ** 2 + z * z) - RING
    return np.sqrt(ring * ring + points[1] ** 2) - RING_TUBE


SOLIDS: dict[str, Solid] = {
    "sphere": Solid(_sphere_hit, _sphere_normal, _sphere_distance, (1.0, 1.0, 2.0)),
    "cube": Solid(_cube_hit, _cube_normal, _cube_distance, (CUBE, CUBE, 2 * CUBE)),
    "cylinder": Solid(
        _cylinder_hit, _cylinder_normal, _cylinder_distance, (TUBE, TUBE, TUBE_HEIGHT)
    ),
    "cone": Solid(_cone_hit, _cone_normal, _cone_distance, (CONE, CONE, CONE_HEIGHT)),
    "torus": Solid(
        _torus_hit,
        _torus_normal,
        _torus_distance,
        (RING + RING_TUBE, RING_TUBE, 2 * (RING + RING_TUBE)),
    ),
}


def turn(obj: SceneObject) -> np.ndarray:
    """The rotation (3, 3) from the object's own axes to those of the world."""
    c, s = np.cos(obj.rotation), np.sin(obj.rotation)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]], np.float32)


def to_own(obj: SceneObject, points: np.ndarray) -> np.ndarray:
    """World points (3, ...) in the object's own coordinates."""
    scale = 1 / obj.radius
    c, s = np.float32(math.cos(obj.rotation) * scale), np.float32(math.sin(obj.rotation) * scale)
    x, y = points[0] - np.float32(obj.position[0]), points[1] - np.float32(obj.position[1])
    own = np.empty_like(points)
    own[0], own[1], own[2] = c * x + s * y, c * y - s * x, points[2] * np.float32(scale)
    return own


def centre(obj: SceneObject) -> np.ndarray:
    """The middle of the object in the world, (3,)."""
    half = SOLIDS[obj.shape].extent[2] / 2 * obj.radius
    return np.array([*obj.position, half], np.float32)


def corners(obj: SceneObject) -> np.ndarray:
    """The eight corners (8, 3) of the object's upright bounding box in the world."""
    x, y, z = SOLIDS[obj.shape].extent
    own = np.array([[i, j, k] for i in (-x, x) for j in (-y, y) for k in (0, z)], np.float32)
    return own * obj.radius @ turn(obj).T + np.array([*obj.position, 0], np.float32)


def footprint(obj: SceneObject) -> float:
    """Radius of the circle on the table that the object stands within, any rotation."""
    x, y, _ = SOLIDS[obj.shape].extent
    reach = (x * x + y * y) ** 0.5 if obj.shape in ("cube", "torus") else x
    return reach * obj.radius
