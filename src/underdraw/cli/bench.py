"""`underdraw bench`: what this machine takes for steps, decoding and whole pictures, by engine."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from underdraw.cli import options, progress
from underdraw.cli.failures import Interrupted
from underdraw.errors import InputError

if TYPE_CHECKING:
    from underdraw.benchmark.bench import Bench


def bench(
    model: Annotated[
        str | None,
        typer.Argument(help="A pipeline's folder or a Hub id; random weights if not given."),
    ] = None,
    full_size: Annotated[
        bool,
        typer.Option(
            "--full-size",
            help="Random weights of Stable Diffusion 1.5; half of its widths otherwise.",
        ),
    ] = False,
    engines: Annotated[
        str | None,
        typer.Option(
            help="eager, compiled, jit, openvino, graph, with commas; eager and openvino if not "
            "given."
        ),
    ] = None,
    beside: Annotated[
        str | None,
        typer.Option(
            help="diffusers, diffusers-compiled, diffusers-openvino, diffusers-onnxruntime (usual "
            "conversions, which take minutes), or none; diffusers if it is installed."
        ),
    ] = None,
    sizes: Annotated[str, typer.Option(help="Sides of the pictures, with commas.")] = "256",
    batch: Annotated[str, typer.Option(help="Pictures at once, with commas.")] = "1",
    works: Annotated[
        str,
        typer.Option(
            help="step, decode, picture (a whole guided run from the prompt's context to the "
            "picture), with commas."
        ),
    ] = "step,decode",
    steps: Annotated[int, typer.Option(min=1, max=1000, help="Of a picture.")] = 20,
    speeds: Annotated[
        str,
        typer.Option(
            help="How pictures are made: exact, fast, faster (as --speed of generate), with commas."
        ),
    ] = "exact",
    precision: Annotated[
        str,
        typer.Option(
            help="In which openvino computes products: auto, float32, bfloat16, int8 (with the "
            "UNet's matrices in 8 bits), with commas."
        ),
    ] = "auto",
    turns: Annotated[int, typer.Option(min=1, max=10_000, help="How often each is timed.")] = 3,
    dtype: options.Precision = None,
    device: options.Device = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Time this machine: steps, decoding and whole pictures by engine, beside diffusers, in turns.

    Nothing is downloaded but a model that is named. Interrupted, it shows what was measured until
    then. On one thread (OMP_NUM_THREADS=1) processor time is taken, which other work does not
    change.
    """
    if full_size and model is not None:
        raise InputError(f"--full-size is about random weights; {model} has its own")
    lists = {
        "engines": None if engines is None else words(engines),
        "beside": None if beside is None else words("" if beside == "none" else beside),
        "sides": numbers("--sizes", sizes),
        "images": numbers("--batch", batch),
        "works": words(works),
        "speeds": words(speeds),
        "precisions": words(precision),
    }
    from tqdm import tqdm

    from underdraw.benchmark.bench import Bench, Plan

    how = {"full_size": full_size, "dtype": dtype.value if dtype else "auto", "device": device}
    made = Bench(Plan(**lists, turns=turns, steps=steps, source=model, **how))
    try:
        with tqdm(total=made.plan.calls, **progress.bar_options()) as bar:
            for told, done in made.run():
                bar.set_description_str(told, refresh=done == 0)
                bar.update(done)
    except KeyboardInterrupt:
        show(made, as_json, False)
        raise Interrupted("what was measured until then is shown") from None
    show(made, as_json, True)


bench.examples = """Examples:

\b
  underdraw bench
  underdraw bench --full-size --sizes 256,512 --engines eager,openvino,compiled
  underdraw bench ./my-model --works decode --batch 1,4 --beside none --json
  underdraw bench --works picture --steps 50 --speeds exact,fast,faster --precision bfloat16"""  # type: ignore[attr-defined]


def show(made: Bench, as_json: bool, whole: bool) -> None:
    """Figures on standard output."""
    from underdraw.benchmark import report

    if as_json:
        typer.echo(json.dumps(report.record(made, whole), indent=2))
        return
    for line in report.lines(made):
        typer.echo(line)


def words(text: str) -> list[str]:
    """Those between commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def numbers(option: str, text: str) -> list[int]:
    """Whole numbers between commas.

    Raises:
        InputError: one is none.
    """
    found = words(text)
    for word in found:
        if not (word.isascii() and word.isdigit() and len(word) < 9):
            raise InputError(f"{option} {text!r:.80}: {word!r:.40} is no whole number")
    return [int(word) for word in found]
