"""The size at which a model works, asked for or fitted to a picture."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from underdraw.cli.failures import note
from underdraw.errors import InputError

MOST_AREA = 2
"""How many times the pixels a model was trained on a long picture may have."""
CELL = 8
"""Pixels of which less than so many are cut from a side without a word."""


def shown(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


@dataclass(frozen=True)
class Size:
    """A size that was asked for: of both sides, of one, or about which."""

    height: int | None = None
    width: int | None = None
    about: int | None = None
    """The side of a square; pictures keep their proportions."""

    @property
    def given(self) -> bool:
        return self != Size()

    def sides(self, picture: bool) -> dict[str, int]:
        """Option -> side that is to be made exactly; of a picture one number is not."""
        if self.about is not None:
            return {} if picture else {"--size": self.about}
        named = {"--height": self.height, "--width": self.width}
        return {name: side for name, side in named.items() if side is not None}

    def exact(self) -> Size:
        """Where there is no picture whose proportions count."""
        return self if self.about is None else Size(self.about, self.about)


def wanted_size(size: str | None, height: int | None, width: int | None) -> Size:
    """The size that --size, --height and --width say.

    Raises InputError where they contradict each other.
    """
    if size is None:
        return Size(height, width)
    if height is not None or width is not None:
        raise InputError("--size does not go with --height and --width, which say the same")
    found = re.fullmatch(r"(\d{1,5})(?:[xX](\d{1,5}))?", size.strip())
    if found is None or 0 in map(int, filter(None, found.groups())):
        raise InputError(f"--size {size} is not HEIGHTxWIDTH, such as 128x192, or one number")
    if found[2] is None:
        return Size(about=int(found[1]))
    return Size(int(found[1]), int(found[2]))


def fitted_size(
    size: tuple[int, int], wanted: Size, trained: tuple[int, int], factor: int
) -> tuple[int, int]:
    """Width and height at which a model works on a picture.

    By default its shorter side is at most the side that the model was trained on, and it has at
    most twice as many pixels as it was; smaller pictures stay as they are.

    Args:
        size: width and height of the picture.
        trained: height and width.
        factor: of the autoencoder, of which sides are multiples.
    """
    width, height = size
    if wanted.height is not None or wanted.width is not None:
        scale = (wanted.height or 0) / height or (wanted.width or 0) / width
        wide, high = wanted.width or width * scale, wanted.height or height * scale
        return cells(wide, factor), cells(high, factor)
    side = wanted.about or math.sqrt(trained[0] * trained[1])
    most = MOST_AREA * side**2
    scale = min(side / min(size), math.sqrt(most / (width * height)))
    if wanted.about is None and scale >= 1:
        return max(width - width % factor, factor), max(height - height % factor, factor)
    wide, high = cells(width * scale, factor), cells(height * scale, factor)
    # A thin side was perhaps rounded up by much.
    if wide > high:
        return min(wide, max(int(most / high) // factor, 1) * factor), high
    return wide, min(high, max(int(most / wide) // factor, 1) * factor)


def cells(side: float, factor: int) -> int:
    """The nearest multiple of the autoencoder's factor."""
    return max(round(side / factor), 1) * factor


def fitted(picture: Any, size: tuple[int, int]) -> Any:
    """A picture in RGB at a width and height; what is too long for their proportions is cut off at
    both ends. It stays as it is where only the rest of a division is lost, as calls do that."""
    from PIL import ImageOps
    from PIL.Image import Resampling

    if alike(picture.size, size):
        return picture
    return ImageOps.fit(picture, size, Resampling.LANCZOS)


def alike(before: tuple[int, int], after: tuple[int, int]) -> bool:
    """Whether a size is another one rounded down."""
    return all(0 <= a - b < CELL for a, b in zip(before, after, strict=True))


def tell_fit(name: str, before: tuple[int, int], after: tuple[int, int], wanted: Size) -> None:
    """Say at what size a picture is worked on, where that is another than its own."""
    if alike(before, after):
        return
    why = "" if wanted.given else ", a size for this model; --size says otherwise"
    note(f"{name} ({shown(before)} pixels) is worked on at {shown(after)}{why}")


def of_call(pipe: Any, call: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width of what a call makes, in pixels."""
    if "image" in call and "mask_image" not in call:
        return call["image"].height, call["image"].width
    high, wide = trained_size(pipe)
    return call.get("height") or high, call.get("width") or wide


def trained_size(pipe: Any) -> tuple[int, int]:
    """Height and width in pixels that the UNet of a pipeline was trained on."""
    side, factor = pipe.unet.config.sample_size or 64, pipe.vae.config.factor
    high, wide = (side, side) if isinstance(side, int) else side
    return high * factor, wide * factor
