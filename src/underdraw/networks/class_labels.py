"""What labels of a class, a noise level or a time add to the embedded time of a UNet."""

from __future__ import annotations

from collections.abc import Callable

from underdraw.backends.contract import Array, Node, Operations
from underdraw.errors import InputError
from underdraw.networks.config import UNetConfig


def embed_labels(
    nn: Operations,
    p: Node,
    config: UNetConfig,
    labels: Array | None,
    temb: Array,
    sinusoid: Callable[[Array], Array],
    mlp: Callable[[Node, Array], Array],
) -> Array:
    """Labels `(batch,)`, or `(batch, channels)` where they are projected, as `(batch, width)`.

    `temb (batch, width)` gives width and dtype; `sinusoid` and `mlp` embed times.

    Raises:
        InputError: there are none.
    """
    kind, width = config.class_embed_type, temb.shape[-1]
    if labels is None:
        raise InputError(
            "class_labels=None; this UNet was trained with class labels and needs them"
        )
    if kind == "timestep":
        return mlp(p.class_embedding, sinusoid(labels))
    if kind == "projection":
        return mlp(p.class_embedding, nn.cast(labels, temb))
    if kind == "simple_projection":
        return nn.linear(p.class_embedding, nn.cast(labels, temb), width)
    if kind == "identity":
        return nn.cast(labels, temb)
    return nn.embedding(p.class_embedding, labels, config.num_class_embeds or 0, width)
