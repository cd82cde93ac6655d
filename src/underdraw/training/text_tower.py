"""Pre-training the text tower of the scenes family: it learns to say what a caption says.

A small tower trained only through a denoiser takes long to learn which adjective belongs to which
noun. Here it is asked for that directly, which costs minutes: from the padding tokens after the end
token, the k-th about the k-th object mentioned (size, colour, material, shape, role in a relation,
and where in the picture it stands, as far as the words tell), from each noun about its own object,
and from the end token about everything, for that is what pooled embeddings are made of. The heads
that ask are thrown away afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from underdraw.models import CLIPTextModel
from underdraw.scenes import Caption, vocabulary
from underdraw.text.tokenizer import CLIPTokenizer
from underdraw.text.vocabulary import train_vocabulary
from underdraw.training.data import RenderedScenes, shuffled
from underdraw.training.loop import Batch, Draw, Figures
from underdraw.training.wire import Kept, at_hand

MENTIONS = 4
_KINDS = {
    "size": (None, *vocabulary.SIZES),
    "colour": (None, *vocabulary.COLOURS),
    "material": (None, *vocabulary.MATERIALS),
    "shape": (None, *vocabulary.SHAPES),
}
_ROLES = 1 + 2 * len(vocabulary.RELATIONS)
_SIZES = (*map(len, _KINDS.values()), _ROLES)
_FLOORS = (None, *vocabulary.FLOORS)
_LIGHTS = (None, *vocabulary.LIGHTS)
_SPARE = MENTIONS + 2  # padding tokens after the end token that are asked something
# Words that captions do not use today, but that people or later captions will.
_EXTRA = (
    "photo picture image of there is are and with an the thing things object table empty room next "
    "to above below under on top near between two three four bright dark light background middle "
    "center pattern patterned textured ball box ring matte shiny"
)


def scenes_tokenizer(captions: Iterable[str], length: int = 77) -> CLIPTokenizer:
    """A tokenizer whose vocabulary has a token for every word of the scenes."""
    names = ("SHAPES", "COLOURS", "MATERIALS", "SIZES", "FLOORS", "LIGHTS", "TEXTURES", "RELATIONS")
    words = [" ".join(getattr(vocabulary, name)) for name in names]
    vocab, merges = train_vocabulary([*captions, *3 * [*words, _EXTRA]], 1000)
    return CLIPTokenizer(vocab, merges, model_max_length=length)


def initialise(tower: Any, seed: int = 0) -> None:
    """Starting weights in the manner of CLIP (Radford et al. 2021), small in residual branches."""
    generator = torch.Generator().manual_seed(seed)
    scale = tower.config.hidden_size**-0.5
    small = (2 * tower.config.num_hidden_layers) ** -0.5
    with torch.no_grad():
        for name, p in tower.named_parameters():
            if "embedding" in name:
                p.normal_(0, 0.05, generator=generator)
            elif p.ndim == 2:
                branch = "out_proj" in name or "fc2" in name
                p.normal_(0, scale * (small if branch else 1), generator=generator)
            elif name.endswith("bias"):
                p.zero_()


class TextTowerTask:
    """`Task` for `CLIPTextModel` on captions of rendered scenes."""

    def __init__(
        self,
        tower: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        examples: RenderedScenes,
        seed: int = 0,
    ) -> None:
        self.tower: Any = tower
        self.tokenizer, self.examples, self.seed = tokenizer, examples, seed
        width = self.tower.config.hidden_size
        slot = sum(_SIZES) + 4
        self.heads = nn.ModuleDict(
            {
                "slot": nn.Linear(width, slot),
                "noun": nn.Linear(width, sum(_SIZES[:4])),
                "around": nn.Linear(width, len(_FLOORS) + len(_LIGHTS)),
                "pooled": nn.Linear(width, MENTIONS * slot),
            }
        )
        self.modules = {"text_encoder": self.tower, "heads": self.heads}
        words = [f"{word}</w>" for word in (*vocabulary.SHAPES, "thing")]
        self.nouns = Kept(torch.tensor(tokenizer.convert_tokens_to_ids(words)))

    def draw(self, draw: Draw) -> Batch:
        indices = shuffled(len(self.examples), draw.first, draw.count, self.seed)
        return self.ask(indices, draw.rng)

    def ask(self, indices: np.ndarray, rng: np.random.Generator) -> Batch:
        """Captions of the examples and the right answers."""
        said = [self.examples.described(int(i), rng) for i in indices]
        rows = self.tokenizer([loosely(c.text, rng) for c in said])["input_ids"]
        length = self.tower.config.max_position_embeddings
        rows = [row[: length - _SPARE] for row in rows]
        pad = self.tokenizer.pad_token_id
        answers = [
            _answers(c, self.examples.boxes(int(i))) for c, i in zip(said, indices, strict=True)
        ]
        facts, boxes, there, around = (
            torch.from_numpy(np.stack(part)) for part in zip(*answers, strict=True)
        )
        return {
            "ids": torch.tensor([row + [pad] * (length - len(row)) for row in rows]),
            "end": torch.tensor([len(row) - 1 for row in rows]),
            "facts": facts,
            "boxes": boxes,
            "there": there,
            "around": around,
        }

    def loss(self, batch: Batch) -> tuple[Tensor, Figures]:
        ids, end, facts = batch["ids"], batch["end"], batch["facts"]
        if at_hand(ids):  # what follows is not looked at
            ids = ids[:, : int(end.max()) + 1 + _SPARE]
        hidden = self.tower(ids).last_hidden_state.float()
        rows = torch.arange(len(end), device=end.device)
        after = end[:, None] + 1 + torch.arange(MENTIONS, device=end.device)
        slots = self.heads["slot"](hidden[rows[:, None], after])
        pooled = self.heads["pooled"](hidden[rows, end]).view(len(end), MENTIONS, -1)
        slot_loss, right = _grade(slots, batch)
        loss = slot_loss + 0.5 * _grade(pooled, batch)[0]

        around = self.heads["around"](hidden[rows, end + MENTIONS + 1])
        parts = around.split((len(_FLOORS), len(_LIGHTS)), 1)
        for part, answer in zip(parts, batch["around"].T, strict=True):
            loss = loss + 0.5 * F.cross_entropy(part.float(), answer)

        noun = (ids[..., None] == self.nouns.on(end.device)).any(-1)
        rank = noun.cumsum(1) - 1
        chosen = (noun & (rank < batch["there"].sum(1).long()[:, None])).float()
        rank = rank.clamp(0, MENTIONS - 1)
        parts = self.heads["noun"](hidden).float().split(_SIZES[:4], -1)
        for j, part in enumerate(parts):
            answer = facts[..., j].gather(1, rank)
            each = F.cross_entropy(part.transpose(1, 2), answer, reduction="none")
            loss = loss + 0.5 * (each * chosen).sum() / chosen.sum().clamp(min=1)
        return loss, {"right": right}

    def preview(self, folder: Path, step: int) -> dict[str, float]:
        """The share of unseen captions of which every object is told right."""
        held = np.arange(-self.examples.held_back, 0)
        batch = self.ask(np.repeat(held, 4), np.random.default_rng(1))
        device = self.tower.device
        moved = {name: value.to(device) for name, value in batch.items()}
        return {"captions_right": float(self.loss(moved)[1]["right"])}


def loosely(text: str, rng: np.random.Generator) -> str:
    """The caption as a hurried person types it, now and then: without articles, commas, or with a
    full stop."""
    draw = rng.random(3)
    if draw[0] < 0.06:
        text = " ".join(word for word in text.split() if word not in ("a", "an", "the"))
    if draw[1] < 0.06:
        text += "."
    return text.replace(",", "") if draw[2] < 0.04 else text


def _answers(said: Caption, boxes: np.ndarray) -> tuple[np.ndarray, ...]:
    """Per mention: five facts, a box, whether it is there; and floor and light."""
    facts = np.zeros((MENTIONS, len(_SIZES)), np.int64)
    places, there = np.zeros((MENTIONS, 4), np.float32), np.zeros(MENTIONS, np.float32)
    for k, mention in enumerate(said.mentions[:MENTIONS]):
        facts[k, :4] = [kinds.index(getattr(mention, name)) for name, kinds in _KINDS.items()]
        places[k], there[k] = boxes[mention.object], 1
    for relation in said.relations:
        kind = vocabulary.RELATIONS.index(relation.kind)
        for k, role in ((relation.first, 1), (relation.second, 1 + len(vocabulary.RELATIONS))):
            if facts[k, 4] == 0:
                facts[k, 4] = role + kind
    around = np.array([_FLOORS.index(said.floor), _LIGHTS.index(said.light)])
    return facts, places, there, around


def _grade(answers: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Loss of answers `(batch, mentions, ...)`, and the share of captions all right."""
    *parts, boxes = answers.float().split((*_SIZES, 4), -1)
    facts = batch["facts"]
    loss = 10 * ((boxes - batch["boxes"]).square().mean(-1) * batch["there"]).mean()
    right = torch.ones(facts.shape[:2], dtype=torch.bool, device=facts.device)
    for j, part in enumerate(parts):
        loss = loss + F.cross_entropy(part.flatten(0, 1), facts[..., j].flatten())
        right &= part.argmax(-1) == facts[..., j]
    return loss, right.all(1).float().mean()
