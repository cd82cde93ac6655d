"""Heun's method in σ (Karras et al. 2022, algorithm 1) and DPM-Solver-2 steps (algorithm 2 of
k-diffusion's `sample_dpm_2`): two calls per step, the last step one."""

from __future__ import annotations

from math import sqrt

import numpy as np

from underdraw.solvers.configs import HeunConfig, KDPM2Config
from underdraw.solvers.euler import ancestral_split
from underdraw.solvers.schedule import NoiseSchedule
from underdraw.solvers.sigmas import initial_sigma, sigma_grid, timesteps_at
from underdraw.solvers.table import Rows, Table
from underdraw.solvers.terms import combine


def slope(rows: Rows, sigma: float) -> dict[str, float]:
    """dx/dσ: the noise, or what clipping left of it."""
    return {"eps": 1.0} if rows.clip is None else {"x": 1 / sigma, "clean": -1 / sigma}


def heun(timesteps: np.ndarray, sigmas: np.ndarray, rows: Rows, begin: int = 0) -> Table:
    """Euler to the next σ, then the step again with the mean slope. `begin` counts calls."""
    count = len(timesteps)
    for step in range(begin // 2, count):
        sigma, lower = sigmas[step], sigmas[step + 1]
        d, reach = slope(rows, sigma), lower - sigma
        if 2 * step >= begin:
            first = combine((1.0, {"x": 1.0}), (reach, d))
            more = step + 1 < count
            rows.call(
                timesteps[step],
                1.0,
                sigma,
                step,
                first,
                saved={"x": 1.0} if more else None,
                accumulator=d if more else None,
                scale=shrink(sigma),
            )
        if step + 1 < count:
            t = timesteps[step + 1]
            if 2 * step < begin:
                rows.wait(t, 1.0, lower, step, shrink(lower))
                continue
            mean = combine((0.5, {"accumulator": 1.0}), (0.5, slope(rows, lower)))
            again = combine((1.0, {"saved": 1.0}), (reach, mean))
            rows.call(t, 1.0, lower, step, again, scale=shrink(lower))
    return rows.table(np.concatenate([sigmas[:1], sigmas[1:-1].repeat(2), sigmas[-1:]]))


def dpm2(
    schedule: NoiseSchedule,
    timesteps: np.ndarray,
    sigmas: np.ndarray,
    rows: Rows,
    ancestral: bool = False,
    begin: int = 0,
) -> Table:
    """To the geometric middle of σ and σ_down, then the whole step with the slope found there.

    `ancestral` adds noise of size σ_up after each; otherwise σ_down is the next σ.
    """
    count = len(timesteps)
    for step in range(begin // 2, count):
        sigma, lower = sigmas[step], sigmas[step + 1]
        up, down = ancestral_split(sigma, lower) if ancestral else (0.0, lower)
        middle = sqrt(sigma * down)
        if 2 * step >= begin:
            first = {"x": 1.0, "eps": middle - sigma}
            saved = {"x": 1.0} if step + 1 < count else None
            rows.call(timesteps[step], 1.0, sigma, step, first, scale=shrink(sigma), saved=saved)
        if step + 1 < count:
            t = float(timesteps_at(schedule, np.array([middle]))[0])
            if 2 * step < begin:
                rows.wait(t, 1.0, middle, step, shrink(middle))
                continue
            again = {"saved": 1.0, "eps": down - sigma, "noise": up}
            rows.call(t, 1.0, middle, step, again, scale=shrink(middle), draws=ancestral)
    return rows.table(np.concatenate([sigmas[:1], sigmas[1:].repeat(2), sigmas[-1:]]))


def shrink(sigma: float) -> float:
    """Input scale: clean + σ · noise brought back to the size the network was trained on."""
    return 1 / sqrt(sigma**2 + 1)


def heun_table(
    schedule: NoiseSchedule,
    config: HeunConfig,
    steps: int | None,
    *,
    timesteps: np.ndarray | None = None,
    begin: int = 0,
) -> Table:
    t, sigmas = sigma_grid(schedule, config, steps, timesteps)
    sigmas = np.append(sigmas, 0.0)
    size = initial_sigma(sigmas, config.timestep_spacing)
    return heun(t, sigmas, Rows(config.prediction_type, config.clip, size), begin)


def dpm2_table(
    schedule: NoiseSchedule,
    config: KDPM2Config,
    steps: int | None,
    *,
    ancestral: bool = False,
    begin: int = 0,
) -> Table:
    t, sigmas = sigma_grid(schedule, config, steps)
    if config.use_karras_sigmas:
        t = t.round()
    sigmas = np.append(sigmas, 0.0)
    rows = Rows(config.prediction_type, None, initial_sigma(sigmas, config.timestep_spacing))
    return dpm2(schedule, t, sigmas, rows, ancestral, begin)
