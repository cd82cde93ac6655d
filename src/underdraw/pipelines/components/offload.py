"""Networks that live in host memory and come to an accelerator only while they are used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import RLock
from typing import Any

from underdraw import checks
from underdraw.backends.hardware import resolve_accelerator
from underdraw.engines.streaming import Streaming, plain
from underdraw.errors import InputError
from underdraw.models.base import Model
from underdraw.pipelines.components.registry import networks_among, uncompiled

HOME = "cpu"


class Offload:
    """What moves the networks of a pipeline, and of those that share them.

    A network may have several users: calls in other threads, or a preview inside of a call. It goes
    home with the last of them. Networks may share layers, as a gated UNet and its `grounding` do; a
    layer stays for as long as any network that has it is used.
    """

    def __init__(self, device: Any, streams: bool = False) -> None:
        self.device = device
        self.streams = streams
        """Whether networks stay at home and their layers pass through the device, as
        `engines.streaming` has it; then only what cannot be asked by an engine is moved."""
        # Reentrant, for a forgotten stream may be closed by the collector at any moment.
        self._lock = RLock()
        self._here: dict[int, tuple[Any, list[object]]] = {}
        """By id the networks that may be on the device, and who uses them."""

    def __getstate__(self) -> Any:
        """For copies and pickles: their networks are others, which nobody uses yet."""
        return self.device, self.streams

    def __setstate__(self, state: Any) -> None:
        Offload.__init__(self, *state)

    @property
    def busy(self) -> bool:
        """Whether anybody uses a network now."""
        with self._lock:
            return any(users for _, users in self._here.values())

    @contextmanager
    def using(self, *networks: Any, whole: bool = False) -> Iterator[None]:
        """While it lasts, these networks are on the device; what is no network is passed over.
        Where layers are streamed, none is moved unless it is needed as a `whole`."""
        user, networks = object(), networks if whole or not self.streams else ()
        try:
            for network in _models(networks):
                with self._lock:
                    self._note(network).append(user)
                    # Also where others use it: their move may have been interrupted.
                    network._framework.move(network, self.device)
            yield
        finally:
            with self._lock:
                for _, users in list(self._here.values()):
                    users[:] = [other for other in users if other is not user]
                self.bring_home()

    def bring_home(self, *networks: Any) -> None:
        """Move to host memory what nobody uses, of these networks and of those on the device."""
        with self._lock:
            for network in _models(networks):
                self._note(network)
            held = list(self._here.items())
            used = {id(p) for _, (one, users) in held if users for p in one.parameters()}
            for key, (network, users) in held:
                if not users and used.isdisjoint(map(id, network.parameters())):
                    network._framework.move(network, HOME)
                    # Not before: an interrupted move is made up for by the next one.
                    self._here.pop(key, None)

    def check_stays(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Raise an InputError if arguments of `pipe.to` name a place and not only a dtype."""
        given = [*args, kwargs.get("device"), kwargs.get("tensor")]
        places = [one for one in given if one is not None and not _is_plain(one)]
        if places:
            raise InputError(
                f"device={str(places[0])!r:.60}: the networks of this pipeline are moved by "
                f"enable_model_cpu_offload, to {str(self.device)!r} and back; allowed: a dtype. "
                "Call disable_model_cpu_offload() before"
            )

    def _note(self, network: Any) -> list[object]:
        """The users of a network."""
        return self._here.setdefault(id(network), (network, []))[1]


def enable(
    components: Any, gpu_id: Any, device: Any, streams: bool = False, blocks: int | None = None
) -> None:
    """What `pipe.enable_model_cpu_offload` does, to its `Components`; with `streams` what
    `enable_sequential_cpu_offload` does, or with `blocks` `enable_group_offload`."""
    for name, network in components.named.items():
        kind = uncompiled(network).nn.name if isinstance(uncompiled(network), Model) else "torch"
        if kind != "torch":
            raise InputError(
                f"{name} is on the backend {kind!r}; networks of 'torch' alone are offloaded"
            )
    place = resolve_accelerator(
        None if gpu_id is None else checks.whole("gpu_id", gpu_id, 0, 1024),
        checks.device("device", device),
    )
    before = components.offload
    if before is not None and (before.device, before.streams) != (place, streams):
        if before.busy:
            raise InputError(
                f"device={str(place)!r}: calls are in progress on {str(before.device)!r}; wait for "
                "their end"
            )
        before = None
    made = Offload(place, streams) if before is None else before
    made.bring_home(*components.networks)
    components.offload = made
    inner = plain(components.engine)
    components.engine = Streaming(inner, place, blocks) if streams else inner


def disable(components: Any) -> None:
    """Networks stay in host memory from now on."""
    if components.offload is not None:
        components.offload.bring_home()
    components.offload, components.engine = None, plain(components.engine)


def _models(networks: Sequence[Any]) -> list[Any]:
    return networks_among(networks)


def _is_plain(value: Any) -> bool:
    """Whether an argument of `torch.nn.Module.to` is a dtype or a switch."""
    return isinstance(value, bool) or type(value).__name__ == "dtype"
