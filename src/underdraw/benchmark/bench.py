"""A plan of what to time, and the figures as they come."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib import util
from itertools import product
from typing import Any, get_args

from underdraw import backends, checks
from underdraw.backends import hardware
from underdraw.backends.counting import Work
from underdraw.backends.torch_rates import Rates, rates, wait
from underdraw.benchmark import machine, peers
from underdraw.benchmark.differences import apart, decibel
from underdraw.benchmark.networks import Networks, networks_of, random_networks
from underdraw.benchmark.peers import PEERS
from underdraw.benchmark.turns import Call, Clock, clock_of, in_turns, timed
from underdraw.benchmark.ways import ENGINES, EXACT, PRECISE, Way
from underdraw.benchmark.works import WORKS, Job, Setting
from underdraw.checks import shown
from underdraw.controls.acceleration.presets import PRESETS
from underdraw.engines.openvino import Precision
from underdraw.errors import InputError
from underdraw.limits import FEWEST_CALLS

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Plan:
    """What to time: each piece of work at each size and number of pictures, by each engine and each
    of those beside.

    Args:
        engines: of `ways.ENGINES`; None: eager, and openvino where it is installed and can run.
        beside: of `peers.PEERS`; None: diffusers, where it is installed.
        sides: of the pictures, in pixels.
        images: pictures at once.
        works: of `works.WORKS`.
        turns: how often each is timed, after a first call.
        source: a pipeline's folder or Hub id; None: random weights.
        full_size: random weights of the size of Stable Diffusion 1.5, and not of half its widths.
        dtype: of networks; "auto" is what is fast here.
        device: None: the fastest there is.
        steps: of a run, for works that are one.
        speeds: presets of acceleration, each a way of its own to make a run.
        precisions: of the engine openvino, each a way of its own; "int8" has the UNet's matrices in
            8 bits, too.

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
    steps: int = 20
    speeds: Sequence[str] = (EXACT,)
    precisions: Sequence[Precision] = ("auto",)

    def __post_init__(self) -> None:
        hardware.resolve_device(self.device)
        chosen = (
            ("engines", ENGINES),
            ("beside", PEERS),
            ("works", WORKS),
            ("speeds", PRESETS),
            ("precisions", get_args(Precision)),
        )
        for name, allowed in chosen:
            value = getattr(self, name)
            for one in () if value is None else checks.listed(name, value, "names"):
                checks.choice(name, one, tuple(allowed))
        for name, low, high in (("sides", 8, 8192), ("images", 1, 1024)):
            for one in checks.listed(name, getattr(self, name), "whole numbers"):
                checks.whole(name, one, low, high)
        if odd := [side for side in self.sides if side % 8]:
            raise InputError(f"sides={shown(odd[0])} is no multiple of 8")
        checks.whole("turns", self.turns, 1, 10_000)
        checks.whole("steps", self.steps, 1, 1000)
        checks.choice("dtype", self.dtype, DTYPES)
        checks.flag("full_size", self.full_size)
        lists = (self.works, self.sides, self.images, self.speeds, self.precisions)
        if not all(lists) or not all(map(self.ways, self.works)):
            raise InputError(
                "ways, works, sides, images, speeds and precisions: there has to be one of each"
            )
        self._check_runs()

    def _check_runs(self) -> None:
        """Raise an InputError where no work is a run that a preset leaves something out of, or runs
        are too short for one."""
        runs = any(WORKS[name].runs for name in self.works)
        for speed in self.speeds:
            preset = PRESETS[speed]
            if preset is None:
                continue
            if not runs:
                raise InputError(
                    f"speeds={speed!r} leaves something out of runs, and none of "
                    f"works={list(self.works)} is one; allowed: 'exact', or works with 'picture'"
                )
            if self.steps < FEWEST_CALLS and any(method.reuses for method in preset.methods):
                raise InputError(
                    f"steps={self.steps} is too small for the speed {speed!r}, which leaves out "
                    f"what another step has computed; allowed: {FEWEST_CALLS} or more"
                )

    @property
    def where(self) -> str:
        """The device."""
        return hardware.resolve_device(self.device)

    def ways(self, work: str) -> tuple[Way, ...]:
        """All that take turns at a piece of work, each once: engines, and those beside."""
        chosen, beside = self.engines, self.beside
        if chosen is None:
            graphs = backends.graphs_installed() and self.where == "cpu"
            chosen = ("eager", "openvino") if graphs else ("eager",)
        if beside is None:
            beside = () if util.find_spec("diffusers") is None else ("diffusers",)
        speeds = self.speeds if WORKS[work].runs else (EXACT,)
        ours = [
            Way(engine, precision, speed)
            for engine in chosen
            for precision in (self.precisions if engine in PRECISE else ("auto",))
            for speed in speeds
        ]
        return tuple(dict.fromkeys((*ours, *map(Way, beside))))

    @property
    def calls(self) -> int:
        """How many calls it takes."""
        ways = sum(len(self.ways(work)) for work in self.works)
        return ways * len(self.sides) * len(self.images) * (1 + self.turns)


