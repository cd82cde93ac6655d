"""A whole picture by the engine `openvino`, accelerated, beside diffusers in float32.

    python benchmarks/picture.py [--quick] [--side 512] [--steps 50] [--speeds faster] [--turns 1]
        [--half] [--json FILE]

A guided run by DDIM from the context of a prompt to the decoded picture, by a call of each
pipeline, at the size of Stable Diffusion 1.5: random weights in float32, one copy in memory beside
what the engine prepares. The engine multiplies in bfloat16 where the processor gains by it.
`--quick` is 256 px and 20 steps, `--half` half of all widths, which is no figure for the bar.

A picture of diffusers takes a quarter of an hour on one core. So there is one turn by default, and
what is made ready before (graphs compiled, caches filled) is so by a short run: of one step of
diffusers, of 10 of ours, where presets need as many. On one thread (OMP_NUM_THREADS=1) processor
time is taken.

Bar of "faster": 0.17 of diffusers' time where the processor gains by bfloat16, else 0.35. How near
pictures are to diffusers' is printed; of random weights it says whether the same was computed, and
nothing of what a preset costs (docs/acceleration.md).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from timing import Comparison, judge, report

from underdraw.backends.hardware import bfloat16_pays
from underdraw.benchmark.differences import apart, decibel
from underdraw.benchmark.networks import Networks, random_networks
from underdraw.benchmark.peers import ready
from underdraw.benchmark.turns import Call, clock_of, in_turns, timed
from underdraw.benchmark.ways import Way
from underdraw.benchmark.works import Setting, picture
from underdraw.limits import FEWEST_CALLS

PEER = "diffusers"


def ours(way: Way, networks: Networks) -> Callable[[Setting], Call]:
    """What makes calls of pictures by one engine, which keeps what it compiled."""
    engine = way.engine
    return lambda setting: picture(networks, replace(setting, speed=way.speed)).ours(engine)


def theirs(networks: Networks) -> Callable[[Setting], Call]:
    """What makes calls of diffusers' pipeline."""
    return lambda setting: ready(picture(networks, setting).theirs(), PEER)


@torch.no_grad()
def main(
    networks: Networks,
    setting: Setting,
    speeds: Sequence[str] = ("faster",),
    turns: int = 1,
) -> list[Comparison]:
    """Each speed beside diffusers."""
    precision, bar = ("bfloat16", 0.17) if bfloat16_pays() else ("float32", 0.35)
    ways = {str(way): way for way in (Way("openvino", precision, speed) for speed in speeds)}
    makers = {name: (ours(way, networks), FEWEST_CALLS) for name, way in ways.items()}
    makers[PEER] = theirs(networks), 1
    clock, calls = clock_of(torch.get_num_threads()), {}
    made: dict[str, Any] = {}
    for name, (maker, least) in makers.items():
        short = replace(setting, steps=min(least, setting.steps))
        seconds, _ = timed(maker(short), clock)
        print(f"{name}: made ready by {short.steps} steps in {seconds:.1f} s", flush=True)
        whole = maker(setting)
        calls[name] = lambda name=name, whole=whole: made.update({name: whole()})
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for name, seconds in in_turns(calls, turns, clock):
        taken[name].append(seconds)
        print(f"{name}: {seconds:.1f} s", flush=True)
    results = []
    for name, way in ways.items():
        off, near = apart(made[name], made[PEER]), decibel(made[name], made[PEER])
        print(f"{name}: {near:.1f} dB, largest difference {off:.1e} of the largest value")
        title = f"picture, {setting.side} px, {setting.steps} steps, {name} (s)"
        limit = bar if way.speed == "faster" else None
        results.append(judge(title, taken[name], taken[PEER], limit))
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--side", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--speeds", default="faster", help="exact, fast, faster, with commas")
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--half", action="store_true")
    parser.add_argument("--json")
    given = parser.parse_args()
    side, steps = (256, 20) if given.quick else (512, 50)
    setting = Setting(given.side or side, steps=given.steps or steps)
    networks = random_networks(not given.half, "float32", "cpu")
    report(main(networks, setting, given.speeds.split(","), given.turns), given.json)
