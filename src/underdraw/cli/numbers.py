"""Numbers on the command line, whatever the option is."""

from __future__ import annotations

import math
from typing import Any

import typer.core

from underdraw.errors import InputError

MOST = 2**63


class Command(typer.core.TyperCommand):
    """A command whose numbers are finite, and whole ones no larger than machines count."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        rest = super().parse_args(ctx, args)
        for parameter in self.params if not ctx.resilient_parsing else ():
            value = ctx.params.get(parameter.name)
            for number in value if isinstance(value, tuple | list) else (value,):
                check(max(parameter.opts, key=len), number)
        return rest


def check(option: str, number: Any) -> None:
    """Raises InputError: it is NaN, infinite, or too large."""
    if isinstance(number, float) and not math.isfinite(number):
        raise InputError(f"{option} {number} is out of range; allowed: finite numbers")
    if isinstance(number, int) and not -MOST <= number < MOST:
        raise InputError(f"{option} {number} is out of range; allowed: below 2**63")
