"""The subject encoder learns to read pictures (Li et al. 2023, section 3.2), by the three
objectives of BLIP-2 (Li et al. 2023, "BLIP-2", section 3.2) in forms that suit a small one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from underdraw.errors import InputError
from underdraw.models import Blip2QFormerModel, BlipImageProcessor
from underdraw.models.blip_processor import Sides
from underdraw.models.wordpiece import FIRST, LAST, PADDING, UNKNOWN, WordPiece
from underdraw.networks.blip import qformer
from underdraw.networks.blip.config import Blip2Config, BlipVisionConfig, QFormerConfig
from underdraw.networks.program import directly
from underdraw.training.clip import normalise
from underdraw.training.data import Examples, shuffled
from underdraw.training.loop import Batch, Draw, Figures
from underdraw.training.subject_words import prompts, read
from underdraw.training.tokens import tokenize
from underdraw.training.wire import in_bytes, padded, unpadded


class SubjectExamples(Examples, Protocol):
    """Numbered pictures, each with a subject in it."""

    def category(self, index: int) -> str:
        """What the subject is, in a word or two, which the captions have."""
        ...

    def shown(self, index: int, rng: np.random.Generator, size: int) -> Tensor:
        """A picture of the subject in [-1, 1], `(1, 3, size, size)`."""
        ...

    def where(self, indices: np.ndarray, size: tuple[int, int]) -> Tensor:
        """How much of each cell the subject covers, float32 `(n, *size)` in [0, 1]; 1 throughout
        where nobody knows."""
        ...


class DescribedSubjects(SubjectExamples, Protocol):
    """Those of which more is known."""

    def described(self, index: int, rng: np.random.Generator) -> str:
        """What can be said of the subject, "a red and blue striped cube"."""
        ...


def shown(
    examples: SubjectExamples, indices: np.ndarray, rng: np.random.Generator, size: int
) -> Tensor:
    """A picture of the subject of each, uint8 `(n, 3, size, size)`."""
    return torch.cat([in_bytes(examples.shown(int(i), rng, size)) for i in indices])


CATEGORY, SAID = 4, 12
"""Pieces of words, with first and last, to which batches are filled up: categories, and what else
is said."""


@dataclass(frozen=True)
class EncoderConfig:
    """How large a new subject encoder is; its tokens are as wide as those of the text tower."""

    tokens: int = 16
    image_layers: int = 4
    layers: int = 2
    heads: int = 4
    intermediate: int = 384
    words: int = 24
    """The longest category in word pieces."""


def vocabulary(words: Sequence[str]) -> WordPiece:
    """Words as tokens of a BERT vocabulary, and letters to spell all others with."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789-'"
    pieces = [*letters, *(f"##{letter}" for letter in letters)]
    first = [PADDING, UNKNOWN, FIRST, LAST, "[MASK]"]
    return WordPiece([*first, *dict.fromkeys([*pieces, *sorted(set(words))])])


