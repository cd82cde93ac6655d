"""`ImagePrompt`: pictures stand beside the prompt (Ye et al. 2023, "IP-Adapter").

An IP-Adapter makes a few tokens of a picture, which every cross-attention looks at by keys and
values of its own; what it finds is added to what it finds in the text. The text, its tokens and
whatever changes attention to it stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from underdraw import backends, checks
from underdraw.backends.contract import Array, Operations
from underdraw.checks import shown
from underdraw.controls.components import attached
from underdraw.controls.control import Call, Planned, Run
from underdraw.controls.image_prompt_run import WHAT, Ready, keys_of, masks_of
from underdraw.controls.lora import here
from underdraw.controls.per_image import each_of, strengths_of, together
from underdraw.controls.seeing import check_pixels, check_tower
from underdraw.controls.steady import Steady
from underdraw.errors import InputError, InputTypeError
from underdraw.models.ip_adapter import IPAdapter
from underdraw.networks.ip_adapter.config import IPAdapterConfig
from underdraw.networks.sites import Sites
from underdraw.pictures.reading import as_picture, read_soft_masks
from underdraw.weights.lora.scales import Scales, by_block

KIND = "ip-adapter"
"""Of adapters: what `pipe.load_ip_adapter` attaches."""
MOST_PICTURES = 64
"""Of one image prompt and one image."""


@dataclass(frozen=True, eq=False)
class ImagePrompt(Steady):
    """What pictures show acts beside the prompt: `ImagePrompt(photo, 0.7)`.

        pipe.load_ip_adapter("h94/IP-Adapter", "models", "ip-adapter_sd15.bin")
        pipe("a cube on a table", controls=[ImagePrompt(photo, 0.6)])

    Args:
        image: a PIL picture, or an array, of numpy `(height, width, 3)`, of a framework `(3,
            height, width)`, uint8 or in [0, 1]; several in a list act together; a list of lists has
            as many pictures for each image of the call.
        scale: how much is added, 1 as in training; a number, or diffusers' mapping of blocks to
            numbers, such as `{"up": {"block_0": [0.0, 1.0, 0.0]}}`, in which blocks that are not
            there have 0.
        mask: where, a PIL picture (white is where) or an array `(height, width)` in [0, 1]; or one
            for each image of the call. None: everywhere.
        adapter: an `IPAdapter`, or the name of one that is attached; None: the only one that is.
        embedding: what an image tower gives instead of pictures: embeddings `(pictures, width)` or
            hidden states `(pictures, tokens, width)`, with one more axis in front where each image
            of the call has its own.
        negative: the same for the unconditional half; None: zeros, or hidden states of a blank
            picture.
        face: features of faces `(width,)`, `(pictures, width)` or `(images, pictures, width)`, for
            the kinds "face-id" (which takes nothing else) and "face-id-plus".
        shortcut_scale: kind "face-id-plus" of version 2: how much of what the picture shows is
            added to the face.
        start, end: fractions of the run between which it acts: in calls that begin at or after
            `start`, and are over at `end`.
        strength: how much of `scale` over the run, `Strength` or (on, decay, off); None: all of it.

    `scale`, `start`, `end` and `strength` may be lists with one entry per image of the call.
    Differences to the UNet that a FaceID file brings along act as much as `strength` says wherever
    the scale is not 0.

    Raises:
        InputError, InputTypeError: a value is none of these; when a call begins: the adapter is not
            attached, was made for another UNet or image tower, or there are entries for another
            number of images.
    """

    image: Any = None
    scale: Any = 1.0
    mask: Any = None
    adapter: IPAdapter | str | None = None
    embedding: Any = None
    negative: Any = None
    face: Any = None
    shortcut_scale: float = 1.0
    start: Any = 0.0
    end: Any = 1.0
    strength: Any = None
    scales: tuple[Scales, ...] = field(init=False, repr=False)
    """`scale` for all images, or for each."""
    pictures: tuple[tuple[Any, ...], ...] = field(init=False, repr=False)
    """`image` for all images, or for each, in RGB."""

    def __post_init__(self) -> None:
        def keep(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        if self.adapter is not None and not isinstance(self.adapter, IPAdapter | str):
            raise InputTypeError(
                f"ImagePrompt(adapter={shown(self.adapter)}); allowed: an IPAdapter, the name of "
                "one that is attached, None"
            )
        if self.image is not None and self.embedding is not None:
            raise InputError("ImagePrompt: image and embedding are both given; give one")
        if self.image is None and self.embedding is None and self.face is None:
            raise InputError("ImagePrompt: give image, embedding or face")
        keep("pictures", () if self.image is None else self.read(self.image))
        for name in ("embedding", "negative", "face"):
            if (value := getattr(self, name)) is not None:
                keep(name, _numbers(f"ImagePrompt({name})", value))
        keep("scales", _scales(self.scale))
        checks.factor("ImagePrompt(shortcut_scale)", self.shortcut_scale)
        for name in ("start", "end"):
            values = each_of(f"ImagePrompt({name})", getattr(self, name))
            kept = tuple(checks.number(f"ImagePrompt({name})", one, 0.0, 1.0) for one in values)
            keep(name, kept)
        for start, end in together(self.start, self.end):
            if start >= end:
                raise InputError(
                    f"ImagePrompt(start={start}, end={end}); allowed: start before end"
                )
        keep("strength", strengths_of(self.strength))

    def read(self, image: Any) -> tuple[tuple[Any, ...], ...]:
        """`image` as pictures for all images, or for each."""
        return _pictures(image)

    # -- before a run
    def check(self, planned: Planned) -> None:
        """That the adapter is there and for this UNet, can be shown what is given, and that there
        are entries for all images or for each."""
        adapter = self._adapter(planned)
        c = adapter.config
        c.require_fit(planned.model.config)
        given = self.given(c, planned)
        counts = {"scale": len(self.scales)}
        counts |= {name: len(getattr(self, name)) for name in ("start", "end", "strength")}
        counts |= {name: x.shape[0] for name, x in given.items()}
        pictures = {name: x.shape[1] for name, x in given.items()}
        if self.pictures:
            counts["image"], pictures["image"] = len(self.pictures), len(self.pictures[0])
        if len(set(pictures.values())) > 1:
            told = " and ".join(f"{n} of {name}" for name, n in pictures.items())
            raise InputError(f"ImagePrompt: {told} do not belong together; allowed: as many")
        deep = {name: x.shape[2] for name, x in given.items() if x.ndim == 4}
        blank = planned.guided and c.sees and not c.pooled and "negative" not in given
        if self.pictures or blank:
            tower = check_tower(planned.components, c.pooled, c.feature_width, WHAT)
            deep |= {} if c.pooled or not deep else {"image_encoder": tower.config.tokens}
            check_pixels(tower, self.pictures)
        if len(set(deep.values())) > 1:
            told = " and ".join(f"{n} tokens of {name}" for name, n in deep.items())
            raise InputError(f"ImagePrompt: {told} do not belong together; allowed: as many")
        if self.mask is not None:
            counts["mask"] = self._mask(planned).shape[0]
        for one in self.scales:
            places = (one.of("unet", place, 0.0) for place, *_ in c.layers)
            if one.unet and any(factor for _, factor in one.parts) and not any(places):
                raise InputError(
                    f"ImagePrompt(scale={shown(self.scale)}) names no block of this UNet that "
                    f"looks at pictures; there are {', '.join(place for place, *_ in c.layers)}"
                )
        for name, found in counts.items():
            if found not in (1, planned.images):
                raise InputError(
                    f"ImagePrompt({name}) has {found} entries; the call makes {planned.images} "
                    "images"
                )

    def _adapter(self, run: Run | Planned) -> IPAdapter:
        if isinstance(self.adapter, IPAdapter):
            found = self.adapter
        else:
            told = f"ImagePrompt(adapter={self.adapter!r:.80})"
            found = attached(run.components, KIND, self.adapter, told, "load_ip_adapter")
        if found.nn.name != run.framework.operations.name:
            raise InputError(
                f"ImagePrompt(adapter) is on the backend {found.nn.name!r}; the UNet is on "
                f"{run.framework.operations.name!r}"
            )
        return found

    def given(self, c: IPAdapterConfig, planned: Planned) -> dict[str, np.ndarray]:
        """The features that were given, by name, `(1 or images, pictures, ..., width)`.

        Raises:
            InputError: the adapter reads something else, or they have another shape.
        """
        if not c.sees and (self.image is not None or self.embedding is not None):
            raise InputError("ImagePrompt: the adapter reads faces alone; give face")
        if c.sees and self.image is None and self.embedding is None:
            raise InputError("ImagePrompt: the adapter reads pictures; give image or embedding")
        if c.reads_faces and self.face is None:
            raise InputError("ImagePrompt: the adapter reads faces; give face, their features")
        if not c.reads_faces and self.face is not None:
            raise InputError("ImagePrompt: the adapter reads no faces; leave face out")
        found = {}
        for name in ("embedding", "negative", "face"):
            if (given := getattr(self, name)) is None:
                continue
            of_face = name == "face" or not c.sees
            axes = 2 if of_face or c.pooled else 3
            width = c.face_width if of_face else c.feature_width
            x = given[None] if name == "face" and given.ndim == 1 else given
            x = x[None] if x.ndim == axes else x
            if x.ndim != axes + 1 or x.shape[-1] != width:
                tokens = "" if axes == 2 else "tokens, "
                raise InputError(
                    f"ImagePrompt({name}) has shape {given.shape}; needed is (pictures, {tokens}"
                    f"{width}), or that for each image"
                )
            found[name] = x
        return found

    def _mask(self, run: Planned) -> Array:
        parts, (height, width) = run.components, run.shape[2:]
        factor = 1 if parts is None else parts.vae.config.factor
        size = (height * factor, width * factor)
        return read_soft_masks("ImagePrompt(mask)", self.mask, run.framework, *size)

    # -- in a run
    def prepare(self, run: Run) -> Ready:
        """Keys and values of the pictures, masks for each level, and what the file lays over the
        UNet."""
        adapter, device = self._adapter(run), getattr(run.latents, "device", None)
        planned, masks = run.planned, {}
        given = self.given(adapter.config, planned)
        keys = keys_of(run, adapter, self.pictures, given, self.shortcut_scale)
        if self.mask is not None:
            masks = masks_of(run, adapter.config, self._mask(planned))
        lora = here(adapter.lora(), run.framework, device)
        over = together(self.scales, self.start, self.end, self.strength)
        return Ready(tuple(over), run.framework, device, run.batch, keys, masks, lora, {})

    def sites_at(self, nn: Operations, carry: Ready, like: Array, call: Call) -> Sites:
        return carry.sites(call)


# -- checking arguments ----------------------------------------------------------------------------
def _pictures(given: Any) -> tuple[tuple[Any, ...], ...]:
    """Pictures for all images, or for each."""
    listed = given if isinstance(given, list | tuple) else [given]
    if not listed:
        raise InputError("ImagePrompt(image) is an empty list; give at least one picture")
    nested = [isinstance(one, list | tuple) for one in listed]
    rows = listed if all(nested) else [listed]
    if any(nested) and not all(nested):
        raise InputTypeError("ImagePrompt(image) mixes pictures and lists of them")
    found = tuple(tuple(as_picture("ImagePrompt(image)", one) for one in row) for row in rows)
    sizes = {len(row) for row in found}
    if len(sizes) > 1 or not 1 <= max(sizes) <= MOST_PICTURES:
        raise InputError(
            f"ImagePrompt(image) holds lists of {sorted(sizes)} pictures; allowed: one number, 1 "
            f".. {MOST_PICTURES}"
        )
    return found


def _numbers(name: str, value: Any) -> np.ndarray:
    """Features as float32 of numpy."""
    if not isinstance(value, np.ndarray):
        framework = backends.of(value, name)
        value = checks.readable(name, value, framework.to_numpy)
    if value.dtype.kind != "f" or value.size == 0:
        raise InputTypeError(f"{name} is {shown(value)}; needed are floating-point numbers")
    if not np.isfinite(value).all():
        raise InputError(f"{name} holds NaN or infinity")
    return value.astype(np.float32)


def _scales(value: Any) -> tuple[Scales, ...]:
    name = "ImagePrompt(scale)"
    if isinstance(value, list | tuple):
        if not value:
            raise InputError(f"{name}=[] is empty; needed is an entry for each image")
        return tuple(as_scale(name, one) for one in value)
    if not isinstance(value, Mapping | Scales):
        return tuple(as_scale(name, one) for one in each_of(name, value))
    return (as_scale(name, value),)


def as_scale(name: str, value: Any) -> Scales:
    """How much an image prompt acts: a number, or a mapping of blocks, those not in it with 0."""
    if isinstance(value, Scales):
        return value
    if isinstance(value, Mapping):
        return by_block(name, value) if value else Scales(0.0)
    return Scales(checks.factor(name, value))
