"""What the engine `openvino` gains: steps, decoding, starting, beside diffusers in float32.

    python benchmarks/openvino_step.py [--quick] [--only step,lora,boxes,maps,decode,tiny,start]
        [--precision float32] [--folder FOLDER] [--json FILE]

Guided steps (batch 2) at the size of Stable Diffusion 1.5, at 256 and 512 px, random weights, of
which one copy is in memory beside what the engine prepares: plain, with a LoRA of rank 8 at all
attentions, with two boxes, along a map; decoding; a step of a whole pipeline with tiny networks,
where Python counts. Turns alternate. "first call" is graph, compilation and a step, beside a
compiled step. Networks are in float32; the engine computes in bfloat16 where the processor gains by
it, else in float32 (`--precision`). `start` loads FOLDER (as `full_size.py` writes it, in
float16) in new processes and makes one step: by OpenVINO from its cache, on networks that stay in
float16 and in their files, beside `eager` in float32.

On one thread (OMP_NUM_THREADS=1) processor time is taken: what else runs does not count.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import controlnet_step
import grounded_step
import tiny_step
import torch
import unet_step
import vae_decode
from timing import Comparison, compare, judge, report

from underdraw.backends import hardware
from underdraw.backends.deltas import LowRank
from underdraw.benchmark.random_weights import SD15_UNET, SD15_VAE
from underdraw.benchmark.steps import GUIDANCE, TIME, stepper
from underdraw.engines.engine import Question
from underdraw.engines.openvino import OpenVino, Precision
from underdraw.networks.sites import Sites
from underdraw.networks.vae import DECODE

PARTS = "step,lora,boxes,maps,decode,tiny,start"
RANK = 8
BARS = {
    "float32": {"small": 0.62, "step": 0.80, "controlled": 0.80, "decode": 0.85},
    "bfloat16": {"small": 0.36, "step": 0.40, "controlled": 0.45, "decode": 0.42},
}
"""Of steps up to 256 px and above, of those with something added, and of decoding."""
CHILD = """
import sys, time
start = time.perf_counter()
import torch
torch.set_num_threads(int(sys.argv[4]))
import underdraw
from underdraw.engines.openvino import OpenVino
engine = "eager" if sys.argv[2] == "eager" else OpenVino(sys.argv[2])
how = {"engine": engine, "dtype": "float32" if sys.argv[2] == "eager" else "float16"}
pipe = underdraw.StableDiffusionPipeline.from_pretrained(sys.argv[1], **how)
side = int(sys.argv[3])
context = torch.zeros(1, 77, pipe.unet.config.cross_attention_dim)
given = {"prompt_embeds": context, "negative_prompt_embeds": context, "output_type": "latent"}
pipe.set_progress_bar_config(disable=True)
pipe(**given, num_inference_steps=1, height=side, width=side, seed=1)
print(time.perf_counter() - start, time.process_time())
"""
"""A process from its first line to its first step."""


def guided(peer: Any, latents: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    """As diffusers' pipeline makes a step."""
    out = peer(torch.cat((latents, latents)), TIME, context).sample
    unconditional, conditional = out.chunk(2)
    return unconditional + GUIDANCE * (conditional - unconditional)


