"""The contract every control keeps.

A control is a frozen value. It is prepared once per run and then sees every model call; what it
must remember between calls is the carry it returns, never an attribute of itself or of the model.
So the same control may serve two threads, and a plain call after a controlled one gives the same
bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from underdraw.backends.contract import Array, Operations
from underdraw.errors import ControlError
from underdraw.networks.sites import NO_SITES, Sites, check


@dataclass(frozen=True)
class Run:
    """What is known before the first model call."""

    nn: Operations
    pipeline: Any
    """The components: `unet`, `vae`, `text_encoder`, `tokenizer`, ..."""
    batch: int
    """Images of this run. Under guidance the UNet sees twice as many rows, unconditional first."""
    latents: Array
    """The latents the run begins with, `(batch, channels, height, width)`."""
    calls: int
    prompts: Sequence[str] | None = None
    """Texts of the call, where it has any; the images of a prompt stand next to each other."""
    solver: Any = None
    """What is stepped by: `solver.noised(index, clean, noise)` are latents as they are at a call,
    of index `calls` those after the last one."""
    draw: Callable[[], Array] | None = None
    """Fresh standard normal noise of the shape of `latents`, from the generators of the call."""


@dataclass(frozen=True)
class Call:
    """Where a model call stands in its run."""

    index: int
    count: int
    timestep: float
    guided: bool
    """Whether rows are doubled for classifier-free guidance."""

    @property
    def progress(self) -> float:
        """How much of the run lies before this call, in [0, 1)."""
        return self.index / self.count


class Control:
    """Base with the four moments of a control; override those that matter.

    Strength over time is a function of `call.progress`, evaluated for each model call.
    """

    def prepare(self, run: Run) -> Any:
        """Once per run, before the first call: encode phrases, images, maps. Returns the carry."""
        return None

    def before_call(
        self, nn: Operations, carry: Any, latents: Array, call: Call
    ) -> tuple[Array, Sites, Any]:
        """The latents from which this call starts, what acts inside it, and the new carry."""
        return latents, NO_SITES, carry

    def after_step(
        self, nn: Operations, carry: Any, latents: Array, call: Call
    ) -> tuple[Array, Any]:
        """The latents that go on to the next call, and the new carry."""
        return latents, carry


class Part(Control):
    """A control that acts only together with others of its kind, as the boxes of a picture do."""

    whole: ClassVar[Any]
    """`(parts) -> Control`: makes one of all parts that share this function; a `staticmethod`."""


def joined(controls: Sequence[Control]) -> list[Control]:
    """The controls a run has: parts of a kind become one, at the place of the first.

    Raises:
        ControlError, InputError: parts that do not go together.
    """
    kinds: dict[Any, list[Part]] = {}
    for control in controls:
        if isinstance(control, Part):
            kinds.setdefault(control.whole, []).append(control)
    run: list[Control] = []
    for control in controls:
        if not isinstance(control, Part):
            run.append(control)
        elif (parts := kinds.pop(control.whole, None)) is not None:
            run.append(control.whole(parts))
    return run


def kept(nn: Any, control: Control, moment: str, told: Any, parts: int, x: Array) -> Any:
    """What a control returned, after checking that it keeps its contract; latents first."""
    if not isinstance(told, tuple) or len(told) != parts or not hasattr(told[0], "shape"):
        raise ControlError(
            f"{control!r} at '{moment}' returned {type(told).__name__}; "
            f"a tuple of {parts} is needed, latents first"
        )
    check(control, moment, told[0], x.shape)
    return told if told[0] is x else (nn.float32(told[0]), *told[1:])
