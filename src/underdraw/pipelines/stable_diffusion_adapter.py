"""`StableDiffusionAdapterPipeline`: text to image along maps of T2I-Adapters (Mou et al. 2023)."""

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
from underdraw.pipelines.structure.pipelines import AdapterPipeline
from underdraw.sampling.steps import Step


class StableDiffusionAdapterPipeline(AdapterPipeline, StableDiffusionPipeline):
    """Text to image along maps.

    The same is done by `controls=[Structure(adapter, map)]` in any pipeline of latent diffusion;
    this one has the arguments of diffusers.

    Args:
        vae, text_encoder, tokenizer, unet, scheduler, safety_checker, feature_extractor, compat: as
            for `StableDiffusionPipeline`.
        adapter: a `T2IAdapter`, a list of several, or a `MultiAdapter`; those of diffusers are
            adopted.
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
        output_type: str = "pil",
        return_dict: Literal[True] = True,
        callback: Callable[..., Any] | None = None,
        callback_steps: int | None = 1,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
        adapter_conditioning_scale: float | Sequence[float | Sequence[float]] = 1.0,
        clip_skip: int | None = None,
        *,
        adapter_conditioning_factor: float | Sequence[float | Sequence[float]] = 1.0,
        guidance_rescale: float = 0.0,
        seed: int | Sequence[int] | None = None,
        controls: Sequence[Control] = (),
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: Any = None,
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> Generator[Question | Step, Any, Made]:
        """Make images.

        Args:
            image: the map or maps, as in `StableDiffusionControlNetPipeline`.
            height, width: in pixels; each defaults to the first map's, rounded down to multiples of
                8. Maps are brought to the size of the result.
            adapter_conditioning_scale: how strongly the adapter acts, 1 as in training. One number;
                for several adapters also a list with one for each. In place of a number may stand
                a list with one for each image.
            adapter_conditioning_factor: the part of the run, from its begin, in which it acts;
                likewise.

        The other arguments, and what is raised, are as in `StableDiffusionPipeline`.
        """
        told = attention.read(
            self.parts, ip_adapter_image, ip_adapter_image_embeds, cross_attention_kwargs
        )
        structures = read_structures(
            self.adapter,
            "image",
            image,
            scale=("adapter_conditioning_scale", adapter_conditioning_scale),
            end=("adapter_conditioning_factor", adapter_conditioning_factor),
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
            "adapter_conditioning_scale": adapter_conditioning_scale,
            "adapter_conditioning_factor": adapter_conditioning_factor,
        }
        return (yield from self._from_noise(request, own, structures.controls))
