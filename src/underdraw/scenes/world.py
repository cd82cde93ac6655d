"""What a scene is, as plain values.

Axes: x to the right, y away from the camera, z up; the table is the plane z = 0 and the origin is
in the middle of the picture. Lengths are in scene units, called metres: the table shows about 4.5
from left to right. Angles are in radians.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from underdraw.errors import InputError

from . import vocabulary
from .vocabulary import check_choice

MAX_OBJECTS = 4
WALL_Y = 3.6
FOCAL = 2.0  # focal length over the shorter side of the picture: 28 degrees across


@dataclass(frozen=True)
class Texture:
    """A surface pattern in two colours that makes an object a subject, unlike all others.

    `frequency` counts pattern periods per object radius (about 1 to 4); `seed` turns and shifts it.
    """

    kind: str
    second: str
    frequency: float = 2.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("Texture.kind", self.kind, vocabulary.TEXTURES)
        check_choice("Texture.second", self.second, vocabulary.COLOURS)
        if not 0.5 <= self.frequency <= 6:
            raise InputError(f"Texture.frequency={self.frequency!r} is not in [0.5, 6]")


@dataclass(frozen=True)
class SceneObject:
    """One solid standing on the table.

    `position` is (x, y) of its foot on the table, `rotation` its turn about the vertical axis.
    With a `texture`, `colour` is the first of the two colours.
    """

    shape: str
    colour: str
    material: str
    size: str
    position: tuple[float, float]
    rotation: float = 0.0
    texture: Texture | None = None

    def __post_init__(self) -> None:
        check_choice("SceneObject.shape", self.shape, vocabulary.SHAPES)
        check_choice("SceneObject.colour", self.colour, vocabulary.COLOURS)
        allowed = vocabulary.MATERIALS + vocabulary.UNSEEN_MATERIALS
        check_choice("SceneObject.material", self.material, allowed)
        check_choice("SceneObject.size", self.size, vocabulary.SIZES)
        numbers = (*self.position, self.rotation)
        if len(self.position) != 2 or not all(math.isfinite(n) for n in numbers):
            raise InputError(
                f"SceneObject.position={self.position!r}, rotation={self.rotation!r}: position is "
                "two finite numbers, rotation one"
            )

    @property
    def radius(self) -> float:
        """The length that one unit of the solid's own coordinates has on the table."""
        return vocabulary.RADIUS[self.size]


@dataclass(frozen=True)
class Floor:
    """The table top: a pattern, its lightness `tone` in [0, 1], its turn and a seed."""

    kind: str = "plain"
    tone: float = 0.6
    angle: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("Floor.kind", self.kind, vocabulary.FLOORS)
        if not 0 <= self.tone <= 1:
            raise InputError(f"Floor.tone={self.tone!r} is not in [0, 1]")


@dataclass(frozen=True)
class Light:
    """A distant lamp: azimuth 0 is behind the camera, positive is to the right of it.

    `softness` is the tangent of the lamp's angular radius: how fast shadows blur with distance.
    """

    kind: str = "neutral"
    azimuth: float = -0.8
    elevation: float = 0.85
    softness: float = 0.12

    def __post_init__(self) -> None:
        check_choice("Light.kind", self.kind, vocabulary.LIGHTS)
        if not 0.2 <= self.elevation <= math.pi / 2:
            raise InputError(f"Light.elevation={self.elevation!r} is not in [0.2, pi/2]")
        if not 0.01 <= self.softness <= 0.5:
            raise InputError(f"Light.softness={self.softness!r} is not in [0.01, 0.5]")

    @property
    def direction(self) -> np.ndarray:
        """Unit vector (3,) from the table towards the lamp."""
        flat = math.cos(self.elevation)
        x, y = math.sin(self.azimuth) * flat, -math.cos(self.azimuth) * flat
        return np.array([x, y, math.sin(self.elevation)], np.float32)


@dataclass(frozen=True)
class Camera:
    """Looks along +y and down by `pitch` at (target_x, 0, 0.5) from `distance` away."""

    pitch: float = 0.5
    distance: float = 9.0
    target_x: float = 0.0

    def __post_init__(self) -> None:
        if not 0.2 <= self.pitch <= 1.2:
            raise InputError(f"Camera.pitch={self.pitch!r} is not in [0.2, 1.2]")
        if not 5 <= self.distance <= 20:
            raise InputError(f"Camera.distance={self.distance!r} is not in [5, 20]")

    @property
    def origin(self) -> np.ndarray:
        """Where the camera is, (3,)."""
        y, z = -math.cos(self.pitch) * self.distance, math.sin(self.pitch) * self.distance + 0.5
        return np.array([self.target_x, y, z], np.float32)

    @property
    def axes(self) -> np.ndarray:
        """Rows right, up, forward: unit vectors, (3, 3)."""
        c, s = math.cos(self.pitch), math.sin(self.pitch)
        return np.array([[1, 0, 0], [0, s, c], [0, c, -s]], np.float32)

    def project(self, points: np.ndarray, height: int, width: int) -> np.ndarray:
        """World points (n, 3) to pixel coordinates (n, 2), x first, (0, 0) the top left corner.

        The shorter side fixes the focal length, so what fits a square picture fits every other.
        """
        seen = (np.asarray(points, np.float32) - self.origin) @ self.axes.T
        scale = FOCAL * min(height, width) / seen[:, 2]
        return np.stack([width / 2 + scale * seen[:, 0], height / 2 - scale * seen[:, 1]], axis=1)


@dataclass(frozen=True)
class Scene:
    """Up to four objects on a table, the light and the camera."""

    objects: tuple[SceneObject, ...]
    floor: Floor = field(default_factory=Floor)
    light: Light = field(default_factory=Light)
    camera: Camera = field(default_factory=Camera)

    def __post_init__(self) -> None:
        if not isinstance(self.objects, tuple) or len(self.objects) > MAX_OBJECTS:
            raise InputError(
                f"Scene.objects={self.objects!r} is not a tuple of at most {MAX_OBJECTS} objects"
            )
        forward = self.camera.axes[2]
        for index, obj in enumerate(self.objects):
            foot = np.array([*obj.position, 0], np.float32)
            near = float(forward @ (foot - self.camera.origin)) - 2 * obj.radius
            if near < 0.5 or abs(obj.position[0]) > 20 or obj.position[1] > WALL_Y - obj.radius:
                raise InputError(
                    f"Scene.objects[{index}].position={obj.position!r} is not on the table between "
                    f"the camera at {self.camera.origin.tolist()} and the wall at y={WALL_Y}"
                )
