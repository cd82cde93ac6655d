"""diffusers' arguments of the GLIGEN pipelines, as they were given and as layouts."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

from underdraw import checks
from underdraw.checks import shown
from underdraw.controls.boxes import (
    IMAGE_NORM,
    MOST,
    Grounded,
    Layout,
    check_box,
    check_norm,
    check_phrase,
)
from underdraw.controls.grounding import Entry
from underdraw.controls.strength import Strength
from underdraw.errors import InputError
from underdraw.pictures.reading import as_picture
from underdraw.pipelines.call.plan import Plan


@dataclass(frozen=True)
class Arguments:
    """The arguments of a call that are GLIGEN's own, as they were given."""

    phrases: Any = None
    boxes: Any = None
    images: Any = None
    phrases_mask: Any = None
    images_mask: Any = None
    beta: Any = 0.3
    image_norm: Any = IMAGE_NORM
    inpaint_image: Any = None
    inpaint_mask: Any = None
    paste_back: bool = False
    height: Any = None
    width: Any = None
    latents: Any = None
    null_acts: bool = False
    """Whether the layers of diffusers act on null tokens where lists of boxes are empty."""

    def masked(self, index: int, count: int) -> Arguments:
        """With the masks of one of `count` images, where there is a list for each."""
        own = {"phrases_mask": self.phrases_mask, "images_mask": self.images_mask}
        for name, value in own.items():
            if hasattr(value, "ndim") and value.ndim > 0:
                value = checks.listed(f"input_{name}", value, "0 and 1")
            if isinstance(value, list | tuple) and any(isinstance(x, list | tuple) for x in value):
                own[name] = _of_image(f"input_{name}", value, index, count)
        return replace(self, **own)

    def recorded(self, index: int, count: int) -> dict[str, Any]:
        """What makes one image of so many, by the names of the arguments."""
        phrases, boxes = self.phrases, listed("gligen_boxes", self.boxes)
        mine = self
        if any(nested(box) for box in boxes):
            at, many = index * len(boxes) // count, len(boxes)
            boxes, phrases = boxes[at], None if phrases is None else phrases[at]
            mine = self.masked(at, many)
        named = {
            "gligen_phrases": phrases,
            "gligen_boxes": boxes or None,
            "gligen_images": self.images,
            "input_phrases_mask": mine.phrases_mask,
            "input_images_mask": mine.images_mask,
            "gligen_scheduled_sampling_beta": self.beta,
            "gligen_inpaint_image": self.inpaint_image,
            "gligen_inpaint_mask": self.inpaint_mask,
            "paste_back": self.paste_back or None,
        }
        return {name: value for name, value in named.items() if value is not None}


@dataclass(frozen=True)
class Placed(Grounded):
    """A token as it stands: what a mask leaves may be a box without anything."""

    entry: Entry


def read_layouts(given: Arguments, plan: Plan) -> list[Layout]:
    """One layout for all images of a call, or one per image.

    Raises:
        InputError, InputTypeError: lists of different length, something that is no box, phrase or
            image, or numbers out of range.
    """
    beta = checks.number("gligen_scheduled_sampling_beta", given.beta, 0.0, 1.0)
    norm = check_norm("gligen_normalize_constant", given.image_norm)
    strength = Strength(beta, 0.0, 1.0 - beta)
    boxes = listed("gligen_boxes", given.boxes)
    if not any(nested(box) for box in boxes):
        return [_layout("", boxes, given.phrases, given.images, given, strength, norm)]
    prompts = plan.count // plan.request.num_images_per_prompt
    if len(boxes) not in (plan.count, prompts):
        raise InputError(
            f"gligen_boxes has lists for {len(boxes)} images; the call makes {plan.count}"
        )
    layouts = []
    for i, own in enumerate(boxes):
        phrases = _of_image("gligen_phrases", given.phrases, i, len(boxes))
        images = _of_image("gligen_images", given.images, i, len(boxes))
        mine = listed(f"gligen_boxes[{i}]", own)
        masked = given.masked(i, len(boxes))
        layouts.append(_layout(f"[{i}]", mine, phrases, images, masked, strength, norm))
    each = plan.count // len(layouts)
    return [layout for layout in layouts for _ in range(each)]


