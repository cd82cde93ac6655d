"""What a picture's record says of the call that made it, read as a request for another."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from underdraw.cli import boxes, embedded, image_prompts, loras, structure, subjects
from underdraw.cli.memory import EVERYTHING, Memory
from underdraw.cli.options import MOST_SIDE, SCENES
from underdraw.errors import InputError
from underdraw.schema import read, within

TEXTS = ("model", "variant", "tokenizer", "grounding", "subject", "backend", "engine")
OPTIONS = {
    "image": "--image",
    "mask_image": "--mask",
    "controls": "--box or --layout (or --structure, --subject, --image-prompt)",
    "seed": "--seed",
    "engine": "--engine (or --packages)",
}
"""Argument that a record may lack -> what gives it on the command line."""
NEVER = {"output_type", "return_dict", "callback_on_step_end", "callback", "generator"}
NEVER |= {"image", "mask_image", "latents", "controls", "callback_on_step_end_tensor_inputs"}
NEVER |= {"callback_steps", "cross_attention_kwargs", "scheduler", "num_images_per_prompt"}
"""Arguments that no record holds in its call."""
SOURCES = {"model": "--model", "tokenizer": "--tokenizer", "grounding": "--grounding"}
SOURCES["subject"] = "--subject-weights"
"""What a record may name that is read from disk or the Hub -> what names it on the command line."""
ASK = "--as-recorded"
STEPS = {"num_inference_steps", "solver"}
"""Arguments after which other steps are made than those of the record."""
PICTURES = {
    "StableDiffusionImg2ImgPipeline": ("image",),
    "StableDiffusionInpaintPipeline": ("image", "mask_image"),
}
"""What calls of a pipeline begin with."""


@dataclass
class Request:
    """What to make: where from, how, and the arguments of the calls."""

    loading: dict[str, Any] = field(default_factory=dict)
    scheduler: dict[str, Any] | None = None
    """Configuration recorded in a picture; None: the checkpoint's."""
    compat: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    call: dict[str, Any] = field(default_factory=dict)
    layout: dict[str, Any] | None = None
    """Boxes, as a layout file holds them."""
    structures: list[dict[str, Any]] | None = None
    """Nets and their maps, as `structure.Entry` tells."""
    subjects: list[dict[str, Any]] | None = None
    """What pictures show, as `subjects.Entry` tells."""
    image_prompts: list[dict[str, Any]] | None = None
    """Pictures beside the prompt, as `image_prompts.Entry` tells."""
    ip_adapter: str | None = None
    """Weights that these need, of the command."""
    loras: loras.Loras = loras.NOTHING
    """LoRAs and learned words of the command."""
    scales: dict[str, float] = field(default_factory=dict)
    """How much of each LoRA acted in a record's picture, by name."""
    memory: Memory = EVERYTHING
    """How the command gets along with less; of a record, weights in 8 bits."""
    inputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Argument -> the picture it was, as `embedded.kept` tells."""
    speed: str | None = None
    """A preset of acceleration instead of what `settings` say."""

    def leaves_out(self) -> tuple[Any, str]:
        """The ways to compute less, None: there are none; and what asks for them."""
        from underdraw.controls.acceleration.presets import PRESETS, Acceleration
        from underdraw.schema import read

        if self.speed is not None:
            return PRESETS[self.speed], f"--speed {self.speed}"
        told = self.settings.get("acceleration")
        if told is None:
            return None, ""
        found = read(Acceleration, told)
        names = ", ".join(type(method).__name__ for method in found.methods)
        return found, f"the picture to make again has {names}, which"

    def fitted_before(self) -> tuple[int, int] | None:
        """Width and height at which the picture of a record was worked on; None: there is none."""
        if "image" not in self.inputs:
            return None
        if "mask_image" in self.call:
            size = [self.call.get("width"), self.call.get("height")]
        else:
            size = self.inputs["image"].get("size")
        sides = size if isinstance(size, list) else []
        known = [side for side in sides if isinstance(side, int) and 0 < side <= MOST_SIDE]
        return (known[0], known[1]) if len(known) == len(sides) == 2 else None


def recorded(path: Path, given: Collection[str] = (), trusted: bool = False) -> Request:
    """The request in a picture's metadata.

    Args:
        given: arguments, and sources, that need not be in it.
        trusted: what the record names is loaded. Otherwise a picture, which may come from anybody,
            chooses no path and no Hub id.

    Raises InputError where the picture cannot be made again from what it holds, saying what to do.
    """
    from underdraw.pictures.writing import read_metadata
    from underdraw.pipelines.call.record import Record

    found = read_metadata(path)
    refuse_others(path, found)
    with within(f"{path} holds metadata that this version of underdraw cannot read"):
        record = read(Record, found)
    with within(path):
        if STEPS.isdisjoint(given):
            record.check_steps()
        _ = record.chosen_scheduler
        require_callable(record.pipeline, record.call)
    inputs = dict(record.inputs or {})
    layout = None if record.layout is None else dict(record.layout)
    if layout is not None and "controls" not in given:
        check_layout(path, layout)
    structures = None if record.structures is None else [*record.structures]
    if structures is not None and structure.OPTION not in given:
        structure.check_recorded(path, structures)
    shown = None if record.subjects is None else [*record.subjects]
    if shown is not None and subjects.SUBJECT not in given:
        subjects.check_recorded(path, shown)
    beside = None if record.image_prompts is None else [*record.image_prompts]
    if beside is not None and image_prompts.OPTION not in given:
        image_prompts.check_recorded(path, beside, image_prompts.WEIGHTS in given)
    if loras.OPTION not in given:
        loras.check_recorded(path, record.loras)
    call = {name: value for name, value in record.call.items() if value is not None}
    if unknown := sorted(NEVER & set(call)):
        raise InputError(f"{record.pipeline} has no arguments {', '.join(unknown)} in a record")
    for name in sorted(set(inputs) - set(given)):
        picture = embedded.restored(inputs[name], f"{path}: its {name}")
        if picture is not None:
            call[name] = picture
    placed = any(one is not None for one in (layout, structures, shown, beside))
    ways = {structure.OPTION, subjects.SUBJECT, image_prompts.OPTION}
    placed = placed or not ways.isdisjoint(given)
    held = {*given, *call, *(["controls"] if placed else [])}
    needed = dict.fromkeys((*record.missing, *PICTURES.get(record.pipeline, ())))
    if missing := [name for name in needed if name not in held]:
        raise InputError(lacking(path, missing, inputs))
    if "seed" not in given and call.get("seed") is None:
        raise InputError(f"{path} cannot be made again: it does not hold its seed")
    named = {name: getattr(record, name) for name in TEXTS}
    loading = {name: value for name, value in named.items() if value is not None}
    if "model" in given and not trusted:
        loading.pop("tokenizer", None)  # which belongs to the model of before
    loading |= {"kind": record.pipeline, "dtype": record.dtype or "auto"}
    if record.channels_last is not None:
        loading["channels_last"] = list(record.channels_last)
    if not trusted:
        require_asked(path, loading, given, structures or [])
    return Request(
        loading,
        dict(record.scheduler),
        record.compat,
        dict(record.settings),
        call,
        layout,
        structures,
        shown,
        image_prompts=beside,
        memory=Memory(quantized=record.quantized or {}),
        scales={name: scales.unet for name, scales in record.chosen_loras.items()},
        inputs=inputs,
    )


def require_asked(
    path: Path,
    loading: Mapping[str, Any],
    given: Collection[str],
    structures: list[dict[str, Any]],
) -> None:
    """Raise an InputError where a record names what is not shipped, and nobody asked for it."""
    named = {
        option: loading[name]
        for name, option in SOURCES.items()
        if name not in given and loading.get(name, SCENES) != SCENES
    }
    words = [f"{option} {shlex.quote(value)}" for option, value in named.items()]
    if structure.OPTION not in given:
        nets = structure.nets_of(structures)
        words += [f"{structure.OPTION} {shlex.quote(net)} ..." for net in nets]
    if words:
        told = " ".join(words)
        raise InputError(
            f"{path} was made with {told:.300}; pictures do not choose what is loaded by "
            f"themselves: add {ASK} to load just that, or name it yourself"
        )


def require_callable(kind: str, call: Mapping[str, Any]) -> None:
    """Raise an InputError where there is no such pipeline, or it has no such arguments."""
    import inspect

    import underdraw

    known = kind.endswith("Pipeline") and not kind.startswith("Flax")
    cls = getattr(underdraw, kind, None) if known else None
    if cls is None:
        raise InputError(f"no pipeline {kind!r:.100} in this version of underdraw")
    if unknown := sorted(set(call) - set(inspect.signature(cls.__call__).parameters)):
        raise InputError(f"{kind} has no arguments {', '.join(unknown):.200}")


def refuse_others(path: Path, record: Mapping[str, Any]) -> None:
    """Raise an InputError for what is no picture of a call: sheets, views, previews, edits."""
    if isinstance(record.get("sheet"), list):
        named = ", ".join(map(str, record["sheet"]))
        raise InputError(f"{path} is a sheet of several pictures; --again takes one of {named}")
    if isinstance(record.get("scenes"), list):
        raise InputError(f"{path} shows renders, which `underdraw scenes` makes and no model")
    if isinstance(record.get("of"), str):
        raise InputError(
            f"{path} shows {record.get('view', 'a view')} of {record['of']}; --again takes that "
            "picture"
        )
    if isinstance(record.get("preview"), str):
        raise InputError(
            f"{path} is a preview (step {record['preview']}) of a picture that was not finished, "
            "and holds no more than that"
        )
    if isinstance(record.get("edit"), dict):
        raise InputError(
            f"{path} is an edit, which needs the picture it began with; `underdraw edit` makes it "
            f"again: {edit_command(record['edit'])}"
        )


def edit_command(edit: Mapping[str, Any]) -> str:
    """The command that made an edit, as its record tells it."""
    told = {name: str(edit.get(name, "...")) for name in ("picture", "from", "to")}
    words = ["underdraw", "edit", told["picture"], "--from", told["from"], "--to", told["to"]]
    options = edit.get("options")
    options = options if isinstance(options, dict) else {"seed": edit.get("seed")}
    for name, value in options.items():
        for each in value if isinstance(value, list) else [value]:  # given several times
            parts = each if isinstance(each, list) else [] if each is True else [each]
            words += [f"--{name}", *map(str, parts)]
    return " ".join(map(shlex.quote, words))


def check_layout(path: Path, layout: Any) -> None:
    """Raise an InputError where the boxes of a record are damaged, or show pictures that it does
    not hold."""
    _check_entries(path, layout)
    with within(f"{path}: its layout"):
        boxes.controls_of(layout)


def _check_entries(path: Path, layout: Any) -> None:
    if not isinstance(layout, dict) or not isinstance(layout.get("boxes"), list):
        raise InputError(f"{path}: its layout is damaged: {layout!r:.80}")
    entries = {f"box {i + 1}": (box, "image") for i, box in enumerate(layout["boxes"])}
    for where, (entry, name) in {**entries, "style": (layout, "style")}.items():
        if not isinstance(entry, dict):
            raise InputError(f"{path}: its layout is damaged: {entry!r:.80}")
        held = entry.get(name)
        if held is None:
            continue
        if isinstance(held, str):  # as earlier versions kept them
            raise InputError(
                f"{path} cannot be made again by itself: {where} shows the picture {held:.200}, "
                "and it holds no copy of that; give the boxes with --layout"
            )
        if embedded.restored(held, f"{path}: the picture of {where}") is None:
            raise InputError(
                f"{path} cannot be made again by itself: {where} shows {held['name']}, which was "
                "too large to be kept; give the boxes with --layout"
            )


def lacking(path: Path, missing: list[str], inputs: Mapping[str, Any]) -> str:
    """Why a picture cannot be made again by itself, and what would help."""
    told = f"{path} cannot be made again by itself: it does not hold its {', '.join(missing)}"
    named = [f"{name} was {inputs[name]['name']}" for name in missing if name in inputs]
    if named:
        told += f" ({', '.join(named)}, too large to be kept)"
    ways = [OPTIONS[name] for name in missing if name in OPTIONS]
    if len(ways) == len(missing):
        return f"{told}; give {' and '.join(ways)}"
    return (
        f"{told}; in Python, underdraw.pipelines.call.record.repeat(pipe, metadata, "
        f"{', '.join(f'{name}=...' for name in missing)}) makes it"
    )
