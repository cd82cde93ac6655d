"""Where Flax keeps what a network publishes: other names, and other orders of axes.

Flax's networks of diffusers join a number to the name before it (`down_blocks_0`), those of
transformers do not. A kernel is `(in, out)` or `(height, width, in, out)`, scales of norms and
embeddings are weights under other names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from underdraw.backends.layout import Layout
from underdraw.formats.stored import StoredTensor

JOINED = ("unet", "vae", "controlnet")
"""Networks of diffusers, by the names of `weights.known_keys`."""
OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
"""Layers of the autoencoder's attention."""
TO_FLAX = {"linear": (1, 0), "conv2d": (2, 3, 1, 0)}
TO_PUBLISHED = {"linear": (1, 0), "conv2d": (3, 2, 0, 1)}
"""By the kind of a layer the order in which the axes of its weight are taken."""

Path = tuple[str, ...]


class Place(NamedTuple):
    """Where Flax keeps a tensor."""

    path: Path
    kind: str
    """Of its layer, where the axes of the tensor are in another order; else empty."""

    def to_flax(self, x: Any) -> Any:
        """A published array as Flax has it."""
        return x.transpose(TO_FLAX[self.kind]) if self.kind else x

    def to_published(self, x: Any) -> Any:
        """The inverse of `to_flax`."""
        return x.transpose(TO_PUBLISHED[self.kind]) if self.kind else x


@cache
def _places(network: str, items: tuple[tuple[str, str], ...]) -> dict[str, Place]:
    found = {}
    for path, kind in items:
        at = path
        if network == "vae":
            for published, old in OLD.items():
                at = re.sub(rf"(attentions\.\d+)\.{re.escape(published)}$", rf"\1.{old}", at)
        if network in JOINED:
            at = re.sub(r"\.(\d+)(?=\.|$)", r"_\1", at)
        names = tuple(at.split("."))
        if kind == "parameter":
            named = names[-2:] == ("position_embedding", "weight")
            found[path] = Place((*names[:-1], "embedding") if named else names, "")
            continue
        changes = kind in TO_FLAX
        last = "kernel" if changes else "embedding" if kind == "embedding" else "scale"
        found[f"{path}.weight"] = Place((*names, last), kind if changes else "")
        found[f"{path}.bias"] = Place((*names, "bias"), "")
    return found


def places(network: str, layout: Layout) -> dict[str, Place]:
    """By published name where Flax keeps each tensor of a network.

    Args:
        network: its name in `weights.known_keys`.
        layout: its tensors.
    """
    known = _places(network, tuple((path, leaf.kind) for path, leaf in layout.leaves.items()))
    return {name: known[name] for name in layout.shapes}


def published(
    network: str, layout: Layout, tensors: Mapping[str, StoredTensor]
) -> Mapping[str, StoredTensor]:
    """Tensors of Flax's, named by paths with slashes, by their published names and in the published
    order of axes; those that this network does not have keep their names, joined by dots. Of other
    checkpoints the tensors as they are."""
    if not any("/" in name for name in tensors):
        return tensors
    back = {place.path: (name, place) for name, place in places(network, layout).items()}
    made = {}
    for joined, tensor in tensors.items():
        path = tuple(joined.split("/"))
        name, place = back.get(path, (".".join(path), Place(path, "")))
        axes = TO_PUBLISHED.get(place.kind)
        if axes is not None and len(axes) == len(tensor.shape):
            shape = tuple(tensor.shape[axis] for axis in axes)
            tensor = tensor.derive(shape, place.to_published)
        made[name] = tensor
    return made


def nested(flat: Mapping[Path, Any]) -> dict[str, Any]:
    """Mappings inside each other, from values by path."""
    root: dict[str, Any] = {}
    for (*parents, last), value in flat.items():
        here = root
        for name in parents:
            here = here.setdefault(name, {})
        here[last] = value
    return root


def in_flax(
    network: str, layout: Layout, tensors: Mapping[str, StoredTensor]
) -> dict[Path, StoredTensor]:
    """Published tensors by Flax's paths and in Flax's order of axes, unread."""
    known = places(network, layout)

    def change(place: Place, tensor: StoredTensor) -> StoredTensor:
        if not place.kind:
            return tensor
        shape = tuple(tensor.shape[axis] for axis in TO_FLAX[place.kind])
        return tensor.derive(shape, lambda x: np.ascontiguousarray(place.to_flax(x)))

    return {known[name].path: change(known[name], tensor) for name, tensor in tensors.items()}
