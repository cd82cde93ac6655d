"""Text encoders of original checkpoints: CLIP under a prefix, OpenCLIP under its own names."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from underdraw.errors import WeightError
from underdraw.formats.stored import StoredTensor
from underdraw.weights import key_tables as keys
from underdraw.weights.known_keys import FOLDERS

Tensors = Mapping[str, StoredTensor]


def from_original(
    source: Tensors, layers: int | None = None
) -> tuple[dict[str, StoredTensor], set[str]]:
    """(tensors as `text_model....`, which names of `source` were used) from names without prefix.

    `layers` says how many blocks of an OpenCLIP tower are wanted, where that is known.
    """
    if "token_embedding.weight" in source:
        return _from_openclip(source, layers)
    return _from_clip(source)


def _from_clip(source: Tensors) -> tuple[dict[str, StoredTensor], set[str]]:
    # Some merges lack the inner prefix.
    known = ("embeddings.", "encoder.", "final_layer_norm.")
    result, used = {}, set()
    for name, tensor in source.items():
        inner = name.removeprefix("text_model.")
        if inner.startswith(known) and not inner.endswith("position_ids"):
            result[f"text_model.{inner}"] = tensor
            used.add(name)
    return result, used


def _from_openclip(source: Tensors, layers: int | None) -> tuple[dict[str, StoredTensor], set[str]]:
    blocks = 0
    while f"transformer.resblocks.{blocks}.ln_1.weight" in source:
        blocks += 1
    # The UNet was trained on the last block but one, so folders leave the last out. Files made from
    # such folders by other tools have 23 of OpenCLIP-H's 24 blocks: there, none is too many.
    width = source["token_embedding.weight"].shape[1]
    if layers is None:
        layers = blocks if (width, blocks) == (1024, 23) else blocks - 1
    table = keys.openclip_table(layers)
    result, used = {}, set()
    fused, parts = keys.OPENCLIP_FUSED
    for name, tensor in source.items():
        found = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.*)", name)
        if found and int(found[1]) >= layers:
            used.add(name)
        elif found and found[2].startswith(fused):
            rows = tensor.shape[0] // 3
            for i, part in enumerate(parts):
                new = f"text_model.encoder.layers.{found[1]}.{part}{found[2][len(fused) :]}"
                result[new] = tensor.derive(
                    (rows, *tensor.shape[1:]), lambda a, i=i, n=rows: a[i * n : (i + 1) * n]
                )
            used.add(name)
        elif (new := keys.rename(name, table)) is not None:
            result[new] = tensor
            used.add(name)
    return result, used


def to_original(config: Mapping[str, Any], tensors: Tensors) -> dict[str, StoredTensor]:
    """Tensors of a folder (with or without `text_model.`) under their full original names.

    `hidden_act` tells the towers apart: "quick_gelu" is CLIP's, "gelu" OpenCLIP's.
    """
    rules = FOLDERS["text_encoder"]
    named = {
        "text_model." + name.removeprefix("text_model."): tensor
        for name, tensor in tensors.items()
        if rules.reason(name) is None
    }
    if config.get("hidden_act") == "quick_gelu":
        return {keys.CLIP_PREFIX + name: tensor for name, tensor in named.items()}
    layers = config["num_hidden_layers"]
    table = keys.inverse(keys.openclip_table(layers))
    fused, parts = keys.OPENCLIP_FUSED
    result: dict[str, StoredTensor] = {}
    for i in range(layers):
        for end in ("weight", "bias"):
            wanted = [f"text_model.encoder.layers.{i}.{part}{end}" for part in parts]
            if not all(name in named for name in wanted):
                raise WeightError(f"text_encoder: one of {', '.join(wanted)} is missing")
            three = [named.pop(name) for name in wanted]
            joined = f"{keys.OPENCLIP_PREFIX}transformer.resblocks.{i}.{fused}{end}"
            result[joined] = _joined(three)
    for name, tensor in named.items():
        new = keys.rename(name, table)
        if new is None:
            raise WeightError(f"text_encoder: no original name is known for {name!r}")
        result[keys.OPENCLIP_PREFIX + new] = tensor
    block = f"{keys.OPENCLIP_PREFIX}transformer.resblocks."
    first = {n: t for n, t in result.items() if n.startswith(f"{block}0.")}
    for name, tensor in first.items():
        result[name.replace(f"{block}0.", f"{block}{layers}.")] = _zeros(tensor)
    return result


def _joined(three: list[StoredTensor]) -> StoredTensor:
    shape = (sum(t.shape[0] for t in three), *three[0].shape[1:])
    return StoredTensor(
        three[0].dtype,
        shape,
        lambda: np.concatenate([tensor.load() for tensor in three]),
        three[0].source,
    )


def _zeros(like: StoredTensor) -> StoredTensor:
    return like.derive(like.shape, lambda a: np.zeros(like.shape, a.dtype))
