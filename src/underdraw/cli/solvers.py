"""Solvers on the command line, by their names (`underdraw.solvers.named`)."""

from __future__ import annotations

import sys
from typing import Any

from underdraw.solvers.named import ALIASES, GRIDS, SOLVERS, describe


def make_solver(name: str, config: Any) -> Any:
    """The scheduler of a name, with the noise schedule of a checkpoint's `config`.

    A noise grid may follow: "euler_karras", "dpm++_beta". Raises InputError, listing all names.
    """
    from underdraw.schedulers.named import named_scheduler

    return named_scheduler(name, config, "--solver ")


def complete(incomplete: str) -> list[str]:
    """Names that begin so, for the shell."""
    names = (*SOLVERS, *ALIASES, *(f"{name}_{grid}" for name in SOLVERS for grid in GRIDS), "help")
    return [name for name in names if name.startswith(incomplete)]


def show_help() -> None:
    """Tell all names to who asked for them, on standard error, since they are no result."""
    print(describe(), file=sys.stderr)
