"""Ray tracing of a scene into a picture with its exact truth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from underdraw.errors import InputError

from . import surfaces
from .shading import AMBIENT, contact, lamp_colour, shade, shadow
from .solids import BEVEL, EDGED, SHARP, SOLIDS, centre, corners, to_own, turn
from .world import FOCAL, WALL_Y, Camera, Scene, SceneObject

SMALLEST = 64
FINE = 2  # samples per pixel and axis on objects; the floor is antialiased by its formulas


@dataclass(frozen=True)
class Rendering:
    """A picture and its truth; all arrays are (height, width, ...).

    `image`: float32 (height, width, 3), display values in [0, 1].
    `depth`: float32, metres along the camera's axis (z-depth), finite everywhere.
    `segmentation`: int32, 0 for table and wall, i + 1 for `scene.objects[i]`.
    `normals`: float32 (height, width, 3), unit, camera axes: x right, y up, z to the camera.
    `edges`: bool, pixels where object, depth or orientation changes.
    `boxes`: float32 (objects, 4), (x_min, y_min, x_max, y_max) of the visible pixels, in [0, 1] of
    width and height; zeros for an object of which no pixel is seen.
    `visible`: float32 (objects,), the part of each object's own outline that nothing hides, with
    what lies outside the frame counted as hidden.
    """

    image: np.ndarray
    depth: np.ndarray
    segmentation: np.ndarray
    normals: np.ndarray
    edges: np.ndarray
    boxes: np.ndarray
    visible: np.ndarray


class _Rays:
    """World directions of the rays through a grid of rows x columns, of length 1 along the
    camera's axis, so that a ray's parameter is the z-depth."""

    def __init__(self, camera: Camera, rows: int, columns: int) -> None:
        self.axes = camera.axes
        self.middle = (rows / 2 - 0.5, columns / 2 - 0.5)
        self.scale = np.float32(1 / (FOCAL * min(rows, columns)))

    def __call__(self, row: np.ndarray, column: np.ndarray) -> np.ndarray:
        """Rays (3, ...) of the samples at `row` and `column`, which broadcast together."""
        down = ((self.middle[0] - row) * self.scale).astype(np.float32)
        across = ((column - self.middle[1]) * self.scale).astype(np.float32)
        rays = np.empty((3, *np.broadcast_shapes(row.shape, column.shape)), np.float32)
        rays[0] = across
        rays[1] = self.axes[2, 1] + down * self.axes[1, 1]
        rays[2] = self.axes[2, 2] + down * self.axes[1, 2]
        return rays


@dataclass
class _Samples:
    """Which object each fine sample hits, and how far away. Windows are (top, bottom, left, right)
    in fine samples; `outline` counts the samples of each object as if it were alone."""

    ids: np.ndarray
    depth: np.ndarray
    windows: list[tuple[int, int, int, int]]
    outline: list[int]
    rays: _Rays


def render(scene: Scene, height: int = 128, width: int = 128) -> Rendering:
    """Draw `scene`; height and width are at least 64 and may differ.

    Rays are traced per object inside its screen window at 2 x 2 samples per pixel.

    Raises InputError (a ValueError) for a smaller or non-integer size.
    """
    for name, value in (("height", height), ("width", width)):
        if not isinstance(value, (int, np.integer)) or value < SMALLEST:
            raise InputError(f"{name}={value!r} is not an integer of at least {SMALLEST}")
    image, depth, normals = _background(scene, height, width)
    samples = trace(scene, height, width)
    shape = (3, height * FINE, width * FINE)
    colours, directions = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for index in range(len(scene.objects)):
        _paint(scene, index, samples, colours, directions)

    counts = [_pool(samples.ids == i + 1) for i in range(len(scene.objects))]
    segmentation = np.zeros((height, width), np.int32)
    best = np.full((height, width), FINE * FINE / 2 - 0.5, np.float32)
    covered = np.zeros((height, width), np.float32)
    for i, count in enumerate(counts):
        covered += count
        wins = count > best
        segmentation[wins] = i + 1
        best[wins] = count[wins]
    image = image * (1 - covered / (FINE * FINE)) + _pool(colours) / (FINE * FINE)
    np.sqrt(np.clip(image, 0, 1), out=image)

    # Depth and normals of a pixel come from the samples of the object that owns it.
    for i in range(len(scene.objects)):
        top, bottom, left, right = (edge // FINE for edge in samples.windows[i])
        window = np.s_[top:bottom, left:right]
        mine = segmentation[window] == i + 1
        if not mine.any():
            continue
        fine = np.s_[top * FINE : bottom * FINE, left * FINE : right * FINE]
        belongs = samples.ids[fine] == i + 1
        total = _pool(np.where(belongs, samples.depth[fine], 0))
        depth[window][mine] = total[mine] / counts[i][window][mine]
        facing = _pool(np.where(belongs, directions[(slice(None), *fine)], 0))[:, mine]
        normals[(slice(None), *window)][:, mine] = facing / np.sqrt((facing * facing).sum(0))
    boxes, visible = _truth(segmentation, samples, len(scene.objects))
    seen = np.tensordot(_camera_axes(scene.camera), normals, axes=1)
    return Rendering(
        image=np.ascontiguousarray(image.transpose(1, 2, 0)),
        depth=depth,
        segmentation=segmentation,
        normals=np.ascontiguousarray(seen.transpose(1, 2, 0)),
        edges=_edges(segmentation, depth, normals),
        boxes=boxes,
        visible=visible,
    )


def trace(scene: Scene, height: int, width: int, fine: int = FINE) -> _Samples:
    """First hits of all objects on a grid of `fine` x `fine` samples per pixel."""
    rows, columns = height * fine, width * fine
    camera = scene.camera
    samples = _Samples(
        ids=np.zeros((rows, columns), np.uint8),
        depth=np.full((rows, columns), np.inf, np.float32),
        windows=[],
        outline=[],
        rays=_Rays(camera, rows, columns),
    )
    for index, obj in enumerate(scene.objects):
        found = camera.project(corners(obj), rows, columns)
        # Whole pixels, so that pooling inside the window is pooling in the picture.
        left, top = (int(v) for v in np.floor(found.min(0) / fine) * fine)
        right, bottom = (int(v) for v in np.ceil(found.max(0) / fine) * fine)
        inside = (max(top, 0), min(bottom, rows), max(left, 0), min(right, columns))
        if inside[0] >= inside[1] or inside[2] >= inside[3]:
            samples.windows.append((0, 0, 0, 0))
            samples.outline.append(0)
            continue
        samples.windows.append(inside)
        own = turn(obj).T / np.float32(obj.radius)
        start = own @ (camera.origin - np.array([*obj.position, 0], np.float32))
        row, column = np.arange(top, bottom)[:, None], np.arange(left, right)[None]
        t = SOLIDS[obj.shape].intersect(start, own @ samples.rays(row, column).reshape(3, -1))
        t = t.reshape(bottom - top, right - left)
        samples.outline.append(int(np.isfinite(t).sum()))
        t = t[inside[0] - top : inside[1] - top, inside[2] - left : inside[3] - left]
        window = np.s_[inside[0] : inside[1], inside[2] : inside[3]]
        wins = t < samples.depth[window]
        samples.ids[window][wins] = index + 1
        samples.depth[window][wins] = t[wins]
    return samples


def _pool(fine: np.ndarray) -> np.ndarray:
    """Sum of each FINE x FINE block over the last two axes, float32."""
    fine = fine.astype(np.float32, copy=False)
    rows = fine[..., 0::FINE, :] + fine[..., 1::FINE, :]
    return rows[..., 0::FINE] + rows[..., 1::FINE]


def _background(scene: Scene, height: int, width: int):
    """Table and wall without the objects but with their shadows.

    Returns linear colour (3, height, width), z-depth (height, width), world normals (3, ...).
    """
    origin, rays = scene.camera.origin, _Rays(scene.camera, height, width)
    _, ray_y, ray_z = rays(np.arange(height), np.zeros(1))
    across = rays(np.zeros(1), np.arange(width))[0]
    # Depth is the same over a row: table and wall are both parallel to the x axis.
    with np.errstate(divide="ignore"):
        to_table = np.where(ray_z < 0, -origin[2] / ray_z, np.inf)
        to_wall = np.where(ray_y > 0, (WALL_Y - origin[1]) / ray_y, np.inf)
    on_table = to_table <= to_wall
    t = np.minimum(to_table, to_wall).astype(np.float32)[:, None]
    points = np.empty((3, height, width), np.float32)
    points[0] = origin[0] + t * across
    points[1] = np.minimum(origin[1] + t * ray_y[:, None], WALL_Y)
    points[2] = np.maximum(origin[2] + t * ray_z[:, None], 0)
    normals = np.zeros((3, height, width), np.float32)
    normals[2, on_table], normals[1, ~on_table] = 1, -1

    # A pixel on the table is longer than wide; half of that is a fair blur for both axes.
    blur = t * rays.scale * np.maximum(1, 0.5 / np.maximum(np.abs(ray_z[:, None]), 0.1))
    albedo = np.empty((3, height, width), np.float32)
    table, wall = np.flatnonzero(on_table), np.flatnonzero(~on_table)
    x, y, z = points
    albedo[:, table] = surfaces.floor_albedo(scene.floor, x[table], y[table], blur[table])
    albedo[:, wall] = surfaces.wall_albedo(scene.floor.tone, z[wall])

    flat = points.reshape(3, -1)
    lit = np.ones(height * width, np.float32)
    ambient = np.ones(height * width, np.float32)
    for obj in scene.objects:
        lit *= shadow(flat, obj, scene.light)
        ambient *= contact(flat, obj)
    towards = scene.light.direction
    facing = np.where(on_table, towards[2], max(0.0, -towards[1]) * 0.6 + 0.15)
    facing = facing.astype(np.float32)[:, None]
    # The lamp's pool of light fades towards the sides; a dark line where table meets wall.
    pool = 1 - np.float32(0.022) * (x * x + 0.6 * y * y)
    seam = 1 - 0.35 * np.exp(-4 * (WALL_Y - y + z))
    amount = facing * np.maximum(pool, 0.5) * lit.reshape(height, width)
    ambient = ambient.reshape(height, width) * AMBIENT
    light = lamp_colour(scene.light)[:, :, None] * amount + ambient
    return albedo * light * seam, np.repeat(t, width, axis=1), normals


def _paint(
    scene: Scene, index: int, samples: _Samples, colours: np.ndarray, directions: np.ndarray
) -> None:
    """Shade the visible fine samples of one object into `colours` and `directions`, in place."""
    obj = scene.objects[index]
    top, bottom, left, right = samples.windows[index]
    row, column = np.nonzero(samples.ids[top:bottom, left:right] == index + 1)
    if row.size == 0:
        return
    row, column = row + top, column + left
    rays = samples.rays(row, column)
    points = scene.camera.origin[:, None] + rays * samples.depth[row, column]
    rotation = turn(obj)
    own = to_own(obj, points)
    bent = _unit(SOLIDS[obj.shape].normal(own, BEVEL))
    sharp = _unit(SOLIDS[obj.shape].normal(own, SHARP)) if obj.shape in EDGED else bent
    normals = rotation @ bent
    views = _unit(-rays)
    if obj.texture is None:
        albedo = surfaces.LINEAR[obj.colour][:, None]
    else:
        albedo = surfaces.texture_albedo(obj.texture, obj.colour, own, sharp)
    if obj.material == "frosted":
        albedo = surfaces.frosted(albedo, points[2] / np.float32(2 * centre(obj)[2]))
    lit = np.ones(row.size, np.float32)
    for other in scene.objects:
        if other is not obj and _may_shadow(other, obj, scene):
            lit *= shadow(points, other, scene.light)

    def mirrored(which: np.ndarray, directions: np.ndarray) -> np.ndarray:
        far = np.minimum(-points[2, which] / directions[2], 6)
        x, y, _ = points[:, which] + far * directions
        return surfaces.floor_albedo(scene.floor, x, y, np.float32(0.03) + 0.02 * far)

    floor = surfaces.floor_mean(scene.floor)[:, None]
    shaded = shade(
        obj.material, albedo, normals, views, points[2], lit, scene.light, floor, mirrored
    )
    np.clip(shaded, 0, 1, out=shaded)  # before averaging, so that highlights keep smooth edges
    colours[:, row, column] = shaded
    directions[:, row, column] = rotation @ sharp


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors (3, n) at length 1."""
    x, y, z = vectors
    return vectors / np.sqrt(x * x + y * y + z * z)


