"""`FlaxStableDiffusionInpaintPipeline`: what a mask covers made anew."""

from __future__ import annotations

from typing import Any

from underdraw.backends.contract import Array
from underdraw.controls.inpainting import FurtherChannels
from underdraw.errors import InputError
from underdraw.flax import programs
from underdraw.flax.params import jax
from underdraw.flax.pipelines.base import FlaxDiffusionPipeline
from underdraw.flax.pipelines.call import Request, finish, floats, given, make_plan, run
from underdraw.flax.pipelines.prepare import masks, pictures
from underdraw.networks.sites import Sites
from underdraw.pipelines.stable_diffusion_inpaint import StableDiffusionInpaintPipeline


class FlaxStableDiffusionInpaintPipeline(FlaxDiffusionPipeline):
    """What a mask covers made anew, by UNets that take mask and picture beside the latents, as
    diffusers 0.33.1 had it for Flax; components as of `FlaxStableDiffusionPipeline`."""

    written = StableDiffusionInpaintPipeline

    def prepare_inputs(
        self, prompt: str | list[str], image: Any, mask: Any
    ) -> tuple[Any, Array, Array]:
        """Prompts as tokens, pictures `(n, 3, height, width)` in [-1, 1], grey inside of the mask,
        and masks `(n, 1, height, width)` of 0 and 1; sides are rounded down to multiples of 32."""
        found, covered = pictures("image", image, 32), masks("mask", mask, 32)
        if found.shape[2:] != covered.shape[2:] or covered.shape[0] not in (1, found.shape[0]):
            raise InputError(
                f"mask has shape {covered.shape}; the pictures have {found.shape}: needed are one "
                "mask, or one for each, of their size"
            )
        return self.tokens(prompt), (2 * found - 1) * (covered < 0.5), covered

    def __call__(
        self,
        prompt_ids: Any,
        mask: Any,
        masked_image: Any,
        params: Any,
        prng_seed: Any,
        num_inference_steps: int = 50,
        height: int | None = None,
        width: int | None = None,
        guidance_scale: Any = 7.5,
        latents: Array | None = None,
        neg_prompt_ids: Any = None,
        return_dict: bool = True,
        jit: bool = False,
    ) -> Any:
        """Paint what the masks cover.

        Args:
            mask, masked_image: as `prepare_inputs` gives them, one for each prompt; brought to
                `height` and `width`, which are by default the trained ones.

        Other arguments and errors are those of `FlaxStableDiffusionPipeline`.
        """
        shared = (height, width, guidance_scale, neg_prompt_ids, return_dict, jit)
        plan = make_plan(self, Request(prompt_ids, params, prng_seed, num_inference_steps, *shared))
        count, channels, *sides = plan.shape
        taken = self.unet.config.in_channels
        if taken != 2 * channels + 1:
            raise InputError(
                f"unet: it takes {taken} channels; {type(self).__name__} needs {2 * channels + 1}"
            )
        front = plan.expected(count)
        masked = floats("masked_image", masked_image, (*front, 3, None, None))
        covered = floats("mask", mask, (*front, 1, None, None))
        masked = jax().resized(masked, (plan.height, plan.width), "bicubic")
        covered = jax().resized(covered, (plan.height, plan.width), "nearest")
        noise, second = plan.noise(plan.key, *plan.shape, split=True)
        if latents is not None:
            noise = given(plan, "latents", latents)
        own, key = plan.noise(second, count, *sides, channels, split=True)
        known = self.ask(programs.ENCODE, "vae", plan.params, plan.devices, masked, own)
        covered = jax().resized(covered, sides, "nearest")
        axis = 1 if plan.devices is None else 2
        added = jax().operations.concat((covered, known), axis)
        sites = Sites(model_input=(FurtherChannels((added,)),))
        begin = noise * plan.table.initial_sigma
        return finish(plan, run(plan, begin, key, sites=sites))
