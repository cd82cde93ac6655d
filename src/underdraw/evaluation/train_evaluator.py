"""Trains the evaluator: `python -m underdraw.evaluation.train_evaluator --renders FOLDER`.

Renders are made once and kept in FOLDER; an interrupted run goes on after its last whole epoch.
"""

from __future__ import annotations

import argparse
import io
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from underdraw.backends.torch_weights import tensor
from underdraw.errors import WeightError
from underdraw.evaluation.weights import write_network
from underdraw.formats.pickles import read_values
from underdraw.formats.writing import write_file

from .augment import augment
from .examples import SEED, Examples, render_examples
from .network import ATTRIBUTES, STRIDE, UNIT, Network, cell_centres, folded, split

SIDE = 128


@dataclass(frozen=True)
class Phase:
    """The first `renders` pictures seen `epochs` times with a one-cycle rate. With `subjects` that
    share of every batch is pictures with a patterned thing, which are rare and hard to read."""

    renders: int
    epochs: int
    rate: float
    subjects: float = 0.0


@dataclass(frozen=True)
class TrainConfig:
    """AdamW with weight decay `decay`, anew in every phase."""

    phases: tuple[Phase, ...] = (Phase(13_000, 4, 3e-3), Phase(16_000, 2, 1.2e-3, subjects=0.4))
    batch: int = 32
    decay: float = 0.02
    seed: int = SEED

    @property
    def renders(self) -> int:
        """How many pictures are needed."""
        return max(phase.renders for phase in self.phases)


@dataclass(frozen=True)
class Targets:
    """`heat` (n, rows, columns); `owner` int64, the object whose properties a cell is to tell,
    -1 for none; the rest as in `Examples`."""

    heat: Tensor
    owner: Tensor
    boxes: Tensor
    feet: Tensor
    labels: Tensor


def targets(boxes: Tensor, feet: Tensor, labels: Tensor, rows: int, columns: int) -> Targets:
    """What the network should say of pictures of rows * 4 x columns * 4 pixels. A bell around each
    visible box's middle is its heat; the 3 x 3 cells there (the nearest middle's) tell the rest."""
    size = torch.tensor([columns, rows], dtype=torch.float32)
    low, high = boxes[..., :2] * size, boxes[..., 2:] * size
    there = (high > low).all(-1)
    middle = ((low + high) / 2).clamp(min=torch.zeros(2), max=size - 1e-3)
    cell = middle.floor()
    sigma = ((high - low).amin(-1) * 0.13).clamp(min=0.8)
    grid = torch.stack(
        torch.meshgrid(torch.arange(columns), torch.arange(rows), indexing="xy"), dim=-1
    ).float()
    away = grid[None, None] - cell[:, :, None, None]  # (n, objects, rows, columns, 2)
    bell = torch.exp(-(away**2).sum(-1) / (2 * sigma[..., None, None] ** 2))
    heat = (bell * there[..., None, None]).amax(1)
    near = (away.abs().amax(-1) <= 1) & there[..., None, None]
    distance = ((grid[None, None] + 0.5 - middle[:, :, None, None]) ** 2).sum(-1)
    best, owner = distance.masked_fill(~near, torch.inf).min(1)
    return Targets(heat, owner.masked_fill(best.isinf(), -1), boxes, feet, labels)


def losses(output: Tensor, truth: Targets) -> dict[str, Tensor]:
    """Weighted losses by name; their sum is minimised."""
    told = split(output.float())
    rows, columns = output.shape[2:]
    logits, y = told["heat"][:, 0], truth.heat
    p = logits.sigmoid()
    objects = (y == 1).sum().clamp(min=1)
    hit = (1 - p) ** 2 * F.logsigmoid(logits) * (y == 1)
    miss = (1 - y) ** 4 * p**2 * F.logsigmoid(-logits)
    found = {"heat": -(hit + miss * (y < 1)).sum() / objects}

    picture, row, column = (truth.owner >= 0).nonzero(as_tuple=True)
    owner = truth.owner[picture, row, column]
    place = cell_centres(rows, columns)[:, row, column].T
    size = torch.tensor([columns, rows]) * STRIDE
    box = truth.boxes[picture, owner].reshape(-1, 2, 2) * size
    edges = torch.cat([place - box[:, 0], box[:, 1] - place], dim=1) / UNIT
    foot = (truth.feet[picture, owner] * size - place) / UNIT
    found["box"] = F.smooth_l1_loss(told["box"][picture, :, row, column], edges, beta=0.1)
    found["foot"] = 0.5 * F.smooth_l1_loss(told["foot"][picture, :, row, column], foot, beta=0.1)
    shape, colour, second, texture, material, dims = truth.labels[picture, owner].T
    wanted = {
        "shape": shape,
        # A pattern has two colours and no first one: both share the probability.
        "colour": (
            F.one_hot(colour, len(ATTRIBUTES["colour"]))
            + F.one_hot(torch.where(second < 0, colour, second), len(ATTRIBUTES["colour"]))
        ).float()
        / 2,
        "texture": texture,
        "material": material,
        "size": dims,
    }
    for name, label in wanted.items():
        found[name] = 0.5 * F.cross_entropy(told[name][picture, :, row, column], label)
    return found


