"""`FlaxStableDiffusionImg2ImgPipeline`: pictures made over with noise and a prompt."""

from __future__ import annotations

from typing import Any

from underdraw import checks
from underdraw.backends.contract import Array
from underdraw.errors import InputError
from underdraw.flax import programs
from underdraw.flax.pipelines.base import FlaxDiffusionPipeline
from underdraw.flax.pipelines.call import Request, finish, floats, given, make_plan, run
from underdraw.flax.pipelines.prepare import pictures
from underdraw.pipelines.call.plan import kept_steps
from underdraw.pipelines.stable_diffusion_img2img import StableDiffusionImg2ImgPipeline


class FlaxStableDiffusionImg2ImgPipeline(FlaxDiffusionPipeline):
    """Pictures made over, as diffusers 0.33.1 had it for Flax; components as of
    `FlaxStableDiffusionPipeline`."""

    written = StableDiffusionImg2ImgPipeline

    def prepare_inputs(self, prompt: str | list[str], image: Any) -> tuple[Any, Array]:
        """Prompts as tokens, and pictures `(n, 3, height, width)` in [-1, 1], whose sides are
        rounded down to multiples of 32."""
        return self.tokens(prompt), 2 * pictures("image", image, 32) - 1

    def __call__(
        self,
        prompt_ids: Any,
        image: Any,
        params: Any,
        prng_seed: Any,
        strength: float = 0.8,
        num_inference_steps: int = 50,
        height: int | None = None,
        width: int | None = None,
        guidance_scale: Any = 7.5,
        noise: Array | None = None,
        neg_prompt_ids: Any = None,
        return_dict: bool = True,
        jit: bool = False,
    ) -> Any:
        """Make pictures over.

        Args:
            image: as `prepare_inputs` gives them, one for each prompt.
            strength: the part of the steps that is run, above 0: with 1 nothing of the picture is
                kept.
            height, width: of the pictures; by default those of `image`.
            noise: of the shape of the latents, instead of that of the key.

        Other arguments and errors are those of `FlaxStableDiffusionPipeline`.
        """
        part = checks.number("strength", strength, 0.0, 1.0)
        image = floats("image", image, (None,) * len(getattr(image, "shape", ())))
        height, width = _of_picture(image, height, width)
        shared = (height, width, guidance_scale, neg_prompt_ids, return_dict, jit)
        plan = make_plan(self, Request(prompt_ids, params, prng_seed, num_inference_steps, *shared))
        shape = plan.expected(plan.images, 3, plan.height, plan.width)
        image = floats("image", image, shape)
        kept = kept_steps(num_inference_steps, part, "above 0", "strength")
        order = getattr(self.scheduler.scheduler, "order", 1)
        table = plan.table.tail((num_inference_steps - kept) * order)
        drawn, key = plan.noise(plan.key, *plan.shape, split=True)
        if noise is not None:
            drawn = given(plan, "noise", noise)
        count, channels, *sides = plan.shape
        # The key's numbers once more, channels last, as Flax draws them.
        own, _ = plan.noise(plan.key, count, *sides, channels)
        clean = self.ask(programs.ENCODE, "vae", plan.params, plan.devices, image, own)
        return finish(plan, run(plan, table.noised(0, clean, drawn), key, table))


def _of_picture(image: Array, height: Any, width: Any) -> tuple[Any, Any]:
    if len(image.shape) < 4:
        raise InputError(f"image has shape {tuple(image.shape)}; needed is (n, 3, height, width)")
    sides = tuple(image.shape[-2:])
    return sides[0] if height is None else height, sides[1] if width is None else width
