"""LoRAs merged into the tensors of a checkpoint, one after another as they are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from underdraw import backends
from underdraw.backends.deltas import Delta, naming, together
from underdraw.backends.layout import Leaf
from underdraw.checkpoints.sources import NETWORKS, Source
from underdraw.errors import InputError, WeightError
from underdraw.formats.stored import StoredTensor
from underdraw.networks.config import read
from underdraw.weights.dtypes import numbers_of
from underdraw.weights.lora.places import Places, places
from underdraw.weights.lora.reading import read_lora

BACKEND = "torch"
"""That computes what differences are to weights."""
PARTS = ("unet", "text_encoder")


def merged_loras(
    source: Source,
    networks: dict[str, dict[str, StoredTensor]],
    files: Sequence[tuple[str, float]],
    tell: Callable[[str], None],
) -> dict[str, dict[str, StoredTensor]]:
    """The networks with the LoRAs of files, each times its scale, in their weights; unread.

    Raises:
        InputError: there is no UNet for them.
        NotFoundError, WeightError: a file is not there, or does not fit the networks.
    """
    if not files:
        return networks
    found = places_of(source)
    framework = backends.get(BACKEND)
    deltas: dict[str, list[dict[str, Delta]]] = {name: [] for name in PARTS}
    for file, scale in files:
        read_in = read_lora(file, found, framework.array)
        for name in PARTS:
            there = getattr(read_in, name)
            deltas[name].append({path: delta.weighed(scale) for path, delta in there.items()})
        if read_in.embeddings:
            tell(
                f"{file} brings words ({', '.join(read_in.embeddings)}), which weights do not hold"
            )
    made = dict(networks)
    for name in PARTS:
        for path, delta in together(*deltas[name]).items():
            leaf = found.layouts[name].leaves[path]
            weight = networks[name][f"{path}.weight"]
            made[name] = dict(made[name])
            for which, key in enumerate(leaf.tensors(path)):
                load = partial(
                    _changed, f"{name}.{path}", delta, leaf, weight, networks[name][key], which
                )
                made[name][key] = StoredTensor("float32", networks[name][key].shape, load)
    return made


def places_of(source: Source) -> Places:
    """Where LoRAs have their layers in the networks of a checkpoint.

    Raises:
        InputError: it has no UNet.
    """
    configs = {}
    for name in PARTS:
        if name in source.networks:
            kind, config, _ = source.networks[name]
            cls = NETWORKS[kind]
            configs[name] = read(cls.config_class, cls.adapt_config(dict(config)))
    if "unet" not in configs:
        raise InputError(f"{source.name} has no unet, so no LoRA fits it")
    return places(configs["unet"], configs.get("text_encoder"))


def _changed(
    where: str, delta: Delta, leaf: Leaf, weight: StoredTensor, own: StoredTensor, which: int
) -> np.ndarray:
    """A layer's weight (`which` is 0) or bias with a difference, float32."""
    framework: Any = backends.get(BACKEND)
    with naming(where), framework.no_grad():
        before = framework.array(np.array(numbers_of(weight), np.float32))
        more = delta.difference(framework.operations, leaf, before)[which]
    if more is None:
        return numbers_of(own).astype(np.float32)
    total = numbers_of(own).astype(np.float32) + framework.to_numpy(more).reshape(own.shape)
    if not np.isfinite(total).all():
        raise WeightError(f"{where}: merging gives NaN or infinity")
    return total
