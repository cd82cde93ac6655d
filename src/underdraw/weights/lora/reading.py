"""LoRA files of all spellings and kinds as differences to layers. Reading is strict: what cannot be
placed is an error that names it, never passed over in silence."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from underdraw import backends, checks
from underdraw.backends.deltas import Delta, Deltas, naming
from underdraw.errors import ControlError, InputError, InputTypeError, UnderdrawError, WeightError
from underdraw.formats.json_text import parse
from underdraw.formats.stored import Checkpoint, StoredTensor, check_sizes, stored
from underdraw.weights.files import open_checkpoint
from underdraw.weights.lora.kinds import Make, Parts, delta_of
from underdraw.weights.lora.places import Place, Places, what_else
from underdraw.weights.lora.spellings import BUNDLED, spelt
from underdraw.weights.quantised import as_floats

ARGUMENT = "pretrained_model_name_or_path_or_dict"
LOG = logging.getLogger(__name__)
METADATA = "lora_adapter_metadata"
"""Where diffusers writes PEFT's settings into a file."""
NO_USE = re.compile(r"(lora_te1?_|text_encoder\.)?text_projection")
"""Modules of text encoders that Stable Diffusion does not run."""


@dataclass(frozen=True, eq=False)
class LoraWeights:
    """Differences to the layers of a pipeline's networks, by their paths, and what else a file
    brings along."""

    unet: Deltas = field(default_factory=dict)
    text_encoder: Deltas = field(default_factory=dict)
    embeddings: Mapping[str, Mapping[str, StoredTensor]] = field(default_factory=dict)
    """Bundled textual inversions by name."""

    def __repr__(self) -> str:
        return (
            f"LoraWeights({len(self.unet)} layers of the UNet, {len(self.text_encoder)} of texts)"
        )


def read_lora(
    source: str | os.PathLike[str] | Checkpoint, places: Places, make: Make
) -> LoraWeights:
    """The differences in a file.

    Args:
        source: `.safetensors`, or a pickle, which is read without running code.
        places: of the networks that they are for.
        make: numbers -> arrays of their backend.

    Raises:
        NotFoundError: there is no such file.
        WeightError: it holds something else, names that have no place here, a module of which parts
            are missing, or differences that do not fit the layers.
    """
    if isinstance(source, Checkpoint):
        where, checkpoint = ARGUMENT, source
    else:
        where, checkpoint = str(Path(source)), open_checkpoint(source)
    try:
        return _read(checkpoint, places, make)
    except (WeightError, ControlError) as error:
        raise WeightError(f"{where}: {error}") from error
    except (LookupError, ArithmeticError, ValueError) as error:
        if isinstance(error, UnderdrawError):
            raise
        raise WeightError(f"{where}: names and shapes are no LoRA's ({error})") from error


def _read(checkpoint: Checkpoint, places: Places, make: Make) -> LoraWeights:
    tensors = as_floats(checkpoint.tensors)
    check_sizes(tensors.values())
    modules: dict[str, dict[str, StoredTensor]] = {}
    embeddings: dict[str, dict[str, StoredTensor]] = {}
    left = []
    for name, tensor in tensors.items():
        if (bundled := BUNDLED.fullmatch(name)) is not None:
            embeddings.setdefault(bundled[1], {})[bundled[2]] = tensor
        elif (parted := spelt(name)) is None:
            left.append(name)
        elif modules.setdefault(parted.module, {}).setdefault(parted.part, tensor) is not tensor:
            raise WeightError(f"{name!r} is there twice, in two spellings")
    _require_kinds(modules, left)
    found: dict[str, dict[str, Delta]] = {"unet": {}, "text_encoder": {}}
    alphas, homeless = _Alphas(checkpoint), []
    for module, parts in modules.items():
        place = places.of(module)
        if place is None:
            if NO_USE.fullmatch(module):
                LOG.info("%s: Stable Diffusion does not run this module", module)
            else:
                homeless.append(module)
            continue
        if place.path in found[place.component]:
            raise WeightError(f"two modules are for {place.path} of the {place.component}")
        leaf = places.layouts[place.component].leaves[place.path]
        with naming(place.path):
            delta = delta_of(module, parts, leaf, make, alphas.of(place, module, parts))
        found[place.component][place.path] = delta
    _require_places(modules, homeless)
    if not (found["unet"] or found["text_encoder"] or embeddings):
        raise WeightError("there is nothing inside that fits the UNet or the text encoder")
    return LoraWeights(found["unet"], found["text_encoder"], embeddings)


