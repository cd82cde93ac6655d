"""The typed places inside a UNet call where a control may act."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from underdraw.backends.contract import Array, Operations
from underdraw.errors import ControlError

Hook = Callable[[Operations, str, Array], Array]
"""`(nn, place, value) -> value` of the same shape; `place` is a path of the parameter tree:
`down_blocks.0` of a block, `down_blocks.0.attentions.1.transformer_blocks.0` of the tokens in it,
the same with `.attn1` or `.attn2` of one attention. Where a level attends to the context only
(`only_cross_attention`), `attn1` is cross-attention, too."""
Join = Callable[[Operations, str, Array, Array], tuple[Array, Array]]
"""`(nn, place, hidden, skip) -> (hidden, skip)`."""


@dataclass(frozen=True)
class UpTo:
    """A hook on attention that wants at most so many queries. Attention over more positions keeps
    its fused kernel: probabilities of 64 x 64 positions alone take half a gigabyte per image."""

    queries: int
    hook: Hook

    def __call__(self, nn: Operations, place: str, x: Array) -> Array:
        return self.hook(nn, place, x)


@dataclass(frozen=True)
class Sites:
    """What acts inside one UNet call. Nothing is set on the model; what is empty costs nothing."""

    context: tuple[Callable[[Operations, Array], Array], ...] = ()
    """Text context `(batch, tokens, width)` of this call, unconditional rows first (null-text)."""
    model_input: tuple[Callable[[Operations, Array], Array], ...] = ()
    """Latents before the first convolution, to which channels may be added (inpainting)."""
    after_self_attention: tuple[Hook, ...] = ()
    """Tokens `(batch, tokens, width)` after self-attention and its residual (GLIGEN)."""
    self_attention: tuple[Hook, ...] = ()
    """Probabilities `(batch, heads, queries, keys)` of self-attention; `UpTo` bounds queries."""
    cross_attention: tuple[Hook, ...] = ()
    """Probabilities `(batch, heads, queries, keys)` of cross-attention."""
    beside_cross_attention: tuple[Hook, ...] = ()
    """From queries `(batch, heads, tokens, d)` to what is added to the values (IP-Adapter)."""
    down: tuple[Hook, ...] = ()
    """Hidden `(batch, channels, height, width)` after each down block's layers (T2I-Adapter)."""
    join: tuple[Join, ...] = ()
    """Hidden and skip of an up block before they are joined (FreeU)."""
    down_residuals: Sequence[Array] | None = None
    """One array per skip connection, added to it (ControlNet)."""
    mid_residual: Array | None = None
    """Added after the middle block (ControlNet)."""
    conv_in: Callable[[Operations, Any, Array], Array] | None = None
    """Replaces the first convolution: `(nn, p.conv_in, x) -> hidden` (GLIGEN's spatial maps)."""

    def __add__(self, other: Sites) -> Sites:
        """Both act: hooks run one after another, residuals add up.

        Raises:
            ControlError: both replace the first convolution.
        """
        if self.conv_in is not None and other.conv_in is not None:
            raise ControlError("two controls replace the first convolution; only one can")
        merged = {
            name: getattr(self, name) + getattr(other, name)
            for name in (
                "context",
                "model_input",
                "after_self_attention",
                "self_attention",
                "cross_attention",
                "beside_cross_attention",
                "down",
                "join",
            )
        }
        return Sites(
            **merged,
            down_residuals=_sum(self.down_residuals, other.down_residuals, _sum_each),
            mid_residual=_sum(self.mid_residual, other.mid_residual, lambda a, b: a + b),
            conv_in=self.conv_in or other.conv_in,
        )


def _sum(a: Any, b: Any, add: Callable[[Any, Any], Any]) -> Any:
    if a is None or b is None:
        return b if a is None else a
    return add(a, b)


def _sum_each(a: Sequence[Array], b: Sequence[Array]) -> list[Array]:
    return [x + y for x, y in zip(a, b, strict=True)]


NO_SITES = Sites()


def check(who: Any, place: str, returned: Array, shape: Sequence[int]) -> None:
    """Raise a `ControlError` unless what a hook returned has the shape that its site carries."""
    if tuple(returned.shape) != tuple(shape):
        raise ControlError(
            f"{who!r} at '{place}' returned {tuple(returned.shape)}; "
            f"the site carries {tuple(shape)}"
        )


def wanting(hooks: tuple[Hook, ...], queries: int) -> tuple[Hook, ...]:
    """The hooks that act on attention from so many positions."""
    return tuple(h for h in hooks if not isinstance(h, UpTo) or queries <= h.queries)


def apply(nn: Operations, hooks: tuple[Hook, ...], place: str, x: Array) -> Array:
    """Run the hooks of one site in order, checking that each keeps the shape."""
    for hook in hooks:
        y = hook(nn, place, x)
        check(hook, place, y, x.shape)
        x = y
    return x


def add_residual(place: str, x: Array, residual: Array) -> Array:
    """Their sum; a residual may have size 1 where it is the same for all images or positions."""
    sizes, carried = tuple(residual.shape), tuple(x.shape)
    if len(sizes) != len(carried) or any(
        a not in (1, b) for a, b in zip(sizes, carried, strict=True)
    ):
        raise ControlError(f"the residual at '{place}' is {sizes}; the site carries {carried}")
    return x + residual
