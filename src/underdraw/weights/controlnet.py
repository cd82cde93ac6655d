"""ControlNets in files: the original's names, a folder's, differences to a UNet, Control-LoRAs.

Reading is strict in both directions, as everywhere.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from underdraw.errors import InputError, UnderdrawError, WeightError
from underdraw.formats.stored import Checkpoint, StoredTensor, stored
from underdraw.networks.config import UNetConfig, read
from underdraw.networks.controlnet.config import ControlNetConfig
from underdraw.networks.controlnet.program import layout
from underdraw.weights import architecture, key_tables as keys, single_file
from underdraw.weights.files import open_checkpoint
from underdraw.weights.known_keys import SINGLE_FILE, reason
from underdraw.weights.match import match
from underdraw.weights.quantised import as_floats, numbers

LOG = logging.getLogger(__name__)
PREFIX = "control_model."
DIFFERENCE, LORA = "difference", "lora_controlnet"
"""Entries that say what the others are: to be added to a UNet's, or laid over them."""
SIGN, OUR_SIGN = "input_hint_block.0.weight", "controlnet_cond_embedding.conv_in.weight"
"""What tells a ControlNet: in the original, and in a folder."""
Tensors = Mapping[str, StoredTensor]


class Found(NamedTuple):
    """A network that was found, its tensors still unread."""

    config: Any
    tensors: dict[str, StoredTensor]


class Base(NamedTuple):
    """The UNet that a net was made for."""

    config: UNetConfig
    tensors: Tensors
    """By their names in a folder."""


def is_controlnet(names: Any) -> bool:
    """Whether these are names of a ControlNet's tensors."""
    return any(f"{prefix}{sign}" in names for prefix in ("", PREFIX) for sign in (SIGN, OUR_SIGN))


def read_controlnet(
    source: str | os.PathLike[str] | Checkpoint,
    unet: Base | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    global_pool_conditions: bool | None = None,
    name: str = "",
) -> Found:
    """The ControlNet in a file.

    Args:
        source: `.pth`, `.ckpt` (read without running code) or `.safetensors`, under the original's
            names, with `control_model.` before them or not, or under a folder's.
        unet: what it is for; it tells what no shape does (heads), and must be there for
            differences to a UNet (entry `difference`) and for a Control-LoRA (`lora_controlnet`).
        config: entries that replace what was found out.
        global_pool_conditions: whether it is one whose residuals are means over the picture
            (shuffle); nothing in a file says so. None: if its name holds "shuffle".
        name: of the file on the Hub.

    Raises:
        NotFoundError: there is no such file.
        WeightError: it holds no ControlNet, not all of one, or something unknown.
        InputError: it needs a UNet.
    """
    if isinstance(source, Checkpoint):
        place, checkpoint = "checkpoint", source
    else:
        place, checkpoint = str(Path(source)), open_checkpoint(source)
    pooled = _pooled(name or place) if global_pool_conditions is None else global_pool_conditions
    try:
        return _read(checkpoint, unet, {**(config or {}), "global_pool_conditions": pooled})
    except WeightError as error:
        raise WeightError(f"{place}: {error}") from error
    except (LookupError, ArithmeticError, ValueError) as error:
        if isinstance(error, UnderdrawError):
            raise
        raise WeightError(f"{place}: names and shapes are no ControlNet's ({error})") from error


def _pooled(name: str) -> bool:
    if "shuffle" not in Path(name).name.lower():
        return False
    LOG.warning(
        "%s: its name says shuffle, so its residuals are averaged over the picture; "
        "global_pool_conditions says otherwise",
        name,
    )
    return True


