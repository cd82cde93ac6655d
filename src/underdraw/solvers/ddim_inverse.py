"""DDIM upwards, from an image to the noise it came from (Song et al. 2020, section 4.3)."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt

import numpy as np

from underdraw.errors import InputError
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


def head(table: Table, count: int) -> Table:
    """The first `count` model calls of a run: an inversion that stops early."""
    columns = ("timesteps", "input_scale", "alpha", "sigma", "read_clean", "weights", "pushes")
    names = (*columns, "draws", "steps")
    made = replace(table, **{name: getattr(table, name)[:count] for name in names})
    restart = table.restart
    if restart is None:
        return made
    return replace(made, restart=lambda begin: head(restart(begin=begin), count - begin))


def back_along(table: Table, prediction_type: str, final_alpha: float = 1.0) -> Table:
    """DDIM upwards through the levels at which the steps of another solver's `table` begin.

    Step i of the result ends where step -1 - i of `table` begins, so that solver can go the same
    way down, whatever its spacing. Latents are `sqrt(a) * clean + sqrt(1 - a) * noise` throughout.

    Args:
        final_alpha: ᾱ which the clean image is taken to have.

    Raises:
        InputError: `table` makes several calls in a step, or does not fall from call to call.
    """
    sizes = np.hypot(table.alpha, table.sigma)
    levels = table.sigma / table.alpha
    if len(set(table.steps.tolist())) < len(table) or (np.diff(levels) >= 0).any():
        raise InputError(
            "scheduler: an inversion goes up by the steps that it goes down, one model call each; "
            "this one makes several (allowed: DDIMScheduler, DPMSolverMultistepScheduler, "
            "EulerDiscreteScheduler and others with one)"
        )
    rows = Rows(prediction_type, table.clip)
    alpha, sigma = sqrt(final_alpha), sqrt(1 - final_alpha)
    for step, call in enumerate(reversed(range(len(table)))):
        above = {"clean": table.alpha[call] / sizes[call], "eps": table.sigma[call] / sizes[call]}
        rows.call(table.timesteps[call], alpha, sigma, step, above)
        alpha, sigma = above["clean"], above["eps"]
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
