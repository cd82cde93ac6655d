"""What the model objects return: typed fields that also answer to `[0]` and `["name"]`."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Protocol

from underdraw import backends
from underdraw.backends.contract import Array
from underdraw.shown import of_fields


class Tree:
    """Base of the dataclasses into which the transformations of the frameworks look.

    A field whose metadata say `static` is no array and stays as it is.
    """

    def __init_subclass__(cls) -> None:
        # Before `dataclass` writes one that prints all numbers: it leaves alone what is there.
        if "__repr__" not in vars(cls):
            setattr(cls, "__repr__", of_fields)  # noqa: B010


@dataclasses.dataclass
class Output(Tree):
    """Base of the outputs. `output[0]` is the first field that is not None, as in diffusers."""

    def __getitem__(self, key: int | slice | str) -> Any:
        return getattr(self, key) if isinstance(key, str) else self.to_tuple()[key]

    def __len__(self) -> int:
        return len(self.to_tuple())

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are not None."""
        values = (getattr(self, f.name) for f in dataclasses.fields(self))
        return tuple(v for v in values if v is not None)


@dataclasses.dataclass
class UNet2DConditionOutput(Output):
    """`sample`: `(batch, out_channels, height, width)`."""

    sample: Array


@dataclasses.dataclass
class ControlNetOutput(Output):
    """What a ControlNet adds: to each skip connection of a UNet, and to its middle, each
    `(batch, channels, height, width)`."""

    down_block_res_samples: tuple[Array, ...]
    mid_block_res_sample: Array


@dataclasses.dataclass
class DecoderOutput(Output):
    """`sample`: images `(batch, 3, height, width)` near [-1, 1]."""

    sample: Array


class Posterior(Protocol):
    """What an encoder knows of the latents of pictures."""

    @property
    def mean(self) -> Array:
        """`(batch, channels, height, width)`"""

    @property
    def std(self) -> Array:
        """Standard deviation, of the same shape."""

    def mode(self) -> Array:
        """The most likely latents."""

    def sample(self, generator: Any = None) -> Array:
        """Latents drawn from it."""


@dataclasses.dataclass(eq=False)
class Certain(Tree):
    """Latents of an encoder that gives no distribution."""

    mean: Array

    @property
    def std(self) -> Array:
        """Zeros."""
        return self.mean * 0

    def mode(self) -> Array:
        """The latents."""
        return self.mean

    def sample(self, generator: Any = None) -> Array:
        """The latents; nothing is drawn."""
        return self.mean


@dataclasses.dataclass(eq=False)
class DiagonalGaussian(Tree):
    """The encoder's distribution over latents."""

    parameters: Array
    """Mean and log-variance `(batch, 2 * channels, height, width)`, stacked."""
    backend: str = dataclasses.field(metadata={"static": True})

    @property
    def mean(self) -> Array:
        """`(batch, channels, height, width)`, as all that follow."""
        return self.parameters[:, : self.parameters.shape[1] // 2]

    @property
    def logvar(self) -> Array:
        """Logarithm of the variance, kept within -30 .. 20."""
        half = self.parameters.shape[1] // 2
        return self._framework.operations.clip(self.parameters[:, half:], -30.0, 20.0)

    @property
    def std(self) -> Array:
        """Standard deviation."""
        return self._framework.operations.exp(0.5 * self.logvar)

    @property
    def var(self) -> Array:
        """Variance."""
        return self._framework.operations.exp(self.logvar)

    def mode(self) -> Array:
        """The most likely latents."""
        return self.mean

    def sample(self, generator: Any = None) -> Array:
        """Latents drawn from it; `generator` one for the batch or a list with one per image."""
        mean = self.mean
        return mean + self.std * self._framework.draw_like(mean, generator)

    def kl(self, other: DiagonalGaussian | None = None) -> Array:
        """Divergence from `other`, or from the standard normal distribution, `(batch,)`."""
        logvar, var = self.logvar, self.var
        if other is None:
            terms = self.mean**2 + var - 1.0 - logvar
        else:
            apart = (self.mean - other.mean) ** 2 + var
            terms = apart / other.var - 1.0 - logvar + other.logvar
        return 0.5 * terms.reshape(terms.shape[0], -1).sum(1)

    def nll(self, sample: Array) -> Array:
        """Negative log-likelihood of latents of the shape of `mean`, `(batch,)`."""
        terms = math.log(2 * math.pi) + self.logvar + (sample - self.mean) ** 2 / self.var
        return 0.5 * terms.reshape(terms.shape[0], -1).sum(1)

    @property
    def _framework(self) -> Any:
        return backends.get(self.backend)


@dataclasses.dataclass
class AutoencoderKLOutput(Output):
    """`latent_dist`: the distribution the encoder gives."""

    latent_dist: DiagonalGaussian


@dataclasses.dataclass
class AutoencoderTinyOutput(Output):
    """`latents`: `(batch, channels, height, width)`, as the UNet sees them."""

    latents: Array


@dataclasses.dataclass
class CLIPTextOutput(Output):
    """Fields of `CLIPTextModel`'s output; `hidden_states` only when asked for."""

    last_hidden_state: Array
    pooler_output: Array
    hidden_states: tuple[Array, ...] | None = None


@dataclasses.dataclass
class CLIPTextModelOutput(Output):
    """Fields of `CLIPTextModelWithProjection`'s output."""

    text_embeds: Array
    last_hidden_state: Array
    hidden_states: tuple[Array, ...] | None = None


@dataclasses.dataclass
class CLIPVisionModelOutput(Output):
    """Fields of `CLIPVisionModelWithProjection`'s output."""

    image_embeds: Array
    last_hidden_state: Array
    hidden_states: tuple[Array, ...] | None = None


@dataclasses.dataclass
class QFormerOutput(Output):
    """Fields of `Blip2QFormerModel`'s output, queries before words."""

    last_hidden_state: Array
    pooler_output: Array
