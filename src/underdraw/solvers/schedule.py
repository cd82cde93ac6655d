"""How much noise a training timestep carries: the schedule every solver reads.

Published models were trained with, and published checkpoints store, these numbers in single
precision, so they are rounded once here, as the numbers a model has seen; everything computed
from them afterwards is double precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from underdraw.errors import InputError


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """`x_t = sqrt(alphas_cumprod[t]) * x_0 + sqrt(1 - alphas_cumprod[t]) * noise`.

    `alphas_cumprod` is ᾱ of DDPM (Ho et al. 2020, eq. 4), shape `(train timesteps,)`, float64.
    """

    alphas_cumprod: np.ndarray
    betas: np.ndarray
    """Variance added at each timestep, β of eq. 2, likewise."""

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    @cached_property
    def sigmas(self) -> np.ndarray:
        """Noise to signal, `sqrt((1 - ᾱ) / ᾱ)`: σ of Karras et al. 2022. Infinite where ᾱ is 0."""
        alphas = _single(self.alphas_cumprod)
        with np.errstate(divide="ignore"):
            return np.sqrt((1 - alphas) / alphas).astype(np.float64)

    @cached_property
    def log_sigmas(self) -> np.ndarray:
        """Logarithm of `sigmas`."""
        return np.log(_single(self.sigmas)).astype(np.float64)

    @cached_property
    def lambdas(self) -> np.ndarray:
        """Half the log signal-to-noise ratio, λ of DPM-Solver (Lu et al. 2022)."""
        return -self.log_sigmas


def noise_schedule(
    beta_schedule: str = "linear",
    beta_start: float = 0.0001,
    beta_end: float = 0.02,
    num_train_timesteps: int = 1000,
    trained_betas: Sequence[float] | np.ndarray | None = None,
    rescale_betas_zero_snr: bool = False,
    smallest: float = 0.0,
) -> NoiseSchedule:
    """The schedule that a scheduler configuration describes.

    `trained_betas` wins over the other three. With `rescale_betas_zero_snr` the last timestep is
    pure noise (Lin et al. 2023, algorithm 1); its ᾱ is then `smallest`, which solvers working with
    σ = sqrt(1 / ᾱ - 1) need above 0.

    Raises:
        InputError: an unknown `beta_schedule`, no timesteps, not as many `trained_betas`, or betas
            under which noise does not grow, or no signal is left.
    """
    if trained_betas is not None:
        betas = _single(np.asarray(trained_betas, dtype=np.float64).reshape(-1))
        if len(betas) != num_train_timesteps:
            raise InputError(
                f"trained_betas has {len(betas)} entries; allowed: one per training timestep, "
                f"num_train_timesteps={num_train_timesteps}"
            )
    elif beta_schedule in BETA_SCHEDULES:
        if num_train_timesteps < 1:
            raise InputError(f"num_train_timesteps={num_train_timesteps} must be at least 1")
        betas = BETA_SCHEDULES[beta_schedule](beta_start, beta_end, num_train_timesteps)
    else:
        allowed = ", ".join(BETA_SCHEDULES)
        raise InputError(f"beta_schedule={beta_schedule!r} is not known; allowed: {allowed}")
    alphas_cumprod = _single(np.cumprod((1 - betas).astype(np.float64))).astype(np.float64)
    levels = np.append(1.0, alphas_cumprod)
    if not ((np.diff(levels) < 0).all() and levels[-1] >= np.finfo(np.float32).tiny):
        own = f"beta_start={beta_start}, beta_end={beta_end}, beta_schedule={beta_schedule!r}"
        said = own if trained_betas is None else "trained_betas"
        raise InputError(
            f"{said} with num_train_timesteps={num_train_timesteps} is no noise schedule; allowed: "
            "betas that add some noise at each timestep and leave some signal at the last"
        )
    if rescale_betas_zero_snr:
        if len(betas) < 2:
            raise InputError(
                f"rescale_betas_zero_snr=True with num_train_timesteps={num_train_timesteps}; "
                "allowed: at least 2 timesteps"
            )
        alphas_cumprod = _zero_terminal_snr(alphas_cumprod)
        betas = 1 - alphas_cumprod / np.append(1.0, alphas_cumprod[:-1])
        alphas_cumprod[-1] = smallest
    alphas_cumprod.flags.writeable = False
    return NoiseSchedule(alphas_cumprod, _single(betas).astype(np.float64))


def _zero_terminal_snr(alphas_cumprod: np.ndarray) -> np.ndarray:
    """Lin et al. 2023, algorithm 1: shift sqrt(ᾱ) so that it ends at 0, keep its beginning."""
    root = np.sqrt(alphas_cumprod)
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


def _single(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32)


def _linspace(start: float, end: float, count: int) -> np.ndarray:
    """Evenly spaced in single precision, counted from the nearer end as PyTorch does."""
    first, last = float(np.float32(start)), float(np.float32(end))
    if count == 1:
        return _single(np.array([first]))
    step = float(np.float32((np.float32(end) - np.float32(start)) / np.float32(count - 1)))
    index = np.arange(count)
    upper = last - step * (count - 1 - index)
    return _single(np.where(index < count // 2, first + step * index, upper))


def _linear(start: float, end: float, count: int) -> np.ndarray:
    return _linspace(start, end, count)


def _scaled_linear(start: float, end: float, count: int) -> np.ndarray:
    """Linear in sqrt(beta): latent diffusion's own (Rombach et al. 2022)."""
    return _linspace(start**0.5, end**0.5, count) ** 2


def _sigmoid(start: float, end: float, count: int) -> np.ndarray:
    return _single(1 / (1 + np.exp(-np.linspace(-6, 6, count))) * (end - start) + start)


def _from_alpha_bar(alpha_bar: Callable[[float], float]) -> Callable[..., np.ndarray]:
    """Betas whose cumulative product follows `alpha_bar(t)`, t from 0 to 1, capped at 0.999."""

    def betas(start: float, end: float, count: int) -> np.ndarray:
        level = [alpha_bar(i / count) for i in range(count + 1)]
        return _single(np.array([min(1 - level[i + 1] / level[i], 0.999) for i in range(count)]))

    return betas


def _cosine(t: float) -> float:
    """Nichol & Dhariwal 2021, eq. 17."""
    return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2


def _laplace(t: float) -> float:
    """Hang & Gu 2024."""
    snr = math.exp(-0.5 * math.copysign(1, 0.5 - t) * math.log(1 - 2 * math.fabs(0.5 - t) + 1e-6))
    return math.sqrt(snr / (1 + snr))


def _exponential(t: float) -> float:
    return math.exp(-12 * t)


BETA_SCHEDULES: dict[str, Callable[..., np.ndarray]] = {
    "linear": _linear,
    "scaled_linear": _scaled_linear,
    "squaredcos_cap_v2": _from_alpha_bar(_cosine),
    "sigmoid": _sigmoid,
    "laplace": _from_alpha_bar(_laplace),
    "exp": _from_alpha_bar(_exponential),
}
