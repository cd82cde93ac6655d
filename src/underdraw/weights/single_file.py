"""Original one-file checkpoints of Stable Diffusion 1 and 2, read and written as folder components.

Names are translated by the tables of `key_tables`; what the networks are is told by names and
shapes (`architecture`). Tensors stay on disk; only fused projections are slices of views.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from underdraw.errors import InputError, UnderdrawError, WeightError
from underdraw.formats import json_text
from underdraw.formats.stored import Checkpoint, StoredTensor
from underdraw.weights import architecture, key_tables as keys, layouts, text_towers
from underdraw.weights.files import open_checkpoint
from underdraw.weights.known_keys import FOLDERS, SINGLE_FILE, reason
from underdraw.weights.quantised import as_floats
from underdraw.weights.vocabularies import Tokenizer, tokenizer_of

Component = tuple[dict[str, Any], dict[str, StoredTensor]]
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
CONFIGS = "underdraw.configs"  # metadata of files written here: configs by component, as JSON
# Steps of training at which Stability published SD 2.0-base and 2.1-base, which predict noise.
EPSILON_STEPS = (875_000, 220_000)


@dataclass(frozen=True)
class SingleFile:
    """What a checkpoint was found to be. `components` maps "unet", "vae", "text_encoder" (those
    that are inside) to (config as in `config.json`, tensors named as in a folder)."""

    family: str
    components: dict[str, Component]
    scheduler: dict[str, Any]
    tokenizer: Tokenizer
    prediction_type: str
    notes: tuple[str, ...]


def read_single_file(
    source: str | os.PathLike[str] | Checkpoint,
    *,
    prediction_type: str | None = None,
    extract_ema: bool = False,
    configs: Mapping[str, Mapping[str, Any]] | None = None,
) -> SingleFile:
    """Read an original SD 1.x or 2.x checkpoint (UNet with or without VAE and text encoder, or a
    VAE alone), strictly: a name that is neither translated nor listed in `known_keys` is an error.

    A UNet or VAE may have the names of a folder (`diffusion_pytorch_model.safetensors` by itself).
    What no name or shape tells (heads, groups) is then taken to be as in Stable Diffusion, too.

    Args:
        prediction_type: "epsilon", "v_prediction" or "sample"; None finds it out (see `notes`).
        extract_ema: take the averaged UNet weights where the file has both.
        configs: config entries per component that replace what was found out.

    Raises NotFoundError without a file; WeightError for anything that is not such a checkpoint.
    """
    if prediction_type is not None and prediction_type not in PREDICTION_TYPES:
        raise InputError(
            f"prediction_type={prediction_type!r}; allowed are {', '.join(PREDICTION_TYPES)}"
        )
    if isinstance(source, Checkpoint):
        place, checkpoint = "checkpoint", source
    else:
        place, checkpoint = str(Path(source)), open_checkpoint(source)
    try:
        return _read(checkpoint, prediction_type, extract_ema, configs or {})
    except WeightError as error:
        raise WeightError(f"{place}: {error}") from error
    except (LookupError, ArithmeticError, ValueError) as error:
        if isinstance(error, UnderdrawError):
            raise
        raise WeightError(f"{place}: {_NO_SHAPES} ({error})") from error


_NO_SHAPES = "names and shapes are not those of a Stable Diffusion 1 or 2 checkpoint"


def _read(
    checkpoint: Checkpoint,
    prediction_type: str | None,
    extract_ema: bool,
    configs: Mapping[str, Mapping[str, Any]],
) -> SingleFile:
    tensors = as_floats(checkpoint.tensors)
    names, notes, used = layouts.networks(tensors), [], set()
    if not names:
        raise WeightError(_what_else(tensors))
    unet = {short: tensors[name] for short, name in names.get("unet", {}).items()}
    channels = unet["input_blocks.0.0.weight"].shape[1] if unet else 4
    family = _family(tensors, unet)
    written = _configs_inside(checkpoint)
    given = {c: written.get(c, {}) | dict(configs.get(c, {})) for c in (*names, "scheduler")}
    predicts = "epsilon"
    if unet:
        predicts, why = _prediction(Checkpoint(tensors, checkpoint.metadata), family, channels)
        asked = prediction_type or given["scheduler"].get("prediction_type")
        if asked:
            predicts, why = asked, "as asked, or as the file says"
        notes.append(f"prediction type {predicts}: {why}")
    scheduler = given["scheduler"] | {"prediction_type": predicts}
    sample_size = 96 if family == "sd2" and predicts == "v_prediction" else 64
    components: dict[str, Component] = {}
    for component, short_names in names.items():
        source = {short: tensors[name] for short, name in short_names.items()}
        if component == "unet":
            if extract_ema:
                source, note = _averaged(source, short_names, tensors)
                notes.append(note)
            config = architecture.unet_config(source, family, sample_size)
        elif component == "vae":
            config = architecture.vae_config(source, 8 * sample_size)
        else:
            config = {}
        translated, read = _translate(component, config | given[component], source)
        config = config or architecture.text_config(translated, family)
        components[component] = (config | given[component], translated)
        used.update(short_names[short] for short in read)
    left = [n for n in tensors if n not in used and reason(SINGLE_FILE, n) is None]
    if left:
        shown = ", ".join(left[:5]) + (", ..." if left[5:] else "")
        raise WeightError(f"{len(left)} tensors of {len(tensors)} are unknown: {shown}")
    for component in ("unet", "vae", "text_encoder"):
        if component not in components:
            notes.append(f"no {component} inside; it must come from elsewhere")
    return SingleFile(
        family,
        components,
        architecture.scheduler_config(predicts) | scheduler,
        tokenizer_of(family, components.get("text_encoder", (None,))[0]),
        predicts,
        tuple(notes),
    )


def _configs_inside(checkpoint: Checkpoint) -> dict[str, dict[str, Any]]:
    text = checkpoint.metadata.get(CONFIGS)
    content = json_text.parse(str(text), f"metadata {CONFIGS!r}") if text else {}
    if not isinstance(content, dict) or not all(isinstance(c, dict) for c in content.values()):
        raise WeightError(f"metadata {CONFIGS!r} does not hold configs by component")
    return content


def _family(tensors: Mapping[str, StoredTensor], unet: Mapping[str, StoredTensor]) -> str:
    if f"{keys.OPENCLIP_PREFIX}token_embedding.weight" in tensors:
        return "sd2"
    if any(name.startswith(keys.CLIP_PREFIX) for name in tensors):
        return "sd1"
    contexts = [t.shape[-1] for n, t in unet.items() if n.endswith("attn2.to_k.weight")]
    return "sd2" if contexts and contexts[0] == 1024 else "sd1"


def _prediction(checkpoint: Checkpoint, family: str, channels: int) -> tuple[str, str]:
    """(prediction type, how we know)."""
    about = checkpoint.metadata
    said = about.get("modelspec.prediction_type")
    if said in ("v", "v_prediction", "epsilon", "eps"):
        return ("v_prediction" if said[0] == "v" else "epsilon"), "the file's metadata say so"
    if "v_pred" in checkpoint.tensors:
        return "v_prediction", "the file is marked v_pred"
    if family == "sd1":
        return "epsilon", "as all published SD 1.x checkpoints"
    architecture_name = str(about.get("modelspec.architecture", ""))
    if "v2-512" in architecture_name:
        return "epsilon", f"the file's metadata call it {architecture_name}"
    if channels != 4:
        return "epsilon", "as the published SD 2.x inpainting and depth checkpoints"
    step = about.get("global_step")
    if "global_step" in checkpoint.tensors and checkpoint.tensors["global_step"].size == 1:
        step = checkpoint.tensors["global_step"].load().reshape(-1)[0]
    if step in EPSILON_STEPS:
        return "epsilon", f"{step} training steps are those of SD 2 base"
    return "v_prediction", (
        "assumed, as the 768 px SD 2.x checkpoints; names and shapes of the 512 px ones, which "
        'predict noise, are the same: give prediction_type="epsilon" for those'
    )


def _averaged(
    unet: Mapping[str, StoredTensor], names: Mapping[str, str], tensors: Mapping[str, StoredTensor]
) -> tuple[dict[str, StoredTensor], str]:
    averaged = {
        short: tensors.get("model_ema." + names[short].removeprefix("model.").replace(".", ""))
        for short in unet
    }
    missing = [name for name, tensor in averaged.items() if tensor is None]
    if len(missing) == len(unet):
        return dict(unet), "extract_ema: the file has no averaged weights; the plain ones are read"
    if missing:
        raise WeightError(f"averaged weights of {len(missing)} tensors are missing: {missing[:5]}")
    return {k: v for k, v in averaged.items() if v}, "averaged (EMA) weights of the UNet are read"


def table_of(component: str, config: Mapping[str, Any]) -> keys.Table:
    """The name table of a UNet or autoencoder with this config."""
    layers, kinds = config.get("layers_per_block"), config.get("down_block_types")
    if not isinstance(layers, int) or not isinstance(kinds, (list, tuple)):
        raise WeightError(
            f"{component} config: layers_per_block={layers!r} and down_block_types={kinds!r} are "
            "not those of Stable Diffusion 1 or 2"
        )
    if component == "unet":
        return keys.unet_table(tuple("CrossAttn" in kind for kind in kinds), layers)
    return keys.vae_table(len(kinds), layers)


def _translate(
    component: str, config: Mapping[str, Any], source: Mapping[str, StoredTensor]
) -> tuple[dict[str, StoredTensor], set[str]]:
    """(tensors under the names of a folder, which original names were used)."""
    if component == "text_encoder":
        return text_towers.from_original(source, config.get("num_hidden_layers"))
    table = table_of(component, config)
    result, used = {}, set()
    for name, tensor in source.items():
        new = keys.rename(name, table)
        if new is None:
            continue
        if component == "vae" and ".attentions." in new and len(tensor.shape) > 2:
            tensor = tensor.reshape(tensor.shape[:2])  # 1x1 convolutions there, linear layers here
        result[new] = tensor
        used.add(name)
    return result, used


def single_file_metadata(
    components: Mapping[str, Component], scheduler: Mapping[str, Any] | None = None
) -> dict[str, str]:
    """Metadata to save with `to_single_file`'s tensors; reading then gives the same configs."""
    configs = {name: config for name, (config, _) in components.items()}
    if scheduler:
        configs["scheduler"] = dict(scheduler)
    return {"format": "pt", CONFIGS: json.dumps(configs, sort_keys=True)}


