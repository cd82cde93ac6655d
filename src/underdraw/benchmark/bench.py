"""A plan of what to time, and the figures as they come."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import util
from itertools import product
from typing import Any

from underdraw import backends, checks
from underdraw.backends import hardware
from underdraw.backends.counting import Work
from underdraw.backends.torch_rates import Rates, rates, wait
from underdraw.benchmark import machine
from underdraw.benchmark.peers import PEERS
from underdraw.benchmark.turns import Call, Clock, clock_of, in_turns, timed
from underdraw.benchmark.works import WORKS, Job, Networks, networks_of, random_networks
from underdraw.checks import shown
from underdraw.engines.compiled import Compiled, Regional
from underdraw.engines.cuda_graphs import CudaGraphs
from underdraw.engines.eager import EAGER
from underdraw.engines.engine import Engine
from underdraw.engines.openvino import OpenVino
from underdraw.errors import InputError

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Plan:
    """What to time: each piece of work at each size and number of pictures, by each engine and each
    of those beside.

    Args:
        engines: of `MAKING`; None: eager, and openvino where it is installed and can run.
        beside: of `peers.PEERS`; None: diffusers, where it is installed.
        sides: of the pictures, in pixels.
        images: pictures at once.
        works: of `works.WORKS`.
        turns: how often each is timed, after a first call.
        source: a pipeline's folder or Hub id; None: random weights.
        full_size: random weights of the size of Stable Diffusion 1.5, and not of half its widths.
        dtype: of networks; "auto" is what is fast here.
        device: None: the fastest there is.

    Raises:
        InputError, InputTypeError: an argument is none of those.
    """

    engines: Sequence[str] | None = None
    beside: Sequence[str] | None = None
    sides: Sequence[int] = (256,)
    images: Sequence[int] = (1,)
    works: Sequence[str] = ("step", "decode")
    turns: int = 3
    source: str | None = None
    full_size: bool = False
    dtype: str = "auto"
    device: str | None = None

    def __post_init__(self) -> None:
        hardware.resolve_device(self.device)
        for name, allowed in (("engines", MAKING), ("beside", PEERS), ("works", WORKS)):
            value = getattr(self, name)
            for one in () if value is None else checks.listed(name, value, "names"):
                checks.choice(name, one, tuple(allowed))
        for name, low, high in (("sides", 8, 8192), ("images", 1, 1024)):
            for one in checks.listed(name, getattr(self, name), "whole numbers"):
                checks.whole(name, one, low, high)
        if odd := [side for side in self.sides if side % 8]:
            raise InputError(f"sides={shown(odd[0])} is no multiple of 8")
        checks.whole("turns", self.turns, 1, 10_000)
        checks.choice("dtype", self.dtype, DTYPES)
        checks.flag("full_size", self.full_size)
        if not (self.ways and self.sides and self.images and self.works):
            raise InputError("ways, sides, images and works: there has to be one of each")

    @property
    def where(self) -> str:
        """The device."""
        return hardware.resolve_device(self.device)

    @property
    def ways(self) -> tuple[str, ...]:
        """All that take turns: engines, and those beside."""
        chosen, beside = self.engines, self.beside
        if chosen is None:
            graphs = backends.graphs_installed() and self.where == "cpu"
            chosen = ("eager", "openvino") if graphs else ("eager",)
        if beside is None:
            beside = () if util.find_spec("diffusers") is None else ("diffusers",)
        return (*chosen, *beside)

    @property
    def calls(self) -> int:
        """How many calls it takes."""
        groups = len(self.works) * len(self.sides) * len(self.images)
        return groups * len(self.ways) * (1 + self.turns)


@dataclass
class Row:
    """One way of doing a piece of work, as far as it was measured."""

    work: str
    side: int
    images: int
    way: str
    """An engine's name, or one of those beside."""
    counted: Work
    first: float | None = None
    """Seconds of the first call and what it needed, compilation included."""
    seconds: list[float] = field(default_factory=list)
    """Of the turns."""
    apart: float | None = None
    """The largest difference to what the first way of this work gave, of its largest value."""
    failed: str | None = None

    @property
    def median(self) -> float | None:
        return statistics.median(self.seconds) if self.seconds else None


class Bench:
    """A plan that is carried out; what was measured until now is in `rows`."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.machine: dict[str, Any] = machine.described()
        self.rows: list[Row] = []
        self.rates: Rates | None = None
        self.networks: Networks | None = None

    def run(self) -> Iterator[tuple[str, int]]:
        """Carry it out. What begins or was done is told, and how many calls ended with it.

        Raises:
            NotFoundError, WeightError: there is no such folder, or none of a pipeline.
        """
        plan, device = self.plan, self.plan.where
        clock = clock_of(hardware.threads(), device)
        networks = self.networks = (
            random_networks(plan.full_size, plan.dtype, device)
            if plan.source is None
            else networks_of(plan.source, plan.dtype, device)
        )
        framework = networks.unet._framework
        with framework.no_grad():
            self.rates = rates(networks.unet.dtype, device, clock)
            for name, side, images in product(plan.works, plan.sides, plan.images):
                job = WORKS[name](networks, side, images)
                yield from self._compared(job, name, side, images, clock)

    def _compared(
        self, job: Job, name: str, side: int, images: int, clock: Clock
    ) -> Iterator[tuple[str, int]]:
        calls: dict[str, Call] = {}
        rows: dict[str, Row] = {}
        expected: Any = None
        for way in self.plan.ways:
            label = f"{name} {side} px, {way}"
            yield f"{label}, first call", 0
            row = rows[way] = Row(name, side, images, way, job.work)
            self.rows.append(row)
            try:
                begin = self._ready(job, way)
                row.first, (calls[way], made) = timed(begin, clock)
            except Exception as error:
                # One way that cannot be gone (no compiler, no memory) leaves the others.
                row.failed = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                yield label, 1 + self.plan.turns
            else:
                expected = made if expected is None else expected
                row.apart = _apart(made, expected)
                yield label, 1
        for way, seconds in in_turns(calls, self.plan.turns, clock):
            rows[way].seconds.append(seconds)
            yield f"{name} {side} px, {way}", 1

    def _ready(self, job: Job, way: str) -> Callable[[], tuple[Call, Any]]:
        """What makes a way ready by its first call, and gives it with what that call gave."""
        theirs, device = job.theirs() if way in PEERS else None, self.plan.where

        def begin() -> tuple[Call, Any]:
            call = job.ours(engine_of(way)) if theirs is None else PEERS[way](theirs)

            def waited() -> Any:
                made = call()
                wait(device)
                return made

            return waited, waited()

        return begin


def engine_of(name: str) -> Engine:
    """An engine that begins anew: of ours nothing is kept on disk, nor found there."""
    if name == "openvino":
        backends.graphs()
    return MAKING[name]()


MAKING: Mapping[str, Callable[[], Engine]] = {
    "eager": lambda: EAGER,
    "compiled": lambda: Regional(kept=None),
    "jit": lambda: Compiled(kept=None),
    "openvino": lambda: OpenVino(kept=None),
    "graph": CudaGraphs,
}


def _apart(made: Any, expected: Any) -> float:
    return float((made.float() - expected.float()).abs().max() / expected.float().abs().max())
