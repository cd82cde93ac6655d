"""What both GLIGEN pipelines share: the peer's arguments become layouts."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from underdraw import checks
from underdraw.controls.boxes import (
    IMAGE_NORM,
    MOST,
    NOWHERE,
    Grounded,
    Layout,
    Nothing,
    PerImage,
    check_box,
)
from underdraw.controls.control import Control
from underdraw.controls.grounding import Entry, boxes_network
from underdraw.controls.region import Region
from underdraw.controls.strength import Strength
from underdraw.errors import InputError, InputTypeError
from underdraw.networks.gligen.config import INPAINTING_CHANNELS
from underdraw.pictures.reading import as_picture
from underdraw.pipelines.call.request import Plan, Request
from underdraw.pipelines.diffusers import compatible
from underdraw.pipelines.diffusers.gligen import FamiliarGLIGEN
from underdraw.pipelines.gligen.inpainting import (
    Inpainting,
    KnownChannels,
    PeersRegion,
    read_inpainting,
)
from underdraw.pipelines.latent import LatentPipeline
from underdraw.sampling.loop import Step


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

    def masked(self, index: int, count: int) -> Given:
        """With the masks of one of `count` images, where there is a list for each."""
        own = {"phrases_mask": self.phrases_mask, "images_mask": self.images_mask}
        for name, value in own.items():
            value = value.tolist() if hasattr(value, "tolist") else value
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
    """A token as it stands: what a mask of the peer's leaves may be a box without anything."""

    entry: Entry


class GLIGENCalls(LatentPipeline, FamiliarGLIGEN):
    """A call with boxes."""

    components_optional = ("safety_checker", "feature_extractor")
    null_acts: ClassVar[bool] = False
    """Whether the peer's layers act on null tokens where lists of boxes are empty."""

    def _grounded_call(
        self,
        request: Request,
        given: Given,
        height: Any,
        width: Any,
        latents: Any,
        attention: Any,
    ) -> Generator[Step, None, Any]:
        """Make images with boxes."""
        compatible.refuse(None, None, attention)
        plan = self._plan(request)
        height, width = self._check_size(height, width, latents)
        shape = self._latent_shape(plan.count, height, width, (0, INPAINTING_CHANNELS))
        layouts = read_layouts(given, plan)
        if self.compat == "diffusers" and self.null_acts and given.boxes is not None:
            layouts = [one if one.boxes else Nothing((), one.strength) for one in layouts]
        network, inpainting = self._check_grounding(layouts), None
        if given.inpaint_image is not None:
            inpainting = read_inpainting(
                self,
                given.inpaint_image,
                given.inpaint_mask,
                layouts,
                plan.count,
                plan.count // request.num_images_per_prompt,
                (height, width),
            )
        self._check_inpainting(given, request.output_type)
        if latents is not None:
            checks.array("latents", latents, shape, self._framework)

        own: list[Control] = []
        redraws = self._redraws(latents, inpainting)
        if redraws:  # drawn by the peer, and not used
            self._noise(plan, (shape[0], self.unet.config.in_channels, *shape[2:]))
        if inpainting is not None:
            own = self._keeping(inpainting, network)
        acts = self.fuser_enabled or self.compat == "diffusers"
        if acts and any(layout.acts for layout in layouts):
            own.append(layouts[0] if len(layouts) == 1 else PerImage(*layouts))
        if latents is not None:
            noise = self._framework.array(latents, device=self.device)
        elif redraws:  # from the global stream and unscaled
            noise = self._framework.draw(shape, None, self.device, self.unet.dtype)
            noise = noise / plan.solver.initial_sigma
        else:
            noise = self._noise(plan, shape)
        made = yield from self._denoising(plan, noise * plan.solver.initial_sigma, own)
        images, flags = self._decode(plan, made)
        if inpainting is not None and given.paste_back:
            images = inpainting.paste_back(images, self._framework)

        def arguments(index: int) -> dict[str, Any]:
            mine = given.recorded(index, plan.count)
            return {"height": height, "width": width, "latents": latents, **mine}

        return self._output(plan, images, flags, arguments)

    def _check_grounding(self, layouts: Sequence[Layout]) -> Any:
        """The weights that the boxes need; None without boxes."""
        entries = [entry for layout in layouts for entry in layout.entries]
        if not entries:
            return None
        return boxes_network(self, any(entry.image is not None for entry in entries))

    def _check_inpainting(self, given: Given, output_type: str) -> None:
        if given.inpaint_image is None:
            for name in ("inpaint_mask", "paste_back"):
                if not (getattr(given, name) is None or getattr(given, name) is False):
                    shown = name if name == "paste_back" else f"gligen_{name}"
                    raise InputError(f"{shown} is given; it needs gligen_inpaint_image")
            if self.unet.config.in_channels != self.vae.config.latent_channels:
                raise InputError(
                    f"unet: it takes {self.unet.config.in_channels} channels, so it paints into a "
                    "picture; give gligen_inpaint_image"
                )
        if given.paste_back and output_type == "latent":
            raise InputError("paste_back=True; latents have no pixels, give another output_type")

    def _keeping(self, inpainting: Inpainting, network: Any) -> list[Control]:
        """The controls that keep what lies outside the mask."""
        old = self.compat == "diffusers"
        known = self._framework.array(inpainting.encoded(self, sample=old), device=self.device)
        if old:
            keeping: Control = PeersRegion(inpainting.inside, latents=known, noise=known * 0)
        else:
            keeping = Region(inpainting.inside, latents=known)
        own = network is not None and network.config.extra_channels == INPAINTING_CHANNELS
        if self.unet.config.in_channels != self.vae.config.latent_channels:
            return [keeping, KnownChannels(known, 1 - inpainting.inside)]
        if own:
            return [keeping, KnownChannels(known, 1 - inpainting.inside, network)]
        return [keeping]

    def _redraws(self, latents: Any, inpainting: Inpainting | None) -> bool:
        """Whether the peer would throw away the noise that it has drawn for all channels."""
        wide = self.unet.config.in_channels != self.vae.config.latent_channels
        return self.compat == "diffusers" and wide and latents is None and inpainting is not None


def read_layouts(given: Given, plan: Plan) -> list[Layout]:
    """One layout for all images of a call, or one per image.

    Raises:
        InputError, InputTypeError: lists of different length, something that is no box, phrase or
            image, or numbers out of range.
    """
    beta = checks.number("gligen_scheduled_sampling_beta", given.beta, 0.0, 1.0)
    norm = checks.number("gligen_normalize_constant", given.image_norm)
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
    value = value.tolist() if hasattr(value, "tolist") else value
    entries = [value] * count if not isinstance(value, list | tuple) else list(value)
    for entry in entries:
        if entry not in (0, 1):
            raise InputError(f"{name}={value!r:.100}; allowed: 0, 1, or a list of them")
    return [bool(entry) for entry in entries] + [True] * (count - len(entries))
