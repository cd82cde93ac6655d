"""Teaching a denoiser what is in the picture it draws, where the data set can say so.

Small heads read the network's own features on the way up and tell, for each cell of the latents,
which shape, colour and material stands there, and where in the picture the cell is. The gradient
ties words to places much earlier than the denoising loss alone, and gives layers for boxes, added
later, features that tell left from right (convolutions know it from their borders only). It is the
idea of representation alignment (Yu et al. 2024, REPA) with the renderer's truth in place of a
pretrained encoder. The heads are no part of a pipeline, but lie beside its networks: new ones
would take a training that goes on away from where it was.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from underdraw.backends.torch_weights import tensor
from underdraw.errors import NotFoundError
from underdraw.networks.config import UNetConfig
from underdraw.networks.sites import Sites
from underdraw.training.wire import Kept
from underdraw.weights.files import open_tensors
from underdraw.weights.hub import resolve
from underdraw.weights.save import save_tensors


class Recorder:
    """Keeps the hidden features that enter given up blocks during one call."""

    def __init__(self, places: tuple[str, ...]) -> None:
        self.places = places
        self.seen: dict[str, Tensor] = {}

    @property
    def sites(self) -> Sites:
        """To be passed to the call; changes nothing in it."""
        return Sites(join=(self._join,))

    def _join(self, nn: Any, place: str, hidden: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        if place in self.places:
            self.seen.setdefault(place, hidden)
        return hidden, skip


WAVES = (1, 2, 4)
"""Half waves across the picture in which a cell tells its place."""


def places_of(rows: int, columns: int) -> Tensor:
    """What each cell tells of its place, `(4 * len(WAVES), rows, columns)`: sine and cosine of its
    height and of its side, the middle of a cell being what counts."""
    down = (torch.arange(rows) + 0.5) / rows
    right = (torch.arange(columns) + 0.5) / columns
    angles = torch.pi * torch.stack(torch.meshgrid(down, right, indexing="ij"))
    turned = torch.cat([wave * angles for wave in WAVES])
    return torch.cat([turned.sin(), turned.cos()])


FOLDER, FILE = "truth", "heads.safetensors"
"""Of heads in the folder of a family."""


class TruthHeads(nn.Module):
    """What tells cells from features `(batch, channels, rows / k, columns / k)`.

    Args:
        widths: channels of the features by place.
        kinds: how many answers each question about a cell has; answer 0 of the first question
            means that nothing stands there, and the other questions are then not asked.
    """

    def __init__(self, widths: dict[str, int], kinds: tuple[int, ...], finest: int = 2) -> None:
        super().__init__()
        self.kinds, self.finest, self.places = kinds, finest, tuple(widths)
        answers = sum(kinds) + 4 * len(WAVES)
        self._where: dict[tuple[int, int], Kept] = {}
        self.heads = nn.ModuleDict(
            {
                place.replace(".", "_"): nn.Conv2d(width, answers * finest**2, 1)
                for place, width in widths.items()
            }
        )

    @classmethod
    def for_unet(cls, unet: UNetConfig, kinds: tuple[int, ...]) -> TruthHeads:
        """Heads on what enters the last two blocks of the way up."""
        *_, wide, deep = unet.block_out_channels
        last = len(unet.block_out_channels) - 1
        return cls({f"up_blocks.{last - 1}": deep, f"up_blocks.{last}": wide}, kinds)

    def asked(self, examples: Any, indices: np.ndarray) -> Tensor:
        """What examples with `truth` answer, `(n, questions, rows, columns)`: uint8 where the
        answers are few."""
        truth = examples.truth(indices)
        return torch.from_numpy(truth.astype(np.uint8) if max(self.kinds) <= 256 else truth)

    def forward(self, seen: dict[str, Tensor], truth: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss over places, and of the last place the share of filled cells told all right and
        how far off its cells' own places are (1: it does not know them). `truth (batch, questions,
        rows, columns)`, whole numbers such as `asked` gives."""
        truth = truth.long()
        total = right = lost = torch.zeros((), device=truth.device)
        filled = truth[:, 0] > 0
        here, bare = filled.float(), (~filled).float()
        size = (truth.shape[2], truth.shape[3])
        if size not in self._where:
            self._where[size] = Kept(places_of(*size))
        where = self._where[size].on(truth.device)
        for place, features in seen.items():
            told = F.pixel_shuffle(self.heads[place.replace(".", "_")](features), self.finest)
            rows, columns = truth.shape[2:]
            if tuple(told.shape[2:]) != (rows, columns):
                told = F.adaptive_avg_pool2d(told.float(), (rows, columns))
            *parts, at = told.float().split((*self.kinds, len(where)), 1)
            correct = torch.ones_like(filled)
            for question, part in enumerate(parts):
                each = F.cross_entropy(part, truth[:, question], reduction="none")
                # Empty cells are many and easy: each side counts as a whole.
                total = total + _share(each, here)
                if question == 0:
                    total = total + _share(each, bare)
                correct &= part.argmax(1) == truth[:, question]
            right = _share(correct.float(), here)
            lost = 2 * (at - where).square().mean()
            total = total + len(WAVES) * lost
        return total / len(seen), {"cells_right": right.detach(), "cells_lost": lost.detach()}


def save_heads(heads: TruthHeads, folder: Path) -> None:
    """Write heads into the folder of a family, in half precision."""
    (folder / FOLDER).mkdir(exist_ok=True)
    state = {k: v.detach().half().cpu().numpy() for k, v in heads.state_dict().items()}
    save_tensors(folder / FOLDER / FILE, state)


def read_heads(family: str) -> dict[str, Tensor] | None:
    """The state of the heads in the folder of a family, in float32; None where it has none."""
    try:
        held = open_tensors(resolve(family, subfolder=FOLDER) / FOLDER / FILE)
    except NotFoundError:
        return None
    return {name: tensor(stored).float().clone() for name, stored in held.items()}


def _share(values: Tensor, cells: Tensor) -> Tensor:
    """The mean over some cells, 0 where there are none; asks the device for nothing."""
    return (values * cells).sum() / cells.sum().clamp(min=1)
