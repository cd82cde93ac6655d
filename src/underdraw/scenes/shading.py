"""Light: soft shadows, and what rubber and metal send to the camera. All in linear light."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from .solids import SOLIDS, centre, to_own
from .world import Light, SceneObject

KEY = np.float32(1.0)
AMBIENT = np.float32(0.38)
WARMTH: dict[str, tuple[float, float, float]] = {
    "neutral": (1.0, 1.0, 1.0),
    "warm": (1.12, 0.99, 0.84),
    "cool": (0.90, 0.99, 1.13),
}
SHADOW_SAMPLES = 7


def lamp_colour(light: Light) -> np.ndarray:
    """Linear colour (3, 1) of the lamp."""
    return KEY * np.array(WARMTH[light.kind], np.float32)[:, None]


def shadow(points: np.ndarray, caster: SceneObject, light: Light) -> np.ndarray:
    """How much of the lamp is seen past `caster` from `points` (3, n): (n,) in [0, 1].

    An area light, approximated by the least angular clearance that the ray to the lamp's middle
    has from the caster: the penumbra widens with the distance from it.
    """
    towards, soft = light.direction, np.float32(light.softness)
    middle = centre(caster)
    reach = np.float32(np.sqrt(sum(e * e for e in SOLIDS[caster.shape].extent[:2])) + 0.35)
    reach = max(reach, np.float32(1.1)) * np.float32(caster.radius)
    offset = middle[:, None] - points
    along = towards @ offset
    apart = (offset * offset).sum(0) - along * along
    wide = reach + soft * np.maximum(along, 0)
    near = np.flatnonzero((apart < wide * wide) & (along > -reach))
    visible = np.ones(points.shape[1], np.float32)
    if near.size == 0:
        return visible
    along, wide = along[near], wide[near]
    half = np.sqrt(wide * wide - apart[near])
    start, stop = np.maximum(along - half, 0.02), np.maximum(along + half, 0.05)
    steps = np.linspace(0, 1, SHADOW_SAMPLES, dtype=np.float32)[:, None]
    origins = points[:, near]

    def clearance(t: np.ndarray) -> np.ndarray:
        """Half the lamp's width is 1; rays (samples, n) that pass by more than that see it all."""
        own = to_own(caster, origins[:, None] + towards[:, None, None] * t)
        gap = SOLIDS[caster.shape].distance(own) * np.float32(caster.radius)
        return gap / (soft * t + np.float32(0.02))

    # Coarsely along the ray, then finely about the closest sample: without the second look the
    # shadows of flat faces have scalloped edges.
    coarse = clearance(start + steps * (stop - start))
    gap = (stop - start) / (SHADOW_SAMPLES - 1)
    closest = start + coarse.argmin(0) * gap
    fine = np.array([-0.67, -0.33, 0.33, 0.67], np.float32)[:, None]
    refined = clearance(np.clip(closest + fine * gap, start, stop).astype(np.float32))
    least = np.minimum(coarse.min(0), refined.min(0))
    least = np.clip(least * np.float32(0.5) + np.float32(0.5), 0, 1)
    visible[near] = least * least * (3 - 2 * least)
    return visible


def contact(points: np.ndarray, obj: SceneObject) -> np.ndarray:
    """Ambient light (n,) in [0, 1] left on table points (3, n) beside an object."""
    offset = points[:2] - np.array(obj.position, np.float32)[:, None]
    reach = np.float32(2.4 * obj.radius)
    near = np.flatnonzero((offset * offset).sum(0) < reach * reach)
    left = np.ones(points.shape[1], np.float32)
    if near.size:
        own = to_own(obj, points[:, near])
        own[2] += np.float32(0.12)  # just above the table, where the object's belly is felt
        gap = np.maximum(SOLIDS[obj.shape].distance(own), 0)
        fade = np.maximum(1 - gap / np.float32(1.0), 0)
        left[near] = 1 - np.float32(0.55) * fade * fade
    return left


def shade(
    material: str,
    albedo: np.ndarray,
    normals: np.ndarray,
    views: np.ndarray,
    heights: np.ndarray,
    lit: np.ndarray,
    light: Light,
    floor: np.ndarray,
    mirrored: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> np.ndarray:
    """Linear colour (3, n) that a surface sends to the camera.

    `albedo` (3, n) or (3, 1); unit `normals` and `views` (surface to camera) (3, n); `heights`
    above the table and `lit` (what shadows leave of the lamp) (n,); `floor` (3, 1) is the table's
    mean colour, which comes back from below; `mirrored(which, directions)` is the colour
    (3, k) of the table where mirror `directions` (3, k) of the points `which` (k,) meet it.
    """
    if material == "satin":
        return sum(
            shade(one, albedo, normals, views, heights, lit, light, floor, mirrored)
            for one in ("rubber", "metal")
        ) * np.float32(0.5)
    towards = light.direction
    lamp = lamp_colour(light)
    facing = towards @ normals
    up = normals[2]
    diffuse = np.maximum(facing, 0) * lit
    # The sky above, the table below, less of either near the table where the object stands.
    near_table = np.minimum(heights * np.float32(1.6) + np.float32(0.45), 1)
    sky = AMBIENT * (0.62 + 0.38 * up) + 0.6 * floor * (0.5 - 0.5 * up)
    sky = sky * near_table
    # The highlight of the lamp, by the half vector.
    half = towards[:, None] + views
    half /= np.sqrt((half * half).sum(0))
    glint = np.maximum((half * normals).sum(0), 0)
    if material != "metal":
        broad = glint**2
        broad = broad * broad
        broad = broad * broad
        broad = broad * broad  # power 16
        return albedo * (lamp * diffuse + sky) + lamp * (np.float32(0.05) * broad * lit)

    # Metal mirrors the table and a made-up room: a bright ceiling, dark walls, two upright strips
    # of light. The tint of the mirror image is what keeps its colour readable.
    cosine = (normals * views).sum(0)
    mirror = 2 * cosine * normals - views
    rise = mirror[2]
    room = np.float32(0.14) + np.float32(0.85) * np.clip(rise * 1.2, 0, 1) ** 2
    room = np.repeat(room[None], 3, axis=0)
    down = np.flatnonzero(rise < 0)
    fade = np.clip(-rise[down] * 5, 0, 1) * near_table[down]
    room[:, down] += fade * (1.15 * mirrored(down, mirror[:, down]) - np.float32(0.06))
    for offset, strength in ((1.2, 0.75), (-1.0, 0.5)):
        angle = light.azimuth + offset
        strip = np.float32(math.sin(angle)) * mirror[0] - np.float32(math.cos(angle)) * mirror[1]
        strip = np.clip((strip - 0.68) * 7, 0, 1) * np.clip((rise + 0.75) * 4, 0, 1)
        room += np.float32(strength) * strip
    edge = np.clip(1 - cosine, 0, 1)
    edge = edge * edge
    edge = edge * edge * np.float32(0.35)
    tight = glint**4
    tight = tight**4
    tight = tight * tight * tight  # power 48
    wide = glint**4
    wide = wide * wide
    colour = albedo * (lamp * (0.32 * diffuse) + 0.30 * sky + 1.05 * room) + edge * room
    gleam = np.clip(tight * 3.2 - 0.25, 0, 2.2) * lit
    return colour + lamp * (gleam + (albedo + 0.06) * (0.30 * wide * lit))
