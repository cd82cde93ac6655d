"""Whole trajectories, ours and diffusers', through one deterministic network."""

from __future__ import annotations

import math
import sys
import types
import warnings
from contextlib import contextmanager
from functools import cache
from itertools import product
from typing import Any
from unittest.mock import patch

import diffusers
import torch

from underdraw import backends, schedulers
from underdraw.solvers.table import State, advance

diffusers.utils.logging.set_verbosity_error()
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SHAPE = (3, 4, 6, 5)
PREDICTIONS = ("epsilon", "v_prediction", "sample")
SPACINGS = ("leading", "linspace", "trailing")
GRIDS = (
    {},
    {"use_karras_sigmas": True},
    {"use_exponential_sigmas": True},
    {"use_beta_sigmas": True},
)
CLIPS = (
    {"clip_sample": False},
    {"clip_sample": True, "clip_sample_range": 0.8},
    {"thresholding": True, "sample_max_value": 1.5},
)


def configurations(**axes: Any) -> list[dict[str, Any]]:
    """The product of axes; an axis of dicts contributes their items instead of its name."""
    made = []
    for values in product(*axes.values()):
        config = dict(SD)
        for name, value in zip(axes, values, strict=True):
            config.update(value if isinstance(value, dict) else {name: value})
        made.append(config)
    return made


def network(x: torch.Tensor, t: Any) -> torch.Tensor:
    """Smooth, not linear, different at every time, mixing positions."""
    return torch.tanh(0.7 * x.flip(-1) + 0.3 * math.sin(float(t) / 100)) * 0.9 + 0.1 * x


def start(scale: float) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)) * float(scale)


@contextmanager
def quiet():
    """diffusers warns of its own old spellings; ours has to pass with warnings as errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@quiet()
def peer(name: str, **config: Any) -> Any:
    return getattr(diffusers, name)(**config)


@contextmanager
def quickly(cls: Any):
    """Some constructors of diffusers spend a second on a table of all training steps; meanwhile it
    has two steps, and whoever runs the scheduler makes the one that counts."""
    whole = cls.set_timesteps
    with quiet(), patch.object(cls, "set_timesteps", lambda self, *_: whole(self, 2)):
        yield cls


def built(cls: Any, **config: Any) -> Any:
    """A scheduler of diffusers."""
    with quickly(cls):
        return cls(**config)


@quiet()
def peer_run(scheduler: Any, steps: Any, dtype: Any = torch.float32, **options: Any) -> Any:
    """Latents after the run. `steps` is a number or the arguments of `set_timesteps`; stochastic
    solvers draw from seed 5."""
    scheduler.set_timesteps(
        **(steps if isinstance(steps, dict) else {"num_inference_steps": steps})
    )
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)  # or it would begin at the second of two equal timesteps
    x = start(scheduler.init_noise_sigma).to(dtype)
    for t in scheduler.timesteps:
        output = network(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(output, t, x, return_dict=False, **options)[0]
    return x


def our_run(scheduler: Any, steps: Any, **options: Any) -> Any:
    """The same from the table alone."""
    request = steps if isinstance(steps, dict) else {"num_inference_steps": steps}
    table = scheduler.make_table(**request, **options)
    nn = backends.get("torch").operations
    generator = torch.Generator().manual_seed(5)
    state = State(start(table.initial_sigma))
    for row in table.rows:
        output = network(state.x * row.input_scale, row.timestep)
        noise = torch.randn(SHAPE, generator=generator) if row.draws else None
        state = advance(nn, row, state, output, noise)
    return state.x


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


@cache
def double_class(name: str) -> Any:
    """diffusers' class with every float32 in its source read as float64: its formulas, exactly."""
    module = sys.modules[getattr(diffusers, name).__module__]
    with open(str(module.__file__), encoding="utf-8") as file:
        source = file.read()
    source = source.replace("float32", "float64").replace("from ..", "from diffusers.")
    source = source.replace("from .scheduling", "from diffusers.schedulers.scheduling")
    double = types.ModuleType(f"double_{name}")
    double.__file__ = module.__file__
    sys.modules[double.__name__] = double
    exec(compile(source, str(module.__file__), "exec"), double.__dict__)

    def draw(shape: Any, generator: Any = None, device: Any = None, dtype: Any = None) -> Any:
        return torch.randn(shape, generator=generator).double()

    double.__dict__["randn_tensor"] = draw
    return double.__dict__[name]


def check(
    name: str, config: dict[str, Any], steps: Any, noisy: bool = False, **options: Any
) -> str:
    """ "" where ours and diffusers' agree to 1e-5, or where diffusers' own single precision is the
    larger part of a greater distance: then ours lies within twice its error of the exact run."""

    def generator() -> dict[str, Any]:
        return {"generator": torch.Generator().manual_seed(5)} if noisy else {}

    other = built(getattr(diffusers, name), **config)
    theirs = peer_run(other, steps, **options, **generator())
    ours_scheduler = getattr(schedulers, name)(**config)
    ours = our_run(ours_scheduler, steps, **options)
    label = f"{name} {steps} {options} {config}"
    ours_scheduler.set_timesteps(
        **(steps if isinstance(steps, dict) else {"num_inference_steps": steps})
    )
    times, own = other.timesteps, ours_scheduler.timesteps
    if times.shape != own.shape or times.is_floating_point() != own.is_floating_point():
        return f"{label}: timesteps {own.tolist()} for {times.tolist()}"
    # diffusers interpolates in single precision; whole timesteps must be equal.
    slack = 2e-4 if times.is_floating_point() else 0
    if float((times.double() - own.double()).abs().max()) > slack:
        return f"{label}: timesteps {own.tolist()} for {times.tolist()}"
    error = distance(ours, theirs)
    if error <= 1e-5:
        return ""
    double = built(double_class(name), **config)
    if not config.get("rescale_betas_zero_snr"):  # else rounding is part of diffusers' error
        double.alphas_cumprod = other.alphas_cumprod.double()
    exact = peer_run(double, steps, torch.float64, **options, **generator())
    ours_error, peer_error = distance(ours, exact), distance(theirs, exact)
    if ours_error <= 2 * peer_error:
        return ""
    return f"{label}: {error:.1e} apart; from exact: ours {ours_error:.1e}, peer {peer_error:.1e}"


def check_all(
    name: str,
    configs: list[dict[str, Any]],
    steps: tuple[Any, ...] = (2, 7, 20),
    noisy: bool = False,
    **options: Any,
) -> None:
    """Every configuration at one of the step counts in turn, and the first one at all of them."""
    chosen = [(configs[0], count) for count in steps]
    chosen += [(config, steps[i % len(steps)]) for i, config in enumerate(configs)]
    failures = [check(name, config, count, noisy, **options) for config, count in chosen]
    assert not any(failures), "\n".join(filter(None, failures))
