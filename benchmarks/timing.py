"""What the scripts share: ours beside diffusers' by `underdraw.benchmark`, with bars."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from underdraw.backends.hardware import fastest_dtype
from underdraw.benchmark.machine import described
from underdraw.benchmark.turns import clock_of, in_turns


@dataclass(frozen=True)
class Comparison:
    """Seconds of ours and of diffusers, medians and minima; `ratio` is ours by theirs."""

    name: str
    ours: float
    peer: float
    ratio: float
    ours_best: float
    peer_best: float
    runs: int
    bar: float | None = None

    def __str__(self) -> str:
        verdict = "" if self.bar is None else f"  bar {self.bar:.2f}"
        if self.bar is not None and self.ratio > self.bar:
            verdict += "  MISSED"
        return (
            f"{self.name:44} ours {self.ours:10.4f}  peer {self.peer:10.4f}  "
            f"ratio {self.ratio:5.2f} (of the best runs {self.ours_best / self.peer_best:5.2f})"
            f"{verdict}"
        )


def compare(
    name: str,
    ours: Callable[[], Any],
    peer: Callable[[], Any],
    runs: int = 5,
    bar: float | None = 1.05,
    divide: float = 1,
    clock: Callable[[], float] | None = None,
) -> Comparison:
    """Time two functions in turns, after one call of each. `divide` is how many units of work one
    call does; `clock` is by default `turns.clock_of`."""
    sides = {"ours": ours, "peer": peer}
    for call in sides.values():
        call()
    taken: dict[str, list[float]] = {"ours": [], "peer": []}
    for side, seconds in in_turns(sides, runs, clock or clock_of(torch.get_num_threads())):
        taken[side].append(seconds / divide)
    return judge(name, taken["ours"], taken["peer"], bar)


def judge(
    name: str, ours: Sequence[float], peer: Sequence[float], bar: float | None = 1.05
) -> Comparison:
    """A comparison of figures taken elsewhere, printed."""
    a, b = statistics.median(ours), statistics.median(peer)
    made = Comparison(name, a, b, a / b, min(ours), min(peer), len(ours), bar)
    print(made, flush=True)
    return made


def report(results: Sequence[Comparison], path: str | None = None) -> None:
    """Print machine, versions and figures as JSON, and write them to `path` if given."""
    text = json.dumps({**described(), "results": [asdict(each) for each in results]}, indent=1)
    print(text)
    if path:
        Path(path).write_text(text + "\n", encoding="utf-8")


def fast_dtypes() -> tuple[torch.dtype, ...]:
    """float32, and bfloat16 where the processor computes in it. Emulated, one convolution took 100
    times as long as in float32 (an EPYC without AVX-512): it says nothing about either side."""
    fast = fastest_dtype("cpu") == "bfloat16"
    return (torch.float32, torch.bfloat16) if fast else (torch.float32,)


def arguments(*flags: str) -> tuple[set[str], str | None]:
    """Flags given on the command line, and the file after `--json`."""
    given, path = sys.argv[1:], None
    if "--json" in given:
        at = given.index("--json")
        path = given[at + 1]
        del given[at : at + 2]
    if unknown := set(given) - set(flags):
        sys.exit(f"unknown {sorted(unknown)}; allowed: {', '.join((*flags, '--json FILE'))}")
    return set(given), path
