"""The subject encoder in BLIP-Diffusion's original checkpoints (LAVIS).

They are a folder (`blip_model/blip_weight.pt`, `proj_layer/proj_weight.pt`), or one file with
everything under `blip.` and `proj_layer.`. What the network is, is told by names and shapes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from math import isqrt
from pathlib import Path
from typing import Any

from underdraw.errors import NotFoundError, UnderdrawError, WeightError
from underdraw.formats import opening
from underdraw.formats.stored import StoredTensor
from underdraw.weights import key_tables as keys
from underdraw.weights.files import open_tensors
from underdraw.weights.known_keys import SUBJECT_FILE, reason
from underdraw.weights.quantised import as_floats

Tensors = Mapping[str, StoredTensor]

BLIP, PROJECTION = "blip_model/blip_weight", "proj_layer/proj_weight"
SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")
HEAD = 64
"""Width of a head of attention, in the image tower and in BERT."""
EPS = 1e-5
"""Of the norms in CLIP's image tower."""


def read_subject(
    source: str | os.PathLike[str],
) -> tuple[dict[str, Any], dict[str, StoredTensor]]:
    """Config and tensors of a `Blip2QFormerModel`, unread, from an original folder or file.

    Raises:
        NotFoundError: there is no such folder or file, or it lacks a part.
        WeightError: a file is damaged, of another kind, or holds something unknown.
    """
    path = Path(source)
    tensors = _of_folder(path) if path.is_dir() else open_tensors(path)
    try:
        return _read(as_floats(dict(tensors)))
    except WeightError as error:
        told = str(error)
        raise WeightError(told if told.startswith(str(path)) else f"{path}: {told}") from error
    except (LookupError, ArithmeticError, ValueError) as error:
        if isinstance(error, UnderdrawError):
            raise
        raise WeightError(f"{path}: {_OTHER} ({error})") from error


_OTHER = "names and shapes are not those of BLIP-Diffusion's subject encoder"


def _of_folder(path: Path) -> dict[str, StoredTensor]:
    tensors: dict[str, StoredTensor] = {}
    for part, prefix in ((BLIP, "blip."), (PROJECTION, "proj_layer.")):
        files = [file for end in SUFFIXES if opening.is_regular(file := path / f"{part}{end}")]
        if not files:
            raise NotFoundError(f"{path}: no {part}.pt, so not a folder of the original")
        tensors |= {prefix + name: tensor for name, tensor in open_tensors(files[0]).items()}
    return tensors


def _read(tensors: Tensors) -> tuple[dict[str, Any], dict[str, StoredTensor]]:
    plain = {_short(name): tensor for name, tensor in tensors.items()}
    if "query_tokens" not in plain or "Qformer.bert.encoder.layer.0.output.dense.bias" not in plain:
        raise WeightError(_OTHER)
    if "proj_layer.dense1.weight" not in plain:
        raise WeightError(
            "there is no proj_layer: this is a BLIP-2 checkpoint, of which BLIP-Diffusion was "
            "trained; its subject encoder has a projection, too"
        )
    config = _config(plain)
    vision, queries = config["vision_config"], config["qformer_config"]
    table = _table(vision["num_hidden_layers"], queries["num_hidden_layers"])
    made, left = {}, []
    for name, tensor in plain.items():
        if (new := keys.rename(name, table)) is not None:
            made[new] = _shaped(new, tensor)
        elif reason(SUBJECT_FILE, name) is None:
            left.append(name)
    if left:
        told = ", ".join(left[:5]) + (", ..." if left[5:] else "")
        raise WeightError(f"{len(left)} tensors of {len(tensors)} are unknown: {told}")
    return config, made


def _short(name: str) -> str:
    """A name without what stands before it in the file of a whole model, or of its training.
    Checkpoints from before they were published call the Q-Former `text_model`."""
    name = name.removeprefix("model.").removeprefix("blip.")
    return re.sub(r"\Atext_model\.", "Qformer.", name)


def _shaped(name: str, tensor: StoredTensor) -> StoredTensor:
    """What the original keeps without leading ones."""
    if name == "visual_encoder.embeddings.class_embedding":
        return tensor.reshape((1, 1, tensor.shape[-1]))
    if name == "visual_encoder.embeddings.position_embedding":
        return tensor.reshape((1, *tensor.shape[-2:]))
    return tensor


