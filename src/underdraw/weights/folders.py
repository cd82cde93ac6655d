"""Pipeline and model folders in the layout of diffusers and transformers.

A pipeline folder has `model_index.json` and a folder per component; a component has a config and
weights: `STEM[.VARIANT].safetensors` (or `.bin`), or shards of it with an index.
"""

import os
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from underdraw.errors import NotFoundError, WeightError
from underdraw.formats import json_text
from underdraw.formats.stored import StoredTensor
from underdraw.weights.files import SUFFIXES, open_tensors
from underdraw.weights.quantised import as_floats

MODEL_INDEX = "model_index.json"
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model", "diffusion_flax_model", "flax_model")
EXTENSIONS = ("safetensors", "bin", "msgpack")
CONFIGS = ("config.json", "scheduler_config.json", "preprocessor_config.json")

_STEM, _EXT, _VARIANT = f"({'|'.join(STEMS)})", f"({'|'.join(EXTENSIONS)})", r"([A-Za-z0-9_]+)"
# model.fp16.safetensors, model.fp16-00001-of-00002.safetensors, model-00001-of-00002.fp16.bin
_WEIGHTS = re.compile(rf"{_STEM}(?:\.{_VARIANT})?(-\d{{5}}-of-\d{{5}})?(?:\.{_VARIANT})?\.{_EXT}")
# model.safetensors.index[.fp16].json, and model.fp16.safetensors.index.json, ...fp16.index.json
_INDEX = re.compile(
    rf"{_STEM}(?:\.{_VARIANT})?\.{_EXT}(?:\.{_VARIANT})?\.index(?:\.{_VARIANT})?\.json"
)


@dataclass(frozen=True)
class WeightFiles:
    """The files that hold one set of weights: one file, or shards with (usually) an index."""

    files: tuple[str, ...]
    index: str | None = None


@dataclass(frozen=True)
class WeightName:
    stem: str
    extension: str
    variant: str | None
    shard: bool
    index: bool


def parse(name: str) -> WeightName | None:
    if found := _WEIGHTS.fullmatch(name):
        stem, first, shard, second, extension = found.groups()
        return WeightName(stem, extension, first or second, bool(shard), False)
    if found := _INDEX.fullmatch(name):
        stem, a, extension, b, c = found.groups()
        return WeightName(stem, extension, a or b or c, False, True)
    return None


def is_weight_file(name: str) -> bool:
    """Whether a file name (without folders) is one of weights or of their index."""
    return parse(name) is not None


def variants(names: Iterable[str]) -> list[str | None]:
    """The variants there are among file names; None stands for plain weights. An index without its
    shards counts, so that these are missed."""
    found = {parsed.variant for parsed in map(parse, names) if parsed}
    return sorted(found, key=lambda variant: variant or "")


def choose_weights(
    names: Collection[str],
    variant: str | None = None,
    use_safetensors: bool | None = None,
    flax_first: bool = False,
) -> WeightFiles | None:
    """The files to read among `names` (of one folder), or None where there are none of `variant`.

    safetensors come before pickles unless `use_safetensors` says one of them, and Flax's files last
    or, with `flax_first`, before all; a whole file comes before shards.
    """
    wanted = {None: EXTENSIONS, True: EXTENSIONS[:1], False: EXTENSIONS[1:]}[use_safetensors]
    if flax_first:
        wanted = (EXTENSIONS[-1], *(one for one in wanted if one != EXTENSIONS[-1]))
    parsed = {name: p for name in sorted(names) if (p := parse(name)) and p.variant == variant}
    for extension in wanted:
        for stem in STEMS:
            here = {n: p for n, p in parsed.items() if (p.stem, p.extension) == (stem, extension)}
            whole = [n for n, p in here.items() if not (p.shard or p.index)]
            shards = [n for n, p in here.items() if p.shard]
            index = next((n for n, p in here.items() if p.index), None)
            if whole:
                return WeightFiles((whole[0],))
            if shards or index:
                return WeightFiles(tuple(shards), index)
    return None