def _require_kinds(modules: Mapping[str, Parts], left: list[str]) -> None:
    """Raise a WeightError for names that are no part of a difference."""
    lonely = [f"{m}.weight" for m, parts in modules.items() if set(parts) == {"weight"}]
    left += lonely
    if not left:
        return
    if len(lonely) > len(modules) // 2 or not modules:
        raise WeightError(
            f"this is no LoRA; {len(left)} tensors such as {_some(left)} are whole weights or "
            "something else"
        )
    raise WeightError(f"{len(left)} tensors are of no kind that is known: {_some(left)}")


def _require_places(modules: Mapping[str, Parts], homeless: list[str]) -> None:
    """Raise a WeightError for modules that no network has."""
    if not homeless:
        return
    other = what_else(homeless)
    told = "" if other is None else f"; it looks like a file for {other}"
    raise WeightError(
        f"{len(homeless)} of {len(modules)} modules are none of the UNet or the text encoder, such "
        f"as {_some(homeless)}{told}"
    )


def _some(names: list[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (", ..." if len(names) > 5 else "")


class _Alphas:
    """Alphas that a file's metadata holds, as PEFT's settings."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        text = checkpoint.metadata.get(METADATA)
        self.settings: Mapping[str, Any] = {}
        if isinstance(text, str):
            found = parse(text, METADATA, fault=WeightError)
            self.settings = found if isinstance(found, Mapping) else {}

    def of(self, place: Place, module: str, parts: Parts) -> float | None:
        """Alpha of a module; None where nothing is said."""
        start = f"{place.component}."
        own = {
            name.removeprefix(start): value
            for name, value in self.settings.items()
            if name.startswith(start)
        }
        if "down" not in parts or not own:
            return None
        alpha = own.get("lora_alpha")
        patterns = own.get("alpha_pattern")
        for pattern, value in (patterns if isinstance(patterns, Mapping) else {}).items():
            # PEFT: the end of a module's path; it takes patterns as regular expressions, which a
            # file gets no say in here.
            if place.path == pattern or place.path.endswith(f".{pattern}"):
                alpha = value
        if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not alpha:
            return None
        rank = parts["down"].shape[0]
        return float(alpha) * (rank**0.5 if own.get("use_rslora") is True else 1.0)


def as_checkpoint(tensors: Mapping[str, Any], argument: str = ARGUMENT) -> Checkpoint:
    """A state dict, of numpy's arrays or any framework's, as an opened file; `argument` is what
    callers name it, for errors.

    Raises:
        InputError: it holds something else.
    """
    made = {}
    for name, value in tensors.items():
        if not isinstance(name, str) or not hasattr(value, "shape"):
            raise InputError(f"{argument}: {checks.shown(name)} is no tensor by name")
        if isinstance(value, StoredTensor):
            made[name] = value
        elif isinstance(value, np.ndarray):
            if value.dtype.kind not in "fiub":
                raise InputError(f"{argument}: {name!r:.80} has dtype {value.dtype}, no numbers")
            made[name] = stored(value)
        else:
            made[name] = on_host(value, f"{argument}: {name!r:.80}")
    return Checkpoint(made, {})


def on_host(value: Any, where: str) -> StoredTensor:
    """An array of a framework; `where` says which argument it is of, for errors.

    Raises:
        InputTypeError: it is none, or its numbers cannot be read.
    """
    framework = backends.of(value, where)
    try:
        dtype, array = framework.to_bits(value)
    except Exception as error:  # each framework has its own, for what lies nowhere or is sparse
        raise InputTypeError(f"{where} holds no numbers that can be read") from error
    return stored(array, dtype)
