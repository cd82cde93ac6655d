"""CLIP's towers under the names transformers gives them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from underdraw import checks
from underdraw.arguments import checked
from underdraw.backends.contract import Array
from underdraw.backends.layout import Layout
from underdraw.errors import InputError, InputTypeError
from underdraw.models.base import Model
from underdraw.models.outputs import CLIPTextModelOutput, CLIPTextOutput, CLIPVisionModelOutput
from underdraw.models.returning import returning
from underdraw.networks import clip, vision
from underdraw.networks.config import CLIPTextConfig, CLIPVisionConfig, inner_config
from underdraw.networks.program import Ask, directly
from underdraw.shown import shown

MOST_TOKENS = 2**24


class CLIPTextModel(Model):
    """The text tower. Config fields: `networks.config.CLIPTextConfig`."""

    config_class = CLIPTextConfig
    weights_name = "model"
    network = "text_encoder"
    config: CLIPTextConfig

    @classmethod
    def layout(cls, config: CLIPTextConfig) -> Layout:
        return clip.text_layout(config)

    @classmethod
    def adapt_config(cls, raw: dict[str, Any]) -> dict[str, Any]:
        # Whole-CLIP configs nest the towers; old ones put the sizes under another name.
        return inner_config(raw, "text_config")

    def export_config(self) -> dict[str, Any]:
        return {
            "architectures": [type(self).__name__],
            "model_type": "clip_text_model",
            **self.config.to_dict(),
        }

    @returning
    @checked
    def forward(
        self,
        input_ids: Array,
        attention_mask: Array | None = None,
        position_ids: None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: Literal[True] | None = None,
    ) -> CLIPTextOutput | tuple[Any, ...]:
        """Encode `input_ids (batch, tokens)`; `attention_mask (batch, tokens)` is 0 for padding.

        Raises InputError: `position_ids` or `output_attentions` is given, which nothing here uses.
        """
        _refuse(position_ids=position_ids, output_attentions=output_attentions or None)
        out = self.encode(input_ids, attention_mask)
        states = out.hidden_states if output_hidden_states else None
        result = CLIPTextOutput(out.last, out.pooled, states)
        return result.to_tuple() if return_dict is False else result

    if TYPE_CHECKING:  # the backend's root calls it
        __call__ = forward

    def get_input_embeddings(self) -> Any:
        """The layer that embeds token ids; its `weight` is `(vocab_size, hidden_size)`."""
        root: Any = self
        return root.text_model.embeddings.token_embedding

    def resize_token_embeddings(self, new_num_tokens: int | None = None) -> Any:
        """Rows for `new_num_tokens` ids: the last ones dropped, or the mean of all appended.

        Changes the embedding layer and the config in place; other parameters stay what they are.
        Returns the layer. None changes nothing.
        """
        layer = self.get_input_embeddings()
        count = self.config.vocab_size if new_num_tokens is None else new_num_tokens
        plain = isinstance(count, int) and not isinstance(count, bool)
        if not plain or not 1 <= count <= MOST_TOKENS:
            raise InputError(
                f"new_num_tokens={shown(new_num_tokens)}; allowed: 1 .. {MOST_TOKENS}, None"
            )
        if count != self.config.vocab_size:
            with self._framework.no_grad():
                rows = layer.weight[:count]
                if more := count - rows.shape[0]:
                    mean = self.nn.expand(self.nn.mean(rows, (0,)), (more, rows.shape[1]))
                    rows = self.nn.concat((rows, mean), 0)
            self._framework.replace_rows(layer, rows)
            self.config = replace(self.config, vocab_size=count)
        return layer

    @checked
    def encode(
        self, input_ids: Array, attention_mask: Array | None = None, ask: Ask = directly
    ) -> clip.TextOutput:
        """All that the text tower gives, hidden states included."""
        _check_ids(self, input_ids)
        mask = None
        if attention_mask is not None:
            self._take("attention_mask", attention_mask, *input_ids.shape, floating=False)
            mask = (1 - self.nn.float32(attention_mask))[:, None, None] * -1e9
        return ask(clip.TEXT, self, input_ids, None, mask)


def _check_ids(tower: CLIPTextModel, ids: Any) -> None:
    """Raise an InputError or InputTypeError where these are no ids of tokens, `(batch, tokens)`."""
    tower._take("input_ids", ids, None, None, floating=False)
    if "float" in str(ids.dtype).lower():
        raise InputTypeError(f"input_ids has dtype {ids.dtype}; whole numbers are needed")


class CLIPTextModelWithProjection(CLIPTextModel):
    """The text tower with the projection into the space shared with images."""

    @classmethod
    def layout(cls, config: CLIPTextConfig) -> Layout:
        return clip.text_layout(config, projection=True)

    @returning
    @checked
    def forward(
        self,
        input_ids: Array,
        attention_mask: Array | None = None,
        position_ids: None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: Literal[True] | None = None,
    ) -> CLIPTextModelOutput | tuple[Any, ...]:
        """As `CLIPTextModel`, first field `text_embeds (batch, projection_dim)`."""
        _refuse(position_ids=position_ids, output_attentions=output_attentions or None)
        out = self.encode(input_ids, attention_mask)
        embeds = directly(clip.TEXT_PROJECTION, self, out.pooled)
        states = out.hidden_states if output_hidden_states else None
        result = CLIPTextModelOutput(embeds, out.last, states)
        return result.to_tuple() if return_dict is False else result

    if TYPE_CHECKING:  # the backend's root calls it
        __call__ = forward


class ContextCLIPTextModel(CLIPTextModel):
    """The text tower of BLIP-Diffusion: tokens of a subject may stand between those of the text.

    Its parameters are those of `CLIPTextModel`; pipelines put subjects into prompts by the control
    `Subject`, with either.
    """

    @returning
    @checked
    def forward(
        self,
        ctx_embeddings: Array | None = None,
        ctx_begin_pos: Sequence[int] | None = None,
        input_ids: Array | None = None,
        attention_mask: Array | None = None,
        position_ids: None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: Literal[True] | None = None,
    ) -> CLIPTextOutput | tuple[Any, ...]:
        """Encode `input_ids (batch, tokens)` with tokens of a subject between them.

        Args:
            ctx_embeddings: of the subject's tokens, `(batch, n, hidden_size)`; None: none.
            ctx_begin_pos: where they begin in each row, 0 .. tokens.
            attention_mask: `(batch, tokens)` or `(batch, tokens + n)`, 0 for padding.

        The pooled output is that at the end token, wherever the subject has moved it.

        Raises:
            InputError: numbers or shapes do not fit, there are more tokens than positions, or
                `position_ids` or `output_attentions` is given, which nothing here uses.
        """
        _refuse(position_ids=position_ids, output_attentions=output_attentions or None)
        if input_ids is None:
            raise InputError("input_ids=None; give token ids")
        out = self._with_context(input_ids, ctx_embeddings, ctx_begin_pos, attention_mask)
        states = out.hidden_states if output_hidden_states else None
        result = CLIPTextOutput(out.last, out.pooled, states)
        return result.to_tuple() if return_dict is False else result

    if TYPE_CHECKING:  # the backend's root calls it
        __call__ = forward

    def _with_context(
        self, ids: Array, added: Array | None, begins: Any, keep: Array | None
    ) -> clip.TextOutput:
        if added is None:
            return self.encode(ids, keep)
        nn, framework = self.nn, self._framework
        _check_ids(self, ids)
        batch, tokens = ids.shape
        shape = (batch, None, self.config.hidden_size)
        checks.array("ctx_embeddings", added, shape, framework)
        count = added.shape[1]
        begins = checks.listed("ctx_begin_pos", begins, "positions")
        if keep is not None:
            among = (tokens, tokens + count)
            side = keep.shape[1] if len(getattr(keep, "shape", ())) == 2 else tokens
            self._take("attention_mask", keep, batch, None, floating=False)
            if side not in among:
                raise InputError(
                    f"attention_mask has {side} tokens; allowed: {among[0]} or {among[1]}"
                )
        if len(begins) != batch:
            raise InputError(f"ctx_begin_pos has {len(begins)} entries; input_ids has {batch} rows")
        begins = [checks.whole("ctx_begin_pos", at, 0, tokens) for at in begins]
        if tokens + count > self.config.max_position_embeddings:
            raise InputError(
                f"ctx_embeddings: {tokens} tokens of the text and {count} of the subject are more "
                f"than the {self.config.max_position_embeddings} positions of this tower"
            )
        embeddings = directly(clip.EMBED_TOKENS, self, ids)
        embeddings = clip.spliced(nn, embeddings, nn.cast(added, embeddings), begins)
        # Which no vocabulary has: so the end token is found as without them.
        other = framework.array(np.full((batch, count, 1), -1, np.int64), device=self.device)
        ids = clip.spliced(nn, ids[:, :, None], nn.cast(other, ids), begins)[:, :, 0]
        mask = None
        if keep is not None:
            kept = nn.float32(keep)
            if keep.shape[1] == tokens:
                ones = nn.float32(other) * 0 + 1
                kept = clip.spliced(nn, kept[:, :, None], ones, begins)[:, :, 0]
            mask = (1 - kept)[:, None, None] * -1e9
        return directly(clip.TEXT, self, ids, embeddings, mask)


class CLIPVisionModelWithProjection(Model):
    """The image tower. Config fields: `networks.config.CLIPVisionConfig`."""

    config_class = CLIPVisionConfig
    weights_name = "model"
    network = "image_encoder"
    config: CLIPVisionConfig

    @classmethod
    def layout(cls, config: CLIPVisionConfig) -> Layout:
        return vision.vision_layout(config)

    @classmethod
    def adapt_config(cls, raw: dict[str, Any]) -> dict[str, Any]:
        return inner_config(raw, "vision_config")

    def export_config(self) -> dict[str, Any]:
        return {
            "architectures": [type(self).__name__],
            "model_type": "clip_vision_model",
            **self.config.to_dict(),
        }

    @returning
    @checked
    def forward(
        self,
        pixel_values: Array,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        interpolate_pos_encoding: bool = False,
        return_dict: Literal[True] | None = None,
    ) -> CLIPVisionModelOutput | tuple[Any, ...]:
        """Encode images `(batch, 3, image_size, image_size)` normalised by `CLIPImageProcessor`.

        Raises InputError: `output_attentions` or `interpolate_pos_encoding` is asked for.
        """
        _refuse(
            output_attentions=output_attentions or None,
            interpolate_pos_encoding=interpolate_pos_encoding or None,
        )
        out, embeds = self.encode(pixel_values)
        states = out.hidden_states if output_hidden_states else None
        result = CLIPVisionModelOutput(embeds, out.last, states)
        return result.to_tuple() if return_dict is False else result

    if TYPE_CHECKING:  # the backend's root calls it
        __call__ = forward

    @checked
    def encode(self, pixel_values: Array, ask: Ask = directly) -> tuple[vision.VisionOutput, Array]:
        """All that the image tower gives, and the projection `(batch, projection_dim)` of it."""
        side = self.config.image_size
        self._take("pixel_values", pixel_values, None, self.config.num_channels, side, side)
        out = ask(vision.VISION, self, pixel_values)
        return out, ask(vision.VISUAL_PROJECTION, self, out.pooled)


def _refuse(**arguments: Any) -> None:
    for name, value in arguments.items():
        if value is not None:
            raise InputError(f"{name}={shown(value)} is not used by this tower; allowed: None")
