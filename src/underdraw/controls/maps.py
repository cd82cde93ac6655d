"""GLIGEN's other modalities: people by keypoints, and maps of edges, depth, normals and classes.

Li et al. 2023. They act as boxes do, each with grounding weights of its own kind, and beside them.
Maps also add input channels, for which the weights bring their own first convolution; when their
strength has fallen to 0, the UNet's own is back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from underdraw import checks
from underdraw.backends.contract import Array, Operations
from underdraw.checks import readable, shown
from underdraw.controls.boxes import ROUNDING
from underdraw.controls.control import Call, Planned, Run
from underdraw.controls.ready import Ready, attached_network
from underdraw.controls.steady import Steady
from underdraw.controls.strength import Strength, as_strength
from underdraw.errors import InputError, InputTypeError
from underdraw.networks.gligen.config import KEYPOINTS
from underdraw.networks.sites import Sites
from underdraw.pictures.modes import numbers
from underdraw.pictures.reading import as_picture

People = Sequence[Sequence[Sequence[float]]]
"""People of one image: 17 points each, `(x, y)`."""


class _Grounding(Steady):
    """What keypoints and maps do alike in a call."""

    def sites_at(self, nn: Operations, carry: Ready, like: Array, call: Call) -> Sites:
        """The layers act as strongly as this call asks."""
        return carry.sites(nn, call, like.shape[0])


@dataclass(frozen=True)
class Keypoints(_Grounding):
    """People in given poses.

    Args:
        people: for each person 17 points `(x, y)`, fractions of the image's width and height in
            [0, 1], in COCO's order (nose, eyes, ears, shoulders, elbows, wrists, hips, knees,
            ankles; left before right); (0, 0) is a point that is not seen. At most 8 people.
        strength: (on, decay, off), see `Strength`; the default is the original's.

    Raises:
        InputError, InputTypeError: they are no such points, or nobody is there.
    """

    people: People
    strength: Strength | tuple[float, float, float] = (0.3, 0.0, 0.7)

    def __post_init__(self) -> None:
        object.__setattr__(self, "people", (_people("Keypoints(people)", self.people),))
        object.__setattr__(self, "strength", as_strength(self.strength))

    @classmethod
    def per_image(cls, *people: People, strength: Any = (0.3, 0.0, 0.7)) -> Keypoints:
        """People of each image of a call; an image may have none."""
        if not people:
            raise InputError("Keypoints.per_image has no images; give people of each")
        made = cls([[(0.5, 0.5)] * KEYPOINTS], strength)
        each = [_people(f"people of image {i}", one, 0) for i, one in enumerate(people)]
        object.__setattr__(made, "people", tuple(each))
        return made

    def check(self, planned: Planned) -> None:
        """That there are weights for them, and people of one image or of each."""
        self._network(planned)
        _check_count("Keypoints has people", len(self.people), planned.images)

    def _network(self, run: Run | Planned) -> Any:
        return attached_network(run.components, "keypoints", "keypoints")

    def prepare(self, run: Run) -> Ready:
        """Tokens of the points, and what the layers make of them."""
        network = self._network(run)
        with run.components.borrow(network):
            tokens = network.keypoints([*self.people, ()], run.ask)
            return Ready.of(run, network, tokens, [as_strength(self.strength)])


@dataclass(frozen=True, eq=False)
class Map(_Grounding):
    """A picture that says for each place what is to be there.

    Args:
        image: a PIL image or an array, uint8 or in [0, 1] (of numpy `(height, width, 3)`, of a
            framework `(3, height, width)`), or a list with one per image of the call. It is brought
            to the size of the result, without cutting.
        strength: (on, decay, off), see `Strength`; by default that of the original.

    Raises:
        InputError, InputTypeError: it is no such picture.
    """

    image: Any
    strength: Any = None

    kind: ClassVar[str]
    usual: ClassVar[Strength]

    def __post_init__(self) -> None:
        if type(self) is Map:
            raise InputTypeError("Map has no kind; use CannyMap, DepthMap, ...")
        name = f"{type(self).__name__}(image)"
        given = list(self.image) if isinstance(self.image, list | tuple) else [self.image]
        if not given:
            raise InputError(f"{name} is an empty list; give at least one")
        object.__setattr__(self, "image", tuple(self._read(name, one) for one in given))
        strength = self.usual if self.strength is None else as_strength(self.strength)
        object.__setattr__(self, "strength", strength)

    def _read(self, name: str, image: Any) -> Any:
        return as_picture(name, image)

    def _pixels(self, image: Any, network: Any, height: int, width: int) -> np.ndarray:
        """`(channels, height, width)` as the layers take it."""
        sized = image.resize((width, height), Image.Resampling.BICUBIC)
        return (np.asarray(sized, np.float32) / 127.5 - 1).transpose(2, 0, 1)

    def check(self, planned: Planned) -> None:
        """That there are weights for them, and one map or one per image, as these were trained."""
        network = self._network(planned)
        _check_count(f"{type(self).__name__} has pictures", len(self.image), planned.images)
        for image in self.image:
            self._check_values(image, network)

    def _network(self, run: Run | Planned) -> Any:
        return attached_network(run.components, type(self).__name__, self.kind)

    def _check_values(self, image: Any, network: Any) -> None:
        """Raise an InputError where the weights know no such values."""

    def prepare(self, run: Run) -> Ready:
        """Tokens of the maps, and their input channels."""
        network, (height, width) = self._network(run), run.latents.shape[2:]
        size = run.planned.size
        maps = np.stack([self._pixels(image, network, *size) for image in self.image])
        present = np.ones(len(maps) + 1, np.float32)
        present[-1] = 0
        with run.components.borrow(network):
            tokens = network.maps(np.concatenate((maps, maps[-1:])), present, run.ask)
            extra = network.map_channels(maps, height, width, run.ask)
            return Ready.of(run, network, tokens, [as_strength(self.strength)], extra)


class HEDMap(Map):
    """Soft edges (Xie & Tu 2015), white on black."""

    kind, usual = "hed", Strength(0.9, 0.0, 0.1)


class CannyMap(Map):
    """Thin edges (Canny 1986), white on black."""

    kind, usual = "canny", Strength(0.9, 0.0, 0.1)


class DepthMap(Map):
    """Inverse depth: what is near is bright."""

    kind, usual = "depth", Strength(0.7, 0.0, 0.3)


class NormalMap(Map):
    """Directions of surfaces as red, green and blue."""

    kind, usual = "normal", Strength(0.7, 0.0, 0.3)


class SemanticMap(Map):
    """The class of each place: a PIL image with the number as its grey value (of up to 32 bits) or
    palette index, or an integer array `(height, width)`; classes as the weights were trained with
    (ADE20K: 152)."""

    kind, usual = "semantic", Strength(0.7, 0.0, 0.3)

    def _read(self, name: str, image: Any) -> Any:
        if isinstance(image, Image.Image):
            image = numbers(name, image)
        if hasattr(image, "detach"):  # a tensor
            image = readable(name, image, lambda tensor: tensor.detach().cpu().numpy())
        if not isinstance(image, np.ndarray) or image.dtype.kind not in "iu":
            raise InputTypeError(f"{name}={type(image).__name__}; allowed: PIL, integer arrays")
        if image.ndim != 2 or image.size == 0:
            raise InputError(f"{name} has shape {image.shape}; needed is (height, width)")
        return image.copy()

    def _check_values(self, image: Any, network: Any) -> None:
        count = network.config.classes
        if not (image.min() >= 0 and image.max() < count):
            raise InputError(
                f"SemanticMap has classes {image.min()} .. {image.max()}; the attached weights "
                f"know 0 .. {count - 1}"
            )

    def _pixels(self, image: Any, network: Any, height: int, width: int) -> np.ndarray:
        count = network.config.classes
        rows = np.arange(height) * image.shape[0] // height
        columns = np.arange(width) * image.shape[1] // width
        return (np.arange(count)[:, None, None] == image[rows][:, columns]).astype(np.float32)


def _people(name: str, people: Any, least: int = 1) -> tuple[Any, ...]:
    try:
        points = [_points(person) for person in checks.listed(name, people, "people")]
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise InputTypeError(
            f"{name}={shown(people)} is not a list of people with 17 points (x, y)"
        ) from error
    for i, person in enumerate(points):
        if person.shape != (KEYPOINTS, 2):
            raise InputError(f"{name}[{i}] has shape {person.shape}; needed is ({KEYPOINTS}, 2)")
        if not ((person >= 0) & (person <= 1)).all():  # false for NaN, too
            raise InputError(f"{name}[{i}] holds points outside of [0, 1]")
        if not person.any():
            raise InputError(f"{name}[{i}] has no point that is seen")
    if len(points) < least:
        raise InputError(f"{name} is empty; give at least {least}")
    return tuple(tuple(map(tuple, person.tolist())) for person in points)


def _points(person: Any) -> np.ndarray:
    """Coordinates of one person; what lies beyond an edge by rounding lies on it."""
    given = np.asarray(person)
    if given.dtype.kind not in "iuf":
        raise InputTypeError("a person holds something that is no number")
    found = given.astype(np.float64)
    inside = found.clip(0, 1)
    return np.where(abs(found - inside) <= ROUNDING, inside, found)


def _check_count(what: str, found: int, images: int) -> None:
    if found not in (1, images):
        raise InputError(f"{what} for {found} images; the call makes {images}")
