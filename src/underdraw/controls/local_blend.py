"""Where in an image attention to some words is high ("local editing" of prompt-to-prompt)."""

from __future__ import annotations

from collections.abc import Sequence

from underdraw.backends.contract import Array, Operations
from underdraw.errors import ControlError
from underdraw.networks.config import UNetConfig


def attention_to(nn: Operations, mark: Array, probabilities: Array) -> Array:
    """`(images, positions)`: attention `(images, heads, positions, copies, tokens)` to the tokens
    that `mark (tokens, 1)` names, averaged over heads and copies."""
    images, _, positions = probabilities.shape[:3]
    found = nn.matmul(nn.float32(probabilities), nn.float32(mark))
    return nn.mean(found, (1, 3)).reshape(images, positions)


def high(nn: Operations, total: Array, sides: Sequence[int], threshold: float) -> Array:
    """1 where attention `(images, positions)` or that of a position beside it exceeds `threshold`
    times its largest value, else 0: `(images, 1, height, width)` for latents of these `sides`."""
    map_ = widened(nn, total.reshape(-1, 1, *grid(total.shape[1], *sides)))
    peak = nn.quantile_abs(map_, 1.0)[:, None, None, None]
    return nn.where(nn.upsample(map_, *sides) > threshold * peak, 1.0, 0.0)


def smallest_attention(config: UNetConfig, height: int, width: int) -> int | None:
    """Positions of the smallest cross-attention of a UNet, for latents of `height, width`; None
    where it has none."""
    last = len(config.block_out_channels) - 1
    found = [i for i, kind in enumerate(config.down_block_types) if kind.startswith("CrossAttn")]
    found += [
        last - i for i, kind in enumerate(config.up_block_types) if kind.startswith("CrossAttn")
    ]
    if (config.mid_block_type or "").endswith("CrossAttn"):
        found.append(last)
    if not found:
        return None
    for _ in range(max(found)):  # a padded convolution keeps the last row of an odd number
        height, width = ((side + config.downsample_padding) // 2 for side in (height, width))
    return height * width


def grid(positions: int, height: int, width: int) -> tuple[int, int]:
    """The sides of the level of a UNet with so many positions, for latents of `height, width`.

    Levels halve the sides, rounding up (padded convolutions) or down.
    """
    for rounded in (1, 0):
        h, w = height, width
        while h * w > positions:
            h, w = (h + rounded) // 2, (w + rounded) // 2
        if h * w == positions:
            return h, w
    raise ControlError(
        f"AttentionEdit: attention over {positions} positions fits no level of latents of "
        f"{height} x {width}"
    )


def widened(nn: Operations, x: Array) -> Array:
    """The largest value of each 3 x 3 neighbourhood of `(images, 1, height, width)`."""
    for axis in (2, 3):
        first, last = (x[:, :, :1], x[:, :, -1:]) if axis == 2 else (x[..., :1], x[..., -1:])
        later, sooner = (x[:, :, 1:], x[:, :, :-1]) if axis == 2 else (x[..., 1:], x[..., :-1])
        beside = (nn.concat((later, last), axis), nn.concat((first, sooner), axis))
        for other in beside:
            x = nn.where(other > x, other, x)
    return x
