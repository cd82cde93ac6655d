"""What is attached beside a pipeline's networks, which it never touches: one mechanism for all
kinds of weights. Each kind has a file of its own beside this one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from types import MappingProxyType
from typing import Any

from underdraw import checks
from underdraw.arguments import checked
from underdraw.errors import InputError
from underdraw.weights import hub as hubs
from underdraw.weights.replacing import settle

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class AdapterKind:
    """A kind of weights that are attached beside a pipeline's networks, for controls to use."""

    name: str
    """As `pipe.load_adapter` takes it, and `components.adapters` lists it."""
    folder: str
    """Where in a pipeline's own folder such weights lie, or several of them, in folders inside of
    it by whose names they are known; they are attached as soon as somebody asks."""
    read: Callable[..., tuple[str, Any]]
    """`(components, source, **options) -> (name, network)`: opens what users name, checks that it
    fits the UNet, and says by what name it is known among its kind."""
    write: Callable[[Any, Any], None]
    """`(network, target)`: writes it so that `read` takes it back."""
    beside: bool = True
    """Whether such networks act inside calls of the UNet, so that they are where it is."""


KINDS: dict[str, AdapterKind] = {}
"""By name; filled by `register_adapter`."""


def register_adapter(kind: AdapterKind) -> AdapterKind:
    """Let pipelines load weights of one more kind.

    Raises:
        InputError: there is another one of this name.
    """
    if KINDS.setdefault(kind.name, kind) != kind:
        raise InputError(f"kind={kind.name!r} of adapters is there already")
    return kind


Networks = Mapping[str, Any]
"""Attached networks of a kind, by name."""


class Attached:
    """What was attached to the `components` of a pipeline, which are an argument."""

    by_kind: Mapping[str, Networks] = MappingProxyType({})
    """By kind of adapter; a kind is missing until somebody asks for it. Replaced at each change and
    never changed in place, so that runs in other threads keep what they began with."""
    own: Mapping[str, frozenset[str]] = MappingProxyType({})
    """By kind, names of networks that the pipeline's own folder holds and nobody has attached."""
    brought: Networks = MappingProxyType({})
    """By kind, what else its weights brought along: a tuple of networks, any of them None (for
    grounding weights what makes features of pictures). Gone with the last network of the kind."""

    def __init__(self) -> None:
        # Reentrant: what is read may bring something along.
        self._lock = RLock()

    def __getstate__(self) -> Any:
        """For copies and pickles: each has a lock of its own."""
        state = dict(vars(self))
        del state["_lock"]
        state["by_kind"] = {kind: dict(networks) for kind, networks in self.by_kind.items()}
        state |= {"brought": dict(self.brought), "own": dict(self.own)}
        return state

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        Attached.__init__(self)
        frozen = {kind: MappingProxyType(found) for kind, found in state["by_kind"].items()}
        plain = {name: MappingProxyType(state[name]) for name in ("brought", "own")}
        vars(self).update(state, by_kind=MappingProxyType(frozen), **plain)

    @property
    def networks(self) -> tuple[Any, ...]:
        """Networks of all kinds, without looking for more."""
        return tuple(one for networks in self.by_kind.values() for one in networks.values())

    @property
    def beside(self) -> tuple[Any, ...]:
        """Those that act inside calls of the UNet."""
        acting = (found for kind, found in self.by_kind.items() if KINDS[kind].beside)
        return tuple(one for networks in acting for one in networks.values())

    @property
    def parts(self) -> tuple[Any, ...]:
        """All that is attached, without looking for more."""
        return (*self.networks, *(one for brought in self.brought.values() for one in brought))

    def of(self, components: Any, kind: str) -> Networks:
        """Networks of a kind; weights in its folder of the pipeline's own folder are among them.

        Raises:
            InputError: the kind is not known.
        """
        known = adapter_kind(kind)
        with self._lock:  # weights of the folder are read once, whoever asks first
            if kind not in self.by_kind:
                folder = own_folder(components.source)
                places = [] if folder is None else weights_in(folder / known.folder)
                found = dict(known.read(components, at) for at in places)
                self._set(components, kind, found)
                self.own = MappingProxyType({**self.own, kind: frozenset(found)})
            return self.by_kind[kind]

    def only(self, components: Any, kind: str) -> str | None:
        """The name of the only network of a kind: of those that somebody attached, or else of
        those of the pipeline's own folder. None where there is none, or several."""
        there = self.of(components, kind)
        names = [name for name in there if name not in self.own.get(kind, ())] or list(there)
        return names[0] if len(names) == 1 else None

    def load(self, components: Any, kind: str, source: Any, options: Mapping[str, Any]) -> None:
        """Attach what a kind reads from `source`. Weights in the pipeline's own folder are read
        before, so that what they bring along does not come over what is brought here.

        Raises:
            UnderdrawError: the kind is not known, or its weights cannot be read.
        """
        with self._lock:
            self.of(components, kind)
            name, network = adapter_kind(kind).read(components, source, **options)
            self.attach(components, kind, name, network)

    def attach(self, components: Any, kind: str, name: str, network: Any) -> None:
        """Add a network; another one of this kind and name goes."""
        with self._lock:
            self._set(components, kind, {**self.of(components, kind), name: network})
            own = self.own.get(kind, frozenset()) - {name}
            self.own = MappingProxyType({**self.own, kind: own})
        LOG.info("attached: %s %r", kind, name)

    def detach(self, components: Any, kind: str, name: str | None) -> None:
        """Remove the network of a name, or all of a kind.

        Raises:
            InputError: none of this name is attached.
        """
        with self._lock:
            there = dict(self.of(components, kind))
            if name is not None and not checks.is_one_of(name, tuple(there)):
                listed = ", ".join(map(repr, there)) or "none"
                raise InputError(
                    f"name or kind={checks.shown(name)} is not attached; attached: {listed}"
                )
            for gone in [name] if name is not None else list(there):
                del there[gone]
            self._set(components, kind, there)
            if not there:
                kept = {other: brought for other, brought in self.brought.items() if other != kind}
                self.brought = MappingProxyType(kept)

    def bring(self, components: Any, kind: str, brought: tuple[Any, ...]) -> None:
        """Keep what weights of a kind brought along, in place of what others of it did."""
        with self._lock:
            self.brought = MappingProxyType({**self.brought, kind: brought})
        if components.offload is not None:
            components.offload.bring_home(*brought)

    def _set(self, components: Any, kind: str, networks: Networks) -> None:
        self.by_kind = MappingProxyType({**self.by_kind, kind: MappingProxyType(dict(networks))})
        if components.offload is not None:
            components.offload.bring_home(*networks.values())


