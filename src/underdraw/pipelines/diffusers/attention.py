"""Arguments of diffusers that act on attention, as the controls and factors which they are here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from underdraw import checks
from underdraw.controls.control import Planned
from underdraw.controls.image_prompt import KIND, ImagePrompt
from underdraw.errors import InputError
from underdraw.models import IPAdapter
from underdraw.networks.ip_adapter.config import IPAdapterConfig
from underdraw.pipelines.components.image_prompting import one_each
from underdraw.weights.lora.scales import Scales

IMAGE, EMBEDS = "ip_adapter_image", "ip_adapter_image_embeds"
SCALE, MASKS = "scale", "ip_adapter_masks"
"""What `cross_attention_kwargs` may hold."""


class Attention(NamedTuple):
    """What calls make of these arguments."""

    lora_scale: float = 1.0
    """A factor for the active LoRAs."""
    prompts: tuple[ImagePrompt, ...] = ()
    """Controls of the pictures."""


def read(components: Any, image: Any, embeds: Any, attention: Any) -> Attention:
    """What `ip_adapter_image(_embeds)` and `cross_attention_kwargs` of a call are.

    Raises:
        InputError, InputTypeError: one of them cannot work.
    """
    told: Any = {} if attention is None else attention
    known = isinstance(told, Mapping) and set(told) <= {SCALE, MASKS}
    scale: Any = told.get(SCALE, 1.0) if known else None
    if not checks.is_number(scale) or not math.isfinite(scale):
        raise InputError(
            f"cross_attention_kwargs={checks.shown(attention)} is not taken; allowed: None, "
            f"{{{SCALE!r}: of LoRAs, {MASKS!r}: of pictures}}. What else acts on attention is "
            "given as controls=[...]"
        )
    scale = checks.factor("cross_attention_kwargs['scale']", scale)
    masks = told.get(MASKS)
    if image is None and embeds is None:
        if masks is not None:
            raise InputError(f"{MASKS} are given without {IMAGE} or {EMBEDS}")
        return Attention(scale)
    return Attention(scale, _prompts(components, image, embeds, masks))


def _prompts(components: Any, image: Any, embeds: Any, masks: Any) -> tuple[ImagePrompt, ...]:
    there: Mapping[str, IPAdapter] = components.attached.of(components, KIND)
    nothing = [None] * len(there)
    images = nothing if image is None else one_each(IMAGE, image, len(there))
    known = nothing if embeds is None else one_each(EMBEDS, embeds, len(there))
    over = nothing if masks is None else _masks(components, masks, len(there))
    made: list[ImagePrompt] = []
    for name, picture, embed, mask in zip(there, images, known, over, strict=True):
        if picture is None and embed is None:
            continue  # this one does not act
        both = there[name].config.kind == "face-id-plus"
        if (picture is None) == (embed is None) and not both:
            raise InputError(f"{IMAGE} and {EMBEDS} are both given; allowed: one of them")
        given = _given(there[name].config, components, picture, embed)
        scales = components.image_scales.get(name, (Scales(),))
        made += _of_adapter(name, given, scales, mask)
    return tuple(made)


def _given(c: IPAdapterConfig, components: Any, picture: Any, embed: Any) -> dict[str, Any]:
    """Pictures and features as arguments of `ImagePrompt`."""
    given: dict[str, Any] = {}
    if picture is not None:
        framework = components.framework
        if framework.is_array(picture) and len(picture.shape) == 4:  # normalised already
            given["image"] = checks.array(IMAGE, picture, (None, 3, None, None), framework)
        else:
            given["image"] = list(picture) if isinstance(picture, list | tuple) else [picture]
    if embed is not None:
        width = c.face_width if c.reads_faces else c.feature_width
        shape = (None, None, *(() if c.reads_faces or c.pooled else (None,)), width)
        checks.array(EMBEDS, embed, shape, components.framework)
        given["face" if c.reads_faces else "embedding"] = embed
    return given


def _of_adapter(
    name: str, given: Mapping[str, Any], scales: Sequence[Scales], masks: Any
) -> list[ImagePrompt]:
    """The controls of one adapter: one for all pictures, or with masks one for each."""
    if masks is None:
        if len(scales) > 1:
            raise InputError(
                f"scale of {name!r} has {len(scales)} entries, one for each picture; that needs "
                f"{MASKS}"
            )
        return [FamiliarPrompt(adapter=name, scale=scales[0], **given)]
    counts = {len(given["image"])} if "image" in given else set()
    counts |= {given[x].shape[1] for x in ("embedding", "face") if x in given}
    counts |= {masks.shape[1], *({len(scales)} if len(scales) > 1 else ())}
    if len(counts) > 1:
        raise InputError(
            f"{MASKS}: {masks.shape[1]} masks, and pictures or scales for another number "
            f"({', '.join(map(str, sorted(counts)))}) of {name!r}; allowed: as many"
        )

    def part(key: str, i: int) -> Any:
        value = given[key]
        if key != "image":
            return value[:, i : i + 1]
        return [value[i]] if isinstance(value, list) else value[i : i + 1]

    return [
        FamiliarPrompt(
            adapter=name,
            scale=scales[i % len(scales)],
            mask=masks[0, i],
            **{key: part(key, i) for key in given},
        )
        for i in range(masks.shape[1])
    ]


def _masks(components: Any, masks: Any, count: int) -> list[Any]:
    """Masks `(1, pictures, height, width)` for each IP-Adapter, or None."""
    framework = components.framework
    if framework.is_array(masks):  # of old: (adapters, 1, height, width)
        listed = [masks[i : i + 1] for i in range(masks.shape[0])]
    else:
        listed = list(masks) if isinstance(masks, list | tuple) else [masks]
    for mask in one_each(MASKS, listed, count):
        if mask is not None:
            checks.array(MASKS, mask, (1, None, None, None), framework)
    return listed


@dataclass(frozen=True, eq=False)
class FamiliarPrompt(ImagePrompt):
    """An image prompt whose features have diffusers' form: under guidance both halves, the
    unconditional one first; `image` may be normalised pixels `(pictures, 3, side, side)`."""

    def read(self, image: Any) -> tuple[tuple[Any, ...], ...]:
        if len(getattr(image, "shape", ())) == 4:
            return (tuple(image[i] for i in range(image.shape[0])),)
        return super().read(image)

    def given(self, c: IPAdapterConfig, planned: Planned) -> dict[str, np.ndarray]:
        found = super().given(c, planned)
        name = "face" if c.reads_faces else "embedding"
        if name in found and (rows := found[name]).shape[0] % 2 == 0:
            half = rows.shape[0] // 2
            whole = rows.shape[0] in (1, planned.images)
            if half in (1, planned.images) and (planned.guided or not whole):
                found[name] = rows[half:]
                if planned.guided and c.kind != "face-id-plus":
                    found["negative"] = rows[:half]
        return found
