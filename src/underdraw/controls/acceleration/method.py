"""What ways to compute less have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from underdraw.controls.control import Control
from underdraw.controls.planned import Planned
from underdraw.errors import InputError
from underdraw.limits import FEWEST_CALLS
from underdraw.schema import Schema


@dataclass(frozen=True)
class Method(Schema, ABC):
    """A way to compute less: a value that settings and records hold. What acts in a run is the
    control that it makes."""

    closed = True  # a record that says more is of a run that left out something else
    reuses = False  # whether what calls gave stands for others, so that they must be alike

    @abstractmethod
    def control(self) -> Control:
        """What acts in runs."""


def check_reuse(method: Method, planned: Planned) -> None:
    """Raise an InputError where calls of a run are too unlike each other for one to use what
    another has computed."""
    owner = type(method).owner
    way_out = "or leave it out: pipe.disable_acceleration()"
    if getattr(planned.solver, "consistency", False):
        raise InputError(
            f"{owner}: runs of consistency solvers (LCM, TCD) have no calls that are alike; "
            f"allowed: another scheduler, {way_out}"
        )
    if planned.calls < FEWEST_CALLS:
        raise InputError(
            f"{owner}: this run has {planned.calls} calls of the UNet, which are too unlike each "
            f"other to be left out; allowed: {FEWEST_CALLS} calls or more, {way_out}"
        )
