"""`underdraw generate`: pictures from prompts."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from underdraw.cli import boxes, options, outputs, pictures
from underdraw.cli.failures import Interrupted, tell
from underdraw.errors import InputError

STEPS = 25
PER_CALL = 1
"""Pictures made at once if not said. One: its bits are then the same alone and among others."""


@dataclass
class Request:
    """What to make: where from, how, and the arguments of the calls."""

    loading: dict[str, Any]
    scheduler: dict[str, Any] | None
    """Configuration recorded in a picture; None: the checkpoint's."""
    compat: str | None
    settings: dict[str, Any]
    call: dict[str, Any]
    layout: dict[str, Any] | None = None
    """Boxes, as a layout file holds them."""


def generate(
    prompts: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROMPT...", help="What to show, in quotes; one or several."),
    ] = None,
    negative: Annotated[str | None, typer.Option(help="What to steer away from.")] = None,
    model: options.Model = None,
    image: Annotated[
        Path | None, typer.Option(help="Begin with this picture instead of noise.")
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(help="Of the picture's size: make anew only what is white, keep the rest."),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(help="How much of --image to make anew, above 0 to 1; 0.8, or 1 in a mask."),
    ] = None,
    height: Annotated[int | None, typer.Option(min=1, help="In pixels.")] = None,
    width: Annotated[int | None, typer.Option(min=1, help="In pixels.")] = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    seed: options.Seed = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Pictures per prompt.")] = 1,
    solver: options.Solver = None,
    backend: options.Framework = None,
    engine: options.Engine = None,
    dtype: options.Precision = None,
    device: options.Device = None,
    variant: options.Variant = None,
    tokenizer: options.Vocabulary = None,
    prediction_type: options.PredictionType = None,
    box: Annotated[
        list[str] | None,
        typer.Option(
            "--box",
            metavar="PHRASE X0 Y0 X1 Y1",
            help="What is to be seen where, in fractions of width and height; may be repeated.",
        ),
    ] = None,
    layout: Annotated[
        Path | None, typer.Option(help="Boxes from a JSON file, see docs/grounding.md.")
    ] = None,
    grounding: Annotated[
        str | None,
        typer.Option(help="Grounding weights that boxes need: a folder, a file or a Hub id."),
    ] = None,
    draw_boxes: Annotated[
        bool, typer.Option("--draw-boxes", help="Also a copy with the boxes, as NAME-boxes.png.")
    ] = False,
    batch: Annotated[int, typer.Option(min=1, help="Pictures made at once.")] = PER_CALL,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="A .png file, or a folder (here, if not given)."),
    ] = None,
    grid: Annotated[
        bool, typer.Option("--grid/--no-grid", help="Also all pictures on one sheet, if several.")
    ] = True,
    preview: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Every N steps, write the picture being made beside its place, as "
            "NAME-preview.png, which goes when the picture is done.",
        ),
    ] = None,
    again: Annotated[
        Path | None,
        typer.Option(help="Make the picture in this PNG again; other options change it."),
    ] = None,
) -> None:
    """Make pictures from prompts.

    Every PNG holds what is needed to make it again (--again). Paths of the pictures go to standard
    output, everything else to standard error.
    """
    from underdraw.cli import loading, solvers
    from underdraw.text.weighting import parse_weights

    if solver == "help":
        tell(solvers.describe())
        return
    kind, begin = pictures.beginning(image, mask, strength)
    request = Request({}, None, None, {}, {}) if again is None else recorded(again, begin, engine)
    if (placed := boxes.read_boxes(box, layout)) is not None:
        request.layout = placed
    if draw_boxes and request.layout is None:
        raise InputError("--draw-boxes needs --box or --layout")
    if not prompts and request.layout is not None and "prompt" in request.layout:
        prompts = [request.layout["prompt"]]
    if kind is not None:
        request.loading["kind"] = kind
        request.call |= begin
    if kind == pictures.IMG2IMG:
        if height is not None or width is not None:
            raise InputError("--height and --width do not go with --image: the picture has a size")
        for name in ("height", "width"):
            request.call.pop(name, None)
    if not prompts and "prompt" not in request.call:
        raise InputError('no PROMPT; for example: underdraw generate "a red sphere"')
    words = [prompt for prompt in prompts or () if not prompt.strip() or " " not in prompt.strip()]
    if len(words) > 1 and len(words) == len(prompts or ()):
        tell(f"note: {len(words)} prompts of one word; one prompt of several words needs quotes")
    given = {
        "model": model,
        "backend": backend and backend.value,
        "engine": engine,
        "dtype": dtype and dtype.value,
        "device": device,
        "variant": variant,
        "tokenizer": tokenizer,
        "prediction_type": prediction_type and prediction_type.value,
        "grounding": grounding,
    }
    request.loading |= {name: value for name, value in given.items() if value is not None}
    changes = {
        "negative_prompt": negative,
        "height": height,
        "width": width,
        "guidance_scale": guidance,
        "num_inference_steps": steps,
    }
    request.call |= {name: value for name, value in changes.items() if value is not None}
    if steps is not None:
        request.call.pop("timesteps", None)
        request.call.pop("sigmas", None)
    request.call.setdefault("num_inference_steps", STEPS)
    if seed is not None or "seed" not in request.call:
        request.call["seed"] = secrets.randbelow(2**31) if seed is None else seed

    every = [p for p in prompts or [request.call["prompt"]] for _ in range(count)]
    first = request.call["seed"]
    seeds = [first + i % count for i in range(len(every))]
    target = outputs.Target(out, every, seeds)
    # A mistake should not wait for a model to be loaded.
    if solver is not None:
        solvers.make_solver(solver, {})
    if request.compat is None:
        for prompt in (*every, request.call.get("negative_prompt") or ""):
            parse_weights(prompt)
    pipe = load(request, solver)
    if pipe.advice.guidance_scale is not None:
        request.call.setdefault("guidance_scale", pipe.advice.guidance_scale)
    tell(
        f"{loading.summary(pipe, request.loading.get('engine'))}, {type(pipe.scheduler).__name__}, "
        f"{request.call['num_inference_steps']} steps, "
        f"seed {first if count == 1 else f'{first} to {first + count - 1}'}"
    )
    make(pipe, request, every, seeds, target, batch, preview, draw_boxes)
    if grid and len(every) > 1:
        target.write_sheet(columns=count if len(every) > count else None)


