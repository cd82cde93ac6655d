"""Short names of solvers."""

from __future__ import annotations

import sys
from typing import Any

from underdraw.errors import InputError

# Name -> (class, configuration that differs from the checkpoint's).
SOLVERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "pndm": ("PNDMScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpm2": ("KDPM2DiscreteScheduler", {}),
    "dpm2_a": ("KDPM2AncestralDiscreteScheduler", {}),
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpm++_3m": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver++", "solver_order": 3},
    ),
    "dpm++_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "dpm++_s": ("DPMSolverSinglestepScheduler", {"algorithm_type": "dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "deis": ("DEISMultistepScheduler", {"algorithm_type": "deis"}),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
}
ALIASES = {"plms": "pndm", "dpmpp": "dpm++", "dpm++_2m": "dpm++", "ancestral": "euler_a"}
GRIDS = {
    "karras": "use_karras_sigmas",
    "exponential": "use_exponential_sigmas",
    "beta": "use_beta_sigmas",
}


def make_solver(name: str, config: Any) -> Any:
    """The scheduler of a short name, with the noise schedule of a checkpoint's `config`.

    A noise grid may follow: "euler_karras", "dpm++_beta". Raises InputError, listing all names.
    """
    from underdraw import schedulers

    plain, _, last = name.lower().replace("-", "_").rpartition("_")
    grid = GRIDS.get(last)
    short = plain if grid else name.lower().replace("-", "_")
    short = ALIASES.get(short, short)
    if short not in SOLVERS:
        raise InputError(f"--solver {name} is not known; {describe()}")
    class_name, changes = SOLVERS[short]
    cls = getattr(schedulers, class_name)
    # Of several grids only one can be on, whatever the checkpoint says.
    known = cls.Config.__dataclass_fields__
    switches = {switch: switch == grid for switch in GRIDS.values() if switch in known}
    if grid and grid not in known:
        raise InputError(f"--solver {name}: {short} has no {last} grid; {describe()}")
    return cls.from_config(config, **{**changes, **(switches if grid else {})})


def describe() -> str:
    """All names in one sentence."""
    return (
        f"allowed: {', '.join(SOLVERS)}; most also with a noise grid, as in euler_karras "
        f"({', '.join(GRIDS)})"
    )


def complete(incomplete: str) -> list[str]:
    """Names that begin so, for the shell."""
    names = (*SOLVERS, *ALIASES, *(f"{name}_{grid}" for name in SOLVERS for grid in GRIDS), "help")
    return [name for name in names if name.startswith(incomplete)]


def show_help() -> None:
    """Tell all names to who asked for them, on standard error, since they are no result."""
    print(describe(), file=sys.stderr)
