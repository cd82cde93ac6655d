"""A call of a Flax pipeline, step by step; arrays of a sharded call have an axis for devices in
front of all others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from underdraw import checks
from underdraw.backends.contract import Array
from underdraw.errors import InputError, InputTypeError, NonFiniteError
from underdraw.flax import programs
from underdraw.flax.outputs import FlaxStableDiffusionPipelineOutput
from underdraw.flax.params import jax, read_array, read_key
from underdraw.flax.pipelines.base import FlaxDiffusionPipeline
from underdraw.models.safety import withheld
from underdraw.networks.sites import NO_SITES, Sites
from underdraw.pictures import modes
from underdraw.pictures.writing import to_pil
from underdraw.pipelines.call.latents import LONGEST_SIDE
from underdraw.sampling.guidance import Guidance
from underdraw.sampling.whole import Steering
from underdraw.solvers.dense import dense, remember
from underdraw.solvers.table import Table


@dataclass(frozen=True)
class Request:
    """The arguments that calls share, as they were given."""

    prompt_ids: Any
    params: Any
    prng_seed: Any
    num_inference_steps: Any
    height: Any
    width: Any
    guidance_scale: Any
    neg_prompt_ids: Any
    return_dict: Any
    jit: Any


@dataclass(frozen=True)
class Plan:
    """A call whose arguments were checked."""

    pipe: FlaxDiffusionPipeline
    params: Any
    devices: int | None
    """How many compute each their own images; None: nothing is sharded."""
    images: int
    """Of each device."""
    ids: Array
    """`(2 * images, tokens)`, negative ones first."""
    key: Any
    guidance: Array
    """`(images, 1, 1, 1)`"""
    height: int
    width: int
    table: Table
    last: int
    """The call behind the last one."""
    return_dict: bool

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the latents of a device."""
        vae = self.pipe.vae.config
        return self.images, vae.latent_channels, self.height // vae.factor, self.width // vae.factor

    def everywhere(self, x: Any) -> Array:
        """An array that all devices have alike."""
        x = jax().array(x)
        return x if self.devices is None else jax().operations.expand(x, (self.devices, *x.shape))

    def expected(self, *shape: int) -> tuple[int, ...]:
        """A shape with the axis of devices, where there is one."""
        return shape if self.devices is None else (self.devices, *shape)

    def noise(self, key: Any, *shape: int, split: bool = False) -> tuple[Array, Any]:
        """Standard normal numbers of a key, and a further key."""
        return jax().keyed(key, shape, split)


def make_plan(pipe: FlaxDiffusionPipeline, request: Request) -> Plan:
    """Check what calls share.

    Raises:
        InputError, InputTypeError, WeightError: an argument cannot work; nothing was computed.
    """
    r, framework = request, jax()
    checks.flag("return_dict", r.return_dict)
    checks.flag("jit", r.jit)
    ids = _ids("prompt_ids", r.prompt_ids)
    devices = ids.shape[0] if ids.ndim == 3 else None
    if devices is not None:
        framework.devices_in_line(devices)
    window = pipe.text_encoder.config.max_position_embeddings
    if not (ids.shape[-2] and 0 < ids.shape[-1] <= window):
        raise InputError(f"prompt_ids has shape {ids.shape}; allowed: up to {window} tokens")
    if r.neg_prompt_ids is None:
        how = {"padding": "max_length", "max_length": ids.shape[-1], "truncation": True}
        empty = np.asarray(pipe.tokenizer([""], return_tensors="np", **how)["input_ids"])
        negative = np.broadcast_to(empty, ids.shape)
    else:
        negative = _ids("neg_prompt_ids", r.neg_prompt_ids)
        if negative.shape != ids.shape:
            raise InputError(
                f"neg_prompt_ids has shape {negative.shape}; needed is that of prompt_ids, "
                f"{ids.shape}"
            )
    pipe._check_params(r.params, devices)
    height, width = _sides(pipe, r.height, r.width)
    steps = checks.whole("num_inference_steps", r.num_inference_steps, 1, len(pipe.scheduler))
    table = pipe.scheduler.table(steps)
    return Plan(
        pipe=pipe,
        params=r.params,
        devices=devices,
        images=ids.shape[-2],
        ids=framework.array(np.concatenate([negative, ids], -2).astype(np.int32)),
        key=_key(r.prng_seed, devices),
        guidance=framework.array(per_image("guidance_scale", r.guidance_scale, ids.shape[:-1])),
        height=height,
        width=width,
        table=table,
        # Flax's pipelines made as many calls as there are steps, and left out what PNDM has more.
        last=min(len(table), steps) if pipe.compat == "diffusers" else len(table),
        return_dict=r.return_dict,
    )


