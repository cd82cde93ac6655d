"""The contract every control keeps.

A control is a frozen value. It is asked once per run whether it fits, prepared once, and then sees
every model call; what it must remember between calls is the carry it returns, never an attribute of
itself or of the model. So the same control may serve two threads, and a plain call after a
controlled one gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

from underdraw.backends.contract import Array, Operations
from underdraw.controls.planned import Planned
from underdraw.controls.run import Run
from underdraw.errors import ControlError
from underdraw.networks.program import Ask, Program, directly
from underdraw.networks.sites import NO_SITES, Extra, Sites, check, named
from underdraw.text.words import Tokens, Words


@dataclass(frozen=True)
class Call:
    """Where a model call stands in its run."""

    index: int
    count: int
    timestep: float
    guided: bool
    """Whether rows are doubled for classifier-free guidance, unconditional rows first."""
    extras: tuple[Extra, ...] = ()
    """In `after_step`: what this control's own hooks told inside the call (`sites.Observed`)."""
    whole: bool = False
    """In `before_call`, beside controls that reuse: something begins or ends to act with this call
    (`Control.active`), so nothing that an earlier one gave may stand for it."""

    @property
    def progress(self) -> float:
        """How much of the run lies before this call, in [0, 1)."""
        return self.index / self.count

    @property
    def over(self) -> float:
        """How much of the run lies behind after this call, in (0, 1]."""
        return (self.index + 1) / self.count


class Ahead(Protocol):
    """What does not change between calls is computed once for all of them, and again where a
    callback replaces the context."""

    def __call__(
        self, model: Any, times: Program, context: Program, rows: int, like: Array
    ) -> tuple[Any, Any]:
        """What `times` of a network makes of the time of this call, one row, and `context` of the
        texts of so many rows, all or the conditional half; both are told them in the dtype of
        `like`. Of texts that are this call's alone, these themselves."""
        ...


@dataclass(frozen=True, eq=False)
class Asked:
    """A model call that is about to be made, as `during_call` sees it. Rows are those of the call:
    under guidance twice the images."""

    sample: Array
    """Latents scaled for the network, in its dtype, `(rows, channels, height, width)`."""
    timestep: float
    context: Array
    """Of the texts, `(rows, tokens, width)`, as controls have changed it for this call."""
    ahead: Ahead
    """What a network of the control's own makes of times and context, computed ahead."""
    ask: Ask = directly
    """Has a program run on a network of the control's own."""
    guided: bool = False
    """Whether rows are doubled for guidance, unconditional ones first."""

    def conditional(self) -> Asked:
        """The same of the conditional rows alone."""
        if not self.guided:
            return self
        half = self.sample.shape[0] // 2
        return replace(self, sample=self.sample[half:], context=self.context[half:], guided=False)


@dataclass(frozen=True, eq=False)
class Predicted:
    """What the UNet gave in a call, as `predict` sees it: arrays `(images, channels, height,
    width)` in float32."""

    value: Array
    """With guidance, as the solver will get it."""
    conditional: Array
    unconditional: Array | None
    """None where the call had no such half."""
    guided: Callable[[Array, Array], Array]
    """Guidance of an unconditional and a conditional prediction, as strong as it is now."""
    wanted: bool
    """Whether guidance asks for an unconditional half, and every control but this one has it so:
    where there is none, this one has left it out."""


