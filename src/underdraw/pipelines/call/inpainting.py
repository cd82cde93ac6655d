"""What inpainting adds to a call: tensors that callbacks may change, and pixels that stay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from underdraw.backends.contract import Array
from underdraw.controls.control import Call, Control
from underdraw.controls.run import Run
from underdraw.errors import InputError
from underdraw.networks.sites import Sites
from underdraw.pictures import modes
from underdraw.pictures.pasting import originals, paste_all
from underdraw.pictures.reading import read_masks
from underdraw.pipelines.call.plan import Plan
from underdraw.pipelines.components.components import Components

TENSORS = ("mask", "masked_image_latents")
"""What callbacks may ask for besides the usual tensors."""


@dataclass(frozen=True)
class Painting:
    """The arguments of inpainting besides those that calls share, as they were given;
    `StableDiffusionInpaintPipeline` tells their meaning."""

    image: Any
    mask_image: Any
    masked_image_latents: Any
    height: Any
    width: Any
    padding_mask_crop: Any
    latents: Any
    paste_back: Any


def late_levels(solver: Any, clean: Array, noise: Array) -> list[Array]:
    """Known latents after each call of DPM2, two a step, as diffusers has them: in the middle of a
    step, too, at the level of its end."""
    last = len(solver)
    return [solver.noised(min(i + 1 + (i % 2 == 0), last), clean, noise) for i in range(last)]


@dataclass(frozen=True, eq=False)
class Changeable(Control):
    """A control whose carry callbacks may change between calls."""

    control: Control
    change: Callable[[Any], Any]
    """From the carry to the one of the next call."""

    def prepare(self, run: Run) -> Any:
        return self.control.prepare(run)

    def before_call(
        self, nn: Any, carry: Any, latents: Array, call: Call
    ) -> tuple[Array, Sites, Any]:
        return self.control.before_call(nn, self.change(carry), latents, call)

    def after_step(self, nn: Any, carry: Any, latents: Array, call: Call) -> tuple[Array, Any]:
        return self.control.after_step(nn, carry, latents, call)


def watched(run: Run, plan: Plan, own: Control, tensors: Mapping[str, Array | None]) -> Control:
    """The control of inpainting; where callbacks look at its tensors, as these leave them."""
    watch = plan.watch
    if watch is None or not set(watch.wanted) & set(TENSORS):
        return own
    times, concat = 1 + plan.guided, run.nn.concat
    watch.own = {
        name: concat((value,) * times, 0) for name, value in tensors.items() if value is not None
    }

    def changed(carry: Any) -> Any:
        found = {name: value[-plan.count :] for name, value in watch.own.items()}
        carry = carry._replace(mask=found["mask"])
        if hasattr(carry, "masked"):
            carry = carry._replace(masked=found["masked_image_latents"])
        return carry

    return Changeable(own, changed)


def pasted(
    components: Components, plan: Plan, made: Any, image: Any, mask: Any, pixels: Array
) -> Any:
    """Images of a call with the very pixels of the pictures it began with outside the mask.

    Args:
        made: as `output.decode` gives it, not latents.
        image, mask: as the caller gave them. PIL pictures keep their own size, to which PIL images
            are brought; else the size is that of the call.
        pixels: what was read of `image`, `(n, 3, height, width)` in [-1, 1].
    """
    framework, kind = components.framework, plan.request.output_type
    before = originals(image, framework.to_numpy(pixels), kind)
    size = before[0].size[::-1] if kind == "pil" else before[0].shape[:2]
    masks = framework.to_numpy(read_masks("mask_image", mask, framework, *size))[:, 0]
    return paste_all(made, before, masks, framework)


def check_crop(image: Any, mask: Any, output_type: str) -> tuple[Any, Any]:
    """What `padding_mask_crop` needs: picture and mask as people see them.

    Raises:
        InputError: something else than one PIL picture and one PIL mask of its size, giving PIL.
    """
    for name, value in (("image", image), ("mask_image", mask)):
        if not hasattr(value, "crop"):
            raise InputError(
                f"padding_mask_crop is given, so {name} must be a PIL picture, not "
                f"{type(value).__name__}"
            )
    image, mask = modes.plain("image", image), modes.as_mask("mask_image", mask)
    if image.size != mask.size:
        raise InputError(f"mask_image is {mask.size}, the image {image.size}; needed is one size")
    if output_type != "pil":
        raise InputError(f"output_type={output_type!r} with padding_mask_crop; allowed: 'pil'")
    return image, mask
