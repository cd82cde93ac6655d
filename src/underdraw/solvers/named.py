"""Solvers by the names people use: those of this package, of A1111 and of ComfyUI.

Case, spaces, hyphens and underscores make no difference, and "dpmpp" is "dpm++". Behind the name
may stand what spaces the noise levels: "DPM++ 2M Karras", "dpmpp_2m_sgm_uniform", "ddim trailing".
Nothing here imports numpy: the command line completes these names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from underdraw.errors import InputError

MULTI, SINGLE = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"

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
    "dpm++": (MULTI, {"algorithm_type": "dpmsolver++"}),
    "dpm++_3m": (MULTI, {"algorithm_type": "dpmsolver++", "solver_order": 3}),
    "dpm++_sde": (MULTI, {"algorithm_type": "sde-dpmsolver++"}),
    "dpm++_sde_heun": (MULTI, {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"}),
    "dpm++_3m_sde": (MULTI, {"algorithm_type": "sde-dpmsolver++", "solver_order": 3}),
    "dpm++_s": (SINGLE, {"algorithm_type": "dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "unipc_bh1": ("UniPCMultistepScheduler", {"solver_type": "bh1"}),
    "deis": ("DEISMultistepScheduler", {"algorithm_type": "deis"}),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
}
ALIASES = {
    "plms": "pndm",
    "dpmpp": "dpm++",
    "dpm++_2m": "dpm++",
    "dpm++_2m_sde": "dpm++_sde",
    "dpm++_2m_sde_heun": "dpm++_sde_heun",
    "dpm++_2s": "dpm++_s",
    "dpm_2": "dpm2",
    "dpm_2_ancestral": "dpm2_a",
    "dpm2_ancestral": "dpm2_a",
    "euler_ancestral": "euler_a",
    "ancestral": "euler_a",
    "uni_pc_bh2": "unipc",
}
GRIDS = {
    "karras": "use_karras_sigmas",
    "exponential": "use_exponential_sigmas",
    "beta": "use_beta_sigmas",
}
"""Word -> the switch of a configuration."""
SPACINGS = {
    "trailing": "trailing",
    "leading": "leading",
    "linspace": "linspace",
    "sgm_uniform": "trailing",
    "simple": "trailing",
    "normal": "linspace",
    "ddim_uniform": "leading",
}
"""Word -> `timestep_spacing`."""
INSTEAD = {
    "dpm_fast": "dpm++ 2s",
    "dpm_adaptive": "dpm++ 2m karras",
    "dpm++_2s_a": "dpm++ 2s, which draws no noise, or euler a",
    "dpm++_2s_ancestral": "dpm++ 2s, which draws no noise, or euler a",
    "restart": "euler",
    "ipndm": "pndm",
    "ipndm_v": "pndm",
    "res_multistep": "dpm++ 2m",
    "er_sde": "dpm++ 2m sde",
    "seeds_2": "dpm++ 2m sde",
    "gradient_estimation": "euler",
    "heunpp2": "heun",
    "euler_cfg_pp": "euler",
    "euler_ancestral_cfg_pp": "euler a",
}
"""Names of what is not here -> the nearest that is."""


class Named(NamedTuple):
    """What a name means."""

    kind: str
    """Class of the scheduler."""
    changes: Mapping[str, Any]
    """Of its configuration."""
    switch: str | None
    """The switch of `GRIDS` that is on; None leaves them as the checkpoint has them."""
    words: str
    """How the spacing was named."""
    short: str
    """The name itself, as `SOLVERS` has it."""


def read_name(name: Any, before: str = "solver=") -> Named:
    """What a solver's name means; `before` is what errors put before it.

    Raises:
        InputError: it is not known; the message lists all names, or says what is nearest.
    """
    told = name if isinstance(name, str) else type(name).__name__
    plain = re.sub(r"[\s_\-]+", "_", told.strip().lower()).replace("dpmpp", "dpm++")[:100]
    plain = plain.removesuffix("_gpu")
    spacing = next((w for w in (*GRIDS, *SPACINGS) if plain.endswith(f"_{w}")), "")
    short = plain.removesuffix(f"_{spacing}") if spacing else plain
    whole = isinstance(name, str) and plain == plain.strip("_")
    found = _KNOWN.get(_squeezed(short)) if whole else None
    if found is None:
        near = _INSTEAD.get(_squeezed(short))
        hint = describe() if near is None else f"the nearest is {near}"
        raise InputError(f"{before}{told:.100} is not known; {hint}")
    kind, changes = SOLVERS[found]
    if spacing in SPACINGS:
        changes = {**changes, "timestep_spacing": SPACINGS[spacing]}
    return Named(kind, changes, GRIDS.get(spacing), spacing, found)


def describe() -> str:
    """All names in one sentence."""
    return (
        f"allowed: {', '.join(SOLVERS)}; most also with a noise grid, as in euler_karras "
        f"({', '.join(GRIDS)}), or a spacing of steps, as in ddim_trailing ({', '.join(SPACINGS)})"
    )


def _squeezed(name: str) -> str:
    return name.replace("_", "")


def _known() -> dict[str, str]:
    """Names without what is between their parts, and of classes, -> the name in `SOLVERS`."""
    found = {}
    for name, (kind, _) in reversed(SOLVERS.items()):  # of several of a class the first counts
        found |= {kind.lower(): name, kind.lower().removesuffix("scheduler"): name}
    found |= {_squeezed(name): meant for name, meant in ALIASES.items()}
    return found | {_squeezed(name): name for name in SOLVERS}


_KNOWN = _known()
_INSTEAD = {_squeezed(name): near for name, near in INSTEAD.items()}
