"""Boxes that hold a phrase or an image, and a style: the values of grounded generation.

Li et al. 2023 (GLIGEN). How they act is in `controls.grounding`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite
from numbers import Real
from typing import Any, NamedTuple

from underdraw.controls.control import Control, Part
from underdraw.controls.pictures import as_picture
from underdraw.errors import InputError, InputTypeError

MOST = 30
"""Boxes of one image: the layers were trained with as many tokens."""
NOWHERE = (0.0, 1.0, 0.0, 1.0)
"""The box without extent under which the layers know a style."""

Corners = tuple[float, float, float, float]
"""`(x_min, y_min, x_max, y_max)`: fractions of the image's width and height."""


class Entry(NamedTuple):
    """One thing that is grounded. None: the layers' null feature stands for it."""

    phrase: str | None
    image: Any
    box: Corners


class Grounded(Part):
    """What a layout is made of."""

    entry: Entry

    @staticmethod
    def whole(parts: Sequence[Any]) -> Control:
        """The layout of the boxes that a run was given."""
        from underdraw.controls.grounding import one_layout

        return one_layout(parts)


@dataclass(frozen=True)
class Box(Grounded):
    """What is to be seen where: `Box("a red ball", (0.1, 0.2, 0.4, 0.6))`.

    Args:
        phrase: names it.
        box: `(x_min, y_min, x_max, y_max)`, fractions of the image's width and height in [0, 1].
        image: shows it, instead of a phrase or beside one: a PIL image, or an array, uint8 or in
            [0, 1]: of numpy `(height, width, 3)`, of a framework `(3, height, width)`. Needs
            grounding weights that know images.

    Raises:
        InputError, InputTypeError: neither phrase nor image, or no such box.
    """

    phrase: str | None = None
    box: Sequence[float] = ()
    image: Any = None

    def __post_init__(self) -> None:
        if self.phrase is None and self.image is None:
            raise InputError(f"Box(box={self.box}) has neither phrase nor image; give one or both")
        if self.phrase is not None and not isinstance(self.phrase, str):
            raise InputTypeError(f"Box(phrase={self.phrase!r:.100}) is not a string")
        object.__setattr__(self, "box", check_box("Box(box)", self.box))
        if self.image is not None:
            object.__setattr__(self, "image", as_picture("Box(image)", self.image))

    @property
    def entry(self) -> Entry:
        """As the layers take it."""
        return Entry(self.phrase, self.image, check_box("Box(box)", self.box))


@dataclass(frozen=True)
class Style(Grounded):
    """An image whose look the whole picture takes, beside boxes or alone.

    Args:
        image: a PIL image or an array, as in `Box`.
    """

    image: Any

    def __post_init__(self) -> None:
        object.__setattr__(self, "image", as_picture("Style(image)", self.image))

    @property
    def entry(self) -> Entry:
        """As the layers take it."""
        return Entry(None, self.image, NOWHERE)


def check_box(name: str, box: Any) -> Corners:
    """Four numbers in [0, 1] with an area.

    Raises:
        InputError, InputTypeError: they are not; the message says which one.
    """
    if hasattr(box, "tolist"):
        box = box.tolist()
    if not isinstance(box, list | tuple):
        raise InputTypeError(f"{name}={box!r:.100} is not (x_min, y_min, x_max, y_max)")
    if len(box) != 4:
        raise InputError(f"{name}={box!r:.100} has {len(box)} numbers; needed are four")
    for value in box:
        if isinstance(value, bool) or not isinstance(value, Real):
            raise InputTypeError(f"{name}={box!r:.100} holds {value!r}, which is not a number")
        if not (isfinite(value) and 0 <= float(value) <= 1):
            raise InputError(
                f"{name}={box!r:.100} holds {value}; allowed: fractions of the image in 0 .. 1"
            )
    x0, y0, x1, y1 = map(float, box)
    for axis, low, high in (("x", x0, x1), ("y", y0, y1)):
        if low >= high:
            raise InputError(
                f"{name}={box!r:.100} has {axis}_max={high} not above {axis}_min={low}"
            )
    return x0, y0, x1, y1


def check_parts(name: str, boxes: Any, most: int = MOST) -> tuple[Grounded, ...]:
    """At most `most` boxes and styles.

    Raises:
        InputError, InputTypeError: more, or something else.
    """
    if isinstance(boxes, str) or not isinstance(boxes, Iterable):
        raise InputTypeError(f"{name}={boxes!r:.100} is not a list of Box and Style")
    parts = tuple(boxes)
    for part in parts:
        if not isinstance(part, Grounded):
            raise InputTypeError(f"{name} holds {part!r:.100}, which is neither Box nor Style")
    if len(parts) > most:
        raise InputError(f"{name} has {len(parts)} entries; allowed: at most {most}")
    return parts
