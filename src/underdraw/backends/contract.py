"""The closed list of operations a network may use, and what each one promises.

A network program receives a backend as its argument `nn` and touches arrays only through these
operations, Python arithmetic (`+ - * / **`, comparisons, unary minus), `.shape`,
`.reshape(*sizes)`, indexing with integers, slices and `None`, and nothing else. `tests/backends`
runs every operation on every installed backend against a float64 numpy reference.

Promises common to all of them:
- images are `(batch, channels, height, width)`, token sequences `(batch, tokens, width)`;
- the result has the dtype of the first array argument; reductions inside norms, softmax and
  attention are accumulated in float32 at least;
- nothing is modified in place and nothing is random.

`p` is a node of a parameter tree. An operation that owns parameters receives the node that holds
them (`weight`, `bias`) and repeats their sizes, so that the same program run on shapes alone
(`backends.shapes`) writes down the layout of a checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

Array = Any
"""An array of the backend at hand: `torch.Tensor`, `jax.Array`, `mindspore.Tensor`, or a shape."""

Node = Any
"""A node of a parameter tree: `p.conv1`, `p.resnets[0]`, `len(p.resnets)`."""


@runtime_checkable
class Operations(Protocol):
    """What a backend offers a network. Implementations: `backends.torch`, `.jax`, `.mindspore`."""

    @property
    def name(self) -> str:
        """`"torch"`, `"jax"` or `"mindspore"`."""
        ...

    # -- operations with parameters ---------------------------------------------------------------
    def linear(self, p: Node, x: Array, width: int, bias: bool = True) -> Array:
        """`x @ weight.T + bias` over the last axis; weight is `(width, x.shape[-1])`."""

    def conv2d(
        self,
        p: Node,
        x: Array,
        width: int,
        kernel: int,
        stride: int = 1,
        padding: int | None = None,
        bias: bool = True,
        groups: int = 1,
    ) -> Array:
        """Cross-correlation with zero padding (`kernel // 2` by default) on all four sides.

        Output sizes are `(size + 2 * padding - kernel) // stride + 1`; weight is
        `(width, channels // groups, kernel, kernel)`: each of `groups` equal parts of the channels
        makes its own part of the output."""

    def group_norm(self, p: Node, x: Array, groups: int, eps: float = 1e-5) -> Array:
        """Normalise each group of channels over its channels and positions (Wu & He 2018)."""

    def layer_norm(self, p: Node, x: Array, eps: float = 1e-5) -> Array:
        """Normalise over the last axis with the biased variance, then scale and shift."""

    def embedding(self, p: Node, ids: Array, count: int, width: int) -> Array:
        """Rows of `weight (count, width)` at integer `ids (...)`: `(..., width)`."""

    def parameter(
        self, p: Node, name: str, shape: tuple[int, ...], start: float | None = None
    ) -> Array:
        """A parameter which belongs to no layer, such as a gate or a class token.

        A new one is filled with `start`, or drawn from the standard normal distribution."""

    # -- elementwise ------------------------------------------------------------------------------
    def silu(self, x: Array) -> Array:
        """`x * sigmoid(x)`."""

    def gelu(self, x: Array) -> Array:
        """`x * Phi(x)` with the exact normal distribution, not its tanh approximation."""

    def quick_gelu(self, x: Array) -> Array:
        """`x * sigmoid(1.702 x)`, the approximation CLIP ViT-L/14 was trained with."""

    def tanh(self, x: Array) -> Array:
        """Hyperbolic tangent."""

    def sin(self, x: Array) -> Array:
        """Sine, radians."""

    def cos(self, x: Array) -> Array:
        """Cosine, radians."""

    def exp(self, x: Array) -> Array:
        """Natural exponential."""

    def clip(self, x: Array, low: Any, high: Any) -> Array:
        """Values below `low` become `low`, above `high` become `high`; bounds may be arrays."""

    def where(self, condition: Array, x: Array, y: Array) -> Array:
        """`x` where `condition` holds, `y` elsewhere; both may be scalars of x's dtype."""

    # -- reductions -------------------------------------------------------------------------------
    def mean(self, x: Array, axes: tuple[int, ...], keepdims: bool = True) -> Array:
        """Arithmetic mean over `axes`."""

    def std(self, x: Array, axes: tuple[int, ...], keepdims: bool = True) -> Array:
        """Standard deviation with Bessel's correction (`n - 1`), as PyTorch's default."""

    def norm(self, x: Array, axis: int = -1) -> Array:
        """Euclidean length over `axis`, kept as size 1."""

    def quantile_abs(self, x: Array, q: float) -> Array:
        """The `q`-quantile (linear interpolation) of `|x|` per image: `(batch,)`."""

    def argmax(self, x: Array, axis: int) -> Array:
        """Index of the first largest value along `axis`."""

    def softmax(self, x: Array) -> Array:
        """Softmax over the last axis, computed in float32 and cast back."""

    def matmul(self, a: Array, b: Array) -> Array:
        """Matrix product over the last two axes, leading axes broadcast."""

    def attention(self, q: Array, k: Array, v: Array, mask: Array | None = None) -> Array:
        """`softmax(q k^T / sqrt(d) + mask) v`; q `(batch, heads, queries, d)`, k and v
        `(batch, heads, keys, d)`, `mask` added, broadcastable to `(batch, heads, queries,
        keys)`."""

    # -- shape and type ---------------------------------------------------------------------------
    def permute(self, x: Array, axes: Sequence[int]) -> Array:
        """Axes in the given order."""

    def tokens(self, x: Array) -> Array:
        """An image's positions as tokens `(batch, height * width, channels)`, row after row.

        Where memory has an order it follows: a token's channels lie side by side."""

    def image(self, x: Array, like: Array) -> Array:
        """The inverse of `tokens`: an image as high, as wide and in memory as `like`."""

    def concat(self, xs: Sequence[Array], axis: int) -> Array:
        """Join along an existing axis."""

    def pad(self, x: Array, bottom: int, right: int) -> Array:
        """Zeros below and to the right of an image batch."""

    def upsample(self, x: Array, height: int, width: int) -> Array:
        """Nearest neighbour: output pixel `i` shows input pixel `floor(i * in / out)`."""

    def gather_rows(self, x: Array, index: Array) -> Array:
        """`x[b, index[b]]` for every image `b`: `(batch, tokens, width)` -> `(batch, width)`."""

    def expand(self, x: Array, shape: Sequence[int]) -> Array:
        """Repeat axes of size 1 up to `shape`."""

    def arange(self, count: int, like: Array) -> Array:
        """`0 .. count - 1` in float32 on the device of `like`."""

    def causal_mask(self, count: int, like: Array) -> Array:
        """`(count, count)` like `like`: 0 on and below the diagonal, the lowest number above."""

    def float32(self, x: Array) -> Array:
        """`x` in float32."""

    def cast(self, x: Array, like: Array) -> Array:
        """`x` in the dtype of `like`."""
