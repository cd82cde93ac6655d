"""The denoising loop every pipeline runs: a generator of questions and steps.

It asks: a `Question` is a call of the UNet that an engine answers; the answer is sent back. After
each model call it hands out a `Step`, to which consumers (progress bars, callbacks, previews,
streams) may send back a `Change`. Closing the generator ends the run between two calls.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from underdraw.backends.contract import Array
from underdraw.controls.control import (
    Asked,
    Call,
    Control,
    Predicted,
    joined,
    kept,
    kept_sites,
)
from underdraw.controls.run import Run, of_rows
from underdraw.engines.engine import Question
from underdraw.errors import NonFiniteError
from underdraw.networks.sites import NO_SITES, Sites
from underdraw.networks.unet import Inputs
from underdraw.sampling.denoiser import Denoiser
from underdraw.sampling.steps import BROKEN, Step
from underdraw.sampling.windows import fits, windows
from underdraw.solvers.table import State


def sample(
    run: Run,
    latents: Array,
    controls: Sequence[Control] = (),
    begin: Callable[[], None] | None = None,
    denoise: Denoiser | None = None,
    together: bool = False,
) -> Generator[Question | Step, Any, Array]:
    """Run `run.solver` from `latents` to the end; returns the last latents.

    Args:
        latents: `(batch, channels, height, width)` at the solver's first noise level.
        controls: act in the order given.
        begin: called when the controls are ready, before the UNet is used.
        denoise: of this run, where somebody else looks at its context, too.
        together: whether many calls may be asked for at once (`windows`); where that does not fit
            the run, it goes call by call.

    Raises:
        InputError, InputTypeError: a control does not fit the run, and was not asked before.
        NonFiniteError: the first call gave NaN or infinity, as broken weights do; of many calls at
            once, a later one, too.
    """
    nn, framework, solver, count = run.nn, run.framework, run.solver, run.calls
    state = State(nn.float32(latents))
    run.latents, acting = state.x, joined(controls) if controls else []
    denoise = Denoiser(run) if denoise is None else denoise
    if not run.checked:
        for control in acting:
            control.check(run.planned)
    with framework.no_grad():
        carries = [control.prepare(run) for control in acting]
    answers: dict[int, tuple[bool, Sites]] | None = {} if any(c.reuses for c in acting) else None
    if begin is not None:
        begin()
    active, done = None, 0
    if together and fits(run, acting):
        state, done = yield from windows(run, acting, carries, denoise, state.x)
    for index in range(done, count):
        with framework.no_grad():
            call, wishes = _call(run, denoise, acting, carries, index)
            if answers is not None:
                before, both = active, zip(acting, carries, strict=True)
                active = [control.active(carry, state.x, call) for control, carry in both]
                call = replace(call, whole=active != before)
            state, sites = _before(nn, acting, carries, state, call)
            seen = state.x
            scaled = solver.model_input(index, seen)
            question = denoise.question(scaled, index, sites, call.guided)
            question = _during(run, denoise, acting, carries, question, call, answers)
        answer = yield question
        with framework.no_grad():
            output = denoise.prediction(answer, run.batch)
            output = _predicted(run, denoise, acting, carries, answer.sample, output, call, wishes)
            state = solver.advance(nn, index, state, output, run.draw)
            if index == 0 and not framework.is_finite(state.x):
                raise NonFiniteError(BROKEN)
            state = _after(nn, acting, carries, state, call, answer.extras)
        del question, answer
        change = yield Step(
            index, call.timestep, state.x, partial(solver.clean, nn, index, seen, output)
        )
        if change is not None:
            if change.latents is not None:
                state = state._replace(x=nn.float32(change.latents))
            if change.context is not None:
                denoise.set_context(change.context)
    return state.x


def _call(
    run: Run, denoise: Denoiser, acting: Sequence[Control], carries: list[Any], index: int
) -> tuple[Call, Sequence[bool] | None]:
    """Where a call stands, and which controls have it guided: it is where all of them say so; None
    where guidance itself is off."""
    call = Call(index, run.calls, run.solver.timestep(index), denoise.guides(run.batch))
    if not call.guided:
        return call, None
    both = zip(acting, carries, strict=True)
    wishes = [bool(control.guides(carry, call)) for control, carry in both]
    return (call if all(wishes) else replace(call, guided=False)), wishes


def _before(
    nn: Any, acting: Sequence[Control], carries: list[Any], state: State, call: Call
) -> tuple[State, Sites]:
    """The latents of a call as controls leave them, and what acts inside it."""
    sites = NO_SITES
    for i, control in enumerate(acting):
        told = control.before_call(nn, carries[i], state.x, call)
        x, acts, carries[i] = kept(nn, control, "before_call", told, 3, state.x)
        state = state if x is state.x else state._replace(x=x)
        if acts is not NO_SITES:
            acts = acts.owned(lambda _, number=i: number)
            sites = acts if sites is NO_SITES else sites + acts
    return state, sites


def _during(
    run: Run,
    denoise: Denoiser,
    acting: Sequence[Control],
    carries: list[Any],
    question: Question,
    call: Call,
    answers: dict[int, tuple[bool, Sites]] | None,
) -> Question:
    """The question with what controls add that have networks of their own. `answers` holds the last
    one of each, for calls that are computed in part; None where there are no such calls."""
    inputs = Inputs(*question.inputs)
    in_part = bool(inputs.sites.features)
    for i, control in enumerate(acting):
        if type(control).during_call is Control.during_call:
            continue
        known = answers.get(i) if answers is not None and in_part else None
        if known is not None and known[0] == call.guided:
            inputs = inputs._replace(sites=inputs.sites + known[1])
            continue
        context, replaced = of_rows(denoise.context, inputs.x.shape[0]), None
        for change in inputs.sites.context:
            context = replaced = change(run.nn, context)
        ahead = partial(denoise.ahead, call.index, replaced)
        asked = Asked(inputs.x, call.timestep, context, ahead, run.ask, call.guided)
        told = control.during_call(run.nn, carries[i], asked, call)
        acts, carries[i] = kept_sites(control, told)
        acts = acts.owned(lambda _, number=i: number)
        inputs = inputs._replace(sites=inputs.sites + acts)
        if answers is not None:
            answers[i] = call.guided, acts
    return replace(question, inputs=inputs)


def _predicted(
    run: Run,
    denoise: Denoiser,
    acting: Sequence[Control],
    carries: list[Any],
    sample: Array,
    output: Array,
    call: Call,
    wishes: Sequence[bool] | None,
) -> Array:
    """The prediction of a call as controls leave it; `wishes` as of `_call`."""
    for i, control in enumerate(acting):
        if type(control).predict is Control.predict:
            continue
        out = run.nn.float32(sample)
        rest = out.shape[0] - run.batch
        unconditional = out[:rest] if rest else None
        wanted = wishes is not None and all(wish for j, wish in enumerate(wishes) if j != i)
        predicted = Predicted(output, out[rest:], unconditional, denoise.guided, wanted)
        told = control.predict(run.nn, carries[i], predicted, call)
        output, carries[i] = kept(run.nn, control, "predict", told, 2, output)
    return output


def _after(
    nn: Any,
    acting: Sequence[Control],
    carries: list[Any],
    state: State,
    call: Call,
    extras: Sequence[Any],
) -> State:
    """The latents after a step as controls leave them."""
    for i, control in enumerate(acting):
        own = tuple(extra for extra in extras if extra.owner == i) if extras else ()
        told = control.after_step(
            nn, carries[i], state.x, replace(call, extras=own) if own else call
        )
        x, carries[i] = kept(nn, control, "after_step", told, 2, state.x)
        state = state if x is state.x else state._replace(x=x)
    return state
