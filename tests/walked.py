"""Every public method of every public class, an object to call it on, and arguments that work.

Methods and their arguments are read from the classes, so a new one is there by itself; where an
argument of a new name has no default, `SAMPLES` needs one that works.
"""

from __future__ import annotations

import atexit
import inspect
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from pipelines import ip_adapters, test_gligen as gligen, tiny
from pipelines.blip import recorded as blip
from pipelines.loras import lora
from pipelines.test_from_single_file import write as write_single_file
from safetensors.torch import save_file
from weights import test_structure_files as structure

import underdraw
from underdraw import models
from underdraw.pipelines.base import DiffusionPipeline
from underdraw.weights import save

NUMBERS = count()
"""Of words, which a pipeline learns once."""
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8))
LATENTS = torch.ones(1, 4, 8, 8)
PIXELS = torch.zeros(1, 3, 32, 32)

# -- what is no user's to call ---------------------------------------------------------------------
MOMENTS = (
    "check room placed words networks prepare guides active before sites_at asks after before_call "
    "during_call predict after_step whole layouts"
)
"""Of controls: the run calls them, `tests/controls/test_broken_hooks.py` tries their answers."""
PROGRAMS = (
    "adapt_config adopt decode_with encode_with export_config flags from_tensors layout "
    "read_config sharing default_tiling non_finite stored_tensors lift_grounding "
    "without_grounding check check_count names require_fit check_pixels adopt inside"
)
"""Of networks and pipelines: how the package's own rooms read and run them."""
TABLES = "build"
"""Of schedulers: what writes their rows."""
CALLS = "encode_prompt generate_mask invert edit generate_then_edit get_query_embeddings"
"""Of pipelines: `tests/pipelines/test_arguments.py` and `tests/test_methods.py` have them."""
OF_CLASSES = "Blip2QFormerModel.encode Blip2QFormerModel.read ImagePrompt.given ImagePrompt.read"
"""Of the classes that are named; in others a method of this name is public."""
INSIDE = frozenset(" ".join((MOMENTS, PROGRAMS, TABLES, CALLS, OF_CLASSES)).split())
LATER = ("Inverse", "Blip", "Context", "ControlNet", "Adapter")
"""Words in the names of classes that are looked at last: what they share with others is tried with
these."""


class Method(NamedTuple):
    owner: str
    name: str
    function: Any
    """As its source has it."""

    @property
    def parameters(self) -> dict[str, inspect.Parameter]:
        found = dict(inspect.signature(self.function).parameters)
        if not isinstance(inspect.getattr_static(kind(self.owner), self.name), staticmethod):
            del found[next(iter(found))]
        open_ended = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        # What runs programs is the engine's to give.
        return {n: p for n, p in found.items() if p.kind not in open_ended and n != "ask"}

    @property
    def base(self) -> dict[str, Any]:
        """Arguments with which it works."""
        more = WORKS.get(f"{self.owner}.{self.name}") or WORKS.get(self.name)
        own = {} if more is None else more(self.owner)
        needed = [n for n, p in self.parameters.items() if p.default is p.empty and n not in own]
        return {name: SAMPLES[name]() for name in needed} | own


def kind(name: str) -> Any:
    return getattr(underdraw, name)


def methods() -> list[Method]:
    """One for each function, where classes share it; `tests/flax_names/test_flax_arguments.py` has
    Flax's."""
    found: dict[Any, Method] = {}
    for name in sorted(underdraw.__all__, key=lambda name: any(word in name for word in LATER)):
        if inspect.isclass(kind(name)) and not name.startswith("Flax"):
            for method, function in own_methods(kind(name)):
                found.setdefault(function, Method(name, method, function))
    return list(found.values())


def own_methods(cls: Any) -> Iterator[tuple[str, Any]]:
    for name in dir(cls):
        held = inspect.getattr_static(cls, name)
        function = inspect.unwrap(getattr(held, "__func__", held))
        ours = str(getattr(function, "__module__", "")).startswith("underdraw")
        if (
            not name.startswith("_")
            and name not in INSIDE
            and f"{cls.__name__}.{name}" not in INSIDE
            and inspect.isfunction(function)
            and ours
        ):
            yield name, function


