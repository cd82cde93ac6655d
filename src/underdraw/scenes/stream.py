"""Many scenes with their pictures and captions, on one process or several."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from tqdm import tqdm

from underdraw.errors import InputError, UnderdrawError

from .captions import Caption, caption
from .layout import sample_scene, scene_rng
from .render import Rendering, render
from .world import Scene

T = TypeVar("T")
START = "spawn"
"""How processes begin. Forked they would begin at once, but the caller may already run the threads
of a framework; who knows that it does not may set this."""
_CHUNK, _AHEAD = 16, 4
"""What a process is given at once, and how many of these for each process at the same time."""


@dataclass(frozen=True)
class Sample:
    """A scene, its picture with truth, and a caption."""

    scene: Scene
    rendering: Rendering
    caption: Caption


def sample_at(
    seed: int,
    index: int,
    height: int = 128,
    width: int = 128,
    *,
    count: int | None = None,
    split: str = "train",
) -> Sample:
    """Sample `index` of `seed`: the same in whatever order and number samples are made."""
    rng = scene_rng(seed, index, split)
    scene = sample_scene(rng, count, split)
    return Sample(scene, render(scene, height, width), caption(scene, rng))


def render_many(
    seed: int,
    start: int,
    count: int,
    height: int = 128,
    width: int = 128,
    *,
    objects: int | None = None,
    split: str = "train",
    workers: int = 1,
    progress: bool = False,
) -> Iterator[Sample]:
    """Samples `start` to `start + count - 1` of `seed`, in order, one at a time.

    `objects` fixes how many objects each scene has (None: 1 to 4). With `workers` > 1 that many
    processes render ahead of the caller. `progress` shows a bar.
    """
    for name, value, least in (("start", start, 0), ("count", count, 0), ("workers", workers, 1)):
        if not isinstance(value, int) or value < least:
            raise InputError(f"{name}={value!r} is not an integer of at least {least}")
    make = partial(_make, seed, height, width, objects, split)
    return _show(in_order(make, range(start, start + count), workers), count, progress)


def _make(
    seed: int, height: int, width: int, objects: int | None, split: str, index: int
) -> Sample:
    return sample_at(seed, index, height, width, count=objects, split=split)


def in_order(
    make: Callable[[T], Any], asked: Iterable[T], workers: int
) -> Generator[Any, None, None]:
    """`map(make, asked)`, by so many processes that work some way ahead of the caller.

    Raises:
        UnderdrawError: a process was killed, as the system does where memory ends.
    """
    if workers == 1:
        yield from map(make, asked)
        return
    left, ahead = iter(asked), deque[Future[list[Any]]]()
    # A Pool would wait for ever for what a killed process was making.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context(START), _begin_worker)
    try:
        while True:
            while len(ahead) < _AHEAD * workers and (chunk := list(islice(left, _CHUNK))):
                ahead.append(pool.submit(_made, make, chunk))
            if not ahead:
                return
            yield from ahead.popleft().result()
    except BrokenProcessPool:
        raise UnderdrawError(
            f"one of {workers} processes that make examples was killed; was there enough memory?"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _begin_worker() -> None:
    """A process ends with the one that asks, also where that is killed."""
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _made(make: Callable[[T], Any], asked: Sequence[T]) -> list[Any]:
    return [make(one) for one in asked]


def _show(samples: Iterator[Sample], count: int, progress: bool) -> Iterator[Sample]:
    if not progress:
        return samples
    return iter(tqdm(samples, total=count, unit="scene"))
