"""Subject-driven editing (Li et al. 2023, section 3.4): the subject of a picture becomes another.

The picture is made along with its edit, from the same noise. The edit takes the attention to all
words that both prompts have, and the rest of the picture is kept where attention to the source's
subject is low (`controls.attention_edit`). A real picture is first led back to its noise.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any

from underdraw import checks
from underdraw.controls.attention_edit import AttentionEdit
from underdraw.controls.control import Control
from underdraw.controls.subject import Subject
from underdraw.engines.engine import Question
from underdraw.errors import InputError, InputTypeError
from underdraw.pictures.reading import read_pictures
from underdraw.pipelines.blip.arguments import (
    check_weights,
    read_negative,
    read_references,
)
from underdraw.pipelines.call.checking import check_run
from underdraw.pipelines.call.conditioning import condition
from underdraw.pipelines.call.denoise import begin, denoise
from underdraw.pipelines.call.latents import check_size, first_noise, latent_shape
from underdraw.pipelines.call.output import StableDiffusionPipelineOutput, decode, hand_out
from underdraw.pipelines.call.plan import make_plan
from underdraw.pipelines.call.request import Request
from underdraw.pipelines.call.stream import ended
from underdraw.pipelines.inversion import ddim, invert_pictures
from underdraw.sampling.inversion import Inversion, Method, finish
from underdraw.sampling.steps import Step


class SubjectEdits:
    """The methods of BLIP-Diffusion's pipelines that edit."""

    parts: Any
    ctx_begin_pos: int

    def generate_then_edit(
        self,
        prompt: str,
        reference_image: Any,
        source_subject_category: str,
        target_subject_category: str,
        *,
        reference_subject_category: str | None = None,
        cross: float | tuple[float, float] = 0.8,
        self_attention: float | tuple[float, float] = 0.4,
        threshold: float = 0.3,
        guidance_scale: float | Sequence[float] = 7.5,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        generator: Any = None,
        seed: int | None = None,
        latents: Any = None,
        negative_prompt: str | None = None,
        output_type: str = "pil",
        controls: Sequence[Control] = (),
    ) -> StableDiffusionPipelineOutput:
        """Make a picture of one subject, and the same with another.

            pipe.generate_then_edit("in the snow", photo, "cat", "dog", seed=7).images

        Args:
            prompt: where the subject is, or what it does; one text.
            reference_image: shows the other subject; a picture, or several.
            source_subject_category: what the picture shows, "cat".
            target_subject_category: what is put in its place, "dog".
            reference_subject_category: what the reference shows; by default the target.
            cross, self_attention: in which part of the run attention is taken over, see
                `AttentionEdit`.
            threshold: outside of where attention to the source's subject is above this share of
                its largest value, the picture is kept.
            seed: both pictures begin with the same noise.
            controls: further ones; prompt 0 is the picture, prompt 1 its edit.

        Returns:
            Two images: the picture, and its edit.

        Raises:
            InputError, InputTypeError: an argument cannot work; nothing has been computed by then.
        """
        told = _Edit(
            self,
            prompt,
            reference_image,
            source_subject_category,
            target_subject_category,
            reference_subject_category,
            cross,
            self_attention,
            threshold,
        )
        seeds: Any = None if seed is None else [checks.whole("seed", seed, 0)] * 2
        request = Request(
            guidance_scale=guidance_scale,
            num_inference_steps=num_inference_steps,
            generator=generator,
            seed=seeds,
            negative_prompt=negative_prompt,
            output_type=output_type,
            controls=controls,
        )
        run = told.steps(request, height, width, latents)
        return ended(run, self.parts.engine)

    def edit(
        self,
        image: Any,
        prompt: str,
        reference_image: Any,
        source_subject_category: str,
        target_subject_category: str,
        *,
        reference_subject_category: str | None = None,
        method: str | Method = "fixed-point",
        cross: float | tuple[float, float] = 0.8,
        self_attention: float | tuple[float, float] = 0.4,
        threshold: float = 0.3,
        guidance_scale: float = 7.5,
        num_inference_steps: int = 50,
        neg_prompt: str | None = "",
        negative_prompt: str | None = None,
        output_type: str = "pil",
        controls: Sequence[Control] = (),
        inversion: Inversion | None = None,
    ) -> StableDiffusionPipelineOutput:
        """Put another subject into a real picture.

        Args:
            image: the picture, of which sides are rounded down to multiples of the autoencoder's
                factor.
            prompt: where its subject is, or what it does.
            method: of the inversion, by DDIM, "plain" or "fixed-point" (`sampling.inversion`).
            inversion: of this picture under `source_prompt`, where it is known already.

        The other arguments are as for `generate_then_edit`; the picture itself is led back to
        without guidance.

        Returns:
            Two images: the picture as the way back reaches it, and its edit.

        Raises:
            InputError, InputTypeError: an argument cannot work; nothing has been computed by then.
        """
        if inversion is not None and not isinstance(inversion, Inversion):
            raise InputTypeError(f"inversion={checks.shown(inversion)} is no Inversion")
        if isinstance(method, str):
            checks.choice("method", method, ("plain", "fixed-point"))
        told = _Edit(
            self,
            prompt,
            reference_image,
            source_subject_category,
            target_subject_category,
            reference_subject_category,
            cross,
            self_attention,
            threshold,
        )
        scheduler = ddim(self)
        scale = checks.number("guidance_scale", guidance_scale, 1.0, 1e4)
        request = Request(
            guidance_scale=[1.0, scale] if scale > 1 else scale,
            num_inference_steps=num_inference_steps,
            negative_prompt=read_negative(self.parts, neg_prompt, negative_prompt),
            output_type=output_type,
            controls=controls,
            scheduler=scheduler,
        )
        pictures = read_pictures(
            "image", image, self.parts.framework, factor=self.parts.vae.config.factor
        )
        if pictures.shape[0] != 1:
            raise InputError(f"image has {pictures.shape[0]} pictures; allowed: 1")
        height, width = pictures.shape[2:]
        told.check(request, height, width)
        if inversion is None:
            inversion = finish(
                invert_pictures(
                    self,
                    image,
                    told.texts[0],
                    method,
                    num_inference_steps=num_inference_steps,
                    scheduler=scheduler,
                    measure=False,
                )
            )
        nn = self.parts.nn
        both = nn.concat((inversion.noise, inversion.noise), 0)
        return ended(told.steps(request, height, width, both), self.parts.engine)


