"""`underdraw info`: what a checkpoint is and what would be loaded."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from underdraw.cli import options, progress
from underdraw.cli.failures import FAILED, LOG, listed

if TYPE_CHECKING:
    from underdraw.cli.inspection import Part, Report

UNITS = ((10**9, "G"), (10**6, "M"), (10**3, "k"))


def info(
    source: Annotated[
        str, typer.Argument(metavar="PATH_OR_ID", help="A folder, a file, or a Hub id.")
    ],
    check: Annotated[
        bool, typer.Option("--check", help="Read all weights and look for NaN and infinity.")
    ] = False,
    variant: options.Variant = None,
    prediction_type: options.PredictionType = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, with all names.")] = False,
) -> None:
    """Tell what a checkpoint is and what would be loaded.

    Shows components, sizes, dtypes, the prediction type, and the tensors that would be left out and
    why. Exits with 1 if the checkpoint has problems.
    """
    from tqdm import tqdm

    from underdraw.checkpoints.sources import open_source
    from underdraw.cli.inspection import inspect
    from underdraw.errors import WeightError

    try:
        opened = open_source(
            source, variant, prediction_type and prediction_type.value, download=check
        )
    except WeightError as error:
        LOG.error("error: %s", error)
        raise typer.Exit(FAILED) from None
    with tqdm(total=opened.bytes, unit="B", unit_scale=True, **progress.bar_options()) as bar:
        bar.disable = bar.disable or not check
        report = inspect(opened, check, bar.update)
    if as_json:
        typer.echo(json.dumps(asdict(report) | {"sound": report.sound}, indent=2))
    else:
        for line in lines(report):
            typer.echo(line)
    if not report.sound:
        raise typer.Exit(FAILED)


info.examples = """Examples:

\b
  underdraw info underdraw/scenes
  underdraw info ./my-model --check --variant fp16
  underdraw info model.ckpt --json"""  # type: ignore[attr-defined]


def lines(report: Report) -> list[str]:
    """A report for people."""
    told = [f"{report.name}: {report.kind}" + at(report)]
    width = max((len(part.name) for part in report.parts), default=0)
    for part in report.parts:
        told.append(f"  {part.name:{width}}  {summary(part)}".rstrip())
        indent = " " * (width + 4)
        if part.parameters is not None and part.details:
            told.append(indent + facts(part.details))
        told += [f"{indent}left out: {line}" for line in left_out(part.ignored)]
        told += [f"{indent}problem: {line}" for line in part.problems]
        for name, count in part.not_finite.items():
            told.append(f"{indent}problem: {name} holds {count} NaN or infinite numbers")
    told += [f"  left out: {line}" for line in left_out(report.ignored)]
    told += [f"  note: {line}" for line in report.notes]
    told += [f"  problem: {line}" for line in report.problems]
    total = sum(part.parameters or 0 for part in report.parts)
    size = sum(part.bytes for part in report.parts)
    checked = ", all numbers finite" if report.checked else ""
    end = f"no problems found{checked}" if report.sound else "problems found"
    told.append(f"  {short(total)} parameters, {short(size)}B; {end}")
    return told


def at(report: Report) -> str:
    return "" if report.place == report.name else f" at {report.place}"


def summary(part: Part) -> str:
    """A component in one line."""
    if part.parameters is None:
        return f"{part.kind}  {facts(part.details)}"
    dtypes = " and ".join(part.dtypes) or "no weights"
    where = f"  {listed(part.files, 2)}" if part.files else ""
    return (
        f"{part.kind}  {short(part.parameters)} parameters  {dtypes}  {short(part.bytes)}B{where}"
    )


def facts(details: dict[str, Any]) -> str:
    return ", ".join(f"{name} {str(value).strip('[]')}" for name, value in details.items())


def left_out(ignored: dict[str, list[str]]) -> list[str]:
    return [f"{listed(names, 2)} ({why})" for why, names in ignored.items()]


def short(number: float) -> str:
    """A number of at most four digits, such as "85.2 M"."""
    for unit, letter in UNITS:
        if number >= unit:
            return f"{number / unit:.3g} {letter}"
    return f"{number:g} "
