"""IP-Adapters in files: the published ones, those of training runs, our own.

What a file was made for (kind, widths, sizes) is told by names and shapes. Reading is strict:
both parts must be there, and nothing else.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from underdraw.errors import InputError, UnderdrawError, WeightError
from underdraw.formats import json_text
from underdraw.formats.stored import Checkpoint, StoredTensor, check_sizes
from underdraw.networks.config import UNetConfig, read
from underdraw.networks.ip_adapter.config import IPAdapterConfig, cross_attentions, number
from underdraw.networks.ip_adapter.program import layout
from underdraw.schema import within
from underdraw.weights.files import open_checkpoint
from underdraw.weights.known_keys import IP_ADAPTER_FILE
from underdraw.weights.match import match
from underdraw.weights.quantised import as_floats

Tensors = Mapping[str, StoredTensor]
PROJECTION, LAYERS = "image_proj.", "ip_adapter."
"""Before the names of the two parts of a published file."""
TRAINED = {"image_proj_model.": PROJECTION, "adapter_modules.": LAYERS}
"""The same in a checkpoint of the original's training."""
METADATA = "underdraw.ip_adapter"
"""Under this name a file carries its config, as JSON."""
LAYER = re.compile(r"ip_adapter\.(\d+)\.to_[kv]_ip\.weight")
LORA = re.compile(r"ip_adapter\.(\d+)\.to_(q|k|v|out)_lora\.(down|up)\.weight")
SECOND = re.compile(r"(plus[-_]?v2|v2[-_]?plus)", re.IGNORECASE)
"""In names of files of "face-id-plus" of version 2, which nothing inside tells."""
XL = 2048
"""Width of Stable Diffusion XL's context."""
OTHERS = (
    (r".*(lora_down|lora_up|lora_[AB]|hada_|lokr_|oft_blocks).*", "a LoRA"),
    (r"emb_params|string_to_param.*|clip_[lg]", "a textual inversion"),
    (r"(control_model\.)?input_hint_block\..*|controlnet_.*", "a ControlNet"),
    (r"(adapter\.)?body\..*", "a T2I-Adapter"),
    (r"(.*\.)?(position_net|fuser)\..*", "grounding weights (GLIGEN)"),
    (r"(model\.diffusion_model|first_stage_model|cond_stage_model)\..*", "a whole checkpoint"),
    (r"(double_blocks|single_blocks|(.*\.)?processors?)\..*", "an adapter of another architecture"),
    (r"(vision_model|visual)\..*", "an image tower"),
    (r"(down_blocks|up_blocks|mid_block|conv_in)\..*", "a UNet"),
)
"""Names, and of what: looked at where a file holds no IP-Adapter."""


class Found(NamedTuple):
    """An IP-Adapter that was found, its tensors still unread."""

    config: IPAdapterConfig
    tensors: dict[str, StoredTensor]


def read_ip_adapter(
    source: str | os.PathLike[str] | Checkpoint,
    unet: UNetConfig,
    *,
    shortcut: bool | None = None,
    where: str = "state dict",
) -> Found:
    """The IP-Adapter in a file, for a UNet, which tells places and heads of its attentions.

    Args:
        source: `.safetensors`, or a pickle (`.bin`, `.pt`), which is read without running code.
        shortcut: whether it is a "face-id-plus" of version 2. None: as the file says, or its name.
        where: what errors call a source that is no file.

    Raises:
        NotFoundError: there is no such file.
        WeightError: it holds no IP-Adapter, not all of one, or something unknown.
        InputError: it was made for another UNet, or `shortcut` is for none of its kind.
    """
    if isinstance(source, Checkpoint):
        checkpoint, second = source, False
    else:
        where, checkpoint = str(Path(source)), open_checkpoint(source)
        second = SECOND.search(Path(source).stem) is not None
    try:
        return _read(checkpoint, unet, shortcut, second)
    except (WeightError, InputError) as error:
        raise type(error)(f"{where}: {error}") from error
    except (LookupError, ArithmeticError, ValueError) as error:
        if isinstance(error, UnderdrawError):
            raise
        raise WeightError(f"{where}: names and shapes are no IP-Adapter's ({error})") from error


def _read(checkpoint: Checkpoint, unet: UNetConfig, shortcut: bool | None, second: bool) -> Found:
    tensors = _named(as_floats(checkpoint.tensors))
    _require_both(tensors)
    check_sizes(tensors.values())
    if told := checkpoint.metadata.get(METADATA):
        raw = json_text.parse(str(told), f"metadata {METADATA!r}", fault=WeightError)
        with within(f"metadata {METADATA!r}"):
            config = read(IPAdapterConfig, raw)
    else:
        fields = {"token_width": _context(tensors), **_kind(tensors)}
        second = second and fields["kind"] == "face-id-plus"
        layers = _layers(tensors, unet)
        config = IPAdapterConfig(layers=layers, lora_rank=_rank(tensors), shortcut=second, **fields)
    if shortcut is not None and shortcut != config.shortcut:
        config = read(IPAdapterConfig, {**config.to_dict(), "shortcut": shortcut})
    config.require_fit(unet)
    fitting = match(layout(config).shapes, tensors, IP_ADAPTER_FILE, source="IP-Adapter")
    return Found(config, fitting)


def _named(tensors: Tensors) -> dict[str, StoredTensor]:
    """Under the names of published files."""
    found = {}
    for name, tensor in tensors.items():
        for old, new in TRAINED.items():
            if name.startswith(old):
                name = new + name.removeprefix(old)
                break
        if name in found:
            raise WeightError(f"{name!r} is there twice, in two spellings")
        found[name] = tensor
    return found


