"""`underdraw evaluate`: how often pictures show what their captions say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from underdraw.cli import early, options, outputs, progress, solvers
from underdraw.cli.failures import Interrupted, tell
from underdraw.cli.memory import read_ways
from underdraw.errors import InputError

MOST = 100_000
"""Pictures."""
STRENGTH = 0.6
"""Of the masks of edits: less than this part of the steps must not be none."""


class Task(str, Enum):
    """What can be judged."""

    text_to_image = "text-to-image"
    grounding = "grounding"
    editing = "editing"
    structure = "structure"
    subjects = "subjects"


def evaluate(
    out: options.OutFolder = Path("report"),
    model: options.Model = None,
    count: Annotated[
        int, typer.Option("--count", "-n", min=1, max=MOST, help="Held-out captions.")
    ] = 128,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    seed: options.Seed = 0,
    batch: Annotated[int, typer.Option(min=1, help="Pictures made at once.")] = 16,
    solver: options.Solver = None,
    engine: options.Engine = None,
    speed: options.Speed = None,
    dtype: options.Precision = None,
    device: options.Device = None,
    memory: options.Memory = None,
    variant: options.Variant = None,
    tokenizer: options.Vocabulary = None,
    autoencoder: Annotated[
        bool, typer.Option(help="Also how much the autoencoder keeps of unseen renders.")
    ] = True,
    task: Annotated[
        Task,
        typer.Option(
            help="What to judge: captions, boxes (grounding), edits, how far pictures follow maps "
            "(structure), or subjects."
        ),
    ] = Task.text_to_image,
    grounding: Annotated[
        str | None,
        typer.Option(help="Grounding weights; by default those that belong to the model."),
    ] = None,
    strength: Annotated[
        tuple[float, float, float] | None,
        typer.Option(help="Of boxes over the run: on, decay, off; default: as in GLIGEN."),
    ] = None,
    subject_weights: Annotated[
        str | None,
        typer.Option(help="Subject weights; by default those that belong to the model."),
    ] = None,
) -> None:
    """Judge a model that was trained on scenes, beside the same score on real renders.

    The report, the pictures and a sheet of them are written to a folder; interrupted, the same
    command goes on there.
    """
    if solver == "help":
        solvers.show_help()
        return
    if task is not Task.grounding and (grounding is not None or strength is not None):
        raise InputError("--grounding and --strength are for --task grounding")
    if task is not Task.subjects and subject_weights is not None:
        raise InputError("--subject-weights is for --task subjects")
    spared = read_ways(memory)
    pace = "exact" if speed is None else speed.value
    told = (steps, guidance, solver, engine, grounding, strength, pace)
    check(out, model or options.SCENES, task, *told)
    if task is Task.subjects:
        from underdraw.cli.subjects import check_weights

        check_weights(model or options.SCENES, subject_weights)
    from underdraw import evaluation
    from underdraw.cli.loading import load_pipeline, summary

    judge = evaluation.load_evaluator()
    pipe = load_pipeline(
        model or options.SCENES,
        engine=engine,
        dtype=dtype.value if dtype else "auto",
        device=device,
        variant=variant,
        tokenizer=tokenizer,
    )
    if solver is not None:
        pipe.scheduler = solvers.make_solver(solver, pipe.scheduler.config)
    pipe.enable_acceleration(pace)
    pipe.set_progress_bar_config(disable=True)
    spared.set(pipe)
    tell(summary(pipe, engine))
    guidance = pipe.advice.guidance_scale if guidance is None else guidance
    arguments = {} if guidance is None else {"guidance_scale": guidance}
    if task is Task.grounding:
        if grounding is not None:
            pipe.load_grounding(grounding)
        boxes = {"strength": strength, **arguments}
        evaluate_boxes(pipe, judge, out, count, steps or 20, seed or 0, batch, boxes)
        return
    if task is Task.subjects:
        if subject_weights is not None:
            pipe.load_subject(subject_weights)
        evaluate_subjects(pipe, judge, out, count, steps or 20, seed or 0, batch, arguments)
        return
    if task is Task.editing:
        asked = arguments if steps is None else {**arguments, "num_inference_steps": steps}
        evaluate_edits(pipe, judge, out, count, seed or 0, batch, asked)
        return
    if task is Task.structure:
        evaluate_maps(pipe, judge, out, count, steps or 20, seed or 0, batch, arguments)
        return
    captions = evaluation.held_out_captions(count)
    with going_on(out):
        report = evaluation.evaluate_text_to_image(
            pipe,
            captions,
            steps=steps or 20,
            seed=seed or 0,
            batch=batch,
            folder=out,
            progress=progress.wanted(),
            evaluator=judge,
            **arguments,
        )
        typer.echo(report.table())
        if autoencoder:
            kept = evaluation.evaluate_autoencoder(
                pipe.vae, progress=progress.wanted(), evaluator=judge
            )
            typer.echo(kept.table())
            write(out / "autoencoder.json", kept.to_json())
    tell(f"report: {out}")


evaluate.examples = """Examples:

\b
  underdraw evaluate --count 32 --steps 20 --out report
  underdraw evaluate --model work/export --guidance 5 --out report-5
  underdraw evaluate --task grounding --strength 1 0 0 --out boxes
  underdraw evaluate --task editing --count 64 --out edits
  underdraw evaluate --task structure --count 64 --out maps
  underdraw evaluate --task subjects --count 64 --out subjects"""  # type: ignore[attr-defined]


def check(
    out: Path,
    model: str,
    task: Task,
    steps: int | None,
    guidance: float | None,
    solver: str | None,
    engine: str | None,
    grounding: str | None,
    strength: tuple[float, float, float] | None,
    speed: str,
) -> None:
    """Refuse what can be refused before anything is loaded."""
    outputs.check_folder(out, ["report.json"])
    if solver is not None:
        solvers.make_solver(solver, {})
    if strength is not None:
        from underdraw.controls.boxes import Layout

        Layout((), strength)
    from underdraw.cli.loading import check_engine

    if engine is not None:
        check_engine(engine, "torch")
    if grounding is not None:
        early.check_grounding(grounding)
    elif task is Task.grounding:
        early.check_boxes(model)
    elif task is Task.structure and not own_nets(model):
        raise InputError(f"{model:.200} has no nets of its own for maps of edges or of depth")
    way = STRENGTH if task is Task.editing else None
    known = early.facts(model)
    early.check_call(known, steps=steps, guidance=guidance, strength=way)
    if steps is not None:
        from underdraw.controls.acceleration.presets import PRESETS

        early.check_speed(known, steps, way, solver, PRESETS[speed], f"--speed {speed}")


@contextmanager
def going_on(out: Path, what: str = "pictures") -> Iterator[None]:
    """Tell somebody who interrupts that the same command goes on."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"{what} made so far are in {out}; the same command goes on") from None


def show(report: Any, out: Path) -> None:
    """The table of a report, and where all of it is."""
    typer.echo(report.table())
    tell(f"report: {out}")


