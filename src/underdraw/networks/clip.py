"""CLIP's text and image towers (Radford et al. 2021): SD 1's ViT-L/14 and SD 2's OpenCLIP-H."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from underdraw.backends.contract import Array, Node, Operations
from underdraw.backends.layout import Layout
from underdraw.backends.shapes import Path, Shape, Shapes, trace
from underdraw.networks.config import Config, require, require_divisor
from underdraw.networks.layers import ACTIVATIONS, activation, merge_heads, split_heads


@dataclass(frozen=True)
class CLIPTextConfig(Config):
    """`config.json` of a `CLIPTextModel`; names and defaults are the published ones."""

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    pad_token_id: int | None = 1
    bos_token_id: int | None = 49406
    eos_token_id: int = 49407
    use_attention_mask: bool = False

    def __post_init__(self) -> None:
        require("CLIP text", "hidden_act", self.hidden_act, ACTIVATIONS)
        _require_heads("CLIP text", self)


@dataclass(frozen=True)
class CLIPVisionConfig(Config):
    """`config.json` of a `CLIPVisionModel`; names and defaults are the published ones."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        require("CLIP vision", "hidden_act", self.hidden_act, ACTIVATIONS)
        _require_heads("CLIP vision", self)

    @property
    def tokens(self) -> int:
        """Patches and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1


def _require_heads(owner: str, c: CLIPTextConfig | CLIPVisionConfig) -> None:
    require_divisor(
        owner, "num_attention_heads", c.num_attention_heads, "hidden_size", c.hidden_size
    )


class TextOutput(NamedTuple):
    """What the text tower gives."""

    hidden_states: tuple[Array, ...]
    """The embeddings, then the output of every layer, each `(batch, tokens, hidden_size)`."""
    last: Array
    """The last layer after the final layer norm."""
    pooled: Array
    """`last` at the end token, `(batch, hidden_size)`."""


class VisionOutput(NamedTuple):
    """What the image tower gives."""

    hidden_states: tuple[Array, ...]
    last: Array
    """The last layer, not normalised, `(batch, tokens, hidden_size)`."""
    pooled: Array
    """Its class token after the last layer norm, `(batch, hidden_size)`."""


def _layer(
    nn: Operations, p: Node, c: CLIPTextConfig | CLIPVisionConfig, x: Array, mask: Array | None
) -> Array:
    """One pre-norm transformer layer with biases everywhere."""
    width, heads = c.hidden_size, c.num_attention_heads
    h = nn.layer_norm(p.layer_norm1, x, c.layer_norm_eps)
    q, k, v = (
        split_heads(nn, nn.linear(proj, h, width), heads)
        for proj in (p.self_attn.q_proj, p.self_attn.k_proj, p.self_attn.v_proj)
    )
    h = merge_heads(nn, nn.attention(q, k, v, mask))
    x = x + nn.linear(p.self_attn.out_proj, h, width)
    h = nn.layer_norm(p.layer_norm2, x, c.layer_norm_eps)
    h = activation(nn, c.hidden_act)(nn.linear(p.mlp.fc1, h, c.intermediate_size))
    return x + nn.linear(p.mlp.fc2, h, width)


def end_of_text(nn: Operations, config: CLIPTextConfig, ids: Array) -> Array:
    """Position of the end token in each row of `ids (batch, tokens)`.

    Configs written before the end token was stored say `eos_token_id = 2`, which is not it: there
    the end token is the largest id. (GLIGEN's phrase embeddings depend on this.)
    """
    if config.eos_token_id == 2:
        return nn.argmax(ids, 1)
    return nn.argmax(ids == config.eos_token_id, 1)


def embed_tokens(nn: Operations, p: Node, config: CLIPTextConfig, ids: Array) -> Array:
    """Embeddings `(batch, tokens, hidden_size)` of `ids (batch, tokens)`, without positions."""
    return nn.embedding(
        p.text_model.embeddings.token_embedding, ids, config.vocab_size, config.hidden_size
    )


def text(
    nn: Operations,
    p: Node,
    config: CLIPTextConfig,
    ids: Array,
    embeddings: Array | None = None,
    mask: Array | None = None,
) -> TextOutput:
    """The text tower.

    Args:
        ids: `(batch, tokens)`, at most `max_position_embeddings` tokens.
        embeddings: replace those of the ids (textual inversion, subject tokens), same shape as
            `embed_tokens` gives.
        mask: added to attention scores besides the causal one, `(batch, 1, 1, tokens)`.
    """
    c, t = config, p.text_model
    x = embed_tokens(nn, p, c, ids) if embeddings is None else embeddings
    positions = nn.parameter(
        t.embeddings.position_embedding, "weight", (c.max_position_embeddings, c.hidden_size)
    )
    x = x + positions[: x.shape[1]][None]
    causal = nn.causal_mask(x.shape[1], x)[None, None]
    causal = causal if mask is None else causal + nn.cast(mask, x)
    states = [x]
    for i in range(c.num_hidden_layers):
        x = _layer(nn, t.encoder.layers[i], c, x, causal)
        states.append(x)
    last = final_norm(nn, p, c, x)
    return TextOutput(tuple(states), last, nn.gather_rows(last, end_of_text(nn, c, ids)))


def final_norm(nn: Operations, p: Node, config: CLIPTextConfig, x: Array) -> Array:
    """The norm after the last layer; `clip_skip` applies it to an earlier one."""
    return nn.layer_norm(p.text_model.final_layer_norm, x, config.layer_norm_eps)


def text_projection(nn: Operations, p: Node, config: CLIPTextConfig, pooled: Array) -> Array:
    """Pooled text to the space shared with images, `(batch, projection_dim)`."""
    return nn.linear(p.text_projection, pooled, config.projection_dim, bias=False)


def vision(nn: Operations, p: Node, config: CLIPVisionConfig, image: Array) -> VisionOutput:
    """The image tower on `(batch, 3, image_size, image_size)`, as CLIP's processor gives it."""
    c, v = config, p.vision_model
    patches = nn.conv2d(
        v.embeddings.patch_embedding,
        image,
        c.hidden_size,
        c.patch_size,
        c.patch_size,
        0,
        bias=False,
    )
    batch, width, rows, columns = patches.shape
    patches = nn.permute(patches.reshape(batch, width, rows * columns), (0, 2, 1))
    token = nn.parameter(v.embeddings, "class_embedding", (width,))
    token = nn.expand(token[None, None], (batch, 1, width))
    positions = nn.parameter(v.embeddings.position_embedding, "weight", (c.tokens, width))
    x = nn.concat((token, patches), 1) + positions[None]
    x = nn.layer_norm(v.pre_layrnorm, x, c.layer_norm_eps)
    states = [x]
    for i in range(c.num_hidden_layers):
        x = _layer(nn, v.encoder.layers[i], c, x, None)
        states.append(x)
    pooled = nn.layer_norm(v.post_layernorm, x[:, 0], c.layer_norm_eps)
    return VisionOutput(tuple(states), x, pooled)


def visual_projection(nn: Operations, p: Node, config: CLIPVisionConfig, pooled: Array) -> Array:
    """Pooled image to the space shared with text, `(batch, projection_dim)`."""
    return nn.linear(p.visual_projection, pooled, config.projection_dim, bias=False)


@cache
def text_layout(config: CLIPTextConfig, projection: bool = False) -> Layout:
    """Names and shapes of the text tower's parameters, with its projection or without."""

    def program(nn: Shapes, p: Path) -> None:
        out = text(nn, p, config, IDS)
        if projection:
            text_projection(nn, p, config, out.pooled)

    return trace(program)


@cache
def vision_layout(config: CLIPVisionConfig, projection: bool = True) -> Layout:
    """Names and shapes of the image tower's parameters, with its projection or without."""

    def program(nn: Shapes, p: Path) -> None:
        image = Shape(1, config.num_channels, config.image_size, config.image_size)
        out = vision(nn, p, config, image)
        if projection:
            visual_projection(nn, p, config, out.pooled)

    return trace(program)


IDS = Shape(1, 2)
