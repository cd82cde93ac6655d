"""The call of both BLIP-Diffusion pipelines."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from underdraw import checks
from underdraw.controls.control import Control
from underdraw.controls.subject_tokens import need
from underdraw.engines.engine import Question
from underdraw.errors import InputError
from underdraw.pipelines.blip.arguments import Told
from underdraw.pipelines.call.checking import check_run
from underdraw.pipelines.call.conditioning import condition
from underdraw.pipelines.call.denoise import begin, denoise
from underdraw.pipelines.call.latents import check_size, first_noise, latent_shape
from underdraw.pipelines.call.output import Made, decode, hand_out
from underdraw.pipelines.call.plan import Plan, make_plan
from underdraw.pipelines.call.request import Request
from underdraw.sampling.steps import Step


def subject_call(
    pipe: Any,
    request: Request,
    told: Told,
    height: Any,
    width: Any,
    latents: Any,
    structure: Callable[[Plan, int, int], Sequence[Control]] | None = None,
    also: Mapping[str, Any] | None = None,
) -> Generator[Question | Step, Any, Made]:
    """Images of the subjects of a call.

    Args:
        structure: from the plan, height and width to further controls of the pipeline; it checks
            what they were told.
        also: further arguments of the pipeline, for the record.
    """
    parts = pipe.parts
    own = told.subjects(pipe.ctx_begin_pos)
    request = replace(request, own=(*own, *request.own), cut=True)
    plan = make_plan(parts, request, pipe)
    _check_room(parts, own, pipe.ctx_begin_pos)
    height, width = check_size(parts, height, width, latents)
    shape = latent_shape(parts, plan, height, width)
    if latents is not None:
        checks.array("latents", latents, shape, parts.framework)
    further = () if structure is None else structure(plan, height, width)
    planned = check_run(parts, plan, shape, further)

    run = begin(parts, plan, condition(parts, plan), planned)
    noise = first_noise(parts, plan, latents, shape)
    made = yield from denoise(run, plan, noise * plan.solver.initial_sigma, further)
    images, flags = decode(parts, made, request.output_type)
    own_arguments = {"height": height, "width": width, "latents": latents, **(also or {})}
    return hand_out(run, plan, images, flags, told.recorded(plan.count, own_arguments))


def _check_room(components: Any, subjects: tuple[Any, ...], begin: int) -> None:
    """Raise an InputError unless a subject and some words fit into a window."""
    tokens = max(need(components, subject) for subject in subjects)
    window = min(
        components.tokenizer.model_max_length,
        components.text_encoder.config.max_position_embeddings,
    )
    if begin + tokens + 2 > window:
        raise InputError(
            f"ctx_begin_pos={begin}: {tokens} tokens of a subject from there on, and a word, do "
            f"not fit into a window of {window}"
        )
