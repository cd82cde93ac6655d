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

Run = Callable[..., torch.Tensor]
"""A network as somebody made it ready: from tensors to a tensor."""


@dataclass(frozen=True, eq=False)
class Part:
    """A network of diffusers'."""

    module: nn.Module
    """From tensors to a tensor."""
    inputs: Callable[[], tuple[torch.Tensor, ...]]
    """What it may be called with."""


@dataclass(frozen=True, eq=False)
class Theirs:
    """A piece of work as diffusers does it."""

    parts: tuple[Part, ...]
    ready: Callable[..., Call]
    """The work, by the parts as somebody made them ready."""


class Stepping(nn.Module):
    """diffusers' UNet from tensors to a tensor."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: Any, time: Any, context: Any, scale: Any = None) -> Any:
        return self.unet(sample, time, context, timestep_cond=scale, return_dict=False)[0]


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


class _UNet(nn.Module):
    """What stands in a pipeline for a UNet that somebody made ready."""

    def __init__(self, peer: Any, run: Run) -> None:
        super().__init__()
        self.config, self.dtype, self.device = peer.config, peer.dtype, peer.device
        self.run = run

    def forward(
        self,
        sample: Any,
        time: Any,
        encoder_hidden_states: Any,
        timestep_cond: Any = None,
        **others: Any,
    ) -> tuple[Any]:
        scale = () if timestep_cond is None else (timestep_cond,)
        return (self.run(sample, time, encoder_hidden_states, *scale),)


class _Autoencoder(nn.Module):
    """The same for an autoencoder, which decodes."""

    def __init__(self, peer: Any, run: Run) -> None:
        super().__init__()
        self.config, self.dtype, self.device = peer.config, peer.dtype, peer.device
        self.run = run

    def decode(self, latents: Any, **others: Any) -> tuple[Any]:
        return (self.run(latents),)


def pipeline(unet: Any, vae: Any, step: Run, decode: Run, schedule: Any) -> Any:
    """diffusers' pipeline without texts, whose networks run as somebody made them ready.

    Args:
        unet, vae: diffusers' networks.
        step, decode: what is called for them.
        schedule: our DDIM scheduler.
    """
    theirs: Any = import_module("diffusers")
    pipe = theirs.StableDiffusionPipeline(
        vae=_Autoencoder(vae, decode),
        text_encoder=None,
        tokenizer=None,
        unet=_UNet(unet, step),
        scheduler=theirs.DDIMScheduler.from_config(dict(schedule.config)),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def eager(part: Part) -> Run:
    """As PyTorch runs it."""
    return part.module


def compiled(part: Part) -> Run:
    """By `torch.compile`, with its defaults."""
    fast: Any = torch.compile(part.module)
    return fast


def openvino(part: Part) -> Run:
    """By `openvino.convert_model` and `compile_model`, in the dtype of the inputs."""
    ov, graphs, example = _package("openvino"), backends.graphs(), part.inputs()
    graph = ov.convert_model(
        part.module, example_input=example, input=[one.shape for one in example]
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
    return _on_arrays(lambda arrays: run(arrays)[0])


def onnxruntime(part: Part) -> Run:
    """By `torch.onnx.export` and ONNX Runtime on the CPU, in float32."""
    runtime = _package("onnxruntime")
    for needed in ("onnx", "onnxscript"):
        _package(needed)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "network.onnx")
        example = tuple(one.float() for one in part.inputs())
        how: dict[str, Any] = {"dynamo": True, "external_data": True, "verbose": False}
        torch.onnx.export(part.module, example, file, **how)
        settings = runtime.SessionOptions()
        settings.intra_op_num_threads = torch.get_num_threads()
        session = runtime.InferenceSession(file, settings, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    return _on_arrays(lambda arrays: session.run(None, dict(zip(names, arrays, strict=True)))[0])


def _on_arrays(run: Callable[[list[Any]], Any]) -> Run:
    def on_tensors(*tensors: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(run([one.float().numpy() for one in tensors]))

    return on_tensors


def ready(theirs: Theirs, by: str) -> Call:
    """The work by one of `PEERS`; making it ready may take minutes."""
    return theirs.ready(*map(PEERS[by], theirs.parts))


def _package(name: str) -> Any:
    if util.find_spec(name) is None:
        raise InputError(f"{name} is not installed: pip install {name}")
    return import_module(name)


PEERS: Mapping[str, Callable[[Part], Run]] = {
    "diffusers": eager,
    "diffusers-compiled": compiled,
    "diffusers-openvino": openvino,
    "diffusers-onnxruntime": onnxruntime,
}
"""By name how a network is made ready."""
