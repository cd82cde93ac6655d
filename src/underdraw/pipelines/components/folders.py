"""A pipeline's folder: what it holds becomes components, and components become a folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from underdraw.errors import InputTypeError
from underdraw.models import keywords as familiar
from underdraw.models.base import Model
from underdraw.models.several import Several
from underdraw.pipelines.components.advice import Advice, read_advice
from underdraw.pipelines.components.completing import complete
from underdraw.pipelines.components.registry import (
    HOMES_OF,
    LIBRARIES,
    MODELS,
    NEUTRAL,
    READERS,
    SCHEDULERS,
    SEVERAL,
    Names,
    check_listed,
    model_class,
    scheduler_class,
    uncompiled,
)
from underdraw.weights import folders, hub as hubs, save


@dataclass(frozen=True)
class How:
    """How networks are read; `DiffusionPipeline.from_pretrained` tells the meaning."""

    dtype: Any = None
    device: Any = None
    variant: str | None = None
    use_safetensors: bool | None = None
    backend: str = "torch"
    check: bool = False


class Read(NamedTuple):
    """What was read of a folder."""

    components: dict[str, Any]
    switches: dict[str, Any]
    """Arguments of the constructor that were given, or that the folder says."""
    advice: Advice


def read_folder(
    names: Names, name_or_path: str | Path, how: How, options: Mapping[str, Any]
) -> Read:
    """Components of a folder or Hub id.

    Args:
        options: components to use instead, switches, and where the Hub is looked at.

    Raises:
        InputTypeError, InputError: an option is not known, a needed component is lacking.
        NotFoundError, WeightError: there is no such folder, or it is damaged.
    """
    rest = dict(options)
    given = {name: rest.pop(name) for name in names.all if name in rest}
    switches = {name: rest.pop(name) for name in names.switches if name in rest}
    if unknown := sorted(set(rest) - {*familiar.HUB, *NEUTRAL}):
        raise InputTypeError(
            f"{names.kind}.from_pretrained has no arguments {unknown}; it takes components "
            f"({', '.join(names.all)}), {', '.join(names.switches)}, {', '.join(familiar.HUB)}"
        )
    access = familiar.drop_neutral(f"{names.kind}.from_pretrained", rest, NEUTRAL)
    dtypes = names.dtypes(how.dtype)
    path = hubs.resolve(
        name_or_path,
        variant=how.variant,
        use_safetensors=how.use_safetensors,
        skip=tuple(given),
        **access,
    )
    index = folders.read_model_index(path)
    listed = folders.components_of(index)
    switches = {name: index[name] for name in names.stored if name in index} | switches
    advice = read_advice(index, str(name_or_path))
    # A folder may say that it has no text encoder: its users bring embeddings.
    found: dict[str, Any] = {
        name: None for name in names.for_text if index.get(name) == [None, None]
    }
    found |= given
    for name in names.all:
        if name not in given and index.get(name) not in (None, [None, None]):
            check_listed(name, index[name], str(name_or_path))
    here = [name for name in names.all if name in listed and name not in given]
    networks = [name for name in here if name in MODELS]
    variants = folders.pick_variants(path, networks, how.variant)
    for name in here:
        if name in MODELS:
            as_it_is = {
                "variant": variants[name],
                "dtype": dtypes[name],
                "device": how.device,
                "backend": how.backend,
                "check": how.check,
                "use_safetensors": how.use_safetensors,
            }
            if name in SEVERAL and listed[name][1] == SEVERAL[name].__name__:
                found[name] = SEVERAL[name].from_pretrained(path / name, **as_it_is)
            else:
                kind = model_class(name, listed[name][1])
                found[name] = kind.from_pretrained(path, subfolder=name, **as_it_is)
        elif name in SCHEDULERS:
            kind = listed[name][1].removeprefix("Flax")
            found[name] = scheduler_class(kind).from_pretrained(path, subfolder=name)
        else:
            found[name] = READERS[name].from_pretrained(path, subfolder=name)
    complete(names, found, path)
    names.check_complete(found, str(name_or_path), listed)
    return Read(found, switches, advice)


def write_folder(
    folder: str | Path,
    kind: str,
    components: Mapping[str, Any],
    advice: Advice,
    stored: Mapping[str, Any] | None = None,
    *,
    variant: str | None,
    max_shard_size: int | str,
    safe_serialization: bool,
) -> None:
    """Write what `read_folder` and diffusers read back; an interrupted save leaves what was there
    before. `kind` is the class of the pipeline, `stored` what `model_index.json` says besides."""
    index: dict[str, Any] = {
        "_class_name": kind,
        "_diffusers_version": "0.35.0",
        **advice.to_index(),
        **(stored or {}),
    }
    with save.writing_folder(folder) as place:
        for name, component in components.items():
            component = uncompiled(component)
            if component is None:
                index[name] = [None, None]
                continue
            named = type(component).__name__
            library = HOMES_OF.get(named, LIBRARIES.get(name, "transformers"))
            index[name] = [library, named]
            if isinstance(component, Model | Several):
                component.save_pretrained(
                    place / name,
                    variant=variant,
                    max_shard_size=max_shard_size,
                    safe_serialization=safe_serialization,
                )
            else:
                component.save_pretrained(place / name)
        save.write_json(place / "model_index.json", index)
