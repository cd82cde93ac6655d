"""`BlipDiffusionPipeline`: what a picture shows, in another scene (Li et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Literal

from underdraw.backends.contract import Array
from underdraw.controls.control import Control
from underdraw.engines.engine import Question
from underdraw.pipelines.blip.arguments import read_negative, read_subjects
from underdraw.pipelines.blip.base import BlipPipeline
from underdraw.pipelines.blip.call import subject_call
from underdraw.pipelines.call.output import Made
from underdraw.pipelines.call.request import Request
from underdraw.pipelines.call.stream import streamed
from underdraw.pipelines.diffusers import attention
from underdraw.sampling.steps import Step


class BlipDiffusionPipeline(BlipPipeline):
    """A picture of a subject and a text to a picture of the subject.

    The same is done by `controls=[Subject(...)]` in any pipeline of latent diffusion; this one has
    the arguments of diffusers, and its way to amplify a prompt.

    Args:
        tokenizer, text_encoder, vae, unet, scheduler: as for `StableDiffusionPipeline`.
        qformer: `Blip2QFormerModel`, the subject encoder.
        image_processor: `BlipImageProcessor`.
        ctx_begin_pos: where the tokens of a subject begin in the window of a prompt.
        mean, std: by which pictures are normalised, three numbers each; None: as
            `image_processor` says.
    """

    @streamed
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        reference_image: Any = None,
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
        """Make images. Arguments not named here are as in `StableDiffusionPipeline`.

        Args:
            prompt: where the subject is, or what it does: "in the snow". What is read is "a
                [target] [prompt]", again and again until the window of tokens is full.
            reference_image: a picture of the subject (PIL, an array of numpy `(height, width, 3)`
                or a tensor `(3, height, width)`, uint8 or in [0, 1]); one for all prompts or one
                for each. Several for one prompt, or a list of them in the place of one, show the
                same subject: their embeddings are averaged.
            source_subject_category: what is to be seen there, "dog"; one, or one for each prompt.
            target_subject_category: what is to be made of it; likewise.
            height, width: of the images in pixels; by default those the UNet was trained with.
            neg_prompt: what to steer away from; `negative_prompt` is the same.
            prompt_strength, prompt_reps: a prompt is read this number of times, their product
                rounded down.

        Raises:
            InputError, InputTypeError: an argument cannot work; nothing has been computed by then.
            NonFiniteError: a network gave NaN or infinity.
        """
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
        return (yield from subject_call(self, request, told, height, width, latents))
