"""ControlNets and T2I-Adapters as one call from numpy to numpy, on any backend."""

from __future__ import annotations

from typing import Any

import numpy as np
from backends.harness import give, run, take, tree
from networks.configs import BATCH, CROSS_DOWN, PLAIN_DOWN, SIZE, TOKENS

from underdraw.networks import encoder, t2i_adapter
from underdraw.networks.config import read
from underdraw.networks.controlnet import program
from underdraw.networks.controlnet.config import ControlNetConfig

Arrays = dict[str, np.ndarray]

BASE: dict[str, Any] = {
    "block_out_channels": (8, 16, 24),
    "down_block_types": (CROSS_DOWN, CROSS_DOWN, PLAIN_DOWN),
    "layers_per_block": 1,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
    "cross_attention_dim": 10,
    "conditioning_embedding_out_channels": (4, 6, 8, 10),
}
CONTROLNETS: dict[str, dict[str, Any]] = {
    "sd1": {"layers_per_block": 2},
    "sd2": {"use_linear_projection": True, "attention_head_dim": (1, 2, 3)},
    "blue first": {"controlnet_conditioning_channel_order": "bgr", "conditioning_channels": 3},
    "shuffle": {"global_pool_conditions": True},
    "cross only": {"only_cross_attention": (True, False, False), "conditioning_channels": 1},
    "plain middle": {"mid_block_type": "UNetMidBlock2D", "resnet_time_scale_shift": "scale_shift"},
}
ADAPTERS: dict[str, dict[str, Any]] = {
    "full": {"channels": (8, 16, 16), "num_res_blocks": 2},
    "full grey": {"channels": (8, 8, 12), "num_res_blocks": 1, "in_channels": 1},
    "light": {"channels": (8, 16), "num_res_blocks": 3, "adapter_type": "light_adapter"},
}


def controlnet_config(name: str) -> ControlNetConfig:
    return read(ControlNetConfig, {**BASE, **CONTROLNETS[name]})


def controlnet_inputs(config: ControlNetConfig) -> Arrays:
    """A call of three rows at a size that halves unevenly."""
    random = np.random.default_rng(7)
    height, width = SIZE
    sides = height * config.factor, width * config.factor
    return {
        "sample": random.standard_normal((BATCH, 4, *SIZE)).astype(np.float32),
        "timesteps": np.linspace(987, 1, BATCH).astype(np.int64),
        "context": random.standard_normal((BATCH, TOKENS, config.cross_attention_dim)).astype(
            np.float32
        ),
        "maps": random.random((BATCH, config.conditioning_channels, *sides)).astype(np.float32),
    }


def run_controlnet(
    name: str,
    config: ControlNetConfig,
    tensors: Arrays,
    inputs: Arrays,
    scale: float = 0.7,
    guess: bool = False,
    hoisted: bool = False,
) -> list[np.ndarray]:
    p = tree(name, program.layout(config), tensors)
    given = {key: give(name, value) for key, value in inputs.items()}

    def call(nn: Any, p: Any, inputs: Any) -> Any:
        x, context, c = inputs["sample"], inputs["context"], config.encoder
        if hoisted:
            time = program.call_times(nn, p, config, inputs["timesteps"], x)
            context = program.call_context(nn, p, config, context)
        else:
            time = encoder.embed_time(nn, p, c, inputs["timesteps"], x)
        hint = program.embed_hint(nn, p, config, inputs["maps"])
        down, mid = program.controlnet(nn, p, config, x, time, context, hint, scale, guess)
        return [*down, mid]

    return [take(name, value) for value in run(name, call, p, [given], compiled=True)]


def adapter_maps(config: t2i_adapter.T2IAdapterConfig) -> np.ndarray:
    height, width = (side * config.factor for side in SIZE)
    random = np.random.default_rng(7)
    return random.random((BATCH, config.in_channels, height, width)).astype(np.float32)


def run_adapter(
    name: str, config: t2i_adapter.T2IAdapterConfig, tensors: Arrays, maps: np.ndarray
) -> list[np.ndarray]:
    p = tree(name, t2i_adapter.layout(config), tensors)

    def call(nn: Any, p: Any, maps: Any) -> Any:
        return list(t2i_adapter.t2i_adapter(nn, p, config, maps))

    return [take(name, value) for value in run(name, call, p, [give(name, maps)], compiled=True)]
