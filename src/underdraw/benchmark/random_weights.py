"""Networks of published sizes with random weights, made in a second or two and never downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

from underdraw.formats.stored import StoredTensor

SD15_UNET: dict[str, Any] = {"cross_attention_dim": 768, "sample_size": 64}
SD15_VAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "sample_size": 512,
}
SD15_TEXT: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
"""What Stable Diffusion 1.5 sets beside the defaults of its classes."""
HALF_UNET: dict[str, Any] = {**SD15_UNET, "block_out_channels": (160, 320, 640, 640)}
HALF_VAE: dict[str, Any] = {**SD15_VAE, "block_out_channels": (64, 128, 256, 256)}
"""The same at half of the widths: a quarter of the weights, and of the work."""
DRAWN = (1 << 20) - 3
"""Numbers that are drawn; weights repeat them, which no time depends on. Odd, so that no two rows
of a weight are alike."""


def random_tensors(
    shapes: Mapping[str, tuple[int, ...]], dtype: str = "float32"
) -> dict[str, StoredTensor]:
    """Weights around 0, as large as keeps what passes through them of its size, and around 1 for
    those of norms; made when they are asked for.

    Args:
        shapes: by name.
        dtype: "float32" or "float16".
    """
    drawn = np.random.default_rng(0).uniform(-1.0, 1.0, DRAWN).astype(np.float32)

    def make(index: int, name: str, shape: tuple[int, ...]) -> StoredTensor:
        norm = len(shape) == 1 and name.endswith("weight")
        size = (3.0 / prod(shape[1:])) ** 0.5 if len(shape) > 1 else 0.02

        def load() -> np.ndarray:
            rolled = np.roll(drawn * np.float32(size), 7919 * index)
            values = np.resize(rolled, prod(shape)).reshape(shape)
            return (values + np.float32(norm)).astype(dtype, copy=False)

        return StoredTensor(dtype, shape, load)

    return {name: make(i, name, shape) for i, (name, shape) in enumerate(shapes.items())}


def random_network(
    cls: Any, config: Any, dtype: Any = None, device: Any = None, backend: str = "torch"
) -> Any:
    """A network of this class (`models.base.Model`) and config."""
    config = cls.read_config(config)
    shapes = cls.layout(config).shapes
    how = {"dtype": dtype, "device": device, "backend": backend}
    return cls.from_tensors(config, random_tensors(shapes), **how)
