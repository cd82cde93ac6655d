"""What is written into a picture so that it can be made again, and how to read it as a call."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from underdraw.errors import InputError, InputTypeError
from underdraw.pipelines.base import Settings, scheduler_class
from underdraw.pipelines.images import METADATA


def annotate(pipe: Any, made: Sequence[Any], *call: Any) -> None:
    """Write into each PIL image how it was made; `call` as for `describe_call`."""
    for index, image in enumerate(made):
        image.info[METADATA] = describe_call(pipe, index, *call)


def seeds_of(generators: Any, count: int) -> list[int | None]:
    """Which seeds make the images of a batch again; to be asked before anything is drawn."""
    from underdraw.backends import seeds

    return seeds.seeds_of(generators, count)


def describe_call(
    pipe: Any,
    index: int,
    per_prompt: int,
    prompts: list[str] | None,
    negatives: list[str] | None,
    guidance_scale: Any,
    seeds: Sequence[int | None],
    arguments: dict[str, Any],
    given: dict[str, Any],
) -> str:
    """JSON of the call that makes image `index` of a batch alone.

    `missing` lists what JSON cannot hold: arrays and controls the caller passed, what a callback
    changed, and the seed of an image that had none of its own.
    """
    row = index // per_prompt
    missing = [name for name, value in given.items() if value is not None and len(value) > 0]
    seed = seeds[index]
    if seed is None:
        missing.append("seed")
    call = {
        "prompt": prompts[row] if prompts else None,
        "negative_prompt": negatives[row] if negatives else None,
        "seed": seed,
        "guidance_scale": float(guidance_scale.reshape(-1)[index])
        if hasattr(guidance_scale, "shape")
        else guidance_scale,
        **{name: _plain(value) for name, value in arguments.items()},
    }
    return json.dumps(
        {
            "underdraw": _version(),
            "pipeline": type(pipe).__name__,
            "model": pipe.source,
            "dtype": str(pipe.dtype).removeprefix("torch."),
            "compat": pipe.compat,
            "settings": {**asdict(pipe.settings), "vae_tiling": pipe._tiling is not None},
            "scheduler": {
                **_plain(dict(getattr(pipe.scheduler, "config", {}))),
                "_class_name": type(pipe.scheduler).__name__,
            },
            "call": {name: value for name, value in call.items() if value is not None},
            "missing": missing,
        },
        sort_keys=True,
    )


def repeat(pipe: Any, metadata: Mapping[str, Any] | str, **changes: Any) -> Any:
    """The PIL image that `metadata` describes, made again: the same bits on the same machine where
    the image had been a call's only one. `pipe` itself stays as it is.

    Args:
        pipe: a pipeline with the weights that made the picture.
        metadata: what `images.read_metadata` gives, or the text an image carries in its `info`.
        changes: arguments of the call to use instead, or those that could not be recorded.

    Raises:
        InputError, InputTypeError: it is no such metadata, of another kind of pipeline, or lacks
            something that `changes` does not give.
    """
    try:
        found = json.loads(metadata) if isinstance(metadata, str) else metadata
        call, missing = {**found["call"]}, set(found["missing"])
        kind, compat, config = found["pipeline"], found["compat"], found["scheduler"]
        settings = Settings(**found["settings"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputTypeError(f"metadata={metadata!r:.100} is not what a picture holds") from error
    if kind != type(pipe).__name__:
        raise InputError(f"metadata is of a {kind}; pipe is a {type(pipe).__name__}")
    if lacking := sorted(missing - set(changes)):
        raise InputError(f"metadata lacks {', '.join(lacking)}; give them as arguments")
    scheduler = scheduler_class(config.get("_class_name", "")).from_config(config)
    made = type(pipe).from_pipe(pipe, scheduler=scheduler)
    made.compat, made.settings = compat, settings
    made._progress_bar_config = pipe._progress_bar_config
    return made(**{**call, **changes}).images[0]


def _plain(value: Any) -> Any:
    """As JSON can hold it."""
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _version() -> str:
    from underdraw import __version__

    return __version__