def adapter_kind(name: Any) -> AdapterKind:
    """A kind of adapters by its name.

    Raises:
        InputError: it is not known.
    """
    if not checks.is_one_of(name, tuple(KINDS)):
        allowed = ", ".join(map(repr, sorted(KINDS)))
        raise InputError(f"kind={checks.shown(name)} of adapters is not known; allowed: {allowed}")
    return KINDS[name]


class Adaptable:
    """The methods of pipelines about what is attached beside their networks."""

    parts: Any
    """`Components`"""

    @property
    def adapters(self) -> Mapping[str, Networks]:
        """What is attached, by kind and name."""
        return MappingProxyType(
            {kind: self.parts.attached.of(self.parts, kind) for kind in sorted(KINDS)}
        )

    @checked
    def load_adapter(self, kind: str, source: Any, **options: Any) -> None:
        """Attach weights of a kind ("grounding", ..., or one of `register_adapter`); others of the
        same kind and name go. `source` and `options` are as the kind takes them; its familiar
        method (`load_grounding`, ...) tells them.

        Raises:
            InputError: the kind is not known, or the weights were trained for another UNet.
            NotFoundError, WeightError: there are none, or they are damaged.
        """
        self.parts.attached.load(self.parts, kind, source, options)

    def unload_adapter(self, kind: str, name: str | None = None) -> None:
        """Detach the weights of a name, or all of a kind: calls then give the bits from before.

        Raises:
            InputError: none of this name is attached.
        """
        self.parts.attached.detach(self.parts, kind, name)

    def save_adapter(self, kind: str, target: str | Path, name: str | None = None) -> None:
        """Write weights of a kind as `load_adapter` reads them; `name` says which of several.

        Raises:
            InputError: there are none, or several and `name` does not say which.
        """
        write_adapter(adapter_kind(kind), self.parts.attached.of(self.parts, kind), target, name)


def write_adapter(kind: AdapterKind, there: Networks, target: Any, name: str | None) -> None:
    """Write one of the networks of a kind; `name` says which of several.

    Raises:
        InputError: there are none, or several and `name` does not say which.
    """
    if name is None and len(there) == 1:
        name = next(iter(there))
    checks.path("target", target)
    if not checks.is_one_of(name, tuple(there)):
        listed = ", ".join(map(repr, there)) or "none"
        raise InputError(
            f"name or kind={checks.shown(name)}; allowed: kinds of the {kind.name} weights, "
            f"{listed}"
        )
    assert name is not None  # which is none of them
    kind.write(there[name], target)


def weights_in(folder: Path) -> list[Path]:
    """The folders of weights that a pipeline's own folder of a kind is or holds."""
    settle(folder)
    if (folder / "config.json").exists():
        return [folder]
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    return [one for one in inside if (one / "config.json").exists()]


def own_folder(source: str | None) -> Path | None:
    """Where a pipeline was loaded from, if that is a folder of this machine."""
    if source == hubs.SCENES:
        return hubs.scenes_folder()
    return Path(source) if source is not None and Path(source).is_dir() else None
