"""Sums of terms `{slot: factor}`, in which solvers write what they know."""

from __future__ import annotations

from collections.abc import Mapping


def combine(*parts: tuple[float, Mapping[str, float]]) -> dict[str, float]:
    """The sum of factors times terms, as terms."""
    total: dict[str, float] = {}
    for factor, terms in parts:
        for name, value in terms.items():
            total[name] = total.get(name, 0.0) + factor * value
    return total