def _read(checkpoint: Checkpoint, unet: Base | None, given: Mapping[str, Any]) -> Found:
    tensors = as_floats(checkpoint.tensors)
    if not is_controlnet(tensors):
        raise WeightError(_what_else(tensors))
    prefix = PREFIX if any(name.startswith(PREFIX) for name in tensors) else ""
    inside = {short: tensors[full] for short, full in keys.below(prefix, tensors).items()}
    kinds = [
        kind
        for kind in (DIFFERENCE, LORA)
        if kind in inside or kind in tensors or kind in checkpoint.metadata
    ]
    left = [name for name in tensors if not name.startswith(prefix) and not _known(name)]
    inside = {name: tensor for name, tensor in inside.items() if name not in (DIFFERENCE, LORA)}
    if kinds and unet is None:
        raise InputError(
            f"the file holds {_TOLD[kinds[0]]}; give the UNet that it was made for (unet=)"
        )
    if OUR_SIGN in inside:
        table: keys.Table = {}
        config = _config_of_folder(inside, unet)
    else:
        shapes = _whole(inside, unet) if unet is not None and kinds else inside
        config = _config(shapes, unet)
        table = _table(config)
    config = read(ControlNetConfig, {**config, **given})
    named: dict[str, StoredTensor] = {}
    for name, tensor in inside.items():
        new = keys.rename(name, table) if table else name
        if new is not None:
            named[new] = tensor
        elif not _known(name):
            left.append(prefix + name)
    if kinds and unet is not None:
        named = (_added if kinds[0] == DIFFERENCE else _laid_over)(named, unet.tensors, config)
    named |= dict.fromkeys(left, _UNKNOWN)  # told together with what does not fit
    return Found(config, match(layout(config).shapes, named, source="ControlNet"))


_UNKNOWN = StoredTensor("float32", (), lambda: np.zeros(()))
_TOLD = {DIFFERENCE: "differences to a UNet", LORA: "a Control-LoRA, which lies over a UNet"}


def _known(name: str) -> bool:
    """Whether a name may be left over."""
    return name in (DIFFERENCE, LORA) or reason(SINGLE_FILE, name) is not None


def _hint(tensors: Tensors) -> dict[str, Any]:
    """What the layers in front say, under the original's names or a folder's."""
    if SIGN in tensors:
        first, levels = tensors[SIGN], 0
        while (found := f"input_hint_block.{4 * levels + 4}.weight") in tensors:
            levels += 1
        widths = [tensors[f"input_hint_block.{4 * i}.weight"].shape[0] for i in range(levels + 1)]
        assert found
    else:
        first, hint, levels = tensors[OUR_SIGN], "controlnet_cond_embedding.blocks", 0
        while f"{hint}.{2 * levels + 1}.weight" in tensors:
            levels += 1
        widths = [first.shape[0]]
        widths += [tensors[f"{hint}.{2 * i + 1}.weight"].shape[0] for i in range(levels)]
    return {
        "conditioning_channels": first.shape[1],
        "conditioning_embedding_out_channels": widths,
    }


def _config(tensors: Tensors, unet: Base | None) -> dict[str, Any]:
    """From the original's names."""
    if unet is not None:
        _check_made_for(tensors, unet.config)
        return {**ControlNetConfig.of_unet(unet.config).to_dict(), **_hint(tensors)}
    contexts = [t.shape[-1] for n, t in tensors.items() if n.endswith("attn2.to_k.weight")]
    family = "sd2" if contexts and contexts[0] == 1024 else "sd1"
    return {**architecture.encoder_config(tensors, family), **_hint(tensors)}


def _check_made_for(tensors: Tensors, unet: UNetConfig) -> None:
    """Raise an InputError where the tensors, which may lie over those of a UNet, are another one's:
    a table of what is missing would not say it."""
    first = tensors["input_blocks.0.0.weight"].shape[0]
    contexts = [t.shape[-1] for n, t in tensors.items() if n.endswith("attn2.to_k.weight")]
    last = tensors["middle_block_out.0.weight"].shape[0]
    made_for = (first, last, contexts[0] if contexts else unet.cross_attention_dim)
    wanted = (*(unet.block_out_channels[i] for i in (0, -1)), unet.cross_attention_dim)
    if made_for != wanted:
        raise InputError(
            f"this ControlNet was made for a UNet of {made_for[0]} to {made_for[1]} channels and "
            f"cross_attention_dim={made_for[2]}; the UNet has {wanted[0]} to {wanted[1]}, and "
            f"{wanted[2]}"
        )