def beside(
    name: str, mine: Callable[[], Any], theirs: Callable[[], Any], runs: int, bar: float
) -> list[Comparison]:
    """The first call and the steps behind it; the largest difference is printed."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    made = mine()
    first = clock() - start
    expected = theirs()
    apart = ((made - expected).abs().max() / expected.abs().max()).item()
    print(
        f"{name}: largest difference {apart:.1e} of the largest value (guidance adds)", flush=True
    )
    found = compare(name, mine, theirs, runs, bar)
    return [found, judge(f"{name}, first call", [first], [found.ours], None)]


def plain(size: int, runs: int, config: dict[str, Any], how: Precision) -> list[Comparison]:
    """A step without anything."""
    ours, peer = unet_step.pair(config, torch.float32)
    context, latents = inputs(config, size)
    step = stepper(ours, context, OpenVino(how, kept=None))
    bar = BARS[how]["small" if size <= 32 else "step"]
    theirs = lambda: guided(peer, latents, context)  # noqa: E731
    return beside(f"step, {8 * size} px", lambda: step(latents, 0), theirs, runs, bar)


def lora(size: int, runs: int, config: dict[str, Any], how: Precision) -> list[Comparison]:
    """With differences to all attentions, the same in both."""
    from peft import LoraConfig

    ours, peer = unet_step.pair(config, torch.float32)
    context, latents = inputs(config, size)
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    peer.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets))
    arrays: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in peer.named_parameters():
        if ".lora_" in name:
            path, _, side = name.removesuffix(".default.weight").rpartition(".")
            torch.nn.init.uniform_(value, -0.05, 0.05)
            arrays.setdefault(path, {})[side] = value.detach()
    leaves = {path: LowRank(one["lora_A"], one["lora_B"]) for path, one in arrays.items()}
    step, sites = stepper(ours, context, OpenVino(how, kept=None)), Sites(leaves=leaves)
    theirs = lambda: guided(peer, latents, context)  # noqa: E731
    mine = lambda: step(latents, 0, sites)  # noqa: E731
    return beside(f"step with a LoRA, {8 * size} px", mine, theirs, runs, BARS[how]["controlled"])


def boxes(size: int, runs: int, config: dict[str, Any], how: Precision) -> list[Comparison]:
    """With two boxes."""
    ours, peer = grounded_step.pair({**config, "attention_type": "gated"}, torch.float32)
    context, latents = inputs(config, size)
    phrases = torch.randn(1, 2, context.shape[-1])
    engine = OpenVino(how, kept=None)
    steps = grounded_step.Steps(ours, peer, context, latents, phrases, None, engine)
    mine = lambda: steps.mine(steps.open)  # noqa: E731
    return beside(
        f"step with two boxes, {8 * size} px", mine, steps.theirs, runs, BARS[how]["controlled"]
    )


def maps(size: int, runs: int, config: dict[str, Any], how: Precision) -> list[Comparison]:
    """Along a map."""
    unet, nets, peer, peers = controlnet_step.networks(config, torch.float32, 1)
    context, latents = inputs(config, size)
    one = [torch.rand(1, 3, 8 * size, 8 * size)]
    engine = OpenVino(how, kept=None)
    steps = controlnet_step.Steps(unet, nets, peer, peers, context, latents, one, engine=engine)
    return beside(
        f"step along a map, {8 * size} px", steps.mine, steps.theirs, runs, BARS[how]["controlled"]
    )


def decode(size: int, runs: int, config: dict[str, Any], how: Precision) -> list[Comparison]:
    """An image from latents."""
    ours, peer = vae_decode.pair(config)
    latents, engine = torch.randn(1, 4, size, size), OpenVino(how, kept=None)
    mine = lambda: engine.run(Question(DECODE, ours, (latents,), ours.nn))  # noqa: E731
    theirs = lambda: peer.decode(latents).sample  # noqa: E731
    return beside(f"VAE decode, {8 * size} px", mine, theirs, runs, BARS[how]["decode"])


def tiny(runs: int, how: Precision) -> list[Comparison]:
    """A pipeline's step, where Python counts."""
    ours, peer = tiny_step.pipelines("DDIMScheduler")
    ours.engine = OpenVino(how, kept=None)
    given = {"prompt_embeds": torch.randn(1, 77, 32), "output_type": "latent"}
    given |= {"negative_prompt_embeds": torch.randn(1, 77, 32), "height": 16, "width": 16}
    given |= {"latents": torch.randn(1, 4, 8, 8), "num_inference_steps": tiny_step.STEPS}
    calls = (lambda: ours(**given).images), (lambda: peer(**given).images)
    return [compare("tiny pipeline step (s)", *calls, runs, 0.4, tiny_step.STEPS)]


def start(folder: Path, side: int, runs: int, how: Precision) -> list[Comparison]:
    """From the first line of a process to its first step, processor time on one thread."""
    threads = torch.get_num_threads()
    taken: dict[str, list[float]] = {"openvino": [], "eager": []}
    with tempfile.TemporaryDirectory() as kept:
        environment = {**os.environ, "UNDERDRAW_CACHE": kept}
        for turn in range(runs + 1):
            for engine in ("openvino", "eager"):
                named = how if engine == "openvino" else engine
                arguments = [str(folder), named, str(side), str(threads)]
                command = [sys.executable, "-W", "ignore", "-c", CHILD, *arguments]
                done = subprocess.run(command, env=environment, capture_output=True, check=True)
                seconds = [float(number) for number in done.stdout.split()]
                if turn:  # the first fills the cache
                    taken[engine].append(seconds[threads == 1])
                elif engine == "openvino":
                    print(f"first process, which compiles: {seconds[threads == 1]:.2f} s")
        size = sum(path.stat().st_size for path in Path(kept).iterdir())
        print(f"kept on disk: {size / 1e9:.2f} GB")
    name = f"start to first step, {side} px, from the cache, beside eager (s)"
    return [judge(name, taken["openvino"], taken["eager"], 1.0)]


def inputs(config: dict[str, Any], size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Context of both halves, and latents."""
    return torch.randn(2, 77, config["cross_attention_dim"]), torch.randn(1, 4, size, size)


@torch.no_grad()
def main(
    parts: Sequence[str] = PARTS.split(",")[:-1],
    sizes: Sequence[int] = (32, 64),
    runs: int = 3,
    unet: dict[str, Any] = SD15_UNET,
    vae: dict[str, Any] = SD15_VAE,
    folder: Path | None = None,
    how: Precision = "float32",
) -> list[Comparison]:
    """`sizes` are those of the latents; `how` is what the engine computes in."""
    made: list[Comparison] = []
    for part, measured in (("step", plain), ("lora", lora), ("boxes", boxes), ("maps", maps)):
        for size in sizes if part in parts else ():
            made += measured(size, runs, unet, how)
    for size in sizes if "decode" in parts else ():
        made += decode(size, runs, vae, how)
    if "tiny" in parts:
        made += tiny(max(5, runs), how)
    if "start" in parts and folder is not None:
        made += start(folder, 8 * min(sizes), runs, how)
    return made


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default=PARTS)
    parser.add_argument("--precision", choices=BARS)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json")
    given = parser.parse_args()
    sizes, runs = ((32,), 3) if given.quick else ((32, 64), 5)
    how = given.precision or ("bfloat16" if hardware.bfloat16_pays() else "float32")
    report(main(given.only.split(","), sizes, runs, folder=given.folder, how=how), given.json)
