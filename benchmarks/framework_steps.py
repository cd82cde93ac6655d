"""A step and a whole call on each framework that is installed, and what compiling takes.

    python benchmarks/framework_steps.py [--ways NAME,...] [--works step,call] [--side 128]
        [--steps 10] [--turns 5] [--folder FOLDER] [--json FILE]

PyTorch, always there, eager and by blocks that are compiled; JAX with the sampling loop as one
program ("jax loop"; "jax watched" hands out each step of it), call by call ("jax calls") and each
operation by itself ("jax eager"); MindSpore, whose environment has no JAX, eager and by graphs.

- step: a guided call of the UNet as the loop makes it, one picture.
- call: a whole call from a prompt to latents, `--steps` steps, divided by them.

All ways take turns in one run, each beside PyTorch's eager one on the same weights, the scenes that
ship inside or those of FOLDER. "first" is the first call of a way, compilers included; of
MindSpore's graphs the first two, for the second records. Nothing that an earlier run compiled is
used.

One thread, processor time: what else runs on the machine does not count.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

import numpy as np
import torch
from timing import Comparison, judge, report

import underdraw
from underdraw import backends
from underdraw.benchmark.machine import described
from underdraw.benchmark.steps import stepper
from underdraw.benchmark.turns import Call, clock_of, in_turns, timed
from underdraw.engines import EAGER, Compiled, Engine, Regional


class CallByCall(Compiled):
    """Compiles programs, and is not asked for many calls of the loop at once."""

    loops = False


PEER = "torch eager"
WAYS: dict[str, Callable[[], Engine]] = {
    PEER: lambda: EAGER,
    "torch compiled": lambda: Regional(kept=None),
    "jax loop": lambda: Compiled(kept=None),
    "jax watched": lambda: Compiled(kept=None),
    "jax calls": lambda: CallByCall(kept=None),
    "jax eager": lambda: EAGER,
    "mindspore eager": lambda: EAGER,
    "mindspore graph": lambda: Compiled(kept=None),
}
"""By the name of a backend and how it is run."""
OF_CALLS = ("jax watched", "jax calls")
"""Ways that differ in whole calls alone."""
SECOND = ("mindspore graph",)
"""Ways that compile in the second call."""
WORKS = ("step", "call")
PROMPT, TOKENS = "a red sphere left of a blue cube", 77


def made(way: str, work: str, pipe: Any, side: int, steps: int) -> Call:
    """The work as a function that gives its numbers."""
    engine, framework = WAYS[way](), pipe.parts.framework
    if work == "call":
        pipe = type(pipe).from_pipe(pipe)
        pipe.engine = engine
        pipe.set_progress_bar_config(disable=True)
        size = {"height": side, "width": side, "num_inference_steps": steps, "seed": 1}

        def call() -> np.ndarray:
            if not way.endswith("watched"):
                return framework.to_numpy(pipe(PROMPT, output_type="latent", **size).images)
            stream = pipe.stream(PROMPT, output_type="latent", **size)
            for _ in stream:
                pass
            return framework.to_numpy(stream.output.images)

        return call
    config, drawn = pipe.unet.config, np.random.default_rng(0)
    side //= pipe.vae.config.factor
    context = drawn.standard_normal((2, TOKENS, config.cross_attention_dim), np.float32)
    latents = drawn.standard_normal((1, config.in_channels, side, side), np.float32)
    denoise, x = stepper(pipe.unet, framework.array(context), engine), framework.array(latents)
    return lambda: framework.to_numpy(denoise(x, 0))


def beside(
    work: str, ways: Sequence[str], pipes: dict[str, Any], side: int, steps: int, turns: int
) -> list[Comparison]:
    """First calls, one after another, then all in turns."""
    calls, first, expected = dict[str, Call](), dict[str, float](), None
    divide = steps if work == "call" else 1
    for way in ways:
        if work == "step" and way in OF_CALLS:
            continue
        calls[way] = made(way, work, pipes[way.partition(" ")[0]], side, steps)
        first[way], given = timed(calls[way], _with_children)
        if way in SECOND:
            more, given = timed(calls[way], _with_children)
            first[way] += more
        expected = given if expected is None else expected
        apart = np.abs(given - expected).max() / np.abs(expected).max()
        print(f"{way}, {work}: first {first[way]:.2f} s, apart {apart:.1e} of the largest value")
    taken: dict[str, list[float]] = {way: [] for way in calls}
    for way, seconds in in_turns(calls, turns, clock_of(torch.get_num_threads())):
        taken[way].append(seconds / divide)
    found = []
    for way in calls:
        found.append(judge(f"{way}, {work} (s a step)", taken[way], taken[ways[0]], None))
        found.append(judge(f"{way}, {work}, first (s)", [first[way]], [first[ways[0]]], None))
    return found


def _with_children() -> float:
    """Processor time, that of compilers which were started included."""
    return sum(os.times()[:4])


@contextmanager
def _new_kernels() -> Iterator[None]:
    """While it lasts PyTorch uses no kernel of an earlier run."""
    from torch._inductor import utils

    fresh: Any = getattr(utils, "fresh_cache", None) or utils.fresh_inductor_cache
    with fresh():
        yield


@torch.no_grad()
def main(
    ways: Sequence[str] = tuple(WAYS),
    works: Sequence[str] = WORKS,
    side: int = 128,
    steps: int = 10,
    turns: int = 5,
    folder: str = "underdraw/scenes",
) -> list[Comparison]:
    """What is not installed is left out; the first way is what the others stand beside."""
    torch.set_num_threads(1)
    there = backends.installed()
    ways = [way for way in ways if way.partition(" ")[0] in there]
    pipes: dict[str, Any] = {}
    for name in {way.partition(" ")[0]: None for way in ways}:
        cls = underdraw.StableDiffusionPipeline
        pipes[name] = cls.from_pretrained(folder, backend=name, safety_checker=None)
    machine = described()
    print(f"{machine['processor']} ({machine['flags']}), load {machine['load']}", flush=True)
    with _new_kernels() if "torch compiled" in ways else nullcontext():
        return [one for work in works for one in beside(work, ways, pipes, side, steps, turns)]


def _several(text: str, allowed: Sequence[str], parser: argparse.ArgumentParser) -> list[str]:
    names = text.split(",")
    if unknown := sorted(set(names) - set(allowed)):
        parser.error(f"{', '.join(unknown)}: not known; allowed: {', '.join(allowed)}")
    return names


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--ways", default=",".join(WAYS), help="with commas; the first is beside")
    parser.add_argument("--works", default=",".join(WORKS))
    parser.add_argument("--side", type=int, default=128, help="of the picture, in pixels")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="three turns, four steps")
    parser.add_argument("--folder", default="underdraw/scenes")
    parser.add_argument("--json")
    given = parser.parse_args()
    chosen = [_several(given.ways, tuple(WAYS), parser), _several(given.works, WORKS, parser)]
    steps, turns = (4, 3) if given.quick else (given.steps, given.turns)
    report(main(*chosen, given.side, steps, turns, given.folder), given.json)
