"""`StableDiffusionPipeline`: text to image, SD 1.x and 2.x (Rombach et al. 2022)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from underdraw.backends.contract import Array
from underdraw.controls.control import Control
from underdraw.errors import InputError, InputTypeError, NonFiniteError
from underdraw.pipelines import calls, compatible
from underdraw.pipelines.callbacks import Callbacks
from underdraw.pipelines.images import OUTPUT_TYPES, StableDiffusionPipelineOutput
from underdraw.pipelines.latent import LatentPipeline
from underdraw.pipelines.record import annotate, seeds_of
from underdraw.sampling.foreign import ForeignSolver, Solver
from underdraw.sampling.loop import Denoiser, sample
from underdraw.solvers.schedulers import Scheduler
from underdraw.text.prompts import encode_prompts


class StableDiffusionPipeline(LatentPipeline):
    """Text to image.

    Args:
        vae, text_encoder, tokenizer, unet, scheduler: the components; networks of diffusers and
            transformers are adopted, a foreign scheduler with the same methods is used as it is.
        safety_checker, feature_extractor: give both to have images checked.
        image_encoder: kept for controls that look at images.
        compat: `"diffusers"` reads prompts as the peer does (brackets are text, what exceeds the
            window of tokens is cut) and ignores `height` given without `width`.
    """

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
        ip_adapter_image: None = None,
        ip_adapter_image_embeds: None = None,
        output_type: str = "pil",
        return_dict: bool = True,
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
            controls: what else steers the run; the peer's `ip_adapter_image` and
                `cross_attention_kwargs` keep their places and say so.

        Raises:
            InputError, InputTypeError: an argument cannot work; nothing has been computed by then.
            NonFiniteError: the network gave NaN or infinity.
        """
        if not (ip_adapter_image is ip_adapter_image_embeds is cross_attention_kwargs is None):
            compatible.refuse(ip_adapter_image, ip_adapter_image_embeds, cross_attention_kwargs)
        framework = self.unet._framework
        output_type = calls.choice("output_type", output_type, OUTPUT_TYPES)
        per_prompt = calls.whole("num_images_per_prompt", num_images_per_prompt)
        calls.number("eta", eta, 0.0, 1.0)
        rescale = calls.number("guidance_rescale", guidance_rescale, 0.0, 1.0)
        if clip_skip is not None:
            calls.whole("clip_skip", clip_skip, 0)
        names, watch = callback_on_step_end_tensor_inputs, None
        if not (callback_on_step_end is callback is None and callback_steps == 1) or (
            names != ("latents",)
        ):
            watch = Callbacks(self, callback_on_step_end, names, callback, callback_steps)
        self._check_controls(controls)
        prompts, negatives = self._check_prompts(
            prompt, negative_prompt, prompt_embeds, negative_prompt_embeds
        )
        count = self._count(prompts, prompt_embeds) * per_prompt
        height, width = self._check_size(height, width, latents)
        shape = self._latent_shape(count, height, width)
        if latents is not None:
            calls.array("latents", latents, shape, framework)
        scale: Any
        if isinstance(guidance_scale, list | tuple):
            scale = self._guidance_per_image(guidance_scale, count)
        else:
            scale = calls.number("guidance_scale", guidance_scale)
        generators = calls.generators(generator, seed, count)
        seeds = seeds_of(generators, count) if output_type == "pil" else []
        solver = self._solver(num_inference_steps, timesteps, sigmas, eta, generators)

        vars(self._run).update(guidance=scale, calls=len(solver), rescale=rescale, skip=clip_skip)
        distilled = self.unet.config.time_cond_proj_dim is not None
        largest = scale.max() if hasattr(scale, "shape") else scale
        guided = bool(largest > 1) and not distilled
        context, negative = self._contexts(
            prompts, negatives, prompt_embeds, negative_prompt_embeds, guided, per_prompt, clip_skip
        )
        nn, device = self._operations, framework.device_of(self.unet)
        whole = nn.concat((negative, context), 0) if guided else context

        def draw() -> Array:
            return framework.draw(shape, generators, device, noise_dtype)

        # The peer draws in the model's dtype; a seed means the same picture in every dtype.
        noise_dtype = framework.float32 if seed is not None else context.dtype
        noise = draw() if latents is None else framework.array(latents, device=device)
        denoise = Denoiser(
            self.unet,
            nn,
            whole,
            [solver.timestep(i) for i in range(len(solver))],
            lambda: self._run.guidance,
            rescale,
            distilled,
        )
        run = sample(denoise, solver, noise * solver.initial_sigma, draw, controls, self)
        steps = num_inference_steps
        if timesteps is not None or sigmas is not None:
            steps = -(-len(solver) // getattr(self.scheduler, "order", 1))
        if watch is not None:
            watch.begin(denoise, negative)
        result = self._drive(run, noise, len(solver), steps, watch)
        if not framework.is_finite(result):
            raise NonFiniteError("the latents became NaN or infinity after the first step")
        made, flags = nn.cast(result, whole), None
        if output_type != "latent":
            made, flags = self.decode_latents(made, output_type)
        if output_type == "pil":
            call = {"height": height, "width": width, "num_inference_steps": num_inference_steps}
            call |= {"timesteps": timesteps, "sigmas": sigmas, "guidance_rescale": rescale}
            call |= {"eta": eta, "clip_skip": clip_skip}
            altered = watch is not None and watch.altered
            altered = altered or self._interrupt or self._run.guidance is not scale
            given = {"latents": latents, "prompt_embeds": prompt_embeds}
            given |= {"negative_prompt_embeds": negative_prompt_embeds, "controls": controls}
            given["callback_on_step_end"] = "changes" if altered else None
            if seed is None and noise_dtype != framework.float32:
                seeds = [None] * count  # a seed draws in float32
            against = negatives if guided else None
            annotate(self, made, per_prompt, prompts, against, scale, seeds, call, given)
        if not return_dict:
            return made, flags
        return StableDiffusionPipelineOutput(made, flags)

    # -- preparing a call --------------------------------------------------------------------------
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
        nn, framework, plain = self._operations, self.unet._framework, self.compat == "diffusers"
        context: Any = prompt_embeds
        negative: Any = negative_embeds if guided else None
        absent = guided and negative is None
        if (prompts is not None or absent) and None in (self.text_encoder, self.tokenizer):
            raise compatible.no_texts(self, prompts)
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
        if negative is not None and negative.shape[1] != context.shape[1]:
            context, negative = self._equally_long(context, negative)
        like = framework.leaf(self.unet.conv_in)

        def ready(x: Array) -> Array:
            x = nn.cast(framework.array(x, device=framework.device_of(self.unet)), like)
            rows, tokens, width = x.shape
            x = nn.expand(x[:, None], (rows, per_prompt, tokens, width))
            return x.reshape(-1, tokens, width)

        return ready(context), None if negative is None else ready(negative)

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
        count = None if custom else calls.whole("num_inference_steps", steps, 1, most)
        if isinstance(self.scheduler, Scheduler):
            return self.scheduler.make_table(count, timesteps, sigmas, eta)
        return ForeignSolver(
            self.scheduler, count, timesteps, sigmas, eta, generators, device=self.device
        )

    # -- checking arguments ------------------------------------------------------------------------
    def _check_prompts(
        self, prompt: Any, negative: Any, embeds: Array, negative_embeds: Array
    ) -> tuple[list[str] | None, list[str] | None]:
        framework = self.unet._framework
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
        prompts = None if prompt is None else calls.texts("prompt", prompt)
        if embeds is not None:
            calls.array("prompt_embeds", embeds, (None, None, width), framework)
        count = self._count(prompts, embeds)
        if negative_embeds is not None:
            tokens = None if embeds is None else embeds.shape[1]
            calls.array(
                "negative_prompt_embeds", negative_embeds, (count, tokens, width), framework
            )
        if negative is None:
            return prompts, None
        negatives = calls.texts("negative_prompt", negative)
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
        height = sides[0] * factor if height is None else calls.size("height", height, factor)
        width = sides[1] * factor if width is None else calls.size("width", width, factor)
        return height, width

    def _check_controls(self, controls: Any) -> None:
        if not isinstance(controls, list | tuple):
            raise InputTypeError(f"controls={controls!r} is not a list of controls")
        for control in controls:
            if not isinstance(control, Control):
                raise InputTypeError(f"controls holds {control!r}, which is not a Control")
