"""PIL pictures of every mode as plain 8-bit pixels that show what the picture shows.

All pictures come through here before anything else is done with them: from callers, from files,
as masks, in boxes. `Image.convert` alone cuts 16-bit greys off at 255, drops transparency, and
knows no way from L*a*b*.
"""

from __future__ import annotations

from functools import cache
from math import prod
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageFile, ImageOps

from underdraw.errors import InputError
from underdraw.pictures import profiles

MOST_PIXELS = 2**26
"""Of one picture, 8192 x 8192: to read as many takes some seconds and 2 GB."""

ORIENTATION = 0x0112  # the EXIF tag: 1 upright, 5 to 8 lying on a side
# What stands for white in modes whose numbers have no end of their own: the first that holds all.
RANGES = {"I": (255, 65535), "F": (1, 255, 65535)}


def check_sides(name: str, width: int, height: int) -> None:
    """Raise InputError for a picture without pixels, or with more than `MOST_PIXELS`."""
    if width < 1 or height < 1:
        raise InputError(f"{name} is {width} x {height} pixels, so empty")
    if width * height > MOST_PIXELS:
        raise InputError(
            f"{name} is {width:,} x {height:,} pixels; allowed: {MOST_PIXELS:,} in all, such as "
            "8,192 x 8,192"
        )


def check_pixels(name: str, shape: tuple[int, ...]) -> None:
    """Raise InputError for an array that is larger than pictures may be; wherever its channels
    are."""
    sides = sorted(shape[-3:])[-2:]
    if len(sides) == 2 and prod(sides) > MOST_PIXELS:
        raise InputError(f"{name} has shape {shape}; allowed: {MOST_PIXELS:,} pixels")


def plain(name: str, picture: Image.Image) -> Image.Image:
    """A picture in RGB; what shows through is white.

    Greys of 16 bits are scaled to 8; those in mode "I" or "F" have no fixed range, so white is the
    smallest of 1 ("F" only), 255 and 65535 that no number exceeds. Colours of an ICC profile that
    the picture carries become those of sRGB. An animated picture is its
    present frame. A picture file as `Image.open` gives it is turned as its EXIF orientation says;
    what was made from one has the pixels that it has.

    Args:
        name: of the argument, for errors.

    Raises:
        InputError: no pixels, too many (told before any is decoded), damaged, or numbers outside
            of every range.
    """
    return _eight_bits(name, profiles.in_srgb(name, upright(name, picture)), "white").convert("RGB")


def as_mask(name: str, picture: Image.Image) -> Image.Image:
    """A mask in "L" or "RGB", whose brightness counts; what shows through is black, so not set.

    Raises:
        InputError: likewise; or it tells nothing but by its transparency.
    """
    mask = _eight_bits(name, picture, "black")
    return mask if mask.mode in ("L", "RGB") else mask.convert("L")


def numbers(name: str, picture: Image.Image) -> np.ndarray:
    """Whole numbers `(height, width)` which a picture holds as greys, of any size, or as indices of
    its palette.

    Raises:
        InputError: likewise; or it has colours, or fractions.
    """
    picture = upright(name, picture)
    mode, values = picture.mode, np.asarray(picture)
    if mode in ("LA", "PA"):
        return values[..., 0]
    if mode == "1":
        return values.astype(np.uint8)
    if mode == "F" and np.isfinite(values).all() and (values == values.round()).all():
        return values.astype(np.int64)
    if mode in ("L", "P", "I") or mode.startswith("I;16"):
        return values
    if mode in ("RGB", "RGBA", "RGBX") and (values[..., :3] == values[..., :1]).all():
        return values[..., 0]
    raise InputError(
        f"{name} has colours or fractions (mode {mode!r}); allowed: whole numbers as greys, or as "
        "indices of a palette"
    )


def upright(name: str, picture: Image.Image) -> Image.Image:
    """A picture in its own mode, its pixels decoded; a file as people see it."""
    check_sides(name, *picture.size)
    turned = orientation(picture)
    try:
        picture.load()
        return ImageOps.exif_transpose(picture) if turned != 1 else picture
    except Exception as error:  # decoders of damaged files raise whatever they stumble over
        raise InputError(f"{name} cannot be read: {first_line(error)}") from None


