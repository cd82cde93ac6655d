"""`AutoencoderTiny`: the tiny autoencoder (TAESD) under diffusers' name and calls."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from typing_extensions import Self

from underdraw.arguments import checked
from underdraw.backends.contract import Array
from underdraw.backends.layout import Layout
from underdraw.errors import InputError
from underdraw.models.autoencoder import Autoencoder, Tiling
from underdraw.models.keywords import drop_neutral
from underdraw.models.outputs import AutoencoderTinyOutput, Certain, DecoderOutput
from underdraw.models.returning import returning
from underdraw.models.single_file import NEUTRAL
from underdraw.networks import tiny_vae
from underdraw.networks.program import Ask, directly
from underdraw.weights.locate import find
from underdraw.weights.tiny_vae import partner, read_tiny_vae


class AutoencoderTiny(Autoencoder):
    """A small and fast autoencoder on the same latents (Bohan 2023, TAESD). Config fields:
    `networks.tiny_vae.TinyVAEConfig`.

    It serves as `vae` of every pipeline, and decodes previews (`pipe.load_preview`).
    """

    config_class = tiny_vae.TinyVAEConfig
    network = "tiny_vae"
    programs = tiny_vae.ENCODE, tiny_vae.DECODE
    draws = False
    config: tiny_vae.TinyVAEConfig

    @classmethod
    def layout(cls, config: tiny_vae.TinyVAEConfig) -> Layout:
        return tiny_vae.layout(config)

    @classmethod
    @checked
    def from_single_file(
        cls,
        source: str | os.PathLike[str],
        *,
        other: str | os.PathLike[str] | None = None,
        dtype: Any = None,
        torch_dtype: Any = None,
        device: Any = None,
        backend: str = "torch",
        check: bool = False,
        **hub: Any,
    ) -> Self:
        """A tiny autoencoder from the original's files.

        Args:
            source: `taesd_decoder` or `taesd_encoder` (`.safetensors`, `.pth`), a file with both,
                "owner/name/file.safetensors" on the Hub, or the address of its page.
            other: the file of the other half; None: the one of its name beside it, if there is one.
                A decoder alone decodes, which is enough for text to image and for previews.
            dtype, device, backend, check, hub: as in `from_pretrained`.

        Raises:
            NotFoundError: there is no such file.
            WeightError: it holds no such network, or its encoder alone.
        """
        access = drop_neutral(f"{cls.__name__}.from_single_file", hub, NEUTRAL)
        first = find(source, **access)
        second = partner(first) if other is None else find(other, **access)
        found = read_tiny_vae(first, *([] if second is None else [second]))
        where = {"device": device, "backend": backend, "check": check}
        return cls.from_tensors(found.config, found.tensors, dtype=dtype or torch_dtype, **where)

    def default_tiling(self) -> Tiling:
        """Tiles of 512 pixels."""
        return Tiling(512, 0.125)

    @property
    def latent_magnitude(self) -> float:
        """Latents lie between this and its negative, nearly all."""
        return self.config.latent_magnitude

    @property
    def latent_shift(self) -> float:
        """Where 0 lies in latents scaled to [0, 1]."""
        return self.config.latent_shift

    def scale_latents(self, x: Array) -> Array:
        """Latents to [0, 1]."""
        self._take("x", x, None, None, None, None)
        return self.nn.clip(x / (2 * self.latent_magnitude) + self.latent_shift, 0.0, 1.0)

    def unscale_latents(self, x: Array) -> Array:
        """The inverse of `scale_latents`."""
        self._take("x", x, None, None, None, None)
        return (x - self.latent_shift) * (2 * self.latent_magnitude)

    @returning
    @checked
    def encode(
        self, x: Array, return_dict: Literal[True] = True
    ) -> AutoencoderTinyOutput | tuple[Any, ...]:
        """Latents of images `(batch, 3, height, width)` in [-1, 1]: nothing is drawn.

        Raises:
            InputError: it has its decoder alone.
        """
        self._take("x", x, None, self.config.in_channels, None, None)
        latents = self.encode_with(x, self.use_slicing, self.tiling).mean
        return AutoencoderTinyOutput(latents) if return_dict else (latents,)

    def encode_with(
        self,
        x: Array,
        slicing: bool = False,
        tiling: Tiling | None = None,
        ask: Ask = directly,
    ) -> Certain:
        """Encode under the caller's settings, as `decode_with`."""
        return Certain(self._encode(x, slicing, tiling, ask))

    @returning
    @checked
    def decode(
        self, x: Array, generator: Any = None, return_dict: Literal[True] = True
    ) -> DecoderOutput | tuple[Any, ...]:
        """Images `(batch, 3, height, width)` from latents that were divided by `scaling_factor`."""
        self._take("x", x, None, self.config.latent_channels, None, None)
        image = self.decode_with(x, self.use_slicing, self.tiling)
        return DecoderOutput(image) if return_dict else (image,)

    @returning
    @checked
    def forward(
        self, sample: Array, return_dict: Literal[True] = True
    ) -> DecoderOutput | tuple[Any, ...]:
        """The round trip of images through latents that are kept in 8 bits, as in a picture with
        four channels."""
        self._take("sample", sample, None, self.config.in_channels, None, None)
        framework, latents = self._framework, self.encode(sample, return_dict=False)[0]
        levels = np.rint(framework.to_numpy(self.scale_latents(latents)) * 255) / 255
        where = {"dtype": latents.dtype, "device": getattr(latents, "device", None)}
        kept = framework.array(levels.astype(np.float32), **where)
        return self.decode(self.unscale_latents(kept), return_dict=return_dict)

    if TYPE_CHECKING:  # the backend's root calls it
        __call__ = forward

    @checked
    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """As of every network; `options` are the same.

        Raises:
            InputError: it has its decoder alone, to which other programs would add a random
                encoder.
        """
        if not self.config.encodes:
            raise InputError(
                "this tiny autoencoder has its decoder alone; allowed: one with both halves "
                "(from_single_file(..., other=...))"
            )
        super().save_pretrained(folder, **options)
