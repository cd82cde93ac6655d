"""What engines gain: several runs in one call, compiled steps, and eager steps of two sources.

    python benchmarks/engine_steps.py [--only batch,jit,compiled,eager] [--against FOLDER] [--full]
        [--json FILE]

- batch: 8 pictures of other prompts and seeds by `underdraw.batched`, beside the same 8 one after
  another, with tiny networks (`tiny_step`) and the scenes family; seconds for a picture.
- jit: a guided step of a small UNet on JAX, compiled beside eager, and the first call of both.
- compiled: the same on PyTorch, `Regional` and `Compiled` beside `torch.compile` of diffusers'
  UNet2DConditionModel on the same weights; no kernels of earlier runs are used.
- eager (with --against): `tiny_step`, `unet_step` and `grounded_step` of another checkout and of
  this one, each by its own scripts in processes that take turns, on small networks, or with --full
  on those of Stable Diffusion at 256 px, which takes a quarter of an hour. diffusers, which both
  measure, stands beside: the ratio of two equal things.

One thread, processor time, compilers included: what else runs on the machine does not count. The
last line has all ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

import diffusers
import numpy as np
import torch
import unet_step
from timing import Comparison, compare, judge, report
from tiny_step import STEPS, UNET, pipelines

import underdraw
from underdraw import backends
from underdraw.benchmark.steps import GUIDANCE, TIME, stepper
from underdraw.benchmark.turns import timed
from underdraw.engines import EAGER, Compiled, Engine, Regional

HERE = Path(__file__).parents[1]
SMALL: dict[str, Any] = {
    **UNET,
    "sample_size": 16,
    "block_out_channels": (64, 128),
    "cross_attention_dim": 64,
}
"""Of a UNet of two levels."""
ONE_LEVEL: dict[str, Any] = {
    **SMALL,
    "block_out_channels": (64,),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",),
}
"""Of a smaller one: PyTorch compiles two levels for minutes."""
PROMPTS = [
    f"a {color} {shape}"
    for color in ("red", "blue", "green", "white")
    for shape in ("cube", "cone")
]

CHILD = """
import json, sys
full = sys.argv[1] == "full"
import torch
torch.set_num_threads(1)
import grounded_step, tiny_step, unet_step
small = json.loads(sys.argv[2])
shape = {} if full else {"config": small}
sizes = {"sizes": (32,) if full else (small["sample_size"],)}
runs, tiny = json.loads(sys.argv[3])
made = tiny_step.main(tiny, solvers=("DDIMScheduler",))
for script in (unet_step, grounded_step):
    made += script.main(**sizes, **shape, dtypes=(torch.float32,), runs=runs)
