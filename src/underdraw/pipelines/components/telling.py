"""What `repr` of a pipeline says: components, where and how they run, what is attached."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from underdraw import engines
from underdraw.engines.streaming import plain
from underdraw.models.base import Model
from underdraw.pipelines.components.adapters import KINDS, own_folder
from underdraw.pipelines.components.components import Components
from underdraw.pipelines.components.registry import uncompiled


def tell(kind: str, parts: Components) -> str:
    """A line for the pipeline, and one for each component and what is attached. Nothing is read
    for it."""
    lines = "\n".join(f"  {name}: {value}" for name, value in _lines(parts))
    return f"{kind}{_place(parts)}\n{lines}"


def _place(parts: Components) -> str:
    origin = "" if parts.source is None else f" of {parts.source!r}"
    if parts.unet is None:
        return origin
    dtype = str(parts.dtype).removeprefix("torch.")
    return f"{origin}: {parts.nn.name}, {parts.device}, {dtype}, engine {_engine(parts.engine)}"


def _lines(parts: Components) -> Iterator[tuple[str, str]]:
    for name, value in parts.named.items():
        yield name, _component(value)
    on = [name for name, value in vars(parts.settings).items() if value]
    if on:
        yield "settings", ", ".join(on)
    if parts.offload is not None:
        what = "layers" if parts.offload.streams else "networks"
        yield "offload", f"{what} stay in host memory, and compute on {parts.offload.device}"
    if parts.compat is not None:
        yield "compat", parts.compat
    yield "attached", ", ".join(_attached(parts)) or "nothing"


def _component(value: Any) -> str:
    bare = uncompiled(value)
    if value is None or isinstance(bare, Model):
        text = repr(bare)
        return text if bare is value else f"{text}, compiled"
    home = type(bare).__module__.partition(".")[0]
    return type(bare).__name__ if home == "underdraw" else f"{type(bare).__name__} ({home})"


def _attached(parts: Components) -> Iterator[str]:
    own = getattr(uncompiled(parts.unet), "grounding", None)
    if own is not None:
        yield f"grounding {own.config.kind!r} (in the UNet)"
    for kind, networks in parts.attached.by_kind.items():
        for name in networks:
            yield f"{kind} {name!r}"
    folder = own_folder(parts.source)
    for kind in KINDS.values():
        if folder is None or kind.name in parts.attached.by_kind:
            continue
        if (folder / kind.folder / "config.json").exists():
            yield f"{kind.name} (in its folder, read when it is used)"


def _engine(engine: Any) -> str:
    return engines.name_of(plain(engine)) or type(plain(engine)).__name__
