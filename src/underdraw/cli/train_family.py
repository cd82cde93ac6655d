"""`underdraw train family --budget`: the whole chain within a time."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from underdraw.cli import progress
from underdraw.cli.failures import tell
from underdraw.errors import InputError

_BUDGET = re.compile(r"(?=.)(?:(\d{1,4})h)?(?:(\d{1,5})m)?(?:(\d{1,6})s)?")

Start = Annotated[
    str | None,
    typer.Option(help="A family to go on from, such as underdraw/scenes (family --budget)."),
]
Anew = Annotated[
    list[str] | None,
    typer.Option(help="Of --start not this network, such as unet; can be given several times."),
]
Again = Annotated[
    list[str] | None,
    typer.Option(
        help="Run this stage although --start has its network, and go on with that, such as "
        "autoencoder; can be given several times."
    ),
]
Without = Annotated[
    list[str] | None,
    typer.Option(
        help="Leave out this stage (family --budget), such as structure; can be given several "
        "times."
    ),
]


@dataclass(frozen=True)
class Choices:
    """What a family begins with, and which stages run."""

    start: str | None = None
    anew: tuple[str, ...] = ()
    again: tuple[str, ...] = ()
    without: tuple[str, ...] = ()

    @staticmethod
    def of(
        start: str | None,
        anew: list[str] | None,
        again: list[str] | None,
        without: list[str] | None,
    ) -> Choices:
        """From what the command line says.

        Raises:
            InputError: --anew or --again without --start.
        """
        if start is None and (anew or again):
            raise InputError("--anew and --again are for --start")
        return Choices(start, tuple(anew or ()), tuple(again or ()), tuple(without or ()))


def seconds_of(budget: str) -> float:
    """Seconds of a text such as 10m, 1h30m or 90s.

    Raises:
        InputError: it is no such text, or no time.
    """
    found = _BUDGET.fullmatch(budget.strip())
    parts = [int(part or 0) for part in found.groups()] if found else [0]
    total = sum(part * unit for part, unit in zip(parts, (3600, 60, 1), strict=False))
    if not total:
        raise InputError(f"--budget {budget!r}; wanted a time such as 10m, 1h30m or 90s")
    return total


def train_within(
    out: Path, budget: float, choices: Choices, scenes: int | None, device: str
) -> None:
    """Train every stage of the family in `budget` seconds, or go on with it."""
    from underdraw.training.family import train_family
    from underdraw.training.recipes import ScenesRecipe

    recipe = ScenesRecipe(**vars(choices))
    if device != "cpu":
        recipe = recipe.on_accelerator()
    if scenes is not None:
        fewer = {"views": min(scenes, recipe.views), "subjects": min(scenes, recipe.subjects)}
        recipe = replace(recipe, scenes=scenes, **fewer)
    shown = progress.wanted()
    table = train_family(out, budget, recipe, device=device, progress=shown, tell=tell)
    typer.echo(table)
    tell(f"family: {out / 'export'}")
