"""Boxes at work: what is in them becomes tokens, and the layers read these once per run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from underdraw.backends.contract import Array
from underdraw.controls.control import Planned, Run
from underdraw.controls.features import (
    check_phrases,
    check_sight,
    check_width,
    image_features,
    phrase_features,
)
from underdraw.controls.ready import Ready, attached_network
from underdraw.controls.strength import NEVER, as_strength
from underdraw.errors import InputError

TOGETHER = 4
"""Numbers of boxes are rounded up to multiples of it by null tokens, which count in any case."""

Corners = tuple[float, float, float, float]
"""`(x_min, y_min, x_max, y_max)`: fractions of the image's width and height."""


class Entry(NamedTuple):
    """One thing that is grounded. None: the layers' null feature stands for it."""

    phrase: str | None
    image: Any
    box: Corners
    subject: Any = None
    """The `Subject` that the phrase names, or None."""


def check(planned: Planned, layouts: Sequence[Any]) -> None:
    """Raise an InputError where what is in these boxes cannot be encoded or read."""
    components, entries = planned.components, [layout.entries for layout in layouts]
    everything = [entry for one in entries for entry in one]
    pictured = any(entry.image is not None for entry in everything)
    network = boxes_network(components, pictured)
    limit, width = network.config.limit, network.config.phrase_width
    most = max(map(len, entries), default=0)
    if most > limit:
        raise InputError(f"Layout(boxes) has {most} entries; the attached weights know {limit}")
    spoken = list({_spoken(e): e for e in everything if e.phrase is not None}.values())
    if spoken:
        phrases = [str(entry.phrase) for entry in spoken]
        check_phrases(components, phrases, [entry.subject for entry in spoken], width)
    if pictured:
        check_sight(components, width)


def prepare(run: Run, layouts: Sequence[Any]) -> Ready:
    """Encode what is in the boxes of each image, then let the layers read it."""
    components, entries = run.components, [layout.entries for layout in layouts]
    pictured = any(entry.image is not None for one in entries for entry in one)
    network = boxes_network(components, pictured)
    # The last row stays empty: the unconditional one, whose tokens are the same for all images.
    # A few equal sizes: then an image with so many boxes or fewer gives the same bits in any batch.
    most = -(-max(1, *map(len, entries)) // TOGETHER) * TOGETHER
    most = min(most, network.config.limit)
    table = Table(len(entries) + 1, most, network.config.phrase_width)
    table.fill_boxes(entries, components)
    table.fill_images(entries, components, [layout.image_norm for layout in layouts])
    images = (table.images, table.image_present) if table.image_present.any() else (None, None)
    strengths = [as_strength(one.strength) if one.acts else NEVER for one in layouts]
    numbers = (table.boxes, table.present, table.phrases, table.phrase_present)
    with components.borrow(network):
        tokens = network.boxes(*numbers, *images, ask=run.ask)
        return Ready.of(run, network, tokens, strengths)


def boxes_network(components: Any, images: bool) -> Any:
    """The attached grounding weights that know boxes, and images where there are some.

    Raises:
        InputError: there are none, or none of that kind.
    """
    if images:
        return attached_network(components, "images in boxes and styles", "text-image")
    return attached_network(components, "boxes", "text", "text-image")


class Table:
    """Boxes and features of `rows` images with at most `most` boxes each, as numbers."""

    def __init__(self, rows: int, most: int, width: int) -> None:
        self.boxes = np.zeros((rows, most, 4), np.float32)
        self.phrases, self.images = (np.zeros((rows, most, width), np.float32) for _ in "pi")
        self.present, self.phrase_present, self.image_present = (
            np.zeros((rows, most), np.float32) for _ in "bpi"
        )

    def fill_boxes(self, entries: Sequence[Sequence[Entry]], components: Any) -> None:
        """Boxes, and the features of their phrases."""
        named = {_spoken(e): e for one in entries for e in one if e.phrase is not None}
        spoken, features = list(named), ()
        if spoken:
            phrases = [str(entry.phrase) for entry in named.values()]
            subjects = [entry.subject for entry in named.values()]
            found = phrase_features(components, phrases, subjects)
            features = self._features(components, found)
        for i, one in enumerate(entries):
            for j, entry in enumerate(one):
                self.boxes[i, j], self.present[i, j] = entry.box, 1
                if entry.phrase is not None:
                    self.phrases[i, j] = features[spoken.index(_spoken(entry))]
                    self.phrase_present[i, j] = 1

    def fill_images(
        self, entries: Sequence[Sequence[Entry]], components: Any, norms: Sequence[float]
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
        shown = image_features(components, [image for _, _, image in places])
        for (i, j, _), feature in zip(places, self._features(components, shown), strict=True):
            self.images[i, j], self.image_present[i, j] = feature * norms[i], 1

    def _features(self, components: Any, features: Array) -> np.ndarray:
        check_width(features.shape[1], self.phrases.shape[2])
        return components.framework.to_numpy(features)


def _spoken(entry: Entry) -> tuple[str | None, int]:
    """Entries with the same of it have the same phrase feature."""
    return entry.phrase, id(entry.subject)