def component_files(
    folder: str | os.PathLike[str],
    component: str = "",
    variant: str | None = None,
    use_safetensors: bool | None = None,
    flax_first: bool = False,
) -> WeightFiles:
    """Which weight files of a component folder to read.

    Raises NotFoundError where the folder is missing or has no weights of that variant; the message
    names the variants there are.
    """
    place = _existing(Path(folder, component or ""))
    # A link that leads nowhere is what an incomplete download leaves.
    names = [entry.name for entry in place.iterdir() if entry.is_file() or entry.is_symlink()]
    chosen = choose_weights(names, variant, use_safetensors, flax_first)
    if chosen is not None:
        return chosen
    there = [repr(v) if v else "plain weights (variant=None)" for v in variants(names)]
    asked = f"variant {variant!r}" if variant else "plain weights (no variant)"
    if use_safetensors is not None:
        asked += f" with use_safetensors={use_safetensors}"
    if there:
        raise NotFoundError(f"{place}: no {asked}; there are: {', '.join(there)}")
    raise NotFoundError(
        f"{place}: no weights; expected {STEMS[0]}.safetensors, {STEMS[1]}.safetensors or "
        f"{STEMS[2]}.bin, found {_listing(names)}"
    )


def pick_variants(
    folder: str | os.PathLike[str], components: Iterable[str], variant: str | None
) -> dict[str, str | None]:
    """The variant to open for each component of a pipeline: `variant` where it has it, else None.

    Published folders often hold some components in one variant only. Raises NotFoundError where no
    component has `variant`.
    """
    chosen: dict[str, str | None] = {}
    there: set[str | None] = set()
    for component in components:
        place = Path(folder, component)
        names = [entry.name for entry in place.iterdir()] if place.is_dir() else []
        found = variants(names)
        there.update(found)
        chosen[component] = variant if variant in found else None
    if variant is not None and chosen and not any(chosen.values()):
        listed = ", ".join(sorted(repr(v) for v in there if v)) or "none"
        raise NotFoundError(
            f"{folder}: no component has variant {variant!r}; variants there are: {listed}"
        )
    return chosen


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A JSON object from a file. NotFoundError without a file, WeightError naming what is wrong."""
    return json_text.read_object(path)


def read_model_index(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """`model_index.json` of a pipeline folder: `_class_name`, components as [library, class].

    Raises NotFoundError where the folder is no pipeline, saying what it is instead.
    """
    place = _existing(Path(folder))
    if not (place / MODEL_INDEX).exists():
        names = [entry.name for entry in place.iterdir()]
        hint = f"it holds {_listing(names)}"
        if any(name in names for name in CONFIGS):
            hint = "it looks like one component; give the folder above it"
        elif any(name.endswith((".safetensors", ".ckpt")) for name in names):
            hint = f"a single-file checkpoint is read by from_single_file; {hint}"
        raise NotFoundError(f"{place}: no {MODEL_INDEX}, so not a pipeline folder; {hint}")
    index = read_json(place / MODEL_INDEX)
    for name, value in index.items():
        if name.startswith("_") or not isinstance(value, list) or len(value) == 2:
            continue
        # Lists of numbers are settings of a pipeline (BLIP-Diffusion's mean and std).
        if not value or not all(map(_is_number, value)):
            raise WeightError(
                f"{place / MODEL_INDEX}: component {name!r} is {value!r}, wanted [library, class]"
            )
    return index


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def components_of(index: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Name -> (library, class) of the components of a model index that are really there."""
    return {
        name: (value[0], value[1])
        for name, value in index.items()
        if not name.startswith("_")
        and isinstance(value, list)
        and len(value) == 2
        and all(isinstance(part, str) for part in value)
    }


def read_config(folder: str | os.PathLike[str], subfolder: str = "") -> dict[str, Any]:
    """The config of a component: `config.json`, of a scheduler `scheduler_config.json`, ..."""
    place = _existing(Path(folder, subfolder or ""))
    for name in CONFIGS:
        if (place / name).exists():
            return read_json(place / name)
    raise NotFoundError(f"{place}: no {CONFIGS[0]} or {CONFIGS[1]}")


