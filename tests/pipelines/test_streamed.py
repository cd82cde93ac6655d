"""Layers that pass through an accelerator one by one, or in groups of blocks: the same pictures,
and nothing of a network stays there."""

import copy
import gc
import pickle
import weakref

import numpy as np
import pytest
import torch
from pipelines import tiny
from pipelines.elsewhere import Accelerator, There
from pipelines.loras import lora
from pipelines.test_offload import CASES, is_home, numbers, quiet

import underdraw
from underdraw.backends import hardware, torch_leaves
from underdraw.backends.node import at
from underdraw.engines.streaming import Streaming, grouped
from underdraw.errors import InputError, InputTypeError
from underdraw.networks import unet
from underdraw.networks.config import read

SOME = ("text to image", "inpaint", "edit", "grounding controls", "structure", "subjects", "stream")


@pytest.mark.parametrize("name", SOME)
def test_the_same_pictures(name):
    """Layer by layer on an accelerator; by groups, fetched by another thread, on "cpu:0"."""
    make, do, _ = CASES[name]
    pipe = quiet(make())
    plain = numbers(do(pipe))
    pipe.enable_sequential_cpu_offload(device="meta")
    with Accelerator():
        made = numbers(do(pipe))
    assert is_home(pipe)
    for a, b in zip(made, plain, strict=True):
        far = 1 if b.dtype == np.uint8 else 1e-3 * abs(b).max()
        np.testing.assert_allclose(a, b, atol=far, rtol=0)
    pipe.disable_model_cpu_offload()
    pipe.enable_group_offload("cpu:0", num_blocks_per_group=2)
    for a, b in zip(numbers(do(pipe)), plain, strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_is_there_at_once(monkeypatch):
    """Of all layers of the UNet one at a time, or two groups."""
    pipe, alive, most = tiny.pipeline(), weakref.WeakSet(), [0]
    copied = torch_leaves._copied

    def counted(layer, device):
        made = copied(layer, device)
        if isinstance(made, torch.nn.Module):
            alive.add(made)
            most[0] = max(most[0], len(alive))
        return made

    monkeypatch.setattr(torch_leaves, "_copied", counted)
    expected = tiny.run(pipe)
    pipe.enable_sequential_cpu_offload(device="cpu:0")
    assert torch.equal(tiny.run(pipe), expected)
    assert 1 <= most[0] <= 3  # one more while it is made, and one that a program still names
    alive.clear(), most.clear(), most.append(0)
    pipe.enable_group_offload("cpu:0")
    assert torch.equal(tiny.run(pipe), expected)
    held = [len(one._held) for one in pipe.engine._copies.values()]
    assert sum(held) <= 1  # of the network that came last
    network = weakref.ref(pipe.unet)
    pipe.unet = tiny.pipeline().unet
    gc.collect()
    assert network() is None
    whole = sum(len(type(one).layout(one.config).leaves) for one in pipe.parts.networks)
    assert most[0] < whole / 2


@pytest.mark.parametrize("how", ["in place", "other layers"])
def test_weights_that_changed_are_copied_again(how, monkeypatch):
    """Groups that were fetched ahead, or are still there from the last call."""
    monkeypatch.setattr(torch_leaves, "_copied", lambda layer, device: copy.deepcopy(layer))
    network = tiny.pipeline().unet
    leaves = type(network).layout(network.config)
    copies = torch_leaves.copies(network, torch.device("cpu"), grouped(leaves, 4))
    view = torch_leaves.streamed(network, copies)

    def walked():
        return [torch.equal(at(view, path).weight, at(network, path).weight) for path in paths]

    paths = [path for path, leaf in leaves.leaves.items() if leaf.kind != "parameter"]
    assert all(walked())
    with torch.no_grad():
        for path in paths[::5]:
            owner, _, last = path.rpartition(".")
            modules = network.get_submodule(owner)._modules
            if how == "other layers":
                modules[last] = copy.deepcopy(modules[last])
            modules[last].weight.mul_(1.5)
    assert all(walked())


def test_groups_hold_each_leaf_once_in_order():
    layout = unet.layout(read(unet.UNetConfig, tiny.DEEP))
    for blocks in (1, 3):
        groups = grouped(layout, blocks)
        assert [path for group in groups for path in group] == list(layout.leaves) or sorted(
            path for group in groups for path in group
        ) == sorted(layout.leaves)
        assert len(groups) > 5 / blocks


def test_with_loras_quantised_weights_and_another_engine(tmp_path):
    pipe = tiny.pipeline()
    torch.save(lora(pipe), tmp_path / "a.pt")
    pipe.quantize("int8")
    pipe.load_lora_weights(tmp_path / "a.pt", "a")
    expected = tiny.run(pipe)
    pipe.enable_sequential_cpu_offload(device="meta")
    with Accelerator():
        made = tiny.run(pipe)
    assert isinstance(made, There)
    torch.testing.assert_close(made.held, expected, rtol=0, atol=1e-3)
    pipe.engine = "eager"
    assert isinstance(pipe.engine, Streaming) and "layers stay in host memory" in repr(pipe)
    sharing = underdraw.StableDiffusionPipeline.from_pipe(pipe)
    assert sharing.engine is pipe.engine and sharing.device.type == "meta"
    for other in (copy.deepcopy(pipe), pickle.loads(pickle.dumps(pipe))):
        with Accelerator():
            again = tiny.run(other)
        torch.testing.assert_close(again.held, made.held, rtol=0, atol=1e-6)
    pipe.enable_model_cpu_offload(device="meta")
    assert not isinstance(pipe.engine, Streaming)
    pipe.disable_model_cpu_offload()
    assert torch.equal(tiny.run(pipe), expected)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"offload_type": "leaf"}, InputError),
        ({"offload_device": "disk"}, InputError),
        ({"num_blocks_per_group": 0}, InputError),
        ({"offload_to_disk_path": "x"}, InputTypeError),
        ({"streams": 3}, InputTypeError),
        ({"onload_device": "nowhere"}, InputError),
        ({}, InputError),
    ],
)
def test_wrong_groups(options, error, monkeypatch):
    monkeypatch.setattr(hardware, "_count", lambda kind: int(kind == "cpu"))
    pipe = tiny.pipeline()
    with pytest.raises(error):
        pipe.enable_group_offload(**options)
    assert pipe.parts.offload is None and not isinstance(pipe.engine, Streaming)
