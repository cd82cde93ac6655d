"""Images a second of the denoiser's training: PyTorch's way, and parts of a step on threads.

    python benchmarks/training_rate.py [--quick] [--json FILE]

Both sides take the recipe's step (batch 32, truth heads, AdamW) from the same weights. "peer"
leaves each operation to all cores, has the text tower read the captions of each step and moves the
weights operation by operation, as the trainer did at first; "ours" is what `train_stage` does on
this machine: a thread for each part of the batch, captions read ahead, weights moved in one pass.
Seconds a step, alternating. Bar for two quiet cores: 0.74, that is 1.35 times as many images. Begin
it without OMP_NUM_THREADS and MKL_NUM_THREADS in the environment; `THP_MEM_ALLOC_ENABLE=1` gives
both sides large pages.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import arguments, compare, report

from underdraw.training.data import RenderedScenes, render_cache
from underdraw.training.lanes import lanes_for
from underdraw.training.loop import _Run
from underdraw.training.parallel import Group
from underdraw.training.scenes_recipe import ScenesRecipe
from underdraw.training.spoken import Spoken, read_captions
from underdraw.training.text_to_image import TextToImageTask
from underdraw.training.workshop import Workshop

SCENES = 192


def make_run(folder: Path, name: str, ahead: bool) -> _Run:
    """A run of the recipe's denoiser on a few scenes, with random latents."""
    shop = Workshop(ScenesRecipe(start="underdraw/scenes"), folder)
    examples, family = RenderedScenes(folder / "renders"), shop.family()
    shape = (len(examples), 4, 16, 16)
    latents = np.random.default_rng(0).normal(size=shape).astype(np.float16)
    config = replace(shop.recipe.denoiser, prompts=())
    spoken = None
    if ahead:
        place = folder / "captions"
        read_captions(family["text_encoder"], family["tokenizer"], examples, place, 1)
        spoken = Spoken(place, len(examples))
    run = replace(shop.recipe.run("denoiser"), steps=10**6, optimizer="adamw", log_steps=10**6)
    run = replace(run, threads=lanes_for(run) if ahead else 0)
    print(f"{name}: {run.threads} parts at a time, {torch.get_num_threads()} threads of PyTorch's")
    task: Any = TextToImageTask(family, examples, config, latents, spoken=spoken)
    made = _Run(task, run, folder / name, torch.device("cpu"), Group())
    if not ahead:
        for group in made.optimizers.all["optimizer"][0].param_groups:
            group.update(fused=False, foreach=True)
    return made


def main() -> None:
    flags, path = arguments("--quick")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        render_cache(folder / "renders", SCENES, workers=2)
        threads = torch.get_num_threads()
        peer, ours = make_run(folder, "peer", False), make_run(folder, "ours", True)

        def before() -> None:
            torch.set_num_threads(threads)  # which lanes take away
            peer.advance(False)

        def now() -> None:
            torch.set_num_threads(1)
            ours.advance(False)

        how: dict[str, Any] = {"runs": 3 if "--quick" in flags else 15, "bar": 0.74}
        found = compare("training step, batch 32", now, before, clock=time.perf_counter, **how)
        ours.close()
    rates = [32 / seconds for seconds in (found.peer, found.ours)]
    print(
        f"images a second: {rates[0]:.1f} before, {rates[1]:.1f} now, {1 / found.ratio:.2f} times"
    )
    report([found], path)


if __name__ == "__main__":
    main()
