"""Numbers on the command line, whatever the option is."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, ClassVar

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


class OfSeveral(Command):
    """A command some of whose options take several values, each a word of its own: a text for such
    an option is then a JSON list of them."""

    takes: ClassVar[Mapping[str, int]] = {}
    """By option how many values it takes."""
    further: ClassVar[Mapping[str, str]] = {}
    """By option the word behind its values after which one more may stand."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        joined, rest = [], list(args)
        while rest:
            part = rest.pop(0)
            joined.append(part)
            if (count := self.takes.get(part)) is not None:
                values = rest[:count]
                del rest[:count]
                if rest and rest[0] == self.further.get(part):
                    values += rest[1:2]
                    del rest[:2]
                joined.append(json.dumps(values))
        return super().parse_args(ctx, joined)
