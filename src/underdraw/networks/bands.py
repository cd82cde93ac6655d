"""Large pictures in bands of rows: the numbers of the whole picture in a third of the memory.

A convolutional program runs on `Picture`s instead of arrays, over operations that put off their
work: what is between two normalisations is computed band by band when it is needed, and only the
inputs of normalisations are kept, in half precision where the network has more. Normalisations see
the whole picture and convolutions the rows beyond a band, so there are no seams: nothing depends on
where the borders lie but the rounding to half precision. Small pictures, such as the middle of an
autoencoder, stay arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from underdraw.backends.contract import Array, Node, Operations

PIXELS = 128 * 128
"""Pictures of at most so many stay arrays."""
PARTS = 4
"""A band has a part of so many pixels: what is made on the way costs as much as five of its layers'
inputs, and rows beyond its borders are computed twice."""
LEAST_ROWS = 8
CHAINED = 3
"""Convolutions in a row that are computed again at the borders of bands instead of being kept."""
LARGEST = 65504.0
"""Of half precision: what is larger is kept as this."""


class Picture:
    """A picture `(batch, channels, height, width)` that is computed in bands when it is needed."""

    def __init__(
        self,
        bands: Bands,
        shape: Sequence[int],
        make: Callable[[int, int], Array],
        depth: int = 0,
    ) -> None:
        self.bands, self.shape, self.depth = bands, tuple(shape), depth
        self._make: Callable[[int, int], Array] | None = make
        self._kept: list[Array] = []

    def rows(self, start: int, stop: int) -> Array:
        """Some rows, as an array."""
        if self._make is not None:
            return self._make(start, stop)
        step, nn = self.bands.rows_of(self), self.bands.nn
        parts = []
        for number in range(start // step, -(-stop // step)):
            first, kept = number * step, self._kept[number]
            low, high = max(start - first, 0), min(stop - first, kept.shape[2])
            parts.append(kept if high - low == kept.shape[2] else kept[:, :, low:high])
        found = parts[0] if len(parts) == 1 else nn.concat(parts, 2)
        return nn.cast(found, self.bands.like)

    def keep(self) -> Picture:
        """Compute all of it now, and forget what it was made of."""
        if self._make is not None:
            kept = [self.bands.stored(self._make(*border)) for border in self.borders()]
            self._kept, self._make, self.depth = kept, None, 0
        return self

    def borders(self) -> list[tuple[int, int]]:
        """First row and end of each band."""
        height, step = self.shape[2], self.bands.rows_of(self)
        return [(start, min(start + step, height)) for start in range(0, height, step)]

    def whole(self) -> Array:
        """All of it as an array."""
        parts = [self.rows(*border) for border in self.borders()]
        return parts[0] if len(parts) == 1 else self.bands.nn.concat(parts, 2)

    def reshape(self, *shape: int) -> Array:
        return self.whole().reshape(*shape)

    def _with(self, other: Any, of: Callable[[Array, Any], Array]) -> Picture:
        """`of` this and something of the same rows, or that is the same for all rows."""
        if isinstance(other, Picture):
            # Both ways would be computed again by whatever looks at the sum: rather keep it.
            depth = CHAINED if self.depth or other.depth else 0
            pair = lambda a, b: of(self.rows(a, b), other.rows(a, b))  # noqa: E731
            return Picture(self.bands, self.shape, pair, depth)
        if len(getattr(other, "shape", ())) == 4 and other.shape[2] == self.shape[2]:
            sliced = lambda a, b: of(self.rows(a, b), other[:, :, a:b])  # noqa: E731
            return Picture(self.bands, self.shape, sliced, self.depth)
        return self.each(lambda x: of(x, other))

    def each(self, of: Callable[[Array], Array]) -> Picture:
        """A function of single numbers on all of it."""
        return Picture(self.bands, self.shape, lambda a, b: of(self.rows(a, b)), self.depth)

    def __add__(self, other: Any) -> Picture:
        return self._with(other, lambda x, y: x + y)

    __radd__ = __add__

    def __mul__(self, other: Any) -> Picture:
        return self._with(other, lambda x, y: x * y)

    __rmul__ = __mul__

    def __sub__(self, other: Any) -> Picture:
        return self._with(other, lambda x, y: x - y)

    def __truediv__(self, other: Any) -> Picture:
        return self._with(other, lambda x, y: x / y)


@dataclass(frozen=True)
class Bands:
    """`Operations` on pictures in bands; what is none goes to those of the backend."""

    nn: Operations
    like: Array
    """Has the dtype that is computed in."""
    half: Array | None = None
    """Has the dtype in which pictures are kept; None: as computed."""
    pixels: int = PIXELS

    @property
    def name(self) -> str:
        return self.nn.name

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        operation = getattr(self.nn, name)

        def run(*given: Any, **named: Any) -> Any:
            return operation(*(_whole(one) for one in given), **named)

        return run

    # -- what pictures are kept in
    def picture(self, x: Array) -> Any:
        """A picture of an array, which stays an array where it is small."""
        if x.shape[2] * x.shape[3] <= self.pixels:
            return x
        return Picture(self, x.shape, lambda a, b: x[:, :, a:b])

    def rows_of(self, x: Picture) -> int:
        """Rows of its bands."""
        return max(LEAST_ROWS, self.pixels // PARTS // x.shape[3])

    def stored(self, band: Array) -> Array:
        """A band as it is kept."""
        if self.half is None:
            return band
        return self.nn.cast(self.nn.clip(band, -LARGEST, LARGEST), self.half)

    def settled(self, x: Picture) -> Any:
        """What goes on: an array where the picture has become small."""
        return x.whole() if x.shape[2] * x.shape[3] <= self.pixels else x

    # -- operations with parameters
    def conv2d(
        self,
        p: Node,
        x: Any,
        width: int,
        kernel: int,
        stride: int = 1,
        padding: int | None = None,
        bias: bool = True,
        groups: int = 1,
    ) -> Any:
        side = kernel // 2 if padding is None else padding
        if not isinstance(x, Picture):
            return self.nn.conv2d(p, x, width, kernel, stride, side, bias, groups)
        if x.depth >= CHAINED and kernel > 1:
            x.keep()
        batch, _, height, wide = x.shape
        shape = [batch, width, *((n + 2 * side - kernel) // stride + 1 for n in (height, wide))]
        beyond = stride * -(-side // stride)

        def band(start: int, stop: int) -> Array:
            # Its own padding acts at the borders of the picture; at others rows are cut off.
            low = max(0, start * stride - beyond)
            high = min(height, (stop - 1) * stride - side + kernel)
            made = self.nn.conv2d(p, x.rows(low, high), width, kernel, stride, side, bias, groups)
            first = start - low // stride
            return made[:, :, first : first + stop - start]

        return self.settled(Picture(self, shape, band, x.depth + (kernel > 1)))

    def group_norm(self, p: Node, x: Any, groups: int, eps: float = 1e-5) -> Any:
        if not isinstance(x, Picture):
            return self.nn.group_norm(p, x, groups, eps)
        nn, (batch, channels, height, _) = self.nn, x.keep().shape

        def mean(of: Callable[[Array], Array]) -> Array:
            """Over each group of channels and all positions, `(batch, groups, 1)`."""
            total: Any = 0.0
            for start, stop in x.borders():
                parts = nn.float32(x.rows(start, stop)).reshape(batch, groups, -1)
                total = total + nn.mean(of(parts), (2,)) * ((stop - start) / height)
            return total

        center = mean(lambda parts: parts)
        size = (mean(lambda parts: (parts - center) ** 2) + eps) ** -0.5

        def each(values: Array) -> Array:
            spread = nn.expand(values, (batch, groups, channels // groups))
            return spread.reshape(batch, channels, 1, 1)

        scale = each(size) * nn.float32(p.weight).reshape(1, channels, 1, 1)
        shift = nn.float32(p.bias).reshape(1, channels, 1, 1) - each(center) * scale
        return x.each(lambda rows: nn.cast(nn.float32(rows) * scale + shift, self.like))

    # -- elementwise
    def silu(self, x: Any) -> Any:
        return _each(x, self.nn.silu)

    def gelu(self, x: Any) -> Any:
        return _each(x, self.nn.gelu)

    def quick_gelu(self, x: Any) -> Any:
        return _each(x, self.nn.quick_gelu)

    def tanh(self, x: Any) -> Any:
        return _each(x, self.nn.tanh)

    def clip(self, x: Any, low: Any, high: Any) -> Any:
        return _each(x, lambda part: self.nn.clip(part, low, high))

    # -- shape
    def pad(self, x: Any, bottom: int, right: int) -> Any:
        if not isinstance(x, Picture):
            return self.nn.pad(x, bottom, right)
        batch, channels, height, wide = x.shape

        def band(start: int, stop: int) -> Array:
            low = min(start, height - 1)
            inside = x.rows(low, min(stop, height))
            return self.nn.pad(inside, max(0, stop - height), right)[:, :, start - low :]

        return Picture(self, (batch, channels, height + bottom, wide + right), band, x.depth)

    def upsample(self, x: Any, height: int, width: int) -> Any:
        if height * width <= self.pixels or height % x.shape[2]:
            return self.nn.upsample(_whole(x), height, width)
        # Four times as large afterwards, so before it is the time to keep what is pending.
        source = (
            x.keep()
            if isinstance(x, Picture)
            else Picture(self, x.shape, lambda a, b: x[:, :, a:b])
        )
        factor = height // x.shape[2]

        def band(start: int, stop: int) -> Array:
            low, high = start // factor, -(-stop // factor)
            made = self.nn.upsample(source.rows(low, high), (high - low) * factor, width)
            return made[:, :, start - low * factor : stop - low * factor]

        return Picture(self, (*x.shape[:2], height, width), band)


def _whole(x: Any) -> Any:
    return x.whole() if isinstance(x, Picture) else x


def _each(x: Any, of: Callable[[Array], Array]) -> Any:
    return x.each(of) if isinstance(x, Picture) else of(x)


def in_bands(program: Callable[..., Any]) -> Callable[..., Array]:
    """A program from one picture to another, run in bands: `(nn, p, config, x, half)`, where an
    array `half` has the dtype in which pictures are kept, None that of `x`."""

    def run(nn: Operations, p: Node, config: Any, x: Array, half: Array | None = None) -> Array:
        bands: Any = Bands(nn, x, half)
        return _whole(program(bands, p, config, bands.picture(x)))

    return run
