"""Grounding weights of a pipeline: attached beside the UNet, which they never touch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from underdraw.errors import InputError
from underdraw.models import CLIPImageProjection, CLIPVisionModelWithProjection, Grounding
from underdraw.models.grounding_files import load_grounding, save_grounding
from underdraw.pipelines.components.processor import CLIPProcessor
from underdraw.weights import hub as hubs


class Sight(NamedTuple):
    """What makes features of the images in boxes."""

    image_encoder: Any
    """`CLIPVisionModelWithProjection`"""
    image_project: Any
    """`CLIPImageProjection`, from its space into that of phrases."""
    processor: Any
    """Pictures to what the encoder takes."""

    def over(self, other: Sight) -> Sight:
        """These, and those of `other` where there are none."""
        return Sight(*(b if a is None else a for a, b in zip(self, other, strict=True)))


NO_SIGHT = Sight(None, None, None)


class Attached:
    """What was attached to the `components` of a pipeline, which are an argument."""

    by_kind: Mapping[str, Grounding] | None = None
    """None until somebody asks. Replaced at each change and never changed in place, so that runs in
    other threads keep what they began with."""
    given: Sight = NO_SIGHT
    """What makes features of pictures for them."""

    @property
    def parts(self) -> tuple[Any, ...]:
        """All that is attached, without looking for more."""
        return (*(self.by_kind or {}).values(), *self.given)

    def groundings(self, components: Any) -> Mapping[str, Any]:
        """See `Components.groundings`."""
        attached, own = self.shipped(components), components.unet.grounding
        if own is not None and own.config.kind not in attached:
            attached = {**attached, own.config.kind: own}
        return MappingProxyType(dict(attached))

    def sight(self, components: Any) -> Sight:
        """See `Components.sight`."""
        own = Sight(*(components.named.get(name) for name in Sight._fields))
        if own.processor is None:
            own = own._replace(processor=components.feature_extractor)
        return self.given.over(own)

    def shipped(self, components: Any) -> Mapping[str, Any]:
        """What is attached; weights in the folder `grounding` of the pipeline's own folder are, as
        soon as somebody asks. Their image tower gives features in the space of phrases, unless an
        `image_project` stands beside it."""
        if self.by_kind is None:
            folder = _own_folder(components.source)
            self.by_kind = {}
            if folder is not None and (folder / "grounding" / "config.json").exists():
                part = load_grounding(folder / "grounding", components.unet)
                project = _sight_of(folder, components.unet).image_project
                self.attach(components, part, Sight(None, project or _as_it_is, None))
        return self.by_kind

    def attach(self, components: Any, network: Grounding, sight: Sight) -> None:
        """Add weights; others of the same kind go. InputError where they fit another UNet."""
        network.require_fit(components.unet)
        self.by_kind = {**self.shipped(components), network.config.kind: network}
        if sight != NO_SIGHT:
            self.given = sight
        if components.offload is not None:
            components.offload.bring_home(network, *sight)

    def detach(self, components: Any, kind: str | None) -> None:
        """Remove the weights of a kind, or all; InputError where none of this kind is attached."""
        attached = dict(self.shipped(components))
        if kind is not None and kind not in attached:
            there = ", ".join(map(repr, attached)) or "none"
            raise InputError(f"kind={kind!r} is not attached; attached: {there}")
        for name in [kind] if kind is not None else list(attached):
            del attached[name]
        self.by_kind = attached
        if not attached:
            self.given = NO_SIGHT


class Groundable:
    """The methods of pipelines about grounding weights."""

    parts: Any
    """`Components`"""

    @property
    def sight(self) -> Sight:
        """What makes features of images in boxes: given with the weights, or components."""
        return self.parts.sight

    @property
    def groundings(self) -> Mapping[str, Any]:
        """Grounding weights by kind ("text", "text-image", "keypoints", ...): those attached, and
        those which a gated UNet has in itself."""
        return self.parts.groundings

    def load_grounding(
        self,
        source: Grounding | str | Path,
        *,
        image_encoder: Any = None,
        image_project: Any = None,
        processor: Any = None,
        kind: str | None = None,
        variant: str | None = None,
        subfolder: str = "",
        dtype: Any = None,
        **hub: Any,
    ) -> None:
        """Attach grounding weights; others of the same kind go.

        Args:
            source: a folder or Hub id (of a `Grounding`, or of a GLIGEN pipeline), a file of the
                original (`.bin`, `.pth`, `.safetensors`), or a `Grounding`.
            image_encoder, image_project, processor: what makes features of images in boxes, for
                weights of kind "text-image"; those of a GLIGEN pipeline's folder come with it.
            kind: what they are for, where the file does not tell ("canny" and "depth" look alike).
            variant, subfolder: which files of a folder.
            dtype: of the weights, by default that of the UNet.
            hub: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`.

        Raises:
            InputError: the weights were trained for another UNet.
            NotFoundError, WeightError: there are none, or they are damaged.
        """
        unet, sight = self.parts.unet, NO_SIGHT
        if isinstance(source, Grounding):
            network = source
        else:
            network = load_grounding(
                source,
                unet,
                kind=kind,
                variant=variant,
                subfolder=subfolder or None,
                dtype=dtype,
                **hub,
            )
            if Path(source).is_dir():
                sight = _sight_of(Path(source), unet)
        given = Sight(image_encoder, image_project, processor)
        self.parts.attached.attach(self.parts, network, given.over(sight))

    def unload_grounding(self, kind: str | None = None) -> None:
        """Detach the grounding weights of a kind, or all: calls then give the bits they gave before
        these were attached. Those inside a gated UNet stay.

        Raises:
            InputError: none of this kind is attached.
        """
        self.parts.attached.detach(self.parts, kind)

    def save_grounding(self, target: str | Path, kind: str | None = None) -> None:
        """Write grounding weights alone, as `load_grounding` reads them: a folder, or one file if
        the name ends with `.safetensors`.

        Args:
            kind: which, where there are several.

        Raises:
            InputError: there are none, or several and `kind` does not say which.
        """
        there = self.groundings
        if kind is None and len(there) == 1:
            kind = next(iter(there))
        if kind is None or kind not in there:
            listed = ", ".join(map(repr, there)) or "none"
            raise InputError(f"kind={kind!r}; allowed: kinds of the grounding weights, {listed}")
        save_grounding(there[kind], target)


def _sight_of(folder: Path, unet: Any) -> Sight:
    """What a GLIGEN pipeline's folder holds for images in boxes."""
    if not (folder / "image_project").is_dir():
        return NO_SIGHT
    like = {"dtype": unet.dtype, "device": unet.device, "backend": unet.nn.name}
    return Sight(
        CLIPVisionModelWithProjection.from_pretrained(folder, subfolder="image_encoder", **like),
        CLIPImageProjection.from_pretrained(folder, subfolder="image_project", **like),
        CLIPProcessor.from_pretrained(folder, subfolder="processor"),
    )


def _own_folder(source: str | None) -> Path | None:
    """Where a pipeline was loaded from, if that is a folder of this machine."""
    if source == hubs.SCENES:
        return hubs.scenes_folder()
    return Path(source) if source is not None and Path(source).is_dir() else None


def _as_it_is(features: Any) -> Any:
    return features