class _Edit:
    """A picture and its edit: prompts, controls, and the run."""

    def __init__(
        self,
        pipe: Any,
        prompt: Any,
        reference: Any,
        source: Any,
        target: Any,
        category: Any,
        cross: Any,
        self_attention: Any,
        threshold: Any,
    ) -> None:
        named = {
            "prompt": prompt,
            "source_subject_category": source,
            "target_subject_category": target,
        }
        if category is not None:
            named["reference_subject_category"] = category
        for name, value in named.items():
            if len(checks.texts(name, value)) != 1 or not isinstance(value, str):
                raise InputError(f"{name}={checks.shown(value)} is a list; allowed: one text")
            check_weights(pipe.parts, name, [value])
            if name != "prompt" and not value.strip():
                raise InputError(f"{name}={checks.shown(value)} is empty; give what the subject is")
        prompt, source, target = (named[name].strip() for name in list(named)[:3])
        which = "target" if category is None else "reference"
        pipe.qformer.read(category or target, f"{which}_subject_category")
        (reference,) = read_references(reference, 1)
        self.pipe, self.texts = pipe, [f"a {source} {prompt}", f"a {target} {prompt}"]
        self.own: tuple[Any, ...] = (
            Subject(reference, category or target, word=target, prompts=(1,)),
            AttentionEdit(
                mode="refine",
                cross=cross,
                self_attention=self_attention,
                threshold=threshold,
                blend=(source,),
            ),
        )

    def check(self, request: Request, height: Any, width: Any) -> None:
        """Raise what a run would raise before it begins."""
        plan = make_plan(self.pipe.parts, self._whole(request), self.pipe)
        check_run(self.pipe.parts, plan, latent_shape(self.pipe.parts, plan, height, width))

    def _whole(self, request: Request) -> Request:
        return replace(request, prompt=self.texts, own=self.own, cut=True)

    def steps(
        self, request: Request, height: Any, width: Any, latents: Any
    ) -> Generator[Question | Step, Any, Any]:
        """The picture and its edit."""
        parts = self.pipe.parts
        plan = make_plan(parts, self._whole(request), self.pipe)
        height, width = check_size(parts, height, width, latents)
        shape = latent_shape(parts, plan, height, width)
        if latents is not None:
            checks.array("latents", latents, shape, parts.framework)
        planned = check_run(parts, plan, shape)
        run = begin(parts, plan, condition(parts, plan), planned)
        noise = first_noise(parts, plan, latents, shape)
        made = yield from denoise(run, plan, noise * plan.solver.initial_sigma)
        images, flags = decode(parts, made, request.output_type)
        own = {"height": height, "width": width, "latents": latents, "edit": ()}
        return hand_out(run, plan, images, flags, own)
