"""IP-Adapters, attached beside a UNet under names: a kind of adapters."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from underdraw import checks
from underdraw.controls.image_prompt import KIND
from underdraw.controls.seeing import width_of
from underdraw.errors import InputError, NotFoundError
from underdraw.models import CLIPVisionModelWithProjection, IPAdapter, save_ip_adapter
from underdraw.models.keywords import drop_neutral
from underdraw.pipelines.components.accepting import accepted
from underdraw.pipelines.components.adapters import AdapterKind, register_adapter
from underdraw.pipelines.components.lora_mix import NEUTRAL
from underdraw.pipelines.components.registry import uncompiled
from underdraw.weights import folders, hub as hubs
from underdraw.weights.files import SUFFIXES
from underdraw.weights.ip_adapter import LAYERS, PROJECTION, read_ip_adapter
from underdraw.weights.locate import find_in
from underdraw.weights.lora.reading import as_checkpoint
from underdraw.weights.lora.scales import Scales

LOG = logging.getLogger(__name__)
ARGUMENT = "pretrained_model_name_or_path_or_dict"
FILES = ("ip_adapter.safetensors", "ip_adapter.bin", "pytorch_model.bin")
"""Names that the file of a folder has where nobody says."""
ENCODER = "image_encoder"
ImageScales = Mapping[str, tuple[Scales, ...]]


class Opened(NamedTuple):
    """What a source holds."""

    name: str
    """That it is to be known by; "" where nothing says one."""
    adapter: IPAdapter
    tower: CLIPVisionModelWithProjection | None
    """The image tower beside it, where the pipeline has none that serves."""


def open_ip_adapter(
    components: Any,
    source: Any,
    *,
    name: str | None = None,
    weight_name: str | None = None,
    subfolder: str = "",
    image_encoder: Any = None,
    image_encoder_folder: str | None = ENCODER,
    shortcut: bool | None = None,
    **hub: Any,
) -> Opened:
    """An IP-Adapter, the name it is to be known by, and the image tower beside it."""
    if name is not None:
        checks.texts("name", name)
    for argument, given in (("weight_name", weight_name), ("subfolder", subfolder or None)):
        if given is not None:
            checks.path(argument, given)
    if image_encoder_folder is not None:
        checks.path("image_encoder_folder", image_encoder_folder)
    if shortcut is not None:
        checks.flag("shortcut", shortcut)
    access = drop_neutral("load_ip_adapter", hub, NEUTRAL)
    unet = uncompiled(components.unet)
    like = {"dtype": unet.dtype, "device": components.unet.device, "backend": unet.nn.name}
    root: tuple[Any, str] | None = None
    if isinstance(source, IPAdapter):
        adapter, own = source, "ip_adapter"
        if adapter.nn.name != unet.nn.name:
            raise InputError(
                f"{ARGUMENT} is on the backend {adapter.nn.name!r}, the UNet on {unet.nn.name!r}; "
                "allowed: the same"
            )
        adapter.config.require_fit(unet.config)
    elif isinstance(source, Mapping):
        held = as_checkpoint(_flat(source), ARGUMENT)
        found = read_ip_adapter(held, unet.config, shortcut=shortcut, where=ARGUMENT)
        adapter, own = IPAdapter.from_tensors(found.config, found.tensors, check=True, **like), ""
    else:
        checks.path(ARGUMENT, source)
        place = Path(source) / subfolder
        if weight_name is None and _is_own(place):
            adapter = IPAdapter.from_pretrained(place, check=True, **like)
            adapter.config.require_fit(unet.config)
            own = place.name
        else:
            file = find_in(source, FILES, weight_name, subfolder, **access)
            found = read_ip_adapter(file, unet.config, shortcut=shortcut)
            adapter = IPAdapter.from_tensors(found.config, found.tensors, check=True, **like)
            own = file.stem
        whole = Path(source).is_file() or os.fspath(source).endswith(SUFFIXES)
        root = (Path(source).parent, "") if whole else (source, subfolder)
    if image_encoder is None:
        image_encoder = _beside(components, adapter, root, image_encoder_folder, like, access)
    else:
        image_encoder = accepted(ENCODER, image_encoder)
    return Opened(name or own, adapter, image_encoder)


def _is_own(place: Path) -> bool:
    """Whether a folder holds an IP-Adapter of ours."""
    if not (place / "config.json").is_file():
        return False
    return folders.read_config(place, "").get("_class_name") == IPAdapter.__name__


def _flat(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict without its two levels, as files of safetensors have it."""
    parts = {PROJECTION: tensors.get(PROJECTION[:-1]), LAYERS: tensors.get(LAYERS[:-1])}
    found = {name: value for name, value in tensors.items() if f"{name}." not in parts}
    for start, inner in parts.items():
        if isinstance(inner, Mapping):
            found |= {f"{start}{name}": value for name, value in inner.items()}
        elif inner is not None:
            raise InputError(f"{ARGUMENT}: {start[:-1]}={checks.shown(inner)} is no state dict")
    return found


