"""DDPM (Ho et al. 2020, "Denoising Diffusion Probabilistic Models")."""

from __future__ import annotations

from math import sqrt

import numpy as np

from underdraw.solvers.configs import DDPMConfig
from underdraw.solvers.schedule import NoiseSchedule
from underdraw.solvers.table import Rows, Table, check_steps, spaced


def ddpm(
    schedule: NoiseSchedule, timesteps: np.ndarray, rows: Rows, large_variance: bool = False
) -> Table:
    """Eq. 7: the posterior of the next visited level given `x` and the clean image.

    Its variance is β̃ of eq. 7, or β ("large"), both of section 3.2; β spans the whole jump.
    """
    ts = timesteps.astype(int)
    for step, t in enumerate(ts):
        alpha_t = schedule.alphas_cumprod[t]
        alpha_s = schedule.alphas_cumprod[ts[step + 1]] if step + 1 < len(ts) else 1.0
        beta = 1 - alpha_t / alpha_s
        variance = beta if large_variance else (1 - alpha_s) / (1 - alpha_t) * beta
        x = {
            "clean": sqrt(alpha_s) * beta / (1 - alpha_t),
            "x": sqrt(alpha_t / alpha_s) * (1 - alpha_s) / (1 - alpha_t),
            "noise": sqrt(max(variance, 1e-20)) if t > 0 else 0.0,
        }
        rows.call(t, sqrt(alpha_t), sqrt(1 - alpha_t), step, x)
    return rows.table()


def ddpm_table(
    schedule: NoiseSchedule,
    config: DDPMConfig,
    steps: int | None,
    *,
    timesteps: np.ndarray | None = None,
) -> Table:
    train = len(schedule)
    if timesteps is None:
        steps = check_steps(steps, train)
        timesteps = spaced(train, steps, config.timestep_spacing, config.steps_offset)
    rows = Rows(config.prediction_type, config.clip)
    large = config.variance_type in ("fixed_large", "fixed_large_log")
    return ddpm(schedule, timesteps, rows, large)
