"""T2I-Adapters in files: the original's names, full and light, and a folder's."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from underdraw.errors import UnderdrawError, WeightError
from underdraw.formats.stored import Checkpoint, StoredTensor
from underdraw.networks.config import read
from underdraw.networks.t2i_adapter import FULL, LIGHT, T2IAdapterConfig, layout
from underdraw.weights.controlnet import Found, Tensors
from underdraw.weights.files import open_checkpoint
from underdraw.weights.known_keys import SINGLE_FILE, reason
from underdraw.weights.match import match
from underdraw.weights.quantised import as_floats

WRAPPER = "adapter."
"""Before the names in some files, and in a folder."""
FACTOR = 8
"""Pixels of a map per latent pixel, of all for Stable Diffusion 1 and 2."""
OTHERS = (
    (r"transformer_layes\..*|style_embedding|ln_(pre|post)\..*|proj", "a style adapter"),
    (r"(seq_proj|task_embedding|spatial_feat_mapping)(\..*)?", "the fuser of co-adapters"),
    (r"body\.\d+\.(skep|down_opt\.op)\..*", "an adapter that has convolutions in other places"),
)
"""Kinds beside them that no UNet here takes."""


def is_adapter(names: Any) -> bool:
    """Whether these are names of a T2I-Adapter's tensors, or of something published beside one."""
    return any(
        re.fullmatch(rf"({WRAPPER})?(body\.\d+\.({_INSIDE}).*|{pattern})", name)
        for name in names
        for pattern in (OTHERS[0][0], OTHERS[1][0])
    )


_INSIDE = r"block1|block2|in_conv|out_conv|body|resnets"


def read_adapter(
    source: str | os.PathLike[str] | Checkpoint, *, config: Mapping[str, Any] | None = None
) -> Found:
    """The T2I-Adapter in a file.

    Args:
        source: `.pth` (read without running code) or `.safetensors`, under the original's names,
            with `adapter` around them or not, or under a folder's.
        config: entries that replace what was found out.

    Raises:
        NotFoundError: there is no such file.
        WeightError: it holds no T2I-Adapter, not all of one, or something unknown.
    """
    if isinstance(source, Checkpoint):
        place, checkpoint = "checkpoint", source
    else:
        place, checkpoint = str(Path(source)), open_checkpoint(source)
    try:
        return _read(checkpoint, config or {})
    except WeightError as error:
        raise WeightError(f"{place}: {error}") from error
    except (LookupError, ArithmeticError, ValueError) as error:
        if isinstance(error, UnderdrawError):
            raise
        raise WeightError(f"{place}: names and shapes are no T2I-Adapter's ({error})") from error


def _read(checkpoint: Checkpoint, given: Mapping[str, Any]) -> Found:
    tensors = as_floats(checkpoint.tensors)
    inside = {name.removeprefix(WRAPPER): tensor for name, tensor in tensors.items()}
    for pattern, what in OTHERS:
        if any(re.fullmatch(pattern, name) for name in inside):
            raise WeightError(f"this is {what} of T2I-Adapter, which is not supported")
    if not is_adapter(inside):
        some = ", ".join(list(tensors)[:3])
        raise WeightError(f"no T2I-Adapter inside; {len(tensors)} tensors such as {some}")
    light = any(name.endswith(".out_conv.weight") for name in inside)
    named, sizes = (_light if light else _full)(inside)
    named = {n: t for n, t in named.items() if reason(SINGLE_FILE, n.removeprefix(WRAPPER)) is None}
    config = read(T2IAdapterConfig, {**sizes, "downscale_factor": FACTOR, **given})
    return Found(config, match(layout(config).shapes, named, source="T2IAdapter"))


def _light(inside: Tensors) -> tuple[dict[str, StoredTensor], dict[str, Any]]:
    """Under a folder's names, and what shapes tell."""
    named = {
        WRAPPER + re.sub(r"\A(body\.\d+)\.body\.", r"\1.resnets.", name): tensor
        for name, tensor in inside.items()
    }
    levels = _count(named, "adapter.body.{}.out_conv.weight")
    widths = [named[f"adapter.body.{i}.out_conv.weight"].shape[0] for i in range(levels)]
    first = named["adapter.body.0.in_conv.weight"].shape[1]
    return named, {
        "adapter_type": LIGHT,
        "channels": widths[:-1],
        "num_res_blocks": _count(named, "adapter.body.0.resnets.{}.block1.weight"),
        "in_channels": first // FACTOR**2,
    }


def _full(inside: Tensors) -> tuple[dict[str, StoredTensor], dict[str, Any]]:
    """The same. The original numbers its blocks through all levels; a level begins where the
    picture shrinks, which no name tells: all levels have as many blocks."""
    first = inside["conv_in.weight"].shape[1]
    if "body.0.resnets.0.block1.weight" in inside:
        named = {WRAPPER + name: tensor for name, tensor in inside.items()}
        blocks = _count(inside, "body.0.resnets.{}.block1.weight")
        levels = _count(inside, "body.{}.resnets.0.block1.weight")
    else:
        total = _count(inside, "body.{}.block1.weight")
        levels = 4 if total % 4 == 0 else 1
        blocks, named = total // levels, {}
        for name, tensor in inside.items():
            found = re.fullmatch(r"body\.(\d+)\.(block1|block2|in_conv)\.(.*)", name)
            if found is None:
                named[WRAPPER + name] = tensor
                continue
            i, j = divmod(int(found[1]), blocks)
            inner = "in_conv" if found[2] == "in_conv" else f"resnets.{j}.{found[2]}"
            named[f"{WRAPPER}body.{i}.{inner}.{found[3]}"] = tensor
    widths = [named[f"{WRAPPER}body.{i}.resnets.0.block1.weight"].shape[0] for i in range(levels)]
    return named, {
        "adapter_type": FULL,
        "channels": widths,
        "num_res_blocks": blocks,
        "in_channels": first // FACTOR**2,
    }


def _count(names: Any, pattern: str) -> int:
    count = 0
    while pattern.format(count) in names:
        count += 1
    return count