# -- objects -------------------------------------------------------------------------------------
@cache
def shelf() -> Path:
    """A pipeline's folder, its file, and grounding weights."""
    held = tempfile.TemporaryDirectory()
    atexit.register(held.cleanup)
    place = Path(held.name)
    tiny.pipeline().save_pretrained(place / "folder")
    write_single_file(place / "folder", place / "one.safetensors")
    grounded().unet.grounding.save_pretrained(place / "grounding")
    processor().save_pretrained(place / "processor")
    for part in ("image_encoder", "image_project"):
        getattr(grounded(), part).save_pretrained(place / part)
    checker().save_pretrained(place / "safety_checker")
    torch.save(torch.ones(16, 16), place / "matrix")
    save_file(lora(tiny.pipeline()), place / "lora.safetensors")
    save_file({"<toy>": torch.ones(2, tiny.WIDTH)}, place / "word.safetensors")
    for name in ("Blip2QFormerModel", "BlipImageProcessor", "ControlNetModel", "T2IAdapter"):
        OBJECTS[name]().save_pretrained(place / name)
    for name in ("MultiAdapter", "MultiControlNetModel", "AutoencoderTiny"):
        OBJECTS[name]().save_pretrained(place / name)
    torch.save(tiny.taesd(tiny.small_vae(), "decoder"), place / "taesd_decoder.pth")
    net = tiny.controlnet(underdraw.UNet2DConditionModel(**structure.UNET))
    save.save_tensors(place / "net.safetensors", structure.original(net))
    save.save_tensors(place / "adapter.safetensors", tiny.adapter().stored_tensors())
    return place


@cache
def grounded() -> Any:
    return gligen.made("text-image")


@cache
def checker() -> Any:
    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    more = {"num_attention_heads": 2, "image_size": 32, "patch_size": 16, "projection_dim": 8}
    return models.StableDiffusionSafetyChecker(**size, **more)


def processor() -> Any:
    return grounded().parts.named["processor"]


def scheduler(name: str) -> Any:
    made = getattr(underdraw, name).from_config(tiny.SCHEDULE)
    made.set_timesteps(8)
    return made


@cache
def instance(name: str) -> Any:
    """An object of a class."""
    pipe, cls = tiny.pipeline(), kind(name)
    if name in OBJECTS:
        return OBJECTS[name]()
    if name.endswith("Scheduler"):
        return scheduler(name)
    if inspect.isclass(cls) and issubclass(cls, DiffusionPipeline):
        if "GLIGEN" in name:
            return gligen.made("text-image" if "TextImage" in name else "text")
        if "Blip" in name:
            return blip.pipeline()
        given = {"controlnet": tiny.controlnet()} if "ControlNet" in name else {}
        given = {"adapter": tiny.adapter()} if "Adapter" in name else given
        return cls.from_pipe(pipe, **given)
    return cls  # its class methods


def inverting() -> Any:
    parts = {name: scheduler(f"{kind}Scheduler") for name, kind in INVERSE.items()}
    pipe = ip_adapters.pipeline()
    pipe.load_ip_adapter(ip_adapters.adapter(pipe.unet))
    return underdraw.StableDiffusionDiffEditPipeline.from_pipe(pipe, **parts)


