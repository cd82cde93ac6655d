"""DEIS in log ρ (Zhang & Chen 2022, "Fast Sampling of Diffusion Models with Exponential
Integrator")."""

from __future__ import annotations

from math import exp, expm1, log, prod, sqrt

import numpy as np

from underdraw.solvers.configs import DEISConfig
from underdraw.solvers.dpm_solver import answer, usable
from underdraw.solvers.schedule import NoiseSchedule
from underdraw.solvers.sigmas import lambda_grid
from underdraw.solvers.table import Rows, Table
from underdraw.solvers.terms import combine


def log_rho_coefficients(levels: list[float], end: float) -> list[float]:
    """Integrals over ρ from `levels[0]` to `end` of the Lagrange polynomials in log ρ on `levels`
    (newest first): eq. 15 with ρ = σ/α. In v = log ρ - log `levels[0]` they integrate a polynomial
    times e^v, and v stays small."""
    nodes = [log(level / levels[0]) for level in levels]
    weights = []
    for k, own in enumerate(nodes):
        others = nodes[:k] + nodes[k + 1 :]
        integral = _exponential_integral(others, log(end / levels[0]))
        weights.append(levels[0] * integral / prod(own - node for node in others))
    return weights


def _exponential_integral(roots: list[float], end: float) -> float:
    """∫ (v - root) (v - other root) ... e^v dv from 0 to `end`."""
    coefficients = [1.0]  # of 1, v, v², ...
    for root in roots:
        pairs = zip([0.0, *coefficients], [*coefficients, 0.0], strict=True)
        coefficients = [lower - root * same for lower, same in pairs]
    # ∫ v^n e^v dv = v^n e^v - n ∫ v^(n-1) e^v dv
    moment = total = expm1(end)
    total *= coefficients[0]
    for power, coefficient in enumerate(coefficients[1:], 1):
        moment = end**power * exp(end) - power * moment
        total += coefficient * moment
    return total


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