def open_component(
    folder: str | os.PathLike[str],
    subfolder: str = "",
    variant: str | None = None,
    use_safetensors: bool | None = None,
    flax_first: bool = False,
) -> tuple[dict[str, Any], dict[str, StoredTensor]]:
    """Config and unread tensors of a component (a folder, or a subfolder of a pipeline)."""
    config = read_config(folder, subfolder)
    chosen = component_files(folder, subfolder, variant, use_safetensors, flax_first)
    return config, open_weights(Path(folder, subfolder or ""), chosen)


def open_weights(place: Path, chosen: WeightFiles) -> dict[str, StoredTensor]:
    """Tensors of one file or of all shards together, checked against their index; weights in 8-bit
    floats with scales in float32 (`quantised.as_floats`)."""
    if chosen.index is None and len(chosen.files) == 1 and "-of-" not in chosen.files[0]:
        return _floats(place / chosen.files[0], open_tensors(place / chosen.files[0]))
    wanted = _weight_map(place / chosen.index) if chosen.index else None
    files = sorted(set(wanted.values())) if wanted is not None else list(chosen.files)
    if wanted is None:
        files = _all_shards(files[0])
        if other := sorted(set(chosen.files) - set(files)):
            raise NotFoundError(f"{place}: shards of several sets are there: {_listing(other)}")
    absent = [name for name in files if not (place / name).exists()]
    if absent:
        by = f" that {chosen.index} names" if chosen.index else ""
        raise NotFoundError(
            f"{place}: {len(absent)} of {len(files)} shards{by} are missing: {_listing(absent)}; "
            "the download or copy is incomplete, run it again"
        )
    promised: dict[str, list[str]] = {}
    for key, name in (wanted or {}).items():
        promised.setdefault(name, []).append(key)
    tensors: dict[str, StoredTensor] = {}
    for name in files:
        shard = open_tensors(place / name)
        twice = next((key for key in shard if key in tensors), None)
        if twice is not None:
            raise WeightError(f"{place / name}: tensor {twice!r} is in another shard, too")
        lacking = [key for key in promised.get(name, ()) if key not in shard]
        if lacking:
            raise WeightError(
                f"{place / name}: the index promises {len(lacking)} tensors that are not in it: "
                + ", ".join(lacking[:5])
            )
        tensors |= shard
    return _floats(place, tensors)


def _floats(place: Path, tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Of all shards together: a weight and its scale may be in two."""
    try:
        return as_floats(tensors)
    except WeightError as error:
        raise WeightError(f"{place}: {error}") from None


def _all_shards(name: str) -> list[str]:
    """The names of a set of shards, by one of them."""
    start, total, end = re.fullmatch(r"(.*-)\d{5}-of-(\d{5})(.*)", name).groups()  # type: ignore[union-attr]
    return [f"{start}{i:05d}-of-{total}{end}" for i in range(1, int(total) + 1)]


def _weight_map(path: Path) -> dict[str, str]:
    names = read_json(path).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise WeightError(f"{path}: no weight_map")
    for key, name in names.items():
        # A name with folders in it could reach any file of the machine.
        if not isinstance(name, str) or not _WEIGHTS.fullmatch(name):
            raise WeightError(f"{path}: {key!r} is said to be in {name!r}, no weight file's name")
    return names


def not_a_folder(place: str | Path) -> NotFoundError:
    """What is said of a file where a folder is needed."""
    known = str(place).lower().endswith(SUFFIXES)
    more = "" if known else f"; those end in {', '.join(SUFFIXES)}"
    return NotFoundError(
        f"{place} is a file, not a folder; single-file checkpoints are read by from_single_file"
        f"{more}"
    )


def _existing(place: Path) -> Path:
    if place.is_dir():
        return place
    if place.exists():
        raise not_a_folder(place)
    raise NotFoundError(f"{place}: no such folder")


def _listing(names: Collection[str]) -> str:
    return ", ".join(sorted(names)[:8]) + (", ..." if len(names) > 8 else "") or "nothing"
