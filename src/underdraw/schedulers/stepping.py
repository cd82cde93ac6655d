"""The familiar methods: a scheduler that is told the timesteps once and then stepped call by call.

All state of a run lives here; `make_table` needs none of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from underdraw import backends, checks
from underdraw.backends.seeds import check_generators
from underdraw.checks import shown
from underdraw.errors import InputError, InputTypeError
from underdraw.schedulers.arrays import (
    backend_of,
    check_latents,
    is_integer,
    per_image,
    read_time,
    read_times,
    single,
)
from underdraw.shown import of_fields
from underdraw.solvers.table import Row, State, Table, advance, clean_image

if TYPE_CHECKING:
    from underdraw.solvers.schedule import NoiseSchedule


def check_eta(eta: Any) -> float:
    """How much noise DDIM and TCD add.

    Raises:
        InputTypeError, InputError: no number from 0 to 1.
    """
    if not checks.is_number(eta):
        raise InputTypeError(f"eta={shown(eta)} must be a number")
    if not 0 <= eta <= 1:  # false for NaN, too
        raise InputError(f"eta={shown(eta)} is out of range; allowed: 0 to 1")
    return float(eta)


class StepOutput(dict):
    """What `step` returns: `prev_sample` and what else the class gives, by name or by position."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the output has no {name!r}; it has {', '.join(self)}") from None

    def __getitem__(self, key: Any) -> Any:
        return self.to_tuple()[key] if isinstance(key, int | slice) else super().__getitem__(key)

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(self.values())

    def __repr__(self) -> str:
        return of_fields(self, *self)


