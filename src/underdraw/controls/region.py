"""`Region`: a run is free inside a mask and follows a known picture outside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from underdraw import checks
from underdraw.backends.contract import Array
from underdraw.checks import shown
from underdraw.controls.control import Call, Planned, Run
from underdraw.controls.steady import Steady
from underdraw.errors import InputError, InputTypeError
from underdraw.pictures.reading import check_alike, read_masks, read_pictures, shrunk


class _Known(NamedTuple):
    """The carry: the mask, and what gives the latents after each call."""

    mask: Array
    trail: Sequence[Array] | None
    clean: Array | None
    noise: Array | None
    solver: Any


@dataclass(frozen=True, eq=False)
class Blend:
    """Outside of the mask the latents become known ones."""

    mask: Array
    known: Array

    def __call__(self, nn: Any, latents: Array) -> Array:
        return self.mask * latents + (1 - self.mask) * self.known


@dataclass(frozen=True, eq=False)
class Region(Steady):
    """The latent blend (Avrahami et al. 2023, "Blended latent diffusion", section 4.1).

    After each call, latents outside the mask become those of the known picture at the noise level
    the next call begins with; after the last call, its clean latents. So the background of the
    result is the picture's own round trip through the autoencoder.

        Region(mask, image=photo)                    # masks and pictures as callers have them
        Region(inside, latents=clean, noise=noise)   # arrays that a pipeline has already
        Region(inside, trail=inverted)               # what an inversion recorded

    It acts in any pipeline and beside other controls. To get back the very pixels outside the mask,
    which no autoencoder keeps, use `pictures.pasting.paste` on the result.

    Args:
        mask: 1 (white) where the run is free. An array of the backend `(1 or images, 1, height,
            width)` of the latents' size, in [0, 1], which blends softly between; or, of the
            picture's size, PIL pictures or arrays as `pictures.reading.read_masks` takes them: a
            latent is free if at least half of its pixels are.
        image: the known picture, or one per image, as `pictures.reading.read_pictures` takes them;
            the pipeline's autoencoder encodes them (the mean of its distribution) at the size of
            the run.
        latents: instead, clean latents `(1 or images, channels, height, width)` as the UNet sees
            them (times `scaling_factor`).
        trail: instead, the latents after each call, as many as there are calls, each of that shape:
            they are taken as they are, without any noise. The last ones should be clean.
        noise: `(1 or images, channels, height, width)`: the one noise of all levels, with which the
            run has begun. By default it is drawn from the generators of the call, and the first
            call begins with it outside the mask.

    Raises (when the call begins, before anything is computed):
        InputError, InputTypeError: not exactly one of `image`, `latents`, `trail`; shapes or sizes
            that do not fit the run; a mask outside [0, 1].
    """

    mask: Any
    image: Any = None
    latents: Any = None
    trail: Sequence[Array] | None = None
    noise: Any = None

    def __post_init__(self) -> None:
        given = [name for name in ("image", "latents", "trail") if getattr(self, name) is not None]
        if len(given) != 1:
            raise InputError(
                f"Region has {' and '.join(given) or 'no picture'}; exactly one of image, latents "
                "and trail is needed"
            )
        if self.trail is not None and self.noise is not None:
            raise InputError("Region has trail and noise; a trail needs none")
        arrays = getattr(self.trail, "ndim", 0) == 5
        if not (self.trail is None or arrays or isinstance(self.trail, list | tuple)):
            raise InputTypeError(f"Region's trail={shown(self.trail)} is not a list of latents")

    def check(self, planned: Planned) -> None:
        """That masks, pictures and latents are those of the run."""
        self._mask(planned)
        if self.trail is not None:
            if len(self.trail) != planned.calls:
                raise InputError(
                    f"Region's trail has {len(self.trail)} entries; the run makes {planned.calls} "
                    "calls"
                )
            for latents in self.trail:
                _check_latents("trail", latents, planned)
        elif self.latents is not None:
            _check_latents("latents", self.latents, planned)
        else:
            found = self._pixels(planned).shape[0]
            if found not in (1, planned.images):
                raise InputError(
                    f"Region's image holds {found} pictures; allowed: 1 or {planned.images}, one "
                    "per image"
                )
        if self.noise is not None:
            _check_latents("noise", self.noise, planned)

    def prepare(self, run: Run) -> _Known:
        """Mask and latents as the run has them."""
        framework, planned = run.framework, run.planned
        device = getattr(run.latents, "device", None)

        def ready(value: Array) -> Array:
            """In float32, beside the latents of the run."""
            return run.nn.float32(framework.array(value, device=device))

        mask = ready(self._mask(planned))
        if self.trail is not None:
            return _Known(mask, [ready(latents) for latents in self.trail], None, None, None)
        clean = self.latents
        if clean is None:
            found = run.components.encode(self._pixels(planned))
            clean = run.components.scaled(run.nn.float32(found.mean))
        noise = ready(run.draw() if self.noise is None else self.noise)  # type: ignore[misc]
        clean = ready(clean)
        if clean.shape[0] < noise.shape[0]:  # the last call's are of the shape of all others'
            clean = run.nn.expand(clean, noise.shape)
        return _Known(mask, None, clean, noise, run.solver)

    def before(self, carry: _Known, call: Call) -> Sequence[Blend]:
        if call.index == 0 and self.trail is None and self.noise is None:
            return (Blend(carry.mask, carry.solver.noised(0, carry.clean, carry.noise)),)
        return ()

    def after(self, carry: _Known, call: Call) -> Sequence[Blend]:
        if carry.trail is not None:
            return (Blend(carry.mask, carry.trail[call.index]),)
        known = carry.solver.noised(call.index + 1, carry.clean, carry.noise)
        return (Blend(carry.mask, known),)

    def _mask(self, planned: Planned) -> Array:
        """The mask `(1 or images, 1, height, width)` of the latents' size, float32."""
        mask, nn, framework = self.mask, planned.nn, planned.framework
        images, _, high, wide = planned.shape
        if framework.is_array(mask) and tuple(mask.shape[-2:]) == (high, wide):
            if framework.is_floating(mask):
                checks.finite("Region's mask", mask, framework)
            mask = nn.float32(mask)
            if mask.ndim < 4:
                mask = mask.reshape(-1, 1, high, wide)
            if not (float(mask.min()) >= 0 and float(mask.max()) <= 1):  # false for NaN, too
                raise InputError(
                    f"Region's mask has values from {float(mask.min()):g} to "
                    f"{float(mask.max()):g}; allowed: 0 to 1"
                )
        else:
            height, width = planned.size
            check_alike(self.image, mask, "Region's mask")
            pixels = read_masks("Region's mask", mask, framework, height, width)
            mask = shrunk(nn, pixels, height // high)
        if mask.shape[0] not in (1, images) or mask.shape[1] != 1:
            raise InputError(
                f"Region's mask has shape {tuple(mask.shape)}; needed is (1 or {images}, 1, "
                f"{high}, {wide})"
            )
        return mask

    def _pixels(self, planned: Planned) -> Array:
        return read_pictures("Region's image", self.image, planned.framework, *planned.size)


def _check_latents(name: str, value: Any, planned: Planned) -> None:
    framework, shape = planned.framework, planned.shape
    if not framework.is_array(value):
        raise InputTypeError(
            f"Region's {name} is {type(value).__name__}; a {planned.nn.name} array is needed"
        )
    found = tuple(value.shape)
    if len(found) != 4 or found[0] not in (1, shape[0]) or found[1:] != shape[1:]:
        raise InputError(f"Region's {name} has shape {found}; the run's is {shape}")
    checks.array(f"Region's {name}", value, found, framework)
