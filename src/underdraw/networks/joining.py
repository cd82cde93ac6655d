"""Calls of one UNet that several runs make, joined to a single call, and its answer taken apart.

Runs may stand at different steps of different solvers, attend to contexts of different lengths, be
guided or not, and have what acts inside their rows alone. Products and convolutions are computed
for all rows together; attention, where runs differ in it, for the rows of each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from underdraw.backends.contract import Array, Operations
from underdraw.backends.deltas import on_rows, together as deltas_together
from underdraw.networks.config import UNetConfig
from underdraw.networks.layers import SideBySide
from underdraw.networks.sites import (
    HOOKS,
    NO_SITES,
    BesideOnRows,
    ConvOnRows,
    Extra,
    JoinOnRows,
    OnRows,
    Sites,
)
from underdraw.networks.unet import Answer, Inputs

WRAPPERS: Mapping[str, type[OnRows]] = {"beside_cross_attention": BesideOnRows, "join": JoinOnRows}
"""How hooks of a site are kept to their rows, where not by `OnRows`."""


def may_join(a: Inputs, b: Inputs) -> bool:
    """Whether two calls can be one: latents of one size and dtype, both with keys and values and
    times that were computed ahead, and the same is known of both."""
    return (
        tuple(a.x.shape[1:]) == tuple(b.x.shape[1:])
        and a.x.dtype == b.x.dtype
        and a.sites.keys == b.sites.keys
        # Where hooks look at probabilities of one, keys would be all of them for both.
        and (a.sites.keys is None or not (a.sites.self_attention or b.sites.self_attention))
        and set(a.sites.features) == set(b.sites.features)
        and set(a.sites.attended) == set(b.sites.attended)
        and all(isinstance(part, Mapping) for part in (a.time, b.time, a.context, b.context))
    )


def join(nn: Operations, config: UNetConfig, calls: Sequence[Inputs]) -> Inputs:
    """One call for all rows. `context` and `model_input` hooks must have acted already."""
    rows = [call.x.shape[0] for call in calls]
    x = nn.concat([call.x for call in calls], 0)
    return Inputs(
        x,
        join_times(nn, [call.time for call in calls], rows),
        join_contexts(nn, [call.context for call in calls]),
        join_sites(nn, config, [call.sites for call in calls], rows),
    )


def split(answer: Answer, calls: Sequence[Inputs]) -> list[Answer]:
    """To each call its rows, and what its own hooks told."""
    answers, start = [], 0
    for number, call in enumerate(calls):
        stop = start + call.x.shape[0]
        told = tuple(
            Extra(extra.owner[1], extra.place, extra.value)
            for extra in answer.extras
            if extra.owner[0] == number
        )
        answers.append(Answer(answer.sample[start:stop], told))
        start = stop
    return answers


def join_times(nn: Operations, times: Sequence[Any], rows: Sequence[int]) -> dict[str, Array]:
    """What residual blocks make of the time, by place, a row for each row of the call."""
    return {
        place: nn.concat(
            [
                nn.expand(time[place], (count, *time[place].shape[1:]))
                for time, count in zip(times, rows, strict=True)
            ],
            0,
        )
        for place in times[0]
    }


def join_contexts(nn: Operations, contexts: Sequence[Any]) -> dict[str, Any]:
    """Keys and values by place: one array where all have as many tokens, else side by side."""
    joined: dict[str, Any] = {}
    for place in contexts[0]:
        parts = tuple(context[place] for context in contexts)
        if len({k.shape[2] for k, _ in parts}) == 1:
            keys, values = zip(*parts, strict=True)
            joined[place] = (nn.concat(keys, 0), nn.concat(values, 0))
        else:
            joined[place] = SideBySide(parts)
    return joined


def join_sites(
    nn: Operations, config: UNetConfig, each: Sequence[Sites], rows: Sequence[int]
) -> Sites:
    """What acts in the joined call: hooks on the rows of their run, residuals row by row."""
    if all(sites is NO_SITES for sites in each):
        return NO_SITES
    starts = [sum(rows[:i]) for i in range(len(rows))]
    owned = [sites.owned(lambda owner, n=number: (n, owner)) for number, sites in enumerate(each)]
    hooks: dict[str, Any] = {}
    for name in HOOKS:
        wrap = WRAPPERS.get(name, OnRows)
        acting = []
        for sites, start, count in zip(owned, starts, rows, strict=True):
            acting.extend(wrap(start, start + count, hook) for hook in getattr(sites, name))
        hooks[name] = together(nn, acting)
    conv_in = None
    for sites, start, count in zip(each, starts, rows, strict=True):
        if sites.conv_in is not None:
            width, kernel = config.block_out_channels[0], config.conv_in_kernel
            conv_in = ConvOnRows(start, start + count, sites.conv_in, width, kernel, conv_in)
    total = sum(rows)
    leaves = [
        on_rows(nn, sites.leaves, start, start + count, total)
        for sites, start, count in zip(each, starts, rows, strict=True)
        if sites.leaves
    ]
    return Sites(
        **hooks,
        down_residuals=_down_residuals(nn, [sites.down_residuals for sites in each], rows),
        mid_residual=_residual(nn, [sites.mid_residual for sites in each], rows),
        conv_in=conv_in,
        keys=each[0].keys,
        leaves=deltas_together(*leaves),
        features=_known(nn, [sites.features for sites in each]),
        attended=_known(nn, [sites.attended for sites in each]),
    )


def together(nn: Operations, acting: Sequence[OnRows]) -> tuple[OnRows, ...]:
    """Hooks of neighbouring rows that can act as one do: a kind of hooks says so by a method
    `together(nn, others, rows)` that gives one hook for all, or None."""
    left: list[OnRows] = []
    for one in acting:
        before = left[-1] if left else None
        merge = getattr(before.hook, "together", None) if before is not None else None
        if before is not None and merge is not None and before.stop == one.start:
            rows = (before.stop - before.start, one.stop - one.start)
            if (merged := merge(nn, one.hook, rows)) is not None:
                left[-1] = replace(before, stop=one.stop, hook=merged)
                continue
        left.append(one)
    return tuple(left)


def _known(nn: Operations, each: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """What is known by place, which is the same of all runs."""
    return {place: nn.concat([known[place] for known in each], 0) for place in each[0]}


def _down_residuals(nn: Operations, each: Sequence[Any], rows: Sequence[int]) -> Any:
    counts = {len(residuals) for residuals in each if residuals is not None}
    if not counts:
        return None
    columns = [
        [None if residuals is None else residuals[k] for residuals in each]
        for k in range(max(counts))
    ]
    return [_residual(nn, column, rows) for column in columns]


def _residual(nn: Operations, each: Sequence[Array | None], rows: Sequence[int]) -> Any:
    """Residuals of all rows; 0 for runs without one."""
    there = [residual for residual in each if residual is not None]
    if not there:
        return None
    shape = tuple(max(sizes) for sizes in zip(*(r.shape[1:] for r in there), strict=True))
    # Not `there[0] * 0`: where that run has NaN, the others would have it.
    zero = nn.cast(nn.arange(1, there[0]), there[0]).reshape(1, 1, 1, 1)
    parts = []
    for residual, count in zip(each, rows, strict=True):
        one = zero if residual is None else residual
        parts.append(nn.expand(one, (count, *shape)))
    return nn.concat(parts, 0)
