"""How much a denoiser learns from so many images: its held-out loss, begun from nothing.

    python benchmarks/learning.py [--images 12800] [--scenes 4096] [--folder FOLDER] [--json FILE]

The denoiser of the scenes family is trained as the recipe was first published (AdamW at 6e-4) on
`--images`, and as the recipe is now on half as many and on as many; rates fall to zero within each
run. The loss is that of the averaged weights on the captions of 64 held-back scenes, the mean over
nine levels of noise, with the same noise for all. Bar: now, after half of the images, at most what
it was then. In `--folder` what was rendered and trained is kept, and its curves.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from underdraw.benchmark.machine import described
from underdraw.training.config import TrainingConfig
from underdraw.training.data import RenderedScenes
from underdraw.training.loop import train
from underdraw.training.recipes import train_stage
from underdraw.training.scenes_recipe import ScenesRecipe
from underdraw.training.text_to_image import TextToImageTask
from underdraw.training.workshop import LATENTS, Workshop

LEVELS = range(100, 1000, 100)
FIRST = TrainingConfig(1, 32, learning_rate=6e-4, decay=0.35, ema=0.999)
"""The recipe's of 2026-11-20."""


class HeldOut:
    """The loss of a denoiser on scenes that it is not trained on."""

    def __init__(self, task: TextToImageTask, examples: RenderedScenes) -> None:
        held, rng = np.arange(-examples.held_back, 0), np.random.default_rng(0)
        with torch.no_grad():
            mean = task.vae.encode(examples.images(held)).latent_dist.mean
        self.task, self.clean = task, mean * task.scale
        self.ids = task.tokenize(examples.captions(held, rng))
        self.noise = torch.randn(self.clean.shape, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def loss(self, unet: Any) -> float:
        """Mean over `LEVELS` of the loss of denoising."""
        task, found = self.task, []
        context = task.text_encoder(self.ids).last_hidden_state
        for level in LEVELS:
            times = torch.full((len(self.clean),), level)
            noisy = task.objective.add_noise(self.clean, self.noise, times)
            output = unet(noisy, times, context).sample
            found.append(task.objective.loss(output, self.clean, self.noise, times).item())
        return float(np.mean(found))


def learned(folder: Path, name: str, config: TrainingConfig, images: int) -> float:
    """The held-out loss after a training on so many images, or of the one that is there."""
    recipe = ScenesRecipe(start="underdraw/scenes", anew=("unet", "truth"))
    shop = Workshop(recipe, folder)
    steps, place = images // config.batch, folder / f"{name}, {images}"
    run = replace(config, steps=steps, warmup=min(config.warmup, steps // 10), preview_minutes=1e6)
    task: Any = TextToImageTask(
        shop.family(trained=False),
        shop.examples,
        replace(recipe.denoiser, prompts=()),
        np.load(folder / LATENTS),
    )
    with train(task, run, place).applied():
        loss = HeldOut(task, shop.examples).loss(task.unet)
    print(f"{name}: {images} images, held-out loss {loss:.4f}", flush=True)
    return loss


def main(folder: Path, images: int, scenes: int) -> list[dict[str, Any]]:
    """The losses, told as they are known."""
    recipe = ScenesRecipe(start="underdraw/scenes", scenes=scenes, views=1)
    for stage in ("renders", "latents"):
        train_stage(stage, folder, recipe)
    now = recipe.run("denoiser")
    sides = (("first", FIRST, images), ("now", now, images // 2), ("now", now, images))
    rows = [
        {"name": name, "images": count, "loss": learned(folder, name, config, count)}
        for name, config, count in sides
    ]
    first, half, _ = (row["loss"] for row in rows)
    print(f"after half of the images {half / first:.3f} of the loss{'  MISSED' * (half > first)}")
    return rows


if __name__ == "__main__":
    reader = argparse.ArgumentParser()
    reader.add_argument("--images", type=int, default=12800)
    reader.add_argument("--scenes", type=int, default=4096)
    reader.add_argument("--folder", type=Path)
    reader.add_argument("--json", type=Path)
    told = reader.parse_args()
    with tempfile.TemporaryDirectory() as place:
        found = main(told.folder or Path(place), told.images, told.scenes)
    if told.json:
        told.json.write_text(json.dumps({**described(), "results": found}, indent=1) + "\n")
