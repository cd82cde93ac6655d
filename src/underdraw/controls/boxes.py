"""Boxes that hold a phrase or an image, a style, and layouts of them: grounded generation.

Li et al. 2023 (GLIGEN). The boxes of an image share one attention, so those that a run is given
form one `Layout`; `PerImage` gives every image of a batch its own. Their tokens, and what each
layer makes of them, are computed once per run (`controls.grounding`). Under guidance the
unconditional half sees null tokens, as in training without boxes.

The trained part is the pipeline's (`load_grounding`). Nothing is set on a model, and a call in
which the strength is 0 is a plain call.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from underdraw import checks
from underdraw.backends.contract import Array, Operations
from underdraw.checks import shown
from underdraw.controls.control import Call, Control, Part, Planned, Run
from underdraw.controls.grounding import Corners, Entry, check, prepare
from underdraw.controls.steady import Steady
from underdraw.controls.strength import Strength, as_strength
from underdraw.controls.subject import Subject
from underdraw.errors import ControlError, InputError, InputTypeError
from underdraw.networks.sites import NO_SITES, Sites
from underdraw.pictures.reading import as_picture

PHRASES = Strength(0.3, 0.0, 0.7)
IMAGES = Strength(1.0, 0.0, 0.0)
"""Over a run, as in the original."""
IMAGE_NORM = 28.7
"""Length of image features, about that of phrases'."""
MOST = 30
"""Boxes of one image: the layers were trained with as many tokens."""
ROUNDING = 1e-4
"""How far beyond an edge of the picture, as a fraction of it, a corner may lie: less than a pixel,
and more than float16 rounds at 0.1."""
NOWHERE = (0.0, 1.0, 0.0, 1.0)
"""The box without extent under which the layers know a style."""


