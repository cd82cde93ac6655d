"""`StableDiffusionGLIGENPipeline`: phrases in boxes (Li et al. 2023)."""

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
from underdraw.pipelines.diffusers.gligen import FamiliarGLIGEN
from underdraw.pipelines.gligen.arguments import Arguments
from underdraw.pipelines.gligen.call import grounded_call
from underdraw.pipelines.latent import LatentPipeline
from underdraw.sampling.steps import Step


class StableDiffusionGLIGENPipeline(LatentPipeline, FamiliarGLIGEN):
    """Text to image with phrases in boxes, and inpainting of the boxes.

    The same is done by `controls=[Box(...)]` in any pipeline of latent diffusion; this one has the
    arguments of diffusers.

    Args:
        vae, text_encoder, tokenizer, scheduler, safety_checker, feature_extractor: as for
            `StableDiffusionPipeline`.
        unet: a gated one (`attention_type="gated"`), or a plain one to which `load_grounding`
            attaches weights.
        compat: `"diffusers"` brings its numbers back: inpainting noise from PyTorch's global
            stream, another at each call and one for the whole batch, and a background on which the
            network has the last word.
    """

    components_optional = ("safety_checker", "feature_extractor")

    @streamed
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float | Sequence[float] = 7.5,
        gligen_scheduled_sampling_beta: float = 0.3,
        gligen_phrases: Sequence[Any] | None = None,
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
        """Make images. Arguments not named here are as in `StableDiffusionPipeline`.

        Args:
            gligen_scheduled_sampling_beta: the part of the model calls, from the first one on, in
                which boxes act, 0 .. 1.
            gligen_phrases: what is to be seen in each box, for all images; or a list per image.
            gligen_boxes: `(x_min, y_min, x_max, y_max)` of each in [0, 1]; or a list per image.
                Of more than 30 the first 30 are taken, and a warning names the others.
            gligen_inpaint_image: a picture (PIL, an array of numpy `(height, width, 3)` or a tensor
                `(3, height, width)`), or one per prompt or image; the boxes in it are painted anew
                and the rest is kept. It is cut to the proportions of `height` and `width`,
                around its middle. The UNet may have 4 or 9 input channels.
            gligen_inpaint_mask: where to paint anew instead of in the boxes, white or from 0.5
                on: a picture or array of the size of the result or of the latents, or one per
                image.
            paste_back: give every pixel outside of the mask back as it was in
                `gligen_inpaint_image`.
            cross_attention_kwargs: None, empty, or diffusers' `scale` of LoRA layers, which has
                nothing to act on.

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
        arguments = Arguments(
            phrases=gligen_phrases,
            boxes=gligen_boxes,
            beta=gligen_scheduled_sampling_beta,
            inpaint_image=gligen_inpaint_image,
            inpaint_mask=gligen_inpaint_mask,
            paste_back=paste_back,
            height=height,
            width=width,
            latents=latents,
        )
        return (yield from grounded_call(self, request, arguments))
