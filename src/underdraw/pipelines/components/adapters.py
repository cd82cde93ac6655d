"""Grounding weights of a pipeline: attached beside the UNet, which they never touch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from underdraw.errors import InputError
from underdraw.models import CLIPImageProjection, CLIPVisionModelWithProjection, Grounding
from underdraw.models.base import Model
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


class Groundable:
    """The half of a pipeline that has grounding weights."""

    unet: Any
    source: str | None
    _offload: Any

    @property
    def sight(self) -> Sight:
        """What makes features of images in boxes: given with the weights, or components."""
        parts = (getattr(self, name, None) for name in Sight._fields)
        own = Sight(*parts)
        if own.processor is None:
            own = own._replace(processor=getattr(self, "feature_extractor", None))
        given = vars(self).get("_sight", NO_SIGHT)
        return given.over(own)

    @property
    def groundings(self) -> Mapping[str, Any]:
        """Grounding weights by kind ("text", "text-image", "keypoints", ...): those attached, and
        those which a gated UNet has in itself."""
        attached = self._attach_shipped()
        own = self.unet.grounding
        if own is not None and own.config.kind not in attached:
            attached = {**attached, own.config.kind: own}
        return MappingProxyType(attached)

    def _attach_shipped(self) -> Mapping[str, Any]:
        """What is attached; weights in the folder `grounding` of the pipeline's own folder are, as
        soon as somebody asks. Their image tower gives features in the space of phrases, unless an
        `image_project` stands beside it."""
        held = vars(self)
        if "_attached" not in held:
            folder = _own_folder(self.source)
            held["_attached"] = {}
            if folder is not None and (folder / "grounding" / "config.json").exists():
                self.load_grounding(folder / "grounding")
                project = _sight_of(folder, self.unet).image_project
                held["_sight"] = Sight(None, project or _as_it_is, None)
        return held["_attached"]

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
        sight = NO_SIGHT
        if isinstance(source, Grounding):
            network = source
        else:
            network = load_grounding(
                source,
                self.unet,
                kind=kind,
                variant=variant,
                subfolder=subfolder or None,
                dtype=dtype,
                **hub,
            )
            if Path(source).is_dir():
                sight = _sight_of(Path(source), self.unet)
        network.require_fit(self.unet)
        given = Sight(image_encoder, image_project, processor)
        sight = given.over(sight)
        attached = self._attach_shipped()
        # A new mapping: runs in other threads keep what they began with.
        vars(self)["_attached"] = {**attached, network.config.kind: network}
        if sight != NO_SIGHT:
            vars(self)["_sight"] = sight
        if self._offload is not None:
            self._offload.bring_home(network, *sight)

    def unload_grounding(self, kind: str | None = None) -> None:
        """Detach the grounding weights of a kind, or all: calls then give the bits they gave before
        these were attached. Those inside a gated UNet stay.

        Raises:
            InputError: none of this kind is attached.
        """
        attached = dict(self._attach_shipped())
        if kind is not None and kind not in attached:
            there = ", ".join(map(repr, attached)) or "none"
            raise InputError(f"kind={kind!r} is not attached; attached: {there}")
        for name in [kind] if kind is not None else list(attached):
            del attached[name]
        vars(self)["_attached"] = attached
        if not attached:
            vars(self).pop("_sight", None)

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

    def _networks(self) -> list[Model]:
        """Those of the pipeline, and those that belong to its grounding weights."""
        own = super()._networks()  # type: ignore[misc]
        beside = (*vars(self).get("_attached", {}).values(), *vars(self).get("_sight", NO_SIGHT))
        return [*own, *(one for one in beside if isinstance(one, Model))]

    @classmethod
    def from_pipe(cls, pipeline: Any, **options: Any) -> Any:
        """As of every pipeline; grounding weights stay attached."""
        made = super().from_pipe(pipeline, **options)  # type: ignore[misc]
        for name in ("_attached", "_sight"):
            if name in vars(pipeline):
                vars(made)[name] = vars(pipeline)[name]
        return made


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
