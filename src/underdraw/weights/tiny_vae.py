"""Tiny autoencoders in the original's files: `taesd_encoder`, `taesd_decoder`, or both in one."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from underdraw.errors import UnderdrawError, WeightError
from underdraw.formats.stored import StoredTensor
from underdraw.networks.config import read
from underdraw.networks.tiny_vae import TinyVAEConfig
from underdraw.weights.files import open_tensors

Tensors = Mapping[str, StoredTensor]
HALVES = ("encoder", "decoder")
NUMBERED = re.compile(
    r"(?:(?:first_stage_model|vae|model)\.)?(?:(?:taesd_)?(encoder|decoder)\.)?(?:layers\.)?"
    r"(\d+)\.(.+)"
)
BESIDE = re.compile(r"(?:.*\.)?(?:vae_scale|vae_shift)")
"""Numbers that some programs add, of how their own latents are scaled."""


class Found(NamedTuple):
    """What was read: a config, and tensors under a folder's names."""

    config: TinyVAEConfig
    tensors: dict[str, StoredTensor]


def partner(path: str | os.PathLike[str]) -> Path | None:
    """The file of the other half beside one, as the two are published."""
    here = Path(path)
    for one, other in (HALVES, HALVES[::-1]):
        if one in here.name:
            there = here.with_name(here.name.replace(one, other))
            return there if there.is_file() else None
    return None


def read_tiny_vae(*paths: str | os.PathLike[str]) -> Found:
    """The tiny autoencoder in files of the original, or of a folder: both halves, or the decoder.

    Raises:
        NotFoundError: there is no such file.
        WeightError: they hold none, its encoder alone, or something unknown.
    """
    found: dict[str, dict[int, dict[str, StoredTensor]]] = {}
    for path in paths:
        try:
            for half, layers in _halves(open_tensors(path)).items():
                found.setdefault(half, layers)
        except WeightError as error:
            raise WeightError(f"{path}: {error}") from error
    place = " and ".join(map(str, paths))
    if "decoder" not in found:
        raise WeightError(f"{place}: only the encoder of a tiny autoencoder; its decoder is needed")
    try:
        fields: dict[str, Any] = {"encodes": "encoder" in found}
        for half, layers in found.items():
            fields |= _fields(half, layers)
        config = read(TinyVAEConfig, fields)
    except WeightError as error:
        raise WeightError(f"{place}: {error}") from error
    except UnderdrawError as error:
        raise WeightError(f"{place}: {NONE} ({error})") from error
    tensors = {
        f"{half}.layers.{number}.{name}": tensor
        for half, layers in found.items()
        for number, layer in layers.items()
        for name, tensor in layer.items()
    }
    return Found(config, tensors)


NONE = "names and shapes are not those of a tiny autoencoder (TAESD)"


def _halves(tensors: Tensors) -> dict[str, dict[int, dict[str, StoredTensor]]]:
    """By half its layers by number, as a folder has them."""
    halves: dict[str, dict[int, dict[str, StoredTensor]]] = {}
    for name, tensor in tensors.items():
        match = NUMBERED.fullmatch(name)
        if match is None:
            if BESIDE.fullmatch(name):
                continue
            raise WeightError(f"{NONE}: {name}")
        half, number, rest = match.groups()
        layers = halves.setdefault(half or "", {})
        layers.setdefault(int(number), {})[rest] = tensor
    if set(halves) == {""}:  # its first layer is a convolution, or the bounding of latents
        halves = {"encoder" if 0 in halves[""] else "decoder": halves[""]}
    if not halves or "" in halves:
        raise WeightError(NONE)
    if 0 not in (decoder := halves.get("decoder", {0: {}})):
        # The original counts the bounding of latents as the first layer.
        halves["decoder"] = {number - 1: layer for number, layer in decoder.items()}
    return halves


def _fields(half: str, layers: Mapping[int, Tensors]) -> dict[str, Any]:
    """Config fields of a half, from its layers."""
    convolutions = [number for number in sorted(layers) if "weight" in layers[number]]
    if len(convolutions) < 2 or convolutions[0] != 0:
        raise WeightError(NONE)
    first, last = (layers[number]["weight"].shape for number in (0, convolutions[-1]))
    if len(first) != 4 or len(last) != 4:
        raise WeightError(NONE)
    blocks = [
        sum(1 for number in layers if start < number < stop)
        for start, stop in pairwise(convolutions)
    ]
    outer = "in_channels" if half == "encoder" else "latent_channels"
    inner = "latent_channels" if half == "encoder" else "out_channels"
    return {
        f"num_{half}_blocks": blocks,
        f"{half}_block_out_channels": [first[0]] * len(blocks),
        outer: first[1],
        inner: last[0],
    }
