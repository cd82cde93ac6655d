"""What autoencoders share: slices and tiles, under diffusers' names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar

from underdraw.arguments import checked
from underdraw.backends.contract import Array, Operations
from underdraw.models.attention import FamiliarAttention
from underdraw.models.outputs import Posterior
from underdraw.networks.bands import in_bands
from underdraw.networks.program import Ask, Program, directly

BEYOND = 4
"""Times the usual side of a tile, up to which bands do without tiles."""


@dataclass(frozen=True)
class Tiling:
    """Work on overlapping squares of `side` image pixels, a quarter of them shared and blended."""

    side: int
    overlap: float = 0.25
    seamless: bool = False
    """Each square, or the whole picture where it is no larger, in bands (`networks.bands`)."""


class Autoencoder(FamiliarAttention):
    """Base of the autoencoders: encoding and decoding on slices and tiles."""

    programs: ClassVar[tuple[Program, Program]]
    """Encoder and decoder."""
    draws: ClassVar[bool] = True
    """Whether latents are drawn from what its encoder gives; else nothing there is random."""
    config: Any
    use_slicing = False
    tiling: Tiling | None = None

    def enable_slicing(self) -> None:
        """One image at a time: less memory for batches."""
        self.use_slicing = True

    def disable_slicing(self) -> None:
        """Whole batches again."""
        self.use_slicing = False

    @checked
    def enable_tiling(self, use_tiling: bool = True, seamless: bool = False) -> None:
        """Overlapping tiles of the trained size, or bands without seams; `seamless` as of
        `pipe.enable_vae_tiling`."""
        tiling = self.seamless_tiling() if seamless else self.default_tiling()
        self.tiling = tiling if use_tiling else None

    def disable_tiling(self) -> None:
        """Whole images again."""
        self.tiling = None

    def default_tiling(self) -> Tiling:
        """Tiles that suit it."""
        raise NotImplementedError(f"{type(self).__name__} must say which tiles suit it")

    def seamless_tiling(self) -> Tiling:
        """Bands, and tiles of four times the usual side where pictures are still larger."""
        usual = self.default_tiling()
        return replace(usual, side=BEYOND * usual.side, seamless=True)

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

    def encode_with(
        self,
        x: Array,
        slicing: bool = False,
        tiling: Tiling | None = None,
        ask: Ask = directly,
    ) -> Posterior:
        """Encode under the caller's settings, as `decode_with`."""
        raise NotImplementedError(f"{type(self).__name__} must say what its encoder gives")

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
        return self._run(self.programs[1], ask, z, (self.config.factor, 1), slicing, tiling)

    def _encode(self, x: Array, slicing: bool, tiling: Tiling | None, ask: Ask) -> Array:
        """What the encoder's program gives."""
        return self._run(self.programs[0], ask, x, (1, self.config.factor), slicing, tiling)

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

        framework = self._framework

        def asked(part: Array) -> Array:
            if tiling is None or not tiling.seamless:
                return ask(program, self, part)
            half = None
            if part.dtype == framework.float32:
                where = getattr(part, "device", None)
                half = framework.array([0.0], framework.resolve_dtype("float16"), where)
            return ask(_banded(program), self, part, half)

        def whole(part: Array) -> Array:
            if tiling is None or max(part.shape[2:]) <= tiling.side // scale[0]:
                return asked(part)
            return tiled(self.nn, asked, part, tiling, scale, framework.array)

        if slicing and x.shape[0] > 1:
            rows = [whole(x[i : i + 1]) for i in range(x.shape[0])]
            return self.nn.concat(rows, 0)
        return whole(x)


@cache
def _banded(program: Program) -> Program:
    return Program(f"{program.name}.bands", in_bands(program.function), as_written=True)


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
    # In latent pixels, whatever the side, so that tiles lie where their neighbours end.
    cells = max(1, tiling.side // max(up, down))
    step = max(1, int(cells * (1 - tiling.overlap)))
    side, stride, keep = cells * down, step * down, step * up
    blend = cells * up - keep

    def join(before: Array, tile: Array, axis: int) -> Array:
        n = min(blend, before.shape[axis], tile.shape[axis])
        if n == 0:
            return tile
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
