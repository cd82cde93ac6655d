"""Schedulers under Flax's names: a configuration, and states that are given and returned.

They are shells around the familiar classes (`schedulers.classes`). A state holds the table of its
run as arrays, so that `step` can be compiled and called in a loop.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from underdraw import checks, schedulers
from underdraw.arguments import checked
from underdraw.backends.contract import Array
from underdraw.backends.once import once
from underdraw.errors import InputError, InputTypeError
from underdraw.flax.params import jax
from underdraw.models.outputs import Output, Tree
from underdraw.schedulers.base import Scheduler
from underdraw.schedulers.published import ConfigDict
from underdraw.solvers.dense import DenseTable, Memory, advance, dense, remember
from underdraw.solvers.table import Table


@dataclass(frozen=True)
class CommonSchedulerState(Tree):
    """The noise schedule, float32 `(num_train_timesteps,)` each."""

    alphas: Array
    betas: Array
    alphas_cumprod: Array


@dataclass(frozen=True)
class FlaxSchedulerState(Tree):
    """What a scheduler knows of a run; `step` gives the next one."""

    common: CommonSchedulerState
    init_noise_sigma: Array
    """Latents begin as this times standard normal noise."""
    timesteps: Array
    """Times at which the network is asked; before `set_timesteps` all of training."""
    num_inference_steps: int | None = field(default=None, metadata={"static": True})
    table: DenseTable | None = None
    memory: Memory | None = None
    """None before the first step of a run whose shape was not told."""
    call: Array | None = None
    """Number of the call that is due."""

    def replace(self, **changes: Any) -> FlaxSchedulerState:
        """The same with other fields."""
        return replace(self, **changes)


@dataclass
class FlaxSchedulerOutput(Output):
    """What `step` gives."""

    prev_sample: Array
    state: FlaxSchedulerState


class FlaxScheduler:
    """Base of the schedulers."""

    within: ClassVar[type[Scheduler]]
    """The familiar class."""
    settings: ClassVar[Mapping[str, Any]] = {}
    """Of its configuration what Flax's class means where it says nothing."""
    has_state = True

    def __init__(self, *args: Any, dtype: Any = None, **fields: Any) -> None:
        known = {**self.settings, **fields} if not args else fields
        self._take(self.within(*args, **known))

    def _take(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        # Solvers that Flax never had keep their familiar names.
        name = type(scheduler if type(self) is FlaxScheduler else self).__name__
        self.config = ConfigDict({**scheduler.config, "_class_name": name})

    @classmethod
    def of(cls, scheduler: Scheduler) -> FlaxScheduler:
        """A scheduler around one of the familiar classes, under its Flax name where it has one."""
        kind = next((one for one in CLASSES if one.within is type(scheduler)), FlaxScheduler)
        made = object.__new__(kind)
        given = set(scheduler.config.get("_use_default_values", ()))
        meant = {name: value for name, value in kind.settings.items() if name in given}
        made._take(scheduler.with_config(meant) if meant else scheduler)
        return made

    # -- files --------------------------------------------------------------------------------
    @classmethod
    @checked
    def from_config(cls, config: Any, **fields: Any) -> Any:
        """A scheduler from a dict, or from another scheduler or its `config`."""
        config = getattr(config, "config", config)
        if not isinstance(config, Mapping):
            raise InputTypeError(f"config={checks.shown(config)} must be a dict or a scheduler")
        fields.pop("dtype", None)
        return cls.of(cls.within.from_config(config, **fields))

    @classmethod
    @checked
    def from_pretrained(
        cls, folder: str | Path, subfolder: str | None = None, **options: Any
    ) -> tuple[Any, FlaxSchedulerState]:
        """A scheduler and its state, from `scheduler_config.json` in a folder or on the Hub;
        arguments as of the familiar classes."""
        options.pop("dtype", None)
        made = cls.of(cls.within.from_pretrained(folder, subfolder, **options))
        return made, made.create_state()

    @checked
    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """Write `scheduler_config.json`."""
        named = self.scheduler.with_config({})
        named.config = self.config
        named.save_pretrained(folder, **options)

    save_config = save_pretrained

    # -- a run --------------------------------------------------------------------------------
    def table(self, num_inference_steps: int) -> Table:
        """The table of a run of so many steps."""
        return self.scheduler.make_table(num_inference_steps)

    def create_state(self, common: CommonSchedulerState | None = None) -> FlaxSchedulerState:
        """The state in which a run, or training, begins."""
        register()
        array, schedule = jax().array, self.scheduler.schedule
        if common is None:
            betas = array(schedule.betas.astype(np.float32))
            products = array(schedule.alphas_cumprod.astype(np.float32))
            common = CommonSchedulerState(1 - betas, betas, products)
        sigma = array(np.float32(self.scheduler.with_config({}).init_noise_sigma))
        times = np.arange(len(self))[::-1].copy()
        return FlaxSchedulerState(common, sigma, array(times))

    def set_timesteps(
        self, state: FlaxSchedulerState, num_inference_steps: int, shape: tuple[int, ...] = ()
    ) -> FlaxSchedulerState:
        """The state in which a run of so many steps begins; `shape` that of the latents."""
        table, array = self.table(num_inference_steps), jax().array
        _check(state)
        sides = checks.sequence("shape", shape, "sides")
        shape = tuple(checks.whole("shape", side, 1, LONGEST) for side in sides)
        arrays, _ = dense(table, array)
        times = array(table.timesteps.astype(np.int32 if self.scheduler.whole else np.float32))
        sigma = array(np.float32(table.initial_sigma))
        return state.replace(
            num_inference_steps=num_inference_steps,
            timesteps=times,
            init_noise_sigma=sigma,
            table=arrays,
            memory=remember(array(np.zeros(shape, np.float32))) if shape else None,
            call=array(np.int32(0)),
        )

    def scale_model_input(
        self, state: FlaxSchedulerState, sample: Array, timestep: Any = None
    ) -> Array:
        """Latents as the network wants them at the call that is due."""
        table = _begun(state)
        return sample * table.scales[self._call(state, timestep)].astype(sample.dtype)

    def step(
        self,
        state: FlaxSchedulerState,
        model_output: Array,
        timestep: Any,
        sample: Array,
        key: Any = None,
        return_dict: bool = True,
    ) -> FlaxSchedulerOutput | tuple[Array, FlaxSchedulerState]:
        """The latents after a call of the network, and the next state.

        Args:
            timestep: that of the call; schedulers that remember earlier calls take them in order.
            key: of `jax.random`, for schedulers that add noise.
        """
        table, nn = _begun(state), jax().operations
        call, x = self._call(state, timestep), nn.float32(sample)
        memory = remember(x) if state.memory is None else state.memory._replace(x=x)
        noise = None
        if key is not None:
            noise, _ = jax().keyed(key, x.shape)
        elif any(row.draws for row in self.table(state.num_inference_steps or 1).rows):
            raise InputError(f"key=None; {type(self).__name__} adds noise and needs one")
        memory = advance(nn, table, call, memory, nn.float32(model_output), noise)
        after = state.replace(memory=memory, call=call + 1)
        x = nn.cast(memory.x, sample)
        return FlaxSchedulerOutput(x, after) if return_dict else (x, after)

    def _call(self, state: FlaxSchedulerState, timestep: Any) -> Any:
        if timestep is None or not self.scheduler.stateless:
            return state.call
        return (state.timesteps == timestep).argmax()

    def add_noise(
        self, state: FlaxSchedulerState, original_samples: Array, noise: Array, timesteps: Any
    ) -> Array:
        """Clean latents `(batch, ...)` as they are at training timesteps `(batch,)`."""
        signal, sigma = _levels(state, timesteps, original_samples)
        if self.scheduler.space == "sigma":
            signal, sigma = 1.0, sigma / signal
        return signal * original_samples + sigma * noise

    def get_velocity(
        self, state: FlaxSchedulerState, sample: Array, noise: Array, timesteps: Any
    ) -> Array:
        """What a v-predicting network should answer at training timesteps `(batch,)`."""
        signal, sigma = _levels(state, timesteps, sample)
        return signal * noise - sigma * sample

    def __len__(self) -> int:
        return len(self.scheduler)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.scheduler.to_json_string().strip()})"


