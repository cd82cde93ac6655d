"""Whether the parameters of a tree are still what they were, and its layers PyTorch's own.

Who keeps something that was made of a network's numbers asks before each use. Writing into a
parameter is counted by PyTorch, but not through `.data`; so numbers are looked at, too.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from underdraw.backends.torch_leaves import Quantised
from underdraw.backends.torch_operations import Node, plain_layer

KINDS = (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm, nn.Embedding, Quantised)
POINTS = 8
"""Numbers of each parameter that are looked at every time."""
COLUMNS = 4099
"""Sums of a parameter, each over every 4099th eight bytes: a prime, so that rows that change places
do not stay in their sums."""
SMALL = 1 << 23
"""Bytes of a network that one thread sums up."""
_COUNT = count()


class Watch:
    """The parameters of a tree as they were when somebody last looked."""

    def __init__(self, root: Any) -> None:
        self._inside = vars(root)  # not the root, which would then live as long as its watch
        self._tree = Tree({})
        self._marks: list[Any] = []
        self._copied = False
        self._views: list[np.ndarray] = []
        self._points = b""
        self._sums: list[bytes] = []
        self.state = (next(_COUNT), 0)
        """A number of this watch, and one that grows whenever a parameter was found to be
        another."""
        self.due = True
        """Whether all numbers are to be looked at next time."""

    def look(self, whole: bool) -> str | None:
        """Look whether anything has changed. None, or what of the tree is no layer of PyTorch's own
        that nothing watches or replaces.

        Args:
            whole: read all numbers, as it is done where `due`, and not some of each parameter.
        """
        if not self._tree.stands():
            self._tree, self._marks = Tree(self._inside), []
        if (odd := self._tree.odd()) is not None:
            return odd
        marks = self._tree.marks()
        changed = marks != self._marks
        if changed or self._copied:
            tensors = self._tree.tensors
            self._marks = marks
            self._copied = not all(_dense(tensor) for tensor in tensors)
            self._views = [_flat(tensor) for tensor in tensors]
            self._spread = _by_size(v[:: max(1, len(v) // POINTS)][:POINTS] for v in self._views)
        points = b"".join(np.concatenate(some).tobytes() for some in self._spread)
        changed = changed or points != self._points
        if changed or whole or self.due:
            sums = self._summed()
            changed = changed or sums != self._sums
            self._sums, self._points, self.due = sums, points, False
        if changed:
            self.state = (self.state[0], self.state[1] + 1)
        return None

    @property
    def fingerprint(self) -> str:
        """Of names, shapes, dtypes and all numbers, as they were at the last look."""
        seen = blake2b(digest_size=20)
        for name, tensor, total in zip(
            self._tree.names, self._tree.tensors, self._sums, strict=True
        ):
            seen.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode() + total)
        return seen.hexdigest()

    def _summed(self) -> list[bytes]:
        if sum(view.nbytes for view in self._views) < SMALL or torch.get_num_threads() == 1:
            return [_sums(view) for view in self._views]
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            return list(pool.map(_sums, self._views))


class Tree:
    """The modules and parameters under a root, whose attributes (`vars(root)`) are given."""

    def __init__(self, root: dict[str, Any]) -> None:
        self.names: list[str] = []
        self.tensors: list[Tensor] = []
        self._layers: list[tuple[str, nn.Module]] = []
        self._mappings: list[dict[str, Any]] = []
        """What holds modules and parameters."""
        if root:
            self._walk("", root)
        self._held = [value for mapping in self._mappings for value in mapping.values()]
        self._ids = list(map(id, self._held))

    def _walk(self, path: str, inside: dict[str, Any]) -> None:
        for kind in ("_modules", "_parameters"):
            self._mappings.append(inside[kind])
        for name, value in inside["_parameters"].items():
            if value is not None:
                self.names.append(f"{path}{name}")
                self.tensors.append(value)
        for name, module in inside["_modules"].items():
            if not isinstance(module, Node):
                self._layers.append((f"{path}{name}", module))
            if type(module) is Quantised:
                self._mappings.append(vars(module)["_buffers"])
                self.names += [f"{path}{name}.codes", f"{path}{name}.scale"]
                self.tensors += [module.codes, module.scale]
            self._walk(f"{path}{name}.", vars(module))

    def stands(self) -> bool:
        """Whether modules and parameters are the very same."""
        held = [id(value) for mapping in self._mappings for value in mapping.values()]
        return bool(held) and held == self._ids

    def odd(self) -> str | None:
        """What is no plain layer."""
        for path, module in self._layers:
            kind, inside = type(module), module.__dict__
            eight = kind is Quantised
            if eight and module.kind != "int8":
                return f"'{path}' keeps its weight in {module.kind}"
            more = bool(inside["_buffers"]) and not eight
            if kind not in KINDS or plain_layer(module, kind) is None or more:
                return f"'{path}' is a {kind.__name__} that is watched or replaced"
            if inside.get("padding_mode", "zeros") != "zeros":
                return f"'{path}' pads with {module.padding_mode!r}"
            if inside.get("max_norm") is not None:
                return f"'{path}' changes its rows when they are read"
        return None

    def places(self) -> list[Any]:
        """Where each parameter lies."""
        return [(t.data_ptr(), t.stride()) for t in self.tensors]

    def marks(self) -> list[Any]:
        """Where each parameter lies, and how often it was written to as far as PyTorch counts."""
        return [
            (t.data_ptr(), -1 if t.is_inference() else t._version, t.stride()) for t in self.tensors
        ]


def recording(root: nn.Module, arrays: Iterable[Any]) -> bool:
    """Whether PyTorch would record a call of a network with these arrays for a gradient."""
    return torch.is_grad_enabled() and any(
        isinstance(one, Tensor) and one.requires_grad for one in (*arrays, *root.parameters())
    )


def _by_size(views: Iterable[np.ndarray]) -> list[list[np.ndarray]]:
    groups: dict[Any, list[np.ndarray]] = {}
    for view in views:
        groups.setdefault(view.dtype, []).append(view)
    return list(groups.values())


def _dense(tensor: Tensor) -> bool:
    last = tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return last or tensor.is_contiguous()


def _flat(tensor: Tensor) -> np.ndarray:
    """The bits of a tensor in the order in which they lie in memory; of a copy, where there are
    gaps between them."""
    tensor = tensor.detach()
    if not _dense(tensor):
        tensor = tensor.contiguous()
    flat = tensor.as_strided((tensor.numel(),), (1,))
    kind = {1: torch.int8, 2: torch.int16, 4: torch.int32}.get(flat.element_size(), torch.int64)
    return flat.view(kind).numpy()


def _sums(view: np.ndarray) -> bytes:
    """A few bytes that depend on all numbers and their places."""
    bits = view.view(np.uint8)
    rest = len(bits) % (8 * COLUMNS)
    seen = blake2b(bits[len(bits) - rest :].tobytes(), digest_size=16)
    if len(bits) > rest:
        table = bits[: len(bits) - rest].view(np.uint64).reshape(-1, COLUMNS)
        seen.update(np.add.reduce(table, axis=0, dtype=np.uint64).tobytes())
    return seen.digest()
