"""A table as arrays: every solver of as many calls is then one compiled program.

`table.Row` leaves out what is 0; here each call adds up all slots by a matrix, so that what differs
between solvers is numbers. Rows and state are those of `solvers.table`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from underdraw.backends.contract import Array
from underdraw.errors import InputError
from underdraw.solvers.clipping import Clip, clipped
from underdraw.solvers.table import CLEAN, Table

HISTORY = 4
"""Earlier pushes that a state remembers."""


@dataclass(frozen=True, eq=False)
class DenseTable:
    """The calls of a run, float32 on a backend. Beside them stands the number of the first one: a
    run that begins in the middle has rows in front that are never used."""

    timesteps: Array
    """`(calls,)`"""
    scales: Array
    """By which latents are multiplied for the network, `(calls,)`."""
    read_clean: Array
    """`(calls, 2)`, factors of latents and output."""
    weights: Array
    """`(calls, 4, 10)`: `RESULTS` from `SLOTS`."""
    pushes: Array
    """`(calls,)`, 1 where the history takes something up."""
    clip: Clip | None = field(default=None, metadata={"static": True})

    def __len__(self) -> int:
        return self.timesteps.shape[0]


class Memory(NamedTuple):
    """What is carried from call to call, each `(images, channels, height, width)`, float32."""

    x: Array
    saved: Array
    accumulator: Array
    history: tuple[Array, ...]
    seen: Array
    """The latents of the last call, before it."""
    output: Array
    """What the network answered to them."""


def remember(x: Array) -> Memory:
    """The state in which a run begins."""
    # Arrays of their own, for a compiled loop takes over the memory of each.
    return Memory(x + 0, x * 0, x * 0, tuple(x * 0 for _ in range(HISTORY)), x * 0, x * 0)


def dense(
    table: Table, array: Callable[..., Array], calls: int | None = None
) -> tuple[DenseTable, int]:
    """The arrays of a table, and the number of its first call.

    Args:
        array: makes an array of the backend.
        calls: how many there are together with those in front that are not used; by default those
            of the table.

    Raises:
        InputError: the table has more.
    """
    front = 0 if calls is None else calls - len(table)
    if front < 0:
        raise InputError(f"calls={calls}; the table has {len(table)}")

    def padded(values: Any) -> Array:
        values = np.asarray(values, np.float32)
        rows = [(front, 0), *((0, 0) for _ in values.shape[1:])]
        return array(np.pad(values, rows))

    return _arrays(table, padded), front


def part(table: Table, array: Callable[..., Array], first: int, width: int) -> DenseTable:
    """`width` calls of a table from `first` on; behind its last one stand rows that are never used.
    Whether anything is clipped is told of the whole table, so that all parts are alike."""

    def of(values: Any) -> Array:
        values = np.asarray(values[first : first + width], np.float32)
        rows = [(0, width - len(values)), *((0, 0) for _ in values.shape[1:])]
        return array(np.pad(values, rows))

    return _arrays(table, of)


def _arrays(table: Table, of: Callable[[Any], Array]) -> DenseTable:
    columns = (table.timesteps, table.input_scale, table.read_clean, table.weights, table.pushes)
    uses = table.clip is not None and bool(table.weights[:, :, CLEAN].any())
    return DenseTable(*map(of, columns), clip=table.clip if uses else None)


def advance(
    nn: Any, table: DenseTable, call: Any, state: Memory, output: Array, noise: Array | None = None
) -> Memory:
    """The state after a call, whose number may be traced; `output` and `noise` as in
    `solvers.table.advance`, in float32."""
    weights = table.weights[call]
    slots: list[Any] = [state.x, state.saved, output, None, *state.history]
    slots += [state.accumulator, noise]
    if table.clip is not None:
        read = table.read_clean[call]
        slots[CLEAN] = clipped(nn, ((table.clip, None),), state.x * read[0] + output * read[1])
    there = [slot for slot, part in enumerate(slots) if part is not None]
    columns = nn.concat([weights[:, slot : slot + 1] for slot in there], 1)
    parts = nn.concat([slots[slot].reshape(1, -1) for slot in there], 0)
    x, saved, accumulator, pushed = (
        total.reshape(state.x.shape) for total in nn.matmul(columns, parts)
    )
    history = (pushed, *state.history[:-1])
    kept = table.pushes[call] > 0
    history = tuple(
        nn.where(kept, new, old) for new, old in zip(history, state.history, strict=True)
    )
    return Memory(x, saved, accumulator, history, state.x, output)
