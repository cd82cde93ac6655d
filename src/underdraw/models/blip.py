"""`Blip2QFormerModel`: a picture and its category to the tokens of a subject (Li et al. 2023)."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from typing_extensions import Self

from underdraw import checks
from underdraw.arguments import checked
from underdraw.backends.contract import Array
from underdraw.backends.layout import Layout
from underdraw.errors import InputError, NotFoundError
from underdraw.formats import opening
from underdraw.models.base import Model
from underdraw.models.blip_processor import BlipImageProcessor
from underdraw.models.outputs import QFormerOutput
from underdraw.models.overlay import FILE, NOTHING, Overlay, read_overlay, write_overlay
from underdraw.models.returning import returning
from underdraw.models.wordpiece import PUBLISHED, WordPiece
from underdraw.networks.blip import qformer
from underdraw.networks.blip.config import Blip2Config
from underdraw.networks.program import Ask, directly
from underdraw.schema import within
from underdraw.weights import hub as hubs

VOCABULARY = (
    "BERT's vocabulary, which reads the category of a subject, is not there: no published "
    f"BLIP-Diffusion folder holds it. Needed is the file vocab.txt of {PUBLISHED!r} (30,522 "
    "lines): put it beside the config.json of the Q-Former, or give tokenizer=PATH"
)


class Blip2QFormerModel(Model):
    """The subject encoder of BLIP-Diffusion: image tower, Q-Former, projection. Config fields:
    `networks.blip.config.Blip2Config`.

    It reads categories with a tokenizer, its attribute `tokenizer`: that of its folder, given to
    `from_pretrained`, or the published one where the Hub's cache has it.
    """

    config_class = Blip2Config
    weights_name = "model"
    network = "qformer"
    config: Blip2Config
    tokenizer: WordPiece | None = None
    image_processor: BlipImageProcessor | None = None
    """What its pictures are prepared with, where that came with it."""
    overlay: Overlay = NOTHING
    """What it lays over the networks of a pipeline, where its tokens need that."""

    @classmethod
    def layout(cls, config: Blip2Config) -> Layout:
        return qformer.layout(config)

    @classmethod
    def adapt_config(cls, raw: dict[str, Any]) -> dict[str, Any]:
        # Readers of such files set this themselves, so that some do not say it.
        vision, queries = raw.get("vision_config"), raw.get("qformer_config")
        if isinstance(vision, dict) and isinstance(queries, dict) and "hidden_size" in vision:
            queries = {"encoder_hidden_size": vision["hidden_size"], **queries}
            raw = {**raw, "qformer_config": queries}
        return {name: value for name, value in raw.items() if value is not None}

    def export_config(self) -> dict[str, Any]:
        return {
            "architectures": [type(self).__name__],
            "model_type": "blip-2",
            **self.config.to_dict(),
        }

    @classmethod
    @checked
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        subfolder: str | None = None,
        tokenizer: WordPiece | str | Path | None = None,
        **options: Any,
    ) -> Self:
        """A model from a folder or a Hub id; `options` are as for other models.

        Args:
            tokenizer: BERT's: a `WordPiece`, a `vocab.txt`, or a folder or Hub id with it; None:
                that of the folder. Without any, the model computes embeddings of ids only.
        """
        made = super().from_pretrained(name_or_path, subfolder=subfolder, **options)
        access = {name: options[name] for name in ("cache_dir", "revision") if name in options}
        place = hubs.resolve(
            name_or_path, subfolder=subfolder or "", local_files_only=True, **access
        )
        folder = place / (subfolder or "")
        made.tokenizer = read_tokenizer(tokenizer) or WordPiece.inside(folder)
        if opening.is_regular(folder / FILE):
            made.overlay = read_overlay(folder / FILE)
        return made

    @classmethod
    def adopt(cls, module: Any) -> Self:
        """This model on the parameters of diffusers' own, with its vocabulary."""
        made = super().adopt(module)
        known: Any = getattr(getattr(module, "tokenizer", None), "get_vocab", None)
        made.tokenizer = None if known is None else WordPiece(known())
        return made

    @checked
    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """Write config, weights, vocabulary and overlay; `options` are as for other models."""
        super().save_pretrained(folder, **options)
        if self.tokenizer is not None and options.get("is_main_process", True):
            self.tokenizer.save_pretrained(folder)
        if self.overlay and options.get("is_main_process", True):
            half = "16" in str(self.dtype)
            write_overlay(Path(folder, FILE), self.overlay, "float16" if half else "float32")

    def words(self) -> WordPiece:
        """The tokenizer of categories.

        Raises:
            InputError: it is not there, or knows other tokens than the network.
        """
        if self.tokenizer is None:
            for name in (PUBLISHED, f"google-bert/{PUBLISHED}"):
                with suppress(NotFoundError):
                    self.tokenizer = WordPiece.from_pretrained(name, local_files_only=True)
                    break
        if self.tokenizer is None:
            raise InputError(f"qformer: {VOCABULARY}")
        known, there = self.config.qformer_config.vocab_size, len(self.tokenizer)
        if there > known:
            raise InputError(
                f"qformer.tokenizer: it has {there:,} tokens, the Q-Former knows {known:,}"
            )
        return self.tokenizer

    @returning
    @checked
    def forward(
        self,
        text_input: str | list[str] | None = None,
        image_input: Array | None = None,
        return_dict: Literal[True] = True,
    ) -> QFormerOutput | Array:
        """Read pictures and their categories.

        Args:
            text_input: a category, or one for each picture.
            image_input: `(batch or 1, 3, image_size, image_size)` as `BlipImageProcessor` gives it.
            return_dict: False gives the tokens of the subjects alone, as diffusers:
                `(batch, num_query_tokens, hidden_size)`.

        Raises:
            InputError, InputTypeError: an argument does not fit, or the vocabulary is not there.
        """
        ids, keep = self.read(text_input)
        checks.flag("return_dict", return_dict)
        image = self.check_pixels("image_input", image_input, len(ids))
        if return_dict is False:
            return self.encode(image, ids, keep)
        out = directly(qformer.QFORMER, self, image, *self._arrays(ids, keep))
        return QFormerOutput(out.last, out.pooled)

    if TYPE_CHECKING:  # the backend's root calls it
        __call__ = forward

    def read(self, categories: Any, name: str = "text_input") -> tuple[np.ndarray, np.ndarray]:
        """Ids and what of them counts, `(categories, words)`; `name` is that of the argument."""
        if categories is None:
            raise InputError(f"{name}=None; give the category of the subject, such as 'dog'")
        most = self.config.qformer_config.max_position_embeddings
        return self.words()(categories, most, name)

    def check_pixels(self, name: str, pixels: Any, count: int) -> Array:
        """Pictures of the size that the image tower takes, one or as many as categories."""
        if pixels is None:
            raise InputError(f"{name}=None; give pictures of the subjects")
        side = self.config.vision_config.image_size
        checks.array(name, pixels, (None, 3, side, side), self._framework)
        if pixels.shape[0] not in (1, count):
            raise InputError(f"{name} has {pixels.shape[0]} pictures; there are {count} categories")
        return pixels

    def encode(self, image: Array, ids: np.ndarray, keep: np.ndarray, ask: Ask = directly) -> Array:
        """Tokens of the subjects, `(batch, num_query_tokens, hidden_size)`."""
        return ask(qformer.SUBJECT, self, image, *self._arrays(ids, keep))

    def _arrays(self, ids: np.ndarray, keep: np.ndarray) -> tuple[Array, Array]:
        array, device = self._framework.array, self._framework.device_of(self)
        return array(ids, device=device), array(keep, device=device)

    def get_input_embeddings(self) -> Any:
        """The layer that embeds token ids of categories."""
        root: Any = self
        return root.embeddings.word_embeddings


def read_tokenizer(given: Any) -> WordPiece | None:
    """BERT's tokenizer of what users give: itself, or where it is."""
    if given is None or isinstance(given, WordPiece):
        return given
    checks.path("tokenizer", given)
    with within("tokenizer"):
        return WordPiece.from_pretrained(os.fspath(given))
