"""`BlipDiffusionControlNetPipeline`: what a picture shows, along a map (Li et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from PIL import Image

from underdraw.backends.contract import Array
from underdraw.controls.control import Control
from underdraw.engines.engine import Question
from underdraw.errors import InputError
from underdraw.models import ControlNetModel, MultiControlNetModel
from underdraw.pictures.reading import as_picture
from underdraw.pipelines.base import Component
from underdraw.pipelines.blip.arguments import read_negative, read_subjects
from underdraw.pipelines.blip.base import BlipPipeline
from underdraw.pipelines.blip.call import subject_call
from underdraw.pipelines.call.output import Made
from underdraw.pipelines.call.plan import Plan
from underdraw.pipelines.call.request import Request
from underdraw.pipelines.call.stream import streamed
from underdraw.pipelines.diffusers import attention
from underdraw.pipelines.structure.arguments import read_structures
from underdraw.pipelines.structure.pipelines import WithNets
from underdraw.sampling.steps import Step


class BlipDiffusionControlNetPipeline(WithNets, BlipPipeline):
    """A picture of a subject, a map and a text to a picture of the subject along the map.

    The same is done by `controls=[Subject(...), Structure(...)]` in any pipeline of latent
    diffusion; this one has the arguments of diffusers.

    Args:
        tokenizer, text_encoder, vae, unet, scheduler, qformer, image_processor, ctx_begin_pos,
            mean, std: as for `BlipDiffusionPipeline`.
        controlnet: a `ControlNetModel`, a list of several, or a `MultiControlNetModel`.
    """

    components_needed = (
        *("tokenizer", "text_encoder", "vae", "unet", "scheduler", "qformer", "controlnet"),
        "image_processor",
    )
    reader = "controlnet"

    controlnet: Component[ControlNetModel | MultiControlNetModel]

    def __init__(
        self,
        tokenizer: Any,
        text_encoder: Any,
        vae: Any,
        unet: Any,
        scheduler: Any,
        qformer: Any,
        controlnet: Any,
        image_processor: Any,
        ctx_begin_pos: int = 2,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(
            tokenizer,
            text_encoder,
            vae,
            unet,
            scheduler,
            qformer,
            image_processor,
            ctx_begin_pos,
            mean,
            std,
            controlnet=controlnet,
            **more,
        )

    @streamed
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        reference_image: Any = None,
        condtioning_image: Any = None,
        source_subject_category: str | list[str] | None = None,
        target_subject_category: str | list[str] | None = None,
        latents: Array | None = None,
        guidance_scale: float | Sequence[float] = 7.5,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        generator: Any = None,
        neg_prompt: str | list[str] | None = "",
        prompt_strength: float = 1.0,
        prompt_reps: int = 20,
        output_type: str = "pil",
        return_dict: Literal[True] = True,
        *,
        conditioning_image: Any = None,
        controlnet_conditioning_scale: float | Sequence[Any] = 1.0,
        guess_mode: bool = False,
        control_guidance_start: float | Sequence[Any] = 0.0,
        control_guidance_end: float | Sequence[Any] = 1.0,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        guidance_rescale: float = 0.0,
        clip_skip: int | None = None,
        seed: int | Sequence[int] | None = None,
        controls: Sequence[Control] = (),
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: Any = None,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        callback: Callable[..., Any] | None = None,
        callback_steps: int | None = 1,
    ) -> Generator[Question | Step, Any, Made]:
        """Make images. Arguments not named here are as in `BlipDiffusionPipeline`.

        Args:
            conditioning_image: the map that the net reads, brought to the size of the images: one,
                or one for each prompt; for several nets a list with those of each.
                `condtioning_image` is diffusers' spelling of it.
            controlnet_conditioning_scale: how strongly the net acts, 1 as in training.
            guess_mode: the net tells by itself what the map shows.
            control_guidance_start, control_guidance_end: fractions of the run between which it
                acts.

        Raises:
            InputError, InputTypeError: an argument cannot work; nothing has been computed by then.
            NonFiniteError: a network gave NaN or infinity.
        """
        name, given = "conditioning_image", conditioning_image
        if condtioning_image is not None:
            name, given = "condtioning_image", condtioning_image
            if conditioning_image is not None:
                raise InputError(
                    "condtioning_image and conditioning_image are both given; only one of them can "
                    "be"
                )
        told = read_subjects(
            self.parts,
            prompt,
            reference_image,
            source_subject_category,
            target_subject_category,
            prompt_strength,
            prompt_reps,
        )
        beside = attention.read(
            self.parts, ip_adapter_image, ip_adapter_image_embeds, cross_attention_kwargs
        )
        request = Request(
            prompt=told.texts,
            negative_prompt=read_negative(self.parts, neg_prompt, negative_prompt),
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
            lora_scale=beside.lora_scale,
            own=beside.prompts,
        )

        def structure(plan: Plan, high: int, wide: int) -> Sequence[Control]:
            found = read_structures(
                self.controlnet,
                name,
                self._resized(name, given, high, wide),
                scale=("controlnet_conditioning_scale", controlnet_conditioning_scale),
                start=("control_guidance_start", control_guidance_start),
                end=("control_guidance_end", control_guidance_end),
                guess=guess_mode,
            )
            if found.pictures not in (1, len(told.prompts)):
                raise InputError(
                    f"{name} has {found.pictures} maps; there are {len(told.prompts)} prompts"
                )
            return found.controls(plan)

        also = {
            "conditioning_image": given,
            "controlnet_conditioning_scale": controlnet_conditioning_scale,
            "guess_mode": guess_mode,
            "control_guidance_start": control_guidance_start,
            "control_guidance_end": control_guidance_end,
        }
        run = subject_call(self, request, told, height, width, latents, structure, also)
        return (yield from run)

    def _resized(self, name: str, given: Any, height: int, width: int, depth: int = 2) -> Any:
        """Pictures of maps at this size, as `image_processor` resizes; arrays as they are. Lists
        are at most two deep."""
        if isinstance(given, list | tuple) and depth:
            return [self._resized(name, one, height, width, depth - 1) for one in given]
        if not isinstance(given, Image.Image):
            return given
        found = self.image_processor.preprocess(
            as_picture(name, given),
            size={"height": height, "width": width},
            do_normalize=False,
            do_center_crop=False,
        )["pixel_values"]
        return np.asarray(found)[0].transpose(1, 2, 0)