INVERSE = {"scheduler": "DDIM", "inverse_scheduler": "DDIMInverse"}
OBJECTS: dict[str, Callable[[], Any]] = {
    "Blip2QFormerModel": lambda: blip.shared()["qformer"],
    "BlipImageProcessor": underdraw.BlipImageProcessor,
    "ContextCLIPTextModel": lambda: blip.shared()["text_encoder"],
    "ControlNetModel": tiny.controlnet,
    "MultiAdapter": lambda: underdraw.MultiAdapter([tiny.adapter(), tiny.adapter(seed=6)]),
    "MultiControlNetModel": lambda: underdraw.MultiControlNetModel([tiny.controlnet()]),
    "T2IAdapter": tiny.adapter,
    "AutoencoderKL": lambda: tiny.pipeline().vae,
    "AutoencoderTiny": tiny.small_vae,
    "CLIPImageProcessor": lambda: processor().image_processor,
    "CLIPImageProjection": lambda: grounded().parts.named["image_project"],
    "CLIPProcessor": processor,
    "CLIPTextModel": lambda: tiny.pipeline().text_encoder,
    "CLIPTextModelWithProjection": lambda: models.CLIPTextModelWithProjection(
        **tiny.text_config(600)
    ),
    "CLIPTokenizer": tiny.tokenizer,
    "CLIPVisionModelWithProjection": lambda: grounded().parts.named["image_encoder"],
    "IPAdapterMaskProcessor": underdraw.IPAdapterMaskProcessor,
    "StableDiffusionSafetyChecker": checker,
    "UNet2DConditionModel": lambda: tiny.pipeline().unet,
    "VaeImageProcessor": underdraw.VaeImageProcessor,
    "DiffusionPipeline": tiny.pipeline,
    "StableDiffusionDiffEditPipeline": inverting,
    "DiffEditInversionPipelineOutput": lambda: underdraw.DiffEditInversionPipelineOutput(
        LATENTS, None
    ),
    "DiffEditOutput": lambda: underdraw.DiffEditOutput([PICTURE], None, LATENTS, None),
    "StableDiffusionPipelineOutput": lambda: underdraw.StableDiffusionPipelineOutput(
        [PICTURE], None
    ),
}
"""Those that are not made alike. Of classes that are not here methods of the class are called."""