def new_encoder(
    family: dict[str, Any],
    words: Sequence[str],
    config: EncoderConfig | None = None,
    seed: int = 0,
) -> Any:
    """A subject encoder for a family in host memory, with what reads categories and prepares
    pictures.

    Its image tower begins as the first layers of `family["image_encoder"]`; its tokens begin as
    small as the embeddings of words, for the text tower has seen no others.

    Raises:
        InputError: the family has no image tower, or none that a subject encoder can have.
    """
    c, tower = config or EncoderConfig(), family.get("image_encoder")
    if tower is None:
        raise InputError("family has no 'image_encoder', as which a subject encoder begins")
    seen, text = tower.config, family["text_encoder"]
    if not 1 <= c.image_layers <= seen.num_hidden_layers:
        raise InputError(
            f"image_layers={c.image_layers} is not supported; allowed: 1 .. "
            f"{seen.num_hidden_layers}, as the image tower has"
        )
    pieces = vocabulary(words)
    vision = BlipVisionConfig(
        hidden_size=seen.hidden_size,
        intermediate_size=seen.intermediate_size,
        num_hidden_layers=c.image_layers,
        num_attention_heads=seen.num_attention_heads,
        image_size=seen.image_size,
        patch_size=seen.patch_size,
        hidden_act=seen.hidden_act,
        layer_norm_eps=seen.layer_norm_eps,
    )
    queries = QFormerConfig(
        vocab_size=len(pieces),
        hidden_size=text.config.hidden_size,
        num_hidden_layers=c.layers,
        num_attention_heads=c.heads,
        intermediate_size=c.intermediate,
        max_position_embeddings=c.words,
        cross_attention_frequency=1,
        encoder_hidden_size=seen.hidden_size,
    )
    made: Any = Blip2QFormerModel(Blip2Config(vision, queries, c.tokens))
    generator = torch.Generator().manual_seed(seed)
    embedded = text.text_model.embeddings.token_embedding.weight.detach()
    with torch.no_grad():
        embedded = embedded.to(made.device)
        for name, p in made.named_parameters():
            if "LayerNorm" in name or "layernorm" in name or "layer_norm" in name:
                p.fill_(1.0 if name.endswith("weight") else 0.0)
            elif p.ndim < 2:
                p.zero_()
            elif "embedding" in name or name == "query_tokens":
                p.normal_(0, 0.5 if name == "query_tokens" else 0.1, generator=generator)
            else:
                p.normal_(0, p[0].numel() ** -0.5, generator=generator)
        last = made.encoder.layer[c.layers - 1].output_query.LayerNorm
        last.weight.fill_(float(embedded.std()))
        made.proj_layer.dense2.weight.mul_(0.1 * float(embedded.std()))
        _begin_as(made.visual_encoder, tower.vision_model, c.image_layers)
    made.tokenizer = pieces
    side = seen.image_size
    processor = family.get("feature_extractor")
    means = {} if processor is None else _statistics(processor)
    made.image_processor = BlipImageProcessor(size=Sides(side, side), **means)
    return made


def _statistics(processor: Any) -> dict[str, Any]:
    return {name: tuple(getattr(processor, name)) for name in ("image_mean", "image_std")}


def _begin_as(ours: Any, tower: Any, layers: int) -> None:
    """Weights of CLIP's image tower, under the names of BLIP-2's."""
    e, theirs = ours.embeddings, tower.embeddings
    e.patch_embedding.weight.copy_(theirs.patch_embedding.weight)
    e.class_embedding.copy_(theirs.class_embedding.view(1, 1, -1))
    e.position_embedding.copy_(theirs.position_embedding.weight[None])
    pairs = [(ours.pre_layernorm, tower.pre_layrnorm)]
    for i in range(layers):
        a, b = ours.encoder.layers[i], tower.encoder.layers[i]
        own = b.self_attn
        pairs += [(a.layer_norm1, b.layer_norm1), (a.layer_norm2, b.layer_norm2)]
        pairs += [(a.self_attn.projection, own.out_proj)]
        pairs += [(a.mlp.fc1, b.mlp.fc1), (a.mlp.fc2, b.mlp.fc2)]
        parts = (own.q_proj, own.k_proj, own.v_proj)
        a.self_attn.qkv.weight.copy_(torch.cat([part.weight for part in parts]))
        a.self_attn.qkv.bias.copy_(torch.cat([part.bias for part in parts]))
    for a, b in pairs:
        a.weight.copy_(b.weight)
        a.bias.copy_(b.bias)


