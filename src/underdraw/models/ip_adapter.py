"""`IPAdapter`: the trained part of an IP-Adapter as an object, for any UNet of the same widths."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from underdraw.arguments import checked
from underdraw.backends.contract import Array
from underdraw.backends.deltas import Deltas, LowRank
from underdraw.backends.layout import Layout
from underdraw.backends.node import at
from underdraw.errors import InputError
from underdraw.models.base import Model
from underdraw.networks.ip_adapter import program
from underdraw.networks.ip_adapter.config import IPAdapterConfig, number
from underdraw.networks.layers import KeysValues
from underdraw.networks.program import Ask, directly
from underdraw.weights import save
from underdraw.weights.ip_adapter import METADATA


class IPAdapter(Model):
    """Image projection, and keys and values for each cross-attention (Ye et al. 2023). Config:
    `networks.ip_adapter.config.IPAdapterConfig`.

    The UNet stays as it is; the control `ImagePrompt` lets this act in calls. Parameters carry the
    published names (`image_proj.proj.weight`, `ip_adapter.1.to_k_ip.weight`, ...).
    """

    config_class = IPAdapterConfig
    network = "ip_adapter"
    config: IPAdapterConfig

    @classmethod
    def layout(cls, config: IPAdapterConfig) -> Layout:
        return program.layout(config)

    @checked
    def forward(
        self,
        features: Array | None = None,
        faces: Array | None = None,
        shortcut_scale: float = 1.0,
        pictures: int = 1,
        ask: Ask = directly,
    ) -> dict[str, KeysValues]:
        """Keys and values `(rows, heads, tokens, d)` by place of each cross-attention of the UNet.

        Args:
            features: what the image tower gives, `(rows * pictures, feature_width)`, or hidden
                states `(rows * pictures, tokens, feature_width)`; None for kind "face-id".
            faces: features of faces `(rows * pictures, face_width)`; None for kinds without.
            shortcut_scale: with a shortcut, how much of what the picture shows is added.
            pictures: how many make a row together.

        Raises:
            InputError, InputTypeError: they are not what this kind reads.
        """
        c, rows = self.config, None
        if c.sees:
            between = [] if c.pooled else [None]
            rows = self._take("features", features, None, *between, c.feature_width).shape[0]
        elif features is not None:
            raise InputError(f"features are given; kind {c.kind!r} reads faces alone")
        if c.reads_faces:
            rows = self._take("faces", faces, rows, c.face_width).shape[0]
        elif faces is not None:
            raise InputError(f"faces are given; kind {c.kind!r} reads pictures alone")
        if pictures < 1 or rows is None or rows % pictures:
            raise InputError(f"pictures={pictures}; allowed: divisors of {rows}")
        return ask(program.CONSTANTS, self, features, faces, float(shortcut_scale), pictures)

    if TYPE_CHECKING:  # the backend's root calls it
        __call__ = forward

    def lora(self) -> Deltas:
        """The differences to the UNet's attentions that the file brought along; none for most."""
        made: dict[str, LowRank] = {}
        if not self.config.lora_rank:
            return made
        for i, (place, _, _) in enumerate(self.config.layers):
            for which, name in ((2 * i, "attn1"), (number(i), "attn2")):
                for theirs, ours in program.LORA.items():
                    layers = at(self, f"ip_adapter.{which}.{theirs}_lora")
                    made[f"{place}.{name}.{ours}"] = LowRank(layers.down.weight, layers.up.weight)
        return made

    def save_file(self, path: str | os.PathLike[str]) -> None:
        """Write one `.safetensors` file under the published names, which diffusers reads, too."""
        about = {"format": "pt", METADATA: json.dumps(self.export_config(), sort_keys=True)}
        save.save_tensors(path, self.stored_tensors(), about)


def save_ip_adapter(adapter: IPAdapter, target: str | os.PathLike[str]) -> None:
    """Write an IP-Adapter: a `.safetensors` file, or a folder."""
    if Path(target).suffix == ".safetensors":
        adapter.save_file(target)
    else:
        adapter.save_pretrained(Path(target))
