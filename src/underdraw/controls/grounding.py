"""Grounded generation (Li et al. 2023, GLIGEN): layouts of boxes act through gated self-attention.

The boxes a run is given form one `Layout`, for they share one attention; `PerImage` gives every
image of a batch its own. Their tokens, and what each layer makes of them, are computed once per
run. Under guidance the unconditional half sees null tokens, as in training without boxes.

The trained part is the pipeline's (`load_grounding`). Nothing is set on a model, and a call in
which the strength is 0 is a plain call.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from underdraw.backends.contract import Array, Operations
from underdraw.controls.boxes import Entry, Grounded, check_parts
from underdraw.controls.control import Call, Control, Part, Run
from underdraw.controls.features import image_features, phrase_features
from underdraw.controls.ready import Ready, attached_network
from underdraw.controls.strength import NEVER, Strength, as_strength
from underdraw.errors import ControlError, InputError
from underdraw.networks.sites import NO_SITES, Sites

PHRASES = Strength(0.3, 0.0, 0.7)
IMAGES = Strength(1.0, 0.0, 0.0)
"""Over a run, as in the original."""
TOGETHER = 4
"""Numbers of boxes are rounded up to multiples of it by null tokens, which count in any case."""
IMAGE_NORM = 28.7
"""Length of image features, about that of phrases'."""


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


class _Acting(Part, ABC):
    """What layouts for one image and for each image do alike."""

    whole = staticmethod(Grounded.whole)

    @abstractmethod
    def layouts(self, images: int) -> Sequence[Layout]:
        """One layout for all images, or one per image."""

    def prepare(self, run: Run) -> Any:
        """Tokens of all images, and what the layers make of them."""
        layouts = self.layouts(run.batch)
        if not any(layout.acts for layout in layouts):
            return None
        return _prepare(run, layouts)

    def before_call(
        self, nn: Operations, carry: Any, latents: Array, call: Call
    ) -> tuple[Array, Sites, Any]:
        """Latents as they are; the layers act as strongly as this call asks."""
        sites = NO_SITES if carry is None else carry.sites(nn, call, latents.shape[0])
        return latents, sites, carry


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
        boxes = check_parts("Layout", self.boxes)
        object.__setattr__(self, "boxes", boxes)
        default = IMAGES if any(b.entry.image is not None for b in boxes) else PHRASES
        strength = default if self.strength is None else as_strength(self.strength)
        object.__setattr__(self, "strength", strength)

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
    """No boxes, but layers that act on null tokens alone, which is no plain image: what the peer
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


def _prepare(run: Run, layouts: Sequence[Layout]) -> Ready:
    """Encode what is in the boxes, then let the layers read it."""
    entries = [layout.entries for layout in layouts]
    network = boxes_network(run.pipeline, any(e.image is not None for one in entries for e in one))
    # The last row stays empty: the unconditional one, whose tokens are the same for all images.
    # A few equal sizes: then an image with so many boxes or fewer gives the same bits in any batch.
    most = -(-max(1, *map(len, entries)) // TOGETHER) * TOGETHER
    most = min(most, network.config.limit)
    table = Table(len(entries) + 1, most, network.config.phrase_width)
    table.fill_boxes(entries, run.pipeline)
    table.fill_images(entries, run.pipeline, [layout.image_norm for layout in layouts])
    images = (table.images, table.image_present) if table.image_present.any() else (None, None)
    strengths = [as_strength(one.strength) if one.acts else NEVER for one in layouts]
    numbers = (table.boxes, table.present, table.phrases, table.phrase_present)
    with run.pipeline._borrowed(network):
        return Ready.of(run, network, network.boxes(*numbers, *images), strengths)


def boxes_network(pipeline: Any, images: bool) -> Any:
    """The attached grounding weights that know boxes, and images where there are some.

    Raises:
        InputError: there are none, or none of that kind.
    """
    if images:
        return attached_network(pipeline, "images in boxes and styles", "text-image")
    return attached_network(pipeline, "boxes", "text", "text-image")


class Table:
    """Boxes and features of `rows` images with at most `most` boxes each, as numbers."""

    def __init__(self, rows: int, most: int, width: int) -> None:
        self.boxes = np.zeros((rows, most, 4), np.float32)
        self.phrases, self.images = (np.zeros((rows, most, width), np.float32) for _ in "pi")
        self.present, self.phrase_present, self.image_present = (
            np.zeros((rows, most), np.float32) for _ in "bpi"
        )

    def fill_boxes(self, entries: Sequence[Sequence[Entry]], pipeline: Any) -> None:
        """Boxes, and the features of their phrases."""
        spoken = list(
            dict.fromkeys(e.phrase for one in entries for e in one if e.phrase is not None)
        )
        features = self._features(pipeline, phrase_features(pipeline, spoken)) if spoken else ()
        for i, one in enumerate(entries):
            for j, entry in enumerate(one):
                self.boxes[i, j], self.present[i, j] = entry.box, 1
                if entry.phrase is not None:
                    self.phrases[i, j] = features[spoken.index(entry.phrase)]
                    self.phrase_present[i, j] = 1

    def fill_images(
        self, entries: Sequence[Sequence[Entry]], pipeline: Any, norms: Sequence[float]
    ) -> None:
        """Features of the images in boxes, brought to a length per row."""
        places = [
            (i, j, entry.image)
            for i, one in enumerate(entries)
            for j, entry in enumerate(one)
            if entry.image is not None
        ]
        if not places:
            return
        shown = image_features(pipeline, [image for _, _, image in places])
        for (i, j, _), feature in zip(places, self._features(pipeline, shown), strict=True):
            self.images[i, j], self.image_present[i, j] = feature * norms[i], 1

    def _features(self, pipeline: Any, features: Array) -> np.ndarray:
        found, width = features.shape[1], self.phrases.shape[2]
        if found != width:
            raise InputError(
                f"features of width {found}; the grounding weights take {width}: they were trained "
                "with another text or image encoder"
            )
        return pipeline._framework.to_numpy(features)