def orientation(picture: Any) -> int:
    """The EXIF orientation, 1 to 8, by which a picture file is to be turned; 1 for what is none."""
    # Pillow turns TIFF itself.
    if not isinstance(picture, ImageFile.ImageFile) or picture.format == "TIFF":
        return 1
    try:
        found = picture.getexif().get(ORIENTATION, 1)
    except Exception:  # a damaged note is no reason to refuse a picture
        return 1
    return found if found in range(1, 9) else 1


def upright_size(picture: Image.Image) -> tuple[int, int]:
    """Width and height of `upright`; decodes nothing."""
    width, height = picture.size
    return (height, width) if orientation(picture) > 4 else (width, height)


def unit(x: np.ndarray) -> np.ndarray:
    """Float32 of an array: uint8 and uint16 over their whole range in [0, 1] (of the latter, labels
    0 and 1 stay), other numbers as they are."""
    most = 255 if x.dtype == np.uint8 else 1
    if x.dtype == np.uint16 and x.size and x.max() > 1:
        most = 65535
    return x.astype(np.float32) / np.float32(most)


def first_line(error: BaseException) -> str:
    """What an error says, in one short line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]


def _eight_bits(name: str, picture: Image.Image, behind: str) -> Image.Image:
    picture = upright(name, picture)
    mode = picture.mode
    if mode in RANGES or mode.startswith("I;16"):
        return Image.fromarray(_scaled(name, picture))
    if mode == "LAB":
        return _from_lab(name, picture)
    if mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in picture.info:
        return _without_alpha(name, picture, behind)
    return picture


def _scaled(name: str, picture: Image.Image) -> np.ndarray:
    values, mode = np.asarray(picture), picture.mode
    low, high = values.min(), values.max()
    ranges = RANGES.get(mode, (65535,))
    most = next((most for most in ranges if high <= most), None)
    # Slightly above 1 is neither: of 255 it would be black.
    if not low >= 0 or most is None or (mode == "F" and 1 < high < 2):  # false for NaN, too
        allowed = ", ".join(f"0 .. {most}" for most in ranges)
        raise InputError(
            f"{name} has mode {mode!r} with numbers from {low:g} to {high:g}; allowed: {allowed}"
        )
    return (values.astype(np.float32) * np.float32(255 / most)).round().astype(np.uint8)


def _without_alpha(name: str, picture: Image.Image, behind: str) -> Image.Image:
    straight = {"La": "LA", "RGBa": "RGBA"}.get(picture.mode)
    rgba = (picture.convert(straight) if straight else picture).convert("RGBA")
    alpha = np.asarray(rgba.getchannel("A"))
    lowest, highest = int(alpha.min()), int(alpha.max())
    if lowest == 255:
        return picture.convert("RGB") if straight is None else rgba.convert("RGB")
    shown = Image.new("RGBA", rgba.size, behind)
    shown.alpha_composite(rgba)
    shown = shown.convert("RGB")
    if behind == "black" and lowest < highest and shown.getbbox() is None:
        raise InputError(
            f"{name} is black wherever it is not transparent, so its brightness sets nothing; to "
            f'use its transparency give {name}.getchannel("A")'
        )
    return shown


@cache
def _lab_to_rgb() -> Any:
    lab, srgb = (ImageCms.createProfile(kind) for kind in ("LAB", "sRGB"))
    return ImageCms.buildTransform(lab, srgb, "LAB", "RGB")


def _from_lab(name: str, picture: Image.Image) -> Image.Image:
    try:
        made = ImageCms.applyTransform(picture, _lab_to_rgb())
    except (ImportError, ImageCms.PyCMSError) as error:  # a Pillow built without Little CMS
        raise InputError(f"{name} has mode 'LAB'; convert it first ({error})") from None
    assert made is not None  # it is, where nothing was to be changed in place
    return made
