"""Captions that are read ahead are those a text tower reads in the loop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from underdraw.errors import InputError, NotFoundError
from underdraw.training import spoken
from underdraw.training.loop import Draw
from underdraw.training.spoken import Spoken, read_captions
from underdraw.training.text_to_image import TextToImageConfig, TextToImageTask


class Examples:
    """Seven examples; a caption is a number, which another stream of randomness changes."""

    def __len__(self) -> int:
        return 7

    def captions(self, indices: np.ndarray, rng: np.random.Generator) -> list[str]:
        return [f"{i} {rng.integers(1000)}" for i in indices]


class Tower(torch.nn.Module):
    """Says of a text its ids, plainly."""

    config = SimpleNamespace(max_position_embeddings=5)
    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.read = 0

    def forward(self, ids: torch.Tensor) -> Any:
        self.read += len(ids)
        return SimpleNamespace(last_hidden_state=ids[..., None].expand(-1, -1, 3).float())


def tokens(texts: list[str], **options: Any) -> dict[str, Any]:
    numbers = [[1, *map(int, text.split())] if text else [1] for text in texts]
    return {"input_ids": [(row + [0] * 5)[:5] for row in numbers]}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(spoken, "SHARD", 3)
    return tmp_path / "captions"


def test_contexts_are_those_of_the_captions(folder: Path) -> None:
    read_captions(Tower(), tokens, Examples(), folder, 2, seed=4, batch=4)
    made = Spoken(folder, 7)
    told = spoken.draw_captions(Examples(), 0, 7, 2, 4)
    assert len(set(told)) == 14
    indices, which = np.array([5, 0, 6, 5, 2]), np.array([1, 0, 1, -1, 1])
    found = made.contexts(indices, which)
    texts = ["" if c < 0 else told[2 * i + c] for i, c in zip(indices, which, strict=True)]
    expected = torch.tensor(tokens(texts)["input_ids"])[..., None].expand(-1, -1, 3).float()
    assert torch.equal(found, expected)


def test_what_was_read_is_kept(folder: Path) -> None:
    read_captions(Tower(), tokens, Examples(), folder, 2)
    (folder / "001.npy").unlink()  # an interruption
    (folder / "002.npy").write_bytes(b"torn")
    tower = Tower()
    read_captions(tower, tokens, Examples(), folder, 2)
    assert tower.read == 1 + 2 * 4  # the empty one, and those of the last four examples
    assert Spoken(folder, 7).count == 2


def test_captions_of_other_examples_are_refused(folder: Path) -> None:
    with pytest.raises(NotFoundError, match="holds no captions"):
        Spoken(folder, 7)
    read_captions(Tower(), tokens, Examples(), folder, 1)
    with pytest.raises(InputError, match="captions of 7 examples, not 9"):
        Spoken(folder, 9)


def test_a_step_takes_them(folder: Path) -> None:
    read_captions(Tower(), tokens, Examples(), folder, 2)
    family = {"unet": torch.nn.Linear(1, 1), "text_encoder": Tower(), "tokenizer": tokens}
    latents = np.zeros((7, 4, 2, 2), np.float16)
    given: dict[str, Any] = {"spoken": Spoken(folder, 7)}
    config = TextToImageConfig(drop_caption=0.5)
    task = TextToImageTask(family, Examples(), config, latents, **given)  # type: ignore[arg-type]
    batch = task.draw(Draw(0, 7, np.random.default_rng(1)))
    assert "ids" not in batch and batch["context"].shape == (7, 5, 3)
    empty = (batch["context"][:, 1:] == 0).all((1, 2))
    assert 0 < empty.sum() < 7
    with pytest.raises(InputError, match="train_text=True"):
        TextToImageTask(
            family,
            Examples(),
            replace(config, train_text=True),
            latents,
            **given,  # type: ignore[arg-type]
        )
