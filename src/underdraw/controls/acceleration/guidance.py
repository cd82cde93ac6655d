"""Guidance in some calls of a run only: without an unconditional half a call costs half as much."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

from underdraw.backends.contract import Array, Operations
from underdraw.controls.acceleration.method import Method
from underdraw.controls.control import Call, Control, Predicted
from underdraw.controls.planned import Planned
from underdraw.controls.run import Run
from underdraw.controls.steady import Steady
from underdraw.errors import InputError
from underdraw.schema import Range


@dataclass(frozen=True)
class GuidanceInterval(Method):
    """Guidance at noise levels within `(low, high]` (Kynkäänniemi et al. 2024, equation 6);
    elsewhere the conditional prediction alone.

    Args:
        low, high: ratios of noise to signal, 0 or more; for Stable Diffusion's schedule they run
            from 14.6 down to 0.03. None is no bound. The authors take 0.28 and 5.42 for SDXL.

    Raises:
        InputError: they are no such numbers, or nothing lies between them.
    """

    owner = "GuidanceInterval"

    low: Annotated[float, Range(0)] = 0.28
    high: Annotated[float, Range(0)] | None = None

    def check(self) -> None:
        if self.high is not None and self.low >= self.high:
            raise InputError(
                f"GuidanceInterval: low={self.low} and high={self.high}; allowed: low below high"
            )

    def control(self) -> Control:
        return _Within(self)


@dataclass(frozen=True)
class AdaptiveGuidance(Method):
    """Guidance of each image until both predictions point the same way (Castillo et al. 2025,
    "Adaptive guidance", section 5): from the first call on at which their cosine exceeds
    `similarity` the conditional one alone. Unconditional halves are left out when no image of the
    call needs its own any more.

    Args:
        similarity: -1 to 1.

    Raises:
        InputError: it is no such number.
    """

    owner = "AdaptiveGuidance"

    similarity: Annotated[float, Range(-1, 1)] = 0.99

    def control(self) -> Control:
        return _UntilAlike(self)


@dataclass(frozen=True)
class SparseGuidance(Method):
    """The unconditional half in every n-th call; between them its difference from the conditional
    one is that of the last such call. Calls that others leave unguided stay so.

    Args:
        every: so many calls share a difference, 2 to 1000.
        first: so many calls at the beginning have both halves.

    Raises:
        InputError: a number is out of its range.
    """

    owner = "SparseGuidance"

    every: Annotated[int, Range(2, 1000)] = 2
    first: Annotated[int, Range(1, 1000)] = 1

    def control(self) -> Control:
        return _Sparse(self)


@dataclass(frozen=True)
class _Within(Steady):
    method: GuidanceInterval

    def check(self, planned: Planned) -> None:
        planned.solver.level(0)  # some of other libraries cannot tell it

    def prepare(self, run: Run) -> Sequence[bool]:
        low, high = self.method.low, self.method.high
        levels = [run.solver.level(index) for index in range(run.calls)]
        return [low < level and (high is None or level <= high) for level in levels]

    def guides(self, carry: Sequence[bool], call: Call) -> bool:
        return carry[call.index]


class _Alike(NamedTuple):
    """What goes from call to call."""

    framework: Any
    over: tuple[bool, ...]
    """Of each image, whether its guidance is."""


@dataclass(frozen=True)
class _UntilAlike(Control):
    method: AdaptiveGuidance

    def prepare(self, run: Run) -> _Alike:
        return _Alike(run.framework, (False,) * run.batch)

    def guides(self, carry: _Alike, call: Call) -> bool:
        return not all(carry.over)

    def predict(
        self, nn: Operations, carry: _Alike, predicted: Predicted, call: Call
    ) -> tuple[Array, _Alike]:
        a, b = predicted.conditional, predicted.unconditional
        if b is None:
            return predicted.value, carry
        images = len(carry.over)
        x, y = a.reshape(images, -1), b.reshape(images, -1)
        cosine = nn.mean(x / nn.norm(x) * (y / nn.norm(y)), (1,)) * x.shape[1]
        alike = carry.framework.to_numpy(cosine).reshape(-1) > self.method.similarity
        value = predicted.value
        if any(carry.over):
            rows = zip(carry.over, range(images), strict=True)
            parts = [(a if over else value)[i : i + 1] for over, i in rows]
            value = nn.concat(parts, 0)
        over = tuple(bool(was or now) for was, now in zip(carry.over, alike, strict=True))
        return value, carry._replace(over=over)


@dataclass(frozen=True)
class _Sparse(Control):
    method: SparseGuidance

    def guides(self, carry: Array | None, call: Call) -> bool:
        method = self.method
        return carry is None or call.index < method.first or call.index % method.every == 0

    def predict(
        self, nn: Operations, carry: Array | None, predicted: Predicted, call: Call
    ) -> tuple[Array, Array | None]:
        if predicted.unconditional is not None:
            return predicted.value, predicted.conditional - predicted.unconditional
        if carry is None or not predicted.wanted:
            # Where others have ended guidance there is none, and it begins anew with both halves.
            return predicted.value, None
        text = predicted.conditional
        return predicted.guided(text - carry, text), carry
