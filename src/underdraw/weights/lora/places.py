"""From names of modules in files to paths of layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from underdraw.backends.layout import Layout
from underdraw.errors import WeightError
from underdraw.networks import clip, unet
from underdraw.networks.config import CLIPTextConfig, UNetConfig
from underdraw.weights import key_tables as keys, single_file

WRAPPERS = ("base_model.model.", "lycoris_", "model.diffusion_model.", "diffusion_model.")
"""What PEFT and others put before all names."""
PREFIXES: Mapping[str, tuple[str, ...]] = {
    "unet": ("lora_unet_", "oft_unet_", "unet.", "unet_"),
    "text_encoder": ("lora_te_", "lora_te1_", "oft_te_", "text_encoder.", "text_encoder_"),
}
"""What stands before the names of a network's modules; some files have nothing."""
ATTENTION_OF_TEXTS = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}
"""Names of the text encoder's attention, as diffusers of old wrote them."""
OTHERS = (
    (("lora_te2_", "text_encoder_2.", "lora_te_2"), "a second text encoder (Stable Diffusion XL)"),
    (("lllite_",), "ControlNet-LLLite"),
    (("transformer.", "lora_transformer_", "lora_prior_"), "another architecture"),
)


class Place(NamedTuple):
    """A layer of a pipeline's network."""

    component: str
    """ "unet" or "text_encoder" """
    path: str


@dataclass(frozen=True)
class Places:
    """All layers that a file may name."""

    layouts: Mapping[str, Layout]
    """Of the networks, by component."""
    tables: Mapping[str, Mapping[str, str]]
    """Flat names (dots are underscores) -> paths."""

    def of(self, module: str) -> Place | None:
        """The layer of a module's name; None where there is none."""
        name = module
        for wrapper in WRAPPERS:
            name = name.removeprefix(wrapper)
        flat = name.replace(".processor.", ".").replace(".", "_")
        for component, prefixes in PREFIXES.items():
            for prefix in (*prefixes, ""):
                start = prefix.replace(".", "_")
                table = self.tables.get(component, {})
                if flat.startswith(start) and (path := table.get(flat[len(start) :])) is not None:
                    return Place(component, path)
        return None


def places(unet_config: UNetConfig, text_config: CLIPTextConfig | None) -> Places:
    """The places of networks with these configs."""
    layouts, tables = {"unet": unet.layout(unet_config)}, {"unet": _of_unet(unet_config)}
    if text_config is not None:
        layouts["text_encoder"] = clip.text_layout(text_config)
        tables["text_encoder"] = _of_texts(text_config)
    return Places(layouts, tables)


def what_else(modules: Any) -> str | None:
    """What modules are of that have no place here, where their names tell."""
    for starts, what in OTHERS:
        if any(module.startswith(starts) for module in modules):
            return what
    return None


@cache
def _of_unet(config: UNetConfig) -> dict[str, str]:
    paths = unet.layout(config).leaves
    table = {_flat(path): path for path in paths}
    for path in paths:
        if path.endswith(".to_out.0"):
            table[_flat(path.removesuffix(".0"))] = path
    try:
        original = keys.inverse(single_file.table_of("unet", config.to_dict()))
    except WeightError:  # a network for which the original has no names
        return table
    for path in paths:
        name = keys.rename(path, original)
        if name is not None:
            table.setdefault(_flat(name), path)
    return table


@cache
def _of_texts(config: CLIPTextConfig) -> dict[str, str]:
    table = {}
    for path in clip.text_layout(config).leaves:
        for name in _spellings_of_texts(path):
            table[_flat(name)] = path
            table[_flat(name.removeprefix("text_model."))] = path
    return table


def _spellings_of_texts(path: str) -> Iterator[str]:
    yield path
    start, _, last = path.rpartition(".")
    if start.endswith(".self_attn") and last in ATTENTION_OF_TEXTS:
        yield f"{start}.{ATTENTION_OF_TEXTS[last]}"


def _flat(path: str) -> str:
    return path.replace(".", "_")
