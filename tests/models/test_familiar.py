"""diffusers' keywords: neutral values change nothing, all others are refused by name."""

import pytest
import torch
from models.test_objects import MAKE

from underdraw.errors import InputTypeError
from underdraw.models import CLIPImageProcessor
from underdraw.models.keywords import LOADING, SAVING


@pytest.fixture
def folder(tmp_path):
    MAKE["text"]().save_pretrained(tmp_path / "text")
    return tmp_path / "text"


def test_neutral_values_change_nothing(folder):
    cls = type(MAKE["text"]())
    plain = cls.from_pretrained(folder).state_dict()
    for name, values in LOADING.items():
        for value in values:
            again = cls.from_pretrained(folder, **{name: value}).state_dict()
            assert all(torch.equal(again[key], plain[key]) for key in plain)


@pytest.mark.parametrize("kind", MAKE)
def test_other_values_are_refused_before_work_starts(kind):
    cls = type(MAKE[kind]())
    for name, value in (
        ("device_map", "auto"),
        ("output_loading_info", True),
        ("quantization_config", {"bits": 4}),
        ("proxies", {}),
        ("low_cpu_mem_usage", 1),
        ("low_cpu_mem_usage", torch.ones(2)),
    ):
        with pytest.raises(InputTypeError, match=rf"from_pretrained: {name}=.*allowed: None"):
            cls.from_pretrained("/nowhere", **{name: value})
    with pytest.raises(InputTypeError, match=f"{cls.__name__}.from_pretrained has no .*'revison'"):
        cls.from_pretrained("/nowhere", revison="main")
    with pytest.raises(InputTypeError, match="skip"):
        cls.from_pretrained("/nowhere", skip=("unet",))


def test_saving(tmp_path):
    model = MAKE["text"]()
    model.save_pretrained(tmp_path / "other", is_main_process=False)
    assert not (tmp_path / "other").exists()
    everything = {name: values[-1] for name, values in SAVING.items()}
    model.save_pretrained(tmp_path / "here", is_main_process=True, **everything)
    assert (tmp_path / "here" / "model.safetensors").exists()
    for name, value in (("push_to_hub", True), ("save_function", torch.save), ("shards", 3)):
        with pytest.raises(InputTypeError, match=name):
            model.save_pretrained(tmp_path / "x", **{name: value})
        with pytest.raises(InputTypeError, match=name):
            CLIPImageProcessor().save_pretrained(tmp_path / "x", **{name: value})
    assert not (tmp_path / "x").exists()


def test_image_processors(tmp_path):
    CLIPImageProcessor(20).save_pretrained(tmp_path / "p", push_to_hub=False)
    again = CLIPImageProcessor.from_pretrained(tmp_path / "p", low_cpu_mem_usage=True, mirror=None)
    assert again == CLIPImageProcessor(20)
    with pytest.raises(InputTypeError, match="device_map='auto'"):
        CLIPImageProcessor.from_pretrained(tmp_path / "p", device_map="auto")
