"""A solver as a table of numbers, and the one step that applies a row of it.

Whatever a solver knows when the network has answered lies in a few *slots*: the latents `x`, saved
latents, the raw output, the clean image after clipping, up to four earlier pushes `h1` (newest) to
`h4`, an accumulator, fresh noise. A row says with which factors they add up to the new `x`, the new
saved latents, the new accumulator, and what is pushed to the history. So one `advance` serves every
solver on every backend, and images of one batch may stand at different rows (`stack_rows`).

Families write rows with one more name, `eps`, the noise in `x` as the network sees it; `Rows` turns
it, and `clean` where nothing bounds it, into `x` and `output` according to the prediction type.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from underdraw.checks import shown
from underdraw.errors import InputError, InputTypeError
from underdraw.solvers.clipping import Clip, clipped

MOST_STEPS = 100_000
"""Of a run: more is a slip of the keyboard, for which no table is made."""

SLOTS = ("x", "saved", "output", "clean", "h1", "h2", "h3", "h4", "accumulator", "noise")
RESULTS = ("x", "saved", "accumulator", "pushed")
SPACINGS = ("leading", "linspace", "trailing")
PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
X, SAVED, OUTPUT, CLEAN, H1, ACCUMULATOR, NOISE = 0, 1, 2, 3, 4, 8, 9

Terms = tuple[tuple[int, Any], ...]
"""`(slot, factor)` pairs whose sum is taken; a factor is a float, or `(batch, 1, 1, 1)`."""


class Row(NamedTuple):
    """One model call. `timestep` goes to the network beside `input_scale * x`; `x = alpha * clean +
    sigma * noise`. `draws`: a fresh normal array is due as the slot `noise`."""

    timestep: float
    step: int
    input_scale: Any
    alpha: Any
    sigma: Any
    read_clean: Terms
    clips: tuple[tuple[Clip, Any], ...]
    x: Terms
    saved: Terms
    accumulator: Terms
    pushed: Terms
    pushes: Any
    draws: bool


class State(NamedTuple):
    """What is carried from call to call. Arrays `(batch, channels, height, width)`, float32 where
    the network is half precision: rows mix numbers of very different size."""

    x: Any
    saved: Any = None
    accumulator: Any = None
    history: tuple[Any, ...] = ()


def advance(nn: Any, row: Row, state: State, output: Any, noise: Any = None) -> State:
    """The state after one model call. Pure; `nn` is used only to clip.

    `output` is the network's raw answer at `row.timestep` to `row.input_scale * state.x`, in the
    dtype of `state.x`; `noise` standard normal, needed where `row.draws`.
    """
    past = state.history
    slots = [state.x, state.saved, output, None, *past, *(None,) * (4 - len(past))]
    slots += [state.accumulator, noise]
    if row.clips:
        slots[CLEAN] = clipped(nn, row.clips, _sum(row.read_clean, slots))
    pushes = row.pushes
    if pushes is True:
        history = (_sum(row.pushed, slots), *past[:3])
    elif pushes is False:
        history = past
    else:  # images at different rows, of which some push
        pushed = (_sum(row.pushed, slots), *past)[:4]
        zero = state.x * 0
        kept = [*past, zero][: len(pushed)]
        history = tuple(
            pushes * new + (1 - pushes) * old for new, old in zip(pushed, kept, strict=True)
        )
    return State(_sum(row.x, slots), _sum(row.saved, slots), _sum(row.accumulator, slots), history)


def clean_image(nn: Any, row: Row, x: Any, output: Any) -> Any:
    """The clean latents the network sees in `x`, clipped where the table clips: for previews and
    `pred_original_sample`."""
    clean = _sum(row.read_clean, [x, None, output])
    return clipped(nn, row.clips, clean) if row.clips else clean


def _sum(terms: Terms, slots: Sequence[Any]) -> Any:
    total = None
    for slot, factor in terms:
        part = slots[slot] if factor is ONE else slots[slot] * factor
        total = part if total is None else total + part
    return total


ONE = 1.0
"""Compared by identity, so that a slot taken as it is costs no multiplication."""


@dataclass(frozen=True, eq=False)
class Table:
    """A whole run. Arrays are float64 over model calls unless said otherwise.

    `weights` is `(calls, 4, 10)`: `RESULTS` from `SLOTS`. `read_clean (calls, 2)` gives the clean
    image from `x` and the output, `steps` the solver step a call belongs to, `pushes` and `draws`
    are booleans. Latents of a run begin as `initial_sigma * noise`. `levels` are the ratios of
    noise to signal at which steps begin and, last, where the run ends, if a solver works in them.
    """

    timesteps: np.ndarray
    input_scale: np.ndarray
    alpha: np.ndarray
    sigma: np.ndarray
    read_clean: np.ndarray
    weights: np.ndarray
    pushes: np.ndarray
    draws: np.ndarray
    steps: np.ndarray
    initial_sigma: float
    clip: Clip | None = None
    levels: np.ndarray | None = None
    restart: Callable[..., Table] | None = field(default=None, repr=False)
    consistency: bool = False
    """Whether each call aims at the clean image anew, as networks distilled for it do."""

    def __len__(self) -> int:
        return len(self.timesteps)

    def row(self, call: int) -> Row:
        """The row of one model call, in plain floats; factors that are 0 are left out."""
        return self.rows[call]

    def timestep(self, index: int) -> float:
        """The time given to the network."""
        return self.rows[index].timestep

    def level(self, index: int) -> float:
        """The ratio of noise to signal at a call."""
        row = self.rows[index]
        return row.sigma / row.alpha if row.alpha else float("inf")

    def model_input(self, index: int, x: Any) -> Any:
        """Latents as the network wants them."""
        scale = self.rows[index].input_scale
        return x if scale == 1 else x * scale

    def advance(
        self, nn: Any, index: int, state: State, output: Any, draw: Callable[[], Any]
    ) -> State:
        """The state after a call; `draw` gives noise where the row takes any."""
        row = self.rows[index]
        return advance(nn, row, state, output, draw() if row.draws else None)

    def clean(self, nn: Any, index: int, x: Any, output: Any) -> Any:
        """The clean latents seen at a call."""
        return clean_image(nn, self.rows[index], x, output)

    def noised(self, index: int, clean: Any, noise: Any) -> Any:
        """Clean latents as they are at a call, with this noise; after the last one, themselves."""
        if index == len(self):
            return clean
        return clean * float(self.alpha[index]) + noise * float(self.sigma[index])

    def tail(self, begin: int) -> Table:
        """The run that starts at model call `begin` with nothing remembered (image-to-image).

        It has `len(self) - begin` calls at the same timesteps. Where `begin` lies inside a step,
        the calls up to the next step leave `x` as it is.

        Raises:
            InputError: `begin` is not a call of this table.
        """
        if not 0 <= begin < len(self):
            raise InputError(f"begin={begin} must be between 0 and {len(self) - 1}")
        if begin == 0:
            return self
        if self.restart is not None:
            return self.restart(begin=begin)
        columns = ("timesteps", "input_scale", "alpha", "sigma", "read_clean", "weights", "pushes")
        names = (*columns, "draws", "steps")
        return replace(self, **{name: getattr(self, name)[begin:] for name in names})

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        return tuple(self._row(call) for call in range(len(self)))

    def _row(self, call: int) -> Row:
        x, saved, accumulator, pushed = (_terms(weights) for weights in self.weights[call])
        uses_clean = self.clip is not None and bool(self.weights[call, :, CLEAN].any())
        from_x, from_output = self.read_clean[call]
        read = tuple((slot, _factor(f)) for slot, f in ((X, from_x), (OUTPUT, from_output)) if f)
        columns = (self.timesteps, self.input_scale, self.alpha, self.sigma)
        t, scale, alpha, sigma = (float(column[call]) for column in columns)
        step, pushes, draws = self.steps[call], bool(self.pushes[call]), bool(self.draws[call])
        clips = ((self.clip, None),) if uses_clean and self.clip else ()
        results = (x, saved, accumulator, pushed)
        return Row(t, int(step), scale, alpha, sigma, read, clips, *results, pushes, draws)


def _factor(value: float) -> float:
    return ONE if value == 1 else float(value)


def _terms(weights: np.ndarray) -> Terms:
    return tuple((slot, _factor(w)) for slot, w in enumerate(weights.tolist()) if w != 0)


def read_clean(prediction_type: str, alpha: float, sigma: float) -> tuple[float, float]:
    """The clean image in an output, as factors of `x = alpha * clean + sigma * noise` and of it.

    v is `cos * noise - sin * clean` with the angle whose tangent is sigma / alpha (Salimans & Ho
    2022, appendix D), whatever the size of `x`.
    """
    if prediction_type == "epsilon":
        if alpha == 0:
            raise InputError(
                "prediction_type='epsilon' says nothing about the image at a timestep without "
                "signal (rescale_betas_zero_snr=True); allowed: v_prediction, sample"
            )
        return 1 / alpha, -sigma / alpha
    if prediction_type == "sample":
        return 0.0, 1.0
    size = float(np.hypot(alpha, sigma))
    return alpha / size / size, -sigma / size


def read_noise(prediction_type: str, alpha: float, sigma: float) -> tuple[float, float]:
    """The noise in an output, likewise."""
    if prediction_type == "epsilon":
        return 0.0, 1.0
    if prediction_type == "sample":
        if sigma == 0:
            raise InputError(
                "prediction_type='sample' says nothing about the noise at a level without noise "
                "(set_alpha_to_one=True); allowed: epsilon, v_prediction"
            )
        return 1 / sigma, -alpha / sigma
    size = float(np.hypot(alpha, sigma))
    return sigma / size / size, alpha / size


class Rows:
    """Collects the calls of a run. Factors are given by name: `SLOTS` and `eps`."""

    def __init__(self, prediction_type: str, clip: Clip | None = None, initial_sigma: float = 1.0):
        self.prediction_type = prediction_type
        self.clip = clip
        self.initial_sigma = initial_sigma
        self._calls: list[tuple[Any, ...]] = []

    def call(
        self,
        timestep: float,
        alpha: float,
        sigma: float,
        step: int,
        x: Mapping[str, float],
        *,
        saved: Mapping[str, float] | None = None,
        accumulator: Mapping[str, float] | None = None,
        push: Mapping[str, float] | None = None,
        scale: float = 1.0,
        draws: bool | None = None,
    ) -> None:
        """One model call. Saved latents and accumulator are dropped unless named again; without
        `push` the history stays; `draws` if noise is due although its factor is 0."""
        clean = read_clean(self.prediction_type, alpha, sigma)
        results = np.zeros((len(RESULTS), len(SLOTS)))
        for result, terms in zip(results, (x, saved, accumulator, push), strict=True):
            for name, factor in (terms or {}).items():
                if name == "eps" or (name == "clean" and self.clip is None):
                    read = read_noise if name == "eps" else read_clean
                    from_x, from_output = read(self.prediction_type, alpha, sigma)
                    result[X] += factor * from_x
                    result[OUTPUT] += factor * from_output
                else:
                    result[SLOTS.index(name)] += factor
        due = bool(results[:, NOISE].any()) if draws is None else draws
        self._calls.append(
            (timestep, scale, alpha, sigma, clean, results, push is not None, due, step)
        )

    def wait(self, timestep: float, alpha: float, sigma: float, step: int, scale: float) -> None:
        """A call in the middle of a step that this run did not begin: nothing changes."""
        self.call(timestep, alpha, sigma, step, {"x": 1.0}, scale=scale)

    def table(self, levels: np.ndarray | None = None) -> Table:
        columns = [np.array(column) for column in zip(*self._calls, strict=True)]
        columns[:4] = [column.astype(np.float64) for column in columns[:4]]
        size = float(self.initial_sigma)
        return Table(*columns, initial_sigma=size, clip=self.clip, levels=levels)


def check_steps(num_inference_steps: object, limit: int | None = None) -> int:
    """A number of steps as int.

    Raises:
        InputTypeError, InputError: not a whole number, below 1, or above `limit`.
    """
    is_whole = isinstance(num_inference_steps, (int, np.integer))
    if not is_whole or isinstance(num_inference_steps, bool):
        raise InputTypeError(
            f"num_inference_steps={shown(num_inference_steps)} must be a whole number"
        )
    steps = int(num_inference_steps)
    if steps < 1 or steps > (MOST_STEPS if limit is None else limit):
        least = f"at least 1, and at most {MOST_STEPS}"
        bound = least if limit is None else f"between 1 and num_train_timesteps={limit}"
        raise InputError(f"num_inference_steps={shown(steps)} must be {bound}")
    return steps


def spaced(
    train: int,
    steps: int,
    spacing: str,
    offset: int = 0,
    *,
    rounded: bool = True,
    extra: int = 0,
    last: int | None = None,
) -> np.ndarray:
    """Falling timesteps `(steps,)`, float64.

    `extra=1` places one more point and leaves out the lowest, for solvers whose run ends below
    their last evaluation; `last` is the number of timesteps that may be used (`train` if None).
    Only "linspace" without `rounded` gives timesteps between two training timesteps.
    """
    last = train if last is None else last
    points = steps + extra
    most = last - extra if spacing == "leading" else train
    if steps > most and (rounded or spacing == "leading" or most == 1):
        raise InputError(f"num_inference_steps={steps} must be at most {most} here")
    if spacing == "linspace":
        ts = np.linspace(0, last - 1, points)
        ts = (ts.round() if rounded else ts.astype(np.float32).astype(np.float64))[::-1][:steps]
    elif spacing == "leading":
        ts = (np.arange(points) * (last // points))[::-1][:steps] + float(offset)
        if ts[0] >= train:
            raise InputError(
                f"num_inference_steps={steps} with steps_offset={offset} reaches timestep "
                f"{int(ts[0])}; allowed: below {train}"
            )
    elif spacing == "trailing":
        ts = np.arange(last, 0, -train / steps).round() - 1
    else:
        allowed = ", ".join(SPACINGS)
        raise InputError(f"timestep_spacing={spacing!r} is not known; allowed: {allowed}")
    return ts.astype(np.float64)
