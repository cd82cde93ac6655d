"""DPM-Solver and DPM-Solver++ (Lu et al. 2022a, 2022b): multistep, singlestep, and upwards.

With λ = log(α/σ) and h = λ_t - λ_s, a step is an exponential integral over λ of the clean image
("++") or of the noise, expanded around the last level known. σ here is the ratio σ/α, so that
λ = -log σ, α = 1/sqrt(1 + σ²).
"""

from __future__ import annotations

from collections.abc import Mapping
from math import exp, expm1, inf, log, sqrt
from typing import NamedTuple

import numpy as np

from underdraw.solvers.configs import DPMInverseConfig, DPMMultistepConfig, DPMSinglestepConfig
from underdraw.solvers.schedule import NoiseSchedule
from underdraw.solvers.sigmas import clipped_lambda, lambda_grid, sigmas_at
from underdraw.solvers.table import Rows, Table, check_steps, spaced
from underdraw.solvers.terms import combine

Terms = Mapping[str, float]


class Integrals(NamedTuple):
    """Factors of one step: of the latents it starts from, of D0, of D1 by the midpoint rule or
    exactly ("heun"), of D2, and of fresh noise."""

    x: float
    d0: float
    d1_midpoint: float
    d1: float
    d2: float
    noise: float


def integrals(algorithm: str, start: float, end: float) -> Integrals:
    """From ratio σ `start` to `end`, `end` may be 0. 2022b, eqs. 8 and 18; noise: eq. 19.

    The D2 factor of "sde-dpmsolver++" has the sign that the familiar class gives its last term; the
    expansion itself asks for `+ 0.5` (see tests/solvers/test_peer_defects.py).
    """
    alpha_s, alpha_t = 1 / sqrt(start**2 + 1), 1 / sqrt(end**2 + 1)
    sigma_t = end * alpha_t
    h = half_log_snr(end) - half_log_snr(start)
    if algorithm == "dpmsolver++":
        phi = expm1(-h)
        d1, d2 = alpha_t * (phi / h + 1), -alpha_t * ((phi + h) / h / h - 0.5)
        d0, x, noise = -alpha_t * phi, sigma_t / (start * alpha_s), 0.0
    elif algorithm == "dpmsolver":
        phi = expm1(h)
        d1, d2 = -sigma_t * (phi / h - 1), -sigma_t * ((phi - h) / h / h - 0.5)
        d0, x, noise = -sigma_t * phi, alpha_t / alpha_s, 0.0
    elif algorithm == "sde-dpmsolver++":
        phi = -expm1(-2 * h)
        d1, d2 = alpha_t * (phi / (-2 * h) + 1), alpha_t * ((phi - 2 * h) / (2 * h) ** 2 - 0.5)
        d0, x = alpha_t * phi, sigma_t / (start * alpha_s) * exp(-h)
        noise = sigma_t * sqrt(phi)
    else:  # sde-dpmsolver
        phi = expm1(h)
        d1, d2 = -2 * sigma_t * (phi / h - 1), 0.0
        d0, x = -2 * sigma_t * phi, alpha_t / alpha_s
        noise = sigma_t * sqrt(expm1(2 * h))
    return Integrals(x, d0, d0 / 2, d1, d2, noise)


def half_log_snr(sigma: float) -> float:
    """λ of a ratio σ; infinite at 0."""
    return -log(sigma) if sigma > 0 else inf


def multistep_update(
    algorithm: str, solver_type: str, levels: list[float], known: list[Terms]
) -> dict[str, float]:
    """2022b, algorithm 2 and its third order: from `levels[-2]` to `levels[-1]`.

    `known` holds the answers at the levels before the last, newest first; its length is the order.
    """
    end, start = levels[-1], levels[-2]
    if same(start, end):
        return {"x": 1.0}
    c = integrals(algorithm, start, end)
    h = half_log_snr(end) - half_log_snr(start)
    m0 = known[0]
    parts = [(c.x, {"x": 1.0}), (c.noise, {"noise": 1.0}), (c.d0, m0)]
    if len(known) >= 2:
        r0 = log(levels[-3] / start) / h
        d1_0 = combine((1 / r0, m0), (-1 / r0, known[1]))
        if len(known) == 2:
            parts.append((c.d1_midpoint if solver_type == "midpoint" else c.d1, d1_0))
        else:
            r1 = log(levels[-4] / levels[-3]) / h
            d1_1 = combine((1 / r1, known[1]), (-1 / r1, known[2]))
            change = combine((1 / (r0 + r1), d1_0), (-1 / (r0 + r1), d1_1))
            parts += [(c.d1, d1_0), (c.d1 * r0, change), (c.d2, change)]
    return combine(*parts)


