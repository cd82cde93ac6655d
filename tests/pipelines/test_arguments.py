"""Every argument of every public call, with values of every kind that callers pass by mistake.

What is tried is read from the signatures, so new pipelines and new arguments are covered by
themselves. An error must be one of ours and name the argument in one short line, come before any
network runs, and leave the pipeline as it was; what is accepted must be of a type that the
annotation names, or stand in `WORKS`.
"""

from __future__ import annotations

import inspect
import warnings
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from pipelines import test_gligen as gligen, tiny
from pipelines.blip import recorded as blip
from trying import exactly
from zoo import ZOO, sensible

import underdraw
from underdraw import schedulers
from underdraw.errors import UnderdrawError
from underdraw.pipelines.base import DiffusionPipeline

# -- what is called --------------------------------------------------------------------------------
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
MASK = Image.fromarray(np.pad(np.full((32, 32), 255, np.uint8), 16))
LATENTS = torch.ones(1, 4, 8, 8)
TEXT = {"prompt": "a red sphere", "num_inference_steps": 2}
EDIT = {"image": PICTURE, "num_inference_steps": 4}
BOXES = {"gligen_boxes": gligen.BOXES, "gligen_phrases": gligen.PHRASES}
SUBJECT = {
    "reference_image": PICTURE,
    "source_subject_category": "toy",
    "target_subject_category": "cube",
}
CALLS: dict[tuple[str, str], dict[str, Any]] = {
    ("StableDiffusionPipeline", "__call__"): TEXT,
    ("StableDiffusionPipeline", "encode_prompt"): {"prompt": "a red sphere"},
    ("StableDiffusionImg2ImgPipeline", "__call__"): {**TEXT, "image": PICTURE, "strength": 0.9},
    ("StableDiffusionInpaintPipeline", "__call__"): {
        **TEXT,
        "image": PICTURE,
        "mask_image": MASK,
    },
    ("StableDiffusionDiffEditPipeline", "__call__"): {
        **TEXT,
        "mask_image": MASK,
        "image_latents": torch.ones(1, 1, 4, 8, 8),
    },
    ("StableDiffusionDiffEditPipeline", "generate_mask"): {
        **EDIT,
        "source_prompt": "a sphere",
        "target_prompt": "a cube",
    },
    ("StableDiffusionDiffEditPipeline", "invert"): {**EDIT, "prompt": "a sphere"},
    ("StableDiffusionDiffEditPipeline", "edit"): {
        **EDIT,
        "source": "a sphere",
        "target": "a cube",
    },
    ("StableDiffusionGLIGENPipeline", "__call__"): {**TEXT, **BOXES},
    ("StableDiffusionGLIGENTextImagePipeline", "__call__"): {**TEXT, **BOXES},
    ("BlipDiffusionPipeline", "__call__"): {**TEXT, **SUBJECT},
    ("BlipDiffusionPipeline", "generate_then_edit"): {**TEXT, **SUBJECT},
    ("BlipDiffusionPipeline", "edit"): {**TEXT, **SUBJECT, "image": PICTURE},
    ("BlipDiffusionControlNetPipeline", "__call__"): {
        **TEXT,
        **SUBJECT,
        "conditioning_image": PICTURE,
    },
    ("StableDiffusionControlNetPipeline", "__call__"): {**TEXT, "image": PICTURE},
    ("StableDiffusionControlNetImg2ImgPipeline", "__call__"): {
        **TEXT,
        "image": PICTURE,
        "control_image": PICTURE,
        "strength": 0.9,
    },
    ("StableDiffusionControlNetInpaintPipeline", "__call__"): {
        **TEXT,
        "image": PICTURE,
        "control_image": PICTURE,
        "mask_image": MASK,
    },
    ("StableDiffusionAdapterPipeline", "__call__"): {**TEXT, "image": PICTURE},
}
"""What runs networks, and arguments with which it works."""
SAYS_OTHERWISE = {"source": "source_prompt", "target": "target_prompt"}
"""Arguments that messages may call by the name of what they are handed to."""
WORKS: dict[str, set[str]] = {
    "callback_on_step_end_tensor_inputs": {"empty list", "empty tuple"},
    "controls": {"empty list", "empty tuple"},
    "control_image": {"numpy matrix", "picture", "pictures", "tensor matrix"},
    "cross_attention_kwargs": {"empty dict"},
    "device": {"0", "1", "numpy int"},
    "done": {"empty list", "empty tuple"},
    "generator": {"list of None"},
    "gligen_images": {"pictures"},
    "gligen_inpaint_image": {"picture"},
    "gligen_phrases": {"numpy texts"},
    "image": {"numpy matrix", "picture", "pictures", "tensor matrix"},
    "condtioning_image": {"numpy matrix", "picture", "pictures", "tensor matrix"},
    "conditioning_image": {"numpy matrix", "picture", "pictures", "tensor matrix"},
    "reference_image": {"picture", "pictures"},
    "mask_image": {"numpy matrix", "picture", "pictures", "tensor matrix"},
    "input_images_mask": {"true", "false", "numpy bool", "tensor bool"},
    "input_phrases_mask": {"true", "false", "numpy bool", "tensor bool"},
}
"""By argument, values of the zoo which work although its annotation does not say so."""


class Reached(BaseException):
    """A network would run now: every check is done."""


class Stop:
    """An engine that runs nothing."""

    def run(self, question: Any) -> Any:
        raise Reached(question.program.name)


