"""What code written for diffusers reads of a pipeline; answers to what is done otherwise here."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from inspect import signature
from os import PathLike
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
from PIL import ImageFilter

from underdraw import checks
from underdraw.arguments import checked
from underdraw.backends.contract import Array
from underdraw.errors import InputError, InputTypeError
from underdraw.models import keywords
from underdraw.pictures import cropping, modes, reading as pictures, writing as images
from underdraw.pictures.writing import to_pil
from underdraw.pipelines.call.latents import LONGEST_SIDE
from underdraw.pipelines.components.components import Components
from underdraw.pipelines.components.offload import disable, enable
from underdraw.pipelines.components.registry import LIBRARIES, uncompiled
from underdraw.pipelines.diffusers.latents import first_noise
from underdraw.weights import folders, hub

GROUPS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("use_stream", "non_blocking", "record_stream"), (None, False, True)),
    "low_cpu_mem_usage": (None, False, True),
    "offload_to_disk_path": (None,),
    "exclude_modules": (None,),
}
"""Keywords of diffusers' `enable_group_offload`, and the values that change nothing here."""
FUSED = "xformers: the framework's own fused attention is used already, and nothing changes"


def note(text: str) -> None:
    """Say what a call written for diffusers cannot do here, where it need not stop a script."""
    logging.getLogger(__name__).warning(text)


class ImageProcessor:
    """Pictures to what the autoencoder takes, and back; of masks with `mask`."""

    def __init__(self, framework: Any, factor: int, place: Any, mask: bool = False) -> None:
        self.framework, self.vae_scale_factor, self.place = framework, factor, place
        self.mask = mask

    def preprocess(
        self,
        image: Any,
        height: int | None = None,
        width: int | None = None,
        crops_coords: tuple[int, int, int, int] | None = None,
    ) -> Array:
        """Float32 `(images, 3, height, width)` in [-1, 1], or masks `(masks, 1, height, width)`.

        Arguments are those of `pictures.reading.read_pictures` and `read_masks`; the size is by
        default that of the first picture, rounded down to multiples of the autoencoder's factor.
        """
        for name, given in (("height", height), ("width", width)):
            if given is not None:
                checks.whole(name, given, 1, LONGEST_SIDE)
        crop = None
        if crops_coords is not None:
            corners = checks.sequence("crops_coords", crops_coords, "four whole numbers")
            if len(corners) != 4:
                raise InputError(f"crops_coords={checks.shown(corners)} must hold four numbers")
            crop = cropping.Crop(
                *(checks.whole("crops_coords", one, 0, LONGEST_SIDE) for one in corners)
            )
            if not (crop.left < crop.right and crop.top < crop.bottom):
                raise InputError(f"crops_coords={crop} has no area")
        if self.mask:
            first: Any = image[0] if isinstance(image, list | tuple) and image else image
            side = modes.upright_size(first) if hasattr(first, "convert") else None
            if side is None and len(getattr(first, "shape", ())) < 2:
                raise InputTypeError(f"image={checks.shown(image)} is no mask")
            side = (first.shape[-1], first.shape[-2]) if side is None else side
            wide, high = (n - n % self.vae_scale_factor for n in side)
            read = pictures.read_masks(
                "image", image, self.framework, height or high, width or wide, crop
            )
        else:
            read = pictures.read_pictures(
                "image",
                image,
                self.framework,
                height,
                width,
                factor=self.vae_scale_factor,
                crop=crop,
            )
        return self.framework.array(read, device=self.place)

    @staticmethod
    def get_crop_region(mask_image: Any, width: int, height: int, pad: int = 0) -> cropping.Crop:
        """The part of a picture around what is set in a PIL mask (`pictures`)."""
        checks.whole("width", width, 1, LONGEST_SIDE)
        checks.whole("height", height, 1, LONGEST_SIDE)
        checks.whole("pad", pad, 0, LONGEST_SIDE)
        return cropping.crop_around(checks.picture("mask_image", mask_image), width, height, pad)

    @staticmethod
    def blur(image: Any, blur_factor: float = 4) -> Any:
        """A PIL picture or mask, blurred by a Gaussian of that many pixels."""
        radius = checks.number("blur_factor", blur_factor, 0.0, LONGEST_SIDE)
        picture = checks.picture("image", image)
        if picture.mode not in ("L", "RGB", "RGBA", "CMYK"):  # others have no neighbours to mix
            picture = modes.plain("image", picture)
        return picture.filter(ImageFilter.GaussianBlur(radius))

    def postprocess(self, image: Array, output_type: str = "pil") -> Any:
        """Decoded images `(images, 3, height, width)` near [-1, 1] as "pil", "np", "pt", "latent"
        (as they are)."""
        checks.choice("output_type", output_type, images.OUTPUT_TYPES)
        checks.array("image", image, (None,) * 4, self.framework)
        if output_type == "latent":
            return image
        return images.to_output(image, output_type, self.framework)