generate.examples = """Examples:

\b
  underdraw generate "a red sphere left of a blue cube" --seed 7
  underdraw generate "a red sphere" "a blue cube" --count 4 --out pictures/
  underdraw generate "a castle" --model model.safetensors --tokenizer ./tokenizer --solver dpm++
  underdraw generate "a red sphere" --image photo.png --strength 0.6
  underdraw generate "a red sphere" --image photo.png --mask mask.png
  underdraw generate "a table" --box "a red sphere" 0.1 0.2 0.4 0.6 --draw-boxes
  underdraw generate --again picture.png --steps 50"""  # type: ignore[attr-defined]


def recorded(path: Path, given: dict[str, Any], engine: str | None = None) -> Request:
    """The request in a picture's metadata; `given` are arguments that need not be in it, as is the
    engine where it is named.

    Raises InputError where the picture cannot be made again from what it holds.
    """
    from underdraw.pictures.writing import read_metadata

    record = read_metadata(path)
    if isinstance(record.get("sheet"), list):
        named = ", ".join(map(str, record["sheet"]))
        raise InputError(f"{path} is a sheet of several pictures; --again takes one of {named}")
    kinds = {"call": dict, "scheduler": dict, "pipeline": str, "missing": list}
    if any(not isinstance(record.get(name), kind) for name, kind in kinds.items()):
        raise InputError(f"{path} holds metadata that this version of underdraw cannot read")
    layout = record.get("layout")
    held = {*given, "controls"} if isinstance(layout, dict) else set(given)
    held |= set() if engine is None else {"engine"}
    if missing := [name for name in record["missing"] if name not in held]:
        lacking = ", ".join(map(str, missing))
        raise InputError(f"{path} cannot be made again: it does not hold its {lacking}")
    if not isinstance(record["call"].get("seed"), int):
        raise InputError(f"{path} cannot be made again: it does not hold its seed")
    loading = {"kind": record["pipeline"], "dtype": record.get("dtype", "auto")}
    for name in ("model", "variant", "tokenizer", "grounding", "backend", "engine"):
        if isinstance(record.get(name), str):
            loading[name] = record[name]
    if isinstance(record.get("channels_last"), list):
        loading["channels_last"] = record["channels_last"]
    settings, compat = record.get("settings", {}), record.get("compat")
    call = dict(record["call"])
    return Request(loading, record["scheduler"], compat, settings, call, layout)