class Grounded(Part):
    """What a layout is made of."""

    entry: Entry

    @staticmethod
    def whole(parts: Sequence[Any]) -> Control:
        """The layout of the boxes that a run was given."""
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
        subject: is what the phrase names: its tokens stand in the phrase before its words
            (`Subject`), whose pooled feature the box holds. For the prompt itself it is given as a
            control, too.

    Raises:
        InputError, InputTypeError: neither phrase nor image, a subject without a phrase, or no such
            box.
    """

    phrase: str | None = None
    box: Sequence[float] = ()
    image: Any = None
    subject: Subject | None = None

    def __post_init__(self) -> None:
        if self.phrase is None and self.image is None:
            raise InputError(
                f"Box(box={shown(self.box)}) has neither phrase nor image; give one or both"
            )
        if self.phrase is not None:
            check_phrase("phrase", self.phrase)
        object.__setattr__(self, "box", check_box("Box(box)", self.box))
        if self.subject is not None and not isinstance(self.subject, Subject):
            raise InputTypeError(f"Box(subject={shown(self.subject)}) is not a Subject")
        if self.subject is not None and self.phrase is None:
            raise InputError(f"Box(subject={shown(self.subject)}) has no phrase to stand in")
        if self.image is not None:
            object.__setattr__(self, "image", as_picture("Box(image)", self.image))

    @property
    def entry(self) -> Entry:
        """As the layers take it."""
        return Entry(self.phrase, self.image, check_box("Box(box)", self.box), self.subject)


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


def check_phrase(name: str, phrase: Any) -> None:
    """Raise an InputTypeError or InputError where this is no text."""
    if not isinstance(phrase, str):
        raise InputTypeError(f"{name}={shown(phrase)} is not a string")
    checks.texts(name, phrase)


def check_norm(name: str, value: Any) -> float:
    """The length which image features are brought to; phrases have about `IMAGE_NORM`."""
    return checks.number(name, value, 0.0, checks.LARGEST_FACTOR)


def check_box(name: str, box: Any, style: bool = False) -> Corners:
    """Four numbers in [0, 1] with an area; `style` says that `NOWHERE` may be among them. What
    detectors put beyond an edge by rounding lies on it.

    Raises:
        InputError, InputTypeError: they are not; the message says which one.
    """
    told = f"{name}={shown(box)}"
    try:
        box = checks.listed(name, box, "numbers")
    except InputTypeError as error:
        raise InputTypeError(f"{told} is not (x_min, y_min, x_max, y_max)") from error
    if len(box) != 4:
        raise InputError(f"{told} has {len(box)} numbers; needed are four")
    for value in box:
        if not checks.is_number(value):
            raise InputTypeError(f"{told} holds {shown(value)}, which is not a number")
        if not -ROUNDING <= value <= 1 + ROUNDING:  # false for NaN, too
            raise InputError(
                f"{told} holds {shown(value)}; allowed: fractions of the image in 0 .. 1"
            )
    x0, y0, x1, y1 = corners = tuple(min(max(float(value), 0.0), 1.0) for value in box)
    if style and corners == NOWHERE:
        return NOWHERE
    for axis, low, high in (("x", x0, x1), ("y", y0, y1)):
        if low >= high:
            raise InputError(f"{told} has {axis}_max={high} not above {axis}_min={low}")
    return x0, y0, x1, y1


def check_parts(name: str, boxes: Any, most: int = MOST) -> tuple[Grounded, ...]:
    """At most `most` boxes and styles.

    Raises:
        InputError, InputTypeError: more, or something else.
    """
    if isinstance(boxes, str) or not isinstance(boxes, Iterable) or hasattr(boxes, "shape"):
        raise InputTypeError(f"{name}={shown(boxes)} is not a list of Box and Style")
    parts: tuple[Any, ...] = tuple(islice(boxes, 1000))  # perhaps from something without an end
    for part in parts:
        if not isinstance(part, Grounded):
            raise InputTypeError(f"{name} holds {shown(part)}, which is neither Box nor Style")
    if len(parts) > most:
        raise InputError(f"{name} has {len(parts)} entries; allowed: at most {most}")
    return parts


# -- layouts: the boxes of an image, which share one attention
def one_layout(parts: Sequence[Any]) -> Control:
    """The control of all boxes, styles and layouts that a run was given."""
    if all(isinstance(part, Grounded) for part in parts):
        return Layout(tuple(parts))
    if len(parts) > 1:
        raise ControlError(
            f"controls holds {len(parts)} layouts, boxes or styles that do not go together; put "
            "all boxes of an image into one Layout, layouts of several images into one PerImage"
        )
    return parts[0]


class _Acting(Steady, Part, ABC):
    """What layouts for one image and for each image do alike."""

    whole = staticmethod(Grounded.whole)

    @abstractmethod
    def layouts(self, images: int) -> Sequence[Layout]:
        """One layout for all images, or one per image."""

    def check(self, planned: Planned) -> None:
        """That there is a layout for all images or for each, and what can read its boxes."""
        layouts = self.layouts(planned.images)
        if any(layout.acts for layout in layouts):
            check(planned, layouts)

    def prepare(self, run: Run) -> Any:
        """Tokens of all images, and what the layers make of them."""
        layouts = self.layouts(run.batch)
        if not any(layout.acts for layout in layouts):
            return None
        return prepare(run, layouts)

    def sites_at(self, nn: Operations, carry: Any, like: Array, call: Call) -> Sites:
        """The layers act as strongly as this call asks."""
        return NO_SITES if carry is None else carry.sites(nn, call, like.shape[0])


@dataclass(frozen=True)
class Layout(_Acting):
    """Boxes and styles, the same for every image of a call.

    Args:
        boxes: at most 30 `Box` and `Style`. Without any, the image is a plain one.
        strength: (on, decay, off), see `Strength`; by default that of the original, (0.3, 0, 0.7)
            for phrases and (1, 0, 0) as soon as an image is among them.
        image_norm: the length which image features are brought to.

    Raises:
        InputError, InputTypeError: more than 30, something else in it, no such strength.
    """

    boxes: Sequence[Grounded] = ()
    strength: Strength | tuple[float, float, float] | None = None
    image_norm: float = IMAGE_NORM

    def __post_init__(self) -> None:
        boxes = check_parts("Layout(boxes)", self.boxes)
        object.__setattr__(self, "boxes", boxes)
        default = IMAGES if any(b.entry.image is not None for b in boxes) else PHRASES
        strength = default if self.strength is None else as_strength(self.strength)
        object.__setattr__(self, "strength", strength)
        norm = check_norm("Layout(image_norm)", self.image_norm)
        object.__setattr__(self, "image_norm", norm)

    @property
    def acts(self) -> bool:
        """Whether the layers do anything."""
        return bool(self.boxes)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The tokens, in order."""
        return tuple(box.entry for box in self.boxes)

    def layouts(self, images: int) -> Sequence[Layout]:
        """Itself."""
        return (self,)


@dataclass(frozen=True)
class Nothing(Layout):
    """No boxes, but layers that act on null tokens alone, which is no plain image: what diffusers
    makes of empty lists."""

    @property
    def acts(self) -> bool:
        """It always does."""
        return True


@dataclass(frozen=True, init=False)
class PerImage(_Acting):
    """A layout for each image of a call: `PerImage([Box(...), Box(...)], [Box(...)], [])`.

    Args:
        each: lists of boxes and styles, or `Layout`; as many as the call makes images, those of one
            prompt next to each other. An empty one leaves its image plain.

    Raises:
        InputError, InputTypeError: there are none, or one of them is no layout.
    """

    each: tuple[Layout, ...]

    def __init__(self, *each: Layout | Sequence[Grounded]) -> None:
        if not each:
            raise InputError("PerImage has no layouts; give one per image")
        made = [
            layout if isinstance(layout, Layout) else Layout(check_parts(f"PerImage[{i}]", layout))
            for i, layout in enumerate(each)
        ]
        object.__setattr__(self, "each", tuple(made))

    def layouts(self, images: int) -> Sequence[Layout]:
        """One per image; InputError where their numbers differ."""
        if len(self.each) != images:
            raise InputError(
                f"PerImage has {len(self.each)} layouts; the call makes {images} images"
            )
        return self.each
