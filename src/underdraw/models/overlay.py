"""What weights of a subject lay over the networks of a pipeline, and a subject that was tuned:
tokens of its own with such differences, in one small file.

Names in files are those of LoRAs as diffusers writes them (`unet.PATH.lora_A.weight`, `lora_B`),
and for whole differences those of kohya's scripts (`diff`, `diff_b`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from underdraw.backends.deltas import Delta, Deltas, Full, LowRank, check_paths
from underdraw.errors import ControlError, InputError, WeightError
from underdraw.formats import json_text
from underdraw.formats.stored import StoredTensor, check_sizes
from underdraw.weights.files import open_checkpoint
from underdraw.weights.quantised import numbers
from underdraw.weights.save import save_tensors

NETWORKS = ("unet", "text_encoder")
FILE = "overlay.safetensors"
"""In the folder of a subject encoder."""
EMBEDDING = "subject.embedding"
FACTS = "underdraw.subject"
"""In the metadata of a file: what the subject is."""
ENDS = {"lora_A.weight": "down", "lora_B.weight": "up", "diff": "weight", "diff_b": "bias"}
MOST_WORDS = 1000
"""Characters of a category."""


@dataclass(frozen=True, eq=False)
class Overlay:
    """Differences to layers by their paths, of numpy arrays, for any backend."""

    unet: Deltas = field(default_factory=dict)
    text_encoder: Deltas = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.unet or self.text_encoder)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, StoredTensor]) -> Overlay:
        """From the tensors of a file, all of which must be known.

        Raises:
            WeightError: a name is unknown, or parts of a difference are missing.
        """
        found: dict[str, dict[str, dict[str, np.ndarray]]] = {name: {} for name in NETWORKS}
        check_sizes(tensors.values())
        for name, tensor in tensors.items():
            network, _, rest = name.partition(".")
            end = next((end for end in ENDS if rest.endswith(f".{end}")), None)
            if network not in NETWORKS or end is None:
                raise WeightError(f"tensor {name!r:.100} is no difference to a layer")
            path = rest[: -len(end) - 1]
            found[network].setdefault(path, {})[ENDS[end]] = _floats(name, tensor)
        made = {
            network: {path: _delta(f"{network}.{path}", parts) for path, parts in paths.items()}
            for network, paths in found.items()
        }
        return cls(made["unet"], made["text_encoder"])

    def tensors(self) -> dict[str, np.ndarray]:
        """By the names of files."""
        made: dict[str, np.ndarray] = {}
        for network in NETWORKS:
            for path, delta in getattr(self, network).items():
                for end, name in ENDS.items():
                    array = getattr(delta, name, None)
                    if array is not None:
                        made[f"{network}.{path}.{end}"] = array
        return made

    def check(self, components: Any) -> None:
        """Raise an InputError unless the differences fit the networks of a pipeline."""
        for name in NETWORKS:
            deltas, network = getattr(self, name), getattr(components, name)
            if deltas and network is not None:
                try:
                    check_paths(type(network).layout(network.config), deltas)
                except ControlError as error:
                    raise InputError(
                        f"subject weights lay differences over the {name} that are not for this "
                        f"one: {error}"
                    ) from None

    def ready(self, framework: Any, network: str, dtype: Any, device: Any) -> Deltas:
        """The differences to a network as arrays of a backend."""

        def array(x: Any) -> Any:
            return None if x is None else framework.array(x, dtype=dtype, device=device)

        made: dict[str, Delta] = {}
        for path, delta in getattr(self, network).items():
            if isinstance(delta, LowRank):
                made[path] = LowRank(array(delta.down), array(delta.up))
            else:
                assert isinstance(delta, Full)  # nothing else is read
                made[path] = Full(array(delta.weight), array(delta.bias))
        return made


NOTHING = Overlay()


@dataclass(frozen=True, eq=False)
class TunedSubject:
    """A subject that was learned from a few pictures (`training.subject_tuning`).

    `embedding`: its tokens, float32 `(1, tokens, width)`, None where it has no more than its
    differences, and the prompt's own words name it.
    """

    category: str
    embedding: np.ndarray | None = None
    overlay: Overlay = field(default_factory=Overlay)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> TunedSubject:
        """Raises:
        NotFoundError, WeightError: the file is not there, damaged, or of another kind.
        """
        held = open_checkpoint(path)
        told = held.metadata.get(FACTS)
        if not isinstance(told, str):
            raise WeightError(f"{path} holds no tuned subject")
        facts = json_text.parse(told, f"{path}: metadata")
        category = facts.get("category") if isinstance(facts, dict) else None
        if not isinstance(category, str) or not 0 < len(category.strip()) <= MOST_WORDS:
            raise WeightError(f"{path} does not say what its subject is")
        try:
            rest = dict(held.tensors)
            stored = rest.pop(EMBEDDING, None)
            embedding = None if stored is None else _floats(EMBEDDING, stored)
            if embedding is not None and (embedding.ndim != 3 or embedding.shape[0] != 1):
                raise WeightError(f"{EMBEDDING} has shape {embedding.shape}; (1, tokens, width)")
            return cls(category, embedding, Overlay.from_tensors(rest))
        except WeightError as error:
            raise WeightError(f"{path}: {error}") from None

    def to_file(self, path: str | os.PathLike[str], dtype: str = "float16") -> None:
        """Write one safetensors file, atomically."""
        tensors = self.overlay.tensors()
        if self.embedding is not None:
            tensors[EMBEDDING] = self.embedding
        made: dict[str, Any] = {name: array.astype(dtype) for name, array in tensors.items()}
        facts = json.dumps({"category": self.category})
        save_tensors(path, made, {"format": "pt", FACTS: facts})


def scaled(deltas: Deltas, scale: Any) -> Deltas:
    """Those of `Overlay.ready` so much of them: a number, or an array with one for each row."""
    made: dict[str, Delta] = {}
    for path, delta in deltas.items():
        assert isinstance(delta, LowRank | Full)
        made[path] = replace(delta, scale=scale)
    return made


def is_tuned(path: str | os.PathLike[str]) -> bool:
    """Whether a file says that it holds a tuned subject."""
    return FACTS in open_checkpoint(path).metadata


def read_overlay(path: str | os.PathLike[str]) -> Overlay:
    """From a file of a subject encoder's folder.

    Raises:
        WeightError: it is damaged, or holds something else.
    """
    try:
        return Overlay.from_tensors(open_checkpoint(path).tensors)
    except WeightError as error:
        told = str(error)
        raise WeightError(told if told.startswith(str(path)) else f"{path}: {told}") from None


def write_overlay(path: str | os.PathLike[str], overlay: Overlay, dtype: str) -> None:
    """Write the file that `read_overlay` reads."""
    made: dict[str, Any] = {n: array.astype(dtype) for n, array in overlay.tensors().items()}
    save_tensors(path, made)


def _floats(name: str, tensor: StoredTensor) -> np.ndarray:
    if "float" not in tensor.dtype:
        raise WeightError(f"{name} has dtype {tensor.dtype}; floats are needed")
    made = numbers(tensor)
    if not np.isfinite(made).all():
        raise WeightError(f"{name} holds values that are not finite")
    return made


def _delta(place: str, parts: Mapping[str, np.ndarray]) -> Delta:
    names = set(parts)
    if names == {"down", "up"}:
        return LowRank(parts["down"], parts["up"])
    if names <= {"weight", "bias"}:
        return Full(parts.get("weight"), parts.get("bias"))
    raise WeightError(f"{place} has {' and '.join(sorted(names))}; a down has an up, and no more")
