"""Contrastive training of an image tower with a text tower (Radford et al. 2021)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from underdraw.errors import InputError
from underdraw.training.data import Examples, RenderedScenes, shuffled
from underdraw.training.loop import Batch, Draw, Figures
from underdraw.training.views import Views
from underdraw.training.wire import Kept, in_bytes, signed, windows, without_padding

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""Channel statistics by which CLIP's image processor normalises pixels in [0, 1]."""
_STATISTICS = tuple(Kept(torch.tensor(value).view(1, 3, 1, 1)) for value in (MEAN, STD))
SHORT = 48
"""Tokens into which the captions of scenes fit, with some to spare."""


@dataclass(frozen=True)
class ContrastiveConfig:
    """`temperature` is where the learned temperature starts; with `train_text` False only the text
    tower's projection, if it has one, is trained, so that what a denoiser was trained with stays as
    it is (Zhai et al. 2022, LiT). `crops` of the examples are cut-out things with their phrases
    instead of whole pictures with captions, `views` of them things alone."""

    temperature: float = 0.07
    train_text: bool = False
    crops: float = 0.0
    views: float = 0.0

    def __post_init__(self) -> None:
        if min(self.crops, self.views) < 0 or self.crops + self.views > 1:
            raise InputError(
                f"crops={self.crops} and views={self.views} must be shares, together at most 1"
            )


class ContrastiveTask:
    """`Task` for `CLIPVisionModelWithProjection` and a text tower.

    The tower is a `CLIPTextModelWithProjection`, or a `CLIPTextModel`, whose pooled output is then
    the shared space itself: an image can stand wherever a pooled phrase can.
    """

    def __init__(
        self,
        image_encoder: Any,
        text_encoder: Any,
        tokenizer: Any,
        examples: Examples,
        config: ContrastiveConfig | None = None,
        shown: tuple[Tensor, list[str]] | None = None,
        seed: int = 0,
        views: Views | None = None,
    ) -> None:
        self.config = config or ContrastiveConfig()
        self.image_encoder, self.text_encoder = image_encoder, text_encoder
        self.tokenizer, self.examples, self.shown, self.seed = tokenizer, examples, shown, seed
        if self.config.crops and not isinstance(examples, RenderedScenes):
            raise InputError(
                f"crops={self.config.crops} needs rendered scenes; {type(examples).__name__} does "
                "not know where things are"
            )
        self.views = views
        if self.config.views and views is None:
            raise InputError(f"views={self.config.views} needs the argument `views`")
        if not self.config.train_text:
            self.text_encoder.text_model.requires_grad_(False)
        self.logits = _Scale(self.config.temperature)
        self.modules = {"image_encoder": image_encoder, "logits": self.logits}
        if any(p.requires_grad for p in text_encoder.parameters()):
            self.modules["text_encoder"] = text_encoder

    def draw(self, draw: Draw) -> Batch:
        indices = shuffled(len(self.examples), draw.first, draw.count, self.seed)
        alone = round(self.config.views * draw.count)
        ends = alone, alone + round(self.config.crops * draw.count)
        _, things, whole = np.split(indices, ends)
        size, captions, pixels = self.image_encoder.config.image_size, [], []
        if self.views is not None and alone:
            seen, captions = self.views.told(alone, draw.rng, size)
            pixels.append(in_bytes(seen))
        if len(things):
            assert isinstance(self.examples, RenderedScenes)
            cut, told = self.examples.cut_things(things, draw.rng, size)
            pixels.append(in_bytes(cut))
            captions = captions + told
        if len(whole):
            captions = captions + self.examples.captions(whole, draw.rng)
            pixels.append(in_bytes(fitted(self.examples.images(whole), size)))
        return {"pixels": torch.cat(pixels), "ids": self._tokenize(captions)}

    def loss(self, batch: Batch) -> tuple[Tensor, Figures]:
        images, texts = self.embed(batch["pixels"], batch["ids"])
        logits = images @ texts.T * self.logits.log_scale.exp().clamp(max=100)
        # Two images with the same words are both right.
        ids = batch["ids"]
        same = (ids[:, None] == ids[None]).all(-1).float()
        target = same / same.sum(1, keepdim=True)
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        found = same.gather(1, logits.argmax(1, keepdim=True))
        return loss, {"matched": found.mean()}

    def embed(self, pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Unit embeddings of images, uint8 or in [-1, 1], and of token ids, each `(batch,
        projection)`."""
        images = self.image_encoder(normalise(pixels, self.image_encoder.config.image_size))
        with torch.set_grad_enabled("text_encoder" in self.modules and torch.is_grad_enabled()):
            texts = self.text_encoder(without_padding(self.tokenizer, ids))
        told = getattr(texts, "text_embeds", None)
        told = texts.pooler_output if told is None else told
        return (
            F.normalize(images.image_embeds.float(), dim=-1),
            F.normalize(told.float(), dim=-1),
        )

    def preview(self, folder: Path, step: int) -> dict[str, float]:
        """How many of the unseen images find their own caption among all of them."""
        if self.shown is None:
            return {}
        pixels, captions = self.shown
        device = self.image_encoder.device
        images, texts = self.embed(pixels.to(device), self._tokenize(captions).to(device))
        found = (images @ texts.T).argmax(1).cpu() == torch.arange(len(captions))
        return {"retrieved": found.float().mean().item()}

    def _tokenize(self, captions: list[str]) -> Tensor:
        length = self.text_encoder.config.max_position_embeddings
        return torch.from_numpy(windows(self.tokenizer, length, captions, SHORT))


class _Scale(nn.Module):
    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))


def fitted(pixels: Tensor, size: int) -> Tensor:
    """Images scaled to `(batch, 3, size, size)`."""
    if tuple(pixels.shape[2:]) == (size, size):
        return pixels
    return F.interpolate(pixels, (size, size), mode="bicubic", antialias=True).clamp(-1, 1)


def normalise(pixels: Tensor, size: int) -> Tensor:
    """Images, uint8 or in [-1, 1], to what the image tower expects, `(batch, 3, size, size)`."""
    pixels = fitted(signed(pixels), size)
    mean, std = (kept.on(pixels.device) for kept in _STATISTICS)
    return ((pixels + 1) / 2 - mean) / std
