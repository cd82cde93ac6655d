"""`StableDiffusionDiffEditPipeline`: edits inside a mask found by itself (Couairon et al. 2022)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

import numpy as np

from underdraw.backends.contract import Array
from underdraw.controls.control import Call, Control
from underdraw.errors import InputError, InputTypeError, NonFiniteError, UnderdrawError
from underdraw.models.outputs import Output
from underdraw.pipelines import calls, compatible, masks
from underdraw.pipelines.images import OUTPUT_TYPES, StableDiffusionPipelineOutput
from underdraw.pipelines.latent import LatentPipeline
from underdraw.pipelines.regularise import Regularisation, RegularisedSolver
from underdraw.pipelines.request import Plan, Request
from underdraw.sampling.foreign import Solver
from underdraw.sampling.loop import Change, Denoiser, Step
from underdraw.solvers.ddim_inverse import back_along, head
from underdraw.solvers.table import Table, read_noise

ROWS = 32
"""Rows that a mask sends through the UNet at once, if one image does not need more."""


@dataclass
class DiffEditInversionPipelineOutput(Output):
    """What an inversion returns.

    `latents (images, levels, channels, height, width)` go from the noisiest level down to the
    picture itself, which is the last one (under `compat="diffusers"` it is left out). `images` are
    the pictures of all of them, image by image, where `decode_latents` was set.
    """

    latents: Array
    images: Any = None


@dataclass(frozen=True, eq=False)
class Background(Control):
    """Outside the mask a run keeps to latents that are known for each of its calls.

    Args:
        mask: `(images, 1, height, width)`, 1 where the run is free.
        known: per call the latents after it, `(images, channels, height, width)`.
    """

    mask: Array
    known: Sequence[Array]

    def after_step(self, nn: Any, carry: Any, latents: Array, call: Call) -> tuple[Array, Any]:
        return latents * self.mask + self.known[call.index] * (1 - self.mask), carry


class Trace:
    """Keeps the latents of every call; a caller's callbacks see them, too."""

    def __init__(self, inner: Any, kept: list[Array]) -> None:
        self.inner, self.latents = inner, kept

    @property
    def altered(self) -> bool:
        """Whether a callback changed anything so far."""
        return self.inner is not None and self.inner.altered

    def begin(self, denoise: Denoiser, negative: Array | None) -> None:
        """Before the first call of a run."""
        if self.inner is not None:
            self.inner.begin(denoise, negative)

    def __call__(self, step: Step, ends: bool) -> Change:
        change = Change() if self.inner is None else self.inner(step, ends)
        self.latents.append(step.latents if change.latents is None else change.latents)
        return change


