"""Pictures of a request: the pipeline is loaded, they are made and written."""

from __future__ import annotations

import inspect
import json
import logging
import time
from dataclasses import dataclass
from typing import Any

import typer

from underdraw.cli import (
    boxes,
    image_prompts,
    logs,
    options,
    outputs,
    progress,
    structure,
    subjects,
)
from underdraw.cli.again import Request
from underdraw.cli.failures import Interrupted, note
from underdraw.errors import InputError

LOG = logging.getLogger(logs.OWN)


@dataclass(frozen=True)
class Showing:
    """What is written besides the pictures."""

    preview: int | None = None
    """Steps after which a picture is written as it is then."""
    boxes: bool = False


def load(request: Request, solver: str | None) -> Any:
    """The pipeline of a request."""
    from underdraw.cli import loading, solvers
    from underdraw.pipelines.components.registry import scheduler_class
    from underdraw.pipelines.components.settings import Settings

    loading_options = dict(request.loading)
    grounding = loading_options.pop("grounding", None)
    subject = loading_options.pop("subject", None)
    pipe = loading.load_pipeline(loading_options.pop("model", options.SCENES), **loading_options)
    pipe.compat = request.compat
    if grounding is not None:
        pipe.load_grounding(grounding)
    if subject is not None:
        pipe.load_subject(subject)
    subjects.attach(pipe, request.subjects or [])
    structure.attach(pipe, request.structures or [])
    request.loras.attach(pipe)
    if request.ip_adapter is not None:
        pipe.load_ip_adapter(request.ip_adapter)
    try:
        pipe.settings = Settings(**request.settings)
    except TypeError as error:
        raise InputError(f"settings of the picture cannot be read: {error}") from error
    if request.speed is not None:
        pipe.enable_acceleration(request.speed)
    if request.scheduler is not None:
        name = str(request.scheduler.get("_class_name"))
        pipe.scheduler = scheduler_class(name).from_config(request.scheduler)
    if solver is not None:
        pipe.scheduler = solvers.make_solver(solver, pipe.scheduler.config)
    request.memory.set(pipe)
    return pipe


def make(
    pipe: Any,
    request: Request,
    prompts: list[str],
    seeds: list[int],
    target: outputs.Target,
    batch: int,
    showing: Showing,
) -> None:
    """Make and write the pictures; each is on disk as soon as it is done."""
    allowed = inspect.signature(type(pipe).__call__).parameters
    if unknown := sorted(set(request.call) - set(allowed)):
        raise InputError(f"{type(pipe).__name__} has no arguments {', '.join(unknown)}")
    origin = origin_of(request)
    total = len(prompts)
    try:
        for start in range(0, total, batch):
            here = slice(start, min(start + batch, total))
            label = f"picture {here.start + 1}" + (f" to {here.stop}" if batch > 1 else "")
            label = f"{label} of {total}" if total > 1 else ""
            pipe.set_progress_bar_config(**progress.bar_options(label or None))
            call = request.call | {"prompt": prompts[here], "seed": seeds[here]}
            call |= controls_beside(request, prompts[here])
            begun = time.monotonic()
            if showing.preview is None:
                made = pipe(**call)
            else:
                made = watched(pipe, call, start, target, showing.preview)
            LOG.debug("%s: %.1f s", label or "picture", time.monotonic() - begun)
            write(made, start, request, origin, target, showing)
    except KeyboardInterrupt:
        raise Interrupted(target.kept()) from None


def origin_of(request: Request) -> dict[str, Any]:
    """What only the command line knows of a picture, for its record."""
    kept = ("variant", "tokenizer", "grounding", "subject")
    origin = {name: value for name, value in request.loading.items() if name in kept}
    if request.layout is not None:
        origin["layout"] = boxes.with_pictures(request.layout)
    if request.subjects is not None:
        origin["subjects"] = subjects.with_pictures(request.subjects)
    if request.structures is not None:
        origin["structures"] = structure.with_maps(request.structures)
    if request.image_prompts is not None:
        origin["image_prompts"] = image_prompts.with_pictures(request.image_prompts)
    if request.inputs:
        origin["inputs"] = request.inputs
    return origin


def controls_beside(request: Request, prompts: list[str]) -> dict[str, Any]:
    """The controls of a call with these prompts."""
    placed = [] if request.layout is None else boxes.controls_of(request.layout)
    placed += structure.controls_of(request.structures or [])
    placed += subjects.controls_of(request.subjects or [], prompts)
    placed += image_prompts.controls_of(request.image_prompts or [])
    return {"controls": placed} if placed else {}


def write(
    made: Any,
    start: int,
    request: Request,
    origin: dict[str, Any],
    target: outputs.Target,
    showing: Showing,
) -> None:
    """Write the pictures of one call, of which the first has number `start`."""
    from underdraw.pictures.writing import METADATA

    for i, image in enumerate(made.images, start):
        record = json.loads(image.info[METADATA]) | origin
        typer.echo(path := target.write(i, image, record))
        if showing.boxes and request.layout is not None:
            drawn = boxes.drawn(image, request.layout)
            typer.echo(target.write_beside(path, "boxes", drawn))
        if made.nsfw_content_detected and made.nsfw_content_detected[i - start]:
            note("the safety checker withheld this picture")


def watched(pipe: Any, call: dict[str, Any], start: int, target: outputs.Target, every: int) -> Any:
    """A call, which writes what is being made every so many model calls, decoded by the small
    autoencoder where there is one."""
    run, full = pipe.stream(**call), pipe.parts.preview_decoder is None
    for step in run:
        done = step.index + 1
        if done % every == 0 and done < step.calls:
            for i, image in enumerate(step.preview(full), start):
                target.write_preview(i, image, {"preview": f"{done} of {step.calls}"})
    return run.output
