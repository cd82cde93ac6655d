"""Arguments of what is public besides the calls of pipelines: controls, schedulers, engines, and
methods under their familiar names. As `tests/pipelines/test_arguments.py`: an error is one of ours
and names the argument in one line, and an object that refused is as it was."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pipelines import test_gligen as gligen, tiny
from pipelines.blip import recorded as blip
from zoo import ZOO, sensible

import underdraw
from underdraw import controls, engines
from underdraw.controls.boxes import check_box
from underdraw.errors import InputError, UnderdrawError
from underdraw.pictures.maps import masked_map

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8))
LATENTS = torch.ones(1, 4, 8, 8)
POSE = [[(0.5, 0.5)] * 17]
SCHEDULERS = [name for name in underdraw.__all__ if name.endswith("Scheduler")]


def scheduler(name: str) -> Any:
    made = getattr(underdraw, name).from_config(tiny.SCHEDULE)
    made.set_timesteps(8)
    return made


def methods() -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """By name what is called, and arguments with which it works."""
    pipe, grounded = tiny.pipeline(), gligen.made("text-image")
    subjects = blip.pipeline()
    show = pipe.image_processor
    found: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
        "Box": (underdraw.Box, {"phrase": "a", "box": (0.1, 0.1, 0.5, 0.5)}),
        "Style": (underdraw.Style, {"image": PICTURE}),
        "Layout": (underdraw.Layout, {"boxes": [underdraw.Box("a", (0, 0, 1, 1))]}),
        "Keypoints": (underdraw.Keypoints, {"people": POSE}),
        "CannyMap": (underdraw.CannyMap, {"image": PICTURE}),
        "SemanticMap": (underdraw.SemanticMap, {"image": np.zeros((4, 6), np.int64)}),
        "NullText": (underdraw.NullText, {"contexts": [torch.ones(1, 77, 32)]}),
        "AttentionEdit": (underdraw.AttentionEdit, {}),
        "Subject": (underdraw.Subject, {"image": PICTURE, "category": "toy"}),
        "BlipImageProcessor": (underdraw.BlipImageProcessor(), {"images": PICTURE}),
        "get_query_embeddings": (
            subjects.get_query_embeddings,
            {"input_image": torch.zeros(1, 3, 28, 28), "src_subject": "toy"},
        ),
        "encode_prompt": (
            subjects.encode_prompt,
            {"query_embeds": torch.zeros(1, 5, 24), "prompt": "a red cube"},
        ),
        "latents of subjects": (
            subjects.prepare_latents,
            {"batch_size": 1, "num_channels": 4, "height": 6, "width": 9},
        ),
        "Structure": (underdraw.Structure, {"net": tiny.adapter(), "map": PICTURE}),
        "masked_map": (masked_map, {"image": PICTURE, "mask": PICTURE}),
        "Strength": (controls.Strength, {"on": 0.3, "decay": 0.0, "off": 0.7}),
        "engines.get": (engines.get, {}),
        "batched": (underdraw.batched, {"streams": []}),
        "decode_latents": (pipe.decode_latents, {"latents": LATENTS, "output_type": "latent"}),
        "enable_attention_slicing": (pipe.enable_attention_slicing, {}),
        "progress_bar": (pipe.progress_bar, {"total": 3}),
        "prepare_latents": (
            pipe.prepare_latents,
            {"batch_size": 1, "num_channels_latents": 4, "height": 64, "width": 64},
        ),
        "numpy_to_pil": (pipe.numpy_to_pil, {"images": np.zeros((1, 8, 8, 3))}),
        "unload_adapter": (pipe.unload_adapter, {"kind": "grounding"}),
        "enable_fuser": (grounded.enable_fuser, {}),
        "crop": (grounded.crop, {"im": PICTURE, "new_width": 8, "new_height": 8}),
        "target_size_center_crop": (
            grounded.target_size_center_crop,
            {"im": PICTURE, "new_hw": 8},
        ),
        "draw_inpaint_mask_from_boxes": (
            grounded.draw_inpaint_mask_from_boxes,
            {"boxes": gligen.BOXES, "size": (8, 8)},
        ),
        "preprocess": (show.preprocess, {"image": PICTURE}),
        "blur": (show.blur, {"image": PICTURE}),
        "get_crop_region": (
            show.get_crop_region,
            {"mask_image": PICTURE, "width": 8, "height": 8},
        ),
    }
    for name in SCHEDULERS:
        one = scheduler(name)
        found[f"{name}.set_timesteps"] = one.set_timesteps, {"num_inference_steps": 8}
        found[f"{name}.add_noise"] = (
            one.add_noise,
            {"original_samples": LATENTS, "noise": LATENTS, "timesteps": one.timesteps[:1]},
        )
        found[f"{name}.scale_model_input"] = (
            one.scale_model_input,
            {"sample": LATENTS, "timestep": one.timesteps[0]},
        )
        found[f"{name}.step"] = (
            one.step,
            {"model_output": LATENTS, "timestep": one.timesteps[0], "sample": LATENTS},
        )
    return found


METHODS = methods()
ARGUMENTS = [
    (name, argument)
    for name, (function, _) in METHODS.items()
    for argument, parameter in inspect.signature(function).parameters.items()
    if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
]
OPEN = ("Any", "Array", "Range", "Sequence", "Iterable", "Mapping", "tuple", "Strength", "Callable")
"""Words of annotations that say too little; what is accepted then is not looked at."""


def values_for(index: int, name: str) -> list[str]:
    """A fifth of the zoo for each argument, another one for the next; less where seventeen
    schedulers share their methods."""
    every = 23 if name.partition(".")[0] in SCHEDULERS else 5
    return list(ZOO)[index % every :: every]


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_a_part_of_the_zoo(name, argument):
    function, base = METHODS[name]
    parameter, wrong = inspect.signature(function).parameters[argument], {}
    owner = getattr(function, "__self__", None)
    for which in values_for(ARGUMENTS.index((name, argument)), name):
        value = ZOO[which]()
        if "Scheduler." in name:  # each call begins a run of its own
            owner.set_timesteps(8)
            before = repr((owner.table, owner._request, owner.step_index, owner.begin_index))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                function(**{**base, argument: value})
        except UnderdrawError as error:
            told = str(error)
            if argument not in told or len(told) > 500 or "\n" in told:
                wrong[which] = told[:200]
            if "Scheduler." in name:
                after = (owner.table, owner._request, owner.step_index, owner.begin_index)
                assert repr(after) == before
        except Exception as error:
            wrong[which] = f"{type(error).__name__}: {error!s:.200}"
        else:
            annotation = str(parameter.annotation)
            default = parameter.default is value or (which == "none" and parameter.default is None)
            if not (default or sensible(annotation, value) or any(w in annotation for w in OPEN)):
                wrong[which] = "accepted"
    assert wrong == {}


# -- what detectors and other programs give --------------------------------------------------------
@pytest.mark.parametrize("beyond", [1e-7, 1e-6, 5e-5])
def test_corners_beyond_an_edge_by_rounding_lie_on_it(beyond):
    box = [-beyond, 0.25, 1 + beyond, 1.0]
    for given in (box, np.array(box), np.array(box, np.float32), torch.tensor(box)):
        assert check_box("box", given) == (0.0, 0.25, 1.0, 1.0)
    pose = [[(-beyond, 1 + beyond), *[(0.5, 0.5)] * 16]]
    assert underdraw.Keypoints(pose).people[0][0][0] == (0.0, 1.0)


@pytest.mark.parametrize("beyond", [1e-3, 0.1, 1e30])
def test_corners_outside_are_refused(beyond):
    for box in ([-beyond, 0, 1, 1], [0, 0, 1, 1 + beyond], [1, 0, 1 + 1e-6, 1]):
        with pytest.raises(InputError, match="box"):
            check_box("box", box)


def test_fractions_that_add_up_to_one_by_rounding():
    for on, decay in ((0.9, 0.1), (0.7, 0.3), (0.3, 0.6)):
        strength = controls.Strength(on, decay, 1 - on - decay)
        assert strength.on == on


@pytest.mark.parametrize("name", ["input_phrases_mask", "input_images_mask"])
def test_masks_longer_than_the_boxes(name):
    pipe = gligen.made("text-image")
    call = {"gligen_boxes": gligen.BOXES, "gligen_phrases": gligen.PHRASES}
    for wrong in ([1, 0, 1], (0, 0, 0), torch.ones(3), np.array([1, 1, 0])):
        with pytest.raises(InputError, match=f"{name} has 3 entries; there are 2 boxes"):
            pipe("a", **call, **{name: wrong})
