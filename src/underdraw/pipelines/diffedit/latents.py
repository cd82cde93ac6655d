"""Pictures of an edit as latents, the noise of its masks, and the levels of an inversion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from underdraw import checks
from underdraw.backends import seeds
from underdraw.backends.contract import Array
from underdraw.errors import InputError, InputTypeError
from underdraw.pictures.reading import read_pictures
from underdraw.pipelines.call.latents import repeated
from underdraw.pipelines.components.components import Components
from underdraw.pipelines.diffedit.outputs import (
    DiffEditInversionPipelineOutput,
    DiffEditOutput,
    remembered,
)
from underdraw.solvers.solver import Solver
from underdraw.solvers.table import Table


def read_image(components: Components, image: Any) -> Array:
    """Pictures `(n, 3, height, width)` in [-1, 1], or latents as they were given."""
    if image is None:
        raise InputError("image=None; give a picture, or latents")
    config = components.vae.config
    return read_pictures(
        "image",
        image,
        components.framework,
        factor=config.factor,
        latent_channels=config.latent_channels,
    )


def latent_sides(components: Components, pictures: Array) -> tuple[int, int]:
    """Height and width of the latents of what `read_image` gives."""
    height, width = pictures.shape[2:]
    if pictures.shape[1] == components.vae.config.latent_channels:
        return height, width
    return height // components.vae.config.factor, width // components.vae.config.factor


def encode_image(
    components: Components,
    pictures: Array,
    count: int,
    maps: int = 1,
    drawn: Any = None,
    sampled: bool = False,
) -> Array:
    """Latents `(count * maps, channels, height, width)` of pictures, those of one adjacent.

    Args:
        pictures: what `read_image` gives.
        maps: how many of each image.
        sampled: draw them from the encoder's distribution, by the generators `drawn`; else they are
            its mean.

    Raises:
        NonFiniteError: the encoder gave NaN or infinity.
    """
    framework, nn, device = components.framework, components.nn, components.device
    each = count * maps // pictures.shape[0]
    if pictures.shape[1] == components.vae.config.latent_channels:
        return repeated(nn, framework.array(pictures, device=device), each)
    found = components.encode(pictures)
    with framework.no_grad():
        latents = repeated(nn, found.mean, each)
        if components.vae.draws and (sampled or components.compat == "diffusers"):
            noise = draw_maps(components, latents.shape, drawn, None, maps)
            where = getattr(latents, "device", None)
            noise = framework.array(noise, dtype=latents.dtype, device=where)
            latents = latents + repeated(nn, found.std, each) * noise
        return framework.array(components.scaled(latents), device=device)


def draw_maps(
    components: Components, shape: Sequence[int], drawn: Any, seed: Any, maps: int
) -> Array:
    """Standard normal; of several maps an image's generator draws all."""
    framework, device = components.framework, components.device
    like = framework.leaf(components.unet.conv_in).dtype if seed is None else framework.float32
    if maps > 1 and isinstance(drawn, list | tuple) and len(drawn) * maps == shape[0]:
        parts = [framework.draw((maps, *shape[1:]), g, device, like) for g in drawn]
        return components.nn.concat(parts, 0)
    return framework.draw(shape, drawn, device, like)


def generators_of_maps(generator: Any, seed: Any, count: int, maps: int) -> Any:
    """As `seeds.generators`; a list may also hold one for each map."""
    many = isinstance(generator, list | tuple) and len(generator) == count * maps
    return seeds.generators(generator, seed, count * maps if many else count)


def read_levels(components: Components, held: Any, prompts: int, steps: int) -> Array:
    """Inverted latents `(prompts, levels, channels, height, width)`, float32; with the clean
    ones as the last level, where they are known."""
    framework, nn = components.framework, components.nn
    if isinstance(held, DiffEditInversionPipelineOutput | DiffEditOutput):
        held, clean = held.latents, held.clean
    else:
        clean = remembered(held)
    if isinstance(held, list | tuple) and held and all(map(framework.is_array, held)):
        ends = [end for end in map(remembered, held) if end is not None]
        clean = nn.concat(ends, 0) if len(ends) == len(held) else None
        held = nn.concat(held, 0)
    if not framework.is_array(held):
        raise InputTypeError(
            f"image_latents is {type(held).__name__}; what invert returns is needed"
        )
    if framework.is_floating(held):  # what is no number is told below
        checks.finite("image_latents", held, framework)
    given: Any = held
    if given.ndim == 4 and given.shape[0] % prompts == 0:
        given = given.reshape(prompts, -1, *given.shape[1:])
    checks.array("image_latents", given, (None,) * 5, framework)
    images, levels, channels = given.shape[:3]
    wanted = components.vae.config.latent_channels
    if channels != wanted or images not in (1, prompts):
        raise InputError(
            f"image_latents has shape {tuple(given.shape)}; needed is ({prompts}, {steps} or "
            f"{steps + 1}, {wanted}, height, width)"
        )
    if levels not in (steps, steps + 1) or (clean is not None and levels != steps):
        raise InputError(
            f"image_latents holds {levels} levels; this call makes {steps} steps, so {steps} "
            f"or, with the picture, {steps + 1} are needed: give num_inference_steps and "
            "inpaint_strength as invert had them"
        )
    given = nn.float32(framework.array(given, device=components.device))
    if clean is not None and components.compat != "diffusers":
        checks.array("clean", clean, (images, *given.shape[2:]), framework)
        clean = nn.float32(framework.array(clean, device=components.device))
        given = nn.concat((given, clean[:, None]), 1)
    return nn.expand(given, (prompts, *given.shape[1:]))


def as_solver(components: Components, solver: Solver, rows: list[Array]) -> list[Array]:
    """Levels as a solver holds its latents: some keep the picture at full size below the noise
    (Euler), which diffusers does not take into account."""
    if not isinstance(solver, Table) or components.compat == "diffusers":
        return rows
    pairs = zip(rows, sizes(solver)[: len(rows)], strict=True)
    return [row if size == 1 else row * size for row, size in pairs]


def sizes(solver: Table) -> list[float]:
    """By call, and after the last, how large latents of a solver are beside `sqrt(a) * clean +
    sqrt(1 - a) * noise`; exactly 1 for those that hold them so."""
    found = np.append(np.hypot(solver.alpha, solver.sigma), 1.0)
    return [1.0 if abs(size - 1) < 1e-6 else float(size) for size in found]