class Stepping:
    """Methods of the familiar scheduler classes over a table."""

    order: ClassVar[int] = 1
    space: ClassVar[str] = "alpha"
    """How `add_noise` finds its level: "alpha" by training timestep, "sigma" and "lambda" by the
    place in `timesteps`, with latents clean + σ · noise in "sigma"."""
    whole: ClassVar[bool] = True
    """Whether timesteps are integers; the classes with fractions refuse integers in `step`."""
    grid_fractions: ClassVar[str] = "float32"
    """Dtype of timesteps with fractions that belong to a σ grid."""
    second: ClassVar[str | None] = "pred_original_sample"
    """Name of the second output of `step`: the clean image, or else what the table saves."""
    stateless: ClassVar[bool] = False
    """Whether a step depends on the timestep alone, so that steps may come in any order."""
    rising: ClassVar[bool] = False
    """Whether the run goes from the image to noise."""
    noise_like: ClassVar[str] = "output"
    """Dtype of drawn noise: that of the network's output, or "float32"."""

    positional: ClassVar[tuple[str, ...]] = ("return_dict",)
    """What `step` takes by position after the sample, as the familiar class of this name."""

    settings: Any
    schedule: NoiseSchedule
    build: ClassVar[Any]

    def _reset(self) -> None:
        """As it is before the first `set_timesteps`."""
        self.table: Table | None = None
        self.num_inference_steps: int | None = None
        self._request: dict[str, Any] = {}
        self._timesteps: Any = None
        self._tails: dict[Any, tuple[Table, Table]] = {}
        self._rows: dict[Any, Row] = {}
        self._forget()

    def _forget(self) -> None:
        self._step_index: int | None = None
        self._begin_index: int | None = None
        self._first = 0
        self._state: State | None = None

    if TYPE_CHECKING:

        def make_table(self, *args: Any, **options: Any) -> Table: ...

    # -- a run ------------------------------------------------------------------------------------
    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        timesteps: Any = None,
        sigmas: Any = None,
        **options: Any,
    ) -> None:
        """Begin a run of so many steps, or over custom `timesteps` or `sigmas` where the class has
        them. `timesteps` is then a tensor on `device`, one entry per model call.

        Raises:
            InputError, InputTypeError: as `make_table`.
        """
        request = {"num_inference_steps": num_inference_steps}
        request |= {"timesteps": timesteps, "sigmas": sigmas, **options}
        table, device = self.make_table(**request), checks.device("device", device)
        try:
            times = self._tensor_of(table.timesteps, device)
        except (RuntimeError, AssertionError) as error:
            raise InputError(f"device={shown(device)} cannot be used here: {error}") from error
        self.table, self._request, self._timesteps = table, request, times
        self.num_inference_steps = int(table.steps[-1]) + 1
        self._tails, self._rows = {}, {}
        self._forget()

    def _tensor_of(self, timesteps: np.ndarray, device: Any = None) -> Any:
        fractions = self.grid_fractions if self.settings.grid() else "float32"
        kind = "int64" if self.whole else fractions
        return backends.get("torch").array(timesteps.astype(kind), device=device)

    @property
    def timesteps(self) -> Any:
        """Times at which the network is asked, a tensor; before `set_timesteps` all of training."""
        if self._timesteps is None:
            self._timesteps = self._tensor_of(self._training_timesteps())
        return self._timesteps

    @timesteps.setter
    def timesteps(self, value: Any) -> None:
        self._timesteps = value

    def _training_timesteps(self) -> np.ndarray:
        if self.order > 1:
            return self.make_table(len(self)).timesteps
        times = np.arange(len(self))
        return times if self.rising else times[::-1].copy()

    @property
    def sigmas(self) -> Any:
        """Ratios of noise to signal per call, and last where the run ends: a float32 tensor."""
        if self.space == "alpha":
            raise AttributeError(f"{type(self).__name__} has no sigmas")
        return backends.get("torch").array(self._levels().astype(np.float32))

    def _levels(self) -> np.ndarray:
        table = self.table
        if table is None and self.order > 1:  # as `timesteps` then
            table = self.make_table(len(self))
        if table is not None and table.levels is not None:
            return table.levels
        levels = self.schedule.sigmas
        return levels if self.space == "lambda" else np.append(levels[::-1], 0.0)

    @property
    def init_noise_sigma(self) -> float:
        """Latents begin as this times standard normal noise."""
        if self.table is not None:
            return self.table.initial_sigma
        if self.space != "sigma":
            return 1.0
        top = float(self.schedule.sigmas.max())
        spacing = getattr(self.settings, "timestep_spacing", "linspace")
        return top if spacing in ("linspace", "trailing") else float(np.hypot(top, 1))

    @property
    def step_index(self) -> int | None:
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Say at which call the next run starts, where timesteps alone do not tell."""
        self._begin_index = checks.whole("begin_index", begin_index, 0)

    def __len__(self) -> int:
        return self.settings.num_train_timesteps

    def index_for_timestep(self, timestep: Any, schedule_timesteps: Any = None) -> int:
        """The call a timestep stands for: of several, the first that begins a step.

        Raises:
            InputError: the timestep is not one of `timesteps`.
        """
        known = self.timesteps if schedule_timesteps is None else schedule_timesteps
        listed = checks.numbers("schedule_timesteps", known)
        time = read_time(timestep)
        places = np.flatnonzero(np.asarray(listed) == time)
        if len(places) == 0:
            if self.space == "lambda":  # as the familiar classes: their last level
                return len(known) - 1
            raise InputError(f"timestep={time} is not one of `timesteps` (or schedule_timesteps)")
        if self.table is None or len(places) == 1 or len(known) != len(self.table):
            return int(places[0])
        steps = self.table.steps
        begins = [place for place in places if place == 0 or steps[place] != steps[place - 1]]
        return int((begins or places)[0])

    def _begin(self, timestep: Any) -> int:
        if self._step_index is None:
            if self._begin_index is None:
                self._step_index = self.index_for_timestep(timestep)
            else:
                self._step_index = self._begin_index
            self._first = self._step_index
            self._state = None
        return self._step_index

    # -- a call -----------------------------------------------------------------------------------
    def scale_model_input(self, sample: Any, timestep: Any = None) -> Any:
        """`sample` as the network wants it at this call."""
        check_latents("sample", sample)
        if self.space != "sigma":
            return sample
        if self.table is None:
            raise InputError("set_timesteps must be called before scale_model_input")
        call = self._begin(timestep)
        return sample * self.table.row(min(call, len(self.table) - 1)).input_scale

    def step(
        self,
        model_output: Any,
        timestep: Any,
        sample: Any,
        *further: Any,
        eta: float | None = None,
        generator: Any = None,
        variance_noise: Any = None,
        return_dict: bool = True,
        **options: Any,
    ) -> Any:
        """The latents after one model call.

        Arrays are `(batch, channels, height, width)`; half precision is computed in float32 and
        cast back. Noise is `variance_noise`, or drawn with `generator` (one, or a list per image).
        `options` are those of `make_table`; `further` arguments by position are those named in
        `positional`. Returns `prev_sample` and, depending on the class, a
        second array: as an object, or as a tuple without `return_dict`.

        Numbers are not looked at, which would wait for the device at each step: NaN stays
        where it is, as in diffusers, and touches no other place of a picture (but for dynamic
        thresholding, which looks at all of them). Pipelines tell of it.

        Raises:
            InputError: before `set_timesteps`, past the last timestep, at an unknown one, or noise
                and generator both given.
            InputTypeError: an `eta` that is no number, too many arguments, or one given twice.
        """
        if further:
            named = {"eta": eta, "generator": generator, "variance_noise": variance_noise}
            given = {name: value for name, value in named.items() if value is not None}
            given |= options if return_dict else {"return_dict": False, **options}
            return self.step(
                model_output, timestep, sample, **self._by_name(further, given), **given
            )
        if generator is not None and variance_noise is not None:
            raise InputError("generator and variance_noise are both given; allowed: one of them")
        if eta is not None:
            options["eta"] = check_eta(eta)
        checks.flag("return_dict", return_dict)
        check_latents("sample", sample)
        check_latents("model_output", model_output, sample, "sample")
        if variance_noise is not None:
            check_latents("variance_noise", variance_noise, sample, "sample")
        check_generators(generator, model_output.shape[0])
        row = self._row_of(timestep, options)
        nn = backend_of(sample).operations
        x, output = (single(nn, each) for each in (sample, model_output))
        state = State(x) if self._state is None else self._state._replace(x=x)
        noise = self._noise(row, model_output, generator, variance_noise, nn)
        clean = clean_image(nn, row, x, output) if self.second == "pred_original_sample" else None
        state = advance(nn, row, state, output, noise)
        if not self.stateless:
            self._state = state
            assert self._step_index is not None
            self._step_index += 1
        outputs = [state.x]
        if self.second is not None:
            outputs.append(clean if self.second == "pred_original_sample" else state.saved)
        if x is not sample:
            outputs = [nn.cast(each, sample) for each in outputs]
        if not return_dict:
            return tuple(outputs)
        names = ("prev_sample", self.second)
        return StepOutput(zip(names, outputs, strict=False))

    def _by_name(self, further: tuple[Any, ...], given: dict[str, Any]) -> dict[str, Any]:
        names = self.positional
        if len(further) > len(names):
            allowed = ", ".join(names)
            raise InputTypeError(
                f"step of {type(self).__name__} takes at most {len(names)} arguments by position "
                f"after sample; allowed: {allowed}"
            )
        found = dict(zip(names, further, strict=False))
        twice = [name for name in found if name in given]
        if twice:
            raise InputTypeError(f"{', '.join(twice)} given twice, by position and by name")
        return found

    def _row_of(self, timestep: Any, options: dict[str, Any]) -> Row:
        if not self.whole and is_integer(timestep):
            raise InputError(
                f"timestep={shown(timestep)} is a whole number; allowed: an element of `timesteps`"
            )
        time = read_time(timestep)
        if self.stateless:
            return self._row_at(int(time), options)
        if self.table is None:
            raise InputError("set_timesteps must be called before step")
        call = self._begin(timestep)
        if call >= len(self.table):
            raise InputError("the run has ended: every timestep was stepped; call set_timesteps")
        table = self.make_table(**self._request, **options) if options else self.table
        # set_timesteps' own options stay in force
        return self._tail(table).row(call - self._first)

    def _tail(self, table: Table) -> Table:
        if self._first == 0:
            return table
        key = (id(table), self._first)
        if key not in self._tails:  # the table is kept too, so that its id stays its own
            self._tails = {key: (table, table.tail(self._first))}
        return self._tails[key][1]

    def _row_at(self, timestep: int, options: dict[str, Any]) -> Row:
        """The row of a timestep of a solver whose steps may come in any order."""
        key = (timestep, *sorted(options.items()))
        if key not in self._rows:
            self._rows[key] = self._find_row(timestep, options)
        return self._rows[key]

    def _find_row(self, timestep: int, options: dict[str, Any]) -> Row:
        """By default of any training timestep, whether or not it is part of the run."""
        if self.table is not None and timestep in self.table.timesteps:
            table = self.make_table(**self._request, **options) if options else self.table
            return table.row(self.index_for_timestep(timestep))
        if self.num_inference_steps is None:
            raise InputError("set_timesteps must be called before step")
        if not 0 <= timestep < len(self):
            raise InputError(f"timestep={timestep} must be between 0 and {len(self) - 1}")
        request = {"timesteps": np.array([timestep]), **options}
        build = type(self).build
        return build(self.schedule, self.settings, self.num_inference_steps, **request).row(0)

    def _noise(self, row: Row, output: Any, generator: Any, given: Any, nn: Any) -> Any:
        if not row.draws:
            return None
        if given is None:
            like = nn.float32(output) if self.noise_like == "float32" else output
            given = backend_of(output).draw_like(like, generator)
        return single(nn, given)

    # -- training and image-to-image --------------------------------------------------------------
    def add_noise(self, original_samples: Any, noise: Any, timesteps: Any) -> Any:
        """Clean latents as they are at `timesteps`: one per image, in any form, or one for all.

        Raises:
            InputError, InputTypeError: timesteps that are no numbers, as many as neither 1 nor the
                batch, or not known.
        """
        check_latents("original_samples", original_samples)
        check_latents("noise", noise, original_samples, "original_samples")
        times = read_times(timesteps, original_samples)
        if self.space == "alpha":
            alpha, sigma = self._training_levels(times)
        else:
            ratio = self._levels()[self._places(times)]
            alpha = np.ones_like(ratio) if self.space == "sigma" else 1 / np.sqrt(ratio**2 + 1)
            sigma = ratio * alpha
        alpha, sigma = (per_image(each, original_samples) for each in (alpha, sigma))
        return alpha * original_samples + sigma * noise

    def _places(self, times: np.ndarray) -> list[int]:
        if self._begin_index is None:
            return [self.index_for_timestep(t) for t in times]
        place = self._begin_index if self._step_index is None else self._step_index
        return [place] * len(times)

    def get_velocity(self, sample: Any, noise: Any, timesteps: Any) -> Any:
        """What a v-predicting network should answer: `alpha * noise - sigma * sample`. Timesteps
        and errors as in `add_noise`."""
        check_latents("sample", sample)
        check_latents("noise", noise, sample, "sample")
        times = read_times(timesteps, sample)
        alpha, sigma = (per_image(each, sample) for each in self._training_levels(times))
        return alpha * noise - sigma * sample

    def _training_levels(self, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        places = times.astype(int)
        if (places < 0).any() or (places >= len(self.schedule)).any():
            raise InputError(f"timesteps={times.tolist()} must be below {len(self.schedule)}")
        alphas = self.schedule.alphas_cumprod[places]
        return np.sqrt(alphas), np.sqrt(1 - alphas)
