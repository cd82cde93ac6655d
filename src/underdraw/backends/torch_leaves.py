"""PyTorch: layers whose weights lie in 8 bits, and layers that are elsewhere for a moment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from operator import is_
from threading import RLock
from typing import Any
from weakref import ref

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from underdraw.backends.torch_operations import Node, _compute
from underdraw.errors import InputError

KINDS = ("int8", "float8")
LARGEST = {"int8": 127.0, "float8": 448.0}
LEAST = 4096
"""Numbers of a weight that is worth it."""


class Quantised(nn.Module):
    """A linear layer or convolution whose weight is kept in 8 bits, with a scale for each output.

    "int8" rounds to 255 equal steps, "float8" (e4m3) to numbers of 3 bits behind the point. It
    computes in the dtype it had; its weight is made anew for each use.
    """

    def __init__(self, layer: Any, kind: str) -> None:
        super().__init__()
        self.kind = kind
        # Not among the modules of the tree: it has no numbers.
        vars(self)["like"] = _without_numbers(layer)
        weight = layer.weight.detach().float()
        largest = weight.abs().flatten(1).amax(1).clamp_min(1e-30)
        scale = (largest / LARGEST[kind]).reshape(-1, *[1] * (weight.ndim - 1))
        scaled = weight / scale
        if kind == "int8":
            codes = scaled.round_().to(torch.int8)
        else:
            # Kept as whole numbers, which no change of dtype converts.
            codes = scaled.to(torch.float8_e4m3fn).view(torch.int8)
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)
        self.register_buffer("kept", torch.empty(0, dtype=layer.weight.dtype))
        bias = None if layer.bias is None else nn.Parameter(layer.bias.detach(), False)
        self._parameters["bias"] = bias  # what it is like has a name `bias`, too

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            like = vars(self).get("like")
            if name.startswith("_") or like is None:
                raise
            return getattr(like, name)  # stride, padding, ...

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # Scales go along, but stay as exact as they are.
        scale = self.scale
        super()._apply(fn, recurse)
        self.scale = scale.to(self.scale.device)
        return self

    @property
    def weight(self) -> Tensor:
        """In floating point."""
        codes = self.codes if self.kind == "int8" else self.codes.view(torch.float8_e4m3fn)
        return (codes.to(self.scale.dtype) * self.scale).to(self.kept.dtype)

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        w, like = {"weight": self.weight.to(x.dtype), "bias": bias}, self.like
        if isinstance(like, nn.Linear):
            return _compute(F.linear, x, w)
        return _compute(F.conv2d, x, w, like.stride, like.padding, like.dilation, like.groups)

    def plain(self) -> nn.Module:
        """The layer in floating point."""
        made = copy(self.like)
        weight = nn.Parameter(self.weight, False)
        made._parameters = {"weight": weight, "bias": self.bias}
        return made


def eight_bits(layer: Any) -> tuple[Tensor, Tensor] | None:
    """Whole numbers `(outputs, ...)` and scales `(outputs, 1, ...)` of a layer in "int8", whose
    product is its weight; None for others."""
    if isinstance(layer, Quantised) and layer.kind == "int8":
        return layer.codes, layer.scale
    return None


def _without_numbers(layer: Any) -> Any:
    made = copy(layer)
    made._parameters = dict.fromkeys(layer._parameters)
    return made


def quantised(layer: Any, kind: str | None) -> Any:
    """A layer with its weight in 8 bits. Where there is nothing to gain, or the kind is None, one
    with the same numbers, which goes to other places and dtypes by itself.

    Raises:
        InputError: its weight holds NaN or infinity.
    """
    if isinstance(layer, Quantised) and kind not in (None, layer.kind):
        layer = layer.plain()
    fits = type(layer) in (nn.Linear, nn.Conv2d) and layer.weight.numel() >= LEAST
    if kind is None or not fits or getattr(layer, "padding_mode", "zeros") != "zeros":
        made = copy(layer)
        made._parameters = {
            name: None if value is None else nn.Parameter(value.detach(), value.requires_grad)
            for name, value in layer._parameters.items()
        }
        made._buffers = dict(layer._buffers)
        return made
    if not bool(torch.isfinite(layer.weight.detach().abs().max())):
        raise InputError("a weight holds NaN or infinity, which 8 bits cannot hold")
    return Quantised(layer, kind)


def quantised_as(root: Any) -> str | None:
    """The kind of 8 bits that layers of a network are kept in; None where there are none."""
    layers = root.modules() if isinstance(root, nn.Module) else ()
    return next((layer.kind for layer in layers if isinstance(layer, Quantised)), None)


def stored_bytes(root: nn.Module) -> int:
    """Bytes of all weights as they are kept."""
    return sum(one.nbytes for one in (*root.parameters(), *root.buffers()))


# -- elsewhere for a moment ------------------------------------------------------------------------
class Streamed:
    """A tree of layers that lives in host memory and shows its layers on another device: each is
    copied there when a program asks for it, and let go soon after. Nothing in the tree changes."""

    def __init__(self, node: Any, copies: Copies | Single, path: str = "") -> None:
        self._node, self._copies, self._path = node, copies, path

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self._at(name, getattr(self._node, name))

    def __getitem__(self, index: int) -> Any:
        return self._at(str(index), self._node[index])

    def __len__(self) -> int:
        return len(self._node)

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self)))

    def _at(self, name: str, child: Any) -> Any:
        path = f"{self._path}.{name}" if self._path else name
        if isinstance(child, Node):
            return Streamed(child, self._copies, path)
        if isinstance(child, nn.Module | Tensor):
            return self._copies.of(path, child)
        return child


class Copy:
    """A layer on a device, and what it was copied from."""

    def __init__(self, layer: Any, device: Any) -> None:
        self._tensors = list(_tensors(layer))  # held, for their addresses tell
        self._marks = _marks(self._tensors)
        self.layer = _copied(layer, device)

    def stands_for(self, layer: Any) -> bool:
        """Whether the layer is what was copied, with the numbers of then as far as PyTorch counts
        what is written."""
        now = list(_tensors(layer))
        same = len(now) == len(self._tensors) and all(map(is_, now, self._tensors))
        return same and _marks(now) == self._marks


Group = Mapping[str, Copy]


class Copies:
    """Layers of one network on a device, a group at a time; the next group is fetched while the
    present one computes, where that is asked for. What was copied before its numbers changed is
    copied again."""

    def __init__(self, root: nn.Module, groups: Sequence[Sequence[str]], device: Any) -> None:
        self.device, self._groups = device, [list(group) for group in groups]
        self._group_of = {path: i for i, group in enumerate(self._groups) for path in group}
        self._root = ref(root)  # a network that nobody else holds may go
        self._held: dict[int, Group] = {}
        self._coming: dict[int, Future[Group]] = {}
        self._lock = RLock()
        self._stream: Any = None

    def of(self, path: str, layer: Any) -> Any:
        """A layer there, or a parameter that belongs to none."""
        number = self._group_of.get(path)
        if number is None:
            return _copied(layer, self.device)
        with self._lock:
            if number not in self._held:
                coming = self._coming.pop(number, None)
                found = self._fetched(number) if coming is None else coming.result()
                self._held = {number: self._settled(found)}
                following = (number + 1) % len(self._groups)
                if len(self._groups) > 1 and following not in self._coming:
                    self._coming = {following: _POOL.submit(self._fetched, following)}
            if not self._held[number][path].stands_for(layer):
                self._coming = {}
                self._held = {number: self._settled(self._fetched(number))}
            return self._held[number][path].layer

    def release(self) -> None:
        """Let go of what is there."""
        with self._lock:
            self._held, self._coming = {}, {}

    def _fetched(self, number: int) -> Group:
        """A group, copied. On CUDA by a stream of its own, so that the present one goes on."""
        root, paths = self._root(), self._groups[number]
        layers = {path: _layer_at(root, path) for path in paths}
        if self.device.type != "cuda":
            return {path: Copy(layer, self.device) for path, layer in layers.items()}
        if self._stream is None:
            self._stream = torch.cuda.Stream(self.device)
        with torch.cuda.stream(self._stream):
            found = {path: Copy(layer, self.device) for path, layer in layers.items()}
        self._stream.synchronize()
        return found

    def _settled(self, found: Group) -> Group:
        """Memory of another stream is not given away before the present one is done with it."""
        if self.device.type == "cuda":
            here = torch.cuda.current_stream(self.device)
            for made in found.values():
                for one in _tensors(made.layer):
                    one.record_stream(here)
        return found


_POOL = ThreadPoolExecutor(1, "underdraw-fetch")


class Single:
    """Copies of one layer at a time, for the least memory."""

    def __init__(self, device: Any) -> None:
        self.device = device

    def of(self, path: str, layer: Any) -> Any:
        """A layer there, or a parameter that belongs to none."""
        return _copied(layer, self.device)

    def release(self) -> None:
        """Nothing: nothing is held."""


def copies(root: nn.Module, device: Any, groups: Sequence[Sequence[str]] | None) -> Copies | Single:
    """What brings the layers of a network to `device` while they are used: each by itself, or in
    groups of paths, in the order in which they are met, each fetched ahead."""
    return Single(device) if groups is None else Copies(root, groups, device)


def streamed(root: nn.Module, made: Copies | Single) -> Any:
    """A network as its programs see it, whose layers are what `copies` bring."""
    return Streamed(root, made)


def _layer_at(root: Any, path: str) -> Any:
    here = root
    for name in path.split("."):
        here = here._modules.get(name) if name in here._modules else here._parameters[name]
    return here


def _copied(layer: Any, device: Any) -> Any:
    if isinstance(layer, Tensor):
        return layer.detach().to(device)
    made = copy(layer)
    for name in ("_parameters", "_buffers"):
        there = {
            key: None if value is None else value.detach().to(device)
            for key, value in vars(layer)[name].items()
        }
        vars(made)[name] = there
    return made


def _marks(tensors: Sequence[Tensor]) -> list[tuple[int, int]]:
    return [(one.data_ptr(), -1 if one.is_inference() else one._version) for one in tensors]


def _tensors(layer: Any) -> Iterator[Tensor]:
    if isinstance(layer, Tensor):
        yield layer
        return
    yield from (one for one in layer._parameters.values() if one is not None)
    yield from (one for one in layer._buffers.values() if one is not None)
