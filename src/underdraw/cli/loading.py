"""A pipeline for a command: from a folder, a Hub id or a single file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from underdraw.cli.options import SCENES
from underdraw.errors import InputError, NotFoundError
from underdraw.weights.files import SUFFIXES

BACKENDS = {
    "compiled": ("torch",),
    "jit": ("torch", "jax", "mindspore"),
    "openvino": ("torch",),
    "graph": ("torch",),
}
"""Engine -> the backends it runs on; all others run on every one."""


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
    backend: str | None = None,
    engine: str | None = None,
) -> Any:
    """A pipeline whose `source` names it from any folder.

    `channels_last` names networks to be laid out so whatever `dtype` says, as a picture's record
    has them: its last bits depend on it.

    Raises NotFoundError, WeightError and InputError as `from_pretrained` and `from_single_file`.
    """
    if not is_single_file(model) and tokenizer is not None:
        raise InputError(f"--tokenizer is for single files; {model} has its own")
    backend, engine = backend or "torch", engine or "eager"
    check_engine(engine, backend)
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
    if not kind.endswith("Pipeline") or kind.startswith("Flax") or cls is None:
        raise InputError(f"no pipeline {kind!r} in this version of underdraw")
    how = {"dtype": dtype, "device": resolve_device(device, backend), "backend": backend}
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
    pipe.engine = engine
    pipe.source = os.path.abspath(model) if model != SCENES and os.path.exists(model) else model
    return pipe


def summary(pipe: Any, engine: str | None = None) -> str:
    """What was loaded, where it computes, and how where that is said."""
    how = "" if engine in (None, "eager") else f", {engine}"
    if engine == "auto":
        from underdraw.engines.auto import choice

        how = ", auto: {}, for {}".format(*choice(pipe.unet))
    return f"{pipe.source}: {str(pipe.dtype).removeprefix('torch.')} on {pipe.device}{how}"


def packaged(folder: str | None, engine: str | None, backend: str | None) -> Any:
    """The engine that runs the packages of a folder, or None where none is named. No picture's
    record can name one: it would run what somebody else had put there.

    Raises:
        InputError, NotFoundError: another engine is named, too, another backend than PyTorch, or
            there are no packages.
    """
    if folder is None:
        return None
    if engine is not None:
        raise InputError("--packages replaces --engine; leave one of them out")
    if backend not in (None, "torch"):
        raise InputError(f"--packages is for PyTorch, not for {backend}; give --backend torch")
    from underdraw.engines import Packaged

    return Packaged(folder)


def check_engine(engine: str, backend: str) -> None:
    """Raise InputError where there is no such engine, or it does not run on a backend."""
    from underdraw import engines

    if engine not in engines.NAMES:
        raise InputError(f"--engine {engine} is not known; allowed: {', '.join(engines.NAMES)}")
    able = BACKENDS.get(engine, (backend,))
    if backend not in able:
        others = [name for name in engines.NAMES if backend in BACKENDS.get(name, (backend,))]
        raise InputError(
            f"--engine {engine} runs on {' and '.join(able)}, not on {backend}; allowed there: "
            f"{', '.join(others)}"
        )
    if engine == "openvino":
        from underdraw import backends

        backends.graphs()


def resolve_device(name: str | None, backend: str) -> str | None:
    """A device of a backend, after checking that this machine has it; None where the framework
    finds its own.

    Raises InputError: there is no such device, or the framework is not installed.
    """
    from underdraw import backends

    framework = backends.get(backend)
    if backend == "torch":
        from underdraw.backends import hardware

        return hardware.resolve_device(name)
    if name is not None:
        import numpy as np

        try:
            framework.array(np.zeros(1, np.float32), device=name)
        except (RuntimeError, ValueError, TypeError) as error:
            raise InputError(f"--device {name} is not there for {backend}: {error}") from error
    return name


def is_single_file(model: str) -> bool:
    """Whether a name is that of one file (here or on the Hub) and not of a folder."""
    return not os.path.isdir(model) and model.lower().endswith(SUFFIXES)
