"""What both GLIGEN pipelines share: the peer's arguments become layouts."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from underdraw.controls.boxes import MOST, NOWHERE, Entry, Grounded, check_box
from underdraw.controls.grounding import IMAGE_NORM, Layout, PerImage, boxes_network
from underdraw.controls.pictures import as_picture
from underdraw.controls.strength import Strength
from underdraw.errors import InputError, InputTypeError
from underdraw.pipelines import calls, compatible
from underdraw.pipelines.gligen_familiar import FamiliarGLIGEN
from underdraw.pipelines.latent import LatentPipeline
from underdraw.pipelines.request import Plan, Request


@dataclass(frozen=True)
class Given:
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


@dataclass(frozen=True)
class Placed(Grounded):
    """A token as it stands: what a mask of the peer's leaves may be a box without anything."""

    entry: Entry


class GLIGENCalls(LatentPipeline, FamiliarGLIGEN):
    """A call with boxes."""

    components_optional = ("safety_checker", "feature_extractor")

    def _grounded_call(
        self,
        request: Request,
        given: Given,
        height: Any,
        width: Any,
        latents: Any,
        attention: Any,
    ) -> Any:
        """Make images with boxes."""
        compatible.refuse(None, None, attention)
        plan = self._plan(request)
        height, width = self._check_size(height, width, latents)
        shape = self._latent_shape(plan.count, height, width)
        layouts = read_layouts(given, plan)
        self._check_grounding(layouts)
        if latents is not None:
            calls.array("latents", latents, shape, self._framework)
            noise = self._framework.array(latents, device=self.device)
        else:
            noise = self._noise(plan, shape)
        control = layouts[0] if len(layouts) == 1 else PerImage(*layouts)
        made = self._denoise(plan, noise * plan.solver.initial_sigma, [control])
        own = {"height": height, "width": width, "latents": latents}
        return self._output(plan, *self._decode(plan, made), own)

    def _check_grounding(self, layouts: Sequence[Layout]) -> None:
        entries = [entry for layout in layouts for entry in layout.entries]
        if entries:
            boxes_network(self, any(entry.image is not None for entry in entries))


def read_layouts(given: Given, plan: Plan) -> list[Layout]:
    """One layout for all images of a call, or one per image.

    Raises:
        InputError, InputTypeError: lists of different length, something that is no box, phrase or
            image, or numbers out of range.
    """
    beta = calls.number("gligen_scheduled_sampling_beta", given.beta, 0.0, 1.0)
    norm = calls.number("gligen_normalize_constant", given.image_norm)
    strength = Strength(beta, 0.0, 1.0 - beta)
    boxes = listed("gligen_boxes", given.boxes)
    if not any(nested(box) for box in boxes):
        return [_layout("", boxes, given.phrases, given.images, given, strength, norm)]
    prompts = 1 if plan.prompts is None else len(plan.prompts)
    if len(boxes) not in (plan.count, prompts):
        raise InputError(
            f"gligen_boxes has lists for {len(boxes)} images; the call makes {plan.count}"
        )
    layouts = []
    for i, own in enumerate(boxes):
        beside = [
            _of_image(name, value, i, len(boxes))
            for name, value in (("gligen_phrases", given.phrases), ("gligen_images", given.images))
        ]
        layouts.append(
            _layout(f"[{i}]", listed(f"gligen_boxes[{i}]", own), *beside, given, strength, norm)
        )
    each = plan.count // len(layouts)
    return [layout for layout in layouts for _ in range(each)]


def _layout(
    at: str,
    boxes: list[Any],
    phrases: Any,
    images: Any,
    given: Given,
    strength: Strength,
    norm: float,
) -> Layout:
    """Of the lists for one image; `at` says in messages which."""
    count = len(boxes)
    phrases = _beside(f"gligen_phrases{at}", phrases, count)
    images = _beside(f"gligen_images{at}", images, count)
    spoken = _mask("input_phrases_mask", given.phrases_mask, count)
    shown = _mask("input_images_mask", given.images_mask, count)
    if count > MOST:
        dropped = [phrases[i] if phrases[i] is not None else boxes[i] for i in range(MOST, count)]
        warnings.warn(
            f"gligen_boxes{at} has {count} boxes; the first {MOST} are used. Dropped: "
            + ", ".join(map(repr, dropped)),
            stacklevel=5,
        )
    parts = []
    for i, box in enumerate(boxes[:MOST]):
        phrase, image = phrases[i], images[i]
        if phrase is None and image is None:
            raise InputError(f"box {i} of gligen_boxes{at} has neither phrase nor image")
        if phrase is not None and not isinstance(phrase, str):
            raise InputTypeError(f"gligen_phrases{at}[{i}]={phrase!r:.100} is not a string")
        box = box.tolist() if hasattr(box, "tolist") else box
        style = isinstance(box, list | tuple) and tuple(box) == NOWHERE
        corners = NOWHERE if style else check_box(f"gligen_boxes{at}[{i}]", box)
        if image is not None:
            image = as_picture(f"gligen_images{at}[{i}]", image)
        entry = Entry(phrase if spoken[i] else None, image if shown[i] else None, corners)
        parts.append(Placed(entry))
    return Layout(parts, strength, norm)


def listed(name: str, value: Any) -> list[Any]:
    """A list, or an array as one; None is an empty one."""
    if value is None:
        return []
    if hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, list | tuple):
        raise InputTypeError(f"{name}={value!r:.100} is not a list")
    return list(value)


def nested(box: Any) -> bool:
    """Whether an entry is a list of boxes."""
    if hasattr(box, "tolist"):
        box = box.tolist()
    return isinstance(box, list | tuple) and (not box or hasattr(box[0], "__len__"))


def _of_image(name: str, value: Any, index: int, count: int) -> Any:
    if value is None:
        return None
    if not isinstance(value, list | tuple) or len(value) != count:
        raise InputError(f"{name} must be a list per image, as gligen_boxes is: {count} lists")
    return value[index]


def _beside(name: str, value: Any, count: int) -> list[Any]:
    """What stands beside `count` boxes, one entry each."""
    if value is None:
        return [None] * count
    entries = [value] if isinstance(value, str) else listed(name, value)
    if len(entries) != count:
        raise InputError(f"{name} has {len(entries)} entries; there are {count} boxes")
    return entries


def _mask(name: str, value: Any, count: int) -> list[bool]:
    """Per box whether it counts; a list may be shorter, then the others do."""
    if value is None:
        return [True] * count
    entries = [value] * count if not isinstance(value, list | tuple) else list(value)
    for entry in entries:
        if entry not in (0, 1):
            raise InputError(f"{name}={value!r:.100}; allowed: 0, 1, or a list of them")
    return [bool(entry) for entry in entries] + [True] * (count - len(entries))