# -- arguments -----------------------------------------------------------------------------------
NUMPY = np.zeros((1, 8, 8, 3), np.float32)
SAMPLES: dict[str, Callable[[], Any]] = {
    "adapter_names": list,
    "b1": lambda: 1.1,
    "b2": lambda: 1.2,
    "base": lambda: str(shelf() / "folder"),
    "batch_size": lambda: 1,
    "boxes": lambda: gligen.BOXES,
    "categories": lambda: "toy",
    "clip_input": lambda: PIXELS,
    "conditioning_scale": lambda: 1.0,
    "config": dict,
    "controlnet_cond": lambda: torch.ones(1, 3, 64, 64),
    "device": lambda: "cpu",
    "dtype": lambda: torch.float32,
    "encoder_hidden_states": lambda: torch.ones(1, 7, tiny.WIDTH),
    "encoded_inputs": lambda: {"input_ids": [[1, 2]]},
    "eta": lambda: 0.0,
    "folder": lambda: "made",
    "generator": lambda: None,
    "gligen_boxes": lambda: gligen.BOXES,
    "gligen_images": lambda: None,
    "gligen_phrases": lambda: gligen.PHRASES,
    "grounding": lambda: grounded().unet.grounding,
    "has_mask": lambda: None,
    "height": lambda: 64,
    "hidden_size": lambda: tiny.WIDTH,
    "ids": lambda: [1, 2],
    "im": lambda: PICTURE,
    "image": lambda: PICTURE,
    "images": lambda: NUMPY,
    "init_image": lambda: PICTURE,
    "input": lambda: "a sphere",
    "input_ids": lambda: torch.ones(1, 77, dtype=torch.int64),
    "input_images_mask": lambda: None,
    "input_phrases_mask": lambda: None,
    "ip_adapter_image": lambda: PICTURE,
    "kind": lambda: "grounding",
    "latents": lambda: LATENTS,
    "maps": lambda: torch.ones(1, 3, 64, 64),
    "mask": lambda: PICTURE.convert("L"),
    "mask_image": lambda: PICTURE,
    "max_objs": lambda: 8,
    "model_output": lambda: LATENTS,
    "new_height": lambda: 8,
    "new_hw": lambda: 8,
    "new_num_tokens": lambda: 600,
    "new_tokens": lambda: ["new"],
    "new_width": lambda: 8,
    "noise": lambda: LATENTS,
    "normalize_constant": lambda: 28.7,
    "num_channels": lambda: 4,
    "num_channels_latents": lambda: 4,
    "num_images_per_prompt": lambda: 1,
    "num_inference_steps": lambda: 8,
    "original_samples": lambda: LATENTS,
    "path": lambda: "made.json",
    "pattern": lambda: "made.png",
    "people": lambda: [[[(0.5, 0.5)] * 17]],
    "pipeline": tiny.pipeline,
    "pixel_values": lambda: PIXELS,
    "output_type": lambda: "latent",
    "processor": dict,
    "prompt": lambda: "a sphere",
    "raw": dict,
    "repeat_batch": lambda: 1,
    "repo_id": lambda: "owner/name",
    "s1": lambda: 0.9,
    "s2": lambda: 0.2,
    "sample": lambda: LATENTS,
    "save_directory": lambda: "made",
    "size": lambda: (8, 8),
    "source": lambda: "nowhere",
    "slice_size": lambda: None,
    "strength": lambda: 0.5,
    "target": lambda: "made",
    "text": lambda: "a sphere",
    "timestep": lambda: torch.tensor(500),
    "timesteps": lambda: torch.tensor([500]),
    "token_ids": lambda: [[1, 2]],
    "tokens": lambda: ["a</w>"],
    "total": lambda: 3,
    "unet": lambda: tiny.pipeline().unet,
    "use_tiling": lambda: True,
    "valid": lambda: True,
    "values": dict,
    "where": lambda: {"dtype": None},
    "width": lambda: 64,
    "x": lambda: PIXELS,
    "xs": lambda: [torch.ones(1, 3, 64, 64)] * 2,
    "z": lambda: LATENTS,
}
"""By name of an argument without a default."""
READ = {
    "UNet2DConditionModel": "folder/unet",
    "AutoencoderKL": "folder/vae",
    "AutoencoderTiny": "AutoencoderTiny",
    "CLIPTextModel": "folder/text_encoder",
    "CLIPTokenizer": "folder/tokenizer",
    "CLIPProcessor": "processor",
    "CLIPImageProcessor": "processor",
    "CLIPVisionModelWithProjection": "image_encoder",
    "CLIPImageProjection": "image_project",
    "StableDiffusionSafetyChecker": "safety_checker",
    **{name: name for name in ("Blip2QFormerModel", "BlipImageProcessor", "MultiAdapter")},
}


def shelved(owner: str) -> str:
    """A folder of its class."""
    return str(shelf() / READ.get(owner, "folder/scheduler" if "Scheduler" in owner else "folder"))


def read_from(argument: str) -> Callable[[str], dict[str, Any]]:
    return lambda owner: {argument: shelved(owner)}


def file_of(owner: str) -> dict[str, Any]:
    return {"source": str(shelf() / "one.safetensors")}


def array(owner: str) -> dict[str, Any]:
    return {"image": torch.zeros(1, 3, 64, 64)}


def encoded(owner: str) -> dict[str, Any]:
    return {"text_input": "toy", "image_input": torch.zeros(1, 3, 28, 28)}


