"""Inversion of pictures with the components of any pipeline: `sampling.inversion` for callers."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from underdraw import checks
from underdraw.errors import InputError, InputTypeError
from underdraw.pictures.reading import read_pictures
from underdraw.pipelines.call.conditioning import condition
from underdraw.pipelines.call.denoise import begin
from underdraw.pipelines.call.plan import make_plan
from underdraw.pipelines.call.request import Request
from underdraw.pipelines.components.components import Components
from underdraw.sampling import inversion as steps
from underdraw.sampling.denoiser import Denoiser
from underdraw.sampling.inversion import Inversion, Method
from underdraw.schedulers import DDIMScheduler, Scheduler


def invert_pictures(
    pipe: Any,
    image: Any,
    prompt: str | list[str] | None = None,
    method: str | Method = "fixed-point",
    *,
    num_inference_steps: int = 50,
    strength: float = 1.0,
    guidance_scale: float | None = None,
    negative_prompt: str | list[str] | None = None,
    prompt_embeds: Any = None,
    scheduler: Scheduler | None = None,
    resume: Inversion | None = None,
    measure: bool = True,
) -> Generator[Inversion, None, Inversion]:
    """Invert pictures step by step, as `sampling.inversion.invert` does; `finish` runs it through.

        found = finish(invert_pictures(pipe, photo, "a cat", "null-text"))
        pipe.scheduler = ddim(pipe)
        both = found.noise.repeat(2, 1, 1, 1)
        pipe(["a cat", "a dog"], latents=both, controls=[*found.controls, AttentionEdit()])

    Args:
        pipe: with `unet`, `vae` and what encodes texts.
        image: a PIL picture, an array or a list (`pictures.reading.read_pictures`).
        prompt: what it shows; one, or one per picture; or `prompt_embeds`.
        method: see `sampling.inversion`.
        num_inference_steps: of the run that shall lead back.
        strength: the part of them that is run: its last ones (DiffEdit's `inpaint_strength`).
        guidance_scale: of that run. By default 1 for "plain" and "fixed-point", which means none,
            and 7.5 for the others, which are made for it.
        negative_prompt: what null-text begins with.
        scheduler: of that run; None: `ddim(pipe)`.
        resume, measure: see there. The error is told in latents and in the pictures' pixels, beside
            the autoencoder's own round trip.

    Raises:
        InputError, InputTypeError: an argument cannot work; nothing has been computed by then.
        NonFiniteError: a network gave NaN or infinity.
    """
    parts: Components = pipe.parts
    framework = parts.framework
    chosen = steps.read_method(method)
    checks.flag("measure", measure)
    if scheduler is not None and not isinstance(scheduler, Scheduler):
        raise InputTypeError(
            f"scheduler={checks.shown(scheduler)} is not one of our schedulers, whose steps can be "
            "turned round"
        )
    if resume is not None and not isinstance(resume, Inversion):
        raise InputTypeError(f"resume={checks.shown(resume)} is no Inversion")
    if guidance_scale is None:
        guidance_scale = 7.5 if steps.follows(chosen) else 1.0
    pictures = read_pictures("image", image, framework, factor=parts.vae.config.factor)
    request = Request(
        prompt,
        negative_prompt,
        prompt_embeds,
        guidance_scale=guidance_scale,
        num_inference_steps=num_inference_steps,
        strength=strength,
        pictures=pictures.shape[0],
        scheduler=ddim(pipe) if scheduler is None else scheduler,
        output_type="latent",
    )
    plan = make_plan(parts, request, pipe)
    if plan.count != pictures.shape[0]:
        raise InputError(f"prompt has {plan.count} entries; image has {pictures.shape[0]} pictures")
    with framework.no_grad():
        latents = parts.scaled(parts.encode(pictures).mode())
        denoiser = Denoiser(begin(parts, plan, condition(parts, plan)))

    def decode(x: Any) -> Any:
        """Pictures in [0, 1]."""
        return parts.nn.clip(parts.nn.float32(parts.decode(x)) / 2 + 0.5, 0.0, 1.0)

    run = steps.invert(
        denoiser, plan.solver, latents, chosen, resume=resume, measure=measure, decode=decode
    )

    def driven() -> Generator[Inversion, None, Inversion]:
        with parts.borrow(parts.unet):
            return (yield from run)

    return driven()


def ddim(pipe: Any) -> DDIMScheduler:
    """DDIM on the noise schedule of a pipeline, unclipped, so that its steps can be turned round.

    It spaces its timesteps as the pipeline's own scheduler.
    """
    return DDIMScheduler.from_config({**pipe.scheduler.config, "clip_sample": False})
