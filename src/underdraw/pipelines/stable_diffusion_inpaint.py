"""`StableDiffusionInpaintPipeline`: make a part of a picture anew (Rombach et al. 2022, 4.5)."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from PIL import Image

from underdraw import checks
from underdraw.backends.contract import Array
from underdraw.controls.control import Control
from underdraw.controls.inpainting import InpaintingChannels
from underdraw.controls.region import Region
from underdraw.engines.engine import Question
from underdraw.errors import InputError
from underdraw.pictures.cropping import Crop, crop_around, filled
from underdraw.pictures.pasting import overlaid
from underdraw.pictures.reading import check_alike, nearest, read_masks, read_pictures
from underdraw.pictures.writing import OUTPUT_TYPES
from underdraw.pipelines.call.checking import check_run
from underdraw.pipelines.call.conditioning import condition
from underdraw.pipelines.call.denoise import begin, denoise
from underdraw.pipelines.call.inpainting import (
    TENSORS,
    Painting,
    check_crop,
    late_levels,
    pasted,
    watched,
)
from underdraw.pipelines.call.latents import (
    check_size,
    encode_pictures,
    first_noise,
    for_each,
    latent_shape,
    posterior_noise,
)
from underdraw.pipelines.call.output import Made, decode, hand_out
from underdraw.pipelines.call.plan import Plan, make_plan
from underdraw.pipelines.call.request import Request
from underdraw.pipelines.call.stream import streamed
from underdraw.pipelines.diffusers import attention
from underdraw.pipelines.diffusers.latents import InpaintLatents
from underdraw.pipelines.latent import LatentPipeline
from underdraw.sampling.steps import Step
from underdraw.schedulers import KDPM2DiscreteScheduler

Fit = Callable[[Any], Any]
"""From a PIL picture to the part of it that is worked on."""


class StableDiffusionInpaintPipeline(InpaintLatents, LatentPipeline):
    """A picture, a mask and a text to a picture that is new inside the mask.

    Two kinds of UNets do it. One made for it has nine input channels: it sees the mask and the
    masked picture. With any other, latents outside the mask follow the picture (`Region`).
    Components are those of `StableDiffusionPipeline`; make one of a pipeline that is loaded already
    with `from_pipe`.
    """

    outdated = ("steps_offset", "skip_prk_steps")

    _callback_tensor_inputs: ClassVar[list[str]] = [
        *LatentPipeline._callback_tensor_inputs,
        *TENSORS,
    ]

    @streamed
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: Any = None,
        mask_image: Any = None,
        masked_image_latents: Array | None = None,
        height: int | None = None,
        width: int | None = None,
        padding_mask_crop: int | None = None,
        strength: float = 1.0,
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
        clip_skip: int | None = None,
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        callback: Callable[..., Any] | None = None,
        callback_steps: int | None = 1,
        *,
        guidance_rescale: float = 0.0,
        seed: int | Sequence[int] | None = None,
        controls: Sequence[Control] = (),
        paste_back: bool = False,
    ) -> Generator[Question | Step, Any, Made]:
        """Make images.

        Args:
            image: as in `StableDiffusionImg2ImgPipeline`, resized to `height` and `width`.
            mask_image: white (1) where the picture is made anew: a PIL picture, an array `(height,
                width)`, `(masks, height, width)` or `(masks, 1, height, width)` in [0, 1], or a
                list of these; one for all pictures, or one per picture. From 0.5 on counts as 1.
            masked_image_latents: for UNets of nine channels, clean latents of the masked picture
                `(1 or pictures, 4, height / 8, width / 8)`, instead of those encoded from `image`.
            height, width: of the result, by default the trained size.
            padding_mask_crop: work on the part around the mask only, with so many pixels of the
                picture on each side, at the whole `height` and `width`, and put it back into the
                picture. `image` and `mask_image` are one PIL picture each.
            strength: as there; 1 begins with noise alone.
            latents: noise to use instead of drawing it, `(images, 4, height / 8, width / 8)`.
            paste_back: outside the mask give the very pixels of `image`, which the autoencoder
                does not keep; PIL images then have the size of the PIL picture.
            callback_on_step_end: may also get and change `mask` and `masked_image_latents`, which
                under guidance have twice as many rows as images.

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
        return (yield from self._painted(request, painting))

    def _painted(
        self,
        request: Request,
        painting: Painting,
        pictures_beside: int = 1,
        beside: Callable[[Plan, Fit | None], Sequence[Control]] = lambda plan, fit: (),
        also: Mapping[str, Any] = MappingProxyType({}),
    ) -> Generator[Question | Step, Any, Made]:
        """The call, once its arguments are gathered.

        Args:
            pictures_beside: how many pictures the pipeline has of its own, besides `image`.
            beside: controls of the pipeline itself, from the plan and what cuts other pictures as
                `image` is cut; None where the whole of it is worked on.
            also: further arguments of the pipeline, for the record.
        """
        image, mask_image, latents = painting.image, painting.mask_image, painting.latents
        output_type, strength = request.output_type, request.strength
        for name, value in (("image", image), ("mask_image", mask_image)):
            if value is None:
                raise InputError(f"{name}=None; give a picture")
        checks.choice("output_type", output_type, OUTPUT_TYPES)
        if checks.flag("paste_back", painting.paste_back) and output_type == "latent":
            raise InputError("paste_back=True with output_type='latent'; pixels are pasted")
        check_alike(image, mask_image)
        parts = self.parts
        height, width = check_size(parts, painting.height, painting.width, latents)
        crop = None
        if painting.padding_mask_crop is not None:
            image, mask_image = check_crop(image, mask_image, output_type)
            padding = checks.whole("padding_mask_crop", painting.padding_mask_crop, 0)
            crop = crop_around(mask_image, width, height, padding)
        framework, factor = parts.framework, self.vae.config.factor
        channels = self.vae.config.latent_channels
        pictures = read_pictures(
            "image", image, framework, height, width, crop=crop, latent_channels=channels
        )
        mask = read_masks("mask_image", mask_image, framework, height, width, crop)
        masked_image_latents, given = painting.masked_image_latents, 1
        if masked_image_latents is not None:
            known = (None, channels, height // factor, width // factor)
            checks.array("masked_image_latents", masked_image_latents, known, framework)
            given = masked_image_latents.shape[0]
        counts = {"image": pictures.shape[0], "mask_image": mask.shape[0]}
        counts["masked_image_latents"] = given
        counts["control_image"] = pictures_beside
        most = max(counts.values())
        for name, number in counts.items():
            if number not in (1, most):
                raise InputError(f"{name} holds {number}; allowed: 1, or {most} as the others")
        request = replace(request, pictures=most, spread=True)
        plan = make_plan(parts, request, self)
        shape = latent_shape(parts, plan, height, width, (0, channels + 1))
        if latents is not None:
            checks.array("latents", latents, shape, framework)
        if pictures.shape[1] == channels and tuple(pictures.shape[2:]) != shape[2:]:
            raise InputError(f"image has shape {tuple(pictures.shape)}; needed is {shape}")
        sees = self.unet.config.in_channels != channels
        if sees and pictures.shape[1] == channels and masked_image_latents is None:
            raise InputError(
                "image is latents, so it cannot be masked; give masked_image_latents, too"
            )
        fit = None if crop is None else partial(_cut, image.size, crop, (width, height))
        controls = beside(plan, fit)
        planned = check_run(parts, plan, shape, controls)

        run = begin(parts, plan, condition(parts, plan), planned)
        alike = self.compat == "diffusers"
        clean = None
        if not sees or (latents is None and strength < 1):
            clean = encode_pictures(parts, plan, pictures, alike)
        noise = run.nn.float32(first_noise(parts, plan, latents, shape))
        if strength == 1 or (latents is not None and (clean is None or alike)):
            start = noise * plan.solver.initial_sigma
        else:
            start = plan.solver.noised(0, clean, noise)
        small = framework.array(nearest(framework.to_numpy(mask), *shape[2:]), device=self.device)
        small = for_each(parts, small, plan.count)
        masked = self._masked(plan, pictures, mask, masked_image_latents, sees, shape)
        if sees:
            own: Control = InpaintingChannels(small, masked)
        else:
            own = Region(small, latents=clean, noise=noise)
            if alike and isinstance(self.scheduler, KDPM2DiscreteScheduler):
                own = Region(small, trail=late_levels(plan.solver, clean, noise))
        own = watched(run, plan, own, {"mask": small, "masked_image_latents": masked})
        made = yield from denoise(run, plan, start, [own, *controls])
        images, flags = decode(parts, made, output_type)
        if crop is not None:
            images = [overlaid(image, one, mask_image, crop) for one in images]
        elif painting.paste_back:
            images = pasted(parts, plan, images, image, mask_image, pictures)
        size = {"height": height, "width": width}
        recorded = {**vars(painting), "strength": strength, **also, **size}
        return hand_out(run, plan, images, flags, recorded)

    def _masked(
        self, plan: Plan, pictures: Array, mask: Array, given: Any, sees: bool, shape: Any
    ) -> Array | None:
        """Latents of the masked pictures, where anybody looks at them."""
        parts, framework, alike = self.parts, self.parts.framework, self.compat == "diffusers"
        if given is not None:
            latents = parts.nn.float32(framework.array(given, device=self.device))
            return for_each(parts, latents, plan.count)
        if pictures.shape[1] == shape[1]:
            return None
        rows = max(pictures.shape[0], mask.shape[0])
        if sees or (plan.watch is not None and "masked_image_latents" in plan.watch.wanted):
            pixels = pictures * framework.array(mask < 0.5, dtype=pictures.dtype)
            return encode_pictures(parts, plan, pixels, alike)
        # diffusers encodes them anyway: its solvers go on with later numbers of a generator.
        if parts.vae.draws:
            posterior_noise(parts, plan, (rows, *shape[1:]), alike)
        return None


def _cut(whole: tuple[int, int], crop: Crop, size: tuple[int, int], picture: Any) -> Any:
    """A PIL picture of what one of the size `whole` shows, cut as that one is, to another size."""
    picture = picture if picture.size == whole else picture.resize(whole, Image.Resampling.LANCZOS)
    return filled(picture.crop(crop), *size)
