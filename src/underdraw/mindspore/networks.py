"""Networks on MindSpore, whose calls give tuples."""

# With `return_dict=False` by default they are no stand-ins for the classes they are made of: that
# is mindone's convention, and the reason why they are classes of their own.
# pyright: reportIncompatibleMethodOverride=false, reportIncompatibleVariableOverride=false

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import Self

from underdraw import backends, checks, models
from underdraw.arguments import checked
from underdraw.backends.contract import Array
from underdraw.backends.framework import Framework
from underdraw.backends.seeds import check_generators
from underdraw.errors import InputError
from underdraw.mindspore.conventions import BACKEND, Tupling, here, on_mindspore, tupled
from underdraw.models.base import Model
from underdraw.models.outputs import AutoencoderKLOutput, DiagonalGaussian
from underdraw.models.several import Several
from underdraw.models.single_file import FromSingleFile
from underdraw.networks.config import Config

Giving = Tupling[Any, tuple[Any, ...]]


class Network(Model):
    """A network on MindSpore, new or read with `mindspore_dtype`."""

    def __new__(cls, *args: Any, backend: str = BACKEND, **kwargs: Any) -> Self:
        return super().__new__(cls, *args, backend=on_mindspore(backend), **kwargs)

    def __init__(
        self, config: Config | None = None, *, backend: str = BACKEND, **fields: Any
    ) -> None:
        super().__init__(config, backend=backend, **fields)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], backend: str = BACKEND) -> Self:
        """Random weights from a parsed `config.json`; keys that are no fields are left out."""
        return super().from_config(config, on_mindspore(backend))

    @classmethod
    @checked
    def from_pretrained(
        cls, name_or_path: str | Path, *, mindspore_dtype: Any = None, **options: Any
    ) -> Self:
        """A network from a folder, a Hub id or `"underdraw/scenes"`; `mindspore_dtype` is `dtype`,
        arguments and errors are else those of the class in `underdraw`."""
        return super().from_pretrained(name_or_path, **here(mindspore_dtype, options))

    @classmethod
    def from_tensors(
        cls,
        raw_config: Mapping[str, Any],
        tensors: Mapping[str, Any],
        *,
        backend: str = BACKEND,
        **options: Any,
    ) -> Self:
        return super().from_tensors(raw_config, tensors, backend=on_mindspore(backend), **options)


class Returning(Network):
    """A network whose calls give tuples."""

    if TYPE_CHECKING:  # the backend's root calls `forward`
        __call__: Giving


class NetworkOfFiles(Returning, FromSingleFile):
    """A network that original one-file checkpoints hold."""

    @classmethod
    @checked
    def from_single_file(
        cls, source: str | Path, *, mindspore_dtype: Any = None, **options: Any
    ) -> Self:
        """This network from an original one-file checkpoint; arguments and errors are those of
        the class in `underdraw`, and `mindspore_dtype` is `dtype`."""
        return super().from_single_file(source, **here(mindspore_dtype, options))


class UNet2DConditionModel(NetworkOfFiles, models.UNet2DConditionModel):
    """`underdraw.UNet2DConditionModel` on MindSpore."""

    forward: Giving = tupled(models.UNet2DConditionModel.forward)


class ControlNetModel(Returning, models.ControlNetModel):
    """`underdraw.ControlNetModel` on MindSpore."""

    forward: Giving = tupled(models.ControlNetModel.forward)


class Moments:
    """Draws latents from what `AutoencoderKL.encode` gives: mean and log-variance of the latents
    `(batch, 2 * channels, height, width)`, stacked."""

    def sample(self, parameters: Array, generator: Any = None) -> Array:
        """Latents drawn from it; `generator` one for the batch or a list with one per image."""
        known = self._read("parameters", parameters)
        check_generators(generator, parameters.shape[0])
        return known.sample(generator)

    def mode(self, parameters: Array) -> Array:
        """The most likely latents."""
        return self._read("parameters", parameters).mode()

    def kl(self, parameters: Array, other: Array | None = None) -> Array:
        """Divergence from `other`, or from the standard normal distribution, `(batch,)`."""
        against = None if other is None else self._read("other", other, parameters)
        return self._read("parameters", parameters).kl(against)

    def nll(self, parameters: Array, sample: Array) -> Array:
        """Negative log-likelihood of latents, `(batch,)`."""
        known = self._read("parameters", parameters)
        return known.nll(checks.shaped("sample", sample, known.mean.shape, self._framework))

    def _read(self, name: str, values: Any, like: Any = None) -> DiagonalGaussian:
        shape = (None, None, None, None) if like is None else tuple(like.shape)
        values = checks.shaped(name, values, shape, self._framework)
        if values.shape[1] % 2 or not self._framework.is_floating(values):
            raise InputError(
                f"{name} has shape {tuple(values.shape)} and dtype {values.dtype}; needed are "
                "means and log-variances, stacked"
            )
        return DiagonalGaussian(values, BACKEND)

    @property
    def _framework(self) -> Framework:
        return backends.get(BACKEND)


