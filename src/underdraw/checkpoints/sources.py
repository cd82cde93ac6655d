"""A checkpoint opened to be looked at or rewritten, whatever its form."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from math import prod
from pathlib import Path
from typing import Any

from underdraw import models
from underdraw.errors import NotFoundError, UnderdrawError, WeightError
from underdraw.formats.stored import StoredTensor
from underdraw.models.base import Model
from underdraw.names import HOMES
from underdraw.networks.config import read
from underdraw.pipelines.components.registry import scheduler_class
from underdraw.text.tokenizer import CLIPTokenizer
from underdraw.weights import files, folders, hub, single_file
from underdraw.weights.vocabularies import Tokenizer

NETWORKS: dict[str, type[Model]] = {
    name: cls
    for name in models.__all__
    if isinstance(cls := getattr(models, name), type) and issubclass(cls, Model)
}
"""Class name -> class of the networks there are."""
PIPELINE, COMPONENT, SINGLE = "pipeline folder", "component folder", "single file"
Network = tuple[str, dict[str, Any], dict[str, StoredTensor]]


@dataclass
class Source:
    """A checkpoint: networks (class name, config, unread tensors) and the rest, by component."""

    name: str
    kind: str
    place: Path
    networks: dict[str, Network] = field(default_factory=dict)
    others: dict[str, tuple[str, dict[str, Any]]] = field(default_factory=dict)
    """Class name and a few facts of what has no weights."""
    broken: dict[str, str] = field(default_factory=dict)
    """What is wrong with components that cannot be opened."""
    files: dict[str, tuple[str, ...]] = field(default_factory=dict)
    original: dict[str, StoredTensor] | None = None
    """Every tensor of a single file under its name there."""
    index: dict[str, Any] = field(default_factory=dict)
    scheduler: dict[str, Any] = field(default_factory=dict)
    tokenizer: Tokenizer | None = None
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """Of all tensors of all networks."""
        return sum(t.nbytes for _, _, tensors in self.networks.values() for t in tensors.values())


def open_source(
    name: str,
    variant: str | None = None,
    prediction_type: str | None = None,
    extract_ema: bool = False,
    download: bool = True,
) -> Source:
    """Open a folder of a pipeline or a component, a single file, or a Hub id.

    What is wrong with parts of it is noted in the result; what is nothing at all raises
    NotFoundError, a damaged file WeightError. Without `download` of a repository that is not in the
    cache only configs are fetched.
    """
    path = Path(name)
    if (
        path.is_file()
        and folders.is_weight_file(path.name)
        and (path.parent / "config.json").exists()
    ):
        path = path.parent
    if path.is_file():
        return _single(name, path, prediction_type, extract_ema)
    note = None
    if path.is_dir() or name == hub.SCENES or download:
        place = hub.resolve(path if path.is_dir() else name, variant=variant)
    else:
        try:
            place = hub.resolve(name, variant=variant, local_files_only=True)
        except NotFoundError:
            place = hub.resolve(name, variant=variant, weights=False)
            note = "the weights are not on this machine yet; only configs were fetched"
    if (place / folders.MODEL_INDEX).exists():
        source = _pipeline(name, place, variant, note is None)
    elif any((place / config).exists() for config in folders.CONFIGS):
        source = _component(name, place, variant)
    else:
        folders.read_model_index(place)  # says what the folder is instead
        raise NotFoundError(f"{place} is neither a pipeline nor a component")
    if note:
        source.notes.append(note)
    if prediction_type and source.scheduler:
        source.scheduler["prediction_type"] = prediction_type
    return source


def _single(name: str, path: Path, prediction_type: str | None, extract_ema: bool) -> Source:
    checkpoint = files.open_checkpoint(path)
    source = Source(name, SINGLE, path, original=checkpoint.tensors)
    try:
        found = single_file.read_single_file(
            checkpoint, prediction_type=prediction_type, extract_ema=extract_ema
        )
    except WeightError as error:
        source.problems.append(str(error).removeprefix("checkpoint: "))
        return source
    kinds = {
        "unet": "UNet2DConditionModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModel",
    }
    for part, (config, tensors) in found.components.items():
        source.networks[part] = (kinds[part], config, tensors)
        source.files[part] = (path.name,)
    source.scheduler, source.tokenizer = dict(found.scheduler), found.tokenizer
    source.notes += [f"Stable Diffusion {found.family[2:]}", *found.notes]
    if "unet" in found.components:
        _describe_scheduler(source, "scheduler")
    if "text_encoder" in found.components:
        place = found.tokenizer.repository or "whoever made the file"
        source.notes.append(f"the vocabulary is not inside; {place} has it")
    return source


def _pipeline(name: str, place: Path, variant: str | None, weights: bool) -> Source:
    source = Source(name, PIPELINE, place, index=folders.read_model_index(place))
    listed = folders.components_of(source.index)
    heavy = [n for n, (_, kind) in listed.items() if not _is_light(kind)]
    there = [n for n in heavy if (place / n).is_dir()]
    variants = folders.pick_variants(place, there, variant) if weights else {}
    for part, (_, kind) in listed.items():
        try:
            if part in heavy and weights:
                _open(source, part, kind, place / part, variants.get(part))
            elif part in heavy:
                source.others[part] = (kind, _facts(kind, folders.read_config(place, part)))
            elif "Scheduler" in kind:
                source.scheduler = folders.read_config(place, part)
                source.scheduler.setdefault("_class_name", kind)
                _describe_scheduler(source, part)
            elif "Tokenizer" in kind:
                source.others[part] = (kind, _tokenizer_facts(place / part))
            else:
                source.others[part] = (kind, {})
        except UnderdrawError as error:
            source.broken[part] = str(error)
    _check_pipeline(source, listed)
    return source


def _check_pipeline(source: Source, listed: Mapping[str, Any]) -> None:
    kind = str(source.index.get("_class_name")).removeprefix("Flax")
    home = HOMES.get(kind) if kind.endswith("Pipeline") else None
    if home is None:
        source.notes.append(f"underdraw has no {kind} in this version")
        return
    cls = getattr(import_module(home), kind)
    for part in cls.components_needed:
        if part not in listed:
            source.problems.append(f"{kind} needs a {part}; the folder lists none")
    known = (*cls.components_needed, *cls.components_optional)
    for part in listed:
        if part not in known:
            source.notes.append(f"{part} is not used by {kind}")


def _component(name: str, place: Path, variant: str | None) -> Source:
    source = Source(name, COMPONENT, place)
    config = folders.read_config(place)
    kind = class_of(config)
    if "Scheduler" in kind:
        source.scheduler = config
        _describe_scheduler(source, "scheduler")
    elif kind in NETWORKS or folders.variants([p.name for p in place.iterdir()]):
        part = NETWORKS[kind].network if kind in NETWORKS else place.name
        try:
            _open(source, part, kind, place, variant)
        except WeightError as error:
            source.broken[part] = str(error)
    else:
        source.others[place.name] = (kind, {})
    return source


def class_of(config: Mapping[str, Any]) -> str:
    """The class a component's config names."""
    listed = config.get("architectures")
    first = listed[0] if isinstance(listed, list) and listed else None
    named = config.get("_class_name") or first or config.get("image_processor_type")
    # transformers 5 leaves the class out of some configs.
    by_type = {
        "clip_text_model": "CLIPTextModel",
        "clip_vision_model": "CLIPVisionModelWithProjection",
    }
    return str(named or by_type.get(str(config.get("model_type")), "?"))