class AlignmentTask:
    """`Task` for a `Blip2QFormerModel`: its tokens come to mean to a frozen text tower what words
    say of the picture.

    - Contrast: "a [tokens] cube", read by the text tower, is nearest to what is said of its picture
      among all of the batch.
    - Generation: the words of what is said are told from the tokens, all at once instead of one
      after the other: such phrases have one order.
    - Matching: the Q-Former, shown a picture and words, tells whether they belong together; wrong
      ones are of the same category where the batch has such.

    The heads that ask are thrown away afterwards.
    """

    def __init__(
        self,
        encoder: Any,
        family: dict[str, Any],
        examples: DescribedSubjects,
        seed: int = 0,
    ) -> None:
        self.encoder, self.examples, self.seed = encoder, examples, seed
        self.text_encoder, self.tokenizer = family["text_encoder"], family["tokenizer"]
        self.text_encoder.requires_grad_(False)
        self.words = encoder.words()
        width = encoder.config.qformer_config.hidden_size
        self.heads = _Heads(width, len(self.words))
        self.modules = {"qformer": encoder.requires_grad_(True), "heads": self.heads}

    def draw(self, draw: Draw) -> Batch:
        indices = shuffled(len(self.examples), draw.first, draw.count, self.seed)
        c, rng = self.encoder.config, draw.rng
        size = c.vision_config.image_size
        categories = [self.examples.category(int(i)) for i in indices]
        said = [self.examples.described(int(i), rng) for i in indices]
        length = 8 + c.num_query_tokens
        short = prompts(
            self.tokenizer, length, [f"a {w}" for w in categories], categories, c.num_query_tokens
        )
        padding = self.words.vocab[PADDING]
        ids, keep = padded(self.words(categories), CATEGORY, padding)
        told, told_keep = padded(self.words(said), SAID, padding)
        return {
            "pixels": shown(self.examples, indices, rng, size),
            "ids": ids,
            "keep": keep,
            "said": told,
            "said_keep": told_keep,
            "prompts": short,
            "phrases": torch.from_numpy(tokenize(self.tokenizer, 16, said)),
        }

    def loss(self, batch: Batch) -> tuple[Tensor, Figures]:
        c, e = self.encoder.config, self.encoder
        image = normalise(batch["pixels"], c.vision_config.image_size)
        words = unpadded(batch["ids"], batch["keep"])
        tokens = directly(qformer.SUBJECT, e, image, *words)
        seen = read(self.text_encoder, batch["prompts"], tokens).pooled
        with torch.no_grad():
            said = self.text_encoder(batch["phrases"]).pooler_output
        contrast, found = self._contrast(seen, said, batch["phrases"])
        generation = self._generation(tokens, batch["said"])
        matching, matched = self._matching(image, batch)
        figures: Figures = {"contrast": contrast.detach(), "generation": generation.detach()}
        figures |= {"found": found, "matching": matching.detach(), "matched": matched}
        return contrast + generation + 0.5 * matching, figures

    def _contrast(self, seen: Tensor, said: Tensor, phrases: Tensor) -> tuple[Tensor, Tensor]:
        a, b = (F.normalize(x.float(), dim=-1) for x in (seen, said))
        logits = a @ b.T * self.heads.log_scale.exp().clamp(max=100)
        same = (phrases[:, None] == phrases[None]).all(-1).float()
        wanted = same / same.sum(1, keepdim=True)
        loss = (F.cross_entropy(logits, wanted) + F.cross_entropy(logits.T, wanted)) / 2
        return loss, same.gather(1, logits.argmax(1, keepdim=True)).mean()

    def _generation(self, tokens: Tensor, said: Tensor) -> Tensor:
        logits = self.heads.words(tokens.float() / self.heads.unit).amax(1)
        wanted = torch.zeros_like(logits).scatter_(1, said, 1.0)
        wanted[:, self.words.vocab[PADDING]] = 0
        each = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        # The words said are few, those not said many: each side counts as a whole.
        half = (each * wanted).sum() / wanted.sum(), (each * (1 - wanted)).sum() / wanted.sum()
        return half[0] + half[1]

    def _matching(self, image: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        said, count = batch["said"], self.encoder.config.num_query_tokens
        right = torch.rand(len(image), device=image.device) < 0.5
        itself = torch.arange(len(image), device=image.device)
        which = torch.where(right, itself, _another(batch["ids"], said))
        right = (said == said[which]).all(-1)
        words = unpadded(said[which], batch["said_keep"][which])
        out = directly(qformer.QFORMER, self.encoder, image, *words)
        logits = self.heads.match(out.last[:, :count].float() / self.heads.unit).mean((1, 2))
        told = ((logits > 0) == right).float().mean()
        return F.binary_cross_entropy_with_logits(logits, right.float()), told

    def preview(self, folder: Path, step: int) -> dict[str, float]:
        return {}


class _Heads(nn.Module):
    """What is asked of the tokens, and the temperature of the contrast."""

    unit = 0.1
    """About the size of an embedding's entries; heads learn faster of numbers near 1."""

    def __init__(self, width: int, words: int) -> None:
        super().__init__()
        self.words, self.match = nn.Linear(width, words), nn.Linear(width, 1)
        self.log_scale = nn.Parameter(torch.tensor(2.7))


def _another(categories: Tensor, said: Tensor) -> Tensor:
    """For each example another one, of the same category and with other words where there is."""
    same, alike = ((x[:, None] == x[None]).all(-1) for x in (said, categories))
    likely = 1e-9 + (~same).float() * (1e-4 + alike.float())
    # As torch.multinomial draws one, without its look at the values, which waits for the device.
    return (likely / torch.empty_like(likely).exponential_()).argmax(1)
