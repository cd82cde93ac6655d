"""A task as small as it goes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from underdraw.training.loop import TrainingConfig

CONFIG = TrainingConfig(
    steps=7, batch=6, learning_rate=1e-2, warmup=2, precision="float32", seed=3, log_steps=2
)


class Line:
    """Fits a line with dropout and noise, so that all kinds of randomness matter."""

    def __init__(self, dropout: float = 0.3) -> None:
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(5, 8), nn.Dropout(dropout), nn.Linear(8, 1))
        self.modules = {"net": self.net}
        self.firsts: list[int] = []
        self.previews: list[int] = []
        self.poison = -1

    def draw(self, draw):
        self.firsts.append(draw.first)
        x = torch.from_numpy(draw.rng.normal(size=(draw.count, 5)).astype(np.float32))
        return {"x": x, "noise": torch.randn(draw.count, 1, generator=draw.generator())}

    def loss(self, batch):
        target = batch["x"].sum(1, keepdim=True) + 0.1 * batch["noise"]
        loss = (self.net(batch["x"]) - target).square().mean()
        if len(self.firsts) - 1 == self.poison:
            loss = loss * float("nan")
        return loss, {"double": 2 * loss.item()}

    def preview(self, folder: Path, step: int):
        self.previews.append(step)
        assert not self.net.training
        return {"first": self.net[0].weight[0, 0].item()}


def weights(task: Line) -> list[torch.Tensor]:
    return [p.detach().clone() for p in task.net.parameters()]
