"""A pipeline for a command: from a folder, a Hub id or a single file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from underdraw.cli.options import SCENES
from underdraw.errors import InputError, NotFoundError
from underdraw.weights.files import SUFFIXES


def load_pipeline(
    model: str,
    *,
    kind: str = "StableDiffusionPipeline",
    dtype: str = "auto",
    device: str | None = None,
    variant: str | None = None,
    tokenizer: str | None = None,
    prediction_type: str | None = None,
    channels_last: Sequence[str] = (),
) -> Any:
    """A pipeline whose `source` names it from any folder.

    `channels_last` names networks to be laid out so whatever `dtype` says, as a picture's record
    has them: its last bits depend on it.

    Raises NotFoundError, WeightError and InputError as `from_pretrained` and `from_single_file`.
    """
    if not is_single_file(model) and tokenizer is not None:
        raise InputError(f"--tokenizer is for single files; {model} has its own")
    import underdraw
    from underdraw.weights import hub

    # A name of nothing is told before a framework is imported, which takes seconds.
    if is_single_file(model):
        from underdraw.pipelines.components.single_file import find

        find(model)
    else:
        hub.resolve(model, weights=False)
    from underdraw.backends import hardware

    cls = getattr(underdraw, kind, None)
    if not kind.endswith("Pipeline") or cls is None:
        raise InputError(f"no pipeline {kind!r} in this version of underdraw")
    device = hardware.resolve_device(device)
    how = {"dtype": dtype, "device": device}
    if is_single_file(model):
        from underdraw.pipelines.components.single_file import NoVocabularyError

        given = {"tokenizer": tokenizer} if tokenizer else {}
        try:
            pipe = cls.from_single_file(model, prediction_type=prediction_type, **how, **given)
        except NoVocabularyError as error:
            raise NotFoundError(f"{error}: --tokenizer") from error
    else:
        pipe = cls.from_pretrained(model, variant=variant, **how)
        if prediction_type is not None:
            scheduler = type(pipe.scheduler)
            pipe.scheduler = scheduler.from_config(
                pipe.scheduler.config, prediction_type=prediction_type
            )
    for name, part in pipe.components.items():
        if name in channels_last:
            hardware.to_channels_last(part)
    pipe.source = os.path.abspath(model) if model != SCENES and os.path.exists(model) else model
    return pipe


def is_single_file(model: str) -> bool:
    """Whether a name is that of one file (here or on the Hub) and not of a folder."""
    return not os.path.isdir(model) and model.lower().endswith(SUFFIXES)