def _config(tensors: Tensors) -> dict[str, Any]:
    def shape(name: str) -> tuple[int, ...]:
        return tensors[name].shape

    def count(form: str) -> int:
        number = 0
        while form.format(number) in tensors:
            number += 1
        return number

    block, layer = "visual_encoder.transformer.resblocks.{}", "Qformer.bert.encoder.layer.{}"
    width, _, patch, _ = shape("visual_encoder.conv1.weight")
    patches = shape("visual_encoder.positional_embedding")[-2] - 1
    layers = count(layer + ".output.dense.bias")
    looks = [f"{layer.format(i)}.crossattention.self.query.bias" in tensors for i in range(layers)]
    words, own = shape("Qformer.bert.embeddings.word_embeddings.weight")
    return {
        "num_query_tokens": shape("query_tokens")[-2],
        "vision_config": {
            "hidden_size": width,
            "intermediate_size": shape(block.format(0) + ".mlp.c_fc.weight")[0],
            "num_hidden_layers": count(block + ".ln_1.bias"),
            "num_attention_heads": max(width // HEAD, 1),
            "image_size": isqrt(patches) * patch,
            "patch_size": patch,
            "hidden_act": "quick_gelu",
            "layer_norm_eps": EPS,
        },
        "qformer_config": {
            "vocab_size": words,
            "hidden_size": own,
            "num_hidden_layers": layers,
            "num_attention_heads": max(own // HEAD, 1),
            "intermediate_size": shape(layer.format(0) + ".intermediate.dense.weight")[0],
            "max_position_embeddings": shape("Qformer.bert.embeddings.position_embeddings.weight")[
                0
            ],
            "cross_attention_frequency": looks.index(True, 1) if any(looks[1:]) else layers,
            "encoder_hidden_size": width,
        },
    }


VISION_LAYER: keys.Table = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.in_proj_weight": "self_attn.qkv.weight",
    "attn.in_proj_bias": "self_attn.qkv.bias",
    "attn.out_proj": "self_attn.projection",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
QFORMER_LAYER: keys.Table = {
    **{
        f"{kind}.{ours}": f"{kind}.{theirs}"
        for kind in ("attention", "crossattention")
        for ours, theirs in (("self", "attention"), ("output", "output"))
    },
    **{part: part for part in ("intermediate", "intermediate_query", "output", "output_query")},
}
ENDS: keys.Table = {
    "query_tokens": "query_tokens",
    "proj_layer": "proj_layer",
    "visual_encoder.class_embedding": "visual_encoder.embeddings.class_embedding",
    "visual_encoder.positional_embedding": "visual_encoder.embeddings.position_embedding",
    "visual_encoder.conv1": "visual_encoder.embeddings.patch_embedding",
    "visual_encoder.ln_pre": "visual_encoder.pre_layernorm",
    "ln_vision": "visual_encoder.post_layernorm",
    **{
        f"Qformer.bert.embeddings.{part}": f"embeddings.{part}"
        for part in ("word_embeddings", "position_embeddings", "LayerNorm")
    },
}


def _table(blocks: int, layers: int) -> keys.Table:
    """Names of the original, without prefix, to those of a folder."""
    if max(blocks, layers) > keys.MOST_LAYERS:
        raise WeightError(_OTHER)
    table = dict(ENDS)
    for i in range(blocks):
        ours, theirs = f"visual_encoder.transformer.resblocks.{i}", f"encoder.layers.{i}"
        for a, b in VISION_LAYER.items():
            table[f"{ours}.{a}"] = f"visual_encoder.{theirs}.{b}"
    for i in range(layers):
        for a, b in QFORMER_LAYER.items():
            table[f"Qformer.bert.encoder.layer.{i}.{a}"] = f"encoder.layer.{i}.{b}"
    return table


def to_original(tensors: Tensors) -> dict[str, StoredTensor]:
    """The tensors of a `Blip2QFormerModel` under the names of one original file."""
    blocks, layers = (
        1 + max(int(name.split(".")[at]) for name in tensors if name.startswith(start))
        for start, at in (("visual_encoder.encoder.layers.", 3), ("encoder.layer.", 2))
    )
    table = keys.inverse(_table(blocks, layers))
    made = {}
    for name, tensor in tensors.items():
        new = keys.rename(name, table)
        if new is None:
            raise WeightError(f"qformer: no original name is known for {name!r}")
        if name.endswith("class_embedding"):
            tensor = tensor.reshape((tensor.shape[-1],))
        elif name == "visual_encoder.embeddings.position_embedding":
            tensor = tensor.reshape(tensor.shape[-2:])
        made[new if new.startswith("proj_layer.") else f"blip.{new}"] = tensor
    return made
