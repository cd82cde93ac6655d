"""Ways of doing the same, timed turn by turn in one run.

On a shared machine the load changes from minute to minute. Turns give each way the same share of
it, the median ignores the odd slow one, and every other turn runs backwards, so that nobody always
runs on what the same neighbour left in the caches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Call = Callable[[], Any]
Clock = Callable[[], float]
TICK = 1e-9
"""Seconds that a call takes at least: clocks may stand still for what is shorter than their step,
and times are divided by each other."""


def in_turns(ways: Mapping[str, Call], turns: int, clock: Clock) -> Iterator[tuple[str, float]]:
    """The name and the seconds of each call as soon as it has ended, so that whoever is interrupted
    has what was measured until then."""
    order = tuple(ways)
    for turn in range(turns):
        for name in order if turn % 2 == 0 else order[::-1]:
            yield name, timed(ways[name], clock)[0]


def timed(call: Call, clock: Clock) -> tuple[float, Any]:
    """Seconds of a call, and what it gave."""
    start = clock()
    made = call()
    return max(clock() - start, TICK), made


def clock_of(threads: int, device: str = "cpu") -> Clock:
    """What to measure with: on one thread of the CPU processor time, which does not see what others
    run beside it."""
    return time.process_time if device == "cpu" and threads == 1 else time.perf_counter
