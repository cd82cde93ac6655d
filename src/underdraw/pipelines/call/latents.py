"""What calls share that begin with pictures: encoding them, and pasting back what was to stay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from underdraw.backends.contract import Array
from underdraw.controls.control import Call, Control, Run
from underdraw.errors import InputError, NonFiniteError
from underdraw.networks.sites import Sites
from underdraw.pictures.pasting import paste
from underdraw.pictures.reading import read_masks
from underdraw.pictures.writing import to_pil
from underdraw.pipelines.call.request import Plan


def for_each(pipe: Any, x: Array, count: int) -> Array:
    """Rows of `x (n, ...)` for `count` images; those of one row are next to each other, as the
    images of a prompt are. The peer repeats the whole batch, so that pictures and prompts no longer
    belong together."""
    rows, nn = x.shape[0], pipe._operations
    if rows == count:
        return x
    if pipe.compat == "diffusers":
        return nn.concat([x] * (count // rows), 0)
    x = nn.expand(x[:, None], (rows, count // rows, *x.shape[1:]))
    return x.reshape(-1, *x.shape[2:])


def encode(pipe: Any, plan: Plan, pictures: Array, alike: bool = False) -> Array:
    """Clean latents `(plan.count, channels, height, width)` of pictures, float32.

    They are drawn from the encoder's distribution: with a generator per image each image draws its
    own, else each picture once.

    Args:
        pictures: `(n, 3, height, width)` in [-1, 1], n a divisor of the count; or latents, which
            stay as they are.
        alike: all images of a picture share what the first ones' generators draw.

    Raises:
        NonFiniteError: the encoder gave NaN or infinity.
    """
    framework, vae, nn = pipe._framework, pipe.vae, pipe._operations
    if pictures.shape[1] == vae.config.latent_channels:
        latents = nn.float32(framework.array(pictures, device=pipe.device))
        return for_each(pipe, latents, plan.count)
    with framework.no_grad():
        with pipe._borrowed(vae):
            pixels = framework.array(pictures, dtype=vae.dtype, device=vae.device)
            found = vae.encode_with(pixels, pipe.settings.vae_slicing, pipe._tiling)
        noise = posterior_noise(pipe, plan, found.mean.shape, alike)
        each = (for_each(pipe, nn.float32(x), noise.shape[0]) for x in (found.mean, found.std))
        mean, std = (framework.array(x, device=pipe.device) for x in each)
        latents = (mean + std * nn.float32(noise)) * vae.config.scaling_factor
    if not framework.is_finite(latents):
        raise NonFiniteError(
            "vae: encoding gave NaN or infinity; its weights hold such values, or its dtype is too "
            "narrow (try dtype='float32' or 'bfloat16')"
        )
    return for_each(pipe, latents, plan.count)


def posterior_noise(pipe: Any, plan: Plan, shape: Any, alike: bool = False) -> Array:
    """What `encode` draws for pictures whose latents have this shape."""
    framework, drawn, rows = pipe._framework, plan.generators, shape[0]
    if isinstance(drawn, list | tuple):
        rows = rows if alike else plan.count
        drawn = drawn[:rows]
    dtype = pipe.vae.dtype if plan.request.seed is None else framework.float32
    return framework.draw((rows, *shape[1:]), drawn, pipe.device, dtype)


def late_levels(solver: Any, clean: Array, noise: Array) -> list[Array]:
    """Known latents after each call of DPM2, two a step, as the peer has them: in the middle of a
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


def pasted(pipe: Any, plan: Plan, made: Any, image: Any, mask: Any, pixels: Array) -> Any:
    """Images of a call with the very pixels of the pictures it began with outside the mask.

    Args:
        made: as `Calls._decode` gives it, not latents.
        image, mask: as the caller gave them. PIL pictures keep their own size, to which PIL images
            are brought; else the size is that of the call.
        pixels: what was read of `image`, `(n, 3, height, width)` in [-1, 1].
    """
    framework, kind = pipe._framework, plan.request.output_type
    originals = list(image) if isinstance(image, list | tuple) else [image]
    if kind != "pil" or not hasattr(originals[0], "convert"):
        plain = framework.to_numpy(pixels).transpose(0, 2, 3, 1) / np.float32(2) + np.float32(0.5)
        originals = [one.clip(0, 1) for one in plain]
        if kind == "pil":
            originals = to_pil(np.stack(originals))
    size = originals[0].size[::-1] if kind == "pil" else originals[0].shape[:2]
    masks = framework.to_numpy(read_masks("mask_image", mask, framework, *size))[:, 0]
    after = framework.to_numpy(made).transpose(0, 2, 3, 1) if kind == "pt" else made
    done = [
        paste(originals[row(plan, i, originals)], after[i], masks[row(plan, i, masks)])
        for i in range(plan.count)
    ]
    if kind == "pil":
        return done
    whole = np.stack(done)
    if kind == "np":
        return whole
    array = framework.array(whole.transpose(0, 3, 1, 2), device=made.device)
    return pipe._operations.cast(array, made)


def row(plan: Plan, image: int, given: Any) -> int:
    """Which of the things given, one per picture or one for all, belongs to an image."""
    return image * len(given) // plan.count


def check_crop(image: Any, mask: Any, output_type: str) -> None:
    """What `padding_mask_crop` needs.

    Raises:
        InputError: something else than one PIL picture and one PIL mask of its size, giving PIL.
    """
    for name, value in (("image", image), ("mask_image", mask)):
        if not hasattr(value, "crop"):
            raise InputError(
                f"padding_mask_crop is given, so {name} must be a PIL picture, not "
                f"{type(value).__name__}"
            )
    if image.size != mask.size:
        raise InputError(f"mask_image is {mask.size}, the image {image.size}; needed is one size")
    if output_type != "pil":
        raise InputError(f"output_type={output_type!r} with padding_mask_crop; allowed: 'pil'")