def _open(source: Source, part: str, kind: str, place: Path, variant: str | None) -> None:
    config = folders.read_config(place)
    chosen = folders.component_files(place, "", variant)
    source.networks[part] = (kind, config, folders.open_weights(place, chosen))
    source.files[part] = tuple(os.path.join(part, file) for file in chosen.files)


def _is_light(kind: str) -> bool:
    return kind.endswith(("Scheduler", "Tokenizer", "TokenizerFast", "Processor", "Extractor"))


def _facts(kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
    cls = NETWORKS.get(kind)
    if cls is None:
        return {}
    layout = cls.layout(read(cls.config_class, cls.adapt_config(dict(config)))).shapes
    return {"parameters": sum(prod(shape) for shape in layout.values())}


def _describe_scheduler(source: Source, part: str) -> None:
    kind = str(source.scheduler.get("_class_name"))
    made = scheduler_class(kind).from_config(source.scheduler)
    wanted = ("prediction_type", "beta_schedule", "timestep_spacing", "num_train_timesteps")
    facts = {name: made.config[name] for name in wanted if name in made.config}
    source.others[part] = (kind, facts)


def _tokenizer_facts(folder: Path) -> dict[str, Any]:
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    return {
        "tokens": len(tokenizer),
        "model_max_length": tokenizer.model_max_length,
        "pad_token": tokenizer.pad_token,
    }
