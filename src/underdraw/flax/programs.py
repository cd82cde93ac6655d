"""The steps of a call as programs over Flax's parameters: the same networks, whose parameters are
taken in another order while a program is compiled, in the dtype that is computed in."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from underdraw.backends.contract import Array, Operations
from underdraw.backends.node import grow
from underdraw.engines.engine import Question
from underdraw.flax.params import held, jax, node, tensors
from underdraw.networks import clip, safety, unet, vae
from underdraw.networks.controlnet import program as controlnets
from underdraw.networks.program import Program
from underdraw.sampling.whole import Beside, Steering, whole
from underdraw.solvers.dense import Memory


@dataclass(frozen=True, eq=False)
class Network:
    """Parameters of Flax's and what is known of them, as an input of a program."""

    params: Any
    config: Any
    dtype: Any = None


@dataclass(frozen=True, eq=False)
class Structure:
    """A ControlNet beside the UNet."""

    net: Network
    pixels: Array
    """The map `(images, 3, height, width)` in [0, 1]."""
    scale: Any
    """A number, or `(images, 1, 1, 1)`."""


@dataclass(frozen=True)
class How:
    """What a program is written around."""

    is_structure = True

    dtype: Any
    """Of computations; None: that of the parameters."""


def text(nn: Operations, p: Any, config: clip.CLIPTextConfig, ids: Array, how: How) -> Array:
    """The context `(batch, tokens, width)` of tokens `(batch, tokens)`, float32."""
    p = node(p._tree, "text_encoder", clip.text_layout(config), how.dtype)
    return nn.float32(clip.text(nn, p, config, ids).last)


def loop(
    nn: Operations,
    p: Any,
    config: unet.UNetConfig,
    state: Memory,
    bounds: Array,
    steering: Steering,
    structure: Structure | None,
    how: How,
) -> Memory:
    """`sampling.whole.whole`; a ControlNet's map is embedded ahead."""
    p = node(p._tree, "unet", unet.layout(config), how.dtype)
    context = steering.context if how.dtype is None else steering.context.astype(how.dtype)
    steering = replace(steering, context=context)
    if structure is not None:
        steering = replace(steering, beside=(_beside(nn, structure, context),))
    return whole(nn, p, config, state, bounds, steering)


def _beside(nn: Operations, structure: Structure, context: Array) -> Beside:
    net, config = structure.net, structure.net.config
    named = tensors(net.params, "controlnet", controlnets.layout(config), net.dtype)
    hint = controlnets.embed_hint(nn, grow(named), config, nn.cast(structure.pixels, context))
    hint, scale = (
        each
        if not hasattr(each, "shape") or each.shape[0] == 1
        else nn.concat((each,) * (context.shape[0] // each.shape[0]), 0)
        for each in (hint, structure.scale)
    )
    return Beside(named, config, hint, scale)


def decode(nn: Operations, p: Any, config: vae.VAEConfig, latents: Array, how: How) -> Array:
    """Pictures `(batch, height, width, 3)` in [0, 1], float32, of latents as the UNet sees them."""
    p = node(p._tree, "vae", vae.layout(config), how.dtype)
    z = latents * (1 / config.scaling_factor)
    images = nn.float32(vae.decode(nn, p, config, z if how.dtype is None else z.astype(how.dtype)))
    return nn.permute(nn.clip(images / 2 + 0.5, 0.0, 1.0), (0, 2, 3, 1))


def encode(
    nn: Operations, p: Any, config: vae.VAEConfig, pixels: Array, noise: Array, how: How
) -> Array:
    """Latents as the UNet sees them, drawn from the encoder's distribution.

    Args:
        pixels: `(batch, 3, height, width)` in [-1, 1].
        noise: standard normal, of the shape of the latents with channels last.
    """
    p = node(p._tree, "vae", vae.layout(config), how.dtype)
    pixels = pixels if how.dtype is None else pixels.astype(how.dtype)
    moments = nn.float32(vae.encode(nn, p, config, pixels))
    half = moments.shape[1] // 2
    std = nn.exp(0.5 * nn.clip(moments[:, half:], -30.0, 20.0))
    return (moments[:, :half] + std * nn.permute(noise, (0, 3, 1, 2))) * config.scaling_factor


def scores(nn: Operations, p: Any, config: Any, pixels: Array, how: How) -> tuple[Array, Array]:
    """`networks.safety.concept_scores`."""
    return safety.concept_scores(
        nn, node(p._tree, "safety_checker", safety.layout(config), how.dtype), config, pixels
    )


TEXT, DECODE, ENCODE = (Program(f"flax.{one.__name__}", one) for one in (text, decode, encode))
LOOP = Program("flax.loop", loop, spends=True)
SCORES = Program("flax.scores", scores)


def question(program: Program, params: Any, config: Any, *inputs: Any) -> Question:
    """A program asked of parameters in Flax's layout."""
    return Question(program, held(params, config), inputs, jax().operations)