@cache
def pipelines() -> dict[str, Any]:
    """One of each class, on networks that nobody runs."""
    shallow = tiny.ONE_LEVEL
    text = tiny.pipeline(unet=shallow)
    made: dict[str, Any] = {
        "StableDiffusionGLIGENPipeline": gligen.made(**shallow),
        "StableDiffusionGLIGENTextImagePipeline": gligen.made("text-image", **shallow),
    }
    net = blip.shared()["controlnet"]
    made["BlipDiffusionPipeline"] = blip.pipeline()
    made["BlipDiffusionControlNetPipeline"] = blip.pipeline(
        underdraw.BlipDiffusionControlNetPipeline, controlnet=net
    )
    config = {**tiny.SCHEDULE, "clip_sample": False, "set_alpha_to_one": False}
    for name, _ in CALLS:
        given: dict[str, Any] = {}
        if "DiffEdit" in name:
            given = {"scheduler": schedulers.DDIMScheduler(**config)}
        elif "ControlNet" in name:
            given = {"controlnet": tiny.controlnet(text.unet)}
        elif "Adapter" in name:
            given = {"adapter": tiny.adapter(channels=shallow["block_out_channels"])}
        if name not in made:
            made[name] = getattr(underdraw, name).from_pipe(text, **given)
    for pipe in made.values():
        pipe.engine = Stop()
    return made


def written(kind: Any, method: str) -> dict[str, inspect.Parameter]:
    """The parameters of a method as its source has them."""
    function = getattr(kind, method)
    function = inspect.unwrap(getattr(function, "steps", function))
    found = dict(inspect.signature(function).parameters)
    del found["self"]
    return found


ARGUMENTS = [
    (name, method, argument)
    for name, method in CALLS
    for argument in written(getattr(underdraw, name), method)
]


FIRSTS = list(
    {argument: (name, method, argument) for name, method, argument in ARGUMENTS[::-1]}.values()
)
"""For each argument the first call that has it."""


def values_for(name: str, method: str, argument: str) -> list[str]:
    """All of the zoo where an argument comes first; elsewhere, where the same checks are at work,
    every sixth value, others for each call."""
    if (name, method, argument) in FIRSTS:
        return list(ZOO)
    return list(ZOO)[list(CALLS).index((name, method)) % 6 :: 6]


class Outcome(NamedTuple):
    kind: str
    """ "clear", "accepted", or what is wrong with it."""
    message: str = ""


def tried(pipe: Any, method: str, argument: str, value: Any) -> Outcome:
    """What comes of a value."""
    base = CALLS[type(pipe).__name__, method]
    try:
        getattr(pipe, method)(**{**base, argument: value})
    except Reached as reached:
        return Outcome("accepted", str(reached))
    except UnderdrawError as error:
        told = str(error)
        names = (argument, SAYS_OTHERWISE.get(argument, argument))
        clear = any(name in told for name in names) and len(told) < 500 and "\n" not in told
        return Outcome("clear" if clear else "unclear", told)
    except BaseException as error:
        return Outcome("unclear", f"{type(error).__name__}: {error!s:.200}")
    return Outcome("accepted")


def state(pipe: Any) -> Any:
    """All that a call could leave behind on a pipeline."""
    parts = pipe.parts
    held = [(name, id(value)) for name, value in sorted(vars(parts).items())]
    scheduler = {name: value for name, value in vars(parts.scheduler).items() if name != "_tables"}
    named = [(name, id(value)) for name, value in parts.named.items()]
    own = {name: repr(value) for name, value in vars(pipe).items() if name != "views"}
    return held, named, exactly(scheduler), own, len(pipe.views._going)


# -- the table -------------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "method", "argument"), ARGUMENTS)
def test_every_value_of_the_zoo(name, method, argument):
    pipe = pipelines()[name]
    parameter = written(type(pipe), method)[argument]
    before, random, wrong = state(pipe), torch.get_rng_state(), {}
    for which in values_for(name, method, argument):
        value = ZOO[which]()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcome = tried(pipe, method, argument, value)
        if outcome.kind == "accepted":
            allowed = which in WORKS.get(argument, ()) or sensible(str(parameter.annotation), value)
            default = parameter.default is value or (which == "none" and parameter.default is None)
            if not (allowed or default):
                wrong[which] = "accepted"
        elif outcome.kind != "clear":
            wrong[which] = outcome.message
    assert wrong == {}
    assert state(pipe) == before
    assert torch.equal(torch.get_rng_state(), random)


def test_no_call_is_left_out():
    for name in underdraw.__all__:
        kind = getattr(underdraw, name)
        if isinstance(kind, type) and issubclass(kind, DiffusionPipeline):
            assert kind is DiffusionPipeline or (name, "__call__") in CALLS


# Values most unlike those that code is written with.
UNLIKE = ("fraction", "numpy float", "numpy int", "numpy text")


@pytest.mark.parametrize(("name", "method", "argument"), FIRSTS)
def test_what_is_accepted_runs_to_its_end(name, method, argument):
    """An error behind the first network is a late one."""
    pipe = pipelines()[name]
    pipe.set_progress_bar_config(disable=True)
    for which in (*UNLIKE, *sorted(WORKS.get(argument, ()))):
        if tried(pipe, method, argument, ZOO[which]()).kind == "accepted":
            pipe.engine = None
            try:
                getattr(pipe, method)(**{**CALLS[name, method], argument: ZOO[which]()})
            finally:
                pipe.engine = Stop()
