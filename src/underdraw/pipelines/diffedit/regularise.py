"""Noise predictions pushed towards white noise while a picture is inverted.

Parmar et al. 2023 ("Zero-shot image-to-image translation", section 3.1): the noise in each
prediction shall be uncorrelated with itself shifted, at several scales, with mean 0 and variance 1.
Gradients are written out, so that no backend has to differentiate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from underdraw.backends.contract import Array
from underdraw.solvers.solver import Solver
from underdraw.solvers.table import State

SMALLEST = 8
"""Scales are halved down to this height."""
EPS = 1e-7


@dataclass(frozen=True)
class Regularisation:
    """Steps of gradient descent on a prediction.

    Args:
        auto_corr, kl: weights of the two terms; 0 leaves one out.
        steps: rounds for each prediction; 0 leaves it as it is.
        rolls: how often the auto-correlation is measured in a round, each time at new shifts.
        pick: `f(image, most)` draws a shift in `0 .. most - 1` for an image.
        together: the variance over the whole batch, as diffusers takes it: an image then depends on
            its neighbours.
        copies: how often an image counts: diffusers measures the noise of a guided prediction that
            is not noise itself beside both halves of the network's input, which are the same.
    """

    auto_corr: float
    kl: float
    steps: int
    rolls: int
    pick: Callable[[int, int], int]
    together: bool = False
    copies: int = 1

    def __call__(self, nn: Any, noise: Array, factor: float = 1.0) -> Array:
        """The step to add to an output for the noise `(batch, channels, height, width)` in it;
        `factor` is how much of an output is noise, d noise / d output."""
        begin = noise
        for _ in range(self.steps):
            if self.auto_corr > 0:
                for _ in range(self.rolls):
                    grad = self._over_copies(nn, noise, self._auto_corr_gradient)
                    noise = noise - grad * (factor**2 * self.auto_corr / self.rolls)
            if self.kl > 0:
                grad = self._over_copies(nn, noise, self._kl_gradient)
                noise = noise - grad * (factor**2 * self.kl)
        return (noise - begin) / factor

    def _over_copies(self, nn: Any, noise: Array, gradient: Callable[[Any, Array], Array]) -> Array:
        if self.copies == 1:
            return gradient(nn, noise)
        found = gradient(nn, nn.concat([noise] * self.copies, 0))
        images = noise.shape[0]
        return sum(found[k * images : (k + 1) * images] for k in range(self.copies))

    def _kl_gradient(self, nn: Any, noise: Array) -> Array:
        return kl_gradient(nn, noise, self.together)

    def _auto_corr_gradient(self, nn: Any, noise: Array) -> Array:
        total, channels, height, width = noise.shape
        images, rows = total // self.copies, []
        for i in range(total):
            planes = []
            for j in range(channels):
                shifts, scale = [], 1
                while True:
                    shifts.append(self.pick(i % images, max(height // scale // 2, 1)))
                    if height // scale <= SMALLEST or width // scale < 2:
                        break
                    scale *= 2
                planes.append(auto_corr_gradient(nn, noise[i : i + 1, j : j + 1], shifts))
            rows.append(nn.concat(planes, 1))
        return nn.concat(rows, 0)


@dataclass(frozen=True)
class RegularisedSolver:
    """A solver that regularises the noise in each answer of the network before its step.

    `reads` gives for a call how noise is read from latents and answer: a factor of each.
    """

    solver: Solver
    regularise: Regularisation
    reads: Callable[[int], tuple[float, float]]

    def __len__(self) -> int:
        return len(self.solver)

    @property
    def initial_sigma(self) -> float:
        return self.solver.initial_sigma

    def timestep(self, index: int) -> float:
        return self.solver.timestep(index)

    def level(self, index: int) -> float:
        return self.solver.level(index)

    def model_input(self, index: int, x: Array) -> Array:
        return self.solver.model_input(index, x)

    def advance(
        self, nn: Any, index: int, state: State, output: Array, draw: Callable[[], Array]
    ) -> State:
        from_x, from_output = self.reads(index)
        noise = output * from_output + (state.x * from_x if from_x else 0)
        output = output + self.regularise(nn, noise, from_output)
        return self.solver.advance(nn, index, state, output, draw)

    def clean(self, nn: Any, index: int, x: Array, output: Array) -> Array:
        return self.solver.clean(nn, index, x, output)

    def noised(self, index: int, clean: Array, noise: Array) -> Array:
        return self.solver.noised(index, clean, noise)

    def tail(self, begin: int) -> RegularisedSolver:
        return replace(
            self, solver=self.solver.tail(begin), reads=lambda index: self.reads(begin + index)
        )


def auto_corr_gradient(nn: Any, plane: Array, shifts: list[int]) -> Array:
    """Of the sum over scales and both axes of `mean(x * roll(x, shift)) ** 2`.

    `plane` is `(1, 1, height, width)`; scale k has half the sides of scale k - 1 (2 x 2 means) and
    is shifted by `shifts[k]`.
    """
    shift, total = shifts[0], plane * 0
    for axis in (2, 3):
        forth, back = roll(nn, plane, shift, axis), roll(nn, plane, -shift, axis)
        correlation = nn.mean(plane * forth, (1, 2, 3))
        total = total + 2 * correlation * (forth + back) / (plane.shape[2] * plane.shape[3])
    if len(shifts) == 1:
        return total
    height, width = (side // 2 for side in plane.shape[2:])
    even = plane[:, :, : 2 * height, : 2 * width].reshape(1, height, 2, width, 2)
    coarse = auto_corr_gradient(nn, nn.mean(even, (2, 4), False)[None], shifts[1:])
    fine = nn.upsample(coarse, 2 * height, 2 * width) / 4
    return total + nn.pad(fine, plane.shape[2] % 2, plane.shape[3] % 2)


def kl_gradient(nn: Any, noise: Array, together: bool = False) -> Array:
    """Of `variance + mean ** 2 - 1 - log(variance)` per image: twice the divergence of a normal
    distribution with the image's mean and variance from the standard one."""
    axes = (0, 1, 2, 3) if together else (1, 2, 3)
    count = 1
    for axis in axes:
        count *= noise.shape[axis]
    mean, variance = nn.mean(noise, axes), nn.std(noise, axes) ** 2
    spread = 2 * (noise - mean) / (count - 1)
    return spread * (1 - 1 / (variance + EPS)) + 2 * mean / count


def roll(nn: Any, x: Array, shift: int, axis: int) -> Array:
    """Shifted along axis 2 or 3 of four; what leaves at one end comes in at the other."""
    shift %= x.shape[axis]
    if shift == 0:
        return x
    if axis == 2:
        return nn.concat((x[:, :, -shift:], x[:, :, :-shift]), 2)
    return nn.concat((x[:, :, :, -shift:], x[:, :, :, :-shift]), 3)