def batch_of(examples: Examples, chosen: np.ndarray, rng: np.random.Generator):
    """Augmented pictures (n, 3, 128, 128) and targets; about half of them mirrored."""
    images = torch.from_numpy(examples.images[chosen]).permute(0, 3, 1, 2).float() / 255
    boxes = torch.from_numpy(examples.boxes[chosen])
    stands = torch.from_numpy(examples.feet[chosen])
    mirrored = torch.from_numpy(rng.random(len(chosen)) < 0.5)
    images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    turned = torch.stack([1 - boxes[..., 2], boxes[..., 1], 1 - boxes[..., 0], boxes[..., 3]], -1)
    turned = turned * (boxes[..., 2:3] > boxes[..., :1])  # empty slots stay empty
    boxes = torch.where(mirrored[:, None, None], turned, boxes)
    flipped = torch.stack([1 - stands[..., 0], stands[..., 1]], -1)
    stands = torch.where(mirrored[:, None, None], flipped, stands)
    labels = torch.from_numpy(examples.labels[chosen]).long()
    cells = SIDE // STRIDE
    return augment(images, rng), targets(boxes, stands, labels, cells, cells)


def epoch_order(labels: np.ndarray, subjects: float, batch: int, rng: np.random.Generator):
    """Which pictures each batch of an epoch shows: int (batches, batch)."""
    steps = len(labels) // batch
    order = rng.permutation(len(labels))[: steps * batch].reshape(steps, batch)
    if subjects:
        patterned = np.flatnonzero((labels[..., 3] > 0).any(1))
        swapped = round(subjects * batch)
        order[:, :swapped] = rng.choice(patterned, (steps, swapped))
        order = rng.permuted(order, axis=1)  # neighbours in a batch are treated alike
    return order


def train(examples: Examples, config: TrainConfig, state_path: Path | None = None) -> Network:
    """The network, batch norm folded. With `state_path` each epoch is kept there, and a run that
    finds it goes on from it."""
    torch.manual_seed(config.seed)
    network = Network().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    kept: dict = {"epochs": 0}
    before = 0
    if state_path is not None and state_path.exists():
        kept = read_values(state_path, lambda stored: tensor(stored).clone())
        try:
            network.load_state_dict(kept["network"])
        except (LookupError, RuntimeError, TypeError) as error:
            raise WeightError(f"{state_path} is no state of this training: {error}") from error
    for phase in config.phases:
        labels = examples.labels[: phase.renders]
        steps, total = len(labels) // config.batch, before + phase.epochs
        optimizer = torch.optim.AdamW(network.parameters(), phase.rate, weight_decay=config.decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, phase.rate, total_steps=steps * phase.epochs, pct_start=0.15
        )
        if before < kept["epochs"] < total:
            optimizer.load_state_dict(kept["optimizer"])
            schedule.load_state_dict(kept["schedule"])
        for epoch in range(max(before, kept["epochs"]), total):
            rng = np.random.default_rng([config.seed, epoch])
            order = epoch_order(labels, phase.subjects, config.batch, rng)
            _epoch(network, optimizer, schedule, examples, order, rng, f"epoch {epoch + 1}")
            if state_path is not None:
                parts = {"network": network, "optimizer": optimizer, "schedule": schedule}
                state = {name: part.state_dict() for name, part in parts.items()}
                made = io.BytesIO()
                torch.save({**state, "epochs": epoch + 1}, made)
                write_file(state_path, made.getvalue())
        before = total
    return folded(network)


def _epoch(
    network: Network,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    examples: Examples,
    order: np.ndarray,
    rng: np.random.Generator,
    title: str,
) -> None:
    network.train()
    bar = tqdm(order, desc=title, unit="batch", mininterval=5)
    for chosen in bar:
        images, truth = batch_of(examples, chosen, rng)
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            output = network(images)
        found = losses(output, truth)
        optimizer.zero_grad()
        torch.stack(list(found.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix({k: f"{v.item():.3f}" for k, v in found.items()}, refresh=False)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--renders", type=Path, required=True, help="folder of the renders")
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument("--count", type=int, help="at most that many renders, to try it out")
    parser.add_argument("--epochs", type=int, help="at most that many epochs per phase")
    parser.add_argument("--workers", type=int, default=1, help="processes that render")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    config = TrainConfig()
    count, epochs = given.count or config.renders, given.epochs or 1000
    phases = (
        replace(p, renders=min(p.renders, count), epochs=min(p.epochs, epochs))
        for p in config.phases
    )
    config = replace(config, phases=tuple(phases))
    examples = render_examples(given.renders, config.renders, config.seed, given.workers)
    began, spent = time.perf_counter(), time.process_time()
    network = train(examples, config, given.renders / "training.pt")
    write_network(network, given.out, config)
    print(
        f"trained in {time.perf_counter() - began:.0f} s ({time.process_time() - spent:.0f} s of "
        f"processor time), {given.out.stat().st_size / 1e6:.2f} MB"
    )


if __name__ == "__main__":
    main()
