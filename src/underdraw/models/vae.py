"""`AutoencoderKL`: the autoencoder programs under their familiar name, with slicing and tiling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from underdraw.arguments import checked
from underdraw.backends.contract import Array, Operations
from underdraw.backends.layout import Layout
from underdraw.models.attention import FamiliarAttention
from underdraw.models.outputs import AutoencoderKLOutput, DecoderOutput, DiagonalGaussian
from underdraw.models.returning import returning
from underdraw.models.single_file import FromSingleFile
from underdraw.networks import vae
from underdraw.networks.program import Ask, Program, directly


@dataclass(frozen=True)
class Tiling:
    """Work on overlapping squares of `side` image pixels, a quarter of them shared and blended."""

    side: int
    overlap: float = 0.25


class AutoencoderKL(FromSingleFile, FamiliarAttention):
    """Images to latents and back. Config fields: `networks.vae.VAEConfig`."""

    config_class = vae.VAEConfig
    network = "vae"
    config: vae.VAEConfig
    use_slicing = False
    tiling: Tiling | None = None

    @classmethod
    def layout(cls, config: vae.VAEConfig) -> Layout:
        return vae.layout(config)

    def enable_slicing(self) -> None:
        """One image at a time: less memory for batches."""
        self.use_slicing = True

    def disable_slicing(self) -> None:
        """Whole batches again."""
        self.use_slicing = False

    @checked
    def enable_tiling(self, use_tiling: bool = True) -> None:
        """Overlapping tiles of the trained size: memory no longer grows with the image."""
        self.tiling = self.default_tiling() if use_tiling else None

    def disable_tiling(self) -> None:
        """Whole images again."""
        self.tiling = None

    def default_tiling(self) -> Tiling:
        """Tiles of the size this autoencoder was trained at."""
        size = self.config.sample_size
        return Tiling(size if isinstance(size, int) else size[0])

    @property
    def use_tiling(self) -> bool:
        """Whether images and latents are worked on in tiles."""
        return self.tiling is not None

    @use_tiling.setter
    def use_tiling(self, value: bool) -> None:
        self.enable_tiling(value)

    @property
    def tile_sample_min_size(self) -> int:
        """Side of a tile in image pixels; larger images are tiled."""
        return (self.tiling or self.default_tiling()).side

    @property
    def tile_latent_min_size(self) -> int:
        """Side of a tile in latent pixels."""
        return self.tile_sample_min_size // self.config.factor

    @property
    def tile_overlap_factor(self) -> float:
        """The part of a tile's side that it shares with its neighbour."""
        return (self.tiling or self.default_tiling()).overlap

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
        scale = (1, self.config.factor)
        moments = self._run(vae.ENCODE, ask, x, scale, slicing, tiling)
        return DiagonalGaussian(moments, self.nn.name)

    @returning
    @checked
    def decode(
        self, z: Array, return_dict: Literal[True] = True, generator: Any = None
    ) -> DecoderOutput | tuple[Any, ...]:
        """Images `(batch, 3, height, width)` from latents that were divided by `scaling_factor`."""
        self._take("z", z, None, self.config.latent_channels, None, None)
        image = self.decode_with(z, self.use_slicing, self.tiling)
        return DecoderOutput(image) if return_dict else (image,)

    def decode_with(
        self,
        z: Array,
        slicing: bool = False,
        tiling: Tiling | None = None,
        ask: Ask = directly,
    ) -> Array:
        """Decode under the caller's settings; two pipelines may share one autoencoder.

        Args:
            slicing: one image at a time.
            tiling: of images that are larger than a tile; None works on whole images.
            ask: runs the program on each slice and tile.
        """
        return self._run(vae.DECODE, ask, z, (self.config.factor, 1), slicing, tiling)

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
        distribution = self.encode(sample, return_dict=False)[0]
        z = distribution.sample(generator) if sample_posterior else distribution.mode()
        return self.decode(z, return_dict)

    if TYPE_CHECKING:  # the backend's root calls it
        __call__ = forward

    def _run(
        self,
        program: Program,
        ask: Ask,
        x: Array,
        scale: tuple[int, int],
        slicing: bool,
        tiling: Tiling | None,
    ) -> Array:
        """`program`, which grows or shrinks images by `scale` (up, down), on slices and tiles."""

        def asked(part: Array) -> Array:
            return ask(program, self, part)

        def whole(part: Array) -> Array:
            if tiling is None or max(part.shape[2:]) <= tiling.side // scale[0]:
                return asked(part)
            return tiled(self.nn, asked, part, tiling, scale, self._framework.array)

        if slicing and x.shape[0] > 1:
            rows = [whole(x[i : i + 1]) for i in range(x.shape[0])]
            return self.nn.concat(rows, 0)
        return whole(x)


def tiled(
    nn: Operations,
    program: Callable[[Array], Array],
    x: Array,
    tiling: Tiling,
    scale: tuple[int, int],
    to_array: Callable[..., Array],
) -> Array:
    """`program` on overlapping tiles of `x`, joined by linear blends over the overlap.

    Args:
        scale: `(up, down)`: sizes are multiplied by one and divided by the other.
    """
    up, down = scale
    side = tiling.side // up
    stride = int(side * (1 - tiling.overlap))
    out_side = side * up // down
    blend = int(out_side * tiling.overlap)
    keep = out_side - blend

    def join(before: Array, tile: Array, axis: int) -> Array:
        n = min(blend, before.shape[axis], tile.shape[axis])
        shape = [1, 1, 1, 1]
        shape[axis] = n
        ramp = to_array([i / n for i in range(n)], device=getattr(tile, "device", None))
        w = nn.cast(ramp, tile).reshape(*shape)
        head, tail = [slice(None)] * 4, [slice(None)] * 4
        last = [slice(None)] * 4
        head[axis], tail[axis] = slice(0, n), slice(n, tile.shape[axis])
        last[axis] = slice(before.shape[axis] - n, before.shape[axis])
        mixed = before[tuple(last)] * (1 - w) + tile[tuple(head)] * w
        return nn.concat((mixed, tile[tuple(tail)]), axis)

    above: list[Array] = []
    rows = []
    for top in range(0, x.shape[2], stride):
        row: list[Array] = []
        for column, left in enumerate(range(0, x.shape[3], stride)):
            tile = program(x[:, :, top : top + side, left : left + side])
            if above:
                tile = join(above[column], tile, 2)
            if row:
                tile = join(row[-1], tile, 3)
            row.append(tile)
        rows.append(nn.concat([tile[:, :, :keep, :keep] for tile in row], 3))
        above = row
    return nn.concat(rows, 2)
