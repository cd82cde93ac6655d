"""Names in original one-file checkpoints and in component folders, side by side.

A table maps modules of the original (without the prefix of its network) to modules of the folder,
one entry per module whose name differs; what follows it (`.weight`, `.transformer_blocks.0...`)
stays. Read from left to right it imports, from right to left it exports.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from underdraw.errors import WeightError

Table = dict[str, str]

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
CLIP_PREFIX = "cond_stage_model.transformer."
OPENCLIP_PREFIX = "cond_stage_model.model."

UNET_RESNET: Table = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
UNET_ENDS: Table = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
    "position_net": "position_net",  # GLIGEN
}
VAE_RESNET: Table = {
    "norm1": "norm1",
    "conv1": "conv1",
    "norm2": "norm2",
    "conv2": "conv2",
    "nin_shortcut": "conv_shortcut",
}
VAE_ATTENTION: Table = {
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "proj_out": "to_out.0",
}
VAE_ENDS: Table = {
    "quant_conv": "quant_conv",
    "post_quant_conv": "post_quant_conv",
    **{f"{half}.{end}": f"{half}.{end}" for half in ("encoder", "decoder") for end in ("conv_in",)},
    **{
        f"{half}.{ours}": f"{half}.{theirs}"
        for half in ("encoder", "decoder")
        for ours, theirs in (("norm_out", "conv_norm_out"), ("conv_out", "conv_out"))
    },
}
OPENCLIP_ENDS: Table = {
    "token_embedding": "text_model.embeddings.token_embedding",
    "ln_final": "text_model.final_layer_norm",
    # A raw parameter there, the weight of a layer here.
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
}
OPENCLIP_LAYER: Table = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
# One fused projection of the original is three of the folder, in this order.
OPENCLIP_FUSED = ("attn.in_proj_", ("self_attn.q_proj.", "self_attn.k_proj.", "self_attn.v_proj."))


MOST_LEVELS, MOST_LAYERS = 16, 256


def _check(levels: int, layers: Any) -> None:
    """Refuse what a config in a file may say, before a table is as long as that."""
    if type(layers) is not int or not -1 <= layers <= MOST_LAYERS or levels > MOST_LEVELS:
        raise WeightError(
            f"a network of {levels:,} levels with {layers!r:.40} layers is none of Stable "
            f"Diffusion's; allowed: {MOST_LEVELS} levels, {MOST_LAYERS} layers"
        )


def unet_table(attention: tuple[bool, ...], layers: int) -> Table:
    """UNet with one entry of `attention` per level (has it transformers?), `layers` resnets each.

    The original numbers its blocks through: a resnet (and transformer), or a change of size.
    """
    _check(len(attention), layers)
    table = dict(UNET_ENDS)
    levels, block = len(attention), 0
    for level in range(levels):
        down = f"down_blocks.{level}"
        for i in range(layers):
            block += 1
            table |= _inside(f"input_blocks.{block}.0", f"{down}.resnets.{i}", UNET_RESNET)
            if attention[level]:
                table[f"input_blocks.{block}.1"] = f"{down}.attentions.{i}"
        if level < levels - 1:
            block += 1
            table[f"input_blocks.{block}.0.op"] = f"{down}.downsamplers.0.conv"
    for i in range(2):
        table |= _inside(f"middle_block.{2 * i}", f"mid_block.resnets.{i}", UNET_RESNET)
    table["middle_block.1"] = "mid_block.attentions.0"
    block = -1
    for level in range(levels):
        up, has_attention = f"up_blocks.{level}", attention[levels - 1 - level]
        for i in range(layers + 1):
            block += 1
            table |= _inside(f"output_blocks.{block}.0", f"{up}.resnets.{i}", UNET_RESNET)
            if has_attention:
                table[f"output_blocks.{block}.1"] = f"{up}.attentions.{i}"
        if level < levels - 1:
            place = 2 if has_attention else 1
            table[f"output_blocks.{block}.{place}.conv"] = f"{up}.upsamplers.0.conv"
    return table


def controlnet_table(attention: tuple[bool, ...], layers: int, halvings: int) -> Table:
    """ControlNet: the way down and the middle of such a UNet, the layers in front that bring a map
    to the size of the latents, and a convolution behind each block."""
    unet, levels = unet_table(attention, layers), len(attention)
    table = {
        ours: theirs
        for ours, theirs in unet.items()
        if ours.startswith(("input_blocks.", "middle_block.", "time_embed."))
    }
    hint = "controlnet_cond_embedding"
    table |= {"input_hint_block.0": f"{hint}.conv_in", "middle_block_out.0": "controlnet_mid_block"}
    for i in range(2 * halvings):
        table[f"input_hint_block.{2 + 2 * i}"] = f"{hint}.blocks.{i}"
    table[f"input_hint_block.{2 + 4 * halvings}"] = f"{hint}.conv_out"
    for i in range(levels * (layers + 1)):
        table[f"zero_convs.{i}.0"] = f"controlnet_down_blocks.{i}"
    return table


def vae_table(levels: int, layers: int) -> Table:
    """Autoencoder with `layers` resnets per encoder level. The original counts decoder levels from
    the picture inwards, the folder from the latents outwards."""
    _check(levels, layers)
    table = dict(VAE_ENDS)
    for half in ("encoder", "decoder"):
        for i in (0, 1):
            table |= _inside(
                f"{half}.mid.block_{i + 1}", f"{half}.mid_block.resnets.{i}", VAE_RESNET
            )
        table |= _inside(f"{half}.mid.attn_1", f"{half}.mid_block.attentions.0", VAE_ATTENTION)
    for level in range(levels):
        ours, theirs = f"encoder.down.{level}", f"encoder.down_blocks.{level}"
        for i in range(layers):
            table |= _inside(f"{ours}.block.{i}", f"{theirs}.resnets.{i}", VAE_RESNET)
        table[f"{ours}.downsample.conv"] = f"{theirs}.downsamplers.0.conv"
        ours, theirs = f"decoder.up.{levels - 1 - level}", f"decoder.up_blocks.{level}"
        for i in range(layers + 1):
            table |= _inside(f"{ours}.block.{i}", f"{theirs}.resnets.{i}", VAE_RESNET)
        table[f"{ours}.upsample.conv"] = f"{theirs}.upsamplers.0.conv"
    return table


def openclip_table(layers: int) -> Table:
    """OpenCLIP's text tower, its first `layers` blocks, but for the fused projections."""
    _check(1, layers)
    table = dict(OPENCLIP_ENDS)
    for i in range(layers):
        ours, theirs = f"transformer.resblocks.{i}", f"text_model.encoder.layers.{i}"
        table |= _inside(ours, theirs, OPENCLIP_LAYER)
    return table


def rename(name: str, table: Mapping[str, str]) -> str | None:
    """`name` with its longest beginning that the table knows replaced; None if it knows none."""
    end = len(name)
    while end > 0:
        if (found := table.get(name[:end])) is not None:
            return found + name[end:]
        end = name.rfind(".", 0, end)
    return None


def inverse(table: Mapping[str, str]) -> Table:
    """The same table read from right to left."""
    return {theirs: ours for ours, theirs in table.items()}


def below(prefix: str, names: Iterable[str]) -> dict[str, str]:
    """Name without `prefix` -> name, for the names that begin with it."""
    return {name[len(prefix) :]: name for name in names if name.startswith(prefix)}


def _inside(ours: str, theirs: str, parts: Table) -> Table:
    return {f"{ours}.{a}": f"{theirs}.{b}" for a, b in parts.items()}
