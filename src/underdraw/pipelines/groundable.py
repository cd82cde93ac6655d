"""Grounding weights of a pipeline: attached beside the UNet, which they never touch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from underdraw.errors import InputError
from underdraw.models import Grounding


class Sight(NamedTuple):
    """What makes features of the images in boxes."""

    image_encoder: Any
    """`CLIPVisionModelWithProjection`"""
    image_project: Any
    """`CLIPImageProjection`, from its space into that of phrases."""
    processor: Any
    """Pictures to what the encoder takes."""


NO_SIGHT = Sight(None, None, None)


class Groundable:
    """The half of a pipeline that has grounding weights."""

    unet: Any
    _networks: Any

    @property
    def sight(self) -> Sight | None:
        """What makes features of images in boxes: given with the weights, or components."""
        parts = (getattr(self, name, None) for name in Sight._fields)
        own = Sight(*parts)
        given = vars(self).get("_sight", NO_SIGHT)
        return Sight(*(a or b for a, b in zip(given, own, strict=True)))

    @property
    def groundings(self) -> Mapping[str, Any]:
        """Grounding weights by kind ("text", "text-image", "keypoints", ...): those attached, and
        those which a gated UNet has in itself."""
        attached = vars(self).get("_attached", {})
        own = self.unet.grounding
        if own is not None and own.config.kind not in attached:
            attached = {**attached, own.config.kind: own}
        return MappingProxyType(attached)

    def load_grounding(
        self,
        source: Grounding | str | Path,
        *,
        image_encoder: Any = None,
        image_project: Any = None,
        processor: Any = None,
        **options: Any,
    ) -> None:
        """Attach grounding weights; others of the same kind go.

        Args:
            source: a folder or Hub id (of a `Grounding`, or of a GLIGEN pipeline), a file of the
                original (`.bin`, `.pth`, `.safetensors`), or a `Grounding`.
            image_encoder, image_project, processor: what makes features of images in boxes, for
                weights of kind "text-image"; those of a GLIGEN pipeline's folder come with it.
            options: as `Grounding.from_pretrained` takes them.

        Raises:
            InputError: the weights were trained for another UNet.
            NotFoundError, WeightError: there are none, or they are damaged.
        """
        from underdraw.pipelines.grounding_files import read_grounding

        if isinstance(source, Grounding):
            network, sight = source, NO_SIGHT
        else:
            network, sight = read_grounding(source, self.unet, **options)
        network.require_fit(self.unet)
        given = Sight(image_encoder, image_project, processor)
        sight = Sight(*(a or b for a, b in zip(given, sight, strict=True)))
        attached = vars(self).get("_attached", {})
        # A new mapping: runs in other threads keep what they began with.
        vars(self)["_attached"] = {**attached, network.config.kind: network}
        if sight != NO_SIGHT:
            vars(self)["_sight"] = sight

    def unload_grounding(self, kind: str | None = None) -> None:
        """Detach the grounding weights of a kind, or all: calls then give the bits they gave before
        these were attached. Those inside a gated UNet stay.

        Raises:
            InputError: none of this kind is attached.
        """
        attached = dict(vars(self).get("_attached", {}))
        if kind is not None and kind not in attached:
            there = ", ".join(map(repr, attached)) or "none"
            raise InputError(f"kind={kind!r} is not attached; attached: {there}")
        for name in [kind] if kind is not None else list(attached):
            del attached[name]
        vars(self)["_attached"] = attached

    def save_grounding(self, folder: str | Path, kind: str | None = None, **options: Any) -> None:
        """Write grounding weights as a folder of their own, which `load_grounding` reads.

        Args:
            kind: which, where there are several.
            options: as `Grounding.save_pretrained` takes them.

        Raises:
            InputError: there are none, or several and `kind` does not say which.
        """
        there = self.groundings
        if kind is None and len(there) == 1:
            kind = next(iter(there))
        if kind not in there:
            listed = ", ".join(map(repr, there)) or "none"
            raise InputError(
                f"kind={kind!r}; allowed: the kinds of the grounding weights: {listed}"
            )
        there[kind].save_pretrained(folder, **options)
