"""What is written into a picture so that it can be made again, and how to read it as a call."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, fields, replace
from inspect import signature
from typing import Annotated, Any

from underdraw import engines
from underdraw.backends.hardware import has_channels_last
from underdraw.checks import choice
from underdraw.controls.image_prompt import ImagePrompt
from underdraw.controls.run import Run
from underdraw.engines.streaming import plain
from underdraw.errors import InputError, InputTypeError
from underdraw.formats.json_text import parse
from underdraw.models.base import QUANTISED
from underdraw.names import __version__
from underdraw.pictures.writing import METADATA
from underdraw.pipelines.call.plan import Plan
from underdraw.pipelines.components.components import Components
from underdraw.pipelines.components.lora_mix import LORA, amounts
from underdraw.pipelines.components.registry import scheduler_class
from underdraw.pipelines.components.settings import SEAMLESS, Settings
from underdraw.schema import Length, OneOf, Range, Schema, read, shown, within
from underdraw.weights.lora.scales import Scales

Line = Annotated[str, Length(1, 1000)]
Side = Annotated[int, Range(1, 65536)]
Dtype = Annotated[
    str,
    OneOf(
        *("auto", "float32", "float16", "bfloat16", "float64"),
        meaning={"Float32": "float32", "Float16": "float16", "BFloat16": "bfloat16"},
    ),
]
"""MindSpore writes its own with a capital."""
Numbers = Annotated[tuple[float, ...], Length(1, 100_000)]


@dataclass(frozen=True)
class Call(Schema):
    """Arguments that the calls of a record share; those of one pipeline alone are checked by it."""

    owner = "call"

    prompt: str | None = None
    negative_prompt: str | None = None
    seed: Annotated[int, Range(0, 2**64 - 1)] | None = None
    num_inference_steps: Annotated[int, Range(1, 100_000)] | None = None
    timesteps: Numbers | None = None
    sigmas: Numbers | None = None
    guidance_scale: Annotated[float, Range(-1e4, 1e4)] | None = None
    guidance_rescale: Annotated[float, Range(0, 1)] | None = None
    eta: Annotated[float, Range(0, 1)] | None = None
    clip_skip: Annotated[int, Range(0, 1000)] | None = None
    height: Side | None = None
    width: Side | None = None
    strength: Annotated[float, Range(0, 1)] | None = None


@dataclass(frozen=True)
class Record(Schema):
    """What a picture holds about the call that made it. Pictures come from anywhere, so nothing of
    it is used before it has been checked here."""

    owner = "record"

    pipeline: Line
    call: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    missing: tuple[Line, ...]
    compat: Annotated[str, OneOf("diffusers")] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    model: Line | None = None
    variant: Line | None = None
    tokenizer: Line | None = None
    grounding: Line | None = None
    subject: Line | None = None
    backend: Line | None = None
    engine: Line | None = None
    dtype: Dtype | None = None
    channels_last: tuple[Any, ...] | None = None
    quantized: Mapping[str, Any] | None = None
    """Network -> kind of its weights, where they are kept in 8 bits."""
    layout: Mapping[str, Any] | None = None
    subjects: Annotated[tuple[Any, ...], Length(1, 64)] | None = None
    inputs: Mapping[str, Any] | None = None
    structures: tuple[Any, ...] | None = None
    """Nets and maps of the command line."""
    image_prompts: Annotated[tuple[Any, ...], Length(1, 64)] | None = None
    """Pictures beside the prompt, of the command line."""
    loras: Mapping[str, Any] | None = None
    """How much of each active LoRA, by name; `weights.lora.scales.Scales` tells the fields."""

    def check(self) -> None:
        read(Call, self.call)
        for name, value in self.call.items():
            if not (value is None or _is_plain(value)):
                raise InputError(
                    f"call: {name}={shown(value)} is not supported; allowed: texts, numbers, and "
                    "lists of them"
                )
        _ = self.chosen_settings
        _ = self.chosen_loras
        for name, kind in (self.quantized or {}).items():
            choice(f"quantized[{shown(name)}]", kind, QUANTISED)

    @property
    def chosen_loras(self) -> dict[str, Scales]:
        """How much of each LoRA acted."""
        found = {}
        for name, told in (self.loras or {}).items():
            with within(f"loras[{shown(name)}]"):
                found[name] = read(Scales, told)
        return found

    @property
    def chosen_settings(self) -> Settings:
        """`settings` as pipelines have them."""
        known = {each.name for each in fields(Settings)}
        if unknown := sorted(set(self.settings) - known):
            raise InputError(
                f"settings of the picture cannot be read: {', '.join(unknown)!r:.80}; allowed: "
                f"{', '.join(sorted(known))}"
            )
        return read(Settings, self.settings)

    @property
    def chosen_scheduler(self) -> Any:
        """The scheduler that `scheduler` describes."""
        name = self.scheduler.get("_class_name")
        return scheduler_class(name if isinstance(name, str) else "").from_config(self.scheduler)

    def check_steps(self) -> None:
        """Raise an InputError where the scheduler cannot make the steps of the call."""
        call = read(Call, self.call)
        custom = call.timesteps or call.sigmas
        if custom or call.num_inference_steps:
            steps = None if custom else call.num_inference_steps
            self.chosen_scheduler.make_table(steps, call.timesteps, call.sigmas)


def annotate(run: Run, plan: Plan, made: Sequence[Any], own: Any) -> None:
    """Write into each PIL image how it was made; the rest as for `describe_call`. `own` may be a
    function of the image's index."""
    for index, image in enumerate(made):
        mine: Any = own(index) if callable(own) else own
        image.info[METADATA] = describe_call(run, plan, index, mine)