def free(components: Any, name: str) -> str:
    """This name, or with a number behind it one that no attached IP-Adapter has."""
    there = components.attached.of(components, KIND)
    names = (
        *([name] if name else ()),
        *(f"{name or 'default'}_{i}" for i in range(len(there) + 1)),
    )
    return next(one for one in names if one not in there)


def _beside(
    components: Any,
    adapter: IPAdapter,
    root: tuple[Any, str] | None,
    folder: str | None,
    like: Mapping[str, Any],
    access: Mapping[str, Any],
) -> CLIPVisionModelWithProjection | None:
    """The image tower beside a file, where one is needed, and there is one."""
    c = adapter.config
    own = components.image_encoder
    served = own is not None and width_of(own, c.pooled) == c.feature_width
    if not c.sees or served or root is None or folder is None:
        return None
    source, subfolder = root
    inside = folder if "/" in folder else str(PurePosixPath(subfolder, folder))
    try:
        if os.path.isdir(source):
            if not (Path(source) / inside / "config.json").is_file():
                raise NotFoundError(f"{Path(source) / inside}: no image tower is there")
            return CLIPVisionModelWithProjection.from_pretrained(source, subfolder=inside, **like)
        hubs.resolve(source, subfolder=inside, **access)
        return CLIPVisionModelWithProjection.from_pretrained(
            source, subfolder=inside, **like, **access
        )
    except NotFoundError as error:
        LOG.info("no image tower comes with the IP-Adapter: %s", error)
        return None


def _read(components: Any, source: Any, **options: Any) -> tuple[str, IPAdapter]:
    found = open_ip_adapter(components, source, **options)
    bring(components, found)
    name = found.name or free(components, "")
    # What was said of another one of this name is not meant for this.
    components.image_scales = {k: v for k, v in components.image_scales.items() if k != name}
    return name, found.adapter


def bring(components: Any, found: Opened) -> None:
    """Keep the image tower that came along, if any, in place of one that gives the same widths:
    what else came along sees for other IP-Adapters."""
    if (tower := found.tower) is None:
        return
    before = components.attached.brought.get(KIND, ())
    others = [one for one in before if _widths(one) != _widths(tower)]
    components.attached.bring(components, KIND, (tower, *others))


def _widths(tower: CLIPVisionModelWithProjection) -> tuple[int, ...]:
    return tuple(width_of(tower, pooled) for pooled in (True, False))


IP_ADAPTER = register_adapter(AdapterKind(KIND, "ip_adapter", _read, save_ip_adapter, beside=False))


def towers(components: Any) -> tuple[Any, ...]:
    """See `Components.towers`."""
    components.attached.of(components, KIND)  # those of the folder may not have been asked for yet
    brought = components.attached.brought.get(KIND, ())
    own = components.image_encoder
    return (*brought, *(() if own is None else (uncompiled(own),)))