class Familiar:
    """Attributes of diffusers' pipelines that user code reads."""

    parts: Components
    components: Any
    requires_safety_checker: bool
    enable_attention_slicing: Any

    @property
    def vae_scale_factor(self) -> int:
        """Pixels to one latent, along each side."""
        return self.parts.vae.config.factor

    @property
    def image_processor(self) -> ImageProcessor:
        """Pictures in and out."""
        return ImageProcessor(self.parts.framework, self.vae_scale_factor, self.parts.device)

    @property
    def mask_processor(self) -> ImageProcessor:
        """Masks in."""
        return ImageProcessor(
            self.parts.framework, self.vae_scale_factor, self.parts.device, mask=True
        )

    @property
    def config(self) -> Mapping[str, Any]:
        """What `model_index.json` says: (library, class) of each component, and the switches."""
        listed: dict[str, Any] = {"_class_name": type(self).__name__}
        for name, value in self.components.items():
            kind = (LIBRARIES.get(name, "transformers"), type(uncompiled(value)).__name__)
            listed[name] = (None, None) if value is None else kind
        listed["requires_safety_checker"] = self.requires_safety_checker
        return MappingProxyType({**listed, "_name_or_path": self.parts.source})

    @property
    def name_or_path(self) -> str | None:
        """Where the pipeline was loaded from."""
        return self.parts.source

    @property
    def _execution_device(self) -> Any:
        return self.parts.device

    @property
    def cross_attention_kwargs(self) -> None:
        """None: attention is steered by controls."""

    def prepare_latents(
        self,
        batch_size: int,
        num_channels_latents: int,
        height: int,
        width: int,
        dtype: Any = None,
        device: Any = None,
        generator: Any = None,
        latents: Array | None = None,
    ) -> Array:
        """What a run begins with: noise (or `latents`) times the scheduler's first noise level."""
        shape = (batch_size, num_channels_latents, height, width)
        begin: Any = first_noise(self.parts, shape, dtype, device, generator, latents)
        return begin * getattr(self.parts.scheduler, "init_noise_sigma", 1.0)

    @staticmethod
    def numpy_to_pil(images: np.ndarray) -> list[Any]:
        """PIL images from `(images, height, width, 3)` (or one of them) in [0, 1]."""
        numbers = isinstance(images, np.ndarray) and images.dtype.kind == "f"
        shape: Any = images.shape if numbers else ()
        if len(shape) not in (3, 4) or 0 in shape or shape[-1] not in (1, 3):
            raise InputTypeError(
                f"images={checks.shown(images)}; needed are numbers in [0, 1] of numpy, (images, "
                "height, width, 3)"
            )
        if not (images.min() > -0.001 and images.max() < 1.001):  # false for NaN, too
            raise InputError("images holds values outside [0, 1]")
        return to_pil(images[None] if images.ndim == 3 else images)

    def enable_model_cpu_offload(self, gpu_id: int | None = None, device: Any = None) -> None:
        """Keep networks in host memory, each on an accelerator only while a call uses it.

        The largest network then decides how much of the accelerator's memory a call needs, besides
        what it computes; moving them costs time. The UNet comes once per call and stays for all its
        steps, together with grounding weights where controls are given; texts, pictures and phrases
        are encoded before. `pipe.device` tells where calls compute. Pipelines made of this one by
        `from_pipe` do the same with the networks they share, several threads may call them, and
        after each call, also one that failed or was closed, everything is back in host memory.

        Networks called by hand (`pipe.vae.decode(...)`, in a callback, too) are in host memory;
        `pipe.decode_latents` and `pipe.encode_prompt` bring them themselves.

        So far it was tested without a real accelerator: on the CPU under another name, and with
        tensors that only pretend to be elsewhere.

        Args:
            gpu_id: the index of the accelerator, 0 if not given.
            device: such as "cuda:1"; by default the fastest accelerator.

        Raises:
            InputError: there is no accelerator or no such device, networks are not on PyTorch, or
                a call is in progress on another device.
        """
        enable(self.parts, gpu_id, device)

    def disable_model_cpu_offload(self) -> None:
        """No longer move networks: they stay in host memory, from where `pipe.to(device)` takes
        them. Pipelines that share them (`from_pipe`) are not changed."""
        disable(self.parts)

    remove_all_hooks = disable_model_cpu_offload

    def maybe_free_model_hooks(self) -> None:
        """Bring home what an interrupted call has left on the accelerator; calls do so at their
        end, so this is for code written for diffusers."""
        if self.parts.offload is not None:
            self.parts.offload.bring_home()

    def enable_sequential_cpu_offload(self, gpu_id: int | None = None, device: Any = None) -> None:
        """Keep networks in host memory, and bring each layer to an accelerator for the moment it is
        used: the least memory there, and the slowest. Nothing is moved back, for layers are copied;
        weights that hooks use (grounding) are moved as a whole while a call with controls runs.
        Networks of other engines than the default run as they are written. Where it cannot be done
        (without an accelerator, on other backends than PyTorch) a note says so, and nothing
        changes. Arguments and the way back are those of `enable_model_cpu_offload`."""
        try:
            enable(self.parts, gpu_id, device, streams=True)
        except InputError as error:
            note(f"enable_sequential_cpu_offload changes nothing: {error}")

    @checked
    def enable_group_offload(
        self,
        onload_device: Any = None,
        offload_device: Any = "cpu",
        offload_type: str = "block_level",
        num_blocks_per_group: int | None = None,
        **familiar: Any,
    ) -> None:
        """The same by groups of blocks: while one computes the next is fetched, on CUDA by a stream
        of its own. The accelerator holds two groups at a time.

        Args:
            onload_device: such as "cuda:1"; by default the fastest accelerator.
            offload_device: "cpu": host memory.
            offload_type: "block_level", or "leaf_level", which does as
                `enable_sequential_cpu_offload`.
            num_blocks_per_group: 1 if not given.
            familiar: diffusers' switches of how it does so (`use_stream`, `non_blocking`,
                `record_stream`, `low_cpu_mem_usage`), which change nothing.

        Raises:
            InputError: there is no accelerator, or networks are not on PyTorch.
        """
        keywords.drop_neutral("enable_group_offload", familiar, GROUPS, ())
        checks.choice("offload_type", offload_type, ("block_level", "leaf_level"))
        home = str(checks.device("offload_device", offload_device))
        checks.choice("offload_device", home, ("cpu",))
        blocks = num_blocks_per_group
        if blocks is not None:
            blocks = checks.whole("num_blocks_per_group", blocks, 1, 10_000)
        blocks = None if offload_type == "leaf_level" else blocks or 1
        enable(self.parts, None, onload_device, streams=True, blocks=blocks)

    @checked
    def fuse_qkv_projections(self, unet: bool = True, vae: bool = True) -> None:
        """Nothing but a note: the three products of an attention are computed one by one, with the
        same numbers."""
        note("fuse_qkv_projections: nothing changes, the numbers would be the same")

    @checked
    def unfuse_qkv_projections(self, unet: bool = True, vae: bool = True) -> None:
        """Nothing: they are not fused."""

    def enable_xformers_memory_efficient_attention(self, *_: Any, **__: Any) -> None:
        """Nothing but a note: the framework's own fused attention is used already."""
        note(FUSED)

    def disable_xformers_memory_efficient_attention(self) -> None:
        """Nothing: it is never on."""

    @checked
    def set_use_memory_efficient_attention_xformers(self, valid: bool, *_: Any, **__: Any) -> None:
        """Nothing but a note where it is switched on."""
        if valid:
            note(FUSED)

    def set_attention_slice(self, slice_size: int | str | None) -> None:
        """diffusers' other name of `enable_attention_slicing`."""
        self.enable_attention_slicing(slice_size)

    model_cpu_offload_seq: ClassVar[str] = "text_encoder->image_encoder->unet->vae"
    """In which order networks are used."""

    @classmethod
    @checked
    def load_config(cls, name_or_path: str | PathLike[str], **access: Any) -> dict[str, Any]:
        """The parsed `model_index.json`; arguments for the Hub as of `from_pretrained`."""
        access = keywords.drop_neutral(f"{cls.__name__}.load_config", access)
        return dict(folders.read_model_index(hub.resolve(name_or_path, weights=False, **access)))

    def to_json_string(self) -> str:
        """`config` as text."""
        return json.dumps(dict(self.config), indent=2, sort_keys=True) + "\n"

    @property
    def hf_device_map(self) -> None:
        """None: a pipeline is on one device."""

    def reset_device_map(self) -> None:
        """Nothing: a pipeline is on one device."""

    @checked
    def prepare_extra_step_kwargs(self, generator: Any, eta: float) -> dict[str, Any]:
        """Arguments for `scheduler.step` of a loop of one's own."""
        checks.number("eta", eta, 0.0, 1.0)
        takes = signature(self.parts.scheduler.step).parameters
        given = {"eta": eta, "generator": generator}
        return {name: value for name, value in given.items() if name in takes}

    @checked
    def get_timesteps(
        self, num_inference_steps: int, strength: float, device: Any = None
    ) -> tuple[Any, int]:
        """The last part of `scheduler.timesteps`, and how many steps it is, for a loop of one's
        own that begins with a picture: `strength` in [0, 1] is that part."""
        scheduler: Any = self.parts.scheduler
        steps = checks.whole("num_inference_steps", num_inference_steps)
        done = min(int(steps * checks.number("strength", strength, 0.0, 1.0)), steps)
        first = (steps - done) * getattr(scheduler, "order", 1)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(first)
        return scheduler.timesteps[first:], done
