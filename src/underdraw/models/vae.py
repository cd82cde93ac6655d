"""`AutoencoderKL`: the autoencoder programs under their familiar name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from underdraw.arguments import checked
from underdraw.backends.contract import Array
from underdraw.backends.layout import Layout
from underdraw.models.autoencoder import Autoencoder, Tiling
from underdraw.models.outputs import AutoencoderKLOutput, DecoderOutput, DiagonalGaussian
from underdraw.models.returning import returning
from underdraw.models.single_file import FromSingleFile
from underdraw.networks import vae
from underdraw.networks.program import Ask, directly


class AutoencoderKL(FromSingleFile, Autoencoder):
    """Images to latents and back. Config fields: `networks.vae.VAEConfig`."""

    config_class = vae.VAEConfig
    network = "vae"
    programs = vae.ENCODE, vae.DECODE
    config: vae.VAEConfig

    @classmethod
    def layout(cls, config: vae.VAEConfig) -> Layout:
        return vae.layout(config)

    def default_tiling(self) -> Tiling:
        """Tiles of the size this autoencoder was trained at."""
        size = self.config.sample_size
        return Tiling(size if isinstance(size, int) else size[0])

    @returning
    @checked
    def encode(
        self, x: Array, return_dict: Literal[True] = True
    ) -> AutoencoderKLOutput | tuple[Any, ...]:
        """The distribution of latents of images `(batch, 3, height, width)` in [-1, 1]."""
        self._take("x", x, None, self.config.in_channels, None, None)
        distribution = self.encode_with(x, self.use_slicing, self.tiling)
        return AutoencoderKLOutput(distribution) if return_dict else (distribution,)

    def encode_with(
        self,
        x: Array,
        slicing: bool = False,
        tiling: Tiling | None = None,
        ask: Ask = directly,
    ) -> DiagonalGaussian:
        """Encode under the caller's settings, as `decode_with`."""
        return DiagonalGaussian(self._encode(x, slicing, tiling, ask), self.nn.name)

    @returning
    @checked
    def decode(
        self, z: Array, return_dict: Literal[True] = True, generator: Any = None
    ) -> DecoderOutput | tuple[Any, ...]:
        """Images `(batch, 3, height, width)` from latents that were divided by `scaling_factor`."""
        self._take("z", z, None, self.config.latent_channels, None, None)
        image = self.decode_with(z, self.use_slicing, self.tiling)
        return DecoderOutput(image) if return_dict else (image,)

    @returning
    @checked
    def forward(
        self,
        sample: Array,
        sample_posterior: bool = False,
        return_dict: Literal[True] = True,
        generator: Any = None,
    ) -> DecoderOutput | tuple[Any, ...]:
        """The round trip of images through the latents."""
        self._take("sample", sample, None, self.config.in_channels, None, None)
        distribution = self.encode_with(sample, self.use_slicing, self.tiling)
        z = distribution.sample(generator) if sample_posterior else distribution.mode()
        return self.decode(z, return_dict)

    if TYPE_CHECKING:  # the backend's root calls it
        __call__ = forward
