"""What is attached beside a pipeline's networks, which it never touches: one mechanism for all
kinds, and grounding weights as one of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from types import MappingProxyType
from typing import Any, NamedTuple

from underdraw import checks
from underdraw.arguments import checked
from underdraw.errors import InputError
from underdraw.models import CLIPImageProjection, CLIPVisionModelWithProjection, Grounding
from underdraw.models.grounding_files import load_grounding, save_grounding
from underdraw.pipelines.components.processor import CLIPProcessor
from underdraw.weights import hub as hubs
from underdraw.weights.replacing import settle

LOG = logging.getLogger(__name__)


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


@dataclass(frozen=True)
class AdapterKind:
    """A kind of weights that are attached beside a pipeline's networks, for controls to use."""

    name: str
    """As `pipe.load_adapter` takes it, and `components.adapters` lists it."""
    folder: str
    """Where in a pipeline's own folder such weights lie; they are attached as soon as somebody
    asks."""
    read: Callable[..., tuple[str, Any]]
    """`(components, source, **options) -> (name, network)`: opens what users name, checks that it
    fits the UNet, and says by what name it is known among its kind."""
    write: Callable[[Any, Any], None]
    """`(network, target)`: writes it so that `read` takes it back."""


KINDS: dict[str, AdapterKind] = {}
"""By name; filled by `register_adapter`."""


def register_adapter(kind: AdapterKind) -> AdapterKind:
    """Let pipelines load weights of one more kind.

    Raises:
        InputError: there is another one of this name.
    """
    if KINDS.setdefault(kind.name, kind) != kind:
        raise InputError(f"kind={kind.name!r} of adapters is there already")
    return kind


Networks = Mapping[str, Any]
"""Attached networks of a kind, by name."""


class Attached:
    """What was attached to the `components` of a pipeline, which are an argument."""

    by_kind: Mapping[str, Networks] = MappingProxyType({})
    """By kind of adapter; a kind is missing until somebody asks for it. Replaced at each change and
    never changed in place, so that runs in other threads keep what they began with."""
    given: Sight = NO_SIGHT
    """What makes features of pictures for grounding weights."""

    def __init__(self) -> None:
        # Reentrant: what is read may attach what sees pictures for it.
        self._lock = RLock()

    def __getstate__(self) -> Any:
        """For copies and pickles: each has a lock of its own."""
        state = dict(vars(self))
        del state["_lock"]
        state["by_kind"] = {kind: dict(networks) for kind, networks in self.by_kind.items()}
        return state

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        Attached.__init__(self)
        frozen = {kind: MappingProxyType(found) for kind, found in state["by_kind"].items()}
        vars(self).update(state, by_kind=MappingProxyType(frozen))

    @property
    def networks(self) -> tuple[Any, ...]:
        """Networks of all kinds, without looking for more."""
        return tuple(one for networks in self.by_kind.values() for one in networks.values())

    @property
    def parts(self) -> tuple[Any, ...]:
        """All that is attached, without looking for more."""
        return (*self.networks, *self.given)

    def of(self, components: Any, kind: str) -> Networks:
        """Networks of a kind; weights in its folder of the pipeline's own folder are among them.

        Raises:
            InputError: the kind is not known.
        """
        known = adapter_kind(kind)
        with self._lock:  # weights of the folder are read once, whoever asks first
            if kind not in self.by_kind:
                found, folder = {}, own_folder(components.source)
                if folder is not None:
                    settle(folder / known.folder)
                if folder is not None and (folder / known.folder / "config.json").exists():
                    given = self.given
                    name, network = known.read(components, folder / known.folder)
                    found, self.given = {name: network}, given.over(self.given)
                self._set(components, kind, found)
            return self.by_kind[kind]

    def load(self, components: Any, kind: str, source: Any, /, **options: Any) -> None:
        """Read a network and attach it, after those of the pipeline's own folder, so that what
        comes of it does not depend on whether somebody asked for these before.

        Raises:
            InputError: the kind is not known, or the weights were trained for another UNet.
            NotFoundError, WeightError: there are none, or they are damaged.
        """
        self.of(components, kind)
        name, network = adapter_kind(kind).read(components, source, **options)
        self.attach(components, kind, name, network)

    def attach(self, components: Any, kind: str, name: str, network: Any) -> None:
        """Add a network; another one of this kind and name goes."""
        with self._lock:
            self._set(components, kind, {**self.of(components, kind), name: network})
        LOG.info("attached: %s %r", kind, name)

    def detach(self, components: Any, kind: str, name: str | None) -> None:
        """Remove the network of a name, or all of a kind.

        Raises:
            InputError: none of this name is attached.
        """
        with self._lock:
            there = dict(self.of(components, kind))
            if name is not None and not checks.is_one_of(name, tuple(there)):
                listed = ", ".join(map(repr, there)) or "none"
                raise InputError(
                    f"name or kind={checks.shown(name)} is not attached; attached: {listed}"
                )
            for gone in [name] if name is not None else list(there):
                del there[gone]
            self._set(components, kind, there)

    def see(self, components: Any, sight: Sight) -> None:
        """Use these networks for features of pictures."""
        self.given = sight
        if components.offload is not None:
            components.offload.bring_home(*sight)

    def _set(self, components: Any, kind: str, networks: Networks) -> None:
        self.by_kind = MappingProxyType({**self.by_kind, kind: MappingProxyType(dict(networks))})
        if components.offload is not None:
            components.offload.bring_home(*networks.values())


