"""PNDM and PLMS (Liu et al. 2022, "Pseudo Numerical Methods for Diffusion Models on Manifolds")."""

from __future__ import annotations

from itertools import pairwise
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


def plms(transfer: _Transfer, times: list[int], stride: int, begin: int = 0) -> None:
    """Pseudo linear multistep alone. The first step is taken twice, the second time with the mean
    of the outputs at both ends (`skip_prk_steps`). `times` holds the second timestep twice.

    A run that begins later takes its own first two calls so, as the familiar class, which counts
    calls; having no timestep twice, it asks for one step more than it has come to.
    """
    output, mean = {"output": 1.0}, {"output": 0.5, "h1": 0.5}
    for call in range(begin, len(times)):
        counter, t, step = call - begin, times[call], max(call - 1, 0)
        if counter == 0:
            transfer.call(t, step, t, t - stride, output, "x", saved={"x": 1.0}, push=output)
        elif counter == 1:
            transfer.call(t, step, t + stride, t, mean, "saved")
        else:
            outputs = ADAMS_BASHFORTH[min(counter - 1, 3)]
            transfer.call(t, step, t, t - stride, outputs, "x", push=output)


def prk(transfer: _Transfer, times: list[int], stride: int, begin: int = 0) -> None:
    """Three pseudo Runge-Kutta steps of four calls each (eq. 13), then linear multistep. Latents
    are taken to lie where a whole run has them at that count of calls, also if it began later."""
    output = {"output": 1.0}
    for call in range(begin, len(times)):
        counter, asked = call - begin, times[call]
        step = call // 4 if call < 12 else call - 9
        if counter >= 12:
            outputs = ADAMS_BASHFORTH[3]
            transfer.call(asked, step, asked, asked - stride, outputs, "x", push=output)
            continue
        stage = counter % 4
        total = {"output": (1 / 6, 1 / 3, 1 / 3, 1 / 6)[stage]}
        if stage > 0:
            total["accumulator"] = 1.0
        transfer.call(
            asked,
            step,
            times[counter - stage],
            asked - (0 if counter % 2 else stride // 2),
            total if stage == 3 else output,
            "x" if stage == 0 else "saved",
            saved=({"x": 1.0} if stage == 0 else {"saved": 1.0}) if stage < 3 else None,
            accumulator=total if stage < 3 else None,
            push=output if stage == 0 else None,
        )


def pndm_table(schedule: NoiseSchedule, config: PNDMConfig, steps: int, *, begin: int = 0) -> Table:
    train = len(schedule)
    steps = check_steps(steps, train)
    ts = [int(t) for t in spaced(train, steps, config.timestep_spacing, config.steps_offset)]
    stride = train // steps
    final = 1.0 if config.set_alpha_to_one else schedule.alphas_cumprod[0]
    transfer = _Transfer(schedule, final, config.prediction_type)
    if config.skip_prk_steps:
        plms(transfer, [*ts[:2], *ts[1:]], stride, begin)
        return transfer.rows.table()
    if steps < 4:
        raise InputError(
            f"num_inference_steps={steps} must be at least 4 with skip_prk_steps=False"
        )
    half = stride // 2
    times: list[int] = []
    for t, end in pairwise(ts[:4]):
        times += [t, end + half, end + half, end]
    prk(transfer, [*times, *ts[3:]], stride, begin)
    return transfer.rows.table()
