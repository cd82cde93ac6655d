"""`StableDiffusionImg2ImgPipeline`: begin with a picture instead of noise (Meng et al. 2022)."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

from underdraw.backends.contract import Array
from underdraw.controls.control import Control
from underdraw.errors import InputError
from underdraw.pictures.reading import read_pictures
from underdraw.pipelines.call import calls
from underdraw.pipelines.call.latents import encode
from underdraw.pipelines.call.output import StableDiffusionPipelineOutput
from underdraw.pipelines.diffusers import compatible
from underdraw.pipelines.diffusers.latents import PictureLatents
from underdraw.pipelines.latent import LatentPipeline
from underdraw.sampling.loop import Step


class StableDiffusionImg2ImgPipeline(PictureLatents, LatentPipeline):
    """A picture and a text to a picture. Components are those of `StableDiffusionPipeline`; make
    one of a pipeline that is loaded already with `from_pipe`."""

    @calls.streamed
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: Any = None,
        strength: float = 0.8,
        num_inference_steps: int = 50,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        guidance_scale: float | Sequence[float] = 7.5,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: Any = None,
        prompt_embeds: Array | None = None,
        negative_prompt_embeds: Array | None = None,
        ip_adapter_image: None = None,
        ip_adapter_image_embeds: None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
        clip_skip: int | None = None,
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        callback: Callable[..., Any] | None = None,
        callback_steps: int | None = 1,
        *,
        guidance_rescale: float = 0.0,
        seed: int | Sequence[int] | None = None,
        controls: Sequence[Control] = (),
    ) -> Generator[Step, None, StableDiffusionPipelineOutput | tuple[Any, list[bool] | None]]:
        """Make images.

        Args:
            image: what to begin with: a PIL picture; an array of numpy `(height, width, 3)` or of
                the backend `(3, height, width)` in [0, 1], or several along a first axis; a list of
                these; or clean latents `(images, 4, height, width)`, times `scaling_factor`. One
                for all prompts, one per prompt, or several for one prompt. Sides are rounded down
                to multiples of 8.
            strength: the part of the steps that is run, their last ones, over 0 to 1. Small
                numbers keep much of the picture, 1 begins with almost nothing but noise.
            num_inference_steps: of a whole run.

        The other arguments, and what is raised, are as in `StableDiffusionPipeline`.
        """
        compatible.refuse(ip_adapter_image, ip_adapter_image_embeds, cross_attention_kwargs)
        if image is None:
            raise InputError("image=None; give a picture, or latents")
        factor, channels = self.vae.config.factor, self.vae.config.latent_channels
        pictures = read_pictures(
            "image", image, self._framework, factor=factor, latent_channels=channels
        )
        plan = self._plan(calls.asked(locals(), pictures=pictures.shape[0], strength=strength))
        self._latent_shape(plan.count, *pictures.shape[2:])
        clean = encode(self, plan, pictures)
        noise = self._operations.float32(self._noise(plan, clean.shape))
        begin = plan.solver.noised(0, clean, noise)
        made = yield from self._denoising(plan, begin)
        return self._output(plan, *self._decode(plan, made), {"image": image, "strength": strength})