def evaluate_boxes(
    pipe: Any,
    judge: Any,
    out: Path,
    count: int,
    steps: int,
    seed: int,
    batch: int,
    arguments: dict[str, Any],
) -> None:
    """Held-out layouts: boxes with phrases; with pictures where the weights know them; holes."""
    from underdraw.evaluation import grounding
    from underdraw.evaluation.autoencoder import through
    from underdraw.evaluation.text_to_image import describe_model, digest

    kinds = set(pipe.groundings)
    if not kinds & {"text", "text-image"}:
        raise InputError(
            f"{pipe.source} has no grounding weights for boxes; name some with --grounding"
        )
    told = {"model": describe_model(pipe), "grounding": digest(pipe.groundings), "steps": steps}
    with going_on(out):
        report = grounding.evaluate_grounding(
            grounding.pipeline_generator(pipe, steps=steps, **arguments),
            grounding.held_out_layouts(count),
            subjects=grounding.held_out_subjects(count) if "text-image" in kinds else None,
            holes=grounding.held_out_holes(max(1, count // 2)),
            fill=grounding.pipeline_filler(pipe, steps=steps, **arguments),
            round_trip=through(pipe.vae),
            seed=seed,
            batch=batch,
            folder=out,
            settings={**told, "arguments": {k: repr(v) for k, v in sorted(arguments.items())}},
            progress=progress.wanted(),
            evaluator=judge,
        )
    show(report, out)


def own_nets(model: str) -> list[str]:
    """The kinds of maps for which a model has a net of its own."""
    from underdraw.evaluation.structure import KINDS
    from underdraw.pipelines.components.structure import own_structures

    return [kind for kind in KINDS if kind in own_structures(model)]


def evaluate_maps(
    pipe: Any,
    judge: Any,
    out: Path,
    count: int,
    steps: int,
    seed: int,
    batch: int,
    arguments: dict[str, Any],
) -> None:
    """Held-out scenes: their captions drawn along their edges and along their depth."""
    from underdraw.evaluation import structure
    from underdraw.evaluation.autoencoder import through
    from underdraw.evaluation.text_to_image import describe_model, digest

    kinds = own_nets(pipe.source)
    nets = {kind: pipe.adapters["structure"][kind] for kind in kinds}
    told = {"model": describe_model(pipe), "structure": digest(nets), "steps": steps}
    with going_on(out):
        report = structure.evaluate_structure(
            structure.pipeline_generator(pipe, nets, steps=steps, **arguments),
            structure.held_out_maps(count),
            kinds=kinds,
            round_trip=through(pipe.vae),
            seed=seed,
            batch=batch,
            folder=out,
            settings={**told, "arguments": {k: repr(v) for k, v in sorted(arguments.items())}},
            progress=progress.wanted(),
            evaluator=judge,
        )
    show(report, out)


def evaluate_subjects(
    pipe: Any,
    judge: Any,
    out: Path,
    count: int,
    steps: int,
    seed: int,
    batch: int,
    arguments: dict[str, Any],
) -> None:
    """Held-out subjects by a picture of each, by the same prompts alone, and described in words."""
    from underdraw.evaluation import subjects
    from underdraw.evaluation.autoencoder import through
    from underdraw.evaluation.text_to_image import describe_model, digest

    generate, plain = subjects.pipeline_generators(pipe, steps=steps, **arguments)
    told = {"model": describe_model(pipe), "steps": steps}
    with going_on(out):
        report = subjects.evaluate_subjects(
            generate,
            plain,
            subjects.held_out_subjects(count),
            round_trip=through(pipe.vae),
            seed=seed,
            batch=batch,
            folder=out,
            settings={**told, "arguments": {k: repr(v) for k, v in sorted(arguments.items())}},
            weights=digest(pipe.subjects),
            progress=progress.wanted(),
            evaluator=judge,
        )
    show(report, out)


def evaluate_edits(
    pipe: Any,
    judge: Any,
    out: Path,
    count: int,
    seed: int,
    batch: int,
    arguments: dict[str, Any],
) -> None:
    """Pairs of renders that differ in one attribute, edited from one caption to the other."""
    from underdraw import StableDiffusionDiffEditPipeline
    from underdraw.evaluation import evaluate_editing

    editor = StableDiffusionDiffEditPipeline.from_pipe(pipe)
    with going_on(out, "edits"):
        report = evaluate_editing(
            editor,
            count,
            seed=seed,
            batch=batch,
            folder=out,
            progress=progress.wanted(),
            evaluator=judge,
            **arguments,
        )
    show(report, out)


def write(path: Path, content: dict) -> None:
    from underdraw.weights.save import write_json

    write_json(path, content)
