"""`StableDiffusionGLIGENTextImagePipeline`: phrases and images in boxes (Li et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Literal

from underdraw.backends.contract import Array
from underdraw.controls.control import Control
from underdraw.engines.engine import Question
from underdraw.models import CLIPImageProjection
from underdraw.pipelines.base import Component
from underdraw.pipelines.call.output import Made
from underdraw.pipelines.call.request import Request
from underdraw.pipelines.call.stream import streamed
from underdraw.pipelines.components.processor import CLIPProcessor
from underdraw.pipelines.diffusers import attention
from underdraw.pipelines.diffusers.gligen import FamiliarGLIGEN, FamiliarTextImage
from underdraw.pipelines.gligen.arguments import Arguments
from underdraw.pipelines.gligen.call import grounded_call
from underdraw.pipelines.latent import LatentPipeline
from underdraw.sampling.steps import Step


class StableDiffusionGLIGENTextImagePipeline(LatentPipeline, FamiliarGLIGEN, FamiliarTextImage):
    """Text to image with phrases, images or both in boxes, and inpainting of the boxes.

    The same is done by `controls=[Box(...), Style(...)]` in any pipeline of latent diffusion; this
    one has the arguments of diffusers.

    Args:
        vae, text_encoder, tokenizer, scheduler, safety_checker, feature_extractor: as for
            `StableDiffusionPipeline`.
        processor: prepares pictures for the image encoder.
        image_encoder: CLIP's image tower with its projection.
        image_project: from its space into that of phrases.
        unet: a gated one (`attention_type="gated-text-image"`), or a plain one to which
            `load_grounding` attaches weights.
        compat: `"diffusers"` brings its numbers back: as `StableDiffusionGLIGENPipeline`,
            `gligen_scheduled_sampling_beta` does nothing, and the layers act on null tokens where
            `gligen_boxes` is an empty list.
    """

    components_needed = (
        *("vae", "text_encoder", "tokenizer", "processor", "image_encoder", "image_project"),
        *("unet", "scheduler"),
    )
    components_optional = ("safety_checker", "feature_extractor")

    processor: Component[CLIPProcessor]
    image_project: Component[CLIPImageProjection]

    def __init__(
        self,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        processor: Any,
        image_encoder: Any,
        image_project: Any,
        unet: Any,
        scheduler: Any,
        safety_checker: Any = None,
        feature_extractor: Any = None,
        requires_safety_checker: bool = True,
        compat: str | None = None,
        *,
        engine: Any = None,
    ) -> None:
        super().__init__(
            vae,
            text_encoder,
            tokenizer,
            unet,
            scheduler,
            safety_checker,
            feature_extractor,
            image_encoder=image_encoder,
            requires_safety_checker=requires_safety_checker,
            compat=compat,
            processor=processor,
            image_project=image_project,
            engine=engine,
        )

    @streamed
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float | Sequence[float] = 7.5,
        gligen_scheduled_sampling_beta: float | None = None,
        gligen_phrases: Sequence[Any] | None = None,
        gligen_images: Sequence[Any] | None = None,
        input_phrases_mask: int | Sequence[int] | None = None,
        input_images_mask: int | Sequence[int] | None = None,
        gligen_boxes: Sequence[Any] | None = None,
        gligen_inpaint_image: Any = None,
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
        gligen_normalize_constant: float = 28.7,
        clip_skip: int | None = None,
        *,
        seed: int | Sequence[int] | None = None,
        controls: Sequence[Control] = (),
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: Any = None,
        gligen_inpaint_mask: Any = None,
        paste_back: bool = False,
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> Generator[Question | Step, Any, Made]:
        """Make images. Arguments not named here are as in `StableDiffusionGLIGENPipeline`.

        Args:
            gligen_scheduled_sampling_beta: the part of the model calls, from the first one on, in
                which boxes act, 0 .. 1. None is all of them, as in the original where images are
                among them, and as in diffusers, where this argument does nothing.
            gligen_phrases, gligen_images: what is to be seen in each box; an entry may be None.
            input_phrases_mask, input_images_mask: 0 where a phrase or an image is only there to
                fill its place, else 1; one for all boxes, or one each, or a list per image where
                `gligen_boxes` are lists.
            gligen_boxes: `(x_min, y_min, x_max, y_max)` of each in [0, 1]; `(0, 1, 0, 1)` is no
                box, but says that the image gives the style of the whole picture.
            gligen_normalize_constant: the length which image features are brought to.

        Raises:
            InputError, InputTypeError: an argument cannot work; nothing has been computed by then.
            NonFiniteError: the network gave NaN or infinity.
        """
        told = attention.read(
            self.parts, ip_adapter_image, ip_adapter_image_embeds, cross_attention_kwargs
        )
        request = Request(
            prompt=prompt,
            negative_prompt=negative_prompt,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            num_images_per_prompt=num_images_per_prompt,
            guidance_scale=guidance_scale,
            clip_skip=clip_skip,
            num_inference_steps=num_inference_steps,
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
            lora_scale=told.lora_scale,
            own=told.prompts,
        )
        beta = gligen_scheduled_sampling_beta
        arguments = Arguments(
            phrases=gligen_phrases,
            boxes=gligen_boxes,
            images=gligen_images,
            phrases_mask=input_phrases_mask,
            images_mask=input_images_mask,
            beta=1.0 if beta is None or self.compat == "diffusers" else beta,
            image_norm=gligen_normalize_constant,
            inpaint_image=gligen_inpaint_image,
            inpaint_mask=gligen_inpaint_mask,
            paste_back=paste_back,
            height=height,
            width=width,
            latents=latents,
            null_acts=True,
        )
        return (yield from grounded_call(self, request, arguments))
