"""LoRA files: low-rank ones as diffusers and PEFT spell them, all others as LyCORIS does."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from underdraw import backends, checks
from underdraw.backends.deltas import Delta, Full, LowRank, Sum
from underdraw.backends.lycoris import (
    Decomposed,
    Factors,
    Hadamard,
    Kronecker,
    OfInput,
    Rescaled,
    Rotated,
)
from underdraw.errors import InputError, InputTypeError
from underdraw.formats.stored import StoredTensor, stored
from underdraw.weights.files import SUFFIXES
from underdraw.weights.lora.reading import METADATA, LoraWeights, on_host
from underdraw.weights.save import save_tensors

FILE = "pytorch_lora_weights.safetensors"
FILES = (FILE, "pytorch_lora_weights.bin")
"""Names that the file of a folder has where nobody says."""
SPELLINGS = ("diffusers", "kohya")
Named = Iterator[tuple[str, Any]]


def write_lora(weights: LoraWeights, target: Any, spelling: str = "diffusers") -> None:
    """Write LoRA weights as `read_lora` reads them; `target` is a file or a folder.

    Low-rank differences (and DoRA over them) are written as diffusers reads them, with their scale
    in `lora_B`; a file with any other kind is spelt as LyCORIS does. With `spelling` "kohya" all
    are, each with an alpha of its own, which sd-scripts, A1111 and ComfyUI read.

    Raises:
        InputError: a difference is of a kind that no file has, or there is no such spelling.
    """
    checks.choice("spelling", spelling, SPELLINGS)
    named: dict[str, StoredTensor] = {}
    whole = (*weights.unet.values(), *weights.text_encoder.values())
    plain = spelling == "diffusers" and all(_is_plain(delta) for delta in whole)
    for component, start in (("unet", "lora_unet_"), ("text_encoder", "lora_te_")):
        for path, delta in getattr(weights, component).items():
            module = f"{component}.{path}" if plain else start + path.replace(".", "_")
            for part, values in _peft(delta) if plain else _lycoris(path, delta):
                named[f"{module}.{part}"] = _host(values, module)
    if not named:
        raise InputError("the LoRA holds no differences; there is nothing to write")
    save_tensors(_file(target, None), named)


def write_layers(
    target: Any,
    layers: Mapping[str, Mapping[str, Any] | None],
    settings: Mapping[str, Mapping[str, Any] | None],
    weight_name: str | None = None,
) -> None:
    """Write state dicts by component as one file, with PEFT's settings beside them.

    Raises:
        InputError, InputTypeError: there are no layers, or something is no tensor.
    """
    named: dict[str, StoredTensor] = {}
    for kind, given in (("layers", layers), ("adapter_metadata", settings)):
        for component, one in given.items():
            if one is not None and not isinstance(one, Mapping):
                raise InputTypeError(
                    f"{component}_lora_{kind}={checks.shown(one)} is no mapping by name"
                )
    for component, tensors in layers.items():
        for name, value in (tensors or {}).items():
            if not isinstance(name, str) or not hasattr(value, "shape"):
                raise InputTypeError(f"{component}_lora_layers: {name!r} is no tensor by name")
            full = name if name.startswith(f"{component}.") else f"{component}.{name}"
            named[full] = _host(value, f"{component}_lora_layers: {name!r:.80}")
    if not named:
        raise InputError("there are no LoRA layers; give unet_lora_layers or those of the texts")
    told = {
        f"{component}.{name}": sorted(value) if isinstance(value, set) else value
        for component, one in settings.items()
        for name, value in (one or {}).items()
    }
    metadata = {"format": "pt"}
    if told:
        metadata[METADATA] = json.dumps(told, sort_keys=True)
    save_tensors(_file(target, weight_name), named, metadata)


def _file(target: Any, name: str | None) -> Path:
    place = Path(checks.path("target", target))
    if name is None and place.suffix in SUFFIXES:
        if place.suffix != ".safetensors":
            raise InputError(f"target={str(place)!r}; underdraw writes .safetensors")
        return place
    place.mkdir(parents=True, exist_ok=True)
    name = FILE if name is None else name
    if Path(name).name != name or not name.endswith(".safetensors"):
        raise InputError(f"weight_name={name!r:.80}; allowed: the name of a .safetensors file")
    return place / name


def _is_plain(delta: Delta) -> bool:
    inner = delta.inner if isinstance(delta, Decomposed) and not delta.on_input else delta
    return isinstance(inner, LowRank) and inner.mid is None and not inner.by_row


def _peft(delta: Delta) -> Named:
    magnitude = None
    if isinstance(delta, Decomposed):
        magnitude, delta = delta.magnitude, delta.inner
    assert isinstance(delta, LowRank)  # which `_is_plain` has seen to
    if magnitude is not None:
        shape = (1, -1, 1, 1) if len(delta.down.shape) == 4 else (-1,)
        yield "lora_magnitude_vector", magnitude.reshape(*shape)
    yield "lora_A.weight", delta.down
    yield "lora_B.weight", delta.up * delta.scale


def _lycoris(path: str, delta: Delta) -> Named:
    if delta.by_row:
        raise InputError(f"the difference at '{path}' differs by row, which no file holds")
    match delta:
        case Decomposed():
            yield from _lycoris(path, delta.inner)
            # With the axes of the weight, along which readers lay it over the weight.
            inner = delta.inner
            ones = len(inner.down.shape) - 2 if isinstance(inner, LowRank) else 0
            sides = (1, -1) if delta.on_input else (-1, 1)
            yield "dora_scale", delta.magnitude.reshape(*sides, *[1] * ones)
        case LowRank():
            yield from _with_alpha(delta, delta.down.shape[0], up=delta.up, down=delta.down)
            if delta.mid is not None:
                yield "lora_mid.weight", delta.mid
        case Hadamard():
            yield "alpha", _number(delta.scale * delta.first.down.shape[0])
            for i, factors in ((1, delta.first), (2, delta.second)):
                yield from _factors(f"hada_w{i}", f"hada_t{i}", factors)
        case Kronecker():
            yield from _kronecker(delta)
        case Sum(deltas=(OfInput() as a, LowRank() as b)):
            yield "alpha", _number(a.scale * a.down.shape[0])
            named = {"a1": a.up, "a2": a.down, "b1": b.up, "b2": b.down, "bm": b.mid}
            yield from ((f"{n}.weight", value) for n, value in named.items() if value is not None)
        case Rescaled():
            yield "weight", delta.factors * delta.scale
            yield "on_input", _number(float(delta.on_input))
        case Rotated() if delta.scale == 1:
            yield "oft_blocks", _blocks(delta)
            if delta.factors is not None:
                yield "rescale", delta.factors
        case Full():
            normal = delta.weight is not None and len(delta.weight.shape) == 1
            names = ("w_norm", "b_norm") if normal else ("diff", "diff_b")
            for name, value in zip(names, (delta.weight, delta.bias), strict=True):
                if value is not None:
                    yield name, value * delta.scale
        case _:
            raise InputError(
                f"the difference at '{path}' is of the kind {type(delta).__name__}, which no file "
                "holds"
            )


def _with_alpha(delta: LowRank, rank: int, **parts: Any) -> Named:
    yield "alpha", _number(delta.scale * rank)
    yield from ((f"lora_{name}.weight", value) for name, value in parts.items())


def _kronecker(delta: Kronecker) -> Named:
    rank = None
    for name, part in (("lokr_w1", delta.first), ("lokr_w2", delta.second)):
        if isinstance(part, Factors):
            rank = part.down.shape[0]
            yield from _factors(name, "lokr_t2", part)
        else:
            yield name, part
    # Readers pass over alpha where both are whole.
    yield (
        ("scalar", _number(delta.scale)) if rank is None else ("alpha", _number(delta.scale * rank))
    )


def _factors(name: str, kernel: str, factors: Factors) -> Named:
    up = factors.up
    if factors.mid is not None:
        yield kernel, factors.mid
        up = np.ascontiguousarray(backends.of(up).to_numpy(up).T)
    yield f"{name}_a", up
    yield f"{name}_b", factors.down


def _blocks(delta: Rotated) -> np.ndarray:
    """Half of the skew-symmetric matrices whose Cayley transform the rotations are."""
    turned = backends.of(delta.blocks).to_numpy(delta.blocks).astype(np.float64)
    if not delta.butterfly:
        turned = np.swapaxes(turned, -1, -2)[0]
    identity = np.eye(turned.shape[-1])
    return ((turned - identity) @ np.linalg.inv(turned + identity) / 2).astype(np.float32)


def _number(value: Any) -> np.ndarray:
    return np.array(value, np.float32)


def _host(values: Any, where: str) -> StoredTensor:
    if isinstance(values, np.ndarray):
        return stored(np.asarray(values, order="C"))  # which keeps single numbers as they are
    return on_host(values, where)
