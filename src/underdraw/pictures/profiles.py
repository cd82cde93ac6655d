"""Colours as they are meant: a picture that carries an ICC profile, in sRGB."""

from __future__ import annotations

import io
import logging
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms

LOG = logging.getLogger("underdraw")
MOST_BYTES = 2**23
"""Of a profile; those of printing presses have some 3 MB."""
NEAR = 2
"""Of 255: a profile that moves no colour further is sRGB's own, and pixels stay as they are."""
MODES = {"RGB": "RGB", "CMYK": "CMYK", "GRAY": "L"}
"""By the space of a profile's numbers the mode that holds them."""


def in_srgb(name: str, picture: Image.Image) -> Image.Image:
    """A picture of 8 bits in sRGB, and without its profile; as it is where it has none, or one that
    cannot be read or belongs to other numbers, of which a note is logged.

    Args:
        name: of the argument, for the note.
    """
    profile = picture.info.get("icc_profile")
    if not profile:
        return picture
    alpha = None
    if picture.mode in ("P", "PA", "LA", "RGBA") or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        alpha, picture = rgba.getchannel("A"), rgba.convert("L" if picture.mode == "LA" else "RGB")
    try:
        transform = _transform(bytes(profile), picture.mode)
        made = picture if transform is None else ImageCms.applyTransform(picture, transform)
        assert made is not None  # it is, where nothing was to be changed in place
    except Exception as error:  # of files that strangers wrote, in a library of its own
        LOG.warning("%s: its colour profile is ignored (%s)", name, _told(error))
        made = picture
    made = made.copy() if made is picture else made
    if alpha is not None:
        made = made.convert("RGB")
        made.putalpha(alpha)
    for note in ("icc_profile", "transparency"):
        made.info.pop(note, None)
    return made


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> Any:
    """From the numbers of a profile to sRGB; None where they are the same.

    Raises:
        ValueError, PyCMSError, ImportError: it is none of these numbers, or none at all.
    """
    if len(profile) > MOST_BYTES:
        raise ValueError(f"{len(profile):,} bytes")
    source = ImageCms.getOpenProfile(io.BytesIO(profile))
    space = str(source.profile.xcolor_space).strip()
    if MODES.get(space) != mode:
        raise ValueError(f"it is for {space!r}, the picture's mode is {mode!r}")
    made = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    if mode != "CMYK":
        tried = Image.merge("RGB", [Image.fromarray(axis) for axis in _colours()])
        tried = tried if mode == "RGB" else tried.getchannel("R")
        found = np.asarray(ImageCms.applyTransform(tried, made)).astype(int)
        if np.abs(found - np.asarray(tried.convert("RGB"))).max() <= NEAR:
            return None
    return made


def _colours() -> np.ndarray:
    """Red, green and blue of 17 x 17 x 17 colours."""
    steps = np.linspace(0, 255, 17).round().astype(np.uint8)
    return np.stack(np.meshgrid(steps, steps, steps, indexing="ij")).reshape(3, 17, -1)


def _told(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]