@dataclass
class Row:
    """One way of doing a piece of work, as far as it was measured."""

    work: str
    side: int
    images: int
    way: Way
    steps: int | None = None
    """Of a run."""
    counted: Work | None = None
    """How much arithmetic it is; None where it could not be made."""
    first: float | None = None
    """Seconds of the first call and what it needed, compilation included."""
    seconds: list[float] = field(default_factory=list)
    """Of the turns."""
    apart: float | None = None
    """The largest difference to what the first exact way of this work gave, of its largest value;
    None where something was left out."""
    price: float | None = None
    """Where something was left out of a run, how near its pictures are to those of the first exact
    way: PSNR, in dB."""
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
            for work, side, images in product(plan.works, plan.sides, plan.images):
                yield from self._compared(networks, work, Setting(side, images, plan.steps), clock)

    def _compared(
        self, networks: Networks, work: str, setting: Setting, clock: Clock
    ) -> Iterator[tuple[str, int]]:
        kind, side, images = WORKS[work], setting.side, setting.images
        steps = setting.steps if kind.runs else None
        calls: dict[str, Call] = {}
        rows: dict[str, Row] = {}
        made: dict[str, Any] = {}
        for way in self.plan.ways(work):
            name = str(way)
            label = f"{work} {side} px, {name}"
            yield f"{label}, first call", 0
            row = rows[name] = Row(work, side, images, way, steps)
            self.rows.append(row)
            try:
                job = kind.make(way.on(networks), replace(setting, speed=way.speed))
                row.counted = job.work
                begin = self._ready(job, way)
                row.first, (calls[name], made[name]) = timed(begin, clock)
            except Exception as error:
                # One way that cannot be gone (no compiler, no memory) leaves the others.
                row.failed = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                yield label, 1 + self.plan.turns
            else:
                _tell_differences([(rows[one], made[one]) for one in made])
                yield label, 1
        for name, seconds in in_turns(calls, self.plan.turns, clock):
            rows[name].seconds.append(seconds)
            yield f"{work} {side} px, {name}", 1

    def _ready(self, job: Job, way: Way) -> Callable[[], tuple[Call, Any]]:
        """What makes a way ready by its first call, and gives it with what that call gave."""
        theirs, device = job.theirs() if way.name in PEERS else None, self.plan.where

        def begin() -> tuple[Call, Any]:
            call = job.ours(way.engine) if theirs is None else peers.ready(theirs, way.name)

            def waited() -> Any:
                made = call()
                wait(device)
                return made

            return waited, waited()

        return begin


def _tell_differences(made: Sequence[tuple[Row, Any]]) -> None:
    """How far what each way gave is from what the first exact one gave."""
    expected = next((one for row, one in made if row.way.speed == EXACT), None)
    for row, one in made if expected is not None else ():
        if row.way.speed == EXACT:
            row.apart = apart(one, expected)
        else:
            row.price = decibel(one, expected)
