"""Every kind of LyCORIS as `lycoris-lora` makes it, layer by layer: the file's names, and the
weights that its own modules train with."""

from __future__ import annotations

import pytest
import torch
from backends.harness import give, relative, take
from lycoris import modules as lycoris

from underdraw import backends
from underdraw.backends.layout import Leaf
from underdraw.formats.stored import stored
from underdraw.weights.lora.kinds import delta_of
from underdraw.weights.lora.spellings import spelt

BOUND = 1e-5
LAYERS = {
    "linear": (lambda: torch.nn.Linear(8, 16), Leaf("linear", (16, 8))),
    "conv 3": (lambda: torch.nn.Conv2d(8, 16, 3, 2, 1), Leaf("conv2d", (16, 8, 3, 3), True, 2, 1)),
    "conv 1": (lambda: torch.nn.Conv2d(8, 16, 1), Leaf("conv2d", (16, 8, 1, 1))),
}
RANK = {"lora_dim": 3, "alpha": 2}
KINDS = {
    "LoRA": (lycoris.LoConModule, RANK),
    "LoRA, alpha 0": (lycoris.LoConModule, {"lora_dim": 3, "alpha": 0}),
    "LoRA, rank-stabilised": (lycoris.LoConModule, {**RANK, "rs_lora": True}),
    "LoRA with a kernel": (lycoris.LoConModule, {**RANK, "use_tucker": True}),
    "DoRA": (lycoris.LoConModule, {**RANK, "weight_decompose": True}),
    "DoRA of inputs": (
        lycoris.LoConModule,
        {**RANK, "weight_decompose": True, "wd_on_out": False},
    ),
    "LoHa": (lycoris.LohaModule, RANK),
    "LoHa with a kernel": (lycoris.LohaModule, {**RANK, "use_tucker": True}),
    "DoHa": (lycoris.LohaModule, {**RANK, "weight_decompose": True}),
    "LoKr": (lycoris.LokrModule, {"lora_dim": 1, "alpha": 2, "factor": 4}),
    "LoKr with a kernel": (
        lycoris.LokrModule,
        {"lora_dim": 1, "alpha": 2, "factor": 2, "use_tucker": True},
    ),
    "LoKr of four factors": (
        lycoris.LokrModule,
        {"lora_dim": 1, "alpha": 2, "factor": 8, "decompose_both": True},
    ),
    "LoKr of whole matrices": (
        lycoris.LokrModule,
        {"lora_dim": 1, "alpha": 7, "factor": 4, "full_matrix": True},
    ),
    "DoKr": (lycoris.LokrModule, {**RANK, "factor": 4, "weight_decompose": True}),
    "IA3": (lycoris.IA3Module, {}),
    "IA3 on inputs": (lycoris.IA3Module, {"train_on_input": True}),
    "GLoRA": (lycoris.GLoRAModule, RANK),
    "full": (lycoris.FullModule, {}),
    "OFT": (lycoris.DiagOFTModule, {"lora_dim": 4}),
    "OFT, bounded and rescaled": (
        lycoris.DiagOFTModule,
        {"lora_dim": 4, "constraint": 0.01, "rescaled": True},
    ),
    "BOFT": (lycoris.ButterflyOFTModule, {"lora_dim": 4}),
    "BOFT, bounded and rescaled": (
        lycoris.ButterflyOFTModule,
        {"lora_dim": 4, "constraint": 0.01, "rescaled": True},
    ),
}
LINEAR_IN_SCALE = [kind for kind in KINDS if "D" not in kind[0] and "rescaled" not in kind]


def made(kind, key):
    """A layer, and a module of LyCORIS over it with random numbers."""
    torch.manual_seed(0)
    layer, (module, options) = LAYERS[key][0](), KINDS[kind]
    over = module("x", layer, **options)
    with torch.no_grad():
        for name, value in over.named_parameters():
            if name == "dora_scale":
                value.mul_(1 + 0.1 * torch.randn_like(value))
            else:
                value.copy_(torch.randn_like(value) * 0.3)
    return layer, over


def told(over):
    """What it writes into a file, by part."""
    found = over.custom_state_dict() or over.state_dict()
    parts = {}
    for name, value in found.items():
        value = torch.as_tensor(value).detach().float()
        parts[spelt(f"lora_unet_x.{name}").part] = stored(value.numpy())
    return parts


def wanted(layer, over, scale=1.0):
    """The weight that it trains with. (Its `get_merged_weight` applies alpha / rank of LoHa and
    LoKr a second time, and a scale of DoRA to the length alone.)"""
    with torch.no_grad():
        if isinstance(over, lycoris.FullModule):
            return layer.weight + scale * (over.weight - layer.weight)
        if isinstance(over, lycoris.LohaModule | lycoris.LokrModule):
            new = layer.weight + over.get_weight(layer.weight.shape)
            new = over.apply_weight_decompose(new) if over.wd else new
            return layer.weight + scale * (new - layer.weight)
        shape = layer.weight.shape
        if isinstance(over, lycoris.LoConModule):
            return over.get_merged_weight(multiplier=scale)[0]
        return over.get_merged_weight(multiplier=scale, shape=shape)[0]


@pytest.mark.parametrize("key", LAYERS)
def test_every_kind(key):
    name, leaf = "torch", LAYERS[key][1]
    framework = backends.get(name)
    for kind in KINDS:
        layer, over = made(kind, key)
        delta = delta_of("x", told(over), leaf, lambda x: give(name, x), None)
        weight = give(name, layer.weight.detach().numpy())
        for scale in (1.0, 0.6) if kind in LINEAR_IN_SCALE else (1.0,):
            more, _ = delta.weighed(scale).difference(framework.operations, leaf, weight)
            new = wanted(layer, over, scale).numpy()
            assert relative(take(name, weight) + take(name, more), new) <= BOUND, kind
            assert relative(layer.weight.detach().numpy(), new) > 0.01, kind


def test_norms():
    norm = torch.nn.LayerNorm(8)
    over = lycoris.NormModule("x", norm)
    with torch.no_grad():
        for value in over.parameters():
            value.copy_(torch.randn_like(value))
    leaf = Leaf("layer_norm", (8,))
    delta = delta_of("x", told(over), leaf, lambda x: give("torch", x), None)
    nn = backends.get("torch").operations
    more = delta.weighed(0.6).difference(nn, leaf, norm.weight)
    for found, new, old in zip(
        more, over.get_merged_weight(0.6), (norm.weight, norm.bias), strict=True
    ):
        assert torch.allclose(old + found, new)
