"""Calls of a run made several at a time: an engine that compiles whole loops is asked for them.

`sampling.whole` is one program for up to `WIDTH` calls between bounds that are numbers, so runs of
any number of steps share it, and whoever looks at each step gets it by bounds one apart. Between
two questions the host is free: bars, callbacks, previews and interruptions work as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from underdraw.backends.contract import Array
from underdraw.backends.tree import flatten, map_arrays
from underdraw.controls.control import Control
from underdraw.controls.run import Run
from underdraw.engines.engine import DECLINED, Question
from underdraw.errors import NonFiniteError
from underdraw.networks.sites import Sites, check
from underdraw.sampling.denoiser import Denoiser
from underdraw.sampling.steps import BROKEN, LATER, Step
from underdraw.sampling.told import Moment, Told
from underdraw.sampling.whole import WHOLE, Acts, ByCall, Known, Steering
from underdraw.solvers.dense import Memory, part, remember
from underdraw.solvers.table import State, Table

WIDTH = 16
"""Calls of one question at most."""
PATIENCE = 0.5
"""Seconds, about, after which the host looks again where nobody wants to see each step."""


class Reached(NamedTuple):
    """How far a run has come."""

    state: State
    calls: int


def asked_together(run: Run) -> bool:
    """Whether the run's engine compiles whole loops, on a framework that has them."""
    return getattr(run.engine, "loops", False) and hasattr(run.framework, "repeated")


def fits(run: Run, acting: Sequence[Control]) -> bool:
    """Whether many calls of the run can be asked for at once: its solver is a table, and controls
    look at no latents."""
    return isinstance(run.solver, Table) and all(control.steady() for control in acting)


def windows(
    run: Run, acting: Sequence[Control], carries: Sequence[Any], denoise: Denoiser, x: Array
) -> Generator[Question | Step, Any, Reached]:
    """Steps of a run from latents `x`, float32: each, or where `run.watched` is off, some.

    The run has not come to its end where the engine declines, or where what acts in a call is no
    data.

    Raises:
        NonFiniteError: the latents became NaN or infinite.
    """
    nn, framework, solver = run.nn, run.framework, run.solver
    told, divided = Told(run, acting, carries, x), getattr(framework, "divided", _as_it_is)
    state, done, speed = remember(divided(x)), 0, _Speed()
    while done < run.calls:
        told.begin(done, denoise.guides(run.batch))
        if told.odd(done):
            break
        window, before = _window(run, denoise, told, done), state
        for alter in told.at(done).before:
            x = alter(nn, state.x)
            check(alter, "before_call", x, state.x.shape)
            state = state._replace(x=divided(nn.float32(x) + 0))
        while done < window.last:
            count = min(1 if run.watched else speed.calls, window.last - done)
            bounds = np.array([done - window.first, done - window.first + count], np.int32)
            place = getattr(denoise.context, "device", None)
            drawn = _drawn(run, done, count)
            steering = _noised(nn, window, drawn)
            inputs = (state, framework.array(bounds, device=place), steering)
            begun = perf_counter()
            answer = yield Question(WHOLE, run.model, inputs, nn)
            if answer is DECLINED:
                _put_back(run, drawn)
                return Reached(_state(before if done == window.first else state), done)
            state, done = map_arrays(divided, answer), done + count
            if not framework.is_finite(state.x):
                raise NonFiniteError(BROKEN if done == count else LATER)
            speed.note(count, perf_counter() - begun)
            # What is handed out stays: a compiled loop takes over the memory of its state.
            seen, output = state.seen + 0, state.output + 0
            clean = partial(solver.clean, nn, done - 1, seen, output)
            guidance, rescale, shape = run.guidance, run.rescale, denoise.context.shape
            change = yield Step(done - 1, solver.timestep(done - 1), state.x + 0, clean)
            if change is not None and change.latents is not None:
                state = state._replace(x=divided(nn.float32(change.latents) + 0))
            if change is not None and change.context is not None:
                another = denoise.set_context(change.context)
                if another and done < window.last and denoise.context.shape == shape:
                    window = _reading(window, denoise, run.batch)
            same = run.guidance is guidance and run.rescale == rescale
            if not same or denoise.context.shape != shape:
                told.forget()
                break
    return Reached(_state(state), done)


def _as_it_is(x: Array) -> Array:
    return x


def _state(memory: Memory) -> State:
    return State(memory.x, memory.saved, memory.accumulator, memory.history)