LONGEST = 2**16
"""Side of latents."""


def _check(state: Any) -> None:
    if not isinstance(state, FlaxSchedulerState):
        raise InputTypeError(f"state={checks.shown(state)}; needed is what create_state gives")


def _begun(state: FlaxSchedulerState) -> DenseTable:
    _check(state)
    if state.table is None:
        raise InputError("state has no steps; call set_timesteps, and go on with what it gives")
    return state.table


def _levels(state: FlaxSchedulerState, timesteps: Any, like: Array) -> tuple[Array, Array]:
    times = jax().array(timesteps).reshape(-1, *(1 for _ in like.shape[1:]))
    products = state.common.alphas_cumprod[times]
    return products**0.5, (1 - products) ** 0.5


@once
def register() -> None:
    """Let JAX's transformations look into states."""
    for kind in (CommonSchedulerState, FlaxSchedulerState, FlaxSchedulerOutput, DenseTable):
        jax().register_output(kind)


class FlaxDDIMScheduler(FlaxScheduler):
    """DDIM, without noise of its own."""

    within = schedulers.DDIMScheduler


class FlaxDDPMScheduler(FlaxScheduler):
    """DDPM; the noise of a step is drawn from its key."""

    within = schedulers.DDPMScheduler


class FlaxDPMSolverMultistepScheduler(FlaxScheduler):
    """DPM-Solver++; a run ends at the first training timestep, as Flax's class has it."""

    within = schedulers.DPMSolverMultistepScheduler
    settings: ClassVar[Mapping[str, Any]] = {"final_sigmas_type": "sigma_min"}


class FlaxEulerDiscreteScheduler(FlaxScheduler):
    """Euler."""

    within = schedulers.EulerDiscreteScheduler


class FlaxLMSDiscreteScheduler(FlaxScheduler):
    """Linear multistep."""

    within = schedulers.LMSDiscreteScheduler


class FlaxPNDMScheduler(FlaxScheduler):
    """PNDM."""

    within = schedulers.PNDMScheduler


CLASSES: tuple[type[FlaxScheduler], ...] = (
    FlaxDDIMScheduler,
    FlaxDDPMScheduler,
    FlaxDPMSolverMultistepScheduler,
    FlaxEulerDiscreteScheduler,
    FlaxLMSDiscreteScheduler,
    FlaxPNDMScheduler,
)
