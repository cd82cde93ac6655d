"""Arguments of what is public besides the calls of pipelines: controls, schedulers, engines, and
methods under their familiar names. As `tests/pipelines/test_arguments.py`: an error is one of ours
and names the argument in one line, and an object that refused is as it was."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from pipelines import test_gligen as gligen, tiny
from pipelines.blip import recorded as blip
from trying import exactly
from walked import PICTURE, instance, methods
from zoo import ZOO, sensible

import underdraw
from underdraw import controls, engines
from underdraw.controls.boxes import check_box
from underdraw.errors import InputError, UnderdrawError
from underdraw.pictures.maps import masked_map

POSE = [[(0.5, 0.5)] * 17]
SCHEDULERS = [
    name for name in underdraw.__all__ if name.endswith("Scheduler") and not name.startswith("Flax")
]
STEPPING = ("set_timesteps", "add_noise", "scale_model_input", "step")
"""Methods of schedulers whose work each class does otherwise."""

MAKING: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "Box": (underdraw.Box, {"phrase": "a", "box": (0.1, 0.1, 0.5, 0.5)}),
    "Style": (underdraw.Style, {"image": PICTURE}),
    "Layout": (underdraw.Layout, {"boxes": [underdraw.Box("a", (0, 0, 1, 1))]}),
    "Keypoints": (underdraw.Keypoints, {"people": POSE}),
    "CannyMap": (underdraw.CannyMap, {"image": PICTURE}),
    "SemanticMap": (underdraw.SemanticMap, {"image": np.zeros((4, 6), np.int64)}),
    "NullText": (underdraw.NullText, {"contexts": [torch.ones(1, 77, 32)]}),
    "AttentionEdit": (underdraw.AttentionEdit, {}),
    "Region": (underdraw.Region, {"mask": PICTURE, "image": PICTURE}),
    "VaeImageProcessor": (underdraw.VaeImageProcessor, {}),
    "Strength": (controls.Strength, {"on": 0.3, "decay": 0.0, "off": 0.7}),
    "Subject": (underdraw.Subject, {"image": PICTURE, "category": "toy"}),
    "BlipImageProcessor": (underdraw.BlipImageProcessor(), {"images": PICTURE}),
    "get_query_embeddings": (
        blip.pipeline().get_query_embeddings,
        {"input_image": torch.zeros(1, 3, 28, 28), "src_subject": "toy"},
    ),
    "encode_prompt of subjects": (
        blip.pipeline().encode_prompt,
        {"query_embeds": torch.zeros(1, 5, 24), "prompt": "a red cube"},
    ),
    "latents of subjects": (
        blip.pipeline().prepare_latents,
        {"batch_size": 1, "num_channels": 4, "height": 6, "width": 9},
    ),
    "ImagePrompt": (underdraw.ImagePrompt, {"image": PICTURE}),
    "IPAdapterMaskProcessor": (underdraw.IPAdapterMaskProcessor, {}),
    "Structure": (underdraw.Structure, {"net": tiny.adapter(), "map": PICTURE}),
    "masked_map": (masked_map, {"image": PICTURE, "mask": PICTURE}),
    "DeepCache": (underdraw.DeepCache, {}),
    "EncoderPropagation": (underdraw.EncoderPropagation, {}),
    "AttentionCache": (underdraw.AttentionCache, {}),
    "GuidanceInterval": (underdraw.GuidanceInterval, {}),
    "AdaptiveGuidance": (underdraw.AdaptiveGuidance, {}),
    "SparseGuidance": (underdraw.SparseGuidance, {}),
    "TokenDownsampling": (underdraw.TokenDownsampling, {}),
    "engines.get": (engines.get, {}),
    "batched": (underdraw.batched, {"streams": []}),
}
"""Constructors and functions by name, with arguments that work."""


class Tried(NamedTuple):
    name: str
    """A function, or a class and its method."""
    argument: str
    parameter: inspect.Parameter

    def bound(self) -> tuple[Callable[..., Any], dict[str, Any]]:
        """What is called, and arguments with which it works."""
        if self.name in MAKING:
            return MAKING[self.name]
        owner, name = self.name.split(".")
        base = next(m for m in METHODS if m.name == name and (m.owner == owner or name in STEPPING))
        return getattr(instance(owner), name), base._replace(owner=owner).base


METHODS = methods()


def table() -> list[Tried]:
    found = [
        Tried(name, argument, parameter)
        for name, (function, _) in MAKING.items()
        for argument, parameter in inspect.signature(function).parameters.items()
    ]
    for method in METHODS:
        owners = SCHEDULERS if method.name in STEPPING else [method.owner]
        found += [
            Tried(f"{owner}.{method.name}", argument, parameter)
            for owner in owners
            for argument, parameter in method.parameters.items()
        ]
    return found


TABLE = table()
OPEN = ("Any", "Array", "Range", "Sequence", "Iterable", "Mapping", "tuple", "Strength", "Callable")
"""Words of annotations that say too little; what is accepted then is not looked at."""
DEAR = ("from_", "save_", "load_", "push_", "download")
"""Methods that read and write folders."""


SAYS_OTHERWISE = {
    "raw": "config",
    "sample": "channels encoder_hidden_states",
    "batch_size": "prompts",
    "mid_block_additional_residual": "mid_residual",
    "down_block_additional_residuals": "down_residuals",
    "gligen_images": "input",
    "is_image": "input",
    "torch_dtype": "dtype",
    "onload_device": "device",
}
"""Arguments that messages may call by another name."""


def values_for(tried: Tried) -> list[str]:
    """A ninth of the zoo for each argument, another one for the next; less where seventeen
    schedulers share their methods, and where files are read."""
    owner, _, method = tried.name.partition(".")
    every = 31 if owner in SCHEDULERS or method.startswith(DEAR) else 9
    return list(ZOO)[TABLE.index(tried) % every :: every]


def outcome(tried: Tried, which: str) -> str | None:
    """What is wrong with what comes of a value; None: nothing."""
    value, (function, base) = ZOO[which](), tried.bound()
    owner, scheduler = getattr(function, "__self__", None), tried.name.endswith(STEPPING)
    if scheduler:  # each call begins a run of its own
        owner.set_timesteps(8)
        before = exactly((owner.table, owner._request, owner.step_index, owner.begin_index))
    try:
        function(**{**base, tried.argument: value})
    except UnderdrawError as error:
        if scheduler:
            after = (owner.table, owner._request, owner.step_index, owner.begin_index)
            assert exactly(after) == before
        told = str(error)
        # Of what is looked for under a name, that name says enough.
        names = value if isinstance(value, list) else [value]
        shown = any(isinstance(one, str | Path) and str(one)[:20] in told for one in names)
        named = {tried.argument, *SAYS_OTHERWISE.get(tried.argument, tried.argument).split()}
        clear = (
            (any(name in told for name in named) or shown) and len(told) < 500 and "\n" not in told
        )
        return None if clear or told == refused(tried.name) else told[:200]
    except Exception as error:
        return f"{type(error).__name__}: {error!s:.200}"
    annotation, default = str(tried.parameter.annotation), tried.parameter.default
    usual = default is value or (which == "none" and default is None)
    fits = usual or sensible(annotation, value) or any(word in annotation for word in OPEN)
    fits = fits or ("Image" in annotation and which == "picture")
    return None if fits else "accepted"


@cache
def refused(name: str) -> str:
    """Why a method works with no arguments here ("there is no accelerator"); "": it does."""
    function, base = next(t for t in TABLE if t.name == name).bound()
    try:
        function(**base)
    except UnderdrawError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("tried", TABLE, ids=lambda tried: f"{tried.name}-{tried.argument}")
def test_a_part_of_the_zoo(tried, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = {which: outcome(tried, which) for which in values_for(tried)}
    assert {which: wrong for which, wrong in found.items() if wrong} == {}


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
