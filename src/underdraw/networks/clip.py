"""CLIP's text tower (Radford et al. 2021): SD 1's ViT-L/14, SD 2's OpenCLIP-H. Its image tower is
`networks.vision`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from underdraw.backends.adapted import NO_DELTAS, adapted
from underdraw.backends.contract import Array, Node, Operations
from underdraw.backends.deltas import Deltas
from underdraw.backends.layout import Layout
from underdraw.backends.shapes import Path, Shape, Shapes, trace
from underdraw.networks.config import CLIPTextConfig, CLIPVisionConfig
from underdraw.networks.layers import activation, merge_heads, split_heads
from underdraw.networks.program import Program


class TextOutput(NamedTuple):
    """What the text tower gives."""

    hidden_states: tuple[Array, ...]
    """The embeddings, then the output of every layer, each `(batch, tokens, hidden_size)`."""
    last: Array
    """The last layer after the final layer norm."""
    pooled: Array
    """`last` at the end token, `(batch, hidden_size)`."""


def transformer_layer(
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


def spliced(nn: Operations, rows: Array, added: Array, begins: Sequence[int]) -> Array:
    """`rows (batch, tokens, width)` with `added (batch, n, width)` between their tokens, in each
    row from its position of `begins` on: `(batch, tokens + n, width)`."""
    if len(set(begins)) == 1:
        at = begins[0]
        return nn.concat((rows[:, :at], added, rows[:, at:]), 1)
    made = [spliced(nn, rows[i : i + 1], added[i : i + 1], [at]) for i, at in enumerate(begins)]
    return nn.concat(made, 0)


def text(
    nn: Operations,
    p: Node,
    config: CLIPTextConfig,
    ids: Array,
    embeddings: Array | None = None,
    mask: Array | None = None,
    leaves: Deltas = NO_DELTAS,
) -> TextOutput:
    """The text tower.

    Args:
        ids: `(batch, tokens)`, at most `max_position_embeddings` tokens.
        embeddings: replace those of the ids (textual inversion, subject tokens), same shape as
            `embed_tokens` gives.
        mask: added to attention scores besides the causal one, `(batch, 1, 1, tokens)`.
        leaves: differences to layers, by their path (LoRA).
    """
    p = adapted(p, leaves)
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
        x = transformer_layer(nn, t.encoder.layers[i], c, x, causal)
        states.append(x)
    last = final_norm(nn, p, c, x)
    return TextOutput(tuple(states), last, nn.gather_rows(last, end_of_text(nn, c, ids)))


def final_norm(
    nn: Operations, p: Node, config: CLIPTextConfig, x: Array, leaves: Deltas = NO_DELTAS
) -> Array:
    """The norm after the last layer; `clip_skip` applies it to an earlier one."""
    p = adapted(p, leaves)
    return nn.layer_norm(p.text_model.final_layer_norm, x, config.layer_norm_eps)


def text_projection(nn: Operations, p: Node, config: CLIPTextConfig, pooled: Array) -> Array:
    """Pooled text to the space shared with images, `(batch, projection_dim)`."""
    return nn.linear(p.text_projection, pooled, config.projection_dim, bias=False)


@cache
def text_layout(config: CLIPTextConfig, projection: bool = False) -> Layout:
    """Names and shapes of the text tower's parameters, with its projection or without."""

    def program(nn: Shapes, p: Path) -> None:
        out = text(nn, p, config, Shape(1, 2))
        if projection:
            text_projection(nn, p, config, out.pooled)

    return trace(program)


TEXT = Program("clip.text", text)
EMBED_TOKENS = Program("clip.embed_tokens", embed_tokens)
FINAL_NORM = Program("clip.final_norm", final_norm)
TEXT_PROJECTION = Program("clip.text_projection", text_projection)
