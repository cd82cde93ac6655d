"""A call handed out step by step, with previews of the pictures being made."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, Concatenate, Generic, TypeVar, cast, get_args, get_type_hints

import numpy as np
from PIL import Image
from typing_extensions import ParamSpec

from underdraw.backends.contract import Array
from underdraw.engines.engine import Engine, Question, answer, answered
from underdraw.errors import InputTypeError
from underdraw.models.returning import Returning, show
from underdraw.pictures.writing import grid, to_output, to_pil
from underdraw.pipelines.call.memory import telling_shortage
from underdraw.pipelines.call.output import Flags, decode
from underdraw.pipelines.components.components import Components
from underdraw.sampling.steps import UNWATCHED, Step
from underdraw.shown import of_fields, png

Given = ParamSpec("Given")
Made = TypeVar("Made")

CELLS = 16
"""Side of the test picture from which the colours of latents are learned, in latent pixels."""


def streamed(
    make: Callable[
        Concatenate[Any, Given], Generator[Question | Step, Any, Made | tuple[Any, Flags]]
    ],
) -> Returning[Given, Made, tuple[Any, Flags]]:
    """A pipeline's call, written as a generator of questions and steps: it runs to the end, and
    `pipe.stream`, which takes the same arguments, hands the steps out.

    For type checkers, editors and `inspect` it is a call that returns what the generator returns.
    It is written with `return_dict: Literal[True] = True` (`models.returning`).
    """

    @wraps(make)
    def call(pipe: Any, *args: Given.args, **kwargs: Given.kwargs) -> Any:
        with telling_shortage(pipe):
            return ended(make(pipe, *args, **kwargs), pipe.engine)

    call.steps = make  # type: ignore[attr-defined]
    of_generator = get_args(get_type_hints(make).get("return"))
    show(call, of_generator[2] if len(of_generator) == 3 else Any, like=make)
    return cast(Any, call)


def ended(run: Generator[Any, Any, Made], engine: Engine) -> Made:
    """What a generator returns after all its steps, its questions answered."""
    steps, reply = answered(run, engine), None
    while True:
        try:
            steps.send(reply)
            reply = UNWATCHED
        except StopIteration as end:
            return end.value


@dataclass(frozen=True)
class Progress:
    """What a stream gives after each model call."""

    index: int
    """Of the call, from 0."""
    calls: int
    """How many there are."""
    timestep: float
    latents: Array
    """`(images, channels, height, width)` after the call, float32."""
    clean: Callable[[], Array]
    """The latents the model aims at now, of the same shape; computed when asked for."""
    show: Callable[[Array, bool], list[Any]]

    def __repr__(self) -> str:
        return of_fields(self, "index", "calls", "timestep", "latents")

    def _repr_png_(self) -> bytes:
        return png(grid(self.preview()))

    def preview(self, full: bool = False) -> list[Image.Image]:
        """What the model aims at now as PIL images of the final size, one per image.

        Cheap and blurred: each latent pixel has the colour its numbers stand for, found by a linear
        map that is fitted to this autoencoder when the first preview is asked for; or, where
        `pipe.load_preview` attached a small autoencoder, cheap and sharp. `full` decodes instead,
        which costs what decoding at the end costs; only then a safety checker looks.
        """
        return self.show(self.clean(), full)


class Stream(Generator[Progress, None, Made], Generic[Made]):
    """A call of a pipeline in progress.

    Several may go on at once, in one thread or in several: each has a run of its own. Whoever
    answers the questions of several at once uses `ask` and `answer` instead of `next`.
    """

    output: Made | Any = None
    """What the call gives; None before the end, and where the stream was closed before."""
    asked: Question | None = None
    """What waits for its answer."""

    def __init__(self, pipe: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        steps = getattr(type(pipe).__call__, "steps", None)
        if steps is None:
            raise InputTypeError(f"{type(pipe).__name__} cannot be streamed; call it")
        self.pipe = pipe
        self._run: Generator[Question | Step, Any, Any] = steps(pipe, *args, **kwargs)
        self._reply: Any = None
        self._ends = self._interrupted = False
        self._seen: tuple[int, int] | None = None
        self._going: Any = None
        """The run, once it has begun."""
        self._colours: np.ndarray | None = None

    def __repr__(self) -> str:
        done = "before its first call"
        if self._seen is not None:
            done = "call {} of {} done".format(*self._seen)
        if self._ends or self.output is not None:
            done = f"ended, {done}"
        return f"<Stream of {type(self.pipe).__name__}, {done}>"

    def ask(self) -> Question | Progress:
        """The next question, for whose answer `answer` has to be called, or the next step; raises
        StopIteration, which holds the output, after the last one. A question is asked again until
        it is answered."""
        if self.asked is not None:
            return self.asked
        reply, self._reply = self._reply, None
        try:
            with telling_shortage(self.pipe):
                item = self._run.send(reply)
        except StopIteration as end:
            self.output = end.value if self.output is None else self.output
            raise
        if self._ends:
            self._run.close()
            raise StopIteration
        self._going = self.pipe.views.last
        if self._interrupted:
            self._going.ended = True
        if isinstance(item, Question):
            self.asked = item
            return item
        calls = self.pipe.views.left.calls
        self._seen = item.index + 1, calls
        return Progress(item.index, calls, item.timestep, item.latents, item.clean, self._show)

    def answer(self, value: Any) -> None:
        """The answer to the question that waits for it."""
        self.asked, self._reply = None, value

    def send(self, value: None) -> Progress:
        """The next step; raises StopIteration, which holds the output, after the last one."""
        while isinstance(item := self.ask(), Question):
            try:
                with telling_shortage(self.pipe):
                    self.answer(answer(self.pipe.engine, item))
            except BaseException:
                self.close()
                raise
        return item

    def throw(self, kind: Any, value: Any = None, trace: Any = None) -> Progress:
        """End the run; the error goes on from here."""
        self.close()
        raise kind if value is None else value

    def interrupt(self) -> None:
        """End the run after the step that is going on, or was handed out last; `output` is made
        of what it has reached. Any thread may say so, and no other run notices."""
        self._interrupted = True
        if self._going is not None:
            self._going.ended = True

    def close(self) -> None:
        """End the run before its next step; nothing happens where it has ended already. A callback
        of the run itself, or another thread in the middle of a step, first comes to its end."""
        self._ends, self.asked = True, None
        if not getattr(self._run, "gi_running", False):
            self._run.close()

    def _show(self, clean: Array, full: bool) -> list[Any]:
        components = self.pipe.parts
        if full:
            return decode(components, clean, "pil")[0]
        if (sketched := components.sketch(clean)) is not None:
            return to_output(sketched, "pil", components.framework)
        if self._colours is None:
            self._colours = fit_colours(components)
        return coloured(components, clean, self._colours)


def coloured(components: Components, latents: Array, colours: np.ndarray) -> list[Any]:
    """Latents `(images, channels, h, w)` as PIL images by a map of `fit_colours`."""
    factor = components.vae.config.factor
    z = components.framework.to_numpy(latents).transpose(0, 2, 3, 1)
    pixels = ((z @ colours[:-1] + colours[-1]) / 2 + 0.5).clip(0, 1)
    size = (pixels.shape[2] * factor, pixels.shape[1] * factor)
    return [one.resize(size, Image.Resampling.BILINEAR) for one in to_pil(pixels)]


def fit_colours(components: Components) -> np.ndarray:
    """The linear map `(channels + 1, 3)` from a latent pixel and 1 to its colour in [-1, 1].

    Least squares over a picture of soft and of hard patches which the autoencoder encodes: it works
    for every autoencoder, and takes a part of the time of one decoding.
    """
    cells, config = patches(), components.vae.config
    factor = config.factor
    picture = cells.repeat(factor, 0).repeat(factor, 1).transpose(2, 0, 1)[None]
    z = components.scaled(components.encode(picture).mode())
    plain = components.framework.to_numpy(z)[0].transpose(1, 2, 0)
    known = plain.reshape(-1, config.latent_channels)
    known = np.concatenate([known, np.ones_like(known[:, :1])], 1).astype(np.float64)
    found, *_ = np.linalg.lstsq(known, cells.reshape(-1, 3).astype(np.float64), rcond=None)
    return found.astype(np.float32)


def patches() -> np.ndarray:
    """Float32 `(CELLS, 2 * CELLS, 3)` in [-1, 1]: random colours that run into each other, and
    squares of pure ones."""
    rng = np.random.default_rng(0)
    corners = rng.uniform(-1, 1, (5, 5, 3))
    at = np.linspace(0, 4, CELLS)
    weights = np.maximum(0, 1 - abs(at[:, None] - np.arange(5)))
    soft = np.einsum("ai,bj,ijc->abc", weights, weights, corners)
    pure = rng.choice([-0.9, 0.0, 0.9], (CELLS // 4, CELLS // 4, 3))
    hard = pure.repeat(4, 0).repeat(4, 1)
    return np.concatenate([soft, hard], 1).astype(np.float32)
