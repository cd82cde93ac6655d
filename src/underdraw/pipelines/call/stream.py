"""A call handed out step by step, with previews of the pictures being made."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from underdraw.backends.contract import Array
from underdraw.errors import InputTypeError
from underdraw.sampling.loop import Step

CELLS = 16
"""Side of the test picture from which the colours of latents are learned, in latent pixels."""


@dataclass(frozen=True)
class Progress:
    """What a stream gives after each model call."""

    index: int
    """Of the call, from 0."""
    calls: int
    """How many there are."""
    timestep: float
    latents: Array
    """`(images, channels, height, width)` after the call, float32."""
    clean: Callable[[], Array]
    """The latents the model aims at now, of the same shape; computed when asked for."""
    show: Callable[[Array, bool], list[Any]]

    def preview(self, full: bool = False) -> list[Any]:
        """What the model aims at now as PIL images of the final size, one per image.

        Cheap and blurred: each latent pixel has the colour its numbers stand for, found by a linear
        map that is fitted to this autoencoder when the first preview is asked for. `full` decodes
        instead, which costs what decoding at the end costs; only then a safety checker looks.
        """
        return self.show(self.clean(), full)


class Stream(Generator[Progress, None, Any]):
    """A call of a pipeline in progress.

    Several may go on at once, in one thread or in several: each has the state of a run to itself.
    """

    output: Any = None
    """What the call gives; None before the end, and where the stream was closed before."""

    def __init__(self, pipe: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        steps = getattr(type(pipe).__call__, "steps", None)
        if steps is None:
            raise InputTypeError(f"{type(pipe).__name__} cannot be streamed; call it")
        self._pipe = pipe
        self._run: Generator[Step, None, Any] = steps(pipe, *args, **kwargs)
        self._state: dict[str, Any] = {}
        self._colours: np.ndarray | None = None

    def send(self, value: None) -> Progress:
        """The next step; raises StopIteration, which holds the output, after the last one."""
        state = vars(self._pipe._run)  # of this thread
        others = dict(state)
        swap(state, self._state)
        try:
            step = next(self._run)
        except StopIteration as end:
            self.output = end.value
            raise
        finally:
            self._state = dict(state)
            swap(state, others)
        calls = self._state["calls"]
        return Progress(step.index, calls, step.timestep, step.latents, step.clean, self._show)

    def throw(self, kind: Any, value: Any = None, trace: Any = None) -> Progress:
        """End the run; the error goes on from here."""
        self.close()
        raise kind if value is None else value

    def close(self) -> None:
        """End the run before its next step; nothing happens where it has ended already."""
        self._run.close()

    def _show(self, clean: Array, full: bool) -> list[Any]:
        if full:
            return self._pipe.decode_latents(clean, "pil")[0]
        if self._colours is None:
            self._colours = fit_colours(self._pipe)
        return coloured(self._pipe, clean, self._colours)


def swap(state: dict[str, Any], other: Mapping[str, Any]) -> None:
    """Put the state of another run in the place of this one's."""
    state.clear()
    state.update(other)


def coloured(pipe: Any, latents: Array, colours: np.ndarray) -> list[Any]:
    """Latents `(images, channels, h, w)` as PIL images by a map of `fit_colours`."""
    factor = pipe.vae.config.factor
    z = pipe._framework.to_numpy(latents).transpose(0, 2, 3, 1)
    pixels = ((z @ colours[:-1] + colours[-1] + 1) * 127.5).clip(0, 255).round().astype(np.uint8)
    size = (pixels.shape[2] * factor, pixels.shape[1] * factor)
    return [Image.fromarray(p).resize(size, Image.Resampling.BILINEAR) for p in pixels]


def fit_colours(pipe: Any) -> np.ndarray:
    """The linear map `(channels + 1, 3)` from a latent pixel and 1 to its colour in [-1, 1].

    Least squares over a picture of soft and of hard patches which the autoencoder encodes: it works
    for every autoencoder, and takes a part of the time of one decoding.
    """
    vae, framework = pipe.vae, pipe._framework
    cells = patches()
    factor = vae.config.factor
    picture = cells.repeat(factor, 0).repeat(factor, 1).transpose(2, 0, 1)[None]
    with framework.no_grad(), pipe._borrowed(vae):
        pixels = framework.array(picture, dtype=vae.dtype, device=vae.device)
        z = vae.encode(pixels, return_dict=False)[0].mode() * vae.config.scaling_factor
    known = framework.to_numpy(z)[0].transpose(1, 2, 0).reshape(-1, vae.config.latent_channels)
    known = np.concatenate([known, np.ones_like(known[:, :1])], 1).astype(np.float64)
    found, *_ = np.linalg.lstsq(known, cells.reshape(-1, 3).astype(np.float64), rcond=None)
    return found.astype(np.float32)


def patches() -> np.ndarray:
    """Float32 `(CELLS, 2 * CELLS, 3)` in [-1, 1]: random colours that run into each other, and
    squares of pure ones."""
    rng = np.random.default_rng(0)
    corners = rng.uniform(-1, 1, (5, 5, 3))
    at = np.linspace(0, 4, CELLS)
    weights = np.maximum(0, 1 - abs(at[:, None] - np.arange(5)))
    soft = np.einsum("ai,bj,ijc->abc", weights, weights, corners)
    pure = rng.choice([-0.9, 0.0, 0.9], (CELLS // 4, CELLS // 4, 3))
    hard = pure.repeat(4, 0).repeat(4, 1)
    return np.concatenate([soft, hard], 1).astype(np.float32)
