"""What is learnt from so many images: what is trained, measured, and told."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from underdraw.training.objectives import Objective, ObjectiveConfig

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


class Held:
    """Two pictures that were held back."""

    held_back = 2

    def images(self, indices: np.ndarray) -> torch.Tensor:
        assert indices.tolist() == [-2, -1]
        return torch.ones(2, 3, 8, 8)

    def captions(self, indices: np.ndarray, rng: Any) -> list[str]:
        return ["a cube", "a cone"]


def test_the_loss_is_the_mean_over_levels_of_noise():
    import learning

    mean = torch.randn(2, 4, 2, 2, generator=torch.Generator().manual_seed(1))
    encoded = SimpleNamespace(latent_dist=SimpleNamespace(mean=mean))
    task: Any = SimpleNamespace(
        vae=SimpleNamespace(encode=lambda images: encoded),
        scale=0.5,
        objective=Objective(ObjectiveConfig()),
        tokenize=lambda texts: texts,
        text_encoder=lambda ids: SimpleNamespace(last_hidden_state=ids),
    )
    held, off, seen = learning.HeldOut(task, Held()), 0.0, []

    def unet(noisy: torch.Tensor, times: torch.Tensor, context: Any) -> Any:
        assert context == ["a cube", "a cone"]
        seen.append(int(times[0]))
        wanted = task.objective.target(0.5 * mean, held.noise, times)
        return SimpleNamespace(sample=wanted + off * len(seen))

    assert held.loss(unet) == 0
    seen.clear()
    off = 0.1
    per = [task.objective.loss(*_apart(task, held, mean, level, n)) for n, level in _numbered()]
    assert held.loss(unet) == pytest.approx(float(torch.stack(per).mean()), rel=1e-5)
    assert seen == [*range(100, 1000, 100)]


def _numbered() -> list[tuple[int, int]]:
    return [*enumerate(range(100, 1000, 100), 1)]


def _apart(task: Any, held: Any, mean: torch.Tensor, level: int, number: int) -> Any:
    times = torch.full((2,), level)
    wanted = task.objective.target(0.5 * mean, held.noise, times)
    return wanted + 0.1 * number, 0.5 * mean, held.noise, times


@pytest.mark.parametrize("half", [0.4, 0.6])
def test_half_of_the_images_are_held_against_all(tmp_path, monkeypatch, capsys, half):
    import learning

    asked: list[Any] = []

    def learned(folder: Path, name: str, config: Any, images: int) -> float:
        asked.append((name, config.optimizer, images))
        return half if name == "now" and images == 64 else 0.5

    monkeypatch.setattr(learning, "learned", learned)
    monkeypatch.setattr(learning, "train_stage", lambda stage, *_: asked.append(stage))
    rows = learning.main(tmp_path, 128, 80)
    kinds = [("first", "adamw", 128), ("now", "muon", 64), ("now", "muon", 128)]
    assert asked == ["renders", "latents", *kinds]
    assert [row["loss"] for row in rows] == [0.5, half, 0.5]
    assert ("MISSED" in capsys.readouterr().out) == (half > 0.5)
