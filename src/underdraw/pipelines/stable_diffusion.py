"""`StableDiffusionPipeline`: text to image, SD 1.x and 2.x (Rombach et al. 2022)."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Literal

from underdraw import checks
from underdraw.backends.contract import Array
from underdraw.controls.control import Control
from underdraw.engines.engine import Question
from underdraw.pipelines.call.checking import check_run
from underdraw.pipelines.call.conditioning import condition
from underdraw.pipelines.call.denoise import begin, denoise
from underdraw.pipelines.call.latents import check_size, first_noise, latent_shape
from underdraw.pipelines.call.output import Made, decode, hand_out
from underdraw.pipelines.call.plan import Plan, make_plan
from underdraw.pipelines.call.request import Request
from underdraw.pipelines.call.stream import streamed
from underdraw.pipelines.diffusers import attention
from underdraw.pipelines.latent import LatentPipeline
from underdraw.sampling.steps import Step


class StableDiffusionPipeline(LatentPipeline):
    """Text to image.

    Args:
        vae, text_encoder, tokenizer, unet, scheduler: the components; networks of diffusers and
            transformers are adopted, a foreign scheduler with the same methods is used as it is.
        safety_checker, feature_extractor: both, to check images; image_encoder: for controls.
        compat: `"diffusers"` reads prompts as diffusers does (brackets are text, what exceeds the
            window of tokens is cut) and ignores `height` given without `width`.
    """

    outdated = ("steps_offset", "clip_sample")

    @streamed
    def __call__(
        self,
        prompt: str | list[str] | None = None,
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
        guidance_rescale: float = 0.0,
        clip_skip: int | None = None,
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        callback: Callable[..., Any] | None = None,
        callback_steps: int | None = 1,
        *,
        seed: int | Sequence[int] | None = None,
        controls: Sequence[Control] = (),
    ) -> Generator[Question | Step, Any, Made]:
        """Make images.

        Args:
            prompt: what to show; `(word:1.3)` weighs a word; any length.
            height, width: in pixels, multiples of 8; each defaults to the trained size, or to that
                of `latents`.
            num_inference_steps: solver steps; or give `timesteps` or `sigmas` (falling).
            guidance_scale: how strongly to follow the prompt (Ho & Salimans 2022), above 1; one
                number, or one per image.
            negative_prompt: what to steer away from; a string, or one per prompt.
            num_images_per_prompt: images for each prompt, next to each other in the output.
            eta: noise DDIM adds in each step, 0 .. 1; other solvers ignore it.
            generator: one for the batch, which draws jointly, or a list with one per image.
            seed: a number, of which image i takes `seed + i`, or one per image. An image then does
                not depend on the batch it is in, nor on the device.
            latents: noise to begin with, `(images, 4, height / 8, width / 8)`.
            prompt_embeds, negative_prompt_embeds: contexts `(prompts, tokens, width)` instead of
                texts.
            output_type: "pil", "np" (`(images, height, width, 3)` in [0, 1]), "pt"
                (`(images, 3, height, width)` in [0, 1]) or "latent".
            guidance_rescale: 0 .. 1, restores contrast that strong guidance distorts (Lin et al.
                2023, section 3.4).
            clip_skip: how many last layers of the text encoder to leave out.
            callback_on_step_end: called as `f(pipe, step, timestep, tensors)` after each model
                call; may return a dict with tensors to go on with.
            callback: the older form, `f(step, timestep, latents)` every `callback_steps`.
            ip_adapter_image: pictures for the attached IP-Adapters, as much as
                `set_ip_adapter_scale` says: a picture, or a list with a picture, a list of them or
                None for each; or normalised pixels `(pictures, 3, side, side)`. The control
                `ImagePrompt` can more.
            ip_adapter_image_embeds: for each IP-Adapter what an image tower (or a face recogniser)
                gives, `(rows, pictures, width)` or `(rows, pictures, tokens, width)`; rows are 1 or
                one per image, and under guidance twice as many, the unconditional ones first, or as
                many where these are zeros (or hidden states of a blank picture).
            cross_attention_kwargs: `scale`, a factor for LoRAs; `ip_adapter_masks`, for each
                IP-Adapter `(1, pictures, height, width)` in [0, 1], where each picture acts.
            controls: what else steers the run.

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
            lora_scale=told.lora_scale,
            own=told.prompts,
        )
        own = {"height": height, "width": width, "latents": latents}
        return (yield from self._from_noise(request, own))

    def _from_noise(
        self,
        request: Request,
        own: Mapping[str, Any],
        beside: Callable[[Plan], Sequence[Control]] = lambda plan: (),
    ) -> Generator[Question | Step, Any, Made]:
        """The call, once its arguments are gathered.

        Args:
            own: the arguments besides the shared ones by name, `height`, `width` and `latents`
                among them.
            beside: controls of the pipeline itself, from the plan.
        """
        parts, latents = self.parts, own["latents"]
        height, width = own["height"], own["width"]
        plan = make_plan(parts, request, self)
        if self.compat == "diffusers" and None in (height, width):
            height = width = None
        height, width = check_size(parts, height, width, latents)
        shape = latent_shape(parts, plan, height, width)
        if latents is not None:
            checks.array("latents", latents, shape, parts.framework)
        controls = beside(plan)
        planned = check_run(parts, plan, shape, controls)

        run = begin(parts, plan, condition(parts, plan), planned)
        noise = first_noise(parts, plan, latents, shape)
        made = yield from denoise(run, plan, noise * plan.solver.initial_sigma, controls)
        images, flags = decode(parts, made, request.output_type)
        return hand_out(run, plan, images, flags, {**own, "height": height, "width": width})
