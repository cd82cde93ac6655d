"""A pipeline from an original one-file checkpoint of Stable Diffusion 1 or 2."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from underdraw.errors import InputError, InputTypeError, NotFoundError
from underdraw.models import CLIPImageProcessor, keywords as familiar
from underdraw.models.single_file import NEUTRAL
from underdraw.pipelines.components.registry import MODELS, Names, scheduler_class
from underdraw.text.tokenizer import CLIPTokenizer
from underdraw.weights import folders, hub
from underdraw.weights.locate import find
from underdraw.weights.original_config import read_original_config
from underdraw.weights.single_file import read_single_file
from underdraw.weights.vocabularies import Tokenizer

CHECKER = "CompVis/stable-diffusion-safety-checker"
"""Where the safety checker was published, which no one-file checkpoint holds."""


class NoVocabularyError(NotFoundError):
    """A one-file checkpoint needs a vocabulary, and nobody said where it is."""


def read_file(pipeline: Names, source: Any, **options: Any) -> tuple[dict[str, Any], str]:
    """Arguments of the pipeline's constructor, and where they were found; see
    `DiffusionPipeline.from_single_file`."""
    names = pipeline.all
    switches = {name: options.pop(name) for name in pipeline.switches if name in options}
    given = {name: options.pop(name) for name in names if name in options}
    access = {name: options.pop(name) for name in familiar.HUB if name in options}
    neutral = {name: options.pop(name) for name in NEUTRAL if name in options}
    familiar.drop_neutral("from_single_file", neutral, NEUTRAL)
    dtypes = pipeline.dtypes(options.pop("dtype", None) or options.pop("torch_dtype", None))
    wanted = {
        "device": options.pop("device", None),
        "backend": options.pop("backend", "torch"),
        "check": options.pop("check", False),
    }
    options.pop("torch_dtype", None)
    predicts = options.pop("prediction_type", None)
    extract_ema, config = options.pop("extract_ema", False), options.pop("config", None)
    original = options.pop("original_config", None) or options.pop("original_config_file", None)
    options.pop("original_config_file", None)
    with_checker = options.pop("load_safety_checker", None)
    if options:
        allowed = ("dtype", "device", "backend", "check", "prediction_type", "extract_ema")
        allowed += ("original_config", "load_safety_checker", *pipeline.switches)
        raise InputTypeError(
            f"from_single_file has no arguments {sorted(options)}; allowed: "
            f"{', '.join((*allowed, 'config', *names, *familiar.HUB))}"
        )

    told = {} if original is None else read_original_config(original)
    path = find(source, **access)
    around = None if config is None else hub.resolve(config, weights=False, **access)
    # Of what the file does not tell, a folder beside it does; what was asked for comes first.
    beside = {} if around is None else read_configs(around)
    configs = {name: {**beside.get(name, {}), **told.get(name, {})} for name in {*beside, *told}}
    read = read_single_file(
        path, prediction_type=predicts, extract_ema=extract_ema, configs=configs
    )
    found = dict(given)
    for name in names:
        if name in found:
            if name == "tokenizer" and isinstance(found[name], str | os.PathLike):
                found[name] = load_tokenizer(read.tokenizer, found[name], **access)
        elif name in read.components:
            found[name] = MODELS[name].from_tensors(
                *read.components[name], dtype=dtypes[name], **wanted
            )
        elif name == "scheduler":
            found[name] = scheduler_class(read.scheduler["_class_name"]).from_config(read.scheduler)
        elif name == "tokenizer":
            found[name] = load_tokenizer(read.tokenizer, around, **access)
    if with_checker and "safety_checker" in names and found.get("safety_checker") is None:
        found["safety_checker"] = MODELS["safety_checker"].from_pretrained(
            CHECKER, dtype=dtypes["safety_checker"], **wanted, **access
        )
        found.setdefault("feature_extractor", CLIPImageProcessor.from_pretrained(CHECKER, **access))
    if missing := [name for name in pipeline.needed if name not in found]:
        raise InputError(
            f"{path} has no {' and no '.join(missing)}; {pipeline.kind} needs them: give "
            + ", ".join(f"{name}=" for name in missing)
        )
    return found | switches, str(path) if os.path.exists(os.fspath(source)) else os.fspath(source)


def read_configs(folder: Path) -> dict[str, Mapping[str, Any]]:
    """Configs by component of a pipeline folder; it may lack weights."""
    listed = folders.components_of(folders.read_model_index(folder))
    known = ("unet", "vae", "text_encoder", "scheduler")
    return {name: folders.read_config(folder, name) for name in known if name in listed}


def load_tokenizer(wanted: Tokenizer, source: Any = None, **access: Any) -> CLIPTokenizer:
    """The tokenizer of a checkpoint from a folder or Hub id: its own, or a pipeline's.

    Without `source` from the repository in which the vocabulary was published. Raises
    NoVocabularyError that names it where it cannot be had, NotFoundError where `source` cannot.
    """
    place = source or wanted.repository
    if place is None:
        raise NoVocabularyError(
            f"one-file checkpoints hold no vocabulary, and the text encoder of this one knows "
            f"{wanted.tokens} tokens, as no published vocabulary has: give the tokenizer it was "
            "made with (folder or Hub id with vocab.json and merges.txt, or tokenizer.json)"
        )
    try:
        place = hub.resolve(place, weights=False, **access)
        inside = place / "tokenizer"
        tokenizer = CLIPTokenizer.from_pretrained(inside if inside.is_dir() else place)
    except NotFoundError:
        if source is not None:
            raise
        raise NoVocabularyError(
            "one-file checkpoints hold no vocabulary, and the one this needs, that of "
            f"{wanted.repository}, is neither in the cache nor to be had from the Hub now: give a "
            "tokenizer (folder or Hub id with vocab.json and merges.txt, or tokenizer.json)"
        ) from None
    _check_size(tokenizer, wanted, source or wanted.repository)
    # SD 2 pads prompts with "!", though it shares its vocabulary with SD 1. A pipeline's own
    # tokenizer says so itself.
    if not inside.is_dir() and wanted.pad_token in tokenizer.get_vocab():
        tokenizer.pad_token = wanted.pad_token
    return tokenizer


def _check_size(tokenizer: CLIPTokenizer, wanted: Tokenizer, source: Any) -> None:
    """That a vocabulary may be that of a text encoder, which may know some tokens more: those that
    were added in training."""
    if wanted.tokens is not None and not wanted.tokens / 2 <= len(tokenizer) <= wanted.tokens:
        raise InputError(
            f"tokenizer={os.fspath(source)!r} has {len(tokenizer)} tokens; the text encoder of the "
            f"checkpoint knows {wanted.tokens}"
            + (f", as that of {wanted.repository}" if wanted.repository else "")
        )
