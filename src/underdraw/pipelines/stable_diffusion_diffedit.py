"""`StableDiffusionDiffEditPipeline`: edits inside a mask found by itself (Couairon et al. 2022)."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from underdraw import checks
from underdraw.backends.contract import Array
from underdraw.controls.control import Control
from underdraw.controls.region import Region
from underdraw.engines.engine import Question
from underdraw.errors import InputError
from underdraw.models.returning import returning
from underdraw.pictures.reading import read_mask
from underdraw.pipelines.base import Component
from underdraw.pipelines.call.checking import check_run
from underdraw.pipelines.call.conditioning import condition
from underdraw.pipelines.call.denoise import begin, denoise
from underdraw.pipelines.call.latents import for_each, repeated
from underdraw.pipelines.call.output import Made, decode, hand_out
from underdraw.pipelines.call.plan import make_plan
from underdraw.pipelines.call.request import Request
from underdraw.pipelines.call.stream import streamed
from underdraw.pipelines.diffedit import masks
from underdraw.pipelines.diffedit.edit import EditSettings, edit
from underdraw.pipelines.diffedit.inverting import (
    Whitening,
    check_levels,
    decode_levels,
    go_up,
    level_shape,
    read_method,
    regularised,
    solve_up,
    upwards,
)
from underdraw.pipelines.diffedit.latents import (
    as_solver,
    encode_image,
    read_image,
    read_levels,
)
from underdraw.pipelines.diffedit.masking import Masking, find_mask
from underdraw.pipelines.diffedit.outputs import (
    DiffEditInversionPipelineOutput as DiffEditInversionPipelineOutput,
    DiffEditOutput as DiffEditOutput,
    remember,
)
from underdraw.pipelines.diffusers import attention
from underdraw.pipelines.diffusers.latents import InvertedLatents
from underdraw.pipelines.latent import LatentPipeline
from underdraw.sampling.steps import Step
from underdraw.schedulers import Scheduler

DEFAULTS = EditSettings()


class StableDiffusionDiffEditPipeline(InvertedLatents, LatentPipeline):
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
        compat: `"diffusers"` brings its numbers back: guidance of masks that points
            backwards where the negative prompts differ, one threshold for a whole batch, background
            blended a step late and never with the picture, inversion guided by 7.5.
    """

    outdated = ("steps_offset", "skip_prk_steps")

    components_optional = ("safety_checker", "feature_extractor", "inverse_scheduler")

    inverse_scheduler: Component[Scheduler | None]

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
            requires_safety_checker=requires_safety_checker,
            compat=compat,
            engine=engine,
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
        mask_thresholding_ratio: float | None = 3.0,
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
                None: the threshold that divides a picture's differences best into two classes
                (Otsu 1979), which needs no number and fits small changes and large ones; parts of
                that mask with less than half of the difference of its greatest are left out, and
                holes are filled.
            generator: one, which draws jointly, or a list with one per image (or per map); the
                picture's latents are then drawn from the encoder's distribution, as diffusers does.
                Otherwise they are its mean.
            seed: as in `StableDiffusionPipeline`; a picture's mask does not depend on its batch.
            output_type: "np" (`(images, height / 8, width / 8)`, integers 0 and 1), "pil" (grey
                pictures) or "pt" (`(images, 1, height / 8, width / 8)`).

        Raises:
            InputError, InputTypeError: an argument cannot work; nothing has been computed by then.
            NonFiniteError: the network gave NaN or infinity.
        """
        told = attention.read(self.parts, None, None, cross_attention_kwargs)
        checks.choice("output_type", output_type, masks.OUTPUT_TYPES)
        how = Masking(
            num_maps_per_mask,
            mask_thresholding_ratio,
            guidance_scale,
            mask_encode_strength,
            generator,
            seed,
        )
        pictures = read_image(self.parts, image)
        target = Request(
            target_prompt,
            target_negative_prompt,
            target_prompt_embeds,
            target_negative_prompt_embeds,
            pictures=pictures.shape[0],
            num_inference_steps=num_inference_steps,
            strength=how.noise,
            lora_scale=told.lora_scale,
        )
        source = Request(
            source_prompt,
            source_negative_prompt,
            source_prompt_embeds,
            source_negative_prompt_embeds,
            pictures=pictures.shape[0],
            lora_scale=told.lora_scale,
        )
        found = find_mask(self.parts, pictures, target, source, how, self.progress_bar)
        return masks.mask_to_output(found, output_type, self.parts.framework)

    @returning
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
        return_dict: Literal[True] = True,
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
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: Any = None,
        method: Any = "plain",
        done: Sequence[Array] = (),
    ) -> DiffEditInversionPipelineOutput | tuple[Array, Any]:
        """The noise a picture came from, and every level on the way.

        The levels are those of diffusers. The tensor that holds them remembers the clean latents of
        the picture besides, for the call; it is an attribute, so what is computed from the tensor
        (a slice, a copy on another device) does not have it. The output itself, whose `clean` they
        are, serves the call as well.

        Args:
            prompt: what the picture shows.
            image: as in `generate_mask`.
            num_inference_steps, inpaint_strength: steps of the whole way to noise, and the part of
                it that is gone; the call takes the same two.
            guidance_scale: 1 by default, which means none, and (nearly) leads back to the picture.
                Guided inversion does not: 7.5, diffusers' default, gives its numbers.
            generator, seed: as in `generate_mask`; nothing else is random without regularisation.
            decode_latents: also make pictures of all levels.
            lambda_auto_corr, lambda_kl, num_reg_steps, num_auto_corr_rolls: how strongly and how
                often predictions are pushed towards white noise; not at all by default
                (`pipelines.diffedit.regularise`).
            method: "plain", one call of the network a step; or "fixed-point" (or a
                `sampling.inversion.FixedPoint`), several, until the step back down leads where the
                step up began: for schedulers without memory (DDIM, Euler) and few steps.
            done: levels of an inversion of the same picture that was interrupted, least noise
                first; it goes on after them.

        Raises:
            InputError, InputTypeError: an argument cannot work; nothing has been computed by then.
            NonFiniteError: the network gave NaN or infinity.
        """
        told = attention.read(
            self.parts, ip_adapter_image, ip_adapter_image_embeds, cross_attention_kwargs
        )
        part = checks.number("inpaint_strength", inpaint_strength, 0.0, 1.0)
        shown = checks.flag("decode_latents", decode_latents)
        whiten = Whitening(lambda_auto_corr, lambda_kl, num_reg_steps, num_auto_corr_rolls)
        way, known = read_method(method), checks.sequence("done", done, "levels")
        if guidance_scale is None:
            guidance_scale = 7.5 if self.compat == "diffusers" else 1.0
        parts, pictures = self.parts, read_image(self.parts, image)
        mirrored = self.inverse_scheduler is None
        request = Request(
            prompt=prompt,
            negative_prompt=negative_prompt,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            guidance_scale=guidance_scale,
            num_inference_steps=num_inference_steps,
            generator=generator,
            seed=seed,
            output_type=output_type,
            return_dict=return_dict,
            callback=callback,
            callback_steps=callback_steps,
            controls=controls,
            pictures=pictures.shape[0],
            strength=part if mirrored else 1.0,
            scheduler=self.inverse_scheduler,
            lora_scale=told.lora_scale,
            own=told.prompts,
        )
        plan = make_plan(parts, request, self, strength_name="inpaint_strength")
        plan = replace(plan, exact=True)
        solver = upwards(parts, plan.solver, num_inference_steps, part)
        levels = check_levels(parts, known, len(solver), plan.count, pictures)
        if way is not None and (whiten.rounds or not mirrored):
            raise InputError(
                f"method={checks.shown(method)} solves the steps of `scheduler`; it takes no "
                "num_reg_steps and no inverse_scheduler"
            )
        rest = solver.tail(len(levels)) if 0 < len(levels) < len(solver) else solver
        shape = level_shape(parts, plan.count, pictures)
        planned = check_run(parts, replace(plan, solver=rest), shape)

        sampled = generator is not None
        clean = encode_image(parts, pictures, plan.count, 1, plan.generators, sampled)
        clean = parts.nn.float32(clean)
        if way is not None:
            levels = solve_up(parts, plan, clean, levels, way)
        if whiten.rounds:
            solver = regularised(parts, solver, plan, whiten)
        levels = go_up(parts, plan, solver, clean, levels, planned)
        stacked = parts.nn.concat([level[:, None] for level in reversed(levels)], 1)
        clean = None if self.compat == "diffusers" else clean
        remember(stacked, clean)
        pictures = decode_levels(parts, stacked, output_type) if shown else None
        if not return_dict:
            return stacked, pictures
        return DiffEditInversionPipelineOutput(stacked, pictures, clean)

    @streamed
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
        return_dict: Literal[True] = True,
        callback: Callable[..., Any] | None = None,
        callback_steps: int | None = 1,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
        clip_skip: int | None = None,
        *,
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        seed: int | Sequence[int] | None = None,
        controls: Sequence[Control] = (),
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: Any = None,
    ) -> Generator[Question | Step, Any, Made]:
        """Decode inverted latents anew inside a mask; outside they stay what they were.

        Args:
            prompt: what the picture shall show.
            mask_image: of `generate_mask`, or drawn: PIL pictures, arrays or lists of the size of
                the latents or of the picture, in [0, 1], from 0.5 on to be edited; one for all
                images, or one per prompt.
            image_latents: what `invert` returned with the same steps and strength, or its
                `latents (prompts, levels, 4, height / 8, width / 8)`, or these one after another.
                The background is exactly the picture's where its clean latents are known: `clean`
                of the output, what `latents` remember, or one more level, the last; else nearly.
            inpaint_strength, num_inference_steps: as given to `invert`.
            latents: what to begin with inside the mask instead of the noisiest level,
                `(images, channels, height, width)`; diffusers does not look at it.
            seed, generator, eta: for solvers that add noise; there is no other use of noise.

        The others are those of `StableDiffusionPipeline`, which tells what is raised.
        """
        told = attention.read(
            self.parts, ip_adapter_image, ip_adapter_image_embeds, cross_attention_kwargs
        )
        if mask_image is None:
            raise InputError("mask_image=None; draw one, or make it with generate_mask")
        if image_latents is None:
            raise InputError("image_latents=None; make them with invert")
        part = checks.number("inpaint_strength", inpaint_strength, 0.0, 1.0)
        parts = self.parts
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
            strength=part,
            lora_scale=told.lora_scale,
            own=told.prompts,
        )
        plan = make_plan(parts, request, self, strength_name="inpaint_strength")
        prompts = plan.count // num_images_per_prompt
        known = read_levels(parts, image_latents, prompts, len(plan.solver))
        nn, size = parts.nn, tuple(known.shape[3:])
        mask = read_mask(nn, mask_image, prompts, size, self.vae.config.factor)
        # Masks of diffusers are not next to the pictures they belong to.
        inside = for_each(parts, mask, plan.count)
        rows = [repeated(nn, known[:, i], num_images_per_prompt) for i in range(known.shape[1])]
        rows = as_solver(parts, plan.solver, rows)
        start = rows[0]
        if latents is not None and self.compat != "diffusers":
            checks.array("latents", latents, tuple(start.shape), parts.framework)
            start = parts.framework.array(latents, device=self.device)
        late = self.compat == "diffusers"
        after = [rows[min(i + (not late), len(rows) - 1)] for i in range(len(plan.solver))]
        keeping = [Region(inside, trail=after)]
        planned = check_run(parts, plan, start.shape, keeping)

        run = begin(parts, plan, condition(parts, plan), planned)
        made = yield from denoise(run, plan, start, keeping)
        images, flags = decode(parts, made, output_type)
        own = {"inpaint_strength": part, "mask_image": mask, "image_latents": known}
        return hand_out(run, plan, images, flags, own | {"latents": latents})

    def edit(
        self,
        image: Any,
        source: str | list[str] | None = None,
        target: str | list[str] | None = None,
        *,
        negative_prompt: str | list[str] | None = None,
        source_prompt_embeds: Array | None = None,
        target_prompt_embeds: Array | None = None,
        mask_image: Any = None,
        num_inference_steps: int = DEFAULTS.steps,
        inpaint_strength: float = DEFAULTS.strength,
        guidance_scale: float | Sequence[float] = DEFAULTS.guidance,
        num_maps_per_mask: int = DEFAULTS.maps,
        mask_encode_strength: float = DEFAULTS.mask_strength,
        mask_thresholding_ratio: float | None = DEFAULTS.threshold,
        seed: int | Sequence[int] | None = 0,
        output_type: str = "pil",
        paste: bool = False,
        keep: str | os.PathLike[str] | None = None,
        callback: Callable[..., Any] | None = None,
        controls: Sequence[Control] = (),
    ) -> DiffEditOutput:
        """Change a picture from what one text says to what another says.

            made = pipe.edit(photo, source="a cat", target="a dog")
            made.images[0], made.mask_image[0]

        Finds the mask, inverts the picture under the source text and decodes it under the target
        text inside the mask. Picture and texts are encoded once, inversion is not guided, and the
        mask needs no unconditional half.

        Args:
            image: what to edit, as in `generate_mask`; one for all texts, or one per text.
            source, target: what the picture shows, and what it shall show instead.
            negative_prompt: what to steer away from while decoding.
            source_prompt_embeds, target_prompt_embeds: contexts `(images, tokens, width)` instead
                of texts, such as the average of several sentences.
            mask_image: where to edit, instead of finding it (see the call).
            num_inference_steps, inpaint_strength, guidance_scale: of inversion and decoding; more
                strength changes more, and forgets more.
            num_maps_per_mask, mask_encode_strength, mask_thresholding_ratio: see `generate_mask`.
            seed: of the noise of the mask.
            paste: give back the very pixels of the picture outside the mask, which the autoencoder
                would change a little; PIL pictures keep their size then, too.
            keep: a `.safetensors` file for mask and inversion. It is written when the inversion is
                done, or interrupted; a later call with the same picture, texts and settings goes
                on from it. `guidance_scale` may change.
            callback: `f(step, timestep, latents)` while decoding.
            controls: of the decoding.

        Raises:
            InputError, InputTypeError: an argument cannot work, nothing would change, or `keep`
                belongs to another edit; nothing has been computed by then.
            NonFiniteError: a network gave NaN or infinity.
        """
        settings = EditSettings(
            num_inference_steps,
            inpaint_strength,
            guidance_scale,
            num_maps_per_mask,
            mask_encode_strength,
            mask_thresholding_ratio,
        )
        before = Request(prompt=source, prompt_embeds=source_prompt_embeds)
        after = Request(
            prompt=target,
            negative_prompt=negative_prompt,
            prompt_embeds=target_prompt_embeds,
            output_type=output_type,
            seed=seed,
            callback=callback,
            controls=controls,
        )
        return edit(self, image, before, after, mask_image, settings, paste, keep)
