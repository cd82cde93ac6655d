"""A whole pipeline with small random networks, made without a peer: a call takes tens of
milliseconds, and its latents are 8 x 8 unless said otherwise."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch

from underdraw import StableDiffusionPipeline, schedulers
from underdraw.models import (
    AutoencoderKL,
    AutoencoderTiny,
    CLIPTextModel,
    ControlNetModel,
    T2IAdapter,
    UNet2DConditionModel,
)
from underdraw.models.base import Model
from underdraw.networks.config import UNetConfig, read
from underdraw.networks.controlnet.config import ControlNetConfig
from underdraw.networks.controlnet.program import ZEROS
from underdraw.text.tokenizer import CLIPTokenizer
from underdraw.text.vocabulary import train_vocabulary

WORDS = "a red green sphere blue cube left of and on the table".split()
WIDTH = 32

UNET: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (16, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 4,
    "layers_per_block": 1,
    "norm_num_groups": 8,
}
DEEP: dict[str, Any] = {
    **UNET,
    "block_out_channels": (16, 32, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
}
"""As of published ones, with attention at levels of unlike width: what peers are compared with."""
ONE_LEVEL: dict[str, Any] = {
    "block_out_channels": (16,),
    "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",),
}
"""Of a UNet that takes a third of the time to compile."""
SHORT: dict[str, Any] = {**ONE_LEVEL, "mid_block_type": None}
"""Without blocks in the middle, too, which are those of the way down: half of the time of that."""
VAE: dict[str, Any] = {
    "block_out_channels": (8, 8, 16, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": 64,
}
SCHEDULE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}


def tokenizer(**options: Any) -> CLIPTokenizer:
    return CLIPTokenizer(*train_vocabulary([" ".join(WORDS)] * 2, 600), **options)


def text_config(count: int, **changes: Any) -> dict[str, Any]:
    fixed = {"hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 3}
    ends = {"bos_token_id": count - 2, "eos_token_id": count - 1, "pad_token_id": count - 1}
    more = {"num_attention_heads": 4, "projection_dim": 16, "vocab_size": count}
    return {**fixed, **ends, **more, **changes}


def shake(module: torch.nn.Module) -> Any:
    """No parameter stays at 0 or 1: a norm that was left out, or a bias, would not be seen."""
    for value in module.parameters():
        if value.ndim == 1:
            value.data += 0.1 * torch.randn_like(value)
    return module.eval()


def components(**changes: Any) -> dict[str, Any]:
    """New random networks, always the same ones; `unet`, `vae`, `text` change their configs."""
    tokens = changes.get("tokenizer") or tokenizer()
    configs = {
        "unet": {**UNET, **changes.get("unet", {})},
        "vae": {**VAE, **changes.get("vae", {})},
        "text_encoder": text_config(len(tokens), **changes.get("text", {})),
    }
    key = repr(configs)
    if key not in _DRAWN:
        _DRAWN[key] = _drawn(configs)
    return {
        **{name: twin(network) for name, network in _DRAWN[key].items()},
        "tokenizer": tokens,
        "scheduler": changes.get("scheduler") or schedulers.EulerDiscreteScheduler(**SCHEDULE),
    }


_DRAWN: dict[str, dict[str, Any]] = {}
"""Networks by their configs. To make them takes longer than most calls that tests make of them, and
eight times as long as to copy them."""


def _drawn(configs: dict[str, Any]) -> dict[str, Any]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return {
            "unet": shake(UNet2DConditionModel(**configs["unet"])),
            "vae": shake(AutoencoderKL(**configs["vae"])),
            "text_encoder": shake(CLIPTextModel(**configs["text_encoder"])),
        }


def twin(module: Any) -> Any:
    """A module with numbers of its own, for which no layer is initialised."""
    made = object.__new__(type(module))
    for name, value in vars(module).items():
        made.__dict__[name] = value.copy() if isinstance(value, dict | set) else value
    for name, value in module._parameters.items():
        fresh = None if value is None else torch.nn.Parameter(value.detach().clone())
        made._parameters[name] = fresh
    for name, child in module._modules.items():
        made._modules[name] = twin(child)
    return made


def pipeline(compat: str | None = None, **changes: Any) -> StableDiffusionPipeline:
    """A new pipeline; see `components`."""
    parts = components(**changes)
    plain = {**parts, "scheduler": schedulers.EulerDiscreteScheduler(**SCHEDULE)}
    pipe = StableDiffusionPipeline(**plain, compat=compat)
    pipe.scheduler = parts["scheduler"]  # as it is: the constructor would mend outdated ones
    pipe.set_progress_bar_config(disable=True)
    return pipe


def controlnet(unet: Any = None, seed: int = 5, **fields: Any) -> ControlNetModel:
    """A ControlNet whose residuals are not zero, for a UNet or its config."""
    config = ControlNetConfig.of_unet(
        read(UNetConfig, unet or UNET) if unet is None or isinstance(unet, dict) else unet.config,
        **{"conditioning_embedding_out_channels": (4, 8, 8, 16), **fields},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = shake(ControlNetModel(config))
        for name, value in net.named_parameters():
            if value.ndim > 1 and name.startswith(("controlnet_cond", *ZEROS)):
                # Maps must be seen in what comes out.
                value.data = (0.3 if "cond" in name else 0.15) * torch.randn_like(value)
    return net


def adapter(seed: int = 5, **fields: Any) -> T2IAdapter:
    """A T2I-Adapter for `UNET`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return shake(T2IAdapter(**{"channels": UNET["block_out_channels"], **fields}))


