"""PNDM and PLMS (Liu et al. 2022, "Pseudo Numerical Methods for Diffusion Models on Manifolds")."""

from __future__ import annotations

from math import sqrt
from typing import Any

from underdraw.errors import InputError
from underdraw.solvers.configs import PNDMConfig
from underdraw.solvers.schedule import NoiseSchedule
from underdraw.solvers.table import Rows, Table, check_steps, read_noise, spaced

ADAMS_BASHFORTH = (
    {"output": 1.0},
    {"output": 3 / 2, "h1": -1 / 2},
    {"output": 23 / 12, "h1": -16 / 12, "h2": 5 / 12},
    {"output": 55 / 24, "h1": -59 / 24, "h2": 37 / 24, "h3": -9 / 24},
)
"""Eq. 12 and its lower orders, by the number of earlier outputs known."""


class _Transfer:
    """φ of eq. 11 as a row: from the level of `t` to that of `s`, along a sum of *raw* outputs.

    Outputs of several levels are added as they come and read as noise afterwards, at `t`; so the
    prediction type enters here and not in `Rows`.
    """

    def __init__(self, schedule: NoiseSchedule, final_alpha: float, prediction_type: str):
        self.alphas = schedule.alphas_cumprod
        self.final = final_alpha
        self.prediction_type = prediction_type
        self.rows = Rows(prediction_type)

    def level(self, t: int) -> float:
        return self.alphas[t] if t >= 0 else self.final

    def call(
        self,
        asked: int,
        step: int,
        t: int,
        s: int,
        outputs: dict[str, float],
        origin: str,
        **others: Any,
    ) -> None:
        """`asked` is the network's time, `origin` the slot that holds the latents at level `t`."""
        a_t, a_s = self.level(t), self.level(s)
        along = -(a_s - a_t) / (a_t * sqrt(1 - a_s) + sqrt(a_t * (1 - a_t) * a_s))
        from_x, from_output = read_noise(self.prediction_type, sqrt(a_t), sqrt(1 - a_t))
        x = {name: along * from_output * factor for name, factor in outputs.items()}
        x[origin] = sqrt(a_s / a_t) + along * from_x
        alpha = self.level(asked)
        self.rows.call(asked, sqrt(alpha), sqrt(1 - alpha), step, x, **others)

    def wait(self, t: int, step: int) -> None:
        alpha = self.level(t)
        self.rows.wait(t, sqrt(alpha), sqrt(1 - alpha), step, 1.0)


def plms(transfer: _Transfer, ts: list[int], stride: int, begin: int = 0) -> None:
    """Pseudo linear multistep alone. The first step is taken twice, the second time with the mean
    of the outputs at both ends (`skip_prk_steps`); a run that begins later takes it once."""
    output = {"output": 1.0}
    if begin == 0:
        transfer.call(ts[0], 0, ts[0], ts[0] - stride, output, "x", saved={"x": 1.0}, push=output)
        if len(ts) > 1:
            mean = {"output": 0.5, "h1": 0.5}
            transfer.call(ts[1], 0, ts[1] + stride, ts[1], mean, "saved")
    elif begin == 1:
        transfer.wait(ts[1], 0)
    first = max(begin - 1, 0)
    for step in range(max(first, 1), len(ts)):
        known = min(step - first if begin > 1 else step - (begin == 1), 3)
        outputs = ADAMS_BASHFORTH[known]
        transfer.call(ts[step], step, ts[step], ts[step] - stride, outputs, "x", push=output)


def prk(transfer: _Transfer, ts: list[int], half: int, begin: int = 0) -> int:
    """Three pseudo Runge-Kutta steps of four calls each (eq. 13). Returns how many were begun."""
    taken = 0
    for step in range(3):
        t, middle, end = ts[step], ts[step + 1] + half, ts[step + 1]
        stages = ((t, t - half, 1 / 6), (middle, middle, 1 / 3), (middle, end, 1 / 3))
        stages = (*stages, (end, end, 1 / 6))
        for stage, (asked, reached, weight) in enumerate(stages):
            if 4 * step + stage < begin:
                continue
            if 4 * step < begin:
                transfer.wait(asked, step)
                continue
            total = {"output": weight} if stage == 0 else {"output": weight, "accumulator": 1.0}
            keep = {"x": 1.0} if stage == 0 else {"saved": 1.0}
            transfer.call(
                asked,
                step,
                t,
                reached,
                total if stage == 3 else {"output": 1.0},
                "x" if stage == 0 else "saved",
                saved=keep if stage < 3 else None,
                accumulator=total if stage < 3 else None,
                push={"output": 1.0} if stage == 0 else None,
            )
        taken += 4 * step >= begin
    return taken


def pndm_table(schedule: NoiseSchedule, config: PNDMConfig, steps: int, *, begin: int = 0) -> Table:
    train = len(schedule)
    steps = check_steps(steps, train)
    ts = [int(t) for t in spaced(train, steps, config.timestep_spacing, config.steps_offset)]
    stride = train // steps
    final = 1.0 if config.set_alpha_to_one else schedule.alphas_cumprod[0]
    transfer = _Transfer(schedule, final, config.prediction_type)
    if config.skip_prk_steps:
        plms(transfer, ts, stride, begin)
        return transfer.rows.table()
    if steps < 4:
        raise InputError(
            f"num_inference_steps={steps} must be at least 4 with skip_prk_steps=False"
        )
    known = prk(transfer, ts, stride // 2, begin)
    for step in range(max(3, begin - 9), steps):
        outputs = ADAMS_BASHFORTH[min(known, 3)]
        transfer.call(
            ts[step], step, ts[step], ts[step] - stride, outputs, "x", push={"output": 1.0}
        )
        known += 1
    return transfer.rows.table()
