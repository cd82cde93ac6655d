"""The peer's methods that make the latents a run begins with, for code with a loop of its own; the
calls here do without them.

As the peer does, they repeat whole batches, so that several images of several prompts belong
together only where there is a row for each.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

from underdraw.backends import seeds
from underdraw.backends.contract import Array
from underdraw.errors import InputError
from underdraw.solvers.table import read_noise


def encoded(pipe: Any, image: Array, dtype: Any, device: Any, generator: Any) -> Array:
    """Latents of pictures `(n, 3, height, width)` in [-1, 1], drawn from the encoder's distribution
    and times `scaling_factor`; latents stay as they are. A list of generators has one per row."""
    framework, vae = pipe._framework, pipe.vae
    if image.shape[1] == vae.config.latent_channels:
        return framework.array(image, dtype=dtype, device=device)
    if isinstance(generator, list | tuple):
        generator = list(generator[: image.shape[0]])
    with framework.no_grad(), pipe._borrowed(vae):
        pixels = framework.array(image, dtype=vae.dtype, device=vae.device)
        found = vae.encode(pixels).latent_dist.sample(generator) * vae.config.scaling_factor
    return framework.array(found, dtype=dtype, device=device)


def tiled(pipe: Any, x: Array, count: int) -> Array:
    """All rows again and again, until there are `count`.

    Raises:
        InputError: that is no multiple of them.
    """
    rows = x.shape[0]
    if count % rows:
        raise InputError(f"image has {rows} rows; allowed: a divisor of {count}, the batch size")
    return x if rows == count else pipe._operations.concat([x] * (count // rows), 0)


def noised(pipe: Any, clean: Array, timestep: Array, generator: Any) -> tuple[Array, Array]:
    """Latents at the level of a scheduler's timestep (one, or one per row), and their noise."""
    drawn = seeds.generators(generator, None, clean.shape[0])
    noise = pipe._framework.draw(tuple(clean.shape), drawn, clean.device, clean.dtype)
    return pipe.scheduler.add_noise(clean, noise, timestep), noise


class PictureLatents:
    """`prepare_latents` of image-to-image."""

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
        pipe: Any = self
        count = batch_size * num_images_per_prompt
        generator = seeds.generators(generator, None, count)
        if isinstance(generator, list | tuple):
            image = tiled(pipe, image, count)
        clean = encoded(pipe, image, dtype, device, generator)
        return noised(pipe, tiled(pipe, clean, count), timestep, generator)[0]


class InpaintLatents:
    """`prepare_latents` of inpainting."""

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
        pipe: Any = self
        if not is_strength_max and (image is None or timestep is None):
            raise InputError("is_strength_max=False; give image and timestep")
        drawn = seeds.generators(generator, None, batch_size)
        clean: Any = None
        if return_image_latents or (latents is None and not is_strength_max):
            if image is None:
                raise InputError("return_image_latents=True; give image")
            clean = tiled(pipe, encoded(pipe, image, dtype, device, drawn), batch_size)
        noise: Any
        if latents is None and not is_strength_max:
            begin, noise = noised(pipe, clean, timestep, drawn)
        else:
            shape = (batch_size, num_channels_latents, height, width)
            noise = pipe._first_noise(shape, dtype, device, drawn, latents)
            begin = noise * getattr(pipe.scheduler, "init_noise_sigma", 1.0)
        made = (begin, *((noise,) if return_noise else ()))
        return (*made, clean) if return_image_latents else made


class InvertedLatents:
    """Further methods of DiffEdit."""

    inverse_scheduler: Any

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
        pipe: Any = self
        drawn = seeds.generators(generator, None, batch_size)
        if isinstance(drawn, list | tuple):
            image = tiled(pipe, image, batch_size)
        return tiled(pipe, encoded(pipe, image, dtype, device, drawn), batch_size)

    def get_inverse_timesteps(
        self, num_inference_steps: int, strength: float, device: Any = None
    ) -> tuple[Array, int]:
        """Of the timesteps which `inverse_scheduler` was set to those of an inversion, and how many
        steps these are."""
        kept = min(int(num_inference_steps * strength), num_inference_steps)
        dropped = num_inference_steps - kept
        times: Any = self._upwards_scheduler().timesteps
        return (times[:-dropped] if dropped else times), kept

    def get_epsilon(self, model_output: Array, sample: Array, timestep: Any) -> Array:
        """The noise in what a network answered about latents at a timestep."""
        scheduler = self._upwards_scheduler()
        kept = float(scheduler.alphas_cumprod[int(timestep)])
        kind = scheduler.config["prediction_type"]
        from_sample, from_output = read_noise(kind, sqrt(kept), sqrt(1 - kept))
        answer: Any = model_output
        return answer * from_output + sample * from_sample

    def _upwards_scheduler(self) -> Any:
        if self.inverse_scheduler is None:
            raise InputError("inverse_scheduler=None; this method of the peer's needs one")
        return self.inverse_scheduler
