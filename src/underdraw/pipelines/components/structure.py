"""ControlNets and T2I-Adapters, attached beside a UNet under names: a kind of adapters."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from underdraw import checks
from underdraw.arguments import checked
from underdraw.controls.structure import KIND, Net
from underdraw.errors import InputError, InputTypeError
from underdraw.models import ControlNetModel, T2IAdapter
from underdraw.models.base import like
from underdraw.models.keywords import drop_neutral
from underdraw.models.single_file import NEUTRAL
from underdraw.pipelines.components.adapters import (
    Adaptable,
    AdapterKind,
    own_folder,
    register_adapter,
    weights_in,
    write_adapter,
)
from underdraw.pipelines.components.registry import uncompiled
from underdraw.weights import folders, hub as hubs
from underdraw.weights.files import SUFFIXES, open_tensors
from underdraw.weights.locate import find
from underdraw.weights.t2i_adapter import is_adapter


def read_structure(
    components: Any,
    source: Any,
    *,
    name: str | None = None,
    global_pool_conditions: bool | None = None,
    variant: str | None = None,
    subfolder: str = "",
    dtype: Any = None,
    **hub: Any,
) -> tuple[str, Net]:
    """A ControlNet or T2I-Adapter, and the name it is to be known by."""
    unet = uncompiled(components.unet)
    if isinstance(source, ControlNetModel | T2IAdapter):
        net: Net = source
    else:
        checks.path("source", source)
        pooled = global_pool_conditions
        net = _open(source, unet, pooled, variant, subfolder, dtype, hub)
    net.require_fit(unet)
    if name is None:
        named = isinstance(source, str | os.PathLike)
        name = Path(source).stem if named else type(net).__name__
    checks.texts("name", name)
    return name, net


def _open(
    source: Any,
    unet: Any,
    pooled: bool | None,
    variant: str | None,
    subfolder: str,
    dtype: Any,
    hub: dict[str, Any],
) -> Net:
    access = drop_neutral("load_structure", hub, NEUTRAL)
    path = os.fspath(source)
    if Path(path).is_file() or path.endswith(SUFFIXES):
        place = find(source, **access)
        if is_adapter(open_tensors(place)):
            return T2IAdapter.from_single_file(place, unet=unet, dtype=dtype)
        told = {"global_pool_conditions": pooled, "unet": unet, "dtype": dtype}
        return ControlNetModel.from_single_file(place, **told)
    folder = hubs.resolve(source, subfolder=subfolder, variant=variant, **access)
    kind = folders.read_config(folder, subfolder).get("_class_name")
    kinds = {one.__name__: one for one in (ControlNetModel, T2IAdapter)}
    if kind not in kinds:
        raise InputError(f"{path} is of a {kind!r}; allowed: {', '.join(kinds)}")
    where = like(unet, dtype=dtype)
    return kinds[kind].from_pretrained(
        folder, subfolder=subfolder or None, variant=variant, **where
    )


def write_structure(net: Net, target: Any) -> None:
    """A folder that `load_structure`, and diffusers, reads back."""
    net.save_pretrained(target)


STRUCTURE = register_adapter(AdapterKind(KIND, KIND, read_structure, write_structure))


def own_structures(model: str) -> list[str]:
    """Names of the nets that belong to a model, as far as its own folder tells."""
    folder = own_folder(model)
    if folder is None:
        return []
    return [place.name for place in weights_in(folder / STRUCTURE.folder)]


class Structurable(Adaptable):
    """The methods of pipelines about nets that read maps."""

    @checked
    def load_structure(
        self,
        source: Net | str | Path,
        *,
        name: str | None = None,
        global_pool_conditions: bool | None = None,
        variant: str | None = None,
        subfolder: str = "",
        dtype: Any = None,
        **hub: Any,
    ) -> None:
        """Attach a ControlNet or a T2I-Adapter for `Structure(name, map)`; another of the same name
        goes.

        Args:
            source: a folder or Hub id, a file of the original (`.pth`, `.safetensors`: whole
                weights, differences to the UNet's, a Control-LoRA), or the network itself.
            name: by which controls know it; None: the name of the file or folder.
            global_pool_conditions: of a file, whether it is one whose residuals are means over the
                picture (shuffle); None: if its name says so.
            variant, subfolder: which files of a folder.
            dtype: of the weights, by default that of the UNet.
            hub: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`.

        Raises:
            InputError: the net was made for another UNet.
            NotFoundError, WeightError: there is none, or it is damaged.
        """
        if name is not None and not isinstance(name, str):
            raise InputTypeError(f"name={checks.shown(name)} is not a string")
        told = {"name": name, "global_pool_conditions": global_pool_conditions}
        what = {**told, "variant": variant, "subfolder": subfolder, "dtype": dtype, **hub}
        self.parts.attached.load(self.parts, KIND, source, what)

    def unload_structure(self, name: str | None = None) -> None:
        """Detach the net of a name, or all: calls then give the bits they gave before.

        Raises:
            InputError: none of this name is attached.
        """
        self.unload_adapter(KIND, name)

    def save_structure(self, target: str | Path, name: str | None = None) -> None:
        """Write a net as a folder; `name` says which of several.

        Raises:
            InputError: there are none, or several and `name` does not say which.
        """
        write_adapter(STRUCTURE, self.parts.attached.of(self.parts, KIND), target, name)
