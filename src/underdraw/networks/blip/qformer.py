"""BLIP-Diffusion's subject encoder (Li et al. 2023, section 3.2): a Q-Former over an image tower.

A few learned tokens, the queries, read a picture by cross-attention and share self-attention with
the words of the subject's category (BERT). What they end as is brought into the space of the text
encoder's token embeddings.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from underdraw.backends.contract import Array, Node, Operations
from underdraw.backends.layout import Layout
from underdraw.backends.shapes import Path, Shape, Shapes, trace
from underdraw.networks.blip.config import Blip2Config, QFormerConfig
from underdraw.networks.blip.vision import VisionOutput, vision
from underdraw.networks.layers import activation, merge_heads, split_heads
from underdraw.networks.program import Program

HIDDEN = -10000.0
"""Added to the scores of padding."""
PROJECTION_EPS = 1e-12
PROJECTION_FACTOR = 4
"""Width inside the projection, in widths of a token."""


class QFormerOutput(NamedTuple):
    """What the Q-Former gives."""

    last: Array
    """The last layer, `(batch, queries + words, hidden_size)`, queries first."""
    pooled: Array
    """The first query, `(batch, hidden_size)`."""


def see(nn: Operations, p: Node, config: Blip2Config, image: Array) -> VisionOutput:
    """What the image tower sees in `(batch, 3, image_size, image_size)`."""
    return vision(nn, p.visual_encoder, config.vision_config, image)


def qformer(
    nn: Operations, p: Node, config: Blip2Config, image: Array, ids: Array, keep: Array
) -> QFormerOutput:
    """Queries and words after the last layer.

    Args:
        image: `(batch or 1, 3, image_size, image_size)`.
        ids: of the category's tokens, `(batch, words)`, at most `max_position_embeddings`.
        keep: 1 for tokens, 0 for padding, `(batch, words)`.
    """
    x = _read(nn, p, config, image, ids, keep, whole=True)
    return QFormerOutput(x, x[:, 0])


def subject(
    nn: Operations, p: Node, config: Blip2Config, image: Array, ids: Array, keep: Array
) -> Array:
    """Tokens of a subject, `(batch, num_query_tokens, hidden_size)`; arguments as for `qformer`.

    What words become in the last layer has no part in them and is not computed.
    """
    return project(nn, p, config, _read(nn, p, config, image, ids, keep, whole=False))


def project(nn: Operations, p: Node, config: Blip2Config, queries: Array) -> Array:
    """Queries in the space of token embeddings, of the same shape."""
    p, width = p.proj_layer, queries.shape[2]
    h = nn.layer_norm(p.LayerNorm, queries, PROJECTION_EPS)
    h = nn.quick_gelu(nn.linear(p.dense1, h, PROJECTION_FACTOR * width))
    return queries + nn.linear(p.dense2, h, width)


def _read(
    nn: Operations,
    p: Node,
    config: Blip2Config,
    image: Array,
    ids: Array,
    keep: Array,
    whole: bool,
) -> Array:
    """Queries after the last layer, and with `whole` the words behind them."""
    c, count = config.qformer_config, config.num_query_tokens
    seen = see(nn, p, config, image).last
    batch, words = ids.shape
    if seen.shape[0] != batch:
        seen = nn.expand(seen, (batch, *seen.shape[1:]))
    e = p.embeddings
    x = nn.embedding(e.word_embeddings, ids, c.vocab_size, c.hidden_size)
    sizes = (c.max_position_embeddings, c.hidden_size)
    x = x + nn.parameter(e.position_embeddings, "weight", sizes)[:words][None]
    queries = nn.parameter(p, "query_tokens", (1, count, c.hidden_size))
    x = nn.concat((nn.expand(queries, (batch, count, c.hidden_size)), x), 1)
    x = nn.layer_norm(e.LayerNorm, x, c.layer_norm_eps)
    mask = (1 - nn.cast(keep, x)) * HIDDEN
    mask = nn.concat((nn.expand(mask[:, :1] * 0, (batch, count)), mask), 1)[:, None, None]
    last = c.num_hidden_layers - 1
    for i in range(c.num_hidden_layers):
        x = _layer(nn, p.encoder.layer[i], c, x, seen, mask, count, i, whole or i < last)
    return x


def _layer(
    nn: Operations,
    p: Node,
    c: QFormerConfig,
    x: Array,
    seen: Array,
    mask: Array,
    count: int,
    number: int,
    whole: bool,
) -> Array:
    """One layer: all attend to all, queries to the picture; each kind has a network of its own."""
    wanted = x if whole else x[:, :count]
    x = _attend(nn, p.attention, c, wanted, x, mask)
    queries = x[:, :count]
    if c.looks(number):
        queries = _attend(nn, p.crossattention, c, queries, seen, None)
    queries = _inside(nn, p.intermediate_query, p.output_query, c, queries)
    if not whole:
        return queries
    words = _inside(nn, p.intermediate, p.output, c, x[:, count:])
    return nn.concat((queries, words), 1)


def _attend(
    nn: Operations, p: Node, c: QFormerConfig, x: Array, to: Array, mask: Array | None
) -> Array:
    """Attention, residual, norm."""
    width, heads, a = c.hidden_size, c.num_attention_heads, p.attention
    q = split_heads(nn, nn.linear(a.query, x, width), heads)
    k, v = (split_heads(nn, nn.linear(part, to, width), heads) for part in (a.key, a.value))
    h = nn.linear(p.output.dense, merge_heads(nn, nn.attention(q, k, v, mask)), width)
    return nn.layer_norm(p.output.LayerNorm, h + x, c.layer_norm_eps)


def _inside(nn: Operations, wide: Node, back: Node, c: QFormerConfig, x: Array) -> Array:
    """Two layers, residual, norm."""
    h = activation(nn, c.hidden_act)(nn.linear(wide.dense, x, c.intermediate_size))
    h = nn.linear(back.dense, h, c.hidden_size)
    return nn.layer_norm(back.LayerNorm, h + x, c.layer_norm_eps)


@cache
def layout(config: Blip2Config) -> Layout:
    """Names and shapes of the parameters."""

    def program(nn: Shapes, p: Path) -> None:
        side = config.vision_config.image_size
        words = Shape(1, 2)
        out = qformer(nn, p, config, Shape(1, 3, side, side), words, words)
        project(nn, p, config, out.last[:, : config.num_query_tokens])

    return trace(program)


SEE = Program("blip.vision", see)
QFORMER = Program("blip.qformer", qformer)
SUBJECT = Program("blip.subject", subject)
