"""Pictures, and short trainings on them."""

from __future__ import annotations

from typing import Any

import numpy as np

from underdraw.training.adapters.pictures import TrainingPictures
from underdraw.training.adapters.task import PicturesConfig
from underdraw.training.config import TrainingConfig

SHORT = TrainingConfig(2, 3, learning_rate=5e-3, warmup=1, ema=0.0, precision="float32")
SMALL = PicturesConfig(size=32)


def pictures(count: int = 5, caption: str = "a red sphere on the table") -> TrainingPictures:
    """Random ones, of which some are wide and some high."""
    rng = np.random.default_rng(0)
    sides = [(40, 44), (40, 90), (90, 40)]
    made = [rng.integers(0, 256, (*sides[i % 3], 3), np.uint8) for i in range(count)]
    return TrainingPictures(made, [[caption, f"a picture of {caption}"]] * count)


def bits(network: Any) -> list[np.ndarray]:
    """Copies of all weights."""
    return [value.detach().numpy().copy() for value in network.parameters()]
