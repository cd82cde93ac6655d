"""DDIM upwards, from an image to the noise it came from (Song et al. 2020, section 4.3)."""

from __future__ import annotations

from math import sqrt

import numpy as np

from underdraw.solvers.configs import DDIMInverseConfig
from underdraw.solvers.schedule import NoiseSchedule
from underdraw.solvers.table import Rows, Table, check_steps, spaced


def ddim_inverse(
    schedule: NoiseSchedule,
    timesteps: np.ndarray,
    previous: np.ndarray,
    initial_alpha: float,
    rows: Rows,
) -> Table:
    """Eq. 14 backwards: from the level `previous` up to `timesteps`, where the network is asked."""
    for step, (t, s) in enumerate(zip(timesteps.astype(int), previous.astype(int), strict=True)):
        alpha_t = schedule.alphas_cumprod[t]
        alpha_s = schedule.alphas_cumprod[s] if s >= 0 else initial_alpha
        x = {"clean": sqrt(alpha_t), "eps": sqrt(1 - alpha_t)}
        rows.call(t, sqrt(alpha_s), sqrt(1 - alpha_s), step, x)
    return rows.table()


def ddim_inverse_table(
    schedule: NoiseSchedule,
    config: DDIMInverseConfig,
    steps: int,
    *,
    timesteps: np.ndarray | None = None,
) -> Table:
    train = config.num_train_timesteps
    steps = check_steps(steps, train)
    if timesteps is None:
        timesteps = spaced(train, steps, config.timestep_spacing, config.steps_offset)[::-1]
    previous = np.minimum(timesteps - train // steps, train - 1)
    initial = 1.0 if config.set_alpha_to_one else schedule.alphas_cumprod[0]
    rows = Rows(config.prediction_type, config.clip)
    return ddim_inverse(schedule, timesteps, previous, initial, rows)