print(json.dumps([[one.name, one.ours, one.peer] for one in made]))
"""
"""The cases of the scripts that are found first, as [name, ours, diffusers]."""


# -- several runs at once ----------------------------------------------------------------------
def batch(runs: int = 5, steps: int = STEPS, scenes: bool = True) -> list[Comparison]:
    """8 runs that share each call of the UNet beside 8 calls; two turns at most with scenes."""
    made = []
    pipe = pipelines("DDIMScheduler")[0]
    made.append(_batch("tiny networks", pipe, runs, steps, height=16, width=16))
    if scenes:
        pipe = underdraw.StableDiffusionPipeline.from_pretrained("underdraw/scenes")
        pipe.set_progress_bar_config(disable=True)
        made.append(_batch("scenes", pipe, min(runs, 2), steps))
    return made


def _batch(name: str, pipe: Any, runs: int, steps: int, **size: int) -> Comparison:
    calls = [
        {"prompt": prompt, "seed": seed, "num_inference_steps": steps, "output_type": "np", **size}
        for seed, prompt in enumerate(PROMPTS)
    ]
    kept: dict[str, Any] = {}

    def together() -> None:
        going = underdraw.batched([pipe.stream(**call) for call in calls])
        for _ in going:
            pass
        kept["together"] = [stream.output.images[0] for stream in going.streams]

    def alone() -> None:
        kept["alone"] = [pipe(**call).images[0] for call in calls]

    count = len(calls)
    found = compare(f"batch of {count}, {name} (s a picture)", together, alone, runs, None, count)
    apart = np.abs(np.stack(kept["together"]) - np.stack(kept["alone"])).max()
    print(f"{1 / found.ours:.2f} pictures a second, alone {1 / found.peer:.2f}; apart {apart:.1e}")
    return found


# -- compiled ------------------------------------------------------------------------------------
def jit(runs: int = 20, config: Mapping[str, Any] = SMALL) -> list[Comparison]:
    """A step on JAX by `jax.jit` beside the same at once."""
    import jax

    there = underdraw.UNet2DConditionModel(**config)
    model = underdraw.UNet2DConditionModel.from_tensors(
        config, there.stored_tensors(), backend="jax"
    )
    array = backends.get("jax").array

    def step(engine: Engine) -> Callable[[], Any]:
        context, latents = (array(x.numpy()) for x in inputs(config))
        denoise = stepper(model, context, engine)
        return lambda: jax.block_until_ready(denoise(latents, 0))

    made, eager = step(Compiled()), step(EAGER)
    first = judge("jit on JAX, first call (s)", [seconds(made)], [seconds(eager)], None)
    return [first, compare("jit on JAX, step (s)", made, eager, runs, None)]


def compiled(
    runs: int = 20,
    config: Mapping[str, Any] = ONE_LEVEL,
    compiler: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None,
) -> list[Comparison]:
    """A step on PyTorch by both engines that compile, beside diffusers' compiled and eager ones.

    `compiler` is used by all; None: `torch.compile`.
    """
    ours, peer = unet_step.pair(dict(config), torch.float32)
    context, latents = inputs(config)
    fast = (compiler or torch.compile)(peer)

    def guided(unet: Callable[..., Any]) -> Callable[[], Any]:
        def step() -> torch.Tensor:
            out = unet(torch.cat((latents, latents)), TIME, context, return_dict=False)[0]
            half = out.chunk(2)
            return half[0] + GUIDANCE * (half[1] - half[0])

        return step

    def own(engine: Engine) -> Callable[[], Any]:
        denoise = stepper(ours, context, engine)
        return lambda: denoise(latents, 0)

    steps = {
        "regional": own(Regional(compiler, kept=None)),
        "whole": own(Compiled(compiler, kept=None)),
        "diffusers": guided(fast),
    }
    first = {}
    with _new_kernels():
        # What only the first compiled function waits for: headers, tests of the processor.
        (compiler or torch.compile)(lambda x: x + 1)(latents)
        for name, step in steps.items():
            first[name] = seconds(step)
            print(f"{name}, first call: {first[name]:.1f} s", flush=True)
    made, theirs, eager_step = [], steps["diffusers"], own(EAGER)
    for name in ("regional", "whole"):
        wanted = eager_step()
        apart = ((steps[name]() - wanted).abs().max() / wanted.abs().max()).item()
        print(f"{name}: largest difference {apart:.1e} of the largest value")
        took = [first[name]], [first["diffusers"]]
        made.append(judge(f"compiled, {name}, first call (s)", *took, None))
        made.append(compare(f"compiled, {name}, step (s)", steps[name], theirs, runs, None))
    made.append(compare("eager step beside (s)", eager_step, guided(peer), runs, None))
    return made


def inputs(config: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """A context `(2, 77, width)`, and latents of one picture of the trained size."""
    size, generator = config["sample_size"], torch.Generator().manual_seed(0)
    context = torch.randn(2, 77, config["cross_attention_dim"], generator=generator)
    return context, torch.randn(1, 4, size, size, generator=generator)


def seconds(call: Callable[[], Any]) -> float:
    """Processor time of one call, that of compilers which it started included."""
    return timed(call, lambda: sum(os.times()[:4]))[0]


def _new_kernels() -> AbstractContextManager[Any]:
    """While it lasts no kernel of an earlier run is used. diffusers compiles last: where it needs
    the very kernel that ours had compiled, the advantage is its own."""
    from torch._inductor import utils

    fresh = getattr(utils, "fresh_cache", None) or getattr(utils, "fresh_inductor_cache", None)
    return nullcontext() if fresh is None else fresh()


# -- two sources ---------------------------------------------------------------------------------
def eager(
    against: Path,
    turns: int = 2,
    runs: tuple[int, int] = (5, 10),
    full: bool = False,
    config: Mapping[str, Any] = SMALL,
) -> list[Comparison]:
    """This checkout's cases ("ours") beside another's ("peer"); `runs` are those of the networks
    and of the tiny pipeline in each process."""
    taken: dict[str, list[Any]] = {"now": [], "before": []}
    sides = (("now", HERE), ("before", against))
    for turn in range(turns):
        for side, folder in sides if turn % 2 == 0 else sides[::-1]:
            taken[side].append(_cases(folder, runs, full, config))
    made = []
    for case in taken["now"][0]:
        columns = [[cases[case] for cases in taken[side]] for side in ("now", "before")]
        noise = _ratio(*([peer for _, peer in each] for each in columns))
        print(f"diffusers, measured by both: {noise:.2f}")
        now, before = ([ours for ours, _ in each] for each in columns)
        made.append(judge(f"now by before, {case}", now, before, None))
    return made


def _cases(
    folder: Path, runs: tuple[int, int], full: bool, config: Mapping[str, Any]
) -> dict[str, tuple[float, float]]:
    """By name the seconds of ours and of diffusers, by the scripts and the source of a checkout."""
    paths = os.pathsep.join([str(folder / "benchmarks"), str(folder / "src")])
    command = [sys.executable, "-W", "ignore", "-c", CHILD, "full" if full else "small"]
    done = subprocess.run(
        [*command, json.dumps(config), json.dumps(runs)],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{folder}: {done.stderr}")
    return {name: (ours, peer) for name, ours, peer in json.loads(done.stdout.splitlines()[-1])}


def _ratio(now: Sequence[float], before: Sequence[float]) -> float:
    return statistics.median(now) / statistics.median(before)


PARTS = ("batch", "jit", "compiled", "eager")


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> list[Comparison]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas")
    parser.add_argument("--against", type=Path, help="a checkout of another commit, for eager")
    parser.add_argument("--full", action="store_true", help="eager at the size of SD 1.5")
    parser.add_argument("--json", help="where to write the figures")
    given = parser.parse_args(arguments)
    wanted = given.only.split(",")
    if unknown := sorted(set(wanted) - set(PARTS)):
        parser.error(f"--only {', '.join(unknown)}: not known; allowed: {', '.join(PARTS)}")
    if given.against is not None and not (given.against / "benchmarks").is_dir():
        parser.error(f"--against {given.against} is no checkout of underdraw")
    torch.set_num_threads(1)
    start, results = time.perf_counter(), []
    for part in wanted:
        if part == "jit" and "jax" not in backends.installed():
            print("jit: JAX is not installed")
        elif part != "eager":
            results += {"batch": batch, "jit": jit, "compiled": compiled}[part]()
        elif given.against is not None:
            results += eager(given.against.resolve(), full=given.full)
    report(results, given.json)
    print(f"{time.perf_counter() - start:.0f} s; diffusers {diffusers.__version__}")
    print("ratios: " + "; ".join(f"{one.name} {one.ratio:.2f}" for one in results))
    return results


if __name__ == "__main__":
    main()
