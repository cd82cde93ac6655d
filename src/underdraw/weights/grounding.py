"""Grounding parts in files: folders, GLIGEN's original checkpoints, adapters without their UNet.

What a checkpoint was made for (kind, widths, sizes) is told by names and shapes. Reading is strict
in both directions: what is neither of the grounding part nor known to stand beside it is an error.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from underdraw.errors import InputError, UnderdrawError, WeightError
from underdraw.formats import json_text
from underdraw.formats.opening import map_file
from underdraw.formats.pickles import read_pickle
from underdraw.formats.stored import Checkpoint, StoredTensor
from underdraw.networks import unet as network
from underdraw.networks.config import UNetConfig, read
from underdraw.networks.gligen.config import (
    ATTENTION_TYPES,
    INPAINTING_CHANNELS,
    KINDS,
    MAPS,
    GroundingConfig,
)
from underdraw.networks.gligen.sites import layout
from underdraw.schema import within
from underdraw.shown import shown
from underdraw.weights import architecture, folders, key_tables as keys, single_file
from underdraw.weights.files import open_checkpoint
from underdraw.weights.known_keys import GROUNDING_FILE, reason
from underdraw.weights.match import match
from underdraw.weights.quantised import as_floats

Tensors = Mapping[str, StoredTensor]

METADATA = "underdraw.grounding"
"""Under this name an adapter file carries its config, as JSON."""
HEADS = 8
"""Of Stable Diffusion 1.x; no shape tells them."""
SD1_LEVELS, SD1_LAYERS = (True, True, True, False), 2


class Found(NamedTuple):
    """A grounding part that was found, its tensors still unread."""

    config: GroundingConfig
    tensors: dict[str, StoredTensor]


def read_grounding(
    source: str | os.PathLike[str],
    unet: UNetConfig | None = None,
    *,
    kind: str | None = None,
    variant: str | None = None,
    subfolder: str = "",
    name: str = "",
) -> Found:
    """The grounding part in a folder or file.

    Args:
        source: a folder of a grounding part, of a gated UNet or of a GLIGEN pipeline; a checkpoint
            of the original (`.bin`, `.pth`; read without running code); a file that holds the
            grounding part alone (`.safetensors`), under the folder's names or the original's.
        unet: the UNet it is wanted for; tells what shapes do not (heads, blocks). Without it the
            blocks of Stable Diffusion 1.x are expected.
        kind: what it is for, where names do not tell: "canny" and "depth" look alike.
        name: of the repository it was downloaded from, which may tell, as file names may.

    Raises:
        NotFoundError: there is no such folder or file, or no weights in it.
        WeightError: it holds no grounding layers, not all of them, or something unknown.
        InputError: `kind` is not known, is another than that of the weights, or is needed.
    """
    if kind is not None and kind not in KINDS:
        raise InputError(f"kind={shown(kind)} is not known; allowed: {', '.join(map(repr, KINDS))}")
    path = Path(source)
    try:
        if path.is_file():
            return _from_file(open_checkpoint(path), unet, kind, name or str(path))
        return _from_folder(path, unet, kind, variant, subfolder, name or str(path))
    except WeightError as error:
        told = str(error)
        raise WeightError(told if told.startswith(str(path)) else f"{path}: {told}") from error
    except (LookupError, ArithmeticError, ValueError) as error:
        if isinstance(error, UnderdrawError):
            raise
        raise WeightError(f"{path}: names and shapes are no grounding part's ({error})") from error


def _from_folder(
    path: Path,
    unet: UNetConfig | None,
    kind: str | None,
    variant: str | None,
    subfolder: str,
    name: str,
) -> Found:
    if not subfolder and (path / folders.MODEL_INDEX).exists():
        subfolder = "unet"
    place = path / subfolder
    if not (place / "config.json").exists():
        files = folders.component_files(path, subfolder, variant)
        return _from_file(Checkpoint(folders.open_weights(place, files), {}), unet, kind, name)
    raw, tensors = folders.open_component(path, subfolder, variant)
    if raw.get("_class_name") == "Grounding":
        with within(place):
            config = read(GroundingConfig, raw)
        _same_kind(kind, config.kind)
        return Found(config, _matched(config, tensors))
    with within(place):
        own = read(UNetConfig, raw)
    if own.attention_type not in ATTENTION_TYPES:
        raise WeightError(_no_grounding(tensors, own.attention_type))
    base = set(network.layout(own).shapes)
    return _named(tensors, base, unet, kind, name, beside=own)


def _from_file(
    checkpoint: Checkpoint, unet: UNetConfig | None, kind: str | None, source: str
) -> Found:
    tensors = as_floats(checkpoint.tensors)
    if written := checkpoint.metadata.get(METADATA):
        source = f"metadata {METADATA!r}"
        raw = json_text.parse(str(written), source, told=" is not readable as JSON")
        try:
            config = read(GroundingConfig, raw)
        except (ValueError, TypeError, AttributeError) as error:
            raise WeightError(f"metadata {METADATA!r} is not readable: {error}") from error
        _same_kind(kind, config.kind)
        return Found(config, _matched(config, tensors))
    if not any(re.search(r"(^|\.)(fuser|position_net)\.", name) for name in tensors):
        raise WeightError(_no_grounding(tensors))
    prefix = next(
        (p for p in PREFIXES if any(n.startswith(f"{p}position_net.") for n in tensors)), ""
    )
    inside = {name: tensors[full] for name, full in keys.below(prefix, tensors).items()}
    left = [
        name
        for name in tensors
        if not name.startswith(prefix) and reason(GROUNDING_FILE, name) is None
    ]
    if any(name.startswith(("down_blocks.", "mid_block.", "up_blocks.")) for name in inside):
        beside = {n for n in inside if ".fuser." not in n}
        base = {n for n in beside if reason(_BASE_OF_FOLDERS, n) is not None}
        return _named(inside, base, unet, kind, source, left=left)
    table = _table(inside, unet)
    named, base = {}, set()
    for name, tensor in inside.items():
        new = keys.rename(name, table)
        if new is None:
            if prefix or reason(GROUNDING_FILE, name) is None:
                left.append(prefix + name)
            continue
        named[new] = tensor
        if ".fuser." not in name and not name.startswith(("position_net.", "downsample_net.")):
            base.add(new)
    expected = {place for place in table.values() if re.search(r"\.attentions\.\d+$", place)}
    return _named(named, base, unet, kind, source, left=left, expected=expected)


PREFIXES = ("model.diffusion_model.", "model.", "state_dict.")
_BASE_OF_FOLDERS = tuple(
    known for known in GROUNDING_FILE if known.pattern.startswith("(down_blocks|")
)


def _table(inside: Tensors, unet: UNetConfig | None) -> keys.Table:
    """Original names to those of a folder: of the UNet at hand, of the one in the file, or SD 1."""
    if unet is not None:
        table = single_file.table_of("unet", unet.to_dict())
    elif "input_blocks.1.0.in_layers.2.weight" in inside:
        table = single_file.table_of("unet", architecture.unet_config(inside, "sd1", 64))
    else:
        table = keys.unet_table(SD1_LEVELS, SD1_LAYERS)
    return table | {"downsample_net": "downsample_net"}


def _named(
    tensors: Tensors,
    base: set[str],
    unet: UNetConfig | None,
    kind: str | None,
    source: str,
    *,
    left: list[str] | None = None,
    expected: set[str] | None = None,
    beside: UNetConfig | None = None,
) -> Found:
    """From tensors under the names of a folder; `base` are those of the UNet `beside` them."""
    config = _config(tensors, beside or unet, kind, source)
    config = replace(config, **_first_convolution(tensors, config.kind, unet))
    if expected is not None or beside is not None:
        wanted = expected or {place.rpartition(".transformer")[0] for place in _blocks(base)}
        there = {place.rpartition(".transformer")[0] for place, _, _ in config.fusers}
        if lacking := sorted(wanted - there):
            raise WeightError(f"{len(lacking)} attentions have no fuser: {', '.join(lacking[:5])}")
    own = {"conv_in.weight", "conv_in.bias"} if config.extra_channels else set()
    part = {n: t for n, t in tensors.items() if n in own or n not in base}
    # What is unknown in the file is told together with what does not fit.
    part |= dict.fromkeys(left or (), _UNKNOWN)
    return Found(config, _matched(config, part))


_UNKNOWN = StoredTensor("float32", (), lambda: np.zeros(()))


def _blocks(names: set[str]) -> set[str]:
    return {
        n[: -len(".norm1.weight")]
        for n in names
        if n.endswith(".norm1.weight") and "." in n and ".transformer_blocks." in n
    }


def _config(
    tensors: Tensors, unet: UNetConfig | None, kind: str | None, source: str
) -> GroundingConfig:
    """What a grounding part is made of, from its names and shapes."""

    def shape(name: str) -> tuple[int, ...]:
        if name not in tensors:
            raise WeightError(f"tensor {name!r} is missing")
        return tensors[name].shape

    net = "position_net."
    kind = _kind(tensors, kind, source)
    fusers = _fusers(tensors, unet)
    first = shape(f"{net}{'linears_text' if kind == 'text-image' else 'linears'}.0.weight")
    token_width = shape(f"{fusers[0][0]}.fuser.linear.weight")[1]
    fields: dict[str, Any] = {"hidden_width": first[0], "phrase_width": token_width}
    if kind == "keypoints":
        fields["people"] = shape(f"{net}person_embeddings")[0]
        fields["frequencies"] = shape(f"{net}null_xy_feature")[0] // 4
    elif kind in MAPS:
        fields |= _sizes(tensors, kind)
    else:
        feature = "null_positive_feature" if kind == "text" else "null_text_feature"
        fields["phrase_width"] = shape(net + feature)[0]
        fields["frequencies"] = shape(f"{net}null_position_feature")[0] // 8
    return GroundingConfig(kind, fusers, token_width, **fields)


def _fusers(tensors: Tensors, unet: UNetConfig | None) -> tuple[tuple[str, int, int], ...]:
    known: dict[str, int] = {}
    if unet is not None:
        known = {place: heads for place, _, heads in GroundingConfig.for_unet(unet, "text").fusers}
    end = ".fuser.linear.weight"
    places = [name[: -len(end)] for name in tensors if name.endswith(end)]
    if not places:
        raise WeightError("no fuser is inside; those are the gated self-attentions of GLIGEN")
    order = {place: i for i, place in enumerate(known)}
    places.sort(key=lambda place: (order.get(place, len(order)), place))
    return tuple((p, tensors[p + end].shape[0], known.get(p) or HEADS) for p in places)


def _kind(tensors: Tensors, kind: str | None, source: str) -> str:
    signs = (
        ("position_net.linears_text.0.weight", ("text-image",)),
        ("position_net.person_embeddings", ("keypoints",)),
        ("position_net.in_conv.weight", ("semantic",)),
        ("position_net.null_positive_feature", ("text",)),
    )
    told = next((kinds for name, kinds in signs if name in tensors), None)
    if told is None:
        if not any(n.startswith("position_net.convnext_tiny_backbone.") for n in tensors):
            raise WeightError("the position network is of no kind that is known")
        layer = tensors.get("downsample_net.layers.0.weight")
        if layer is None:
            told = ("hed",)
        else:
            told = ("normal",) if layer.shape[1] == 3 else ("canny", "depth")
    if kind is None and len(told) > 1:
        # Published, they are called so: .../gligen-generation-canny/diffusion_pytorch_model.bin.
        for part in Path(source).parts[:-3:-1]:
            if len(named := [k for k in told if k in part.lower()]) == 1:
                return named[0]
        raise InputError(
            "kind=None; weights for Canny edges and for depth look alike: give kind='canny' or "
            "kind='depth'"
        )
    if kind is not None and kind not in told:
        _same_kind(kind, " or ".join(told))
    return kind or told[0]


def _same_kind(asked: str | None, there: str) -> None:
    if asked is not None and asked != there:
        raise InputError(f"kind={asked!r}; these grounding weights are of kind {there!r}")


def _sizes(tensors: Tensors, kind: str) -> dict[str, Any]:
    """Of the image encoder of a map."""
    net, widths, depths = "position_net.convnext_tiny_backbone", [], []
    while (found := tensors.get(f"{net}.stages.{len(widths)}.0.gamma")) is not None:
        depth = 0
        while f"{net}.stages.{len(widths)}.{depth}.gamma" in tensors:
            depth += 1
        widths.append(found.shape[0])
        depths.append(depth)
    position = tensors.get("position_net.pos_embedding")
    if position is None or not widths:
        raise WeightError("the image encoder of the map has no blocks or no positions")
    side = round(position.shape[1] ** 0.5)
    sizes = {
        "backbone_widths": tuple(widths),
        "backbone_depths": tuple(depths),
        "resize": side * 2 * 2 ** len(widths),
    }
    if kind == "semantic":
        sizes["classes"] = tensors["position_net.in_conv.weight"].shape[1]
    return sizes


def _first_convolution(tensors: Tensors, kind: str, unet: UNetConfig | None) -> dict[str, Any]:
    """Whether the part has one: maps always, an inpainting part where the base has none."""
    first = tensors.get("conv_in.weight")
    extra = 0
    if kind in MAPS:
        layer = tensors.get("downsample_net.layers.2.weight")
        extra = 1 if layer is None else layer.shape[0]
    elif first is not None and first.shape[1] == 4 + INPAINTING_CHANNELS:
        extra = INPAINTING_CHANNELS if unet is None or unet.in_channels == 4 else 0
    if not extra:
        return {}
    if first is None:
        raise WeightError("tensor 'conv_in.weight' is missing: the first convolution of the map")
    return {
        "in_channels": first.shape[1] - extra,
        "extra_channels": extra,
        "first_width": first.shape[0],
        "first_kernel": first.shape[2],
    }


def _matched(config: GroundingConfig, tensors: Tensors) -> dict[str, StoredTensor]:
    return match(layout(config).shapes, tensors, source=f"grounding weights ({config.kind})")


def _no_grounding(tensors: Tensors, attention_type: str | None = None) -> str:
    what = "an ordinary UNet" if attention_type else "some other file"
    if any(re.search(r"(^|\.)(input_blocks|down_blocks)\.", name) for name in tensors):
        what = "an ordinary UNet or checkpoint"
    if any("lora" in name for name in tensors):
        what = "a LoRA"
    said = f" (attention_type={attention_type!r})" if attention_type else ""
    return (
        f"no grounding layers inside{said}: none of its {len(tensors)} tensors is called "
        f"'position_net.*' or '*.fuser.*', so this is {what}, not a GLIGEN checkpoint"
    )


def read_projection(path: str | os.PathLike[str]) -> StoredTensor:
    """GLIGEN's `projection_matrix` file: a square matrix P; image features become `x @ P`.

    It comes with the original apart from the checkpoints and has no suffix.

    Raises:
        NotFoundError, WeightError: no file, or not one square matrix.
    """
    path = Path(path)
    checkpoint = open_checkpoint(path) if path.suffix or not path.is_file() else None
    tensors = (checkpoint or read_pickle(path, map_file(path))).tensors
    only = next(iter(tensors.values()))
    if len(tensors) != 1 or len(only.shape) != 2 or only.shape[0] != only.shape[1]:
        shapes = [tensor.shape for tensor in tensors.values()][:5]
        raise WeightError(f"{path}: a single square matrix was expected, not tensors of {shapes}")
    return only
