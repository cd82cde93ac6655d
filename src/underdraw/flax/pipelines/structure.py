"""`FlaxStableDiffusionControlNetPipeline`: text to image along a map."""

from __future__ import annotations

from typing import Any

import numpy as np

from underdraw.backends.contract import Array
from underdraw.errors import InputError
from underdraw.flax import programs
from underdraw.flax.params import jax
from underdraw.flax.pipelines.base import FlaxDiffusionPipeline
from underdraw.flax.pipelines.call import (
    Request,
    finish,
    floats,
    given,
    make_plan,
    per_image,
    run,
)
from underdraw.flax.pipelines.prepare import pictures
from underdraw.pipelines.stable_diffusion_controlnet import StableDiffusionControlNetPipeline


class FlaxStableDiffusionControlNetPipeline(FlaxDiffusionPipeline):
    """Text to image along a map, as diffusers 0.33.1 had it for Flax.

    Args:
        controlnet: a `FlaxControlNetModel`; its parameters are `params["controlnet"]`.

    Other components are those of `FlaxStableDiffusionPipeline`.
    """

    written = StableDiffusionControlNetPipeline

    def prepare_text_inputs(self, prompt: str | list[str]) -> np.ndarray:
        """Prompts as tokens `(prompts, tokens)`; what exceeds the window is cut."""
        return self.tokens(prompt)

    def prepare_image_inputs(self, image: Any) -> Array:
        """Maps `(n, 3, height, width)` in [0, 1]; sides are rounded down to multiples of 64."""
        return pictures("image", image, 64)

    def __call__(
        self,
        prompt_ids: Any,
        image: Any,
        params: Any,
        prng_seed: Any,
        num_inference_steps: int = 50,
        guidance_scale: Any = 7.5,
        latents: Array | None = None,
        neg_prompt_ids: Any = None,
        controlnet_conditioning_scale: Any = 1.0,
        return_dict: bool = True,
        jit: bool = False,
    ) -> Any:
        """Make images.

        Args:
            image: maps as `prepare_image_inputs` gives them, one for each prompt, of the size of
                the pictures.
            controlnet_conditioning_scale: how strongly to follow the map; a number, or one per
                image.

        Other arguments and errors are those of `FlaxStableDiffusionPipeline`.
        """
        image = floats("image", image, (None,) * len(getattr(image, "shape", ())))
        if len(image.shape) < 4:
            raise InputError(f"image has shape {image.shape}; needed is (n, 3, height, width)")
        height, width = image.shape[-2:]
        shared = (height, width, guidance_scale, neg_prompt_ids, return_dict, jit)
        plan = make_plan(self, Request(prompt_ids, params, prng_seed, num_inference_steps, *shared))
        image = floats("image", image, plan.expected(plan.images, 3, height, width))
        name = "controlnet_conditioning_scale"
        scale = per_image(name, controlnet_conditioning_scale, plan.expected(plan.images))
        drawn, key = plan.noise(plan.key, *plan.shape, split=True)
        if latents is not None:
            drawn = given(plan, "latents", latents)
        net = self.controlnet
        beside = programs.Structure(
            programs.Network(params["controlnet"], net.config, net.dtype),
            image,
            jax().array(scale),
        )
        begin = drawn * plan.table.initial_sigma
        return finish(plan, run(plan, begin, key, structure=beside))