def run(
    plan: Plan,
    latents: Array,
    key: Any,
    table: Table | None = None,
    sites: Sites = NO_SITES,
    structure: programs.Structure | None = None,
) -> Array:
    """The latents of the end.

    Args:
        latents: those at the first call, `(images, channels, height, width)`, float32.
        key: draws the noise of solvers that take any.
        table: the last calls of the plan's, by default all of them.
    """
    table = plan.table if table is None else table
    arrays, first = dense(table, lambda x: plan.everywhere(x), len(plan.table))
    context = plan.pipe.ask(programs.TEXT, "text_encoder", plan.params, plan.devices, plan.ids)
    noise = None
    if table.draws.any():
        noise, _ = plan.noise(key, len(plan.table), *plan.shape)
    steering = Steering(arrays, context, Guidance(plan.guidance), noise, sites)
    bounds = plan.everywhere(np.array([first, plan.last], np.int32))
    ended = plan.pipe.ask(
        programs.LOOP,
        "unet",
        plan.params,
        plan.devices,
        remember(latents),
        bounds,
        steering,
        structure,
    )
    return ended.x


def finish(plan: Plan, latents: Array) -> Any:
    """Pictures of the latents of the end, as a call gives them.

    Raises:
        NonFiniteError: they are NaN or infinite.
    """
    made = plan.pipe.ask(programs.DECODE, "vae", plan.params, plan.devices, latents)
    images = jax().to_numpy(made)
    if not np.isfinite(images).all():
        raise NonFiniteError(
            "the pictures are NaN or infinite; the weights or the inputs hold such values, or the "
            "dtype is too narrow for this model (try dtype=jnp.float32 or jnp.bfloat16)"
        )
    flags: Any = False
    if plan.pipe.safety_checker is not None:
        flags = _withheld(plan, images.reshape(-1, *images.shape[-3:]))
        images[np.array(flags).reshape(images.shape[:-3])] = 0
    if not plan.return_dict:
        return images, flags
    return FlaxStableDiffusionPipelineOutput(images, flags)


def _withheld(plan: Plan, images: np.ndarray) -> list[bool]:
    pipe, name = plan.pipe, "safety_checker"
    if pipe.feature_extractor is None:
        raise InputError("feature_extractor=None; the safety checker needs one")
    pixels = pipe.feature_extractor(to_pil(images), return_tensors="np")["pixel_values"]
    params = plan.params
    if plan.devices is not None:
        params = {name: jax().mapped(lambda x: x[0], params[name])}
    scores = pipe.ask(programs.SCORES, name, params, None, jax().array(np.asarray(pixels)))
    return withheld(*map(jax().to_numpy, scores))


# -- arguments -----------------------------------------------------------------------------------
def given(plan: Plan, name: str, value: Any) -> Array:
    """Noise or latents that the caller brings."""
    return floats(name, value, plan.expected(*plan.shape))


def floats(name: str, value: Any, shape: tuple[int | None, ...]) -> Array:
    """Finite numbers of a shape, float32; None is any size."""
    value = read_array(name, value)
    if str(value.dtype)[0] not in "uifb":
        raise InputTypeError(f"{name} has dtype {value.dtype}; real numbers are needed")
    found = jax().operations.float32(jax().array(value))
    checks.array(name, found, shape, jax())
    return found


def _ids(name: str, value: Any) -> np.ndarray:
    shape = read_array(name, value).shape
    if "int" not in str(value.dtype):
        raise InputTypeError(
            f"{name} has dtype {value.dtype}; needed are tokens, as prepare_inputs gives them"
        )
    if len(shape) not in (2, 3):
        raise InputError(
            f"{name} has shape {tuple(shape)}; allowed: (prompts, tokens), or (devices, prompts, "
            "tokens)"
        )
    return np.asarray(value)


def _key(key: Any, devices: int | None) -> Any:
    words = read_key("prng_seed", key)
    needed = (2,) if devices is None else (devices, 2)
    if tuple(words.shape) != needed:
        told = "one key" if devices is None else f"{devices} keys, as jax.random.split gives them"
        raise InputError(f"prng_seed has shape {tuple(key.shape)}; needed is {told}")
    return words


def _sides(pipe: FlaxDiffusionPipeline, height: Any, width: Any) -> tuple[int, int]:
    trained, factor = pipe.unet.config.sample_size or 64, pipe.vae_scale_factor
    trained = (trained, trained) if isinstance(trained, int) else trained
    made = [
        side * factor
        if value is None
        else checks.size(name, checks.whole(name, value, 1, LONGEST_SIDE), factor)
        for name, value, side in zip(("height", "width"), (height, width), trained, strict=True)
    ]
    modes.check_sides("the image", made[1], made[0])
    return made[0], made[1]


def per_image(name: str, value: Any, images: tuple[int, ...]) -> np.ndarray:
    """A number, one for each device or each image as `(*images, 1, 1, 1)`."""
    held = [value] if checks.is_number(value) else value
    if hasattr(held, "reshape"):
        held = np.asarray(read_array(name, held))
        shape, held = held.shape, held.reshape(-1)
    else:
        held = checks.sequence(name, held, "numbers")
        shape = (len(held),)
    values = np.asarray(checks.numbers(name, held), np.float32)
    if values.size == 1:
        values = np.full(images, values[0], np.float32)
    elif values.size == np.prod(images):
        values = values.reshape(images)
    elif len(images) == 2 and shape in ((images[0],), (images[0], 1)):
        values = np.broadcast_to(values.reshape(-1, 1), images)
    else:
        raise InputError(f"{name} has shape {shape}; allowed: a number, or one per image {images}")
    for one in values.reshape(-1).tolist():
        checks.factor(name, one)
    return values.reshape(*images, 1, 1, 1)