def singlestep_update(
    algorithm: str, solver_type: str, levels: list[float], known: list[Terms]
) -> dict[str, float]:
    """2022b, algorithm 1 and its third order: from the level of the oldest answer, whose latents
    are saved, to `levels[-1]`, past the levels of the others."""
    order = len(known)
    if order == 1:
        return multistep_update(algorithm, solver_type, levels, known)
    end, start = levels[-1], levels[-1 - order]
    c = integrals(algorithm, start, end)
    h = half_log_snr(end) - half_log_snr(start)
    oldest = known[-1]
    r0 = log(start / levels[-2]) / h
    newest = combine((1 / r0, known[0]), (-1 / r0, oldest))
    parts = [(c.x, {"saved": 1.0}), (c.noise, {"noise": 1.0}), (c.d0, oldest)]
    if order == 2:
        parts.append((c.d1_midpoint if solver_type == "midpoint" else c.d1, newest))
    elif solver_type == "midpoint":
        parts.append((c.d1, newest))
    else:
        r1 = log(start / levels[-3]) / h
        middle = combine((1 / r1, known[1]), (-1 / r1, oldest))
        d1 = combine((r0 / (r0 - r1), middle), (-r1 / (r0 - r1), newest))
        d2 = combine((2 / (r0 - r1), newest), (-2 / (r0 - r1), middle))
        parts += [(c.d1, d1), (c.d2, d2)]
    return combine(*parts)


def answer(rows: Rows, algorithm: str, alpha: float, sigma: float) -> Terms:
    """What the solver integrates: the clean image, or the noise (again from the clean image if that
    was bounded)."""
    if algorithm.endswith("++"):
        return {"clean": 1.0}
    return {"eps": 1.0} if rows.clip is None else {"x": 1 / sigma, "clean": -alpha / sigma}


def multistep(
    timesteps: np.ndarray,
    sigmas: np.ndarray,
    rows: Rows,
    algorithm: str,
    solver_type: str,
    orders: list[int],
    begin: int = 0,
) -> Table:
    """One call per step; `orders` caps the order of each, `begin` is the first one taken."""
    for step in range(begin, len(timesteps)):
        sigma = sigmas[step]
        alpha = 1 / sqrt(sigma**2 + 1)
        now = answer(rows, algorithm, alpha, sigma * alpha)
        past = usable(sigmas, step, min(orders[step] - 1, step - begin))
        levels = [float(each) for each in sigmas[step - past : step + 2]]
        known = [now, *({f"h{k + 1}": 1.0} for k in range(past))]
        x = multistep_update(algorithm, solver_type, levels, known)
        draws = algorithm.startswith("sde")
        rows.call(timesteps[step], alpha, sigma * alpha, step, x, push=now, draws=draws)
    return rows.table(sigmas)


def same(sigma: float, other: float) -> bool:
    """Whether single precision can hardly tell two levels apart: rounded grids repeat themselves,
    and some end on the last σ once more. Such a step goes nowhere, and has no slope."""
    return abs(sigma - other) <= 2e-7 * sigma


def usable(sigmas: np.ndarray, step: int, past: int) -> int:
    """How many of the `past` earlier levels differ, one after the other, from their successors."""
    for k in range(past):
        if same(sigmas[step - k], sigmas[step - k - 1]):
            return k
    return past


def final_orders(
    config: DPMMultistepConfig | DPMInverseConfig, count: int, zero: bool
) -> list[int]:
    """Highest order allowed at each step: low near the end of short runs, 1 on the way to σ = 0."""
    orders = [config.solver_order] * count
    short = config.lower_order_final and count < 15
    if short and count > 1:
        orders[-2] = min(orders[-2], 2)
    if short or config.euler_at_final or zero:
        orders[-1] = 1
    return orders


