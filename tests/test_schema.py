"""Configs and records as schemas: every field of every class is tried with values that it is not
meant for. New classes and fields are found by themselves."""

import dataclasses
import importlib
import math
import pkgutil
import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import numpy as np
import pytest
import torch
from networks.configs import UNETS, VAES
from trying import PYTHON, Strange, outcome

import underdraw
from underdraw.cli import image_prompts, structure, subjects
from underdraw.cli.boxes import Entry, Whole
from underdraw.errors import InputError, WeightError
from underdraw.models import CLIPImageProcessor
from underdraw.networks import clip, config, image_projection, unet, vae, vision
from underdraw.networks.blip import qformer
from underdraw.networks.blip.config import Blip2Config
from underdraw.networks.gligen import sites
from underdraw.networks.gligen.config import GroundingConfig
from underdraw.pipelines.call import record
from underdraw.schema import (
    Length,
    Matching,
    OneOf,
    Range,
    Schema,
    accept,
    described,
    hints_of,
    read,
    shown,
    within,
)
from underdraw.text.tokens import Token
from underdraw.training.adapters.dreambooth import PriorConfig

BASES: Mapping[type, dict[str, Any]] = {
    config.UNetConfig: UNETS["one-level"].config,
    config.VAEConfig: VAES["one-level"],
    Token: {"content": "x"},
    record.Record: {"pipeline": "P", "call": {}, "scheduler": {}, "missing": []},
    structure.Entry: {"net": "net", "map": "map.png"},
    subjects.Entry: {"image": "photo.png", "category": "dog"},
    image_prompts.Entry: {"image": "photo.png"},
    PriorConfig: {"prompt": "a dog"},
}
"""Fields beside the one that is tried: where there is no default, or where networks are smaller."""
LAYOUTS = {
    config.UNetConfig: unet.layout,
    config.VAEConfig: vae.layout,
    config.CLIPTextConfig: clip.text_layout,
    config.CLIPVisionConfig: vision.vision_layout,
    image_projection.ImageProjectionConfig: image_projection.layout,
    GroundingConfig: sites.layout,
    Blip2Config: qformer.layout,
}
"""What a config is for: a network of every config that is accepted has a layout."""


for found in pkgutil.walk_packages(underdraw.__path__, "underdraw."):
    if not found.name.startswith("underdraw.backends.") and not found.name.endswith("__main__"):
        importlib.import_module(found.name)  # so classes are the same whatever else was tried


def every_schema(base=Schema):
    """All classes of ours that are read as a schema, with fields."""
    for cls in base.__subclasses__():
        if cls.__module__.startswith("underdraw."):
            if dataclasses.is_dataclass(cls) and dataclasses.fields(cls):
                yield cls
            yield from every_schema(cls)


SCHEMAS = sorted(set(every_schema()), key=lambda cls: f"{cls.__module__}.{cls.__qualname__}")


def test_the_configs_are_found():
    names = {cls.__name__ for cls in SCHEMAS}
    assert {"UNetConfig", "DDIMConfig", "CLIPImageProcessor", "Record", "Call", "Token"} <= names
    assert len(SCHEMAS) > 25 and sum(len(hints_of(cls)) for cls in SCHEMAS) > 300


def made(cls, fields):
    """An instance, of which what it is for can be had."""
    one = cls(**{**BASES.get(cls, {}), **fields})
    holds = cls in (record.Record, record.Call, Entry, Whole)
    if not (holds or cls.__module__.startswith("underdraw.cli.")):  # which hold mappings
        hash(one)
    if cls in LAYOUTS:
        LAYOUTS[cls](one)
    return one


@pytest.mark.parametrize("cls", SCHEMAS)
def test_fields_with_values_they_are_not_meant_for(cls):
    """Every field with every value: it works, or an error names the field. No field takes what is
    neither number nor text, or NaN."""
    for name in hints_of(cls):
        for value in PYTHON:
            assert outcome(partial(made, cls, {name: value}), name) is None, (name, shown(value))
        for value in (Strange(), object(), math.nan, 1j):
            with pytest.raises(InputError, match=name):
                made(cls, {name: value})


@pytest.mark.parametrize("cls", SCHEMAS)
def test_several_fields_at_once(cls):
    """A seeded walk, with what each field has by default, and values of others, among the rest."""
    draw = random.Random(cls.__name__)
    names = list(hints_of(cls))
    defaults = [each.default for each in dataclasses.fields(cls)]
    values = [*PYTHON, *(v for v in defaults if v is not dataclasses.MISSING)] + [True, 1, 4] * 5
    for _ in range(60):
        fields = {name: draw.choice(values) for name in draw.sample(names, min(3, len(names)))}
        wrong = outcome(partial(made, cls, fields), *names)
        assert wrong is None, ({name: shown(value) for name, value in fields.items()}, wrong)


@pytest.mark.parametrize("cls", SCHEMAS)
def test_every_number_has_bounds_and_every_hint_words(cls):
    """An int or a float without a rule would take 2**62 layers."""

    def bare(hint, ruled=False):
        if hasattr(hint, "__metadata__"):
            ruled = any(isinstance(rule, Range | OneOf) for rule in hint.__metadata__)
            return bare(hint.__origin__, ruled)
        if hint in (int, float):
            return not ruled
        return any(bare(part) for part in getattr(hint, "__args__", ()) if part is not Ellipsis)

    free = {"timesteps", "sigmas"}  # of a call, which checks them against the schedule
    assert [name for name, hint in hints_of(cls).items() if bare(hint) and name not in free] == []
    assert all(described(hint) for hint in hints_of(cls).values())


