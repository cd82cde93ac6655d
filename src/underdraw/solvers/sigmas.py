"""Noise levels of a run: σ at timesteps, timesteps at σ, and the grids that place σ themselves
(Karras, exponential, beta, Lu) and look their timesteps up."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from underdraw.errors import InputError
from underdraw.solvers.schedule import NoiseSchedule
from underdraw.solvers.table import check_steps, spaced


def sigmas_at(schedule: NoiseSchedule, timesteps: np.ndarray) -> np.ndarray:
    """σ at timesteps, linear between neighbours, constant outside."""
    return np.interp(timesteps, np.arange(len(schedule)), schedule.sigmas)


def timesteps_at(schedule: NoiseSchedule, sigmas: np.ndarray) -> np.ndarray:
    """Where σ lies among the training timesteps, linear in log σ; the inverse of `sigmas_at`."""
    levels = schedule.log_sigmas
    if len(levels) < 2:
        raise InputError(
            f"num_train_timesteps={len(levels)}: between a single timestep and others nothing can "
            "be placed; allowed with this solver: at least 2"
        )
    wanted = np.log(np.maximum(sigmas, 1e-10))
    low = np.clip(np.searchsorted(levels, wanted, side="right") - 1, 0, len(levels) - 2)
    gap = (levels[low + 1] - levels[low]).astype(np.float32)  # as the familiar classes round it
    weight = np.clip((wanted - levels[low]) / gap, 0, 1)
    return (1 - weight) * low + weight * (low + 1)


def karras(sigma_max: float, sigma_min: float, steps: int, rho: float = 7.0) -> np.ndarray:
    """Karras et al. 2022, eq. 5."""
    ramp = np.linspace(0, 1, steps)
    ends = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return (ends[0] + ramp * (ends[1] - ends[0])) ** rho


def exponential(sigma_max: float, sigma_min: float, steps: int) -> np.ndarray:
    """Evenly spaced in log σ."""
    return np.exp(np.linspace(math.log(sigma_max), math.log(sigma_min), steps))


def lu(sigma_max: float, sigma_min: float, steps: int) -> np.ndarray:
    """Evenly spaced in λ = -log σ (Lu et al. 2022, DPM-Solver++, appendix D)."""
    ramp = np.linspace(0, 1, steps)
    first, last = math.log(sigma_max), math.log(sigma_min)
    return np.exp(first + ramp * (last - first))


def beta(sigma_max: float, sigma_min: float, steps: int, shape: float = 0.6) -> np.ndarray:
    """Quantiles of a beta distribution, denser at both ends (Lee et al. 2024). Needs scipy."""
    try:
        from scipy.stats import beta as distribution
    except ImportError as error:
        raise InputError("use_beta_sigmas=True needs the package scipy") from error
    quantiles = distribution.ppf(1 - np.linspace(0, 1, steps), shape, shape)
    return sigma_min + quantiles * (sigma_max - sigma_min)


GRIDS: dict[str, Callable[[float, float, int], np.ndarray]] = {
    "use_karras_sigmas": karras,
    "use_lu_lambdas": lu,
    "use_exponential_sigmas": exponential,
    "use_beta_sigmas": beta,
}
"""By the name of the option that switches each on."""


def sigma_grid(
    schedule: NoiseSchedule, config: Any, steps: int | None, timesteps: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """Timesteps and their σ for the classes that step in σ, without the σ at which a run ends.

    A σ grid spans what the timesteps span, or `sigma_min` and `sigma_max` of the configuration.
    """
    if timesteps is None:
        spacing = config.timestep_spacing, config.steps_offset
        t = spaced(len(schedule), check_steps(steps), *spacing, rounded=False)
    else:
        t = np.asarray(timesteps, dtype=np.float64)
    sigmas = sigmas_at(schedule, t)
    if getattr(config, "interpolation_type", "linear") == "log_linear":
        # One entry more, as in the familiar class: it is where the run ends.
        sigmas = exponential(schedule.sigmas[-1], schedule.sigmas[0], len(t) + 1)
    switch = config.grid()
    if switch is not None:
        sigmas = placed(config, switch, float(sigmas[0]), float(sigmas[-1]), len(t))
        t = timesteps_at(schedule, sigmas)
    return t, sigmas


def placed(config: Any, switch: str, top: float, bottom: float, steps: int) -> np.ndarray:
    """The σ grid `switch` between the given ends, which the configuration may override."""
    sigma_max, sigma_min = getattr(config, "sigma_max", None), getattr(config, "sigma_min", None)
    top, bottom = sigma_max or top, sigma_min or bottom
    return GRIDS[switch](top, bottom, steps)


def initial_sigma(sigmas: np.ndarray, spacing: str) -> float:
    """Size of the first latents: σ_max alone if the run starts at the last training timestep."""
    top = float(sigmas.max())
    return top if spacing in ("linspace", "trailing") else math.hypot(top, 1)


def lambda_grid(
    schedule: NoiseSchedule,
    config: Any,
    steps: int | None,
    timesteps: Any = None,
    *,
    rounded: tuple[str, ...] = ("use_karras_sigmas",),
    rising: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Whole timesteps and their σ for the classes that step in λ, without the σ at the end.

    They leave the lowest timestep out. Looked-up timesteps are rounded for the grids named in
    `rounded`, truncated for others; `rising` only turns those grids round.
    """
    train = len(schedule)
    switch = config.grid()
    if timesteps is not None:
        t = np.asarray(timesteps, dtype=np.float64)
    else:
        last = train - int(np.searchsorted(schedule.lambdas[::-1], clipped_lambda(config)))
        if last < train and steps is not None and last <= steps:
            raise InputError(
                f"lambda_min_clipped={clipped_lambda(config)} leaves {last} timesteps of {train}; "
                f"too few for num_inference_steps={steps}"
            )
        spacing = getattr(config, "timestep_spacing", "linspace")
        offset = getattr(config, "steps_offset", 0)
        t = spaced(train, check_steps(steps), spacing, offset, extra=1, last=last)
    if switch is None:
        return t, sigmas_at(schedule, t)
    if switch == "use_lu_lambdas":
        top, bottom = np.exp(schedule.log_sigmas[[-1, 0]]).tolist()
    else:
        top, bottom = schedule.sigmas[[-1, 0]].tolist()
    ends = (bottom, top) if rising else (top, bottom)
    sigmas = placed(config, switch, *ends, check_steps(steps))
    t = timesteps_at(schedule, sigmas)
    return np.trunc(t.round() if switch in rounded else t), sigmas


def clipped_lambda(config: Any) -> float:
    """λ below which no timestep is used: cosine schedules have some of hardly any signal."""
    return float(getattr(config, "lambda_min_clipped", -math.inf))
