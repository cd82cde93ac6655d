"""What learns beside a checkpoint: low-rank differences, copies of its networks, or a word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from underdraw.backends.deltas import Deltas
from underdraw.backends.layout import Leaf
from underdraw.backends.node import at
from underdraw.backends.torch_leaves import Quantised
from underdraw.errors import InputError
from underdraw.networks import clip, unet
from underdraw.pipelines.base import DiffusionPipeline
from underdraw.pipelines.components.registry import uncompiled
from underdraw.schema import Range, Schema
from underdraw.text.learned import FIRST, Learned, LearnedTokenizer
from underdraw.training.differences import Differences, copy_with
from underdraw.training.tokens import tokenize
from underdraw.weights.lora.reading import LoraWeights

NAME = "trained"
"""Under which a preview's pipeline knows the LoRA."""


class Learner(Protocol):
    """What learns, and how the networks are run with it."""

    modules: Mapping[str, nn.Module]
    told: Mapping[str, Any]
    """What it is, as JSON: a run goes on only where all of it is the same."""

    def ids(self, texts: Sequence[str]) -> Tensor:
        """Tokens of texts, int64 `(n, tokens)`; on the host."""
        ...

    def context(self, ids: Tensor) -> Tensor:
        """What the UNet reads of them, `(n, tokens, width)`, with a gradient where that learns."""
        ...

    def unet(self) -> tuple[Any, Deltas]:
        """The UNet that computes, and what is laid over it."""
        ...

    def pipeline(self, pipe: Any) -> Any:
        """Another pipeline of the same networks that has what was learned."""
        ...


@dataclass(frozen=True)
class LoraConfig(Schema):
    """A LoRA (Hu et al. 2021).

    `rank` of the differences to linear layers, and their 1 x 1 convolutions; `alpha` over `rank` is
    their factor, `rank` itself if None. With `conv_rank` the 3 x 3 convolutions have differences of
    that rank, too (LoCon). `text_encoder` trains the text encoder in the same way; `dora` the
    length of each channel's weights (Liu et al. 2024).
    """

    owner = "config of a LoRA"

    rank: Annotated[int, Range(1, 1024)] = 8
    alpha: Annotated[float, Range(above=0, high=65536.0)] | None = None
    conv_rank: Annotated[int, Range(1, 1024)] | None = None
    text_encoder: bool = False
    dora: bool = False

    @property
    def scale(self) -> float:
        """The factor of all differences."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


class Plain:
    """What all have in common: the pipeline's own networks, which read texts without a gradient."""

    def __init__(self, parts: Any) -> None:
        # What is compiled for calls is not compiled for gradients.
        self.own_unet, self.own_texts = uncompiled(parts.unet), uncompiled(parts.text_encoder)
        self.tokenizer = parts.named["tokenizer"]
        self.modules: Mapping[str, nn.Module] = {}

    def ids(self, texts: Sequence[str]) -> Tensor:
        """Tokens of texts."""
        length = self.own_texts.config.max_position_embeddings
        return torch.from_numpy(tokenize(self.tokenizer, length, texts))

    def context(self, ids: Tensor) -> Tensor:
        """What the UNet reads."""
        with torch.no_grad():
            return read(self.own_texts, ids)

    def unet(self) -> tuple[Any, Deltas]:
        """The pipeline's own."""
        return self.own_unet, {}


def read(encoder: Any, ids: Tensor, embeddings: Any = None, leaves: Deltas | None = None) -> Tensor:
    """The last states of the text encoder, `(n, tokens, width)`."""
    return clip.text(encoder.nn, encoder, encoder.config, ids, embeddings, leaves=leaves or {}).last


class LoraLearner(Plain):
    """Low-rank differences to the UNet, and to the text encoder if wanted."""

    def __init__(self, parts: Any, config: LoraConfig, seed: int = 0) -> None:
        super().__init__(parts)
        self.config = config
        self.told: Mapping[str, Any] = {"kind": "lora", **asdict(config)}
        own = unet.layout(self.own_unet.config).leaves
        how: dict[str, Any] = {"scale": config.scale, "decomposed": config.dora, "seed": seed}

        def chosen(path: str, leaf: Leaf) -> bool:
            return path in own and acts_on_pictures(path, leaf, config.conv_rank is not None)

        def ranks(path: str) -> int:
            large = own[path].kind == "conv2d" and own[path].shape[2] > 1
            return (config.conv_rank or config.rank) if large else config.rank

        made = {"unet": Differences(self.own_unet, config.rank, chosen, ranks=ranks, **how)}
        if config.text_encoder:
            made["text_encoder"] = Differences(self.own_texts, config.rank, reads_texts, **how)
        self.modules: Mapping[str, nn.Module] = dict(made)

    def context(self, ids: Tensor) -> Tensor:
        if not self.config.text_encoder:
            return super().context(ids)
        return read(self.own_texts, ids, leaves=self._deltas("text_encoder"))

    def unet(self) -> tuple[Any, Deltas]:
        return self.own_unet, self._deltas("unet")

    def _deltas(self, name: str) -> Deltas:
        made: Any = self.modules[name]
        return made.deltas()

    def result(self) -> LoraWeights:
        """The LoRA as it is now, as numpy arrays."""
        made: Any = self.modules
        return LoraWeights(**{name: made[name].arrays() for name in made})

    def pipeline(self, pipe: Any) -> Any:
        """With the LoRA, and no other, attached and active."""
        made: Any = DiffusionPipeline.from_pipe(pipe)
        made.load_lora_weights(self.result(), NAME)
        return made


