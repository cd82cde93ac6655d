"""Models are pickled, saved whole by PyTorch and copied, on every backend."""

import copy
import io
import pickle

import pytest
import torch
from models.test_objects import MAKE
from pipelines import tiny

from underdraw import backends
from underdraw.models import CLIPTextModel, CLIPTextModelWithProjection, UNet2DConditionModel


def through_pickle(model):
    return pickle.loads(pickle.dumps(model))


def through_torch(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS = [through_pickle, through_torch, copy.deepcopy, copy.copy]


class Mine(UNet2DConditionModel):
    """A user's own subclass."""


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", [*MAKE, "mine"])
def test_pickled_and_copied(way, kind):
    model = Mine(**tiny.UNET) if kind == "mine" else MAKE[kind]()
    model.eval()
    model.note = "kept"
    again = way(model)
    assert type(again) is type(model) and again.config == model.config and again.note == "kept"
    assert not again.training
    ours, theirs = model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    shared = next(model.parameters()).data_ptr() == next(again.parameters()).data_ptr()
    assert shared == (way is copy.copy)


@pytest.mark.parametrize("way", WAYS[:3])
def test_memory_mapped_weights_are_pickled(tmp_path, way):
    unet = MAKE["unet"]()
    unet.save_pretrained(tmp_path / "u")
    mapped = UNet2DConditionModel.from_pretrained(tmp_path / "u")
    again = way(mapped)
    x, context = torch.randn(3, 4, 8, 12), torch.randn(3, 5, tiny.WIDTH)
    with torch.no_grad():
        assert torch.equal(mapped(x, 7, context).sample, again(x, 7, context).sample)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol(protocol):
    model = CLIPTextModelWithProjection(**tiny.text_config(600))
    again = pickle.loads(pickle.dumps(model, protocol))
    assert torch.equal(again.text_projection.weight, model.text_projection.weight)


@pytest.mark.parametrize("backend", [name for name in backends.installed() if name != "torch"])
def test_other_backends(backend):
    model = CLIPTextModel(**tiny.text_config(600), backend=backend)
    framework = backends.get(backend)
    for way in (through_pickle, copy.deepcopy):
        again = way(model)
        assert type(again) is type(model) and again.config == model.config
        values = dict(framework.named_tensors(again))
        for name, value in framework.named_tensors(model):
            assert (framework.to_numpy(values[name]) == framework.to_numpy(value)).all()