@dataclass(frozen=True)
class Sample(Schema):
    owner = "sample"

    size: Annotated[int, Range(1, 8)] | tuple[Annotated[int, Range(1, 8)], ...] = 2
    odd: Annotated[int, Range(1, 9, odd=True)] = 1
    share: Annotated[float, Range(0, below=1)] = 0.5
    bound: Annotated[float, Range(-math.inf, above=None, high=3)] = 0.0
    flag: bool = False
    maybe: bool | None = None
    kind: Annotated[str, OneOf("a", "b", meaning={"old": "a", 3: "b"})] = "a"
    names: Annotated[tuple[str, ...], Length(1, 3)] = ("x",)
    pair: tuple[str, float] = ("x", 1.0)
    word: Annotated[str, Matching(r"[a-z]+", "small letters")] = "x"
    nothing: None = None


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        ("size", 3.0, 3),
        ("size", np.int16(3), 3),
        ("size", torch.tensor(3), 3),
        ("size", [3, 4.0], (3, 4)),
        ("size", np.array([3, 4]), (3, 4)),
        ("size", torch.tensor([3]), (3,)),
        ("size", range(1, 3), (1, 2)),
        ("share", 0, 0),
        ("share", np.float32(0.25), 0.25),
        ("share", torch.tensor(0.25, dtype=torch.bfloat16), 0.25),
        ("bound", -math.inf, -math.inf),
        ("flag", None, False),
        ("flag", 1, True),
        ("flag", np.bool_(True), True),
        ("maybe", None, None),
        ("kind", "old", "a"),
        ("kind", 3, "b"),
        ("names", ["a", "b"], ("a", "b")),
        ("pair", ["y", 2], ("y", 2)),
    ],
    ids=lambda value: shown(value)[:20],
)
def test_values_that_mean_what_is_meant(name, value, kept):
    found = getattr(Sample(**{name: value}), name)
    assert found == kept and type(found) is type(kept)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("size", 9, "sample: size=9 is not supported; allowed: a whole number, 1 .. 8 or a list"),
        ("size", [1, 9], "size=9 is not supported in entry [1]; allowed: a whole number, 1 .. 8"),
        ("size", True, "size=True is not"),
        ("size", "2", "size='2' is not"),
        ("size", 2.5, "size=2.5 is not"),
        ("odd", 2, "odd=2 is not supported; allowed: a whole number, 1 .. 9, odd"),
        ("share", 1, "share=1 is not supported; allowed: a number, 0 or more, below 1"),
        ("share", math.nan, "share=nan"),
        ("share", 10**400, "share=1000"),
        ("bound", math.inf, "bound=inf"),
        ("flag", "false", "flag='false' is not supported; allowed: True, False"),
        ("kind", "c", "kind='c' is not supported; allowed: 'a', 'b'"),
        ("kind", ["a"], "kind=['a'] is not"),
        ("names", [], "names=[] is not supported; allowed: a list, of 1 .. 3 entries, each a text"),
        ("names", "abc", "names='abc' is not"),
        ("names", ["a", 2], "names=2 is not supported in entry [1]; allowed: a text"),
        ("pair", ["y"], "pair=['y'] is not supported; allowed: a list of 2: a text; a finite"),
        ("word", "A", "word='A' is not supported; allowed: a text, small letters"),
        ("nothing", 0, "nothing=0 is not supported; allowed: None"),
        ("nothing", Strange(), "nothing=an object of Strange"),
    ],
    ids=lambda value: shown(value)[:20],
)
def test_messages(name, value, message):
    with pytest.raises(InputError) as error:
        Sample(**{name: value})
    assert message in str(error.value)


def test_reading_names_what_is_missing_and_where():
    assert read(Sample, {"odd": 3, "other": object()}) == Sample(odd=3)
    with pytest.raises(InputError, match="sample is 3; allowed: an object with fields"):
        read(Sample, 3)
    with pytest.raises(InputError, match="there is no content; needed is a text"):
        read(Token, {})
    with pytest.raises(InputError, match=r"^a/b\.json: sample: odd=2"), within("a/b.json"):
        read(Sample, {"odd": 2})
    with pytest.raises(WeightError, match=r"^a: x$"), within("a"):
        raise WeightError("x")
    with pytest.raises(InputError, match=r"^a/b: x$"), within("a"), within("a/b"):
        raise InputError("x")
    assert accept("", "n", 4, int) == 4


def test_processors_of_images_read_both_forms():
    old = {"size": 96, "crop_size": 80, "image_mean": [0, 0, 0], "image_std": None}
    new = {"size": {"shortest_edge": 96}, "crop_size": {"height": 80, "width": 80}}
    square = {"size": {"height": 96, "width": 96}, "crop_size": {"shortest_edge": 80}}
    found = [
        CLIPImageProcessor.from_config({**raw, "image_mean": [0, 0, 0]}) for raw in (new, square)
    ]
    assert [CLIPImageProcessor.from_config(old)] * 2 == found
    for raw, told in (
        ({"size": {"longest_edge": "x", "shortest_edge": "y"}}, "size='y'"),
        ({"crop_size": {"height": 80}}, "crop_size=None is not supported in entry"),
        ({"image_std": [0, 1, 1]}, "image_std=0"),
        ({"image_mean": [1, 1]}, "image_mean"),
        (3, "preprocessor_config"),
    ):
        with pytest.raises(InputError, match=told):
            CLIPImageProcessor.from_config(raw)
