"""Names people reach for which are not here: what to use instead, or that they come later."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from opcode import opmap

SCOPE = "underdraw is about Stable Diffusion 1.x and 2.x, in pictures"

# By the names under which things are looked for; of several that fit the first counts.
NAMES = (
    (
        r"\w*(XL|SD3|Diffusion3|Flux|Video|Audio|Transformer|Wan|Sana|Hunyuan|PixArt|Kandinsky|"
        r"Cascade|DeepFloyd|IF[A-Z]|QwenImage|Lumina|CogView|AuraFlow|Chroma|HiDream|LTX|Mochi|"
        r"Allegro|Latte|Cosmos|Motion|AnimateDiff|3D|1D|Music|UnCLIP|UniDiffuser|Wuerstchen|ZImage)\w*",
        f"other architectures and media are out of scope: {SCOPE}",
    ),
    (
        r"Flax(\w*Ve|KarrasDiffusion)\w*|FlaxModelMixin|FlaxSchedulerMixin",
        "of Flax's names there are pipelines of Stable Diffusion, their networks and schedulers "
        "(underdraw.flax)",
    ),
    (
        r"\w*ControlNet\w+|\w*ControlNet(?!\w)",
        "there are ControlNetModel, MultiControlNetModel and the ControlNet pipelines of Stable "
        "Diffusion; Structure(net, map) adds one to any other pipeline",
    ),
    (
        r"\w*Lora\w*|\w*PeftAdapter\w*",
        "pipelines load LoRAs themselves (load_lora_weights, set_adapters), and Lora is a control",
    ),
    (
        r"\w*TextualInversion\w*",
        "pipelines load learned words themselves: load_textual_inversion",
    ),
    (
        r"IPAdapter\w*",
        "pipelines load IP-Adapters themselves (load_ip_adapter), and ImagePrompt is a control",
    ),
    (
        r"AsymmetricAutoencoderKL|ConsistencyDecoderVAE",
        "there are AutoencoderKL and AutoencoderTiny",
    ),
    (
        r"Onnx\w*|ORT\w*|OV\w*",
        'other runtimes are engines: engine="openvino", or "compiled"',
    ),
    (
        r"\w*Quant\w*Config|BitsAndBytesConfig|TorchAoConfig|QuantoConfig",
        'pipe.quantize("int8") and pipe.quantize("float8") keep weights in 8 bits',
    ),
    (
        r"\w*AttnProcessor\w*|attention_processor",
        "attention is steered by controls (underdraw.controls), not by processors",
    ),
    (
        r"ModelMixin|ConfigMixin|SchedulerMixin|\w*LoaderMixin|\w*Mixin|register_to_config",
        "there are no mixins: models are underdraw.models.base.Model, schedulers "
        "underdraw.schedulers.Scheduler",
    ),
    (
        r"get_\w*schedule\w*|get_scheduler|EMAModel|training_utils|optimization",
        "training has its own, see underdraw.training and `underdraw train`",
    ),
    (r"export_to_\w+", f"there are no videos: {SCOPE}"),
    (r"logging", 'use logging.getLogger("underdraw") of Python'),
    (r"image_processor", "VaeImageProcessor is underdraw.VaeImageProcessor"),
)
KINDS = (
    (
        r"\w*(Guidance\w*|guiders)",
        "guidance_scale is a number or one per image, a callback may change it between steps, and "
        "GuidanceInterval, AdaptiveGuidance and SparseGuidance leave halves out",
    ),
    (
        r"\w*Cache\w*|apply_\w+",
        "pipe.enable_acceleration(...) reuses what a network computed: DeepCache, "
        "EncoderPropagation, AttentionCache",
    ),
    (
        r"\w*Blocks|[Mm]odular\w*|Components?\w+|ConfigSpec|InputParam|OutputParam|"
        r"AutoModel|LEditsPP\w*",
        "a call is a recipe that can be written anew (ARCHITECTURE.md, underdraw.pipelines), and "
        "components are made by their own classes, as UNet2DConditionModel",
    ),
    (
        r"is_\w+_(available|version)|requires_backends|Dummy\w*|Optional\w*|HookRegistry|"
        r"AttentionBackendName|attention_backend",
        "nothing needs it here",
    ),
    (
        r"loaders|hooks|callbacks|configuration_utils|quantizers\S*|video_processor|"
        r"utils\.\w+|\w*Processor|\w*Quantizer",
        "this part of diffusers has no counterpart",
    ),
    (r"\w*ParallelConfig|\w*Config", "there is no such setting"),
    (
        r"(?!StableDiffusion)\w*Output",
        "calls give StableDiffusionPipelineOutput, DiffEditOutput and "
        "DiffEditInversionPipelineOutput",
    ),
    (
        r"Autoencoder[A-Z]\w*\d|AutoencoderKL\w+|Autoencoder(?!KL)\w+|\w*UNet\w*Model|UVit\w*|"
        r"\w*UNet|VQModel|T5\w*|Mel|\w*(Encoder|Vocoder|Head|Conditioner|Guider|Autoencoder)",
        f"other networks are out of scope: {SCOPE}",
    ),
)
"""Looked at where no name of ours is near."""
METHODS = (
    (
        r"\w*lora\w*|(load|save)_attn_procs|(set|get|add|delete|enable|disable|active)_?\w*adapters?",
        "LoRAs belong to a pipeline: load_lora_weights, set_adapters, fuse_lora, save_lora_weights",
    ),
    (
        r"\w*ip_adapter\w*|encode_image",
        "IP-Adapters belong to a pipeline: load_ip_adapter, set_ip_adapter_scale, ...",
    ),
    (r"(enable|disable)_freeu", "FreeU is a setting of a pipeline: pipe.enable_freeu"),
    (
        r"(un)?fuse_qkv_projections|enable_group_offload|enable_layerwise_casting|dequantize",
        "pipe.enable_group_offload(), pipe.quantize('int8'), pipe.enable_vae_tiling(seamless=True) "
        "and dtype='float16' save memory",
    ),
    (
        r"(enable|disable)_(\w*cache|shortcuts)|tgate",
        "pipe.enable_acceleration('fast') computes less",
    ),
    (r"compile_repeated_blocks|compile", 'use engine="compiled" of the pipeline'),
    (r"(enable|disable)_pag\w*|pag_\w+", "perturbed attention is no part of underdraw"),
    (
        r"(set_)?(attention_backend|use_\w+_flash_attention)|reset_attention_backend|"
        r"(enable|disable)_\w+_flash_attention",
        "the fastest attention of the framework is used already",
    ),
    (r"(enable|disable)_gradient_checkpointing|is_gradient_checkpointing", "the UNet has it"),
    (r"enable_parallelism", "networks are on one device"),
    (
        r"register_to_config|extract_init_dict|get_config_dict|ignore_for_config|"
        r"register_for_auto_class|from_config",
        "a component or pipeline is described by its arguments and `config`",
    ),
)


def name(where: str, wanted: str, there: Iterable[str], frames: int = 2) -> Exception:
    """The AttributeError for a name that a module lacks; where it is imported, the ImportError:
    `from underdraw import name` forgets what an AttributeError says.

    Args:
        there: names it has.
        frames: between this and who wants the name.
    """
    message = _of_module(where, wanted, there)
    caller = sys._getframe(frames)
    if caller.f_lasti >= 0 and caller.f_code.co_code[caller.f_lasti] == opmap["IMPORT_FROM"]:
        return ImportError(message, name=where)
    return AttributeError(message)


def _of_module(where: str, wanted: str, there: Iterable[str]) -> str:
    listed = sorted(there)
    said = f"module {where!r} has no attribute {wanted!r}"
    if told := _told(NAMES, wanted):
        return f"{said}: {told}"
    near = get_close_matches(wanted, listed, 1, 0.85)
    said += f"; did you mean {near[0]!r}?" if near else ""
    for kind in ("Pipeline", "Scheduler"):
        if wanted.endswith(kind):
            known = ", ".join(one for one in listed if one.endswith(kind))
            return f"{said}: there are {known} ({SCOPE})"
    told = None if near else _told(KINDS, wanted)
    return said if told is None else f"{said}: {told}"


def method(kind: str, wanted: str, there: Iterable[str]) -> str:
    """The message of the AttributeError for what a pipeline or network lacks."""
    said = f"{kind!r} object has no attribute {wanted!r}"
    if told := _told(METHODS, wanted):
        return f"{said}: {told}"
    if near := get_close_matches(wanted, [one for one in there if not one.startswith("_")], 1, 0.8):
        return f"{said}; did you mean {near[0]!r}?"
    return said


def _told(table: tuple[tuple[str, str], ...], wanted: str) -> str | None:
    return next((text for names, text in table if re.fullmatch(names, wanted)), None)
