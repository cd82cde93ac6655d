"""GLIGEN's inpainting: what lies outside of the boxes is kept from a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from underdraw import backends
from underdraw.backends.contract import Array, Operations
from underdraw.controls.boxes import Layout
from underdraw.controls.control import Call, Run
from underdraw.controls.inpainting import FurtherChannels
from underdraw.controls.region import Blend, Region
from underdraw.controls.steady import Steady
from underdraw.errors import InputError
from underdraw.networks.gligen.grounding import Constants
from underdraw.networks.sites import NO_SITES, Sites
from underdraw.pictures import modes
from underdraw.pictures.cropping import box_mask, cut_to
from underdraw.pictures.pasting import paste_all
from underdraw.pictures.reading import as_picture, check_alike, read_masks, read_pictures, shrunk
from underdraw.pipelines.components.components import Components


@dataclass(frozen=True)
class Inpainting:
    """Pictures of a call, ready: their size is that of the result."""

    pictures: Sequence[Any]
    """PIL images, one for all or one per image."""
    pixels: np.ndarray
    """Where to paint anew, `(1 or images, height, width)` of 0 and 1, in pixels."""
    inside: Array
    """The same for latents, `(1 or images, 1, height / 8, width / 8)`."""

    def paste_back(self, made: Any, framework: Any) -> Any:
        """Images of any output type but latents, with the pictures' own pixels outside."""
        return paste_all(made, self.pictures, self.pixels, framework)


def encode_known(components: Components, inpainting: Inpainting, sample: bool = False) -> Array:
    """Latents of the pictures, float32: the mean, or as diffusers has them a sample."""
    framework = components.framework
    pixels = read_pictures("gligen_inpaint_image", list(inpainting.pictures), framework)
    found = components.encode(pixels)
    with framework.no_grad():
        latents = framework.operations.float32(found.sample() if sample else found.mean)
        return framework.array(components.scaled(latents), device=components.device)


def read_inpainting(
    components: Components,
    image: Any,
    mask: Any,
    layouts: Sequence[Layout],
    count: int,
    prompts: int,
    size: tuple[int, int],
) -> Inpainting:
    """Pictures and masks of a call of `count` images of `size (height, width)`, as many for each of
    `prompts`.

    Raises:
        InputError, InputTypeError: they are no pictures or masks, or not 1, `prompts` or `count`.
    """
    height, width = size
    framework = components.framework
    several = isinstance(image, list | tuple) or getattr(image, "ndim", 0) == 4
    given = list(image) if several else [image]
    if len(given) not in (1, prompts, count):
        raise InputError(
            f"gligen_inpaint_image has {len(given)} pictures; allowed: 1 or {count}, one per image"
        )
    check_alike(given, mask, "gligen_inpaint_mask")
    given = [one for one in given for _ in range(count // len(given) if len(given) > 1 else 1)]
    pictures = [cut_to(as_picture("gligen_inpaint_image", one), height, width) for one in given]
    if mask is None:
        factor = components.vae.config.factor
        drawn, cells = (
            np.stack([box_mask([e.box for e in layout.entries], high, wide) for layout in layouts])
            for high, wide in (size, (height // factor, width // factor))
        )
        return Inpainting(
            pictures, drawn, framework.array(cells[:, None], device=components.device)
        )
    masks = list(mask) if isinstance(mask, list | tuple) else [mask]
    # A picture of a mask is cut as the picture beside it.
    masks = [
        cut_to(modes.as_mask("gligen_inpaint_mask", one), height, width)
        if hasattr(one, "crop")
        else one
        for one in masks
    ]
    read = read_masks("gligen_inpaint_mask", masks, framework, height, width)
    if read.shape[0] not in (1, prompts, count):
        raise InputError(
            f"gligen_inpaint_mask has {read.shape[0]} masks; allowed: 1 or {count}, one per image"
        )
    if read.shape[0] > 1:
        read = framework.array(framework.to_numpy(read).repeat(count // read.shape[0], 0))
    inside = shrunk(framework.operations, read, components.vae.config.factor)
    pixels = framework.to_numpy(read)[:, 0]
    return Inpainting(pictures, pixels, framework.array(inside, device=components.device))


@dataclass(frozen=True, eq=False)
class KnownChannels(Steady):
    """Shows an inpainting network what is kept: the picture's latents outside, and where that is.

    Args:
        known: clean latents `(1 or images, 4, height, width)`.
        outside: 1 where they are kept, `(1 or images, 1, height, width)`.
        network: grounding weights with a first convolution of their own, lifted off an inpainting
            UNet; None where the UNet itself takes the further channels.
    """

    known: Array
    outside: Array
    network: Any = None

    def prepare(self, run: Run) -> dict[bool, Array]:
        """The further channels for calls without guidance and with it, a row per image."""
        nn, images = run.nn, run.batch
        parts = (self.known * self.outside, self.outside)
        rows = max(part.shape[0] for part in parts)
        grown = [nn.expand(part, (rows, *part.shape[1:])) for part in parts]
        extra = nn.concat(grown, 1)
        extra = nn.expand(extra, (images, *extra.shape[1:]))
        return {False: extra, True: nn.concat((extra, extra), 0)}

    def sites_at(self, nn: Operations, carry: dict[bool, Array], like: Array, call: Call) -> Sites:
        """The channels join the latents inside the call."""
        if self.network is None:
            return Sites(model_input=(FurtherChannels((carry[False],)),))
        return self.network.sites(Constants({}, None), 0.0, carry[call.guided])


class DiffusersRegion(Region):
    """Blends as diffusers does: before each call with fresh noise from PyTorch's global stream, one
    for the whole batch, and not after the last call, so that the background drifts."""

    def before_call(
        self, nn: Any, carry: Any, latents: Array, call: Call
    ) -> tuple[Array, Any, Any]:
        framework = backends.get(nn.name)
        noise = framework.draw((1, *latents.shape[1:]), None, latents.device, latents.dtype)
        known = carry.solver.noised(call.index, carry.clean, noise)
        return Blend(carry.mask, known)(nn, latents), NO_SITES, carry

    def after_step(self, nn: Any, carry: Any, latents: Array, call: Call) -> tuple[Array, Any]:
        return latents, carry
