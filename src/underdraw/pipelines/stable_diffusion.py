"""`StableDiffusionPipeline`: text to image, SD 1.x and 2.x (Rombach et al. 2022)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from underdraw.backends.contract import Array
from underdraw.controls.control import Control
from underdraw.errors import InputError, InputTypeError, NonFiniteError
from underdraw.models.outputs import Output
from underdraw.pipelines import images, inputs
from underdraw.pipelines.base import DiffusionPipeline
from underdraw.pipelines.record import describe_call
from underdraw.sampling.loop import Change, Denoiser, Solver, TableSolver, sample
from underdraw.solvers.schedulers import Scheduler
from underdraw.text.prompts import encode_prompts

CALLBACK_TENSORS = ("latents", "prompt_embeds", "negative_prompt_embeds")


@dataclass
class StableDiffusionPipelineOutput(Output):
    """What a call returns."""

    images: Any
    """A list of PIL images, or an array, as `output_type` says."""
    nsfw_content_detected: list[bool] | None = None
    """Per image, whether the safety checker withheld it; None without a checker."""

    def save(self, pattern: str | Path) -> list[Path]:
        """Write the images as PNG with all that is needed to make them again.

        `pattern` is a file name; several images get `-0`, `-1`, ... before the suffix.
        """
        path, several = Path(pattern), len(self.images) > 1
        paths = [
            path.with_stem(f"{path.stem}-{i}") if several else path for i in range(len(self.images))
        ]
        for image, target in zip(self.images, paths, strict=True):
            images.save_png(image, target)
        return paths


class StableDiffusionPipeline(DiffusionPipeline):
    """Text to image.

    Args:
        vae, text_encoder, tokenizer, unet, scheduler: the components; networks of diffusers and
            transformers are adopted, a foreign scheduler with the same methods is used as it is.
        safety_checker, feature_extractor: give both to have images checked.
        image_encoder: kept for controls that look at images.
        compat: `"diffusers"` reads prompts as the peer does (brackets are text, what exceeds the
            window of tokens is cut) and ignores `height` given without `width`.
    """

    components_needed = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
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
    ) -> None:
        super().__init__(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            safety_checker=safety_checker,
            feature_extractor=feature_extractor,
            image_encoder=image_encoder,
        )
        if self.safety_checker is not None and self.feature_extractor is None:
            raise InputTypeError("feature_extractor=None; the safety checker needs one")
        width, context = self.text_encoder.config.hidden_size, self.unet.config.cross_attention_dim
        if width != context:
            raise InputError(
                f"text_encoder gives tokens of width {width}, the UNet takes {context}; "
                "they belong to different models"
            )
        self.compat = inputs.choice("compat", compat, (None, "diffusers"))
        self.requires_safety_checker = requires_safety_checker

    # -- what a callback may read while a run goes on, one value per thread
    # ---------------------------
    @property
    def guidance_scale(self) -> Any:
        """Of the run in progress in this thread."""
        return getattr(self._run, "guidance", 1.0)

    @property
    def _guidance_scale(self) -> Any:
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

    def _needs_guidance(self, scale: Any) -> bool:
        largest = scale.max() if hasattr(scale, "shape") else scale
        return bool(largest > 1) and not self._distilled

    @property
    def _distilled(self) -> bool:
        """Whether the UNet takes the guidance scale as an input (LCM)."""
        return self.unet.config.time_cond_proj_dim is not None

    # -- the call
    # -------------------------------------------------------------------------------------
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
        output_type: str = "pil",
        return_dict: bool = True,
        guidance_rescale: float = 0.0,
        clip_skip: int | None = None,
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        callback: Callable[..., Any] | None = None,
        callback_steps: int = 1,
        *,
        seed: int | Sequence[int] | None = None,
        controls: Sequence[Control] = (),
    ) -> StableDiffusionPipelineOutput | tuple[Any, list[bool] | None]:
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
            controls: what else steers the run.

        Raises:
            InputError, InputTypeError: an argument cannot work; nothing has been computed by then.
            NonFiniteError: the network gave NaN or infinity.
        """
        framework = self._framework
        output_type = inputs.choice("output_type", output_type, images.OUTPUT_TYPES)
        per_prompt = inputs.whole("num_images_per_prompt", num_images_per_prompt)
        inputs.number("eta", eta, 0.0, 1.0)
        rescale = inputs.number("guidance_rescale", guidance_rescale, 0.0, 1.0)
        inputs.whole("callback_steps", callback_steps)
        if clip_skip is not None:
            inputs.whole("clip_skip", clip_skip, 0)
        wanted = self._check_callbacks(
            callback_on_step_end, callback_on_step_end_tensor_inputs, callback
        )
        self._check_controls(controls)
        prompts, negatives = self._check_prompts(
            prompt, negative_prompt, prompt_embeds, negative_prompt_embeds
        )
        count = self._count(prompts, prompt_embeds) * per_prompt
        height, width = self._check_size(height, width, latents)
        shape = self._latent_shape(count, height, width)
        if latents is not None:
            inputs.array("latents", latents, shape, framework)
        scale = self._check_guidance(guidance_scale, count)
        generators, seeds = self._check_generators(generator, seed, count)
        solver = self._solver(num_inference_steps, timesteps, sigmas, eta, generators)

        self._guidance_scale = scale
        self._run.calls = len(solver)
        guided = self.do_classifier_free_guidance
        context, negative_context = self._contexts(
            prompts, negatives, prompt_embeds, negative_prompt_embeds, guided, per_prompt, clip_skip
        )
        nn = self._operations
        whole = nn.concat((negative_context, context), 0) if guided else context

        def draw() -> Array:
            return framework.draw(shape, generators, self.device, noise_dtype)

        # The peer draws in the model's dtype; a seed means the same picture in every dtype.
        noise_dtype = framework.float32 if seed is not None else context.dtype
        noise = draw() if latents is None else framework.array(latents, device=self.device)
        denoise = Denoiser(
            self.unet,
            nn,
            whole,
            [solver.timestep(i) for i in range(len(solver))],
            lambda: self.guidance_scale,
            rescale,
            distilled=self._distilled,
        )
        run = sample(denoise, solver, noise * solver.initial_sigma, draw, controls, self)
        order = getattr(self.scheduler, "order", 1)
        custom = timesteps is not None or sigmas is not None
        steps = -(-len(solver) // order) if custom else num_inference_steps
        warmup = len(solver) - steps * order
        self._interrupt = False

        result, change, altered = noise, None, False
        with self.progress_bar(total=steps) as bar:
            while not self.interrupt:
                try:
                    step = run.send(change)
                except StopIteration:
                    break
                result, change = step.latents, None
                i = step.index
                if callback_on_step_end is not None:
                    held = {
                        "latents": nn.cast(result, whole),
                        "prompt_embeds": denoise.context,
                        "negative_prompt_embeds": negative_context,
                    }
                    told = {name: held[name] for name in wanted}
                    told = callback_on_step_end(self, i, self._time(step.timestep), told)
                    told = {} if told is None else told
                    change = self._change(told, held)
                    altered = altered or any(told[name] is not held[name] for name in told)
                    negative_context = told.get("negative_prompt_embeds", negative_context)
                    result = step.latents if change.latents is None else change.latents
                if i == len(solver) - 1 or (i + 1 > warmup and (i + 1) % order == 0):
                    bar.update()
                    if callback is not None and i % callback_steps == 0:
                        callback(i // order, self._time(step.timestep), result)
        run.close()
        if not framework.is_finite(result):
            raise NonFiniteError("the latents became NaN or infinity after the first step")
        made, flags = self.decode_latents(nn.cast(result, whole), output_type)
        if output_type == "pil":
            call = {
                "height": height,
                "width": width,
                "num_inference_steps": num_inference_steps,
                "timesteps": timesteps,
                "sigmas": sigmas,
                "guidance_rescale": rescale,
                "eta": eta,
                "clip_skip": clip_skip,
            }
            altered = altered or self.interrupt or self.guidance_scale is not scale
            given = {
                "latents": latents,
                "prompt_embeds": prompt_embeds,
                "negative_prompt_embeds": negative_prompt_embeds,
                "controls": controls,
                "callback_on_step_end": "changes" if altered else None,
            }
            if seed is None and noise_dtype != framework.float32:
                seeds = [None] * count  # a seed draws in float32
            against = negatives if guided else None
            for i, image in enumerate(made):
                image.info[images.METADATA] = describe_call(
                    self, i, per_prompt, prompts, against, scale, seeds, call, given
                )
        if not return_dict:
            return made, flags
        return StableDiffusionPipelineOutput(made, flags)

    def decode_latents(self, latents: Array, output_type: str) -> tuple[Any, list[bool] | None]:
        """Latents `(images, 4, h, w)` of a finished run to images; a checker, if any, sees them."""
        if output_type == "latent":
            return latents, None
        framework = self._framework
        with framework.no_grad():
            z = latents / self.vae.config.scaling_factor
            decoded = self.vae.decode_with(z, self.settings.vae_slicing, self._tiling)
            if not framework.is_finite(decoded):
                raise NonFiniteError(
                    "vae: decoding gave NaN or infinity; its weights hold such values, or its "
                    "dtype is too narrow (try dtype='float32' or 'bfloat16')"
                )
            decoded, flags = self.run_safety_checker(decoded)
        return images.to_output(decoded, output_type, framework), flags

    def run_safety_checker(self, decoded: Array) -> tuple[Array, list[bool] | None]:
        """Blacken images near [-1, 1] which the checker flags; flags are None without a checker."""
        if self.safety_checker is None:
            return decoded, None
        framework = self._framework
        pictures = images.to_output(decoded, "pil", framework)
        pixels = self.feature_extractor(pictures, return_tensors="np")["pixel_values"]
        checker = self.safety_checker
        flags = checker.flags(framework.array(pixels, dtype=checker.dtype, device=checker.device))
        if any(flags):
            keep = framework.array([[[[not flag]]] for flag in flags], device=decoded.device)
            decoded = framework.operations.where(
                keep, decoded, framework.operations.cast(keep, decoded) - 1
            )
        return decoded, flags

    # -- preparing a call
    # -----------------------------------------------------------------------------
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
        prompts, negatives = self._check_prompts(
            prompt, negative_prompt, prompt_embeds, negative_prompt_embeds
        )
        return self._contexts(
            prompts,
            negatives,
            prompt_embeds,
            negative_prompt_embeds,
            do_classifier_free_guidance,
            num_images_per_prompt,
            clip_skip,
        )

    def _contexts(
        self,
        prompts: list[str] | None,
        negatives: list[str] | None,
        prompt_embeds: Array | None,
        negative_embeds: Array | None,
        guided: bool,
        per_prompt: int,
        clip_skip: int | None,
    ) -> tuple[Array, Array | None]:
        nn, plain = self._operations, self.compat == "diffusers"
        context: Any = prompt_embeds
        negative: Any = negative_embeds if guided else None
        absent = guided and negative is None
        if prompts is not None:
            against = (negatives or [""] * len(prompts)) if absent else []
            context, found = encode_prompts(
                self.text_encoder, self.tokenizer, prompts, against, clip_skip, plain
            )
            negative = found if absent else negative
        elif absent:
            against = negatives or [""] * context.shape[0]
            window = min(self.tokenizer.model_max_length, context.shape[1])
            negative, _ = encode_prompts(
                self.text_encoder, self.tokenizer, against, plain=plain, max_length=window
            )
        if negative is not None:
            context, negative = self._equally_long(context, negative)
        like = self._framework.leaf(self.unet.conv_in)

        def ready(x: Array) -> Array:
            x = nn.cast(framework.array(x, device=self.device), like)
            if per_prompt == 1:
                return x
            rows, tokens, width = x.shape
            return nn.expand(x[:, None], (rows, per_prompt, tokens, width)).reshape(
                -1, tokens, width
            )

        framework = self._framework
        return ready(context), None if negative is None else ready(negative)

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

    def _latent_shape(self, count: int, height: int, width: int) -> tuple[int, int, int, int]:
        factor, channels = self.vae.config.factor, self.vae.config.latent_channels
        if self.unet.config.in_channels != channels:
            raise InputError(
                f"unet: it takes {self.unet.config.in_channels} channels, latents have {channels}; "
                f"{type(self).__name__} needs a text-to-image UNet"
            )
        return count, channels, height // factor, width // factor

    def _solver(
        self,
        steps: int,
        timesteps: Sequence[float] | None,
        sigmas: Sequence[float] | None,
        eta: float,
        generators: Any,
    ) -> Solver:
        if timesteps is not None and sigmas is not None:
            raise InputError("timesteps and sigmas are both given; only one of them can be")
        custom = timesteps is not None or sigmas is not None
        most = getattr(self.scheduler, "config", {}).get("num_train_timesteps", 1000)
        count = None if custom else inputs.whole("num_inference_steps", steps, 1, most)
        if isinstance(self.scheduler, Scheduler):
            return TableSolver(self.scheduler.make_table(count, timesteps, sigmas, eta))
        from underdraw.sampling.foreign import ForeignSolver

        return ForeignSolver(
            self.scheduler, count, timesteps, sigmas, eta, generators, device=self.device
        )

    # -- checking arguments
    # ---------------------------------------------------------------------------
    def _check_prompts(
        self, prompt: Any, negative: Any, embeds: Array, negative_embeds: Array
    ) -> tuple[list[str] | None, list[str] | None]:
        framework = self._framework
        for text, array, name in (
            (prompt, embeds, "prompt"),
            (negative, negative_embeds, "negative_prompt"),
        ):
            if text is not None and array is not None:
                raise InputError(
                    f"{name} and {name}_embeds are both given; only one of them can be"
                )
        if prompt is None and embeds is None:
            raise InputError("prompt=None; give prompt or prompt_embeds")
        width = self.unet.config.cross_attention_dim
        prompts = None if prompt is None else inputs.texts("prompt", prompt)
        if embeds is not None:
            inputs.array("prompt_embeds", embeds, (None, None, width), framework)
        count = self._count(prompts, embeds)
        if negative_embeds is not None:
            tokens = None if embeds is None else embeds.shape[1]
            inputs.array(
                "negative_prompt_embeds", negative_embeds, (count, tokens, width), framework
            )
        if negative is None:
            return prompts, None
        negatives = inputs.texts("negative_prompt", negative)
        if isinstance(negative, str):
            negatives = negatives * count
        if len(negatives) != count:
            raise InputError(
                f"negative_prompt has {len(negatives)} entries; there are {count} prompts"
            )
        return prompts, negatives

    @staticmethod
    def _count(prompts: list[str] | None, embeds: Array) -> int:
        return embeds.shape[0] if prompts is None else len(prompts)

    def _check_size(self, height: Any, width: Any, latents: Any) -> tuple[int, int]:
        factor = self.vae.config.factor
        if self.compat == "diffusers" and (height is None or width is None):
            height = width = None
        trained = self.unet.config.sample_size or 64
        sides = (trained, trained) if isinstance(trained, int) else tuple(trained)
        if latents is not None and len(getattr(latents, "shape", ())) == 4:
            sides = tuple(latents.shape[2:])
        height = sides[0] * factor if height is None else inputs.size("height", height, factor)
        width = sides[1] * factor if width is None else inputs.size("width", width, factor)
        return height, width

    def _check_guidance(self, scale: Any, count: int) -> Any:
        if not isinstance(scale, list | tuple):
            return inputs.number("guidance_scale", scale)
        if len(scale) != count:
            raise InputError(
                f"guidance_scale has {len(scale)} entries; the call makes {count} images"
            )
        values = np.array([[[[inputs.number("guidance_scale", value)]]] for value in scale])
        if self._distilled:
            return values
        # An image that asks for 1 or less is unguided in a call of its own, so it is here, too.
        values = values.clip(1.0).astype(np.float32)
        return self._framework.array(values, device=self.device)

    def _check_generators(self, generator: Any, seed: Any, count: int) -> Any:
        from underdraw.backends import seeds, torch_operations as noise

        if generator is not None and seed is not None:
            raise InputError("generator and seed are both given; only one of them can be")
        made = noise.check_generators(generator, count) if seed is None else noise.seeded(seed, count)
        return made, seeds.seeds_of(made, count)

    def _check_callbacks(self, on_step_end: Any, tensors: Any, callback: Any) -> tuple[str, ...]:
        """Names of the tensors the first of the callbacks is to get."""
        for name, value in (("callback_on_step_end", on_step_end), ("callback", callback)):
            if value is not None and not callable(value):
                raise InputTypeError(f"{name}={value!r} cannot be called")
        tensors = getattr(on_step_end, "tensor_inputs", tensors)  # the peer's callback objects
        if isinstance(tensors, str) or not isinstance(tensors, Sequence):
            raise InputTypeError(f"callback_on_step_end_tensor_inputs={tensors!r} is not a list")
        for name in tensors:
            inputs.choice("callback_on_step_end_tensor_inputs", name, CALLBACK_TENSORS)
        return tuple(tensors)

    def _check_controls(self, controls: Any) -> None:
        if not isinstance(controls, list | tuple):
            raise InputTypeError(f"controls={controls!r} is not a list of controls")
        for control in controls:
            if not isinstance(control, Control):
                raise InputTypeError(f"controls holds {control!r}, which is not a Control")

    def _change(self, told: Any, held: Mapping[str, Any]) -> Change:
        """What a callback returned, as the loop takes it."""
        where = "callback_on_step_end's"
        if not isinstance(told, dict):
            raise InputTypeError(f"{where} result is {told!r:.100}; a dict or None is needed")
        for name, value in told.items():
            inputs.choice(f"{where} dict", name, CALLBACK_TENSORS)
            old = held[name]
            if value is old:
                continue
            shape = old.shape if name == "latents" else (None, None, old.shape[2])
            inputs.array(f"{where} {name}", value, shape, self._framework)
            rows, images = value.shape[0], held["latents"].shape[0]
            if rows not in (images, 2 * images):
                raise InputError(
                    f"{where} {name} has {rows} rows; allowed: {images}, or with the "
                    f"unconditional half {2 * images}"
                )
        return Change(told.get("latents"), told.get("prompt_embeds"))

    def _time(self, timestep: float) -> Array:
        """A time for callbacks: a whole number where the solver's times are."""
        whole = getattr(self.scheduler, "whole", False)
        return self._framework.array(int(timestep) if whole else timestep)