class StableDiffusionDiffEditPipeline(LatentPipeline):
    """Edits of a picture in three parts: `generate_mask`, `invert` and the call itself.

        mask = pipe.generate_mask(image=photo, source_prompt="a cat", target_prompt="a dog")
        inverted = pipe.invert(image=photo, prompt="a cat").latents
        edited = pipe("a dog", mask_image=mask, image_latents=inverted).images[0]

    Args:
        vae, text_encoder, tokenizer, unet, scheduler, safety_checker, feature_extractor: as in
            `StableDiffusionPipeline`.
        inverse_scheduler: goes from pictures to noise: a `DDIMInverseScheduler` or
            `DPMSolverMultistepInverseScheduler` with the configuration of `scheduler`. None: DDIM
            upwards through the levels of `scheduler`, whatever its spacing.
        compat: `"diffusers"` brings the peer's numbers back: guidance of masks that points
            backwards where the negative prompts differ, one threshold for a whole batch, background
            blended a step late and never with the picture, inversion guided by 7.5.
    """

    components_optional = ("safety_checker", "feature_extractor", "inverse_scheduler")

    inverse_scheduler: Any

    def __init__(
        self,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        unet: Any,
        scheduler: Any,
        safety_checker: Any = None,
        feature_extractor: Any = None,
        inverse_scheduler: Any = None,
        requires_safety_checker: bool = True,
        compat: str | None = None,
    ) -> None:
        super().__init__(
            vae,
            text_encoder,
            tokenizer,
            unet,
            scheduler,
            safety_checker,
            feature_extractor,
            requires_safety_checker=requires_safety_checker,
            compat=compat,
        )
        self.inverse_scheduler = inverse_scheduler

    def generate_mask(
        self,
        image: Any = None,
        target_prompt: str | list[str] | None = None,
        target_negative_prompt: str | list[str] | None = None,
        target_prompt_embeds: Array | None = None,
        target_negative_prompt_embeds: Array | None = None,
        source_prompt: str | list[str] | None = None,
        source_negative_prompt: str | list[str] | None = None,
        source_prompt_embeds: Array | None = None,
        source_negative_prompt_embeds: Array | None = None,
        num_maps_per_mask: int = 10,
        mask_encode_strength: float = 0.5,
        mask_thresholding_ratio: float = 3.0,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        generator: Any = None,
        output_type: str = "np",
        cross_attention_kwargs: Mapping[str, Any] | None = None,
        *,
        seed: int | Sequence[int] | None = None,
    ) -> Any:
        """Where a picture has to change for the source text to become the target text.

        Noise is added to the picture, and the mask is where the noise predicted under the two texts
        differs most. Where both have the same negative prompt guidance cannot matter (it multiplies
        the difference), so the unconditional half is left out.

        Args:
            image: a PIL picture, an array or a list (see `image_processor.preprocess`), or latents
                `(images, 4, height / 8, width / 8)`. One for all texts, or one per text.
            target_prompt, source_prompt: what the picture shall show, and what it shows; each with
                a negative prompt of its own, as texts or as embeddings `(images, tokens, width)`.
            num_maps_per_mask: noises whose differences are averaged.
            mask_encode_strength: how much noise: the part of `num_inference_steps` that would be
                left to do, above 0, to 1.
            mask_thresholding_ratio: multiple of the mean difference to which outliers are cut;
                what exceeds half of that is in the mask. Above 0; larger ratios give smaller masks.
            generator: one, which draws jointly, or a list with one per image (or per map); the
                picture's latents are then drawn from the encoder's distribution, as the peer does.
                Otherwise they are its mean.
            seed: as in `StableDiffusionPipeline`; a picture's mask does not depend on its batch.
            output_type: "np" (`(images, height / 8, width / 8)`, integers 0 and 1), "pil" (grey
                pictures) or "pt" (`(images, 1, height / 8, width / 8)`).

        Raises:
            InputError, InputTypeError: an argument cannot work; nothing has been computed by then.
            NonFiniteError: the network gave NaN or infinity.
        """
        compatible.refuse(None, None, cross_attention_kwargs)
        calls.choice("output_type", output_type, masks.OUTPUT_TYPES)
        maps = calls.whole("num_maps_per_mask", num_maps_per_mask)
        ratio = calls.number("mask_thresholding_ratio", mask_thresholding_ratio, 0.0)
        if ratio == 0:
            raise InputError("mask_thresholding_ratio=0.0 is out of range; allowed: above 0")
        scale = calls.number("guidance_scale", guidance_scale)
        begin = calls.number("mask_encode_strength", mask_encode_strength, 0.0, 1.0)
        pictures = self._pictures(image)
        target = Request(
            target_prompt,
            target_negative_prompt,
            target_prompt_embeds,
            target_negative_prompt_embeds,
            pictures=pictures.shape[0],
            num_inference_steps=num_inference_steps,
            strength=begin,
        )
        source = Request(
            source_prompt,
            source_negative_prompt,
            source_prompt_embeds,
            source_negative_prompt_embeds,
            pictures=pictures.shape[0],
        )
        told = [self._side(target, "target_"), self._side(source, "source_")]
        count = max(found[2] for found in told)
        for name, found in zip(("target", "source"), told, strict=True):
            if found[2] not in (1, count):
                raise InputError(f"{name}_prompt is given {found[2]} times; there are {count}")
        drawn = _generators(generator, seed, count, maps)
        solver, _ = self._named("mask_encode_strength", lambda: self._solver(target, drawn))

        guided = self._needs_guidance(scale)
        (t, t_against), (s, s_against) = (
            self._contexts(
                prompts, negatives, r.prompt_embeds, r.negative_prompt_embeds, guided, count, None
            )
            for r, (prompts, negatives, _) in zip((target, source), told, strict=True)
        )
        shared = not guided or self._equal(s_against, t_against)
        contexts = [s, t] if shared else [s, t, s_against, t_against]
        latents = self._encode(pictures, drawn, generator is not None, count, maps)
        noise = self._draw(latents.shape, drawn, seed, maps)
        noisy = self._noisy(solver, latents, noise)
        answers = self._answers(solver, noisy, contexts, maps, scale)
        nn = self._operations
        if not shared:
            s, t, s_against, t_against = answers
            if self.compat == "diffusers":  # it takes each for the other
                s, t, s_against, t_against = s_against, t_against, s, t
            answers = [s_against + scale * (s - s_against), t_against + scale * (t - t_against)]
        if not all(self._framework.is_finite(answer) for answer in answers):
            raise NonFiniteError("the network gave NaN or infinity for the mask")
        together = self.compat == "diffusers"
        found = masks.mask_of_difference(nn, answers[0], answers[1], maps, ratio, together)
        return masks.mask_to_output(self._framework.to_numpy(found), output_type, self._framework)

    def invert(
        self,
        prompt: str | list[str] | None = None,
        image: Any = None,
        num_inference_steps: int = 50,
        inpaint_strength: float = 0.8,
        guidance_scale: float | None = None,
        negative_prompt: str | list[str] | None = None,
        generator: Any = None,
        prompt_embeds: Array | None = None,
        negative_prompt_embeds: Array | None = None,
        decode_latents: bool = False,
        output_type: str = "pil",
        return_dict: bool = True,
        callback: Callable[..., Any] | None = None,
        callback_steps: int | None = 1,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
        lambda_auto_corr: float = 20.0,
        lambda_kl: float = 20.0,
        num_reg_steps: int = 0,
        num_auto_corr_rolls: int = 5,
        *,
        seed: int | Sequence[int] | None = None,
        controls: Sequence[Control] = (),
        done: Sequence[Array] = (),
    ) -> DiffEditInversionPipelineOutput | tuple[Array, Any]:
        """The noise a picture came from, and every level on the way.

        Args:
            prompt: what the picture shows.
            image: as in `generate_mask`.
            num_inference_steps, inpaint_strength: steps of the whole way to noise, and the part of
                it that is gone; the call takes the same two.
            guidance_scale: 1 by default, which means none, and (nearly) leads back to the picture.
                Guided inversion does not: 7.5, the peer's default, gives its numbers.
            generator, seed: as in `generate_mask`; nothing else is random without regularisation.
            decode_latents: also make pictures of all levels.
            lambda_auto_corr, lambda_kl, num_reg_steps, num_auto_corr_rolls: how strongly and how
                often predictions are pushed towards white noise (`pipelines.regularise`); not at
                all by default.
            done: levels of an inversion of the same picture that was interrupted, least noise
                first; it goes on after them.

        Raises:
            InputError, InputTypeError: an argument cannot work; nothing has been computed by then.
            NonFiniteError: the network gave NaN or infinity.
        """
        compatible.refuse(None, None, cross_attention_kwargs)
        part = calls.number("inpaint_strength", inpaint_strength, 0.0, 1.0)
        weights = [
            calls.number("lambda_auto_corr", lambda_auto_corr),
            calls.number("lambda_kl", lambda_kl),
        ]
        rounds = calls.whole("num_reg_steps", num_reg_steps, 0)
        rolls = calls.whole("num_auto_corr_rolls", num_auto_corr_rolls)
        if guidance_scale is None:
            guidance_scale = 7.5 if self.compat == "diffusers" else 1.0
        pictures = self._pictures(image)
        mirrored = self.inverse_scheduler is None
        request = Request(
            prompt,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            guidance_scale=guidance_scale,
            num_inference_steps=num_inference_steps,
            generator=generator,
            seed=seed,
            output_type=output_type,
            callback=callback,
            callback_steps=callback_steps,
            controls=controls,
            pictures=pictures.shape[0],
            strength=part if mirrored else 1.0,
            scheduler=self.inverse_scheduler,
        )
        plan = self._named("inpaint_strength", lambda: self._plan(request))
        solver = self._upwards(plan.solver, num_inference_steps, part)
        levels = list(done)
        if len(levels) > len(solver):
            raise InputError(f"done holds {len(levels)} levels; the inversion has {len(solver)}")
        clean = self._encode(pictures, plan.generators, generator is not None, plan.count)
        clean = self._operations.float32(clean)
        if rounds:
            solver = self._regularised(solver, plan, weights, rounds, rolls)
        if len(levels) < len(solver):
            begin = levels[-1] if levels else clean
            solver = solver.tail(len(levels)) if levels else solver
            trace = Trace(plan.watch, levels)
            self._denoise(replace(plan, solver=solver, steps=len(solver), watch=trace), begin)
        if self.compat != "diffusers":
            levels = [clean, *levels]
        nn = self._operations
        stacked = nn.concat([level[:, None] for level in reversed(levels)], 1)
        shown = None
        if decode_latents:
            shown = self._shown(stacked, output_type)
        if not return_dict:
            return stacked, shown
        return DiffEditInversionPipelineOutput(stacked, shown)

    def __call__(
        self,
        prompt: str | list[str] | None = None,
        mask_image: Any = None,
        image_latents: Any = None,
        inpaint_strength: float = 0.8,
        num_inference_steps: int = 50,
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
        callback: Callable[..., Any] | None = None,
        callback_steps: int | None = 1,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
        clip_skip: int | None = None,
        *,
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        seed: int | Sequence[int] | None = None,
        controls: Sequence[Control] = (),
    ) -> StableDiffusionPipelineOutput | tuple[Any, list[bool] | None]:
        """Decode inverted latents anew inside a mask; outside they stay what they were.

        Args:
            prompt: what the picture shall show.
            mask_image: of `generate_mask`, or drawn: PIL pictures, arrays or lists of the size of
                the latents or of the picture, in [0, 1], from 0.5 on to be edited; one for all
                images, or one per prompt.
            image_latents: of `invert` with the same steps and strength, `(prompts, levels, 4,
                height / 8, width / 8)` or one after another. With the picture as the last level, as
                `invert` gives it, the background is exactly the picture's; without it, nearly.
            inpaint_strength, num_inference_steps: as given to `invert`.
            latents: what to begin with inside the mask instead of the noisiest level,
                `(images, channels, height, width)`; the peer does not look at it.
            seed, generator, eta: for solvers that add noise; there is no other use of noise.

        The others are those of `StableDiffusionPipeline`, which tells what is raised.
        """
        compatible.refuse(None, None, cross_attention_kwargs)
        if mask_image is None:
            raise InputError("mask_image=None; draw one, or make it with generate_mask")
        if image_latents is None:
            raise InputError("image_latents=None; make them with invert")
        part = calls.number("inpaint_strength", inpaint_strength, 0.0, 1.0)
        request = Request(
            prompt,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            num_images_per_prompt,
            guidance_scale,
            clip_skip=clip_skip,
            num_inference_steps=num_inference_steps,
            eta=eta,
            generator=generator,
            seed=seed,
            output_type=output_type,
            return_dict=return_dict,
            on_step_end=callback_on_step_end,
            tensor_inputs=callback_on_step_end_tensor_inputs,
            callback=callback,
            callback_steps=callback_steps,
            controls=controls,
            strength=part,
        )
        plan = self._named("inpaint_strength", lambda: self._plan(request))
        prompts = plan.count // num_images_per_prompt
        known = self._levels(image_latents, prompts, len(plan.solver))
        size = tuple(known.shape[3:])
        framework, factor = self._framework, self.vae.config.factor
        mask = masks.read_mask(mask_image, prompts, (size[0], size[1]), factor, framework)
        if self.compat == "diffusers":  # its masks are not next to the pictures they belong to
            mask = np.concatenate([mask] * num_images_per_prompt)
        else:
            mask = np.repeat(mask, num_images_per_prompt, 0)
        inside = framework.array(mask, device=self.device)
        rows = [self._repeated(known[:, i], num_images_per_prompt) for i in range(known.shape[1])]
        rows = self._as_solver(plan.solver, rows)
        begin = rows[0]
        if latents is not None and self.compat != "diffusers":
            calls.array("latents", latents, tuple(begin.shape), framework)
            begin = framework.array(latents, device=self.device)
        late = self.compat == "diffusers"
        after = [rows[min(i + (not late), len(rows) - 1)] for i in range(len(plan.solver))]
        made = self._denoise(plan, begin, [Background(inside, after)])
        own = {"inpaint_strength": part, "mask_image": mask, "image_latents": known}
        own["latents"] = latents
        return self._output(plan, *self._decode(plan, made), own)

    # -- pictures and latents ----------------------------------------------------------------------
    def _pictures(self, image: Any) -> Array:
        """Pictures `(n, 3, height, width)` in [-1, 1], or latents as they were given."""
        if image is None:
            raise InputError("image=None; give a picture, or latents")
        framework, listed = self._framework, isinstance(image, list | tuple)
        if listed and image and all(framework.is_array(one) for one in image):
            image = self._operations.concat([o if o.ndim == 4 else o[None] for o in image], 0)
        if isinstance(image, np.ndarray) and image.ndim == 4:
            image = list(image)
        if framework.is_array(image):
            image = image if image.ndim == 4 else image[None]
            if image.ndim == 4 and image.shape[1] == self.vae.config.latent_channels:
                return calls.array("image", image, (None, None, None, None), framework)
        pixels = self.image_processor.preprocess(image)
        for side, length in zip(("height", "width"), pixels.shape[2:], strict=True):
            calls.size(f"image's {side}", int(length), self.vae.config.factor)
        return pixels

    def _encode(self, pictures: Array, drawn: Any, sampled: bool, count: int, maps: int = 1) -> Any:
        """Latents `(count * maps, channels, height, width)` of pictures, those of one adjacent.

        They are the mean of the encoder's distribution, or drawn from it if `sampled`.
        """
        framework, vae = self._framework, self.vae
        each = count * maps // pictures.shape[0]
        if pictures.shape[1] == vae.config.latent_channels:
            return self._repeated(framework.array(pictures, device=self.device), each)
        with framework.no_grad():
            pixels = framework.array(pictures, dtype=vae.dtype, device=vae.device)
            found = vae.encode(pixels).latent_dist
            latents = self._repeated(found.mean, each)
            if sampled or self.compat == "diffusers":
                noise = self._draw(latents.shape, drawn, None, maps)
                latents = latents + self._repeated(found.std, each) * framework.array(
                    noise, dtype=vae.dtype, device=vae.device
                )
        if not framework.is_finite(latents):
            raise NonFiniteError("vae: encoding gave NaN or infinity")
        return framework.array(latents * vae.config.scaling_factor, device=self.device)

    def _draw(self, shape: Sequence[int], drawn: Any, seed: Any, maps: int) -> Array:
        """Standard normal; of several maps an image's generator draws all."""
        framework = self._framework
        like = framework.leaf(self.unet.conv_in).dtype if seed is None else framework.float32
        if maps > 1 and isinstance(drawn, list | tuple) and len(drawn) * maps == shape[0]:
            parts = [framework.draw((maps, *shape[1:]), g, self.device, like) for g in drawn]
            return self._operations.concat(parts, 0)
        return framework.draw(shape, drawn, self.device, like)

    def _levels(self, given: Any, prompts: int, steps: int) -> Array:
        """Inverted latents `(prompts, levels, channels, height, width)`, float32."""
        framework = self._framework
        given = given.latents if isinstance(given, DiffEditInversionPipelineOutput) else given
        if isinstance(given, list | tuple) and given and all(map(framework.is_array, given)):
            given = self._operations.concat(given, 0)
        if not framework.is_array(given):
            raise InputTypeError(
                f"image_latents is {type(given).__name__}; what invert returns is needed"
            )
        if given.ndim == 4 and given.shape[0] % prompts == 0:
            given = given.reshape(prompts, -1, *given.shape[1:])
        calls.array("image_latents", given, (None,) * 5, framework)
        images, levels, channels = given.shape[:3]
        if channels != self.vae.config.latent_channels or images not in (1, prompts):
            raise InputError(
                f"image_latents has shape {tuple(given.shape)}; needed is ({prompts}, {steps} or "
                f"{steps + 1}, {self.vae.config.latent_channels}, height, width)"
            )
        if levels not in (steps, steps + 1):
            raise InputError(
                f"image_latents holds {levels} levels; this call makes {steps} steps, so {steps} "
                f"or, with the picture, {steps + 1} are needed: give num_inference_steps and "
                "inpaint_strength as invert had them"
            )
        nn = self._operations
        given = nn.float32(framework.array(given, device=self.device))
        return nn.expand(given, (prompts, *given.shape[1:]))

    def _as_solver(self, solver: Solver, rows: list[Array]) -> list[Array]:
        """Levels as a solver holds its latents: some keep the picture at full size below the noise
        (Euler), which the peer does not take into account."""
        if not isinstance(solver, Table) or self.compat == "diffusers":
            return rows
        sizes = np.append(np.hypot(solver.alpha, solver.sigma), 1.0).tolist()
        pairs = zip(rows, sizes[: len(rows)], strict=True)
        return [row if abs(size - 1) < 1e-6 else row * size for row, size in pairs]

    def _shown(self, levels: Array, output_type: str) -> Any:
        """Pictures of all levels, image by image, decoded one at a time."""
        calls.choice("output_type", output_type, OUTPUT_TYPES)
        if output_type == "latent":
            return None
        rows = [
            levels[i, k : k + 1] for i in range(levels.shape[0]) for k in range(levels.shape[1])
        ]
        made = [self.decode_latents(row, output_type)[0] for row in rows]
        if output_type == "pil":
            return [picture for pictures in made for picture in pictures]
        return np.concatenate(made) if output_type == "np" else self._operations.concat(made, 0)

    def _repeated(self, x: Array, times: int) -> Array:
        """Each row so many times, next to each other."""
        if times == 1:
            return x
        x = self._operations.expand(x[:, None], (x.shape[0], times, *x.shape[1:]))
        return x.reshape(-1, *x.shape[2:])

    # -- parts of the calls ------------------------------------------------------------------------
    def _side(self, request: Request, prefix: str) -> Any:
        """As `_check_prompts`, with the names that the arguments of a mask have."""
        try:
            return self._check_prompts(request)
        except UnderdrawError as error:
            words = re.sub(r"\b(negative_)?prompt(?=[=_ ]|$)", rf"{prefix}\1prompt", str(error))
            raise type(error)(words) from None

    @staticmethod
    def _named(name: str, work: Callable[[], Any]) -> Any:
        """What `work` gives; its errors about the strength tell the argument's own name."""
        try:
            return work()
        except UnderdrawError as error:
            raise type(error)(re.sub(r"^strength\b", name, str(error))) from None

    def _noisy(self, solver: Solver, latents: Array, noise: Array) -> Array:
        """Latents at the first noise level of a solver, scaled for the network."""
        if isinstance(solver, Table):
            row = solver.row(0)
            noisy = latents * row.alpha + noise * row.sigma
        else:
            noisy = self.scheduler.add_noise(latents, noise, solver.timesteps[:1])  # type: ignore[attr-defined]
        return solver.model_input(0, noisy)

    def _answers(
        self, solver: Solver, noisy: Array, contexts: list[Array], maps: int, scale: float
    ) -> list[Array]:
        """What the network predicts for the noisy latents under each context, as many at once as
        `ROWS` allows."""
        nn, found = self._operations, []
        longest = max(contexts, key=lambda context: context.shape[1])
        contexts = [self._equally_long(context, longest)[0] for context in contexts]
        images, many = noisy.shape[0] // maps, len(contexts)
        most = max(1, ROWS // (maps * many))
        for first in range(0, images, most):
            last = min(first + most, images)
            x = noisy[first * maps : last * maps]
            rows = [self._repeated(context[first:last], maps) for context in contexts]
            distilled = self.unet.config.time_cond_proj_dim is not None
            denoise = Denoiser(
                self.unet,
                nn,
                nn.concat(rows, 0),
                [solver.timestep(0)],
                lambda: scale,
                distilled=distilled,
            )
            with self._framework.no_grad():
                out = denoise(nn.concat([x] * many, 0), 0)
            found.append([out[k * x.shape[0] : (k + 1) * x.shape[0]] for k in range(many)])
        return [nn.concat(parts, 0) for parts in zip(*found, strict=True)]

    def _equal(self, first: Array, second: Array) -> bool:
        to_numpy = self._framework.to_numpy
        return first.shape == second.shape and np.array_equal(to_numpy(first), to_numpy(second))

    def _upwards(self, solver: Any, count: int, part: float) -> Any:
        """The solver of an inversion; `solver` is that of the plan."""
        if self.inverse_scheduler is not None:
            kept = int(count * part)
            if kept == 0:
                raise InputError(
                    f"inpaint_strength={part} of {count} steps leaves none; allowed: at least "
                    f"{1 / count:.3g}"
                )
            calls_kept = len(solver) - (count - kept)
            if isinstance(solver, Table):
                return head(solver, calls_kept)
            solver.timesteps = solver.timesteps[:calls_kept]
            return solver
        if not isinstance(solver, Table):
            raise InputError(
                f"inverse_scheduler=None; beside a {type(self.scheduler).__name__} of another "
                "library one is needed"
            )
        kind = self.scheduler.settings.prediction_type
        # Without signal-free or noise-free ends: "sample" says nothing about noise there.
        lowest = self.scheduler.config.get("set_alpha_to_one") is False or kind == "sample"
        final = float(self.scheduler.schedule.alphas_cumprod[0]) if lowest else 1.0
        return back_along(solver, kind, final)

    def _regularised(
        self, solver: Any, plan: Plan, weights: list[float], rounds: int, rolls: int
    ) -> RegularisedSolver:
        from underdraw.backends.shifts import whole_number

        scheduler = self.scheduler if self.inverse_scheduler is None else self.inverse_scheduler
        kind, plain = scheduler.config["prediction_type"], self.compat == "diffusers"

        def reads(index: int) -> tuple[float, float]:
            if isinstance(solver, Table) and not plain:
                row = solver.row(index)
                return read_noise(kind, row.alpha, row.sigma)
            # The peer reads the noise as of the time the network is asked at.
            kept = float(scheduler.alphas_cumprod[int(solver.timestep(index))])
            return read_noise(kind, sqrt(kept), sqrt(1 - kept))

        def pick(image: int, below: int) -> int:
            return whole_number(plan.generators, image, below)

        regularise = Regularisation(*weights, rounds, rolls, pick, plain)
        return RegularisedSolver(solver, regularise, reads)


def _generators(generator: Any, seed: Any, count: int, maps: int) -> Any:
    """As `calls.generators`; a list may also hold one for each map."""
    many = isinstance(generator, list | tuple) and len(generator) == count * maps
    return calls.generators(generator, seed, count * maps if many else count)
