"""Where the networks of a one-file checkpoint are, and the original names of their tensors.

Files hold the networks under the original's prefixes, under those that other tools write, or one of
them alone and without any; its names are the original's or those of a folder. From here on all have
the original's names, which `architecture` and `key_tables` know.
"""

import re
from collections.abc import Collection, Mapping

from underdraw.weights import key_tables as keys
from underdraw.weights.known_keys import FOLDERS

UNET_PREFIXES = (keys.UNET_PREFIX, "diffusion_model.", "unet.", "")
VAE_PREFIXES = (keys.VAE_PREFIX, "vae.", "")
TEXT_PREFIXES = (keys.CLIP_PREFIX, keys.OPENCLIP_PREFIX, "text_encoder.")

# What tells a network: in the original, and in a folder. A ControlNet has no way up.
_UNET = (
    {"input_blocks.0.0.weight", "output_blocks.0.0.in_layers.2.weight"},
    {"conv_in.weight", "up_blocks.0.resnets.0.conv1.weight"},
)
_VAE = (
    {"encoder.down.0.block.0.conv1.weight"},
    {"encoder.down_blocks.0.resnets.0.conv1.weight"},
)

Found = dict[str, dict[str, str]]


def networks(names: Collection[str]) -> Found:
    """Per component inside ("unet", "vae", "text_encoder"): original name without prefix -> name
    in the file."""
    found: Found = {}
    for component, signs, prefixes in (
        ("unet", _UNET, UNET_PREFIXES),
        ("vae", _VAE, VAE_PREFIXES),
    ):
        for prefix in prefixes:
            inside = keys.below(prefix, names)
            if signs[0] <= inside.keys():
                found[component] = inside
            elif signs[1] <= inside.keys():
                found[component] = _renamed(component, inside)
            if component in found:
                break
    for prefix in TEXT_PREFIXES:
        text = keys.below(prefix, names)
        if any(name.endswith("token_embedding.weight") for name in text):
            found["text_encoder"] = text
    return found


def _renamed(component: str, inside: Mapping[str, str]) -> dict[str, str]:
    """Names of a folder as the original's; unknown ones stay, and are told later."""
    old = [(rf"\A(?:{rule.pattern})\Z", rule.by) for rule in FOLDERS[component].renames]
    table = keys.inverse(_unet_table(inside) if component == "unet" else _vae_table(inside))
    made = {}
    for name, full in inside.items():
        for pattern, by in old:
            name = re.sub(pattern, by, name)
        made[keys.rename(name, table) or name] = full
    return made


def _unet_table(names: Collection[str]) -> keys.Table:
    levels = _count(names, "down_blocks.{}.resnets.0.conv1.weight")
    attention = tuple(
        f"down_blocks.{level}.attentions.0.proj_in.weight" in names for level in range(levels)
    )
    return keys.unet_table(attention, _count(names, "down_blocks.0.resnets.{}.conv1.weight"))


def _vae_table(names: Collection[str]) -> keys.Table:
    return keys.vae_table(
        _count(names, "encoder.down_blocks.{}.resnets.0.conv1.weight"),
        _count(names, "encoder.down_blocks.0.resnets.{}.conv1.weight"),
    )


def _count(names: Collection[str], pattern: str) -> int:
    count = 0
    while pattern.format(count) in names:
        count += 1
    return count