def _require_both(tensors: Tensors) -> None:
    """Raise a WeightError unless both parts are there."""
    there = [any(name.startswith(part) for name in tensors) for part in (PROJECTION, LAYERS)]
    if all(there):
        return
    if any(there):
        has, lacks = ("image_proj", "ip_adapter") if there[0] else ("ip_adapter", "image_proj")
        raise WeightError(f"this is half an IP-Adapter: it has {has}.*, and lacks {lacks}.*")
    if not tensors:
        raise WeightError("this is no IP-Adapter: there are no tensors inside")
    told = next(
        (what for names, what in OTHERS if any(re.fullmatch(names, name) for name in tensors)), None
    )
    known = f"it looks like {told}" if told else f"it holds {_some(list(tensors))}"
    raise WeightError(f"this is no IP-Adapter, which has image_proj.* and ip_adapter.*; {known}")


def _some(names: list[str]) -> str:
    return ", ".join(f"{name!r:.60}" for name in names[:4]) + (", ..." if len(names) > 4 else "")


def _context(tensors: Tensors) -> int:
    for name, tensor in tensors.items():
        if LAYER.fullmatch(name) and len(tensor.shape) == 2:
            return tensor.shape[1]
    raise WeightError("ip_adapter.* holds no keys and values (to_k_ip, to_v_ip)")


def _layers(tensors: Tensors, unet: UNetConfig) -> tuple[tuple[str, int, int], ...]:
    """The cross-attentions of the UNet, after checking that the file numbers as many."""
    there = tuple(cross_attentions(unet))
    numbers = {int(found[1]) for name in tensors if (found := LAYER.fullmatch(name))}
    wanted = [number(i) for i in range(len(there))]
    context = _context(tensors)
    if context != unet.cross_attention_dim:
        told = "; it is for Stable Diffusion XL" if context == XL else ""
        raise InputError(
            f"the IP-Adapter was made for another UNet: its context has width {context}, this "
            f"one's {unet.cross_attention_dim}{told}"
        )
    shapes = {i: tensors.get(f"ip_adapter.{i}.to_k_ip.weight") for i in wanted}
    wrong = [
        i
        for i, (_, width, _) in zip(wanted, there, strict=True)
        if (tensor := shapes[i]) is not None and tensor.shape[:1] != (width,)
    ]
    if len(numbers) > len(wanted) or wrong:
        raise InputError(
            f"the IP-Adapter was made for another UNet: it has {len(numbers)} cross-attentions, "
            f"this one {len(wanted)}"
            + (f", and number {wrong[0]} has another width" if wrong else "")
        )
    return there


def _rank(tensors: Tensors) -> int:
    """Of the LoRA inside; 0 where there is none."""
    for name, tensor in tensors.items():
        if (found := LORA.fullmatch(name)) is not None:
            return tensor.shape[0 if found[3] == "down" else 1]
    return 0


def _kind(tensors: Tensors) -> dict[str, Any]:
    """The kind and its sizes, as fields of the config."""

    def shape(name: str) -> tuple[int, int]:
        tensor = tensors.get(f"{PROJECTION}{name}")
        if tensor is None or len(tensor.shape) < 1:
            raise WeightError(f"image_proj lacks {name}")
        return tensor.shape[0], tensor.shape[-1]

    def resampler(at: str) -> dict[str, Any]:
        hidden, feature = shape(f"{at}proj_in.weight")
        depth = [int(one) for n in tensors if (one := _block(n, at)) is not None]
        first = f"{at}layers.0."
        return {
            "feature_width": feature,
            "hidden_width": hidden,
            "depth": max(depth, default=-1) + 1,
            "inner_width": shape(f"{first}0.to_q.weight")[0],
            "wide": shape(f"{first}1.1.weight")[0],
        }

    has = {name.removeprefix(PROJECTION) for name in tensors if name.startswith(PROJECTION)}
    if "proj.weight" in has:
        out, feature = shape("proj.weight")
        tokens = out // shape("norm.weight")[0]
        return {"kind": "plain", "feature_width": feature, "tokens": tokens}
    if "proj.3.weight" in has:
        hidden, feature = shape("proj.0.weight")
        return {"kind": "full", "feature_width": feature, "hidden_width": hidden}
    if "perceiver_resampler.proj_in.weight" in has:
        between, face = shape("proj.0.weight")
        sizes = resampler("perceiver_resampler.")
        tokens = shape("proj.2.weight")[0] // sizes["hidden_width"]
        faces = {"face_width": face, "face_hidden_width": between, "tokens": tokens}
        return {"kind": "face-id-plus", **faces, **sizes}
    if "latents" in has:
        latents = tensors[f"{PROJECTION}latents"].shape
        return {"kind": "plus", "tokens": latents[-2], **resampler("")}
    if {"proj.0.weight", "norm.weight"} <= has:
        hidden, face = shape("proj.0.weight")
        tokens = shape("proj.2.weight")[0] // shape("norm.weight")[0]
        return {"kind": "face-id", "face_width": face, "hidden_width": hidden, "tokens": tokens}
    raise WeightError(f"image_proj is of no kind that is known; it holds {_some(sorted(has))}")


def _block(name: str, at: str) -> str | None:
    found = re.match(rf"{re.escape(PROJECTION + at)}layers\.(\d{{1,3}})\.", name)
    return None if found is None else found[1]
