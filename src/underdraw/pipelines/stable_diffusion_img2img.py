"""`StableDiffusionImg2ImgPipeline`: begin with a picture instead of noise (Meng et al. 2022)."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from underdraw import checks
from underdraw.backends.contract import Array
from underdraw.controls.control import Control
from underdraw.engines.engine import Question
from underdraw.errors import InputError
from underdraw.pictures.reading import read_pictures
from underdraw.pipelines.call.checking import check_run
from underdraw.pipelines.call.conditioning import condition
from underdraw.pipelines.call.denoise import begin, denoise
from underdraw.pipelines.call.latents import draw_noise, encode_pictures, latent_shape
from underdraw.pipelines.call.output import Made, decode, hand_out
from underdraw.pipelines.call.plan import Plan, make_plan
from underdraw.pipelines.call.request import Request
from underdraw.pipelines.call.stream import streamed
from underdraw.pipelines.diffusers import attention
from underdraw.pipelines.diffusers.latents import PictureLatents
from underdraw.pipelines.latent import LatentPipeline
from underdraw.sampling.steps import Step


class StableDiffusionImg2ImgPipeline(PictureLatents, LatentPipeline):
    """A picture and a text to a picture. Components are those of `StableDiffusionPipeline`; make
    one of a pipeline that is loaded already with `from_pipe`."""

    outdated = ("steps_offset", "clip_sample")

    @streamed
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
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: Any = None,
        output_type: str = "pil",
        return_dict: Literal[True] = True,
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
    ) -> Generator[Question | Step, Any, Made]:
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
            strength=strength,
            lora_scale=told.lora_scale,
            own=told.prompts,
        )
        return (yield from self._from_picture(request, {"image": image, "strength": strength}))

    def _from_picture(
        self,
        request: Request,
        own: Mapping[str, Any],
        size: tuple[int | None, int | None] = (None, None),
        latents: Array | None = None,
        pictures_beside: int = 1,
        beside: Callable[[Plan], Sequence[Control]] = lambda plan: (),
    ) -> Generator[Question | Step, Any, Made]:
        """The call, once its arguments are gathered.

        Args:
            own: the arguments besides the shared ones by name, `image` among them.
            size: height and width in pixels; None is that of the picture.
            latents: those the run begins with, at the noise level of its first step.
            pictures_beside: how many pictures the pipeline has of its own, besides `image`.
            beside: controls of the pipeline itself, from the plan.
        """
        image = own["image"]
        if image is None:
            raise InputError("image=None; give a picture, or latents")
        parts, config = self.parts, self.vae.config
        pictures = read_pictures(
            "image",
            image,
            parts.framework,
            *size,
            factor=config.factor,
            latent_channels=config.latent_channels,
        )
        most = max(pictures.shape[0], pictures_beside)
        if pictures.shape[0] not in (1, most) or pictures_beside not in (1, most):
            raise InputError(
                f"image holds {pictures.shape[0]} pictures, beside {pictures_beside} others; "
                "allowed: one, or as many"
            )
        request = replace(request, pictures=most, spread=True)
        plan = make_plan(parts, request, self)
        shape = latent_shape(parts, plan, *pictures.shape[2:])
        if pictures.shape[1] == config.latent_channels:
            shape = (plan.count, *pictures.shape[1:])
        if latents is not None:
            checks.array("latents", latents, shape, parts.framework)
        controls = beside(plan)
        planned = check_run(parts, plan, shape, controls)

        conditioning = condition(parts, plan)
        clean = encode_pictures(parts, plan, pictures)
        run = begin(parts, plan, conditioning, planned)
        if latents is None:
            noise = run.nn.float32(draw_noise(parts, plan, clean.shape))
            start = plan.solver.noised(0, clean, noise)
        else:
            start = parts.framework.array(latents, device=parts.device)
        made = yield from denoise(run, plan, start, controls)
        images, flags = decode(parts, made, request.output_type)
        return hand_out(run, plan, images, flags, own)
