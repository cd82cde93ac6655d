"""What to stand beside: diffusers' networks on our weights, as they are and as others compile them.

Other packages are imported by name when they are asked for; nothing here is a dependency.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module, util
from pathlib import Path
from typing import Any

import torch
from torch import nn

from underdraw import backends
from underdraw.benchmark.turns import Call
from underdraw.errors import InputError


@dataclass(frozen=True, eq=False)
class Theirs:
    """A piece of work as diffusers does it."""

    module: nn.Module
    """From tensors to a tensor."""
    inputs: Callable[[], tuple[torch.Tensor, ...]]
    """What it is called with; made anew for each call, where a pipeline does."""
    finish: Callable[[torch.Tensor], Any]
    """What a pipeline makes of the output."""


class Stepping(nn.Module):
    """diffusers' UNet from tensors to a tensor."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: Any, time: Any, context: Any) -> Any:
        return self.unet(sample, time, context, return_dict=False)[0]


class Decoding(nn.Module):
    """diffusers' decoder from a tensor to a tensor."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: Any) -> Any:
        return self.vae.decode(latents, return_dict=False)[0]


def of(model: Any) -> Any:
    """diffusers' network of the same class, config and parameters, which are shared.

    Raises:
        InputError: diffusers is not installed, or has no such class.
    """
    if util.find_spec("diffusers") is None:
        raise InputError("diffusers is not installed: pip install diffusers")
    kind = getattr(import_module("diffusers"), type(model).__name__, None)
    if kind is None:
        raise InputError(f"diffusers has no {type(model).__name__}")
    with torch.device("meta"):
        peer = kind.from_config(model.export_config())
    share(model, peer)
    return peer.eval()


def share(ours: nn.Module, peer: nn.Module) -> None:
    """Give a network of another library our parameters, the same memory: full-size networks fit
    twice that way."""
    mine = dict(ours.named_parameters())
    for name, _ in list(peer.named_parameters()):
        path, _, last = name.rpartition(".")
        setattr(peer.get_submodule(path), last, mine[name])


def eager(theirs: Theirs) -> Call:
    """As PyTorch runs it."""
    return lambda: theirs.finish(theirs.module(*theirs.inputs()))


def compiled(theirs: Theirs) -> Call:
    """By `torch.compile`, with its defaults."""
    fast: Any = torch.compile(theirs.module)
    return lambda: theirs.finish(fast(*theirs.inputs()))


def openvino(theirs: Theirs) -> Call:
    """By `openvino.convert_model` and `compile_model`, in the dtype of the inputs."""
    ov, graphs, example = _package("openvino"), backends.graphs(), theirs.inputs()
    graph = ov.convert_model(
        theirs.module, example_input=example, input=[one.shape for one in example]
    )
    half = example[0].dtype == torch.bfloat16
    if half:  # numpy has no such dtype, so numbers go in and come out in float32
        ends = ov.preprocess.PrePostProcessor(graph)
        for number, one in enumerate(example):
            if one.is_floating_point():
                ends.input(number).tensor().set_element_type(ov.Type.f32)
        ends.output().tensor().set_element_type(ov.Type.f32)
        graph = ends.build()
    run = ov.Core().compile_model(graph, "CPU", graphs.settings(half, torch.get_num_threads()))
    return _on_arrays(theirs, lambda arrays: run(arrays)[0])


def onnxruntime(theirs: Theirs) -> Call:
    """By `torch.onnx.export` and ONNX Runtime on the CPU, in float32."""
    runtime = _package("onnxruntime")
    for needed in ("onnx", "onnxscript"):
        _package(needed)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "network.onnx")
        example = tuple(one.float() for one in theirs.inputs())
        how: dict[str, Any] = {"dynamo": True, "external_data": True, "verbose": False}
        torch.onnx.export(theirs.module, example, file, **how)
        settings = runtime.SessionOptions()
        settings.intra_op_num_threads = torch.get_num_threads()
        session = runtime.InferenceSession(file, settings, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    return _on_arrays(
        theirs, lambda arrays: session.run(None, dict(zip(names, arrays, strict=True)))[0]
    )


def _on_arrays(theirs: Theirs, run: Callable[[list[Any]], Any]) -> Call:
    def call() -> Any:
        arrays = [one.float().numpy() for one in theirs.inputs()]
        return theirs.finish(torch.from_numpy(run(arrays)))

    return call


def _package(name: str) -> Any:
    if util.find_spec(name) is None:
        raise InputError(f"{name} is not installed: pip install {name}")
    return import_module(name)


PEERS: Mapping[str, Callable[[Theirs], Call]] = {
    "diffusers": eager,
    "diffusers-compiled": compiled,
    "diffusers-openvino": openvino,
    "diffusers-onnxruntime": onnxruntime,
}
"""By name how the work is made ready, which may take minutes, and then done."""
