"""Teaching positions of a picture which box they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from underdraw.backends.node import at
from underdraw.networks.layers import split_heads
from underdraw.networks.sites import Sites


class Watched:
    """The fusers of one call, asked at each position of the picture which box it belongs to.

    Of what a position gives to grounding tokens, each box should get as much as it covers of the
    position, and the null tokens the rest. Positions that know their boxes are half of what the
    layers must learn, and denoising alone teaches it slowly: a wrong place costs little there as
    long as nothing is put into it.

    `losses` are the cross-entropies of the fusers that have acted.
    """

    def __init__(
        self, part: Any, acting: Sites, boxes: Tensor, present: Tensor, size: Sequence[int]
    ) -> None:
        self.part, self.boxes, self.present = part, boxes, present
        self.rows, self.columns = (int(side) for side in size)
        (self.fusers,) = acting.after_self_attention
        self.sites = replace(acting, after_self_attention=(self._fuse,))
        self.losses: list[Tensor] = []

    def _fuse(self, nn: Any, place: str, x: Tensor) -> Tensor:
        self.losses.append(self._ask(nn, place, x))
        return self.fusers(nn, place, x)

    def _ask(self, nn: Any, place: str, x: Tensor) -> Tensor:
        fusers: Any = self.fusers
        fuser, constants = at(self.part, place).fuser, fusers.constants
        keys, _ = constants.keys[place]
        heads = keys.shape[1]
        query = nn.linear(fuser.attn.to_q, nn.layer_norm(fuser.norm1, x), x.shape[-1], False)
        scores = split_heads(nn, query, heads) @ keys.transpose(2, 3)
        scores = scores.float() * keys.shape[-1] ** -0.5
        if constants.bias is not None:
            scores = scores + constants.bias
        given = scores.softmax(-1).mean(1)  # (images, positions, tokens)
        count = self.boxes.shape[1]
        # A box has a token of each sort (phrase, picture); boxes that are not there are null, too.
        each = count + (count < self.part.config.limit)
        by_sort = given.unflatten(-1, (-1, each)).sum(2)
        boxes = by_sort[..., :count] * self.present[:, None]
        null = 1 - boxes.sum(-1, keepdim=True)
        said = torch.cat([boxes, null], -1).clamp(min=1e-6)
        return -(self._shares(x.shape[1]) * said.log()).sum(-1).mean()

    def _shares(self, positions: int) -> Tensor:
        """`(images, positions, boxes + 1)`: how much of each position boxes and nothing cover."""
        sides = self.rows, self.columns
        while sides[0] * sides[1] > positions:
            sides = -(-sides[0] // 2), -(-sides[1] // 2)
        covered = []
        for axis, side in ((1, sides[0]), (0, sides[1])):
            edges = torch.arange(side, device=self.boxes.device) / side
            low, high = (self.boxes[..., k, None] * 1.0 for k in (axis, axis + 2))
            shared = torch.minimum(high, edges + 1 / side) - torch.maximum(low, edges)
            covered.append(shared.clamp(min=0) * side)
        shares = covered[0][:, :, :, None] * covered[1][:, :, None] * self.present[..., None, None]
        shares = shares.flatten(2).transpose(1, 2)
        shares = torch.cat([shares, (1 - shares.sum(-1, keepdim=True)).clamp(min=0)], -1)
        return shares / shares.sum(-1, keepdim=True)
