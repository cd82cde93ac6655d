"""Euler and Euler ancestral steps in σ (Karras et al. 2022; ancestral: k-diffusion)."""

from __future__ import annotations

from math import inf, log, sqrt

import numpy as np

from underdraw.solvers.configs import EulerAncestralConfig, EulerConfig
from underdraw.solvers.schedule import NoiseSchedule
from underdraw.solvers.sigmas import initial_sigma, sigma_grid, timesteps_at
from underdraw.solvers.table import Rows, Table, read_clean


def euler(timesteps: np.ndarray, sigmas: np.ndarray, rows: Rows) -> Table:
    """Karras et al. 2022, algorithm 1 without the correction: `x += (σ' - σ) dx/dσ`.

    `x` is clean + σ · noise and dx/dσ the noise itself; `sigmas` has one entry more.
    """
    for step, (t, sigma, lower) in enumerate(zip(timesteps, sigmas, sigmas[1:], strict=False)):
        scale = 1 / sqrt(sigma**2 + 1)
        rows.call(t, 1.0, sigma, step, {"x": 1.0, "eps": lower - sigma}, scale=scale)
    return rows.table(sigmas)


def euler_churned(
    timesteps: np.ndarray,
    sigmas: np.ndarray,
    rows: Rows,
    s_churn: float,
    s_tmin: float,
    s_tmax: float,
    s_noise: float,
) -> Table:
    """Algorithm 2's noise added to `x`, as the familiar class does it: after the network was asked
    at σ, the step goes from σ̂ = (1 + γ) σ, where its answer is read as if it had seen that `x`."""
    for step, (t, sigma, lower) in enumerate(zip(timesteps, sigmas, sigmas[1:], strict=False)):
        inside = s_tmin <= sigma <= s_tmax
        gamma = min(s_churn / (len(sigmas) - 1), sqrt(2) - 1) if inside else 0.0
        hat = sigma * (gamma + 1)
        level = hat if rows.prediction_type == "epsilon" else sigma
        from_x, from_output = read_clean(rows.prediction_type, 1.0, level)
        ratio = (lower - hat) / hat
        stay = 1 + ratio * (1 - from_x)
        x = {"x": stay, "output": -ratio * from_output}
        x["noise"] = stay * s_noise * sqrt(hat**2 - sigma**2)
        rows.call(t, 1.0, sigma, step, x, scale=1 / sqrt(sigma**2 + 1), draws=gamma > 0)
    return rows.table(sigmas)


def euler_ancestral(timesteps: np.ndarray, sigmas: np.ndarray, rows: Rows) -> Table:
    """Down to σ_down, then noise of size σ_up, with σ_down² + σ_up² = σ'²."""
    for step, (t, sigma, lower) in enumerate(zip(timesteps, sigmas, sigmas[1:], strict=False)):
        up, down = ancestral_split(sigma, lower)
        x = {"x": 1.0, "eps": down - sigma, "noise": up}
        rows.call(t, 1.0, sigma, step, x, scale=1 / sqrt(sigma**2 + 1), draws=True)
    return rows.table(sigmas)


def ancestral_split(sigma: float, lower: float) -> tuple[float, float]:
    """σ_up and σ_down of a step from `sigma` to `lower`."""
    up = sqrt(max(lower**2 * (sigma**2 - lower**2) / sigma**2, 0.0))
    return up, sqrt(max(lower**2 - up**2, 0.0))


def euler_table(
    schedule: NoiseSchedule,
    config: EulerConfig,
    steps: int | None,
    *,
    timesteps: np.ndarray | None = None,
    sigmas: np.ndarray | None = None,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = inf,
    s_noise: float = 1.0,
) -> Table:
    if sigmas is not None:
        levels = np.asarray(sigmas, dtype=np.float64)
        t = timesteps_at(schedule, levels[:-1])
    else:
        t, levels = sigma_grid(schedule, config, steps, timesteps)
        last = schedule.sigmas[0] if config.final_sigmas_type == "sigma_min" else 0.0
        levels = np.append(levels, last)
    if config.timestep_type == "continuous" and config.prediction_type == "v_prediction":
        t = np.array([0.25 * log(sigma) for sigma in levels[:-1]])
    rows = Rows(config.prediction_type, None, initial_sigma(levels, config.timestep_spacing))
    if s_churn > 0:
        return euler_churned(t, levels, rows, s_churn, s_tmin, s_tmax, s_noise)
    return euler(t, levels, rows)


def euler_ancestral_table(
    schedule: NoiseSchedule, config: EulerAncestralConfig, steps: int
) -> Table:
    t, sigmas = sigma_grid(schedule, config, steps)
    sigmas = np.append(sigmas, 0.0)
    rows = Rows(config.prediction_type, None, initial_sigma(sigmas, config.timestep_spacing))
    return euler_ancestral(t, sigmas, rows)