def _config_of_folder(tensors: Tensors, unet: Base | None) -> dict[str, Any]:
    """From a folder's names, without its `config.json`."""
    if unet is not None:
        return {**ControlNetConfig.of_unet(unet.config).to_dict(), **_hint(tensors)}
    places = [
        re.fullmatch(r"down_blocks\.(\d+)\.resnets\.(\d+)\.conv1\.weight", n) for n in tensors
    ]
    found = [place.groups() for place in places if place is not None]
    attention = tuple(
        f"down_blocks.{i}.attentions.0.proj_in.weight" in tensors
        for i in range(max((int(i) for i, _ in found), default=-1) + 1)
    )
    layers = max((int(j) for _, j in found), default=-1) + 1
    hint = _hint(tensors)
    halvings = len(hint["conditioning_embedding_out_channels"]) - 1
    table = keys.inverse(keys.controlnet_table(attention, layers, halvings))
    return _config({keys.rename(name, table) or name: t for name, t in tensors.items()}, None)


def _table(config: Mapping[str, Any]) -> keys.Table:
    layers, kinds = config["layers_per_block"], config["down_block_types"]
    single_file.table_of("unet", config)  # whether the original has names for such a network
    halvings = len(config["conditioning_embedding_out_channels"]) - 1
    return keys.controlnet_table(tuple("CrossAttn" in kind for kind in kinds), layers, halvings)


def _whole(inside: Tensors, unet: Base) -> Tensors:
    """The tensors, for what their shapes tell; a UNet's stand for those that lie over them."""
    table = keys.inverse(single_file.table_of("unet", unet.config.to_dict()))
    base = {keys.rename(name, table) or name: tensor for name, tensor in unet.tensors.items()}
    return {**base, **inside}


def _added(named: Tensors, base: Tensors, config: Any) -> dict[str, StoredTensor]:
    """A UNet's tensors plus the differences to them; what is no UNet's is whole."""

    def plus(name: str, tensor: StoredTensor) -> StoredTensor:
        if name not in base or base[name].size != tensor.size:
            return tensor
        return stored(numbers(base[name]) + numbers(tensor).reshape(base[name].shape))

    return {name: plus(name, tensor) for name, tensor in named.items()}


def _laid_over(named: Tensors, base: Tensors, config: ControlNetConfig) -> dict[str, StoredTensor]:
    """A UNet's tensors with the products `up down` of a Control-LoRA added; what it holds whole
    (biases, norms, the layers of maps) takes their place."""
    shapes = layout(config).shapes
    made = {name: base[name] for name in shapes if name in base}
    made |= {n: t for n, t in named.items() if not n.endswith((".up", ".down"))}
    for name, up in named.items():
        if not name.endswith(".up"):
            continue
        place = name.removesuffix(".up")
        weight, down = f"{place}.weight", named.get(f"{place}.down")
        if down is None or weight not in made:
            raise WeightError(f"{name!r} has no .down beside it, or no layer of the UNet under it")
        a, b = (numbers(x).reshape(x.shape[0], -1) for x in (up, down))
        if a.shape[1] != b.shape[0] or (len(a), b.shape[1]) != _matrix(made[weight].shape):
            raise WeightError(
                f"{name!r} is {up.shape} and its .down {down.shape}; the layer is "
                f"{made[weight].shape}"
            )
        made[weight] = stored(numbers(made[weight]) + (a @ b).reshape(made[weight].shape))
    return made


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    return shape[0], int(np.prod(shape[1:], dtype=np.int64))


def _what_else(tensors: Tensors) -> str:
    """What a file is that holds no ControlNet."""
    signs = (
        (
            r"control_(down|mid)_.*|.*controlnet_x_embedder.*|.*task_embedding.*|control_add.*",
            "a ControlNet of another architecture",
        ),
        (r"(adapter\.)?body\.\d+\..*", "a T2I-Adapter"),
        (r"(.*\.)?lora_.*|.*\.lora_(up|down|A|B)\..*", "a LoRA"),
        (r".*(output_blocks|up_blocks)\..*", "a UNet"),
    )
    for pattern, what in signs:
        if any(re.fullmatch(pattern, name) for name in tensors):
            return f"this looks like {what}, not like a ControlNet of Stable Diffusion 1 or 2"
    some = ", ".join(list(tensors)[:3])
    return f"no ControlNet inside; {len(tensors)} tensors such as {some}"
