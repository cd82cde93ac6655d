"""Methods of diffusers that make the latents a run begins with, for code with a loop of its own.

As diffusers does, they repeat whole batches, so that several images of several prompts belong
together only where there is a row for each.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np

from underdraw import checks
from underdraw.arguments import checked
from underdraw.backends import seeds
from underdraw.backends.contract import Array
from underdraw.errors import InputError
from underdraw.pipelines.call.latents import LONGEST_SIDE
from underdraw.pipelines.call.plan import MOST_IMAGES, count_images
from underdraw.pipelines.components.components import Components
from underdraw.schedulers.arrays import check_latents, read_time, read_times
from underdraw.solvers.table import MOST_STEPS, read_noise


def encoded(components: Components, image: Array, dtype: Any, device: Any, generator: Any) -> Array:
    """Latents of pictures `(n, 3, height, width)` in [-1, 1], drawn from the encoder's distribution
    and times `scaling_factor`; latents stay as they are. A list of generators has one per row."""
    framework = components.framework
    checks.array("image", image, (None,) * 4, framework)
    checks.usable("device", device, framework)
    checks.dtype("dtype", dtype)
    if image.shape[1] not in (3, components.vae.config.latent_channels):
        raise InputError(f"image has {image.shape[1]} channels; allowed: 3, or those of latents")
    if image.shape[1] == components.vae.config.latent_channels:
        return framework.array(image, dtype=dtype, device=device)
    if isinstance(generator, list | tuple):
        generator = list(generator[: image.shape[0]])
    with framework.no_grad():
        found = components.scaled(components.encode(image).sample(generator))
    return framework.array(found, dtype=dtype, device=device)


def tiled(components: Components, x: Array, count: int) -> Array:
    """All rows again and again, until there are `count`.

    Raises:
        InputError: that is no multiple of them.
    """
    rows = x.shape[0]
    if count % rows:
        raise InputError(
            f"image has {rows} rows; allowed: a divisor of {count}, the number of images "
            "(batch_size, num_images_per_prompt)"
        )
    return x if rows == count else components.nn.concat([x] * (count // rows), 0)


def noised(
    components: Components, clean: Array, timestep: Array, generator: Any
) -> tuple[Array, Array]:
    """Latents at the level of a scheduler's timestep (one, or one per row), and their noise."""
    drawn = seeds.generators(generator, None, clean.shape[0])
    noise = components.framework.draw(tuple(clean.shape), drawn, clean.device, clean.dtype)
    return components.scheduler.add_noise(clean, noise, timestep), noise