WORKS: dict[str, Callable[[str], dict[str, Any]]] = {
    "Blip2QFormerModel.forward": encoded,
    "Blip2QFormerModel.from_pretrained": read_from("name_or_path"),
    "ContextCLIPTextModel.forward": lambda _: {
        "input_ids": torch.ones(1, 20, dtype=torch.int64),
        "ctx_embeddings": torch.ones(1, 5, 24),
        "ctx_begin_pos": [2],
    },
    "BlipImageProcessor.preprocess": lambda _: {"images": PICTURE},
    "BlipImageProcessor.postprocess": lambda _: {"sample": PIXELS},
    "ControlNetModel.from_single_file": lambda _: {"source": str(shelf() / "net.safetensors")},
    "T2IAdapter.from_single_file": lambda _: {"source": str(shelf() / "adapter.safetensors")},
    "T2IAdapter.forward": lambda _: {"x": torch.ones(1, 3, 64, 64)},
    "MultiAdapter.from_pretrained": read_from("folder"),
    "MultiControlNetModel.forward": lambda _: {
        "controlnet_cond": [torch.ones(1, 3, 64, 64)],
        "conditioning_scale": [1.0],
    },
    "StableDiffusionControlNetImg2ImgPipeline.prepare_latents": lambda owner: {
        **array(owner),
        "timestep": torch.tensor([500]),
    },
    "from_pretrained": read_from("name_or_path"),
    "load_config": read_from("name_or_path"),
    "download": read_from("name_or_path"),
    "CLIPTokenizer.from_pretrained": read_from("name"),
    **{f"DDIMScheduler.{name}": read_from("folder") for name in ("from_pretrained", "load_config")},
    "load_adapter": lambda _: {"kind": "grounding", "source": str(shelf() / "grounding")},
    "load_grounding": lambda _: {"source": str(shelf() / "grounding")},
    "load_lora_weights": lambda _: {
        "pretrained_model_name_or_path_or_dict": str(shelf() / "lora.safetensors"),
        "adapter_name": "clay",
    },
    "load_ip_adapter": lambda _: {
        "pretrained_model_name_or_path_or_dict": ip_adapters.adapter(tiny.pipeline().unet)
    },
    "set_ip_adapter_scale": lambda _: {"scale": 0.5},
    "load_textual_inversion": lambda _: {
        "pretrained_model_name_or_path": str(shelf() / "word.safetensors"),
        "token": f"word{next(NUMBERS)}",
    },
    "save_lora_weights": lambda _: {"unet_lora_layers": {"a": torch.ones(1)}},
    "from_matrix_file": lambda _: {"path": str(shelf() / "matrix")},
    "from_single_file": file_of,
    "DiffusionPipeline.from_single_file": lambda owner: {
        **file_of(owner),
        "tokenizer": tiny.tokenizer(),
    },
    "make_table": lambda _: {"num_inference_steps": 8},
    "set_timesteps": lambda _: {"num_inference_steps": 8},
    "index_for_timestep": lambda owner: {"timestep": instance(owner).timesteps[0]},
    "step": lambda owner: {"timestep": instance(owner).timesteps[0]},
    "AutoencoderKL.forward": lambda _: {"sample": PIXELS},
    "AutoencoderTiny.forward": lambda _: {"sample": PIXELS},
    "AutoencoderTiny.decode": lambda _: {"x": LATENTS},
    "AutoencoderTiny.scale_latents": lambda _: {"x": LATENTS},
    "AutoencoderTiny.unscale_latents": lambda _: {"x": LATENTS},
    "AutoencoderTiny.from_single_file": lambda _: {"source": str(shelf() / "taesd_decoder.pth")},
    "load_preview": lambda _: {"source": str(shelf() / "AutoencoderTiny")},
    "StableDiffusionSafetyChecker.forward": lambda _: {"images": np.zeros((1, 8, 8, 3))},
    "progress_bar": lambda _: {"total": 3},
    "run_safety_checker": array,
    "prepare_image_latents": array,
    "StableDiffusionImg2ImgPipeline.prepare_latents": lambda owner: {
        **array(owner),
        "timestep": torch.tensor([500]),
    },
    "postprocess": array,
    "denormalize": lambda _: {"images": PIXELS},
    "normalize": lambda _: {"images": PIXELS},
    "pt_to_numpy": lambda _: {"images": PIXELS},
    "pil_to_numpy": lambda _: {"images": PICTURE},
    "unload_adapter": lambda _: {"kind": "grounding"},
}
"""By name of a method, or of class and method, what it needs to work besides `SAMPLES`."""