def _may_shadow(caster: SceneObject, receiver: SceneObject, scene: Scene) -> bool:
    offset = centre(caster) - centre(receiver)
    along = float(scene.light.direction @ offset)
    apart = max(float(offset @ offset) - along * along, 0.0) ** 0.5
    reach = 1.35 * (caster.radius + receiver.radius)
    return along > -reach and apart < reach + scene.light.softness * max(along, 0)


def _camera_axes(camera: Camera) -> np.ndarray:
    right, up, forward = camera.axes
    return np.stack([right, up, -forward])


def _edges(segmentation: np.ndarray, depth: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """Pixels whose right or lower neighbour is another object, surface or orientation."""
    edges = np.zeros(segmentation.shape, bool)
    for here, there in (
        (np.s_[:, :-1], np.s_[:, 1:]),
        (np.s_[:-1, :], np.s_[1:, :]),
    ):
        a, b = (slice(None), *here), (slice(None), *there)
        bend = (normals[a] * normals[b]).sum(0) < 0.75
        jump = np.abs(depth[here] - depth[there]) > 0.04 * depth[here]
        edges[here] |= (segmentation[here] != segmentation[there]) | bend | jump
    return edges


def _truth(segmentation: np.ndarray, samples: _Samples, count: int):
    height, width = segmentation.shape
    boxes, visible = np.zeros((count, 4), np.float32), np.zeros(count, np.float32)
    for i in range(count):
        mine = segmentation == i + 1
        columns, rows = np.flatnonzero(mine.any(0)), np.flatnonzero(mine.any(1))
        if columns.size:
            boxes[i] = (
                columns[0] / width,
                rows[0] / height,
                (columns[-1] + 1) / width,
                (rows[-1] + 1) / height,
            )
        if samples.outline[i]:
            visible[i] = (samples.ids == i + 1).sum() / samples.outline[i]
    return boxes, visible