def first_noise(
    components: Components,
    shape: tuple[int, ...],
    dtype: Any,
    device: Any,
    generator: Any,
    latents: Any,
) -> Array:
    """Noise for `shape`, whose sides are in pixels, or `latents` instead."""
    names = ("batch_size", "num_channels_latents", "height", "width")
    limits = (MOST_IMAGES, MOST_IMAGES, LONGEST_SIDE, LONGEST_SIDE)
    for name, value, most in zip(names, shape, limits, strict=True):
        checks.whole(name, value, 1, most)
    checks.usable("device", device, components.framework)
    checks.dtype("dtype", dtype)
    *rows, height, width = shape
    factor, framework = components.vae.config.factor, components.framework
    drawn = seeds.generators(generator, None, shape[0])
    device = components.device if device is None else device
    if latents is not None:
        checks.array("latents", latents, (None,) * 4, framework)
        return framework.array(latents, device=device)
    like = framework.leaf(components.unet.conv_in).dtype if dtype is None else dtype
    return framework.draw((*rows, height // factor, width // factor), drawn, device, like)


class PictureLatents:
    """`prepare_latents` of image-to-image."""

    parts: Components

    @checked
    def prepare_latents(
        self,
        image: Array,
        timestep: Array,
        batch_size: int,
        num_images_per_prompt: int,
        dtype: Any = None,
        device: Any = None,
        generator: Any = None,
    ) -> Array:
        """Pictures `(n, 3, height, width)` in [-1, 1], or latents, at the noise of a timestep:
        `(batch_size * num_images_per_prompt, 4, height / 8, width / 8)`.

        Raises:
            InputError: n does not divide that number, or there is another number of generators.
        """
        count = count_images(checks.whole("batch_size", batch_size), num_images_per_prompt)
        generator = seeds.generators(generator, None, count)
        if isinstance(generator, list | tuple):
            image = tiled(self.parts, image, count)
        clean = encoded(self.parts, image, dtype, device, generator)
        return noised(self.parts, tiled(self.parts, clean, count), timestep, generator)[0]


class InpaintLatents:
    """`prepare_latents` of inpainting."""

    parts: Components

    def prepare_latents(
        self,
        batch_size: int,
        num_channels_latents: int,
        height: int,
        width: int,
        dtype: Any = None,
        device: Any = None,
        generator: Any = None,
        latents: Array | None = None,
        image: Array | None = None,
        timestep: Array | None = None,
        is_strength_max: bool = True,
        return_noise: bool = False,
        return_image_latents: bool = False,
    ) -> tuple[Array, ...]:
        """What a run begins with, and if asked for its noise and the latents of `image`.

        Args:
            image: pictures `(n, 3, height, width)` in [-1, 1], or latents.
            timestep: of the scheduler, where `is_strength_max` is False: then pictures get the
                noise of that level, else the run begins with noise alone.
            latents: noise to use instead of drawing it, times the scheduler's first noise level.

        Raises:
            InputError: no `image` or `timestep` where they are needed, or numbers do not match.
        """
        for name, value in (
            ("is_strength_max", is_strength_max),
            ("return_noise", return_noise),
            ("return_image_latents", return_image_latents),
        ):
            checks.flag(name, value)
        checks.whole("batch_size", batch_size, 1, MOST_IMAGES)
        if image is not None:
            checks.array("image", image, (None,) * 4, self.parts.framework)
        if timestep is not None:
            read_times(timestep, np.zeros(batch_size))
        if not is_strength_max and (image is None or timestep is None):
            raise InputError("is_strength_max=False; give image and timestep")
        drawn = seeds.generators(generator, None, batch_size)
        clean: Any = None
        if return_image_latents or (latents is None and not is_strength_max):
            if image is None:
                raise InputError("return_image_latents=True; give image")
            clean = tiled(self.parts, encoded(self.parts, image, dtype, device, drawn), batch_size)
        noise: Any
        if latents is None and not is_strength_max:
            begin, noise = noised(self.parts, clean, timestep, drawn)
        else:
            shape = (batch_size, num_channels_latents, height, width)
            noise = first_noise(self.parts, shape, dtype, device, drawn, latents)
            begin = noise * getattr(self.parts.scheduler, "init_noise_sigma", 1.0)
        made = (begin, *((noise,) if return_noise else ()))
        return (*made, clean) if return_image_latents else made


class InvertedLatents:
    """Further methods of DiffEdit."""

    parts: Components

    def prepare_image_latents(
        self,
        image: Array,
        batch_size: int,
        dtype: Any = None,
        device: Any = None,
        generator: Any = None,
    ) -> Array:
        """Clean latents `(batch_size, 4, height / 8, width / 8)` of pictures `(n, 3, height,
        width)` in [-1, 1], or of latents; InputError where n does not divide `batch_size`."""
        checks.whole("batch_size", batch_size, 1, MOST_IMAGES)
        drawn = seeds.generators(generator, None, batch_size)
        checks.array("image", image, (None,) * 4, self.parts.framework)
        if isinstance(drawn, list | tuple):
            image = tiled(self.parts, image, batch_size)
        return tiled(self.parts, encoded(self.parts, image, dtype, device, drawn), batch_size)

    def get_inverse_timesteps(
        self, num_inference_steps: int, strength: float, device: Any = None
    ) -> tuple[Array, int]:
        """Of the timesteps which `inverse_scheduler` was set to those of an inversion, and how many
        steps these are."""
        checks.whole("num_inference_steps", num_inference_steps, 1, MOST_STEPS)
        checks.number("strength", strength, 0.0, 1.0)
        checks.device("device", device)
        kept = min(int(num_inference_steps * strength), num_inference_steps)
        dropped = num_inference_steps - kept
        times: Any = self._upwards_scheduler().timesteps
        return (times[:-dropped] if dropped else times), kept

    def get_epsilon(self, model_output: Array, sample: Array, timestep: Any) -> Array:
        """The noise in what a network answered about latents at a timestep."""
        scheduler = self._upwards_scheduler()
        check_latents("sample", sample)
        check_latents("model_output", model_output, sample, "sample")
        time, levels = int(read_time(timestep)), scheduler.alphas_cumprod
        if not 0 <= time < len(levels):
            raise InputError(f"timestep={time} is out of range; allowed: 0 .. {len(levels) - 1}")
        kept = float(levels[time])
        kind = scheduler.config["prediction_type"]
        from_sample, from_output = read_noise(kind, sqrt(kept), sqrt(1 - kept))
        answer: Any = model_output
        return answer * from_output + sample * from_sample

    def _upwards_scheduler(self) -> Any:
        if self.parts.inverse_scheduler is None:
            raise InputError("inverse_scheduler=None; this method of diffusers needs one")
        return self.parts.inverse_scheduler
