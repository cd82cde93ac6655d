"""`StableDiffusionControlNetImg2ImgPipeline`: begin with a picture, and follow maps."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Literal

from underdraw.backends.contract import Array
from underdraw.controls.control import Control
from underdraw.engines.engine import Question
from underdraw.pipelines.call.latents import check_sides
from underdraw.pipelines.call.output import Made
from underdraw.pipelines.call.request import Request
from underdraw.pipelines.call.stream import streamed
from underdraw.pipelines.diffusers import attention
from underdraw.pipelines.stable_diffusion_img2img import StableDiffusionImg2ImgPipeline
from underdraw.pipelines.structure.arguments import read_structures
from underdraw.pipelines.structure.pipelines import ControlNetPipeline
from underdraw.sampling.steps import Step


class StableDiffusionControlNetImg2ImgPipeline(ControlNetPipeline, StableDiffusionImg2ImgPipeline):
    """A picture, a text and maps to a picture. Components are those of
    `StableDiffusionControlNetPipeline`."""

    @streamed
    def __call__(  # type: ignore[override]
        self,
        prompt: str | list[str] | None = None,
        image: Any = None,
        control_image: Any = None,
        height: int | None = None,
        width: int | None = None,
        strength: float = 0.8,
        num_inference_steps: int = 50,
        guidance_scale: float | Sequence[float] = 7.5,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: Any = None,
        latents: Array | None = None,
        prompt_embeds: Array | None = None,
        negative_prompt_embeds: Array | None = None,
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: Any = None,
        output_type: str = "pil",
        return_dict: Literal[True] = True,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
        controlnet_conditioning_scale: float | Sequence[float | Sequence[float]] = 0.8,
        guess_mode: bool = False,
        control_guidance_start: float | Sequence[float | Sequence[float]] = 0.0,
        control_guidance_end: float | Sequence[float | Sequence[float]] = 1.0,
        clip_skip: int | None = None,
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        callback: Callable[..., Any] | None = None,
        callback_steps: int | None = 1,
        *,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        guidance_rescale: float = 0.0,
        seed: int | Sequence[int] | None = None,
        controls: Sequence[Control] = (),
    ) -> Generator[Question | Step, Any, Made]:
        """Make images.

        Args:
            image: as in `StableDiffusionImg2ImgPipeline`.
            control_image: the map or maps, as `image` of `StableDiffusionControlNetPipeline`; they
                are brought to the size of the result.
            height, width: of the result, by default those of `image`, rounded down to multiples of
                8; `image` is resized.
            strength: as in `StableDiffusionImg2ImgPipeline`.
            latents: those the run begins with instead of noised ones of `image`, `(images, 4,
                height / 8, width / 8)`.

        The other arguments, and what is raised, are as in `StableDiffusionControlNetPipeline`.
        """
        told = attention.read(
            self.parts, ip_adapter_image, ip_adapter_image_embeds, cross_attention_kwargs
        )
        structures = read_structures(
            self.controlnet,
            "control_image",
            control_image,
            scale=("controlnet_conditioning_scale", controlnet_conditioning_scale),
            start=("control_guidance_start", control_guidance_start),
            end=("control_guidance_end", control_guidance_end),
            guess=guess_mode,
        )
        request = Request(
            prompt=prompt,
            negative_prompt=negative_prompt,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            num_images_per_prompt=num_images_per_prompt,
            guidance_scale=guidance_scale,
            guidance_rescale=guidance_rescale,
            clip_skip=clip_skip,
            num_inference_steps=num_inference_steps,
            timesteps=timesteps,
            sigmas=sigmas,
            eta=eta,
            generator=generator,
            seed=seed,
            output_type=output_type,
            return_dict=return_dict,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
            callback=callback,
            callback_steps=callback_steps,
            controls=controls,
            strength=strength,
            lora_scale=told.lora_scale,
            own=told.prompts,
        )
        own = {
            "image": image,
            "control_image": control_image,
            "height": height,
            "width": width,
            "strength": strength,
            "latents": latents,
            "controlnet_conditioning_scale": controlnet_conditioning_scale,
            "guess_mode": guess_mode,
            "control_guidance_start": control_guidance_start,
            "control_guidance_end": control_guidance_end,
        }
        run = self._from_picture(
            request,
            own,
            size=check_sides(self.parts, height, width),
            latents=latents,
            pictures_beside=structures.pictures,
            beside=structures.controls,
        )
        return (yield from run)