def load(request: Request, solver: str | None) -> Any:
    """The pipeline of a request."""
    from underdraw.cli import loading, solvers
    from underdraw.pipelines.components.registry import scheduler_class
    from underdraw.pipelines.components.settings import Settings

    loading_options = dict(request.loading)
    grounding = loading_options.pop("grounding", None)
    pipe = loading.load_pipeline(loading_options.pop("model", options.SCENES), **loading_options)
    pipe.compat = request.compat
    if grounding is not None:
        pipe.load_grounding(grounding)
    try:
        pipe.settings = Settings(**request.settings)
    except TypeError as error:
        raise InputError(f"settings of the picture cannot be read: {error}") from error
    if request.scheduler is not None:
        name = str(request.scheduler.get("_class_name"))
        pipe.scheduler = scheduler_class(name).from_config(request.scheduler)
    if solver is not None:
        pipe.scheduler = solvers.make_solver(solver, pipe.scheduler.config)
    return pipe


def make(
    pipe: Any,
    request: Request,
    prompts: list[str],
    seeds: list[int],
    target: outputs.Target,
    batch: int,
    preview: int | None = None,
    draw_boxes: bool = False,
) -> None:
    """Make and write the pictures; each is on disk as soon as it is done, and before that every
    `preview` steps as it is then."""
    import inspect

    from underdraw.pictures.writing import METADATA

    allowed = inspect.signature(type(pipe).__call__).parameters
    if unknown := sorted(set(request.call) - set(allowed)):
        raise InputError(f"{type(pipe).__name__} has no arguments {', '.join(unknown)}")
    # What only the command line knows of where the networks came from.
    kept = ("variant", "tokenizer", "grounding")
    origin = {name: value for name, value in request.loading.items() if name in kept}
    beside: dict[str, Any] = {}
    if request.layout is not None:
        origin["layout"] = request.layout
        beside["controls"] = boxes.controls_of(request.layout)
    total = len(prompts)
    try:
        for start in range(0, total, batch):
            here = slice(start, min(start + batch, total))
            label = f"picture {here.start + 1}" + (f" to {here.stop}" if batch > 1 else "")
            # disable=None: no bar where standard error is a file.
            pipe.set_progress_bar_config(
                desc=f"{label} of {total}" if total > 1 else None, leave=False, disable=None
            )
            call = request.call | {"prompt": prompts[here], "seed": seeds[here]} | beside
            made = pipe(**call) if preview is None else watched(pipe, call, start, target, preview)
            for i, image in enumerate(made.images, start):
                record = json.loads(image.info[METADATA]) | origin
                typer.echo(path := target.write(i, image, record))
                if draw_boxes and request.layout is not None:
                    shown = boxes.drawn(image, request.layout)
                    typer.echo(target.write_beside(path, "boxes", shown))
                if made.nsfw_content_detected and made.nsfw_content_detected[i - start]:
                    tell("note: the safety checker withheld this picture")
    except KeyboardInterrupt:
        raise Interrupted(target.kept()) from None


def watched(pipe: Any, call: dict[str, Any], start: int, target: outputs.Target, every: int) -> Any:
    """A call, which writes what is being made every so many model calls."""
    run = pipe.stream(**call)
    for step in run:
        done = step.index + 1
        if done % every == 0 and done < step.calls:
            for i, image in enumerate(step.preview(full=True), start):
                target.write_preview(i, image, {"preview": f"{done} of {step.calls}"})
    return run.output
