"""The network's part in a mask: what it predicts for a noisy picture under two texts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from underdraw import checks
from underdraw.backends.contract import Array
from underdraw.backends.deltas import Deltas
from underdraw.controls.run import Conditioning, Run
from underdraw.errors import InputError, NonFiniteError
from underdraw.pipelines.call.conditioning import encode_texts, equally_long
from underdraw.pipelines.call.latents import repeated
from underdraw.pipelines.call.plan import (
    check_guidance,
    check_prompts,
    count_images,
    make_solver,
    needs_guidance,
)
from underdraw.pipelines.call.request import Request
from underdraw.pipelines.components.components import Components
from underdraw.pipelines.components.lora_mix import standing
from underdraw.pipelines.diffedit.latents import draw_maps, encode_image, generators_of_maps
from underdraw.pipelines.diffedit.masks import (
    by_classes,
    by_mean,
    difference,
    filled,
    without_asides,
)
from underdraw.sampling.denoiser import Denoiser
from underdraw.solvers.solver import Solver

LARGEST_RATIO = 1e4
"""Of a difference to its mean: in float32 nothing is left of the mean beyond it."""
ROWS = 32
"""Rows that a mask sends through the UNet at once, if one image does not need more."""


@dataclass(frozen=True)
class Masking:
    """How a mask is found: see `generate_mask`; with `ratio` None by `masks.by_classes`,
    without lesser parts, holes filled.

    Raises:
        InputError, InputTypeError: an argument cannot work.
    """

    maps: Any
    ratio: Any
    scale: Any = 1.0
    noise: Any = 0.5
    generator: Any = None
    seed: Any = None

    def __post_init__(self) -> None:
        name = "mask_thresholding_ratio"
        found = {
            "maps": count_images(1, self.maps, "num_maps_per_mask"),
            "scale": check_guidance(self.scale),
            "noise": checks.number("mask_encode_strength", self.noise, 0.0, 1.0),
        }
        if self.ratio is not None:
            found["ratio"] = checks.number(name, self.ratio, 0.0, LARGEST_RATIO)
            if found["ratio"] == 0:
                raise InputError(f"{name}={self.ratio} is out of range; allowed: above 0")
        for field, value in found.items():  # plain numbers: arrays know no fractions
            object.__setattr__(self, field, value)


def find_mask(
    components: Components,
    pictures: Array,
    target: Request,
    source: Request,
    how: Masking,
    progress: Callable[..., Any],
) -> np.ndarray:
    """Where pictures have to change, `(images, height, width)` of 0 and 1, in latent pixels.

    Args:
        pictures: what `read_image` gives.
        target, source: texts; the target's also the solver and `strength`, how much noise is added.
        progress: makes the bar over the calls of the network.

    Raises:
        InputError, InputTypeError: an argument cannot work; nothing has been computed by then.
        NonFiniteError: the network gave NaN or infinity.
    """
    nn, framework = components.nn, components.framework
    texts = {
        "target": check_prompts(components, target, "target_"),
        "source": check_prompts(components, source, "source_"),
    }
    count = max(found.count for found in texts.values())
    count_images(count, how.maps, "num_maps_per_mask")
    for name, found in texts.items():
        if found.count not in (1, count):
            raise InputError(f"{name}_prompt is given {found.count} times; there are {count}")
    drawn = generators_of_maps(how.generator, how.seed, count, how.maps)
    solver, _ = make_solver(components, target, drawn, "mask_encode_strength")

    guided = needs_guidance(components, how.scale)
    towards = encode_texts(components, target, texts["target"], guided, count)
    away = encode_texts(components, source, texts["source"], guided, count)
    # Equal negatives cancel in the difference.
    shared = not guided or _equal(framework, away.negative, towards.negative)
    contexts = [away.context, towards.context]
    if not shared:
        contexts += [away.negative, towards.negative]
    sampled = how.generator is not None
    latents = encode_image(components, pictures, count, how.maps, drawn, sampled)
    noise = draw_maps(components, latents.shape, drawn, how.seed, how.maps)
    noisy = solver.model_input(0, solver.noised(0, latents, noise))
    leaves = standing(components, "unet", target.lora_scale)
    answers = predictions(components, solver, noisy, contexts, how, leaves, progress)
    if not shared:
        s, t, s_against, t_against = answers
        if components.compat == "diffusers":  # it takes each for the other
            s, t, s_against, t_against = s_against, t_against, s, t
        answers = [
            s_against + how.scale * (s - s_against),
            t_against + how.scale * (t - t_against),
        ]
    if not all(framework.is_finite(answer) for answer in answers):
        raise NonFiniteError("the network gave NaN or infinity for the mask")
    spread = difference(nn, answers[0], answers[1], how.maps)
    if how.ratio is None:
        found = framework.to_numpy(spread)
        return filled(without_asides(by_classes(found), found))
    together = components.compat == "diffusers"
    return framework.to_numpy(by_mean(nn, spread, how.ratio, together))


def predictions(
    components: Components,
    solver: Solver,
    noisy: Array,
    contexts: list[Any],
    how: Masking,
    leaves: Deltas,
    progress: Callable[..., Any],
) -> list[Array]:
    """What the network, under differences to its layers, predicts for the noisy latents under each
    context, as many at once as `ROWS` allows."""
    nn, maps, found = components.nn, how.maps, []
    longest = max(contexts, key=lambda context: context.shape[1])
    contexts = [equally_long(components, context, longest)[0] for context in contexts]
    images, many = noisy.shape[0] // maps, len(contexts)
    most = max(1, ROWS // (maps * many))
    firsts = range(0, images, most)
    bar = progress(total=len(firsts))
    with components.framework.no_grad(), components.borrow(components.unet), bar:
        for first in firsts:
            last = min(first + most, images)
            x = noisy[first * maps : last * maps]
            rows = [repeated(nn, context[first:last], maps) for context in contexts]
            run = Run(
                nn,
                components.unet,
                FirstCall(solver),
                Conditioning(nn.concat(rows, 0)),
                guidance=how.scale,
                components=components,
                engine=components.engine,
                leaves=leaves,
                sites=components.sites,
            )
            out = Denoiser(run)(nn.concat([x] * many, 0), 0)
            bar.update()
            found.append([out[k * x.shape[0] : (k + 1) * x.shape[0]] for k in range(many)])
    return [nn.concat(parts, 0) for parts in zip(*found, strict=True)]


@dataclass(frozen=True)
class FirstCall:
    """Of a solver the first call alone."""

    solver: Any

    def __len__(self) -> int:
        return 1

    def __getattr__(self, name: str) -> Any:
        return getattr(self.solver, name)


def _equal(framework: Any, first: Any, second: Any) -> bool:
    to_numpy = framework.to_numpy
    return first.shape == second.shape and np.array_equal(to_numpy(first), to_numpy(second))
