"""Teaching a denoiser what is in the picture it draws, where the data set can say so.

Small heads read the network's own features on the way up and tell, for each cell of the latents,
which shape, colour and material stands there. The gradient ties words to places much earlier than
the denoising loss alone. It is the idea of representation alignment (Yu et al. 2024, REPA) with
the renderer's truth in place of a pretrained encoder. The heads are thrown away afterwards.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from underdraw.networks.config import UNetConfig
from underdraw.networks.sites import Sites


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


class TruthHeads(nn.Module):
    """Classifiers of cells on features `(batch, channels, rows / k, columns / k)`.

    Args:
        widths: channels of the features by place.
        kinds: how many answers each question about a cell has; answer 0 of the first question
            means that nothing stands there, and the other questions are then not asked.
    """

    def __init__(self, widths: dict[str, int], kinds: tuple[int, ...], finest: int = 2) -> None:
        super().__init__()
        self.kinds, self.finest, self.places = kinds, finest, tuple(widths)
        self.heads = nn.ModuleDict(
            {
                place.replace(".", "_"): nn.Conv2d(width, sum(kinds) * finest**2, 1)
                for place, width in widths.items()
            }
        )

    @classmethod
    def for_unet(cls, unet: UNetConfig, kinds: tuple[int, ...]) -> TruthHeads:
        """Heads on what enters the last two blocks of the way up."""
        *_, wide, deep = unet.block_out_channels
        last = len(unet.block_out_channels) - 1
        return cls({f"up_blocks.{last - 1}": deep, f"up_blocks.{last}": wide}, kinds)

    def forward(self, seen: dict[str, Tensor], truth: Tensor) -> tuple[Tensor, float]:
        """Mean loss over places, and the share of filled cells of which the last place tells all
        right. `truth (batch, questions, rows, columns)`, int64."""
        total, right = torch.zeros((), device=truth.device), 0.0
        filled = truth[:, 0] > 0
        for place, features in seen.items():
            told = F.pixel_shuffle(self.heads[place.replace(".", "_")](features), self.finest)
            rows, columns = truth.shape[2:]
            if tuple(told.shape[2:]) != (rows, columns):
                told = F.adaptive_avg_pool2d(told.float(), (rows, columns))
            parts = told.float().split(self.kinds, 1)
            correct = torch.ones_like(filled)
            for question, part in enumerate(parts):
                each = F.cross_entropy(part, truth[:, question], reduction="none")
                # Empty cells are many and easy: each side counts as a whole.
                total = total + each[filled].mean() if bool(filled.any()) else total
                if question == 0:
                    total = total + each[~filled].mean()
                correct &= part.argmax(1) == truth[:, question]
            right = correct[filled].float().mean().item() if bool(filled.any()) else 1.0
        return total / len(seen), right
