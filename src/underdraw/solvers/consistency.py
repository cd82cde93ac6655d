"""Few-step solvers for distilled networks: LCM (Luo et al. 2023) and TCD (Zheng et al. 2024)."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt
from typing import Any

import numpy as np

from underdraw.errors import InputError
from underdraw.solvers.configs import LCMConfig, TCDConfig
from underdraw.solvers.schedule import NoiseSchedule
from underdraw.solvers.table import Rows, Table, check_steps

SIGMA_DATA = 0.5


def lcm(schedule: NoiseSchedule, timesteps: np.ndarray, rows: Rows, scaling: float = 10.0) -> Table:
    """Multistep consistency sampling (Luo et al. 2023, algorithm 3): jump to the clean image, noise
    it again to the next timestep. The denoised image, with eq. 9's boundary condition, is saved."""
    ts = timesteps.astype(int)
    for step, t in enumerate(ts):
        alpha_t = schedule.alphas_cumprod[t]
        scaled = t * scaling
        c_skip = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)
        c_out = scaled / sqrt(scaled**2 + SIGMA_DATA**2)
        denoised = {"clean": c_out, "x": c_skip}
        x = dict(denoised)
        if step + 1 < len(ts):
            alpha_s = schedule.alphas_cumprod[ts[step + 1]]
            x = {name: sqrt(alpha_s) * factor for name, factor in denoised.items()}
            x["noise"] = sqrt(1 - alpha_s)
        rows.call(t, sqrt(alpha_t), sqrt(1 - alpha_t), step, x, saved=denoised)
    return replace(rows.table(), consistency=True)


def tcd(schedule: NoiseSchedule, timesteps: np.ndarray, rows: Rows, gamma: float = 0.3) -> Table:
    """Strategic stochastic sampling (Zheng et al. 2024, algorithm 4): along the trajectory to
    `s = (1 - γ) · next`, then noise up to the next timestep. The latents at `s` are saved."""
    ts = timesteps.astype(int)
    alphas = schedule.alphas_cumprod
    for step, t in enumerate(ts):
        following = int(ts[step + 1]) if step + 1 < len(ts) else 0
        # Single precision, as the familiar class: the floor must fall the same way.
        s = int(np.floor(np.float32(1 - gamma) * np.float32(following)))
        noised = {"clean": sqrt(alphas[s]), "eps": sqrt(1 - alphas[s])}
        x = dict(noised)
        if gamma > 0 and step + 1 < len(ts):
            ratio = alphas[following] / alphas[s]
            x = {name: sqrt(ratio) * factor for name, factor in noised.items()}
            x["noise"] = sqrt(1 - ratio)
        draws = gamma > 0 and step + 1 < len(ts)
        rows.call(t, sqrt(alphas[t]), sqrt(1 - alphas[t]), step, x, saved=noised, draws=draws)
    return replace(rows.table(), consistency=True)


def distilled_timesteps(
    train: int, steps: Any, original: int, strength: float, whole: bool = False
) -> np.ndarray:
    """A subset of the timesteps of the distillation, evenly spread by index from the noisiest.

    `whole` takes all training timesteps instead of `original` of them.
    """
    steps = check_steps(steps, train)
    if not 0 < strength <= 1:
        raise InputError(f"strength={strength} must be above 0 and at most 1")
    if not whole and not 0 < original <= train:
        raise InputError(
            f"original_inference_steps={original} must be between 1 and num_train_timesteps={train}"
        )
    if whole:
        origin = np.arange(int(train * strength))
    else:
        origin = np.arange(1, int(original * strength) + 1) * (train // original) - 1
    if steps > len(origin) or steps > original:
        raise InputError(
            f"num_inference_steps={steps} must be at most {min(len(origin), original)}, the number "
            f"of distilled timesteps (original_inference_steps={original}, strength={strength})"
        )
    places = np.floor(np.linspace(0, len(origin), num=steps, endpoint=False)).astype(int)
    return origin[::-1][places].astype(np.float64)


def _chosen(timesteps: np.ndarray, strength: float) -> np.ndarray:
    """The last part of custom timesteps, as long as `strength` says."""
    if not 0 < strength <= 1:
        raise InputError(f"strength={strength} must be above 0 and at most 1")
    kept = int(len(timesteps) * strength)
    if kept < 1:
        raise InputError(f"strength={strength} leaves none of {len(timesteps)} timesteps")
    return timesteps[len(timesteps) - kept :]


def lcm_table(
    schedule: NoiseSchedule,
    config: LCMConfig,
    steps: int | None,
    *,
    timesteps: np.ndarray | None = None,
    original_inference_steps: int | None = None,
    strength: float = 1.0,
) -> Table:
    original = original_inference_steps or config.original_inference_steps
    if timesteps is None:
        timesteps = distilled_timesteps(len(schedule), steps, original, strength)
    else:
        timesteps = _chosen(timesteps, strength)
    rows = Rows(config.prediction_type, config.clip)
    return lcm(schedule, timesteps, rows, config.timestep_scaling)


def tcd_table(
    schedule: NoiseSchedule,
    config: TCDConfig,
    steps: int | None,
    *,
    timesteps: np.ndarray | None = None,
    original_inference_steps: int | None = None,
    strength: float = 1.0,
    eta: float = 0.3,
) -> Table:
    """With `original_inference_steps` given, all training timesteps may be visited."""
    if not 0 <= eta <= 1:
        raise InputError(f"eta={eta} must be between 0 and 1")
    original = original_inference_steps or config.original_inference_steps
    whole = original_inference_steps is not None
    if timesteps is None:
        timesteps = distilled_timesteps(len(schedule), steps, original, strength, whole)
    else:
        timesteps = _chosen(timesteps, strength)
    return tcd(schedule, timesteps, Rows(config.prediction_type), eta)
