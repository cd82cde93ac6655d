"""`underdraw evaluate`: how often pictures show what their captions say."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from underdraw.cli import options
from underdraw.cli.failures import Interrupted, tell


def evaluate(
    out: options.OutFolder = Path("report"),
    model: options.Model = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Held-out captions.")] = 128,
    steps: options.Steps = 20,
    guidance: options.Guidance = None,
    seed: options.Seed = 0,
    batch: Annotated[int, typer.Option(min=1, help="Pictures made at once.")] = 16,
    solver: options.Solver = None,
    dtype: options.Precision = None,
    device: options.Device = None,
    variant: options.Variant = None,
    tokenizer: options.Vocabulary = None,
    autoencoder: Annotated[
        bool, typer.Option(help="Also how much the autoencoder keeps of unseen renders.")
    ] = True,
) -> None:
    """Judge a model that was trained on scenes, beside the same score on real renders.

    The report, the pictures and a sheet of them are written to a folder; interrupted, the same
    command goes on there.
    """
    from underdraw.cli import solvers

    if solver == "help":
        tell(solvers.describe())
        return
    from underdraw import evaluation
    from underdraw.cli.loading import load_pipeline

    judge = evaluation.load_evaluator()
    pipe = load_pipeline(
        model or options.SCENES,
        dtype=dtype.value if dtype else "auto",
        device=device,
        variant=variant,
        tokenizer=tokenizer,
    )
    if solver is not None:
        pipe.scheduler = solvers.make_solver(solver, pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    tell(f"{pipe.source}: {str(pipe.dtype).removeprefix('torch.')} on {pipe.device}")
    guidance = pipe.advice.guidance_scale if guidance is None else guidance
    arguments = {} if guidance is None else {"guidance_scale": guidance}
    captions = evaluation.held_out_captions(count)
    try:
        report = evaluation.evaluate_text_to_image(
            pipe,
            captions,
            steps=steps or 20,
            seed=seed or 0,
            batch=batch,
            folder=out,
            progress=terminal(),
            evaluator=judge,
            **arguments,
        )
        typer.echo(report.table())
        if autoencoder:
            kept = evaluation.evaluate_autoencoder(pipe.vae, progress=terminal(), evaluator=judge)
            typer.echo(kept.table())
            write(out / "autoencoder.json", kept.to_json())
    except KeyboardInterrupt:
        raise Interrupted(f"pictures made so far are in {out}; the same command goes on") from None
    tell(f"report: {out}")


evaluate.examples = """Examples:

\b
  underdraw evaluate --count 32 --steps 20 --out report
  underdraw evaluate --model work/export --guidance 5 --out report-5"""  # type: ignore[attr-defined]


def terminal() -> bool:
    """Whether someone watches standard error."""
    import sys

    return sys.stderr.isatty()


def write(path: Path, content: dict) -> None:
    from underdraw.weights.save import write_json

    write_json(path, content)