class AutoencoderKL(NetworkOfFiles, models.AutoencoderKL):
    """`underdraw.AutoencoderKL` on MindSpore. `encode` gives what its encoder computed, of which
    `diag_gauss_dist` draws latents."""

    diag_gauss_dist = Moments()
    decode: Giving = tupled(models.AutoencoderKL.decode)
    forward: Giving = tupled(models.AutoencoderKL.forward)

    @checked
    def encode(self, x: Array, return_dict: bool = False) -> AutoencoderKLOutput | tuple[Array]:
        """Mean and log-variance `(batch, 2 * channels, height, width)` of the latents of images
        `(batch, 3, height, width)` in [-1, 1]; with `return_dict` the distribution."""
        found = super().encode(x)
        return found if return_dict else (found.latent_dist.parameters,)


class AutoencoderTiny(Returning, models.AutoencoderTiny):
    """`underdraw.AutoencoderTiny` on MindSpore."""

    encode: Giving = tupled(models.AutoencoderTiny.encode)
    decode: Giving = tupled(models.AutoencoderTiny.decode)
    forward: Giving = tupled(models.AutoencoderTiny.forward)


class CLIPTextModel(Returning, models.CLIPTextModel):
    """`underdraw.CLIPTextModel` on MindSpore."""

    forward: Giving = tupled(models.CLIPTextModel.forward)


class CLIPTextModelWithProjection(Returning, models.CLIPTextModelWithProjection):
    """`underdraw.CLIPTextModelWithProjection` on MindSpore."""

    forward: Giving = tupled(models.CLIPTextModelWithProjection.forward)


class CLIPVisionModelWithProjection(Returning, models.CLIPVisionModelWithProjection):
    """`underdraw.CLIPVisionModelWithProjection` on MindSpore."""

    forward: Giving = tupled(models.CLIPVisionModelWithProjection.forward)


class ContextCLIPTextModel(Returning, models.ContextCLIPTextModel):
    """`underdraw.ContextCLIPTextModel` on MindSpore."""

    forward: Giving = tupled(models.ContextCLIPTextModel.forward)


class Blip2QFormerModel(Returning, models.Blip2QFormerModel):
    """`underdraw.Blip2QFormerModel` on MindSpore."""

    forward: Giving = tupled(models.Blip2QFormerModel.forward)


class CLIPImageProjection(Network, models.CLIPImageProjection):
    """`underdraw.CLIPImageProjection` on MindSpore."""


class StableDiffusionSafetyChecker(Network, models.StableDiffusionSafetyChecker):
    """`underdraw.StableDiffusionSafetyChecker` on MindSpore."""


class T2IAdapter(Network, models.T2IAdapter):
    """`underdraw.T2IAdapter` on MindSpore."""


class MultiControlNetModel(models.MultiControlNetModel):
    """`underdraw.MultiControlNetModel` on MindSpore."""

    kind = ControlNetModel


class MultiAdapter(models.MultiAdapter):
    """`underdraw.MultiAdapter` on MindSpore."""

    kind = T2IAdapter


CLASSES: Mapping[str, type[Network]] = {
    kind.__name__: kind
    for kind in (
        AutoencoderKL,
        AutoencoderTiny,
        Blip2QFormerModel,
        CLIPImageProjection,
        CLIPTextModel,
        CLIPTextModelWithProjection,
        CLIPVisionModelWithProjection,
        ContextCLIPTextModel,
        ControlNetModel,
        StableDiffusionSafetyChecker,
        T2IAdapter,
        UNet2DConditionModel,
    )
}
SEVERAL: Mapping[str, type[Several[Any]]] = {
    kind.__name__: kind for kind in (MultiControlNetModel, MultiAdapter)
}
BESIDE = ("diffusers_version", "overlay", "tiling", "tokenizer", "use_slicing")
"""What networks hold besides config and layers."""


def brought(value: Any) -> Any:
    """A component as it is here: networks of a backend as classes of this room, all their layers
    shared if they are on MindSpore, else copied; anything else is itself."""
    if isinstance(value, Several):
        kind = SEVERAL[type(value).__name__]
        networks = [brought(one) for one in value]
        return value if isinstance(value, kind) else kind(networks)
    kind = CLASSES.get(type(value).__name__)
    if kind is None or isinstance(value, kind) or not isinstance(value, Model):
        return value
    if value.nn.name != BACKEND:
        dtype = str(value.dtype).removeprefix("torch.")
        made: Any = kind.from_tensors(value.config, value.stored_tensors(), dtype=dtype)
        vars(made).update({name: vars(value)[name] for name in BESIDE if name in vars(value)})
        return made
    made = kind.__new__(kind)
    vars(made).update(vars(value))
    return made
