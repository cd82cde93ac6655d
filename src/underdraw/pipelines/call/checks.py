"""Checks of what only some calls bring: sizes, arrays, a strength."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from underdraw import checks
from underdraw.controls.control import Control
from underdraw.errors import InputError, InputTypeError
from underdraw.schedulers import LMSDiscreteScheduler
from underdraw.solvers.solver import Solver
from underdraw.solvers.table import Table


def sides(height: Any, width: Any, shape: Sequence[int], factor: int) -> tuple[int, int]:
    """Of a picture, in pixels; one that is not given is that of `shape`, in latents."""
    given = {"height": height, "width": width}
    made = [
        side * factor if value is None else checks.size(name, checks.whole(name, value), factor)
        for (name, value), side in zip(given.items(), shape, strict=True)
    ]
    return made[0], made[1]


def wrong_unet(pipeline: Any, taken: int, channels: int, inpainting: bool) -> InputError:
    """The UNet takes another number of channels than latents have."""
    return InputError(
        f"unet: it takes {taken} channels, latents have {channels}; {type(pipeline).__name__} "
        f"needs a text-to-image{' or inpainting' if inpainting else ''} UNet"
    )


def check_controls(controls: Any) -> None:
    """A list of controls."""
    if not isinstance(controls, list | tuple):
        raise InputTypeError(f"controls={controls!r} is not a list of controls")
    for control in controls:
        if not isinstance(control, Control):
            raise InputTypeError(f"controls holds {control!r}, which is not a Control")


def last_steps(
    pipe: Any, scheduler: Any, solver: Solver, steps: int, strength: Any
) -> tuple[Solver, int]:
    """The end of a run of so many steps, `strength` of them (rounded down), and how many these are.

    Raises:
        InputError, InputTypeError: none is left, or `strength` is no number in 0 .. 1.
    """
    strength = checks.number("strength", strength, 0.0, 1.0)
    kept = int(steps * strength)
    if kept == 0:
        raise InputError(
            f"strength={strength} of {steps} steps leaves none; allowed: {1 / steps:.3g} .. 1"
        )
    begin = (steps - kept) * getattr(scheduler, "order", 1)
    alike = pipe.compat == "diffusers" and isinstance(scheduler, LMSDiscreteScheduler)
    if alike and begin and isinstance(solver, Table) and solver.restart is not None:
        return solver.restart(begin=begin, partial=True), kept
    return solver.tail(begin), kept
