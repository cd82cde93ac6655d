"""Grounding weights, attached beside a UNet: one kind of adapters, and its familiar names."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from underdraw import checks
from underdraw.arguments import checked
from underdraw.models import CLIPImageProjection, CLIPVisionModelWithProjection, Grounding
from underdraw.models.grounding_files import load_grounding, save_grounding
from underdraw.pipelines.components.adapters import (
    Adaptable,
    AdapterKind,
    Networks,
    own_folder,
    register_adapter,
    write_adapter,
)
from underdraw.pipelines.components.processor import CLIPProcessor


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


def groundings(components: Any) -> Networks:
    """See `Components.groundings`."""
    attached, own = components.attached.of(components, GROUNDING.name), components.unet.grounding
    if own is not None and own.config.kind not in attached:
        return MappingProxyType({**attached, own.config.kind: own})
    return attached


def sight_of(components: Any) -> Sight:
    """See `Components.sight`."""
    # Weights in the folder bring their own, and may not have been asked for yet.
    components.attached.of(components, GROUNDING.name)
    own = Sight(*(components.named.get(name) for name in Sight._fields))
    if own.processor is None:
        own = own._replace(processor=components.feature_extractor)
    return components.attached.brought.get(GROUNDING.name, NO_SIGHT).over(own)


def _read_grounding(
    components: Any,
    source: Any,
    *,
    image_encoder: Any = None,
    image_project: Any = None,
    processor: Any = None,
    subfolder: str = "",
    **options: Any,
) -> tuple[str, Grounding]:
    """Grounding weights, and what sees pictures for them. Of the family's own folder the image
    tower gives features in the space of phrases, unless an `image_project` stands beside it."""
    unet, sight = components.unet, NO_SIGHT
    if isinstance(source, Grounding):
        network = source
    else:
        checks.path("source", source)
        network = load_grounding(source, unet, subfolder=subfolder or None, **options)
        if Path(source).is_dir():
            sight = _sight_in(Path(source), unet)
            own = own_folder(components.source)
            if own is not None and own == Path(source).parent:
                project = _sight_in(own, unet).image_project
                sight = Sight(None, project or _as_it_is, None)
    network.require_fit(unet)
    sight = Sight(image_encoder, image_project, processor).over(sight)
    if any(part is not None for part in sight):
        components.attached.bring(components, GROUNDING.name, sight)
    return network.config.kind, network


GROUNDING = register_adapter(AdapterKind("grounding", "grounding", _read_grounding, save_grounding))


class Groundable(Adaptable):
    """The methods of pipelines about grounding weights."""

    @property
    def sight(self) -> Sight:
        """What makes features of images in boxes: given with the weights, or components."""
        return self.parts.sight

    @property
    def groundings(self) -> Networks:
        """Grounding weights by kind ("text", "text-image", "keypoints", ...): those attached, and
        those which a gated UNet has in itself."""
        return self.parts.groundings

    @checked
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
        what = {"kind": kind, "variant": variant, "subfolder": subfolder, "dtype": dtype, **hub}
        sight = Sight(image_encoder, image_project, processor)._asdict()
        self.parts.attached.load(self.parts, GROUNDING.name, source, {**what, **sight})

    def unload_grounding(self, kind: str | None = None) -> None:
        """Detach the grounding weights of a kind, or all: calls then give the bits they gave before
        these were attached. Those inside a gated UNet stay.

        Raises:
            InputError: none of this kind is attached.
        """
        self.unload_adapter(GROUNDING.name, kind)

    def save_grounding(self, target: str | Path, kind: str | None = None) -> None:
        """Write grounding weights alone, as `load_grounding` reads them: a folder, or one file if
        the name ends with `.safetensors`.

        Args:
            kind: which, where there are several.

        Raises:
            InputError: there are none, or several and `kind` does not say which.
        """
        write_adapter(GROUNDING, self.groundings, target, kind)


def _sight_in(folder: Path, unet: Any) -> Sight:
    """What a GLIGEN pipeline's folder holds for images in boxes."""
    if not (folder / "image_project").is_dir():
        return NO_SIGHT
    like = {"dtype": unet.dtype, "device": unet.device, "backend": unet.nn.name}
    return Sight(
        CLIPVisionModelWithProjection.from_pretrained(folder, subfolder="image_encoder", **like),
        CLIPImageProjection.from_pretrained(folder, subfolder="image_project", **like),
        CLIPProcessor.from_pretrained(folder, subfolder="processor"),
    )


def _as_it_is(features: Any) -> Any:
    return features
