"""`VaeImageProcessor` under its constructor: pictures and masks in and out, on PyTorch."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from PIL import Image

from underdraw import backends, checks
from underdraw.arguments import checked, numeric
from underdraw.backends.contract import Array
from underdraw.errors import InputError
from underdraw.pictures.cropping import Crop
from underdraw.pictures.pasting import overlaid
from underdraw.pictures.writing import OUTPUT_TYPES, to_pil
from underdraw.pipelines.diffusers.compatible import ImageProcessor

RESAMPLING = {
    name: Image.Resampling[name.upper()]
    for name in ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
}


LARGEST_SIDE = 2**14


def _real(name: str, value: Any) -> Any:
    """An array of numpy or a backend with real numbers."""
    if isinstance(value, np.ndarray):
        return numeric(name, value)
    framework: Any = backends.of(value, name)
    return checks.shaped(name, value, tuple(getattr(value, "shape", ())), framework)


def _axes(name: str, value: np.ndarray, *allowed: int) -> None:
    if value.ndim not in allowed:
        raise InputError(f"{name} has shape {value.shape}; needed are {allowed} axes")


class VaeImageProcessor(ImageProcessor):
    """Pictures to tensors for an autoencoder, and back.

    Args:
        do_resize: round sizes down to multiples of `vae_scale_factor`.
        resample: how `resize` samples PIL pictures; pipelines' own pictures are always sampled as
            "lanczos".
        do_normalize: to [-1, 1] instead of [0, 1].
        do_binarize: masks: 0 below 0.5, 1 from there on.
        do_convert_grayscale: one channel instead of three.
        vae_latent_channels, reducing_gap, do_convert_rgb: change nothing; what comes in is RGB.
    """

    backend: ClassVar[str] = "torch"
    """Whose tensors these are."""

    @checked
    def __init__(
        self,
        do_resize: bool = True,
        vae_scale_factor: int = 8,
        vae_latent_channels: int = 4,
        resample: str = "lanczos",
        reducing_gap: int | None = None,
        do_normalize: bool = True,
        do_binarize: bool = False,
        do_convert_rgb: bool = False,
        do_convert_grayscale: bool = False,
    ) -> None:
        if do_convert_rgb and do_convert_grayscale:
            raise InputError("do_convert_rgb and do_convert_grayscale are both set; give one")
        factor = checks.whole("vae_scale_factor", vae_scale_factor)
        checks.choice("resample", resample, tuple(RESAMPLING))
        super().__init__(backends.get(self.backend), factor if do_resize else 1, None, do_binarize)
        self.config = {
            "do_resize": do_resize,
            "vae_scale_factor": vae_scale_factor,
            "vae_latent_channels": vae_latent_channels,
            "resample": resample,
            "reducing_gap": reducing_gap,
            "do_normalize": do_normalize,
            "do_binarize": do_binarize,
            "do_convert_rgb": do_convert_rgb,
            "do_convert_grayscale": do_convert_grayscale,
        }

    def preprocess(
        self,
        image: Any,
        height: int | None = None,
        width: int | None = None,
        resize_mode: str = "default",
        crops_coords: tuple[int, int, int, int] | None = None,
    ) -> Array:
        """Float32 `(images, 3, height, width)` in [-1, 1] (in [0, 1] without `do_normalize`), or
        masks `(masks, 1, height, width)`. Sizes are by default those of the first picture.

        Raises:
            InputError: another `resize_mode` than "default", which brings pictures to the size.
            InputError, InputTypeError: it is no picture (`pictures.reading`).
        """
        checks.choice("resize_mode", resize_mode, ("default",))
        if not self.config["do_resize"]:
            height = width = None
        read = super().preprocess(image, height, width, crops_coords)
        if self.mask:
            return read
        if self.config["do_convert_grayscale"]:
            weights = self.framework.array([0.299, 0.587, 0.114]).reshape(1, 3, 1, 1)
            read = (read * weights).sum(1)[:, None]
        return read if self.config["do_normalize"] else self.denormalize(read)

    @checked
    def postprocess(
        self,
        image: Array,
        output_type: str = "pil",
        do_denormalize: list[bool] | None = None,
    ) -> Any:
        """Images `(images, channels, height, width)` near [-1, 1] as "pil", "np", "pt", or "latent"
        (as they are).

        Args:
            do_denormalize: per image, whether it is in [-1, 1]; others are in [0, 1]. By default
                `do_normalize`.
        """
        checks.choice("output_type", output_type, OUTPUT_TYPES)
        checks.shaped("image", image, (None, None, None, None), self.framework)
        if output_type == "pil" and image.shape[1] not in (1, 3, 4):
            raise InputError(f"image has {image.shape[1]} channels; allowed for pictures: 1, 3, 4")
        given = [self.config["do_normalize"]] * len(image)
        chosen = given if do_denormalize is None else do_denormalize
        for one in checks.sequence("do_denormalize", chosen, "switches"):
            checks.flag("do_denormalize", one)
        if len(chosen) != len(image):
            raise InputError(
                f"do_denormalize has {len(chosen)} entries; there are {len(image)} images"
            )
        if output_type != "latent" and not all(chosen):
            pairs = zip(image, chosen, strict=True)
            rows = [(one if flag else self.normalize(one))[None] for one, flag in pairs]
            image = self.framework.operations.concat(rows, 0)
        return super().postprocess(image, output_type)

    @checked
    def resize(
        self, image: Any, height: int, width: int, resize_mode: str = "default"
    ) -> Image.Image:
        """A PIL picture of that size."""
        checks.choice("resize_mode", resize_mode, ("default",))
        checks.picture("image", image)
        for name, side in (("height", height), ("width", width)):
            checks.whole(name, side, 1, LARGEST_SIDE)
        return image.resize((width, height), RESAMPLING[self.config["resample"]])

    @staticmethod
    @checked
    def binarize(image: Any) -> Any:
        """0 below 0.5 and 1 from there on, of an array; a PIL picture in black and white."""
        if not isinstance(image, Image.Image):
            return (_real("image", image) >= 0.5) * 1.0
        return image.convert("L").point([255 * (value >= 128) for value in range(256)])

    @staticmethod
    @checked
    def normalize(images: Any) -> Any:
        """[0, 1] to [-1, 1]."""
        return 2.0 * _real("images", images) - 1.0

    @staticmethod
    @checked
    def denormalize(images: Any) -> Any:
        """[-1, 1] to [0, 1], cut."""
        return (_real("images", images) * 0.5 + 0.5).clip(0, 1)

    @staticmethod
    @checked
    def convert_to_rgb(image: Image.Image) -> Image.Image:
        """The picture in RGB."""
        return image.convert("RGB")

    @staticmethod
    @checked
    def convert_to_grayscale(image: Image.Image) -> Image.Image:
        """The picture in grey."""
        return image.convert("L")

    @staticmethod
    @checked
    def numpy_to_pil(images: np.ndarray) -> list[Image.Image]:
        """PIL pictures of `(images, height, width, channels)`, or one of them, in [0, 1]."""
        _axes("images", images, 3, 4)
        return to_pil(images[None] if images.ndim == 3 else images)

    @staticmethod
    @checked
    def pil_to_numpy(images: Image.Image | list[Image.Image]) -> np.ndarray:
        """Float32 `(images, height, width, channels)` in [0, 1] of PIL pictures of one size."""
        listed = images if isinstance(images, list) else [images]
        for one in checks.sequence("images", listed, "pictures"):
            checks.picture("images", one)
        if not listed or len({(one.mode, *one.size) for one in listed}) > 1:
            raise InputError("images are none, or differ in size or mode")
        pixels = np.stack([np.asarray(one, np.float32) / np.float32(255) for one in listed])
        return pixels if pixels.ndim == 4 else pixels[..., None]

    @staticmethod
    @checked
    def numpy_to_pt(images: np.ndarray) -> Array:
        """A tensor `(images, channels, height, width)` of an array with channels last."""
        _axes("images", images, 3, 4)
        whole = images if images.ndim == 4 else images[..., None]
        return backends.get("torch").array(np.ascontiguousarray(whole.transpose(0, 3, 1, 2)))

    @staticmethod
    @checked
    def pt_to_numpy(images: Array) -> np.ndarray:
        """An array with channels last of a tensor `(images, channels, height, width)`."""
        checks.shaped("images", images, (None, None, None, None), backends.get("torch"))
        plain = checks.readable("images", images, backends.get("torch").to_numpy)
        return plain.transpose(0, 2, 3, 1)

    @staticmethod
    @checked
    def apply_overlay(
        mask: Image.Image,
        init_image: Image.Image,
        image: Image.Image,
        crop_coords: tuple[int, int, int, int] | None = None,
    ) -> Image.Image:
        """`image` where the PIL mask is set, else `init_image`, in the size of the latter; with
        `crop_coords` `image` is what was made of that part of it."""
        if crop_coords is not None:
            corners = checks.numbers("crop_coords", crop_coords)
            if len(corners) != 4 or not all(float(x).is_integer() for x in corners):
                raise InputError(
                    f"crop_coords={checks.shown(crop_coords)}; wanted are 4 whole numbers: left, "
                    "top, right, bottom"
                )
            left, top, right, bottom = (int(x) for x in corners)
            if not (
                0 <= left < right <= init_image.width and 0 <= top < bottom <= init_image.height
            ):
                raise InputError(
                    f"crop_coords={checks.shown(crop_coords)} is no part of a picture of "
                    f"{init_image.width} x {init_image.height} pixels"
                )
            return overlaid(init_image, image, mask, Crop(left, top, right, bottom))
        if not image.size == init_image.size == mask.size:
            raise InputError(
                f"image is {image.size}, init_image {init_image.size}, mask {mask.size}; one size "
                "is needed without crop_coords"
            )
        return Image.composite(image.convert("RGB"), init_image.convert("RGB"), mask.convert("L"))


class IPAdapterMaskProcessor(VaeImageProcessor):
    """Masks for `cross_attention_kwargs={"ip_adapter_masks": [...]}`: 0 or 1, in grey. Arguments
    are those of `VaeImageProcessor`."""

    @checked
    def __init__(
        self,
        do_resize: bool = True,
        vae_scale_factor: int = 8,
        resample: str = "lanczos",
        do_normalize: bool = False,
        do_binarize: bool = True,
        do_convert_grayscale: bool = True,
    ) -> None:
        super().__init__(
            do_resize=do_resize,
            vae_scale_factor=vae_scale_factor,
            resample=resample,
            do_normalize=do_normalize,
            do_binarize=do_binarize,
            do_convert_grayscale=do_convert_grayscale,
        )
