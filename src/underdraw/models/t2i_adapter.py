"""`T2IAdapter` and `MultiAdapter`: T2I-Adapters under diffusers' names and calls."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from typing_extensions import Self

from underdraw import checks
from underdraw.arguments import checked
from underdraw.backends.contract import Array
from underdraw.backends.layout import Layout
from underdraw.errors import InputError
from underdraw.models.base import Model, like
from underdraw.models.keywords import drop_neutral
from underdraw.models.several import Several
from underdraw.models.single_file import NEUTRAL
from underdraw.models.unet import as_unet
from underdraw.networks import t2i_adapter
from underdraw.networks.t2i_adapter import T2IAdapterConfig
from underdraw.schema import within
from underdraw.weights.locate import find
from underdraw.weights.t2i_adapter import read_adapter


class T2IAdapter(Model):
    """A T2I-Adapter (Mou et al. 2023). Config fields: `T2IAdapterConfig`."""

    config_class = T2IAdapterConfig
    network = "t2i_adapter"
    config: T2IAdapterConfig

    @classmethod
    def layout(cls, config: T2IAdapterConfig) -> Layout:
        return t2i_adapter.layout(config)

    @classmethod
    @checked
    def from_single_file(
        cls,
        source: str | os.PathLike[str],
        *,
        unet: Any = None,
        dtype: Any = None,
        torch_dtype: Any = None,
        device: Any = None,
        backend: str | None = None,
        check: bool = False,
        **hub: Any,
    ) -> Self:
        """A T2I-Adapter from an original file, full or light.

        Args:
            source: a `.pth` or `.safetensors` file, "owner/name/file.safetensors" on the Hub, or
                the address of its page.
            unet: what it is for: where nothing else is asked for it tells dtype, device and
                backend.
            dtype, device, backend, check, hub: as in `from_pretrained`.

        Raises:
            NotFoundError: there is no such file.
            WeightError: it holds no T2I-Adapter (a style adapter, say), or is damaged.
            InputError: it was made for another UNet.
        """
        access = drop_neutral(f"{cls.__name__}.from_single_file", hub, NEUTRAL)
        model = None if unet is None else as_unet(unet)
        found = read_adapter(find(source, **access))
        if model is not None:
            found.config.require_fit(model.config)
        where = {
            "dtype": dtype or torch_dtype,
            "device": device,
            "backend": backend,
            "check": check,
        }
        return cls.from_tensors(found.config, found.tensors, **like(model, **where))

    @property
    def downscale_factor(self) -> int:
        """Pixels of a map per pixel of the first features, along each side."""
        return self.config.downscale_factor

    @property
    def total_downscale_factor(self) -> int:
        """The same of the last features."""
        return self.downscale_factor * 2 ** (len(self.config.widths) - 1)

    def require_fit(self, unet: Any) -> None:
        """Raise an `InputError` unless this adapter was made for such UNets (or configs)."""
        self.config.require_fit(getattr(unet, "config", unet))

    def forward(self, x: Array) -> list[Array]:
        """Features of maps `(batch, channels, height, width)` in [0, 1], one for each level of a
        UNet.

        Raises:
            InputError: other channels, or sides that are no multiples of `downscale_factor`.
        """
        factor = self.config.downscale_factor
        self._take("x", x, None, self.config.in_channels, None, None)
        if x.shape[2] % factor or x.shape[3] % factor:
            raise InputError(
                f"the map x is {tuple(x.shape)}; needed are (batch, {self.config.in_channels}, "
                f"height, width), sides multiples of {factor}"
            )
        return list(t2i_adapter.t2i_adapter(self.nn, self, self.config, x))

    if TYPE_CHECKING:  # the backend's root calls it
        __call__ = forward


class MultiAdapter(Several[T2IAdapter]):
    """Several T2I-Adapters, whose features add up. In files they are `adapter`, `adapter_1`,
    `adapter_2`, ... side by side.

    Raises:
        InputError: fewer than two, or of different sizes.
    """

    kind = T2IAdapter

    def __init__(self, adapters: Sequence[T2IAdapter]) -> None:
        super().__init__(adapters)
        if len(self) < 2:
            raise InputError("MultiAdapter holds one adapter; use a T2IAdapter itself")
        sizes = {(one.config.widths, one.downscale_factor) for one in self}
        if len(sizes) > 1:
            raise InputError(f"MultiAdapter holds adapters of different sizes: {sorted(sizes)}")

    @property
    def adapters(self) -> tuple[T2IAdapter, ...]:
        """diffusers' name for them."""
        return self.networks

    @property
    def num_adapter(self) -> int:
        """How many there are."""
        return len(self)

    @property
    def downscale_factor(self) -> int:
        """Pixels of a map per pixel of the first features, along each side."""
        return self.adapters[0].downscale_factor

    @property
    def total_downscale_factor(self) -> int:
        """The same of the last features."""
        return self.adapters[0].total_downscale_factor

    def forward(
        self, xs: Sequence[Array], adapter_weights: Sequence[float] | None = None
    ) -> list[Array]:
        """The sums of features; a map for each adapter, and by default equal weights of sum 1.

        Raises:
            InputError: more or fewer maps or weights than adapters.
        """
        weights: Sequence[float] = [1 / len(self)] * len(self)
        if adapter_weights is not None:
            weights = checks.numbers("adapter_weights", adapter_weights)
        maps = checks.sequence("xs", xs, "maps")
        for name, given in (("xs", maps), ("adapter_weights", weights)):
            if len(given) != len(self):
                raise InputError(f"{name} has {len(given)} entries; there are {len(self)} adapters")
        with within("xs"):
            each = [one.forward(x) for one, x in zip(self.adapters, maps, strict=True)]
        levels = zip(*each, strict=True)
        return [
            sum(w * x for w, x in zip(weights[1:], level[1:], strict=True)) + weights[0] * level[0]
            for level in levels
        ]

    __call__ = forward
