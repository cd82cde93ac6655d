"""Linear multistep in σ (k-diffusion's LMS, after Liu et al. 2022's pseudo linear multistep)."""

from __future__ import annotations

from math import sqrt

import numpy as np

from underdraw.errors import InputError
from underdraw.solvers.configs import LMSConfig
from underdraw.solvers.schedule import NoiseSchedule
from underdraw.solvers.sigmas import initial_sigma, sigma_grid
from underdraw.solvers.table import Rows, Table


def adams_coefficients(levels: np.ndarray, end: float) -> list[float]:
    """Integrals from `levels[0]` to `end` of the Lagrange polynomials on `levels` (newest first):
    the weights of an Adams-Bashforth step on an uneven grid, exactly."""
    weights = []
    for k, own in enumerate(levels):
        others = np.delete(levels, k)
        polynomial = np.poly1d(np.poly(others) / np.prod(own - others))
        primitive = polynomial.integ()
        weights.append(float(primitive(end) - primitive(levels[0])))
    return weights


def lms(
    timesteps: np.ndarray,
    sigmas: np.ndarray,
    rows: Rows,
    order: int = 4,
    begin: int = 0,
    partial: bool = False,
) -> Table:
    """`x` moves by the integral of the polynomial through the last `order` slopes dx/dσ. Begun in
    the middle, `partial` weighs slopes as if those before were there, and leaves these out."""
    for step in range(begin, len(timesteps)):
        seen = step - begin + 1
        known = min(order, step + 1 if partial else seen)
        levels = sigmas[step + 1 - known : step + 1][::-1]
        names = ("eps", "h1", "h2", "h3", "h4")
        x = {"x": 1.0}
        x.update(zip(names, adams_coefficients(levels, sigmas[step + 1])[:seen], strict=False))
        sigma, scale = sigmas[step], 1 / sqrt(sigmas[step] ** 2 + 1)
        rows.call(timesteps[step], 1.0, sigma, step, x, push={"eps": 1.0}, scale=scale)
    return rows.table(sigmas)


def lms_table(
    schedule: NoiseSchedule,
    config: LMSConfig,
    steps: int | None,
    *,
    order: int = 4,
    begin: int = 0,
    partial: bool = False,
) -> Table:
    if order not in (1, 2, 3, 4, 5):
        raise InputError(f"order={order!r} is not supported; allowed: 1 to 5")
    t, sigmas = sigma_grid(schedule, config, steps)
    sigmas = np.append(sigmas, 0.0)
    rows = Rows(config.prediction_type, None, initial_sigma(sigmas, config.timestep_spacing))
    return lms(t, sigmas, rows, order, begin, partial)
