"""The evaluator's network: a centre-point detector (Zhou et al. 2019, "Objects as Points").

Every cell of a grid of stride 4 says how likely the middle of an object's visible box lies in it,
and, if so, what the object is. PyTorch only: the judge is no part of what it judges.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from underdraw.scenes.vocabulary import COLOURS, MATERIALS, SHAPES, SIZES, TEXTURES

STRIDE = 4
UNIT = 16.0  # lengths come in these many pixels, so that outputs are of order 1
ATTRIBUTES = {
    "shape": SHAPES,
    "colour": COLOURS,
    "texture": ("plain", *TEXTURES),
    "material": MATERIALS,
    "size": SIZES,
}
# Channels of the output, in order: heat, distances to the four edges, way to the foot, attributes.
PARTS = (1, 4, 2, *(len(names) for names in ATTRIBUTES.values()))


class Layer(nn.Module):
    """3 x 3 convolution, batch norm while training (folded into the weights when shipped), ReLU."""

    def __init__(self, width_in: int, width: int, stride: int = 1, norm: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width_in, width, 3, stride, 1, bias=not norm)
        self.norm = nn.BatchNorm2d(width) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))


class Network(nn.Module):
    """Images (batch, 3, height, width) in [0, 1], sides multiples of 16, to (batch, sum(PARTS),
    height / 4, width / 4). `norm=False` is the shipped form, without batch norm."""

    def __init__(
        self, widths: tuple[int, int, int, int] = (16, 40, 80, 128), norm: bool = True
    ) -> None:
        super().__init__()
        a, b, c, d = widths
        self.widths = widths
        self.down = nn.ModuleList(
            [Layer(3, a, 2, norm), Layer(a, b, 2, norm), Layer(b, c, 2, norm), Layer(c, d, 2, norm)]
        )
        self.inner = nn.Sequential(Layer(c, c, 1, norm), Layer(c, c, 1, norm))
        self.deep = nn.Sequential(Layer(d, d, 1, norm), Layer(d, d, 1, norm))
        self.from_deep, self.from_inner = nn.Conv2d(d, c, 1), nn.Conv2d(c, b, 1)
        self.merge_inner, self.merge = Layer(c, c, 1, norm), Layer(b, b, 1, norm)
        self.head = nn.Conv2d(b, sum(PARTS), 1)
        nn.init.constant_(self.head.bias[0], -4.0)  # type: ignore[index]  # objects are rare

    def forward(self, images: Tensor) -> Tensor:
        fine = self.down[1](self.down[0]((images - 0.5) * 4))
        middle = self.down[2](fine)
        middle = middle + self.inner(middle)
        deep = self.down[3](middle)
        deep = deep + self.deep(deep)
        middle = self.merge_inner(middle + _twice(self.from_deep(deep)))
        fine = self.merge(fine + _twice(self.from_inner(middle)))
        return self.head(fine)


class DepthNetwork(Network):
    """Images as of `Network` to inverse depth `(batch, 1, height, width)`: about 1 at the nearest
    place of a picture and 0 at the farthest."""

    def __init__(
        self, widths: tuple[int, int, int, int] = (12, 24, 48, 80), norm: bool = True
    ) -> None:
        super().__init__(widths, norm)
        self.head = nn.Conv2d(widths[1], STRIDE * STRIDE, 1)

    def forward(self, images: Tensor) -> Tensor:
        return F.pixel_shuffle(super().forward(images), STRIDE) + 0.5


Kind = TypeVar("Kind", bound=Network)


def folded(network: Kind) -> Kind:
    """The same function without batch norm."""
    plain = type(network)(network.widths, norm=False).eval()
    state = {k: v for k, v in network.state_dict().items() if ".norm." not in k}
    for name, layer in network.eval().named_modules():
        if isinstance(layer, Layer) and isinstance(layer.norm, nn.BatchNorm2d):
            conv = fuse_conv_bn_eval(layer.conv, layer.norm)
            state[f"{name}.conv.weight"], state[f"{name}.conv.bias"] = conv.weight, conv.bias
    plain.load_state_dict(state)
    return plain


def split(output: Tensor) -> dict[str, Tensor]:
    """The output's channels by name: heat, box, foot and the attributes."""
    names = ("heat", "box", "foot", *ATTRIBUTES)
    return dict(zip(names, output.split(PARTS, dim=1), strict=True))


def cell_centres(rows: int, columns: int) -> Tensor:
    """Pixel positions (2, rows, columns) of the grid, x first."""
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return (torch.stack([x, y]) + 0.5) * STRIDE


def _twice(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")