def _drawn(run: Run, first: int, count: int) -> dict[int, Array]:
    """The noise of those of so many calls that take some. No more is drawn, for whoever ends or
    changes the run behind them may go on with the same generators."""
    draw, solver = run.draw, run.solver
    if draw is None:
        return {}
    return {i: run.nn.float32(draw()) for i in range(first, first + count) if solver.draws[i]}


def _put_back(run: Run, drawn: Mapping[int, Array]) -> None:
    """What was drawn for calls that were declined is theirs, however they will be made."""
    if drawn:
        run.draw = partial(next, chain(drawn.values(), _endless(run.draw)))


def _endless(draw: Callable[[], Array] | None) -> Iterator[Array]:
    while draw is not None:
        yield draw()


@dataclass
class _Speed:
    """How many calls there are to be in a question, so that the host looks now and then."""

    calls: int = 1

    def note(self, calls: int, seconds: float) -> None:
        """What so many of them took; the first time they were compiled as well."""
        self.calls = max(1, min(WIDTH, int(PATIENCE * calls / max(seconds, 1e-6))))


# -- one question's worth --------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class _Window:
    """Calls from `first` up to `last`, and what the loop goes by in them."""

    first: int
    last: int
    steering: Steering
    """Its noise is of no call yet."""
    guided: bool
    sites: Sites
    """All that act in its calls."""


def _window(run: Run, denoise: Denoiser, told: Told, first: int) -> _Window:
    nn, solver, images = run.nn, run.solver, run.batch
    moments = told.row(first)
    last = first + min(len(moments), WIDTH)
    # Behind the last call the rows of arrays repeat it, and are never used.
    places = [min(i, last - 1) for i in range(first, first + WIDTH)]
    sites = denoise.acting(moments[0].sites)
    guided = moments[0].guided
    context, keys = denoise.texts(images, guided, sites)
    times = denoise.times(places, context.shape[0], sites)
    array = partial(run.framework.array, device=getattr(context, "device", None))
    guidance = denoise.guidance if guided else None
    # Solvers that draw nothing get some, too, of which their rows take none: they then share a
    # program with those that do.
    none = nn.expand((told.like * 0)[None], (WIDTH, *told.like.shape))
    steering = Steering(
        part(solver, array, first, WIDTH),
        context,
        guidance,
        none,
        replace(run.sites, leaves=sites.leaves),
        by_call=_by_call(nn, first, told, moments, places),
        known=Known(keys, times),
    )
    return _Window(first, last, steering, guided, sites)


def _reading(window: _Window, denoise: Denoiser, images: int) -> _Window:
    """The same with the context that has come; nothing else of it depends on one."""
    context, keys = denoise.texts(images, window.guided, window.sites)
    assert window.steering.known is not None
    known = Known(keys, window.steering.known.times)
    return replace(window, steering=replace(window.steering, context=context, known=known))


def _noised(nn: Any, window: _Window, drawn: Mapping[int, Array]) -> Steering:
    """What calls of a window go by, with their noise."""
    if not drawn:
        return window.steering
    some = next(iter(drawn.values()))
    if len(drawn) == 1:
        noise = nn.expand(some[None], (WIDTH, *some.shape))
    else:  # other places are never looked at
        noise = _stacked(nn, [drawn.get(window.first + i, some) for i in range(WIDTH)])
    return replace(window.steering, noise=noise)


def _by_call(
    nn: Any, first: int, told: Told, moments: Sequence[Moment], places: Sequence[int]
) -> ByCall | None:
    """What controls do, call by call."""
    structure = moments[0].structure
    if all(one == NOTHING for one in structure.children):
        return None
    same, each = list[Any](), list[Any]()
    leaves = zip(*([*chain(*one.leaves)] for one in moments), strict=True)
    for values, varies in zip(leaves, told.differing(first), strict=True):
        chosen: Any = [values[i - first] for i in places]
        if varies:
            chosen = tuple(chosen) if isinstance(chosen[0], float) else _stacked(nn, chosen)
        each.append(chosen if varies else None)
        same.append(None if varies else values[0])
    return ByCall(structure, tuple(same), tuple(each))


NOTHING = flatten(Acts())[1]


def _stacked(nn: Any, arrays: Sequence[Array]) -> Array:
    """One array with an axis for calls in front."""
    return nn.concat([x[None] for x in arrays], 0)
