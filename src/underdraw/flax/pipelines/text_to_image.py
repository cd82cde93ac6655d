"""`FlaxStableDiffusionPipeline`: text to image."""

from __future__ import annotations

from typing import Any

import numpy as np

from underdraw.backends.contract import Array
from underdraw.flax.pipelines.base import FlaxDiffusionPipeline
from underdraw.flax.pipelines.call import Request, finish, given, make_plan, run
from underdraw.pipelines.stable_diffusion import StableDiffusionPipeline


class FlaxStableDiffusionPipeline(FlaxDiffusionPipeline):
    """Text to image, as diffusers 0.33.1 had it for Flax; the networks are those of
    `StableDiffusionPipeline`.

    Args:
        vae, text_encoder, tokenizer, unet, scheduler: the components, of `underdraw.flax`;
            schedulers also those of other pipelines.
        safety_checker, feature_extractor: both, to check images, or None.
        dtype: to compute in.
        compat: "diffusers" brings back what its Flax pipelines did where that was wrong.
    """

    written = StableDiffusionPipeline

    def prepare_inputs(self, prompt: str | list[str]) -> np.ndarray:
        """Prompts as tokens `(prompts, tokens)`; what exceeds the window is cut."""
        return self.tokens(prompt)

    def __call__(
        self,
        prompt_ids: Any,
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
        """Make images.

        Args:
            prompt_ids: tokens `(prompts, tokens)`; sharded, `(devices, prompts, tokens)`: each
                device then makes its own images, with parameters, keys and all other arrays of
                its own (`shard`, `replicate`, `jax.random.split`).
            params: of all networks, as `from_pretrained` gives them.
            prng_seed: a key of `jax.random`, whose noise is that of JAX before 0.5.
            height, width: in pixels; by default the trained ones.
            guidance_scale: how strongly to follow the prompts; a number, or one per image.
            latents: noise to begin with, `(prompts, channels, height / 8, width / 8)`.
            neg_prompt_ids: what to steer away from, of the shape of `prompt_ids`.
            jit: of no use here: every call is compiled, once for each shape.

        Raises:
            InputError, InputTypeError, WeightError: an argument cannot work.
            NonFiniteError: the networks gave NaN or infinity.
        """
        shared = (height, width, guidance_scale, neg_prompt_ids, return_dict, jit)
        plan = make_plan(self, Request(prompt_ids, params, prng_seed, num_inference_steps, *shared))
        noise = None if latents is None else given(plan, "latents", latents)
        key = plan.key
        if noise is None or plan.table.draws.any():
            drawn, key = plan.noise(plan.key, *plan.shape, split=True)
            noise = drawn if noise is None else noise
        return finish(plan, run(plan, noise * plan.table.initial_sigma, key))