def adapter_kind(name: Any) -> AdapterKind:
    """A kind of adapters by its name.

    Raises:
        InputError: it is not known.
    """
    if not checks.is_one_of(name, tuple(KINDS)):
        allowed = ", ".join(map(repr, sorted(KINDS)))
        raise InputError(f"kind={checks.shown(name)} of adapters is not known; allowed: {allowed}")
    return KINDS[name]


# -- grounding weights -----------------------------------------------------------------------------
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
    return components.attached.given.over(own)


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
        components.attached.see(components, sight)
    return network.config.kind, network


GROUNDING = register_adapter(AdapterKind("grounding", "grounding", _read_grounding, save_grounding))


class Adaptable:
    """The methods of pipelines about what is attached beside their networks."""

    parts: Any
    """`Components`"""

    @property
    def adapters(self) -> Mapping[str, Networks]:
        """What is attached, by kind and name."""
        return MappingProxyType(
            {kind: self.parts.attached.of(self.parts, kind) for kind in sorted(KINDS)}
        )

    @checked
    def load_adapter(self, kind: str, source: Any, **options: Any) -> None:
        """Attach weights of a kind ("grounding", or one of `register_adapter`); others of the same
        kind and name go. `source` and `options` are as the kind takes them; `load_grounding` tells
        those of grounding weights.

        Raises:
            InputError: the kind is not known, or the weights were trained for another UNet.
            NotFoundError, WeightError: there are none, or they are damaged.
        """
        self.parts.attached.load(self.parts, kind, source, **options)

    def unload_adapter(self, kind: str, name: str | None = None) -> None:
        """Detach the weights of a name, or all of a kind: calls then give the bits from before.

        Raises:
            InputError: none of this name is attached.
        """
        self.parts.attached.detach(self.parts, kind, name)
        if kind == GROUNDING.name and not self.parts.attached.of(self.parts, kind):
            self.parts.attached.see(self.parts, NO_SIGHT)

    def save_adapter(self, kind: str, target: str | Path, name: str | None = None) -> None:
        """Write weights of a kind as `load_adapter` reads them; `name` says which of several.

        Raises:
            InputError: there are none, or several and `name` does not say which.
        """
        _write(adapter_kind(kind), self.parts.attached.of(self.parts, kind), target, name)

    # -- grounding weights under their familiar names --------------------------------------------
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
        self.parts.attached.load(self.parts, GROUNDING.name, source, **what, **sight)

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
        _write(GROUNDING, self.groundings, target, kind)


def _write(kind: AdapterKind, there: Networks, target: Any, name: str | None) -> None:
    if name is None and len(there) == 1:
        name = next(iter(there))
    checks.path("target", target)
    if not checks.is_one_of(name, tuple(there)):
        listed = ", ".join(map(repr, there)) or "none"
        raise InputError(
            f"name or kind={checks.shown(name)}; allowed: kinds of the {kind.name} weights, "
            f"{listed}"
        )
    assert name is not None  # which is none of them
    kind.write(there[name], target)


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


def own_folder(source: str | None) -> Path | None:
    """Where a pipeline was loaded from, if that is a folder of this machine."""
    if source == hubs.SCENES:
        return hubs.scenes_folder()
    return Path(source) if source is not None and Path(source).is_dir() else None


def _as_it_is(features: Any) -> Any:
    return features
