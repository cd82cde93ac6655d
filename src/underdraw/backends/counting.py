"""How much arithmetic a network program is: the program run on shapes."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

from underdraw.backends.shapes import Path, Shape, Shapes


@dataclass
class Work:
    """Multiplications and additions, each counted, of what nearly all time goes to."""

    matrix: int = 0
    """Of products of matrices, attention included."""
    convolution: int = 0

    @property
    def total(self) -> int:
        return self.matrix + self.convolution


@dataclass(frozen=True)
class Counting(Shapes):
    """`Shapes` that count."""

    name: str = "counting"
    work: Work = field(default_factory=Work)

    def linear(self, p: Path, x: Shape, width: int, bias: bool = True) -> Shape:
        self.work.matrix += 2 * prod(x.shape) * width
        return super().linear(p, x, width, bias)

    def conv2d(
        self,
        p: Path,
        x: Shape,
        width: int,
        kernel: int,
        stride: int = 1,
        padding: int | None = None,
        bias: bool = True,
        groups: int = 1,
    ) -> Shape:
        made = super().conv2d(p, x, width, kernel, stride, padding, bias, groups)
        self.work.convolution += 2 * prod(made.shape) * (x.shape[1] // groups) * kernel**2
        return made

    def matmul(self, a: Shape, b: Shape) -> Shape:
        made = super().matmul(a, b)
        self.work.matrix += 2 * prod(made.shape) * a.shape[-1]
        return made

    def attention(self, q: Shape, k: Shape, v: Shape, mask: Shape | None = None) -> Shape:
        made = super().attention(q, k, v, mask)
        self.work.matrix += 2 * prod(q.shape) * k.shape[-2] + 2 * prod(made.shape) * k.shape[-2]
        return made