def dpm_multistep_table(
    schedule: NoiseSchedule,
    config: DPMMultistepConfig,
    steps: int | None,
    *,
    timesteps: np.ndarray | None = None,
    begin: int = 0,
) -> Table:
    whole = config.beta_schedule != "squaredcos_cap_v2"
    rounded = ("use_karras_sigmas", "use_lu_lambdas") if whole else ()
    t, sigmas = lambda_grid(schedule, config, steps, timesteps, rounded=rounded)
    zero = config.final_sigmas_type == "zero"
    sigmas = np.append(sigmas, 0.0 if zero else schedule.sigmas[0])
    rows = Rows(config.prediction_type, config.clip)
    orders = final_orders(config, len(t), zero)
    return multistep(t, sigmas, rows, config.algorithm_type, config.solver_type, orders, begin)


def dpm_inverse_table(
    schedule: NoiseSchedule, config: DPMInverseConfig, steps: int | None, *, begin: int = 0
) -> Table:
    """Upwards. Timesteps that a rounded grid repeats are visited once."""
    last = len(schedule) - int(np.searchsorted(schedule.lambdas[::-1], clipped_lambda(config)))
    if config.grid() is None:
        t = _rising(len(schedule), config, steps, last)
        sigmas = sigmas_at(schedule, t)
        top = schedule.sigmas[last - 1]
    else:
        t, sigmas = lambda_grid(schedule, config, steps, rising=True)
        top = sigmas[-1]
    if config.use_karras_sigmas or config.grid() is None:
        t, first = np.unique(t, return_index=True)
        sigmas = sigmas[first]
    sigmas = np.append(sigmas, top)
    rows = Rows(config.prediction_type, config.clip)
    orders = final_orders(config, len(t), zero=False)
    return multistep(t, sigmas, rows, config.algorithm_type, config.solver_type, orders, begin)


def _rising(train: int, config: DPMInverseConfig, steps: int | None, last: int) -> np.ndarray:
    count = check_steps(steps)
    spacing, offset = config.timestep_spacing, config.steps_offset
    if spacing == "trailing":
        return spaced(train, count, spacing, last=last)[::-1]
    falling = spaced(train, count, spacing, offset, extra=1, last=last)
    return np.append(offset if spacing == "leading" else 0, falling[::-1])[:count]


def dpm_singlestep_table(
    schedule: NoiseSchedule,
    config: DPMSinglestepConfig,
    steps: int | None,
    *,
    timesteps: np.ndarray | None = None,
    begin: int = 0,
) -> Table:
    t, sigmas = lambda_grid(schedule, config, steps, timesteps)
    zero = config.final_sigmas_type == "zero"
    sigmas = np.append(sigmas, 0.0 if zero else schedule.sigmas[0])
    rows = Rows(config.prediction_type, config.clip)
    orders = singlestep_orders(config.solver_order, len(t), config.lower_order_final, zero)
    algorithm = config.algorithm_type
    for step in range(begin, len(t)):
        alpha = 1 / sqrt(sigmas[step] ** 2 + 1)
        sigma = sigmas[step] * alpha
        now = answer(rows, algorithm, alpha, sigma)
        order = min(orders[step], step - begin + 1)
        levels = [float(each) for each in sigmas[step - order + 1 : step + 2]]
        known = [now, *({f"h{k + 1}": 1.0} for k in range(order - 1))]
        x = singlestep_update(algorithm, config.solver_type, levels, known)
        saved = {"x": 1.0} if order == 1 else {"saved": 1.0}
        draws = algorithm.startswith("sde")
        rows.call(t[step], alpha, sigma, step, x, saved=saved, push=now, draws=draws)
    return rows.table(sigmas)


def singlestep_orders(order: int, steps: int, lower_order_final: bool, zero: bool) -> list[int]:
    """1, 2, 1, 2, ... or 1, 2, 3, 1, 2, 3, ...; a group that does not fit is replaced by lower ones
    when `lower_order_final`, when it must be, and on the way to σ = 0, where only order 1 works."""
    group = list(range(1, order + 1))
    orders = (group * (steps // order + 1))[:steps]
    if (lower_order_final or zero) and steps % order == 0 and order > 1:
        orders[-order:] = {2: [1, 1], 3: [1, 2, 1]}[order]
    if zero:
        orders[-1] = 1
    return orders
