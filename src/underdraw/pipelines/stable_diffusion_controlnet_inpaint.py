"""`StableDiffusionControlNetInpaintPipeline`: make a part of a picture anew, along maps."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Literal

from underdraw.backends.contract import Array
from underdraw.controls.control import Control
from underdraw.engines.engine import Question
from underdraw.pictures.reading import size_of
from underdraw.pipelines.call.inpainting import Painting
from underdraw.pipelines.call.output import Made
from underdraw.pipelines.call.request import Request
from underdraw.pipelines.call.stream import streamed
from underdraw.pipelines.diffusers import attention
from underdraw.pipelines.stable_diffusion_inpaint import StableDiffusionInpaintPipeline
from underdraw.pipelines.structure.arguments import read_structures
from underdraw.pipelines.structure.pipelines import ControlNetPipeline
from underdraw.sampling.steps import Step


class StableDiffusionControlNetInpaintPipeline(ControlNetPipeline, StableDiffusionInpaintPipeline):
    """A picture, a mask, a text and maps to a picture that is new inside the mask. Components are
    those of `StableDiffusionControlNetPipeline`."""

    @streamed
    def __call__(  # type: ignore[override]
        self,
        prompt: str | list[str] | None = None,
        image: Any = None,
        mask_image: Any = None,
        control_image: Any = None,
        height: int | None = None,
        width: int | None = None,
        padding_mask_crop: int | None = None,
        strength: float = 1.0,
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
        controlnet_conditioning_scale: float | Sequence[float | Sequence[float]] = 0.5,
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
        masked_image_latents: Array | None = None,
        paste_back: bool = False,
    ) -> Generator[Question | Step, Any, Made]:
        """Make images.

        Args:
            image, mask_image, masked_image_latents, padding_mask_crop, strength, latents,
                paste_back: as in `StableDiffusionInpaintPipeline`.
            height, width: of the result, by default those of `image`, rounded down to multiples of
                8.
            control_image: the map or maps, as `image` of `StableDiffusionControlNetPipeline`, of
                the whole picture; nets for inpainting read `pictures.maps.masked_map(image,
                mask_image)`.

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
        config = self.parts.vae.config
        own_size = size_of(image, config.factor, config.latent_channels)
        if own_size is not None and latents is None:
            height = own_size[0] or None if height is None else height
            width = own_size[1] or None if width is None else width
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
        painting = Painting(
            image,
            mask_image,
            masked_image_latents,
            height,
            width,
            padding_mask_crop,
            latents,
            paste_back,
        )
        also = {
            "control_image": control_image,
            "controlnet_conditioning_scale": controlnet_conditioning_scale,
            "guess_mode": guess_mode,
            "control_guidance_start": control_guidance_start,
            "control_guidance_end": control_guidance_end,
        }
        run = self._painted(request, painting, structures.pictures, structures.controls, also)
        return (yield from run)