def to_single_file(components: Mapping[str, Component]) -> dict[str, StoredTensor]:
    """The tensors of "unet", "vae", "text_encoder" (config, tensors) under their original names.

    The last block of OpenCLIP, which folders leave out, is written as zeros: it then adds nothing,
    and readers that want it whole find it. Raises WeightError for names that have no original.
    """
    result: dict[str, StoredTensor] = {}
    for component, (config, tensors) in components.items():
        if component == "text_encoder":
            result |= text_towers.to_original(config, tensors)
            continue
        if component not in ("unet", "vae"):
            raise InputError(f"component {component!r} has no place in a single file")
        prefix = keys.UNET_PREFIX if component == "unet" else keys.VAE_PREFIX
        table = keys.inverse(table_of(component, config))
        for name, tensor in tensors.items():
            for rule in FOLDERS[component].renames:
                name = re.sub(rf"\A{rule.pattern}\Z", rule.by, name)
            new = keys.rename(name, table)
            if new is None:
                raise WeightError(f"{component}: no original name is known for {name!r}")
            if ".mid.attn_1." in new and len(tensor.shape) == 2:
                tensor = tensor.reshape((*tensor.shape, 1, 1))
            result[prefix + new] = tensor
    return result


def _what_else(tensors: Mapping[str, StoredTensor]) -> str:
    """The best description of a file that is no SD 1 or 2 checkpoint."""
    signs = (
        (r"conditioner\..*|.*label_emb\..*", "an SDXL checkpoint"),
        (r"lora_.*|.*\.lora_(up|down|A|B)\..*|.*lora\.(up|down)\..*", "a LoRA"),
        (
            r"control_model\..*|.*controlnet.*|.*input_hint_block.*",
            "a ControlNet (read by ControlNetModel.from_single_file, or pipe.load_structure)",
        ),
        (r"emb_params|string_to_param.*|clip_[lg]", "a textual-inversion embedding"),
        (r".*joint_blocks\..*|.*double_blocks\..*", "an SD 3 or Flux checkpoint"),
        (r"down_blocks\..*|mid_block\..*", "a component of a diffusers folder"),
        (r"text_model\..*|vision_model\..*", "a CLIP model of a transformers folder"),
    )
    some = ", ".join(list(tensors)[:3])
    size = sum(prod(t.shape) for t in tensors.values())
    for pattern, what in signs:
        if any(re.fullmatch(pattern, name) for name in tensors):
            return f"this looks like {what}, not a Stable Diffusion 1 or 2 checkpoint"
    return (
        "neither a UNet (model.diffusion_model.*), an autoencoder nor a text encoder of Stable "
        f"Diffusion 1 or 2 inside; {len(tensors)} tensors ({size:,} numbers) such as {some}"
    )
