"""`StableDiffusionControlNetPipeline`: text to image along maps (Zhang et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Literal

from underdraw.backends.contract import Array
from underdraw.controls.control import Control
from underdraw.engines.engine import Question
from underdraw.pipelines.call.output import Made
from underdraw.pipelines.call.request import Request
from underdraw.pipelines.call.stream import streamed
from underdraw.pipelines.diffusers import attention
from underdraw.pipelines.stable_diffusion import StableDiffusionPipeline
from underdraw.pipelines.structure.arguments import read_structures
from underdraw.pipelines.structure.pipelines import ControlNetPipeline
from underdraw.sampling.steps import Step


class StableDiffusionControlNetPipeline(ControlNetPipeline, StableDiffusionPipeline):
    """Text to image along maps.

    The same is done by `controls=[Structure(net, map)]` in any pipeline of latent diffusion; this
    one has the arguments of diffusers.

    Args:
        vae, text_encoder, tokenizer, unet, scheduler, safety_checker, feature_extractor,
            image_encoder, compat: as for `StableDiffusionPipeline`.
        controlnet: a `ControlNetModel`, a list of several, or a `MultiControlNetModel`; those of
            diffusers are adopted.
    """

    @streamed
    def __call__(  # type: ignore[override]
        self,
        prompt: str | list[str] | None = None,
        image: Any = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
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
        controlnet_conditioning_scale: float | Sequence[float | Sequence[float]] = 1.0,
        guess_mode: bool = False,
        control_guidance_start: float | Sequence[float | Sequence[float]] = 0.0,
        control_guidance_end: float | Sequence[float | Sequence[float]] = 1.0,
        clip_skip: int | None = None,
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        callback: Callable[..., Any] | None = None,
        callback_steps: int | None = 1,
        *,
        guidance_rescale: float = 0.0,
        seed: int | Sequence[int] | None = None,
        controls: Sequence[Control] = (),
    ) -> Generator[Question | Step, Any, Made]:
        """Make images.

        Args:
            image: the map, as `Structure` takes it; or one for each prompt, or several for one
                prompt. For several ControlNets a list with the maps of each, or a list for each
                prompt that holds one for each ControlNet.
            height, width: in pixels; each defaults to the first map's, rounded down to multiples of
                8. Maps are brought to the size of the result.
            controlnet_conditioning_scale: how strongly the net acts, 1 as in training. One number;
                for several ControlNets also a list with one for each. In place of a number may
                stand a list with one for each image.
            guess_mode: the net tells by itself what the map shows; prompts may be empty.
            control_guidance_start, control_guidance_end: fractions of the run between which it
                acts, likewise.

        The other arguments, and what is raised, are as in `StableDiffusionPipeline`.
        """
        told = attention.read(
            self.parts, ip_adapter_image, ip_adapter_image_embeds, cross_attention_kwargs
        )
        structures = read_structures(
            self.controlnet,
            "image",
            image,
            scale=("controlnet_conditioning_scale", controlnet_conditioning_scale),
            start=("control_guidance_start", control_guidance_start),
            end=("control_guidance_end", control_guidance_end),
            guess=guess_mode,
        )
        size = structures.size(self.parts.vae.config.factor)
        if latents is None:
            height = size[0] if height is None else height
            width = size[1] if width is None else width
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
            pictures=structures.pictures,
            lora_scale=told.lora_scale,
            own=told.prompts,
        )
        own = {
            "image": image,
            "height": height,
            "width": width,
            "latents": latents,
            "controlnet_conditioning_scale": controlnet_conditioning_scale,
            "guess_mode": guess_mode,
            "control_guidance_start": control_guidance_start,
            "control_guidance_end": control_guidance_end,
        }
        return (yield from self._from_noise(request, own, structures.controls))
