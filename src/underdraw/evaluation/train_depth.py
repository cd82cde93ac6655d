"""Trains the depth estimator: `python -m underdraw.evaluation.train_depth --renders FOLDER`.

Renders are made once and kept in FOLDER; they may be those of `train_evaluator`.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from underdraw.evaluation.weights import write_network
from underdraw.scenes.depth import depth_of

from .augment import augment
from .examples import SEED, Examples, example_scene, render_examples
from .network import DepthNetwork, folded


@dataclass(frozen=True)
class DepthConfig:
    """The first `renders` pictures seen `epochs` times with a one-cycle rate of AdamW."""

    renders: int = 4000
    epochs: int = 8
    batch: int = 16
    rate: float = 4e-3
    decay: float = 0.01
    seed: int = SEED


def inverse_depths(seed: int, count: int) -> np.ndarray:
    """Of the first examples, float32 `(count, 128, 128)`: 1 at the nearest place of each."""
    near = [1 / depth_of(example_scene(seed, i)) for i in range(count)]
    return np.stack([(one - one.min()) / np.ptp(one) for one in near])


def train(examples: Examples, depths: np.ndarray, config: DepthConfig) -> DepthNetwork:
    """The network, batch norm folded."""
    torch.manual_seed(config.seed)
    network = DepthNetwork().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    steps = len(examples) // config.batch * config.epochs
    optimizer = torch.optim.AdamW(network.parameters(), config.rate, weight_decay=config.decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.rate, total_steps=steps, pct_start=0.15
    )
    network.train()
    rng = np.random.default_rng(config.seed)
    for epoch in range(config.epochs):
        order = rng.permutation(len(examples))
        batches = order[: len(order) // config.batch * config.batch].reshape(-1, config.batch)
        bar = tqdm(batches, desc=f"epoch {epoch + 1}", unit="batch", mininterval=5)
        for chosen in bar:
            images, truth = _batch(examples, depths, chosen, rng)
            loss = F.l1_loss(network(images), truth)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            bar.set_postfix({"error": f"{loss.item():.4f}"}, refresh=False)
    return folded(network)


def _batch(
    examples: Examples, depths: np.ndarray, chosen: np.ndarray, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Augmented pictures and their inverse depth, about half of them mirrored."""
    images = torch.from_numpy(examples.images[chosen]).permute(0, 3, 1, 2).float() / 255
    truth = torch.from_numpy(depths[chosen])[:, None]
    mirrored = torch.from_numpy(rng.random(len(chosen)) < 0.5)[:, None, None, None]
    images = torch.where(mirrored, images.flip(3), images)
    truth = torch.where(mirrored, truth.flip(3), truth)
    images = augment(images, rng)
    return images.contiguous(memory_format=torch.channels_last), truth


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--renders", type=Path, required=True, help="folder of the renders")
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument("--count", type=int, help="so many renders instead")
    parser.add_argument("--epochs", type=int, help="so many epochs instead")
    parser.add_argument("--workers", type=int, default=1, help="processes that render")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    config = DepthConfig()
    config = replace(
        config, renders=given.count or config.renders, epochs=given.epochs or config.epochs
    )
    examples = render_examples(given.renders, config.renders, config.seed, given.workers)
    depths = inverse_depths(config.seed, config.renders)
    began, spent = time.perf_counter(), time.process_time()
    write_network(train(examples, depths, config), given.out, config)
    print(
        f"trained in {time.perf_counter() - began:.0f} s ({time.process_time() - spent:.0f} s of "
        f"processor time), {given.out.stat().st_size / 1e6:.2f} MB"
    )


if __name__ == "__main__":
    main()
