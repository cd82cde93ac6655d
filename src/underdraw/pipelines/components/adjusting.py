"""How a pipeline runs its networks: what it spares memory and time by, and FreeU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from typing_extensions import Self

from underdraw import checks
from underdraw.arguments import checked
from underdraw.controls.acceleration.method import Method
from underdraw.controls.acceleration.presets import mixed
from underdraw.errors import InputError
from underdraw.models.base import Model
from underdraw.pipelines.components.registry import uncompiled
from underdraw.pipelines.components.settings import MOST_SLICES, SEAMLESS, Settings


class Adjustable:
    """The methods of pipelines about their settings, under diffusers' names."""

    parts: Any
    """`Components`"""

    @property
    def settings(self) -> Settings:
        """How it runs its networks; `enable_...` and `disable_...` change them."""
        return self.parts.settings

    @settings.setter
    def settings(self, settings: Settings) -> None:
        self.parts.settings = settings

    def enable_attention_slicing(self, slice_size: int | str | None = "auto") -> None:
        """Attend a few heads at a time: "auto" half of them, "max" one, or a number of heads."""
        if isinstance(slice_size, str) and slice_size not in ("auto", "max"):
            raise InputError(
                f"slice_size={checks.shown(slice_size)}; allowed: 'auto', 'max', a number, None"
            )
        if slice_size is not None and not isinstance(slice_size, str):
            checks.whole("slice_size", slice_size, 1, MOST_SLICES)
        self.settings = replace(self.settings, attention_slice=slice_size)

    def disable_attention_slicing(self) -> None:
        """Attend all heads at once."""
        self.settings = replace(self.settings, attention_slice=None)

    def enable_vae_slicing(self) -> None:
        """Encode and decode one image of a batch at a time."""
        self.settings = replace(self.settings, vae_slicing=True)

    def disable_vae_slicing(self) -> None:
        """Encode and decode whole batches."""
        self.settings = replace(self.settings, vae_slicing=False)

    @checked
    def enable_vae_tiling(self, seamless: bool = False) -> None:
        """Encode and decode large pictures in parts.

        Args:
            seamless: False, as in diffusers: overlapping tiles, each with statistics of its own,
                blended over the overlap; memory no longer grows with the picture, but colours
                differ from tile to tile. True: bands of rows with the statistics of the whole
                picture, a third of the memory and no seams; only pictures of more than four times
                the trained size are tiled besides.
        """
        self.settings = replace(self.settings, vae_tiling=SEAMLESS if seamless else True)

    def disable_vae_tiling(self) -> None:
        """Encode and decode whole images."""
        self.settings = replace(self.settings, vae_tiling=False)

    @checked
    def enable_freeu(self, s1: float, s2: float, b1: float, b2: float) -> None:
        """FreeU (Si et al. 2023), in calls of this pipeline: `s1` and `s2` scale the lowest
        frequencies of the skip connections in the first and second block on the way up, `b1` and
        `b2` half of the channels they meet. For Stable Diffusion 1.5 its authors take 0.9, 0.2,
        1.5, 1.6. 1 changes nothing."""
        given = {"s1": s1, "s2": s2, "b1": b1, "b2": b2}
        amounts = [checks.number(name, value, 0.0, 1000.0) for name, value in given.items()]
        self.settings = replace(self.settings, freeu=tuple(amounts))

    def disable_freeu(self) -> None:
        """Without it again."""
        self.settings = replace(self.settings, freeu=None)

    def enable_acceleration(self, *methods: str | Method) -> None:
        """Compute less in calls of this pipeline, from now on; the pictures are nearly the same.

        Args:
            methods: "fast", "faster" or "exact" (nothing is left out), or methods that go together,
                such as `DeepCache(every=3), GuidanceInterval()`; docs/acceleration.md has the price
                and the gain of each. They replace those of before.

        Raises:
            InputError, InputTypeError: they are none, or do not go together. A call raises an
                InputError where its run has too few calls of the UNet, or a solver of consistency
                models.
        """
        self.settings = replace(self.settings, acceleration=mixed(methods))

    def disable_acceleration(self) -> None:
        """Compute everything again."""
        self.settings = replace(self.settings, acceleration=None)

    @checked
    def quantize(self, kind: str = "int8", components: Sequence[str] = ("unet",)) -> Self:
        """Keep the weights of networks in 8 bits (`models.base.Model.quantized`): half the memory
        of float16. Pipelines that share the networks go on with what they have.

        Args:
            kind: "int8", or "float8" (e4m3).
            components: names of the networks.

        Raises:
            InputError: a component is no network, or its backend has no such weights.
        """
        made = {}
        for name in checks.texts("components", components):
            network = uncompiled(self.parts.named.get(name))
            if not isinstance(network, Model):
                raise InputError(f"components: {name!r:.100} is no network of this pipeline")
            made[name] = network.quantized(kind)
        for name, network in made.items():
            setattr(self, name, network)
        return self
