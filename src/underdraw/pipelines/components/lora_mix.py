"""What a pipeline's calls have of its LoRAs: which are attached, which act, which are merged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from underdraw import checks
from underdraw.backends.deltas import Deltas, together
from underdraw.controls.lora import KIND, here
from underdraw.errors import InputError
from underdraw.models.keywords import drop_neutral
from underdraw.pipelines.components.adapters import AdapterKind, register_adapter
from underdraw.pipelines.components.registry import uncompiled
from underdraw.weights.locate import find_in
from underdraw.weights.lora.places import places
from underdraw.weights.lora.reading import LoraWeights, as_checkpoint, read_lora
from underdraw.weights.lora.scales import Scales, weighed
from underdraw.weights.lora.writing import FILES, write_lora

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "low_cpu_mem_usage": (True, False, None),
    "use_safetensors": (True, None),
    "user_agent": (None,),
    "proxies": (None,),
    "hotswap": (False,),
}
NETWORKS = ("unet", "text_encoder")


@dataclass(frozen=True)
class Mix:
    """Which of a pipeline's LoRAs act in its calls, and how much. Replaced as a whole, so that runs
    in other threads keep what they began with."""

    active: Mapping[str, Scales] = field(default_factory=dict)
    enabled: bool = True
    fused: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    """By component, the network before LoRAs were merged into it, and the one after."""
    merged: frozenset[str] = frozenset()
    """Names of LoRAs that are merged."""

    def acting(self, there: Mapping[str, LoraWeights]) -> dict[str, Scales]:
        """Those that are laid over the networks in a call."""
        if not self.enabled:
            return {}
        return {
            name: scales
            for name, scales in self.active.items()
            if name in there and name not in self.merged
        }


def amounts(components: Any, factor: float = 1.0) -> dict[str, dict[str, Any]]:
    """How much of each LoRA acts in calls, by name, as records hold it.

    Args:
        factor: of the call, for all of them.
    """
    mix: Mix = components.mix
    there = components.attached.of(components, KIND)
    return {name: asdict(scales.times(factor)) for name, scales in mix.acting(there).items()}


def standing(components: Any, component: str, factor: float = 1.0) -> Deltas:
    """The differences which lie over a network in every call of a pipeline.

    Args:
        component: "unet" or "text_encoder".
        factor: of the call, for all of them (`cross_attention_kwargs={"scale": ...}`).
    """
    mix: Mix = components.mix
    if not mix.active:
        return {}
    there = components.attached.of(components, KIND)
    found = [
        weighed(getattr(there[name], component), component, scales, factor)
        for name, scales in mix.acting(there).items()
    ]
    return here(together(*found), components.framework, components.device)


def read(
    components: Any,
    source: Any,
    *,
    name: str | None = None,
    weight_name: str | None = None,
    subfolder: str = "",
    **hub: Any,
) -> tuple[str, LoraWeights]:
    """LoRA weights, and the name they are to be known by."""
    if name is None:
        taken = components.attached.of(components, KIND)
        name = next(f"default_{i}" for i in range(len(taken) + 1) if f"default_{i}" not in taken)
    checks.texts("adapter_name", name)
    if "." in name:
        raise InputError(f"adapter_name={name!r} has a dot; allowed: a name without")
    if isinstance(source, LoraWeights):
        return name, source
    framework, unet = components.framework, uncompiled(components.unet)
    make = partial(framework.array, dtype=unet.dtype, device=components.unet.device)
    texts = components.text_encoder
    where = places(unet.config, None if texts is None else uncompiled(texts).config)
    if isinstance(source, Mapping):
        return name, read_lora(as_checkpoint(source), where, make)
    checks.path("pretrained_model_name_or_path_or_dict", source)
    access = drop_neutral("load_lora_weights", hub, NEUTRAL)
    path = find_in(source, FILES, weight_name, subfolder, **access)
    return name, read_lora(path, where, make)


LORA = register_adapter(AdapterKind(KIND, KIND, read, write_lora, beside=False))