class Control:
    """Base with the moments of a control, in the order in which things happen; override those that
    matter.

    Strength over time is a function of `call.progress`, evaluated for each model call.
    """

    reuses: ClassVar[bool] = False
    """Whether it has calls computed in part (`Sites.features`). In these the networks of other
    controls are not asked: what they answered last acts again. A call with which one of them begins
    or ends (`Call.whole`) must be none of these."""

    def check(self, planned: Planned) -> None:
        """Before anything is computed, when sizes and numbers are known: raise an InputError or
        InputTypeError where the control does not fit the run."""

    def room(self, components: Any, prompt: str, number: int) -> int:
        """How many tokens `words` will put into a window of this prompt, the call's one of this
        number: they stay free. `components` are the pipeline's, or None without one."""
        return 0

    def placed(self, components: Any, tokens: Tokens) -> Tokens:
        """The tokens of the prompts with those that `words` will put in, so that other controls can
        look for words in `check`. Without it they do so once texts are encoded."""
        return tokens

    def steady(self) -> bool:
        """Whether it tells what it does at a call without looking at latents (`controls.steady`);
        else a run with it is asked for call by call."""
        return False

    def networks(self, run: Run) -> Sequence[Any]:
        """Those that `during_call` asks: they stay where the run computes as long as it lasts."""
        return ()

    def words(self, nn: Operations, words: Words) -> Words:
        """Before the texts are encoded: token embeddings may be replaced or added."""
        return words

    def prepare(self, run: Run) -> Any:
        """Once per run, before the first call: encode phrases, images, maps. Returns the carry."""
        return None

    def guides(self, carry: Any, call: Call) -> bool:
        """Whether this call, for which guidance asks an unconditional half, is to have one; it has
        none as soon as one control says no."""
        return True

    def active(self, carry: Any, like: Array, call: Call) -> Any:
        """What is equal in calls in which the same of it acts, for runs with controls that reuse;
        of the latents `like` only shape and place may be used."""
        return None

    def before_call(
        self, nn: Operations, carry: Any, latents: Array, call: Call
    ) -> tuple[Array, Sites, Any]:
        """The latents from which this call starts, what acts inside it, and the new carry."""
        return latents, NO_SITES, carry

    def during_call(
        self, nn: Operations, carry: Any, asked: Asked, call: Call
    ) -> tuple[Sites, Any]:
        """What else acts inside this call, found with a network of the control's own, and the new
        carry."""
        return NO_SITES, carry

    def predict(
        self, nn: Operations, carry: Any, predicted: Predicted, call: Call
    ) -> tuple[Array, Any]:
        """The prediction that the solver gets, and the new carry."""
        return predicted.value, carry

    def after_step(
        self, nn: Operations, carry: Any, latents: Array, call: Call
    ) -> tuple[Array, Any]:
        """The latents that go on to the next call, and the new carry."""
        return latents, carry


class Part(Control):
    """A control that acts only together with others of its kind, as the boxes of a picture do."""

    whole: ClassVar[Any]
    """`(parts) -> Control`: makes one of all parts that share this function; a `staticmethod`."""
    of_words: ClassVar[bool] = False
    """Whether that control acts on token embeddings."""


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


def of_words(controls: Sequence[Control]) -> list[Control]:
    """The controls that act on token embeddings; without any, a text is encoded as ever."""
    acting = joined([c for c in controls if not isinstance(c, Part) or c.of_words])
    return [control for control in acting if type(control).words is not Control.words]


def tokens_with(controls: Sequence[Control], components: Any, tokens: Tokens) -> Tokens | None:
    """The tokens of prompts with what these controls will put in; None where one of them does not
    say where.

    Raises:
        InputError: something cannot be put in.
    """
    for control in controls:
        if type(control).placed is Control.placed:
            return None
        tokens = control.placed(components, tokens)
    return tokens


def kept(nn: Any, control: Control, moment: str, told: Any, parts: int, x: Array) -> Any:
    """What a control returned, after checking that it keeps its contract; latents first."""
    if not isinstance(told, tuple) or len(told) != parts or not hasattr(told[0], "shape"):
        raise ControlError(
            f"{named(control)} at '{moment}' returned {type(told).__name__}; "
            f"a tuple of {parts} is needed, latents first"
        )
    check(control, moment, told[0], x.shape)
    if parts == 3 and not isinstance(told[1], Sites):
        raise ControlError(
            f"{named(control)} at '{moment}' returned {type(told[1]).__name__} as sites; "
            "needed are Sites, or NO_SITES"
        )
    return told if told[0] is x else (nn.float32(told[0]), *told[1:])


def kept_sites(control: Control, told: Any) -> tuple[Sites, Any]:
    """What a control returned from `during_call`, checked likewise."""
    if not isinstance(told, tuple) or len(told) != 2 or not isinstance(told[0], Sites):
        raise ControlError(
            f"{named(control)} at 'during_call' returned {type(told).__name__}; "
            "a tuple of Sites and carry is needed"
        )
    return told
