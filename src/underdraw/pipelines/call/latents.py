"""The latents a call begins with: their size, noise, and pictures that become latents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from underdraw import checks
from underdraw.backends.contract import Array
from underdraw.errors import InputError
from underdraw.pictures import modes
from underdraw.pipelines.call.plan import Plan
from underdraw.pipelines.components.components import Components

LatentShape = tuple[int, int, int, int]
LONGEST_SIDE = 2**14
"""Of a picture, in pixels. What a call can hold is less by far; a slip of the keyboard allocates
nothing."""


# -- sizes -----------------------------------------------------------------------------------------
def check_size(components: Components, height: Any, width: Any, latents: Any) -> tuple[int, int]:
    """Height and width of the picture in pixels; by default those of `latents`, or else the trained
    ones. InputError: no multiples of the autoencoder's factor, or more than `MOST_PIXELS`."""
    factor = components.vae.config.factor
    trained = components.unet.config.sample_size or 64
    shape = (trained, trained) if isinstance(trained, int) else tuple(trained)
    if latents is not None and len(getattr(latents, "shape", ())) == 4:
        shape = tuple(latents.shape[2:])
    given = {"height": height, "width": width}
    made = [
        side * factor
        if value is None
        else checks.size(name, checks.whole(name, value, 1, LONGEST_SIDE), factor)
        for (name, value), side in zip(given.items(), shape, strict=True)
    ]
    if 0 not in made:  # of empty latents, which are told as such
        modes.check_sides("the image", made[1], made[0])
    return made[0], made[1]


def check_sides(components: Components, height: Any, width: Any) -> tuple[int | None, int | None]:
    """Height and width of the picture in pixels, None where the caller leaves one open.

    Raises:
        InputError: no multiples of the autoencoder's factor.
    """
    factor = components.vae.config.factor

    def side(name: str, value: Any) -> int | None:
        if value is None:
            return None
        return checks.size(name, checks.whole(name, value, 1, LONGEST_SIDE), factor)

    return side("height", height), side("width", width)


def latent_shape(
    components: Components, plan: Plan, height: int, width: int, added: Sequence[int] = (0,)
) -> LatentShape:
    """Of the latents of all images.

    Args:
        added: how many channels the UNet may take besides (inpainting: 5).

    Raises:
        InputError: it takes another number of channels.
    """
    factor, channels = components.vae.config.factor, components.vae.config.latent_channels
    taken = components.unet.config.in_channels
    if taken - channels not in added:
        raise InputError(
            f"unet: it takes {taken} channels, latents have {channels}; "
            f"{type(plan.caller).__name__} needs a text-to-image"
            f"{' or inpainting' if any(added) else ''} UNet"
        )
    return plan.count, channels, height // factor, width // factor


# -- rows ------------------------------------------------------------------------------------------
def repeated(nn: Any, x: Array, times: int) -> Array:
    """Each row of `x (n, ...)` so many times, next to each other."""
    if times == 1:
        return x
    x = nn.expand(x[:, None], (x.shape[0], times, *x.shape[1:]))
    return x.reshape(-1, *x.shape[2:])


def for_each(components: Components, x: Array, count: int) -> Array:
    """Rows of `x (n, ...)` for `count` images; those of one row are next to each other, as the
    images of a prompt are. diffusers repeats the whole batch, so that pictures and prompts no
    longer belong together."""
    times = count // x.shape[0]
    if components.compat == "diffusers" and times > 1:
        return components.nn.concat([x] * times, 0)
    return repeated(components.nn, x, times)


# -- noise -----------------------------------------------------------------------------------------
def draw_noise(components: Components, plan: Plan, shape: Sequence[int]) -> Array:
    """Standard normal, in the UNet's dtype as diffusers has it; under a seed in float32."""
    framework = components.framework
    like = framework.leaf(components.unet.conv_in).dtype
    dtype = like if plan.request.seed is None else framework.float32
    return framework.draw(shape, plan.generators, components.device, dtype)


def first_noise(components: Components, plan: Plan, latents: Any, shape: LatentShape) -> Array:
    """The noise a run begins with, of size 1: drawn, or that of the caller."""
    if latents is None:
        return draw_noise(components, plan, shape)
    return components.framework.array(latents, device=components.device)


# -- pictures --------------------------------------------------------------------------------------
def encode_pictures(
    components: Components, plan: Plan, pictures: Array, alike: bool = False
) -> Array:
    """Clean latents `(plan.count, channels, height, width)` of pictures, float32.

    They are drawn from the encoder's distribution: with a generator per image each image draws its
    own, else each picture once.

    Args:
        pictures: `(n, 3, height, width)` in [-1, 1], n a divisor of the count; or latents, which
            stay as they are.
        alike: all images of a picture share what the first ones' generators draw.

    Raises:
        NonFiniteError: the encoder gave NaN or infinity.
    """
    framework, nn = components.framework, components.nn
    if pictures.shape[1] == components.vae.config.latent_channels:
        latents = nn.float32(framework.array(pictures, device=components.device))
        return for_each(components, latents, plan.count)
    found = components.encode(pictures)
    if not components.vae.draws:
        latents = framework.array(nn.float32(found.mean), device=components.device)
        return for_each(components, components.scaled(latents), plan.count)
    with framework.no_grad():
        noise = posterior_noise(components, plan, found.mean.shape, alike)
        each = (
            for_each(components, nn.float32(x), noise.shape[0]) for x in (found.mean, found.std)
        )
        mean, std = (framework.array(x, device=components.device) for x in each)
        latents = components.scaled(mean + std * nn.float32(noise))
    return for_each(components, latents, plan.count)


def posterior_noise(
    components: Components, plan: Plan, shape: Sequence[int], alike: bool = False
) -> Array:
    """What `encode_pictures` draws for pictures whose latents have this shape."""
    framework, drawn, rows = components.framework, plan.generators, shape[0]
    if isinstance(drawn, list | tuple):
        rows = rows if alike else plan.count
        drawn = drawn[:rows]
    dtype = components.vae.dtype if plan.request.seed is None else framework.float32
    return framework.draw((rows, *shape[1:]), drawn, components.device, dtype)
