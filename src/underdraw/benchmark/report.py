"""Figures for people and for programs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from underdraw.benchmark.bench import Bench, Row
from underdraw.benchmark.peers import PEERS

HEADER = ("", "median s", "first s", "ratio", "ceiling", "apart")


def lines(bench: Bench) -> list[str]:
    """What was measured until now."""
    told, machine, networks = [], bench.machine, bench.networks
    told.append(
        f"{machine['processor']} ({machine['flags'] or '-'}), {machine['threads']} threads of "
        f"{machine['cores']} cores, load {machine['load']}, PyTorch {machine.get('torch')}"
    )
    if networks is not None:
        dtype = str(networks.unet.dtype).removeprefix("torch.")
        told.append(f"{networks.source}, {dtype} on {bench.plan.where}")
    if bench.rates is not None:
        told.append(
            f"ceilings: products {bench.rates.matrix / 1e9:.0f}, convolutions "
            f"{bench.rates.convolution / 1e9:.0f} billion operations a second"
        )
    for rows in grouped(bench.rows):
        first = rows[0]
        title = f"{first.work}, {first.side} px, {first.images} at once"
        title += "" if first.steps is None else f", {first.steps} steps"
        told += ["", *_table([(title, *HEADER[1:]), *(_cells(bench, row, rows) for row in rows)])]
        told += [f"  {row.way} failed: {row.failed}" for row in rows if row.failed]
    if any(row.median is not None for row in bench.rows):
        told += ["", EXPLAINED]
    if any(row.price is not None for row in bench.rows):
        told += [PRICED]
    return told


EXPLAINED = (
    "ratio: by the first beside, or by the first engine; ceiling: share of what products and "
    "convolutions alone would take; apart: the largest difference to the first, of its largest"
)
PRICED = (
    "dB: PSNR beside the first that leaves nothing out: the price of a speed, and no error; "
    "random weights say nothing of trained ones (docs/acceleration.md)"
)


def record(bench: Bench, whole: bool) -> dict[str, Any]:
    """The same for `json.dumps`; `whole` tells whether it ran to its end."""
    networks, found = bench.networks, bench.rates
    return {
        "machine": bench.machine,
        "networks": networks and networks.source,
        "dtype": networks and str(networks.unet.dtype).removeprefix("torch."),
        "device": bench.plan.where,
        "ceilings": found and {"matrix": found.matrix, "convolution": found.convolution},
        "whole": whole,
        "results": [
            {
                "work": row.work,
                "side": row.side,
                "images": row.images,
                "steps": row.steps,
                "way": str(row.way),
                "name": row.way.name,
                "precision": row.way.precision,
                "speed": row.way.speed,
                "median": row.median,
                "best": min(row.seconds, default=None),
                "turns": len(row.seconds),
                "first": row.first,
                "ratio": ratio(row, rows),
                "ceiling": share(bench, row),
                "operations": row.counted and asdict(row.counted),
                "apart": _known(row.apart),
                "price": _known(row.price),
                "failed": row.failed,
            }
            for rows in grouped(bench.rows)
            for row in rows
        ],
    }


def _known(number: float | None) -> float | None:
    """JSON has no NaN, which is what differs from NaN."""
    return number if number is None or math.isfinite(number) else None


def grouped(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows of the same work, in order."""
    groups: dict[tuple[str, int, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.work, row.side, row.images), []).append(row)
    return list(groups.values())


def ratio(row: Row, rows: Sequence[Row]) -> float | None:
    """Seconds by those of the first beside, or where nobody is beside by those of the first."""
    measured = [one for one in rows if one.median]
    reference = next((one for one in measured if one.way.name in PEERS), None)
    reference = reference or (measured[0] if measured else None)
    if row.median is None or reference is None or reference.median is None:
        return None
    return row.median / reference.median


def share(bench: Bench, row: Row) -> float | None:
    """Of the time it took, that of its products and convolutions at the measured ceilings."""
    if bench.rates is None or row.counted is None or not row.median:
        return None
    return bench.rates.least(row.counted.matrix, row.counted.convolution) / row.median


def _cells(bench: Bench, row: Row, rows: Sequence[Row]) -> tuple[str, ...]:
    by, of = ratio(row, rows), share(bench, row)
    return (
        f"  {row.way}",
        "-" if row.median is None else f"{row.median:.3g}",
        "-" if row.first is None else f"{row.first:.3g}",
        "-" if by is None else f"{by:.2f}",
        "-" if of is None else f"{of:.0%}",
        _difference(row),
    )


def _difference(row: Row) -> str:
    if row.price is not None:
        return f"{row.price:.0f} dB"
    return "-" if row.apart is None else f"{row.apart:.0e}"


def _table(cells: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