def acts_on_pictures(path: str, leaf: Leaf, convolutions: bool = False) -> bool:
    """Layers of a UNet's attention, which is what LoRAs change; with `convolutions` those of its
    residual blocks and between levels, too."""
    if path.split(".")[0] not in ("down_blocks", "mid_block", "up_blocks"):
        return False
    if ".attentions." in path:
        return leaf.kind in ("linear", "conv2d")
    return convolutions and leaf.kind == "conv2d"


def reads_texts(path: str, leaf: Leaf) -> bool:
    """Layers of the text encoder."""
    return leaf.kind == "linear" and ".layers." in path


class WholeLearner(Plain):
    """Copies of the UNet, and of the text encoder if wanted, of which everything is trained."""

    def __init__(self, parts: Any, text_encoder: bool = False) -> None:
        super().__init__(parts)
        self.told: Mapping[str, Any] = {"kind": "whole", "text_encoder": text_encoder}
        for network in (self.own_unet, *([self.own_texts] if text_encoder else [])):
            if network.dtype != torch.float32:
                raise InputError(
                    f"weights in {str(network.dtype).removeprefix('torch.')} round away what steps "
                    "of training change; load the pipeline with dtype='float32'"
                )
            if any(isinstance(one, Quantised) for one in network.modules()):
                raise InputError("weights in 8 bits cannot be trained; load the pipeline anew")
        made = copy_with(self.own_unet, {})
        own = unet.layout(self.own_unet.config).leaves
        for path in set(type(made).layout(made.config).leaves) - set(own):
            at(made, path).requires_grad_(False)  # grounding layers, which do not act here
        whole = {"unet": made}
        if text_encoder:
            whole["text_encoder"] = copy_with(self.own_texts, {})
        self.modules: Mapping[str, nn.Module] = dict(whole)

    def context(self, ids: Tensor) -> Tensor:
        if "text_encoder" not in self.modules:
            return super().context(ids)
        return read(self.modules["text_encoder"], ids)

    def unet(self) -> tuple[Any, Deltas]:
        return self.modules["unet"], {}

    def pipeline(self, pipe: Any) -> Any:
        """On the copies."""
        return DiffusionPipeline.from_pipe(pipe, **self.modules)


@dataclass(frozen=True)
class Word:
    """A word to learn.

    `text` is how prompts write it, such as "<my-cat>"; `vectors` how many places it takes;
    `initialiser` words whose tokens it begins with, one after another and anew from the first where
    there are more places. Where nothing is said it begins with the mean of all tokens.
    """

    text: str
    vectors: int = 1
    initialiser: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.text, str) or len(self.text.split()) != 1:
            raise InputError(f"text={self.text!r:.60} of a Word is not one word without spaces")
        count = self.vectors
        if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= 64:
            raise InputError(f"vectors={count!r:.60} of a Word must be in 1 .. 64")
        if self.initialiser is not None and not isinstance(self.initialiser, str):
            raise InputError(f"initialiser={self.initialiser!r:.60} of a Word is no text")


class WordLearner(Plain):
    """The vectors of a word (Gal et al. 2022); all networks stay as they are."""

    def __init__(self, parts: Any, word: Word) -> None:
        super().__init__(parts)
        self.word = word
        self.told: Mapping[str, Any] = {"kind": "word", **asdict(word)}
        encoder = self.own_texts
        table = encoder.text_model.embeddings.token_embedding.weight.detach().float().cpu()
        if word.initialiser is None:
            rows = table.mean(0, keepdim=True)
        else:
            ids = list(self.tokenizer(word.initialiser, add_special_tokens=False).input_ids)
            if not ids:
                raise InputError(f"initialiser={word.initialiser!r:.60} has no token")
            rows = table[ids]
        begin = rows[torch.arange(word.vectors) % len(rows)]
        self.length = float(table.norm(dim=1).mean())
        self.vectors = Vectors(begin)
        self.modules: Mapping[str, nn.Module] = {"word": self.vectors}
        self.learned = Learned({word.text: begin.numpy()})
        self.knowing = LearnedTokenizer(self.tokenizer, self.learned)

    def ids(self, texts: Sequence[str]) -> Tensor:
        """Tokens; those of the word are below 0."""
        length = self.own_texts.config.max_position_embeddings
        plain = tokenize(self.tokenizer, length, [""] * len(texts))
        for row, text in zip(plain, texts, strict=True):
            inside = self.knowing(text, add_special_tokens=False).input_ids[: length - 2]
            end = row[1]
            row[1 : 1 + len(inside)] = inside
            row[1 + len(inside)] = end
        return torch.from_numpy(plain)

    def context(self, ids: Tensor) -> Tensor:
        encoder = self.own_texts
        known = encoder.text_model.embeddings.token_embedding.weight[ids.clamp(min=0)]
        own = self.vectors.values[(FIRST - ids).clamp(0, self.word.vectors - 1)]
        made = torch.where((ids <= FIRST)[..., None], own.to(known), known)
        return read(encoder, ids.clamp(min=0), made)

    def result(self) -> np.ndarray:
        """The vectors as they are now, float32 `(vectors, width)`."""
        return self.vectors.values.detach().float().cpu().numpy().copy()

    def pipeline(self, pipe: Any) -> Any:
        """Which knows the word."""
        made: Any = DiffusionPipeline.from_pipe(pipe)
        made.load_textual_inversion({self.word.text: self.result()})
        return made


class Vectors(nn.Module):
    """Vectors as a parameter, `(count, width)`."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = nn.Parameter(values.detach().clone().float())
