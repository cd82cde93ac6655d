"""Counts that are read as shares, and tables of them beside their upper bound."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from math import sqrt
from typing import Any


@dataclass(frozen=True)
class Rate:
    """`right` out of `of` cases."""

    right: int = 0
    of: int = 0

    @classmethod
    def count(cls, cases: Iterable[bool | None]) -> Rate:
        """Of truths; None is no case."""
        kept = [bool(case) for case in cases if case is not None]
        return cls(sum(kept), len(kept))

    @property
    def share(self) -> float | None:
        """right / of; None without cases."""
        return self.right / self.of if self.of else None

    @property
    def interval(self) -> tuple[float, float]:
        """Where the true share lies with 95 % confidence (Wilson 1927); (0, 1) without cases."""
        if not self.of:
            return 0.0, 1.0
        z, n, p = 1.96, self.of, self.right / self.of
        middle, reach = p + z * z / (2 * n), z * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        low, high = ((middle + sign * reach) / (1 + z * z / n) for sign in (-1, 1))
        return max(0.0, low), min(1.0, high)

    def __str__(self) -> str:
        return f"{100 * self.right / self.of:5.1f} % ({self.right}/{self.of})" if self.of else "-"


def as_json(value: Any) -> Any:
    """Dataclasses, rates, tuples and plain values as what `json.dumps` takes."""
    if isinstance(value, Rate):
        low, high = value.interval
        told = {"right": value.right, "of": value.of, "share": value.share}
        return {**told, "interval": [round(low, 4), round(high, 4)]}
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: as_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): as_json(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(part) for part in value]
    return value


def table(rows: Iterable[tuple[Any, ...]], heads: tuple[str, ...]) -> str:
    """Text in columns: what, then its scores, the last of them the upper bound."""
    told = [heads, *((name, *map(_cell, scores)) for name, *scores in rows)]
    wide = [max(len(row[i]) for row in told) for i in range(len(heads))]
    lines = []
    for name, *cells in told:
        columns = [cell.rjust(width) for cell, width in zip(cells, wide[1:], strict=True)]
        lines.append("  ".join([name.ljust(wide[0]), *columns]))
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
