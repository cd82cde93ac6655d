"""One batch whose images stand at different rows, of different solvers too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from underdraw.errors import InputError
from underdraw.solvers.table import Row, State, Terms


def stack_rows(backend: Any, rows: Sequence[Row], like: Any = None) -> Row:
    """Row of a batch: image `i` takes `rows[i]`. Factors become arrays `(batch, 1, 1, 1)` of
    `backend` (`backends.get(...)`), and only slots that some image needs are added up.

    `timestep` and `step` become arrays `(batch,)`; `like` gives dtype and device on PyTorch.
    """
    if not rows:
        raise InputError("rows is empty; allowed: one row per image")
    if all(row is rows[0] for row in rows):
        return rows[0]
    made = _Maker(backend, like)
    clips = sorted({clip for row in rows for clip, _ in row.clips}, key=repr)
    shares = [(clip, [any(c == clip for c, _ in row.clips) for row in rows]) for clip in clips]
    pushes = [row.pushes for row in rows]
    return Row(
        timestep=backend.array(np.array([row.timestep for row in rows], dtype=np.float32)),
        step=np.array([row.step for row in rows]),  # type: ignore[arg-type]
        input_scale=made([row.input_scale for row in rows]),
        alpha=made([row.alpha for row in rows]),
        sigma=made([row.sigma for row in rows]),
        read_clean=made.terms([row.read_clean for row in rows]),
        clips=tuple((clip, None if all(has) else made(has)) for clip, has in shares),
        x=made.terms([row.x for row in rows]),
        saved=made.terms([row.saved for row in rows]),
        accumulator=made.terms([row.accumulator for row in rows]),
        pushed=made.terms([row.pushed for row in rows]),
        pushes=pushes[0] if len(set(pushes)) == 1 else made(pushes),
        draws=any(row.draws for row in rows),
    )


def stack_states(backend: Any, states: Sequence[State]) -> State:
    """One state for the batch from a state per image, or per group of images. What some do not
    remember is 0 for them; their rows do not read it."""
    nn = backend.operations
    depth = max(len(state.history) for state in states)
    histories = [[*state.history, *(None,) * (depth - len(state.history))] for state in states]

    def join(parts: Sequence[Any]) -> Any:
        if all(part is None for part in parts):
            return None
        pairs = zip(parts, states, strict=True)
        return nn.concat([state.x * 0 if part is None else part for part, state in pairs], 0)

    return State(
        join([state.x for state in states]),
        join([state.saved for state in states]),
        join([state.accumulator for state in states]),
        tuple(join(parts) for parts in zip(*histories, strict=True)),
    )


def split_state(state: State, sizes: Sequence[int]) -> list[State]:
    """The states of consecutive groups of images, so that one may leave the batch."""
    starts = np.cumsum([0, *sizes]).tolist()

    def part(array: Any, i: int) -> Any:
        return None if array is None else array[starts[i] : starts[i + 1]]

    return [
        State(
            part(state.x, i),
            part(state.saved, i),
            part(state.accumulator, i),
            tuple(part(each, i) for each in state.history),
        )
        for i in range(len(sizes))
    ]


class _Maker:
    def __init__(self, backend: Any, like: Any):
        self.backend = backend
        self.place = {}
        if like is not None and backend.operations.name == "torch":
            self.place = {"dtype": like.dtype, "device": like.device}

    def __call__(self, values: Sequence[Any]) -> Any:
        numbers = np.array(values, dtype=np.float32).reshape(-1, 1, 1, 1)
        return self.backend.array(numbers, **self.place)

    def terms(self, rows: Sequence[Terms]) -> Terms:
        slots = sorted({slot for terms in rows for slot, _ in terms})
        found = [dict(terms) for terms in rows]
        return tuple((slot, self([each.get(slot, 0.0) for each in found])) for slot in slots)
