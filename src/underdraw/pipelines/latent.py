"""What the pipelines of latent diffusion share besides their calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from underdraw import checks
from underdraw.backends.contract import Array
from underdraw.controls.control import Control
from underdraw.errors import InputError, InputTypeError, NonFiniteError
from underdraw.pictures import writing as images
from underdraw.pipelines.base import DiffusionPipeline
from underdraw.pipelines.call import calls
from underdraw.pipelines.call.request import Plan, Request
from underdraw.pipelines.components.adapters import Groundable
from underdraw.pipelines.diffusers.compatible import Familiar
from underdraw.text.prompts import encode_prompts


class LatentPipeline(Groundable, DiffusionPipeline, Familiar):
    """Text encoder, UNet and autoencoder; decoding, the safety checker, the state of a run."""

    components_needed = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
    components_for_text = ("text_encoder", "tokenizer")
    components_optional = ("safety_checker", "feature_extractor", "image_encoder")
    switches = ("requires_safety_checker", "compat")

    vae: Any
    text_encoder: Any
    tokenizer: Any
    unet: Any
    scheduler: Any
    safety_checker: Any
    feature_extractor: Any
    image_encoder: Any

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
        if self.safety_checker is not None and self.feature_extractor is None:
            raise InputTypeError("feature_extractor=None; the safety checker needs one")
        self.compat = checks.choice("compat", compat, (None, "diffusers"))
        self.requires_safety_checker = requires_safety_checker

    def _accept(self, name: str, value: Any) -> Any:
        value = super()._accept(name, value)
        other = {"unet": "_text_encoder", "text_encoder": "_unet"}.get(name, "")
        if value is not None and (beside := vars(self).get(other)) is not None:
            text, unet = (value, beside) if name == "text_encoder" else (beside, value)
            width, context = text.config.hidden_size, unet.config.cross_attention_dim
            if width != context:
                raise InputError(
                    f"text_encoder gives tokens of width {width}, the UNet takes {context}; "
                    "they belong to different models"
                )
        return value

    # -- what a callback may read while a run goes on, one value per thread ----------------------
    @property
    def guidance_scale(self) -> Any:
        """Of the run in progress in this thread."""
        return getattr(self._run, "guidance", 1.0)

    @property
    def _guidance_scale(self) -> Any:
        """The peer's name for it; callbacks written for the peer change the scale by this name."""
        return self.guidance_scale

    @_guidance_scale.setter
    def _guidance_scale(self, value: Any) -> None:
        self._run.guidance = value

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the run in progress makes guided calls."""
        return self._needs_guidance(self.guidance_scale)

    @property
    def num_timesteps(self) -> int:
        """Model calls of the run in progress, or of the last one."""
        return getattr(self._run, "calls", 0)

    @property
    def _distilled(self) -> bool:
        """Whether the UNet takes the guidance scale as an input (LCM)."""
        return self.unet.config.time_cond_proj_dim is not None

    def decode_latents(self, latents: Array, output_type: str) -> tuple[Any, list[bool] | None]:
        """Latents `(images, 4, h, w)` of a finished run to images; a checker, if any, sees them."""
        if output_type == "latent":
            return latents, None
        framework = self._framework
        with framework.no_grad():
            with self._borrowed(self.vae):
                # The autoencoder may live in another dtype, or elsewhere, than the UNet.
                z = framework.array(latents, dtype=self.vae.dtype, device=self.vae.device)
                z = z / self.vae.config.scaling_factor
                decoded = self.vae.decode_with(z, self.settings.vae_slicing, self._tiling)
            if not framework.is_finite(decoded):
                raise NonFiniteError(
                    "vae: decoding gave NaN or infinity; its weights hold such values, or its "
                    "dtype is too narrow (try dtype='float32' or 'bfloat16')"
                )
            decoded, flags = self.run_safety_checker(decoded)
        return images.to_output(decoded, output_type, framework), flags

    def run_safety_checker(
        self, image: Array, device: Any = None, dtype: Any = None
    ) -> tuple[Array, list[bool] | None]:
        """Blacken images near [-1, 1] which the checker flags; flags are None without a checker.

        `device` and `dtype` are the peer's; the checker knows its own.
        """
        if self.safety_checker is None:
            return image, None
        framework, decoded = self._framework, image
        pictures = images.to_output(decoded, "pil", framework)
        pixels = self.feature_extractor(pictures, return_tensors="np")["pixel_values"]
        checker = self.safety_checker
        with self._borrowed(checker):
            pixels = framework.array(pixels, dtype=checker.dtype, device=checker.device)
            flags = checker.flags(pixels)
        if any(flags):
            keep = framework.array([[[[not flag]]] for flag in flags], device=decoded.device)
            decoded = framework.operations.where(
                keep, decoded, framework.operations.cast(keep, decoded) - 1
            )
        return decoded, flags

    def _check_embeds(self, request: Request, prompts: list[str] | None) -> None:
        framework, width = self._framework, self.unet.config.cross_attention_dim
        embeds: Any = request.prompt_embeds
        against = request.negative_prompt_embeds
        for text, given, name in (
            (request.prompt, embeds, "prompt"),
            (request.negative_prompt, against, "negative_prompt"),
        ):
            if text is not None and given is not None:
                raise InputError(
                    f"{name} and {name}_embeds are both given; only one of them can be"
                )
        if embeds is not None:
            checks.array("prompt_embeds", embeds, (None, None, width), framework)
        if against is not None:
            tokens = None if embeds is None else embeds.shape[1]
            count = embeds.shape[0] if embeds is not None else len(prompts or ())
            checks.array("negative_prompt_embeds", against, (count, tokens, width), framework)

    def _negative_like(self, context: Array, negatives: list[str]) -> Array:
        """The context of negative prompts beside a given one."""
        window, plain = min(self.tokenizer.model_max_length, context.shape[1]), self.compat
        with self._borrowed(self.text_encoder):
            return encode_prompts(
                self.text_encoder,
                self.tokenizer,
                negatives,
                plain=plain == "diffusers",
                max_length=window,
            )[0]

    def _equally_long(self, context: Array, negative: Array) -> tuple[Array, Array]:
        """The shorter of two contexts repeated, which attention to it does not notice."""
        lengths = (context.shape[1], negative.shape[1])
        if max(lengths) % min(lengths):
            raise InputError(
                f"prompt and negative prompt have {lengths[0]} and {lengths[1]} tokens; give both "
                "as text, or embeddings of equal length"
            )
        concat, most = self._operations.concat, max(lengths)
        return (
            concat((context,) * (most // lengths[0]), 1),
            concat((negative,) * (most // lengths[1]), 1),
        )

    def _denoise(self, plan: Plan, latents: Array, own: Sequence[Control] = ()) -> Array:
        """`_denoising` to its end."""
        return calls.ended(self._denoising(plan, latents, own))

    def encode_prompt(
        self,
        prompt: str | list[str] | None,
        device: Any = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: Array | None = None,
        negative_prompt_embeds: Array | None = None,
        lora_scale: None = None,
        clip_skip: int | None = None,
    ) -> tuple[Array, Array | None]:
        """Contexts of prompts and negative prompts, each `(prompts * images, tokens, width)`."""
        request = Request(
            prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, clip_skip=clip_skip
        )
        prompts, negatives, count = self._check_prompts(request)
        images = count * num_images_per_prompt
        return self._contexts(request, prompts, negatives, do_classifier_free_guidance, images)

    def _guidance_per_image(self, scale: Any, count: int) -> Any:
        if len(scale) != count:
            raise InputError(
                f"guidance_scale has {len(scale)} entries; the call makes {count} images"
            )
        values = np.array([[[[checks.number("guidance_scale", value)]]] for value in scale])
        if self._distilled:
            return values
        # An image that asks for 1 or less is unguided in a call of its own, so it is here, too.
        values = values.clip(1.0).astype(np.float32)
        return self._framework.array(values, device=self.device)
