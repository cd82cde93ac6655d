"""How much a control acts over a run."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import Any

from underdraw.checks import shown
from underdraw.controls.control import Call
from underdraw.errors import InputError, InputTypeError

ROUNDING = 1e-6
"""Of fractions that add up to 1."""


@dataclass(frozen=True)
class Strength:
    """Fractions of a run's model calls, which add up to 1: first the control acts fully (`on`),
    then less and less in a straight line (`decay`), then not at all (`off`; Li et al. 2023).

    Raises:
        InputError, InputTypeError: they are no fractions that add up to 1.
    """

    on: float
    decay: float
    off: float

    def __post_init__(self) -> None:
        parts = (self.on, self.decay, self.off)
        if any(isinstance(part, bool) or not isinstance(part, Real) for part in parts):
            raise InputTypeError(f"strength={shown(parts)} must hold three numbers: on, decay, off")
        # 1 - 0.9 - 0.1 is a little below 0.
        within = all(-ROUNDING <= part <= 1 + ROUNDING for part in parts)
        if not (within and abs(sum(parts) - 1) < ROUNDING):
            raise InputError(
                f"strength={shown(parts)} (on, decay, off); allowed: fractions of the run in "
                "0 .. 1 that add up to 1"
            )

    def at(self, call: Call) -> float:
        """In [0, 1], at one model call."""
        on, decay = int(self.on * call.count), int(self.decay * call.count)
        if call.index < on:
            return 1.0
        # The original's fall misses both ends: (n - 1) / n, ..., 1 / n, 0.
        return max(0.0, (on + decay - 1 - call.index) / decay) if decay else 0.0


ALWAYS = Strength(1.0, 0.0, 0.0)
NEVER = Strength(0.0, 0.0, 1.0)


def as_strength(value: Any) -> Strength:
    """A `Strength`, or `(on, decay, off)` as one."""
    if isinstance(value, Strength):
        return value
    if not isinstance(value, list | tuple) or len(value) != 3:
        raise InputTypeError(f"strength={shown(value)} is not (on, decay, off)")
    return Strength(*value)
