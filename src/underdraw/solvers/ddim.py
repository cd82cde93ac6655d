"""DDIM (Song et al. 2020, "Denoising Diffusion Implicit Models")."""

from __future__ import annotations

from math import sqrt

import numpy as np

from underdraw.errors import InputError
from underdraw.solvers.configs import DDIMConfig
from underdraw.solvers.schedule import NoiseSchedule
from underdraw.solvers.table import Rows, Table, check_steps, spaced


def ddim(
    schedule: NoiseSchedule,
    timesteps: np.ndarray,
    previous: np.ndarray,
    final_alpha: float,
    rows: Rows,
    eta: float = 0.0,
    use_clipped: bool = False,
) -> Table:
    """Eq. 12, with σ_t(η) of eq. 16; α here is ᾱ, and `previous` may be negative: `final_alpha`.

    `use_clipped` takes the noise from the clipped image too, as Glide does.
    """
    for step, (t, s) in enumerate(zip(timesteps.astype(int), previous.astype(int), strict=True)):
        alpha_t = schedule.alphas_cumprod[t]
        alpha_s = schedule.alphas_cumprod[s] if s >= 0 else final_alpha
        sigma = eta * sqrt(max((1 - alpha_s) / (1 - alpha_t) * (1 - alpha_t / alpha_s), 0.0))
        remaining = 1 - alpha_s - sigma**2
        if remaining < -1e-9:
            raise InputError(f"eta={eta} puts in more noise than there is; allowed: 0 to 1")
        direction = sqrt(max(remaining, 0.0))
        x = {"clean": sqrt(alpha_s), "noise": sigma}
        if use_clipped:
            x["clean"] -= direction * sqrt(alpha_t / (1 - alpha_t))
            x["x"] = direction / sqrt(1 - alpha_t)
        else:
            x["eps"] = direction
        rows.call(t, sqrt(alpha_t), sqrt(1 - alpha_t), step, x, draws=eta > 0)
    return rows.table()


def ddim_table(
    schedule: NoiseSchedule,
    config: DDIMConfig,
    steps: int,
    *,
    timesteps: np.ndarray | None = None,
    eta: float = 0.0,
    use_clipped_model_output: bool = False,
) -> Table:
    """Every step goes `train // steps` timesteps down, whatever the spacing; `timesteps` may name
    any of training's, since a row depends on nothing else."""
    train = config.num_train_timesteps
    steps = check_steps(steps, train)
    if timesteps is None:
        timesteps = spaced(train, steps, config.timestep_spacing, config.steps_offset)
    previous = timesteps - train // steps
    final = 1.0 if config.set_alpha_to_one else schedule.alphas_cumprod[0]
    rows = Rows(config.prediction_type, config.clip)
    return ddim(schedule, timesteps, previous, final, rows, eta, use_clipped_model_output)
