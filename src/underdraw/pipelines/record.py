"""What is written into a picture so that it can be made again, and how to read it as a call."""

from __future__ import annotations

import json
from typing import Any


def describe_call(
    pipe: Any,
    index: int,
    per_prompt: int,
    prompts: list[str] | None,
    negatives: list[str] | None,
    guidance_scale: Any,
    generators: Any,
    arguments: dict[str, Any],
    given: dict[str, Any],
) -> str:
    """JSON of the call that makes image `index` of a batch alone.

    `missing` lists what JSON cannot hold: arrays and controls the caller passed, a generator that
    had been used before, or the lack of any seed.
    """
    row = index // per_prompt
    missing = [name for name, value in given.items() if value is not None and len(value) > 0]
    seed = _seed(generators, index)
    if seed is None:
        missing.append("seed")
    call = {
        "prompt": prompts[row] if prompts else None,
        "negative_prompt": negatives[row] if negatives else None,
        "seed": seed,
        "guidance_scale": float(guidance_scale[index])
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
            "scheduler": _plain(dict(pipe.scheduler.config)),
            "call": {name: value for name, value in call.items() if value is not None},
            "missing": missing,
        },
        sort_keys=True,
    )


def _seed(generators: Any, index: int) -> int | None:
    """The seed of a list of generators, one per image; one generator for a batch is not enough."""
    if not isinstance(generators, list | tuple):
        return None
    return int(generators[index % len(generators)].initial_seed())


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
