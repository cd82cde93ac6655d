"""What `model_index.json` says of its components is read, not guessed."""

import json
from unittest import mock

import pytest
from pipelines import tiny

import underdraw
from underdraw import StableDiffusionPipeline
from underdraw.errors import InputError, UnderdrawError
from underdraw.models.base import Model
from underdraw.pipelines.components.registry import LIBRARIES

NAMES = StableDiffusionPipeline.names().all
RIGHT = {
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
    "tokenizer": "CLIPTokenizer",
    "unet": "UNet2DConditionModel",
    "scheduler": "EulerDiscreteScheduler",
    "safety_checker": "StableDiffusionSafetyChecker",
    "feature_extractor": "CLIPImageProcessor",
    "image_encoder": "CLIPVisionModelWithProjection",
}
LIBRARY = {name: LIBRARIES.get(name, "transformers") for name in NAMES}
WRONG = {
    "class": lambda name: [LIBRARY[name], "MyOwn"],
    "class of another component": lambda name: [
        LIBRARY[name],
        "AutoencoderKL" if name != "vae" else "UNet2DConditionModel",
    ],
    "library": lambda name: ["mine", RIGHT[name]],
    "library of others": lambda name: [
        "transformers" if LIBRARY[name] != "transformers" else "diffusers",
        RIGHT[name],
    ],
    "no library": lambda name: [None, RIGHT[name]],
    "no class": lambda name: [LIBRARY[name], None],
    "numbers": lambda name: [1, 2],
    "three": lambda name: [LIBRARY[name], RIGHT[name], "fp16"],
    "text": lambda name: RIGHT[name],
    "a dict": lambda name: {"class": RIGHT[name]},
    "a flag": lambda name: True,
    "case": lambda name: [LIBRARY[name], RIGHT[name].lower()],
    "blank": lambda name: ["", ""],
}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    place = tmp_path_factory.mktemp("good")
    tiny.pipeline().save_pretrained(place)
    return place


@pytest.fixture
def say(good):
    """Lets the index say something of a component."""
    path = good / "model_index.json"
    before = path.read_text()

    def change(name, value):
        path.write_text(json.dumps({**json.loads(before), name: value}))
        return good

    yield change
    path.write_text(before)


@pytest.mark.parametrize("fault", WRONG)
@pytest.mark.parametrize("name", NAMES)
def test_unknown_classes_are_refused_before_weights_are_read(say, name, fault):
    value = WRONG[fault](name)
    folder = say(name, value)
    read = mock.Mock(side_effect=AssertionError("weights were read"))
    with (
        mock.patch.object(Model, "from_tensors", read),
        pytest.raises(UnderdrawError, match=rf"model_index.json: .*{name}") as told,
    ):
        StableDiffusionPipeline.from_pretrained(folder)
    assert "\n" not in str(told.value)
    assert repr(value) in str(told.value) or repr(value[1]) in str(told.value)
    if fault != "three":
        assert isinstance(told.value, InputError)
        assert RIGHT[name] in str(told.value).partition("allowed: ")[2]


@pytest.mark.parametrize("fault", ["class", "library", "no class", "text"])
@pytest.mark.parametrize("name", ["unet", "tokenizer", "scheduler", "safety_checker"])
def test_what_is_given_need_not_be_known(say, name, fault):
    folder, parts = say(name, WRONG[fault](name)), tiny.components()
    given = parts.get(name)
    pipe = StableDiffusionPipeline.from_pretrained(folder, **{name: given})
    assert getattr(pipe, name) is given


@pytest.mark.parametrize(
    ("name", "listed"),
    [
        ("unet", ["diffusers", "FlaxUNet2DConditionModel"]),
        ("unet", ["diffusers.models.unets", "UNet2DConditionModel"]),
        ("tokenizer", ["transformers", "CLIPTokenizerFast"]),
        ("text_encoder", ["transformers", "CLIPTextModelWithProjection"]),
        ("scheduler", ["diffusers", "FlaxPNDMScheduler"]),
        ("safety_checker", None),
        ("image_encoder", [None, None]),
        ("requires_safety_checker", False),
        ("upscaler", ["mine", "Upscaler"]),  # no part of this pipeline
    ],
)
def test_other_names_of_what_we_read(say, name, listed):
    folder = say(name, listed)
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    if name == "scheduler":
        assert type(pipe.scheduler) is underdraw.PNDMScheduler
    assert pipe.unet is not None