def describe_call(run: Run, plan: Plan, index: int, own: Mapping[str, Any]) -> str:
    """JSON of the call that makes image `index` of a batch alone.

    `own` are arguments of this pipeline alone, by name. `missing` lists what JSON cannot hold:
    arrays, pictures and controls the caller passed, what a callback changed, the seed of an image
    that had none of its own, and an engine that has no name.
    """
    request, scale = plan.request, plan.guidance
    components: Components = run.components
    scheduler, kind = components.scheduler, type(plan.caller)
    seed = plan.seeds[index]
    if request.seed is None and components.dtype != components.framework.float32:
        seed = None  # a seed draws in float32
    names = ("num_inference_steps", "timesteps", "sigmas", "guidance_rescale", "eta", "clip_skip")
    takes = signature(kind.__call__).parameters
    shared = {name: _plain(getattr(request, name)) for name in names if name in takes}
    altered = plan.watch is not None and plan.watch.altered
    altered = altered or run.interrupted or run.ended or run.guidance is not scale
    given = {name: getattr(request, name) for name in ("prompt_embeds", "negative_prompt_embeds")}
    given |= {"controls": request.controls or None, **own}
    engine = engines.name_of(plain(components.engine))
    given |= {"engine": () if engine is None else None}
    given |= {"fuse_lora": () if components.mix.merged else None}
    shown = any(isinstance(control, ImagePrompt) for control in request.own)
    given |= {"ip_adapter_image": () if shown else None}
    given |= {"callback_on_step_end": () if altered else None, "seed": () if seed is None else seed}

    def of_image(texts: list[str] | None) -> str | None:
        return texts[index * len(texts) // plan.count] if texts else None

    call = {
        "prompt": of_image(plan.prompts),
        "negative_prompt": of_image(plan.negatives if plan.guided else None),
        "guidance_scale": float(scale.reshape(-1)[index]) if hasattr(scale, "shape") else scale,
        **shared,
        **{name: _plain(value) for name, value in given.items() if _is_plain(value)},
    }
    missing = [name for name, value in given.items() if value is not None and name not in call]
    return json.dumps(
        {
            "underdraw": __version__,
            "pipeline": kind.__name__,
            "model": components.source,
            "backend": components.nn.name,
            "engine": engine,
            "dtype": str(components.dtype).removeprefix("torch."),
            "channels_last": _channels_last(components),
            "quantized": _quantized(components) or None,
            "compat": components.compat,
            "settings": {
                **components.settings.recorded(),
                "vae_tiling": _tiling(components),
            },
            "scheduler": {
                **_plain(dict(getattr(scheduler, "config", {}))),
                "_class_name": type(scheduler).__name__,
            },
            "loras": amounts(components, request.lora_scale) or None,
            "call": {name: value for name, value in call.items() if value is not None},
            "missing": missing,
        },
        sort_keys=True,
    )


def _tiling(components: Components) -> bool | str:
    tiling = components.tiling
    return SEAMLESS if tiling is not None and tiling.seamless else tiling is not None


def repeat(pipe: Any, metadata: Mapping[str, Any] | str, **changes: Any) -> Any:
    """The PIL image that `metadata` describes, made again: the same bits on the same machine where
    the image had been a call's only one. `pipe` itself stays as it is.

    Args:
        pipe: a pipeline with the weights that made the picture.
        metadata: what `images.read_metadata` gives, or the text an image carries in its `info`.
        changes: arguments of the call to use instead, or those that could not be recorded; also
            `engine`, which is otherwise that of the picture.

    Raises:
        InputError, InputTypeError: it is no such metadata, of another kind of pipeline, or lacks
            something that `changes` does not give.
    """
    try:
        found = parse(metadata, "metadata") if isinstance(metadata, str) else metadata
        record = read(Record, found)
    except ValueError as error:
        raise InputTypeError(
            f"metadata={shown(metadata)} is not what a picture holds: {error}"
        ) from error
    kind, missing = record.pipeline, set(record.missing)
    if kind != type(pipe).__name__:
        raise InputError(f"metadata is of a {kind}; pipe is a {type(pipe).__name__}")
    if lacking := sorted(missing - set(changes)):
        raise InputError(f"metadata lacks {', '.join(lacking)}; give them as arguments")
    if (held := _quantized(pipe.parts)) != (record.quantized or {}):
        raise InputError(
            f"metadata is of weights in 8 bits: {dict(record.quantized or {}) or None}; pipe has "
            f"{held or None} (see pipe.quantize)"
        )
    # Pictures of before there were engines say nothing: it was the eager one.
    engine = changes.pop("engine", None) or record.engine or "eager"
    if engine == engines.name_of(pipe.engine):
        engine = pipe.engine  # with what it has compiled
    made = copy(pipe)  # not made anew, which would mend what the picture was drawn with
    made.scheduler, made.engine = record.chosen_scheduler, engine
    made.compat, made.settings = record.compat, record.chosen_settings
    if lacking := sorted(set(record.loras or {}) - set(pipe.adapters[LORA.name])):
        raise InputError(f"metadata names LoRAs that are not attached: {', '.join(lacking)!r:.300}")
    made.parts.mix = replace(pipe.parts.mix, active=record.chosen_loras, enabled=True)
    made.set_progress_bar_config(**pipe.progress_bar_options)
    call = {name: value for name, value in record.call.items() if value is not None}
    return made(**{**call, **changes}).images[0]


def _channels_last(components: Components) -> list[str]:
    """Names of the networks that are laid out so, on which the last bits depend."""
    return sorted(name for name, part in components.named.items() if has_channels_last(part))


def _quantized(components: Components) -> dict[str, str]:
    """Names of the networks whose weights are in 8 bits -> in which."""
    told = getattr(components.framework, "quantised_as", lambda part: None)
    kinds = {name: told(part) for name, part in components.named.items()}
    return {name: kind for name, kind in sorted(kinds.items()) if kind is not None}


def _is_plain(value: Any) -> bool:
    """A text or a number, or lists of them, not empty."""
    if isinstance(value, list | tuple):
        return bool(value) and all(_is_plain(item) or item is None for item in value)
    return isinstance(value, str | int | float)


def _plain(value: Any) -> Any:
    """As JSON can hold it."""
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