SMALL_VAE: dict[str, Any] = {
    "encoder_block_out_channels": (8,) * 4,
    "decoder_block_out_channels": (8,) * 4,
    "num_encoder_blocks": (1, 2, 1, 2),
    "num_decoder_blocks": (2, 1, 2, 1),
}


def small_vae(seed: int = 5, **fields: Any) -> AutoencoderTiny:
    """A tiny autoencoder for the latents of `VAE`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return shake(AutoencoderTiny(**{**SMALL_VAE, **fields}))


def taesd(small: Any, half: str) -> dict[str, torch.Tensor]:
    """A half of a tiny autoencoder under the original's names."""
    before = int(half == "decoder")  # the bounding of latents is a layer there
    named = {}
    for name, value in small.state_dict().items():
        if name.startswith(half):
            _, _, number, rest = name.split(".", 3)
            named[f"{int(number) + before}.{rest}"] = value.clone()
    return named


LIGHT: dict[str, Any] = {
    "channels": UNET["block_out_channels"][:-1],
    "adapter_type": "light_adapter",
    "num_res_blocks": 3,
}
"""Of a light adapter for `UNET` with two levels of this width."""


def run(pipe: Any, prompt: Any = "a red sphere", **arguments: Any) -> torch.Tensor:
    """The latents of a short call."""
    defaults = {"num_inference_steps": 3, "output_type": "latent"}
    if not {"seed", "generator", "latents"} & set(arguments):
        defaults["seed"] = 3
    return pipe(prompt, **{**defaults, **arguments}).images


def counted(pipe: Any) -> list[int]:
    """A list that grows with each UNet call of this pipeline, by whatever way it is called."""
    calls: list[int] = []
    pipe.unet.conv_in.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


def together(*tasks: Callable[[], Any]) -> list[Any]:
    """Results of tasks that run in threads of their own, started at the same moment."""
    gate, results, errors = threading.Barrier(len(tasks)), [None] * len(tasks), []

    def work(i: int) -> None:
        try:
            gate.wait(20)
            results[i] = tasks[i]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(tasks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if errors:
        raise errors[0]
    return results


def on(backend: str, parts: dict[str, Any]) -> dict[str, Any]:
    """The same components with their networks on another backend."""
    if backend == "torch":
        return parts
    return {name: moved(value, backend) for name, value in parts.items()}


def moved(value: Any, backend: str) -> Any:
    """A network with the same numbers on another backend; what is no network as it is."""
    if backend == "torch" or not isinstance(value, Model):
        return value
    cls = vars(type(value))["_written"]
    return cls.from_tensors(value.config.to_dict(), value.stored_tensors(), backend=backend)
