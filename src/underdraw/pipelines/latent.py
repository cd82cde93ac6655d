"""What the pipelines of latent diffusion share: a text encoder, a UNet, an autoencoder."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from underdraw import checks, models
from underdraw.backends.contract import Array
from underdraw.errors import InputError, InputTypeError
from underdraw.pictures.writing import OUTPUT_TYPES
from underdraw.pipelines.base import Component, DiffusionPipeline
from underdraw.pipelines.call.conditioning import encode_texts
from underdraw.pipelines.call.output import Flags, check_safety, decode
from underdraw.pipelines.call.plan import check_prompts, count_images
from underdraw.pipelines.call.request import Request
from underdraw.pipelines.components.accepting import check_widths
from underdraw.pipelines.components.grounding import Groundable
from underdraw.pipelines.components.image_prompting import Promptable
from underdraw.pipelines.components.lora import Tunable
from underdraw.pipelines.components.outdated import mend
from underdraw.pipelines.components.preview import Previewing
from underdraw.pipelines.components.structure import Structurable
from underdraw.pipelines.components.subjects import Subjective
from underdraw.pipelines.diffusers.checking import Checking
from underdraw.pipelines.diffusers.compatible import Familiar
from underdraw.pipelines.diffusers.runs import FamiliarRuns
from underdraw.schedulers import Scheduler
from underdraw.text.tokenizer import CLIPTokenizer


class LatentPipeline(
    Groundable,
    Tunable,
    Structurable,
    Previewing,
    Subjective,
    Promptable,
    DiffusionPipeline,
    Familiar,
    FamiliarRuns,
    Checking,
):
    """Text encoder, UNet and autoencoder: what the pipelines of latent diffusion are made of."""

    components_needed = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
    components_for_text = ("text_encoder", "tokenizer")
    components_optional = ("safety_checker", "feature_extractor", "image_encoder")
    switches = ("requires_safety_checker", "compat")
    outdated: ClassVar[tuple[str, ...]] = ()
    """Values of a scheduler's configuration that are mended where they are outdated."""

    vae: Component[models.AutoencoderKL]
    text_encoder: Component[models.CLIPTextModel]
    tokenizer: Component[CLIPTokenizer]
    unet: Component[models.UNet2DConditionModel]
    scheduler: Component[Scheduler]
    safety_checker: Component[models.StableDiffusionSafetyChecker | None]
    feature_extractor: Component[models.CLIPImageProcessor | None]
    image_encoder: Component[models.CLIPVisionModelWithProjection | None]

    def __init__(
        self,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        unet: Any,
        scheduler: Any,
        safety_checker: Any = None,
        feature_extractor: Any = None,
        image_encoder: Any = None,
        requires_safety_checker: bool = True,
        compat: str | None = None,
        **components: Any,
    ) -> None:
        if image_encoder is not None:
            components["image_encoder"] = image_encoder
        super().__init__(
            **components,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            safety_checker=safety_checker,
            feature_extractor=feature_extractor,
        )
        self.scheduler = mend(type(self).__name__, self.outdated, self.scheduler, self.unet)
        if self.safety_checker is not None and self.feature_extractor is None:
            raise InputTypeError("feature_extractor=None; the safety checker needs one")
        self.compat = compat
        self.requires_safety_checker = requires_safety_checker

    def _accept(self, name: str, value: Any) -> Any:
        value = super()._accept(name, value)
        if name == "unet":
            check_widths(self.parts.text_encoder, value)
        if name == "text_encoder":
            check_widths(value, self.parts.unet)
        return value

    def decode_latents(self, latents: Array, output_type: str) -> tuple[Any, Flags]:
        """Latents `(images, 4, h, w)` of a finished run to images; a checker, if any, sees them."""
        checks.choice("output_type", output_type, OUTPUT_TYPES)
        channels = self.parts.vae.config.latent_channels
        checks.array("latents", latents, (None, channels, None, None), self.parts.framework)
        return decode(self.parts, latents, output_type)

    def run_safety_checker(
        self, image: Array, device: Any = None, dtype: Any = None
    ) -> tuple[Array, Flags]:
        """Blacken images which the checker flags; flags are None without a checker.

        Args:
            image: `(images, 3, height, width)` near [-1, 1] of the framework, or of numpy
                `(images, height, width, 3)` in [0, 1], of which are returned what came.
            device, dtype: diffusers'; the checker knows its own.

        Raises:
            InputError, InputTypeError: it is neither.
        """
        checks.device("device", device)
        checks.dtype("dtype", dtype)
        if not isinstance(image, np.ndarray):
            checks.array("image", image, (None, 3, None, None), self.parts.framework)
            return check_safety(self.parts, image)
        if image.ndim != 4 or image.shape[3] != 3 or not np.isfinite(image).all():
            raise InputError(
                f"image has shape {image.shape}; needed is (images, height, width, 3), finite"
            )
        first = image.transpose(0, 3, 1, 2).astype(np.float32) * np.float32(2) - 1
        _, flags = check_safety(self.parts, self.parts.framework.array(first))
        if flags and any(flags):
            keep = np.array([not flag for flag in flags], image.dtype)
            image = image * keep[:, None, None, None]
        return image, flags

    def encode_prompt(
        self,
        prompt: str | list[str] | None,
        device: Any = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: Array | None = None,
        negative_prompt_embeds: Array | None = None,
        lora_scale: float | None = None,
        clip_skip: int | None = None,
    ) -> tuple[Array, Array | None]:
        """Contexts of prompts and negative prompts, each `(prompts * images, tokens, width)`.

        `device` is diffusers': contexts are where the pipeline computes. `lora_scale` is a factor
        for the active LoRAs.

        Raises:
            InputError, InputTypeError: an argument cannot work; nothing has been computed by then.
        """
        scale = 1.0 if lora_scale is None else lora_scale
        request = Request(
            *(prompt, negative_prompt, prompt_embeds, negative_prompt_embeds),
            clip_skip=clip_skip,
            lora_scale=checks.factor("lora_scale", scale),
        )
        guided = checks.flag("do_classifier_free_guidance", do_classifier_free_guidance)
        checks.device("device", device)
        texts = check_prompts(self.parts, request)
        images = count_images(texts.count, num_images_per_prompt)
        found = encode_texts(self.parts, request, texts, guided, images)
        return found.context, found.negative
