"""UniPC (Zhao et al. 2023, "UniPC: A Unified Predictor-Corrector Framework")."""

from __future__ import annotations

from collections.abc import Sequence
from math import expm1, factorial, sqrt

import numpy as np

from underdraw.solvers.configs import UniPCConfig
from underdraw.solvers.dpm_solver import half_log_snr, same, usable
from underdraw.solvers.schedule import NoiseSchedule
from underdraw.solvers.sigmas import lambda_grid
from underdraw.solvers.table import Rows, Table
from underdraw.solvers.terms import combine

Terms = dict[str, float]


def update(
    levels: Sequence[float],
    known: Sequence[Terms],
    corrected: Terms | None,
    origin: str,
    predict_x0: bool,
    solver_type: str,
) -> Terms:
    """UniP (algorithm 2) from `levels[-2]` to `levels[-1]`; UniC (algorithm 1) with `corrected`,
    the answer at the end.

    `known` holds the answers at the levels before the last, newest first; `origin` is the slot of
    the latents at `levels[-2]`. A step to σ = 0 must be of order 1.
    """
    end, start = levels[-1], levels[-2]
    if same(start, end):
        return {origin: 1.0}
    alpha_t, alpha_s = 1 / sqrt(end**2 + 1), 1 / sqrt(start**2 + 1)
    h = half_log_snr(end) - half_log_snr(start)
    hh = -h if predict_x0 else h
    if predict_x0:
        stay, size = end * alpha_t / (start * alpha_s), alpha_t
        first = alpha_t * (1 - end / start)  # -size * (e^hh - 1), also where h is infinite
    else:
        stay, size = alpha_t / alpha_s, end * alpha_t
        first = -alpha_t * (start - end)
    m0, order = known[0], len(known)
    parts = [(stay, {origin: 1.0}), (first, m0)]
    if order > 1 or corrected is not None:
        b_h = hh if solver_type == "bh1" else expm1(hh)
        r = [
            (half_log_snr(level) - half_log_snr(start)) / h
            for level in levels[-3 : -2 - order : -1]
        ]
        rho = _rho([*r, 1.0], hh, b_h, order, corrected is not None)
        for weight, ratio, m in zip(rho, r, known[1:], strict=False):
            change = combine((1 / ratio, m), (-1 / ratio, m0))
            parts.append((-size * b_h * weight, change))
        if corrected is not None:
            parts.append((-size * b_h * rho[-1], combine((1.0, corrected), (-1.0, m0))))
    return combine(*parts)


def _rho(r: list[float], hh: float, b_h: float, order: int, corrects: bool) -> list[float]:
    """Weights that solve R ρ = b (eqs. 11 and 13); 1/2 where one weight is left (appendix F)."""
    unknowns = order if corrects else order - 1
    if unknowns == 1:
        return [0.5]
    phi = expm1(hh) / hh - 1
    b = []
    for k in range(1, order + 1):
        b.append(phi * factorial(k) / b_h)
        phi = phi / hh - 1 / factorial(k + 1)
    matrix = np.array([[ratio**k for ratio in r] for k in range(order)])
    return np.linalg.solve(matrix[:unknowns, :unknowns], b[:unknowns]).tolist()


def unipc(
    timesteps: np.ndarray,
    sigmas: np.ndarray,
    rows: Rows,
    order: int,
    predict_x0: bool = True,
    solver_type: str = "bh2",
    lower_order_final: bool = True,
    disable_corrector: Sequence[int] = (),
    begin: int = 0,
) -> Table:
    """Every call first corrects the latents with its answer, from the saved latents of the call
    before, then predicts the next ones from what it corrected."""
    count, previous_order = len(timesteps), 0
    for step in range(begin, count):
        sigma = float(sigmas[step])
        alpha = 1 / sqrt(sigma**2 + 1)
        now = {"clean": 1.0} if predict_x0 else {"eps": 1.0}
        here: Terms = {"x": 1.0}
        if step > begin and step - 1 not in disable_corrector:
            levels = [float(each) for each in sigmas[step - previous_order : step + 1]]
            past = [{f"h{k}": 1.0} for k in range(1, previous_order + 1)]
            here = update(levels, past, now, "saved", predict_x0, solver_type)
        highest = min(order, count - step) if lower_order_final else order
        highest = 1 if sigmas[step + 1] == 0 else min(highest, step - begin + 1)
        previous_order = 1 + usable(sigmas, step, highest - 1)
        levels = [float(each) for each in sigmas[step + 1 - previous_order : step + 2]]
        known = [now, *({f"h{k}": 1.0} for k in range(1, previous_order))]
        ahead = update(levels, known, None, "here", predict_x0, solver_type)
        x = combine((ahead.pop("here"), here), (1.0, ahead))
        rows.call(timesteps[step], alpha, sigma * alpha, step, x, saved=here, push=now)
    return rows.table(sigmas)


def unipc_table(
    schedule: NoiseSchedule, config: UniPCConfig, steps: int | None, *, begin: int = 0
) -> Table:
    t, sigmas = lambda_grid(schedule, config, steps)
    low = schedule.sigmas[0] if config.grid() is None else sigmas[-1]
    sigmas = np.append(sigmas, 0.0 if config.final_sigmas_type == "zero" else low)
    rows = Rows(config.prediction_type, config.clip if config.predict_x0 else None)
    return unipc(
        t,
        sigmas,
        rows,
        config.solver_order,
        config.predict_x0,
        config.solver_type,
        config.lower_order_final,
        config.disable_corrector,
        begin,
    )