def _layout(
    at: str,
    boxes: list[Any],
    phrases: Any,
    images: Any,
    given: Arguments,
    strength: Strength,
    norm: float,
) -> Layout:
    """Of the lists for one image; `at` says in messages which."""
    count = len(boxes)
    phrases = _beside(f"gligen_phrases{at}", phrases, count, at)
    images = _beside(f"gligen_images{at}", images, count, at)
    spoken = _mask("input_phrases_mask", given.phrases_mask, count)
    visible = _mask("input_images_mask", given.images_mask, count)
    if count > MOST:
        dropped = [phrases[i] if phrases[i] is not None else boxes[i] for i in range(MOST, count)]
        warnings.warn(
            f"gligen_boxes{at} has {count} boxes; the first {MOST} are used. Dropped: "
            + ", ".join(map(shown, dropped)),
            stacklevel=5,
        )
    parts = []
    for i, box in enumerate(boxes[:MOST]):
        phrase, image = phrases[i], images[i]
        if phrase is None and image is None:
            raise InputError(
                f"box {i} of gligen_boxes{at} has neither phrase nor image; give one in "
                f"gligen_phrases{at}"
            )
        if phrase is not None:
            check_phrase(f"gligen_phrases{at}[{i}]", phrase)
        corners = check_box(f"gligen_boxes{at}[{i}]", box, style=True)
        if image is not None:
            image = as_picture(f"gligen_images{at}[{i}]", image)
        entry = Entry(phrase if spoken[i] else None, image if visible[i] else None, corners)
        parts.append(Placed(entry))
    return Layout(parts, strength, norm)


def listed(name: str, value: Any) -> list[Any]:
    """A list, or an array as one; None is an empty one."""
    return [] if value is None else checks.listed(name, value, "one entry per box")


def nested(box: Any) -> bool:
    """Whether an entry is a list of boxes."""
    if hasattr(box, "ndim"):
        return box.ndim > 1
    return isinstance(box, list | tuple) and (not box or hasattr(box[0], "__len__"))


def _of_image(name: str, value: Any, index: int, count: int) -> Any:
    if value is None:
        return None
    if not isinstance(value, list | tuple) or len(value) != count:
        raise InputError(f"{name} must be a list per image, as gligen_boxes is: {count} lists")
    return value[index]


def _beside(name: str, value: Any, count: int, at: str) -> list[Any]:
    """What stands beside `count` boxes, one entry each."""
    if value is None:
        return [None] * count
    entries = [value] if isinstance(value, str) else listed(name, value)
    if len(entries) != count:
        raise InputError(
            f"{name} has {len(entries)} entries; there are {count} boxes (gligen_boxes{at})"
        )
    return entries


def _mask(name: str, value: Any, count: int) -> list[bool]:
    """Per box whether it counts; a list may be shorter, then the others do."""
    if value is None:
        return [True] * count
    if hasattr(value, "ndim") or isinstance(value, list | tuple):
        array: Any = value
        single = hasattr(value, "ndim") and array.ndim == 0
        entries = checks.listed(name, array.reshape(-1) if single else value, "0 and 1")
        entries = entries * count if single else entries
    else:
        entries = [value] * count
    for entry in (value, *entries) if entries == [] else entries:
        if not checks.is_one_of(entry, (0, 1, 0.0, 1.0)):
            raise InputError(f"{name}={shown(value)}; allowed: 0, 1, or a list of them")
    if len(entries) > count:
        raise InputError(f"{name} has {len(entries)} entries; there are {count} boxes")
    return [bool(entry) for entry in entries] + [True] * (count - len(entries))
