"""DEIS in log ρ (Zhang & Chen 2022, "Fast Sampling of Diffusion Models with Exponential
Integrator")."""

from __future__ import annotations

from math import log, sqrt

import numpy as np

from underdraw.solvers.configs import DEISConfig
from underdraw.solvers.dpm_solver import answer, usable
from underdraw.solvers.schedule import NoiseSchedule
from underdraw.solvers.sigmas import lambda_grid
from underdraw.solvers.table import Rows, Table
from underdraw.solvers.terms import combine


def log_rho_coefficients(levels: list[float], end: float) -> list[float]:
    """Integrals over ρ from `levels[0]` to `end` of the Lagrange polynomials in log ρ on `levels`
    (newest first): eq. 15 with ρ = σ/α. In u = log ρ they integrate a polynomial times e^u."""
    nodes = [log(rho) for rho in levels]
    weights = []
    for k, own in enumerate(nodes):
        others = [node for i, node in enumerate(nodes) if i != k]
        polynomial = np.poly(others) if others else np.ones(1)
        polynomial = polynomial / np.prod([own - node for node in others])
        weights.append(_exponential_integral(polynomial, nodes[0], log(end)))
    return weights


def _exponential_integral(polynomial: np.ndarray, start: float, end: float) -> float:
    """∫ p(u) e^u du = e^u (p - p' + p'' - ...); around `start`, where the terms stay small."""
    shifted = np.poly1d(polynomial)(np.poly1d([1.0, start]))
    primitive, derivative = np.poly1d([0.0]), np.poly1d(shifted)
    for sign in (1, -1, 1):
        primitive = primitive + sign * derivative
        derivative = derivative.deriv()
    width = end - start
    return float(np.exp(start) * (np.exp(width) * primitive(width) - primitive(0.0)))


def deis(
    timesteps: np.ndarray, sigmas: np.ndarray, rows: Rows, orders: list[int], begin: int = 0
) -> Table:
    """`x / α` moves by the integral of the noise over ρ, extrapolated through the last answers."""
    for step in range(begin, len(timesteps)):
        rho, end = float(sigmas[step]), float(sigmas[step + 1])
        alpha, alpha_t = 1 / sqrt(rho**2 + 1), 1 / sqrt(end**2 + 1)
        now = answer(rows, "deis", alpha, rho * alpha)
        past = usable(sigmas, step, min(orders[step] - 1, step - begin))
        levels = [float(each) for each in sigmas[step - past : step + 1]][::-1]
        known = [now, *({f"h{k + 1}": 1.0} for k in range(past))]
        weights = [alpha_t * weight for weight in log_rho_coefficients(levels, end)]
        x = combine((alpha_t / alpha, {"x": 1.0}), *zip(weights, known, strict=True))
        rows.call(timesteps[step], alpha, rho * alpha, step, x, push=now)
    return rows.table(sigmas)


def deis_table(
    schedule: NoiseSchedule, config: DEISConfig, steps: int | None, *, begin: int = 0
) -> Table:
    t, sigmas = lambda_grid(schedule, config, steps)
    sigmas = np.append(sigmas, schedule.sigmas[0] if config.grid() is None else sigmas[-1])
    orders = [config.solver_order] * len(t)
    if config.lower_order_final and len(t) < 15:
        orders[-2:] = [min(config.solver_order, 2), 1][-len(t) :]
    return deis(t, sigmas, Rows(config.prediction_type, config.clip), orders, begin)
