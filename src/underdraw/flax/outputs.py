"""What Flax's calls give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from underdraw.backends.contract import Array
from underdraw.flax.params import jax
from underdraw.models.outputs import Output, Tree


@dataclass
class FlaxStableDiffusionPipelineOutput(Output):
    """What a pipeline gives."""

    images: Any
    """Float32 in [0, 1], `(images, height, width, 3)`; of a sharded call `(devices, images, ...)`.
    """
    nsfw_content_detected: Any = False
    """Per image, whether the safety checker withheld it; False without a checker."""

    def replace(self, **changes: Any) -> FlaxStableDiffusionPipelineOutput:
        """The same with other fields."""
        return type(self)(**{**vars(self), **changes})


@dataclass(eq=False)
class FlaxDiagonalGaussian(Tree):
    """The encoder's distribution over latents, channels last."""

    parameters: Array
    """Mean and log-variance `(batch, height, width, 2 * channels)`, stacked."""

    @property
    def mean(self) -> Array:
        """`(batch, height, width, channels)`, as all that follow."""
        return self.parameters[..., : self.parameters.shape[-1] // 2]

    @property
    def logvar(self) -> Array:
        """Logarithm of the variance, kept within -30 .. 20."""
        half = self.parameters.shape[-1] // 2
        return jax().operations.clip(self.parameters[..., half:], -30.0, 20.0)

    @property
    def std(self) -> Array:
        """Standard deviation."""
        return jax().operations.exp(0.5 * self.logvar)

    @property
    def var(self) -> Array:
        """Variance."""
        return jax().operations.exp(self.logvar)

    def mode(self) -> Array:
        """The most likely latents."""
        return self.mean

    def sample(self, key: Any) -> Array:
        """Latents drawn by a key of `jax.random`."""
        noise, _ = jax().keyed(key, self.mean.shape)
        return self.mean + self.std * noise.astype(self.mean.dtype)


@dataclass
class FlaxAutoencoderKLOutput(Output):
    """`latent_dist`: the distribution the encoder gives."""

    latent_dist: FlaxDiagonalGaussian
