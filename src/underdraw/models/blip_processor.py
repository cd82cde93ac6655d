"""`BlipImageProcessor`: pictures as the image tower of BLIP-2 wants them, and images handed out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from PIL import Image

from underdraw import backends, checks
from underdraw.arguments import checked
from underdraw.errors import InputError
from underdraw.models.image_processor import (
    FILE,
    MEAN,
    STD,
    Deviation,
    Mean,
    ProcessedImages,
    Side,
    centre,
)
from underdraw.models.keywords import SAVING, drop_neutral
from underdraw.pictures.reading import as_picture
from underdraw.pictures.writing import OUTPUT_TYPES, to_output
from underdraw.schema import OneOf, Range, Schema, fault, read, shown, within
from underdraw.weights import folders, hub as hubs, save

Three = tuple[Mean, Mean, Mean]
Spread = tuple[Deviation, Deviation, Deviation]


@dataclass(frozen=True)
class Sides(Schema):
    """Of a picture, in pixels."""

    owner = "size"

    height: Side = 224
    width: Side = 224


@dataclass(frozen=True)
class BlipImageProcessor(Schema):
    """Resizes to `size` (whatever the proportions), scales to [0, 1], normalises per channel."""

    owner = "BLIP image processor config"

    do_resize: bool = True
    size: Sides = field(default_factory=Sides)
    resample: Annotated[int, OneOf(0, 1, 2, 3, 4, 5)] = 3
    do_rescale: bool = True
    rescale_factor: Annotated[float, Range(1e-6, 1e6)] = 1 / 255
    do_normalize: bool = True
    image_mean: Three = MEAN
    image_std: Spread = STD
    do_convert_rgb: bool = True
    do_center_crop: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.size, int):
            object.__setattr__(self, "size", Sides(self.size, self.size))
        super().__post_init__()

    def check(self) -> None:
        check_statistics(self.image_mean, self.image_std)

    @classmethod
    @checked
    def from_config(cls, raw: Mapping[str, Any]) -> BlipImageProcessor:
        """From a parsed `preprocessor_config.json`; what no value is given for is the default."""
        if not isinstance(raw, Mapping):
            raise fault(cls.owner, f"{shown(raw)} is not the content of a {FILE}")
        return read(cls, {name: value for name, value in raw.items() if value is not None})

    @classmethod
    @checked
    def from_pretrained(
        cls, name_or_path: str | Path, subfolder: str | None = None, **hub: Any
    ) -> BlipImageProcessor:
        """From a folder or Hub id that holds `preprocessor_config.json`."""
        hub = drop_neutral("BlipImageProcessor.from_pretrained", hub)
        path = hubs.resolve(name_or_path, subfolder=subfolder or "", **hub)
        place = path / (subfolder or "") / FILE
        with within(place):
            return cls.from_config(folders.read_json(place))

    @checked
    def save_pretrained(self, folder: str | Path, **familiar: Any) -> None:
        """Write `preprocessor_config.json`, which diffusers reads."""
        drop_neutral("BlipImageProcessor.save_pretrained", familiar, SAVING, ())
        with save.writing_folder(folder) as place:
            save.write_json(place / FILE, self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """The content of `preprocessor_config.json`."""
        said = {name: getattr(self, name) for name in type(self).__dataclass_fields__}
        return {
            **said,
            "image_mean": list(self.image_mean),
            "image_std": list(self.image_std),
            "image_processor_type": "BlipImageProcessor",
            "size": {"height": self.size.height, "width": self.size.width},
        }

    def preprocess(
        self,
        images: Any,
        do_resize: bool | None = None,
        size: Mapping[str, int] | None = None,
        resample: int | None = None,
        do_rescale: bool | None = None,
        do_center_crop: bool | None = None,
        rescale_factor: float | None = None,
        do_normalize: bool | None = None,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
        return_tensors: str | None = "np",
    ) -> ProcessedImages:
        """`pixel_values (pictures, 3, height, width)`, float32.

        Args:
            images: a PIL picture, an array of numpy `(height, width, 3)` or of a framework
                `(3, height, width)`, uint8 or in [0, 1], or a list of them.
            return_tensors: "np" or "pt".
            size, image_mean, ...: instead of those of this processor.

        Raises:
            InputError, InputTypeError: an argument is something else.
        """
        checks.choice("return_tensors", return_tensors, ("np", "pt"))
        told = {
            "do_resize": do_resize,
            "size": size,
            "resample": resample,
            "do_rescale": do_rescale,
            "do_center_crop": do_center_crop,
            "rescale_factor": rescale_factor,
            "do_normalize": do_normalize,
            "image_mean": image_mean,
            "image_std": image_std,
        }
        for name in ("do_resize", "do_rescale", "do_center_crop", "do_normalize"):
            if told[name] is not None:
                checks.flag(name, told[name])
        if resample is not None:
            checks.whole("resample", resample, 0, 5)
        if rescale_factor is not None:
            checks.number("rescale_factor", rescale_factor, 1e-6, 1e6)
        changes: Any = {name: value for name, value in told.items() if value is not None}
        chosen = replace(self, **changes) if changes else self
        parts = list(images) if isinstance(images, list | tuple) else [images]
        if not parts:
            raise InputError("images is an empty list; give at least one")
        pixels: Any = [chosen._one(as_picture("images", part)) for part in parts]
        if len(shapes := {one.shape for one in pixels}) > 1:
            raise InputError(f"images have sizes {sorted(shapes)}; without do_resize: one size")
        stacked: Any = np.stack(pixels)
        if return_tensors == "pt":
            stacked = backends.get("torch").array(stacked)
        return ProcessedImages(stacked)

    __call__ = preprocess

    def _one(self, picture: Any) -> np.ndarray:
        """`(3, height, width)` of a PIL picture in RGB."""
        wanted = (self.size.width, self.size.height)
        if self.do_resize:
            picture = picture.resize(wanted, Image.Resampling(self.resample))
        x = np.asarray(picture, np.float32)
        if self.do_rescale:
            x = x * np.float32(self.rescale_factor)
        if self.do_normalize:
            mean, std = (np.array(v, np.float32) for v in (self.image_mean, self.image_std))
            x = (x - mean) / std
        if self.do_center_crop and x.shape[:2] != wanted[::-1]:
            x = centre(x, *wanted[::-1])
        return x.transpose(2, 0, 1)

    def postprocess(self, sample: Any, output_type: str = "pil") -> Any:
        """Decoded images `(images, 3, height, width)` near [-1, 1] as "pil", "np" or "pt"."""
        checks.choice("output_type", output_type, OUTPUT_TYPES)
        framework = backends.of(sample)
        checks.array("sample", sample, (None, 3, None, None), framework)
        return sample if output_type == "latent" else to_output(sample, output_type, framework)


def check_statistics(mean: Any, std: Any, prefix: str = "image_") -> None:
    """Raise an InputError where the two that CLIP's pictures are normalised by have changed places:
    nothing else would tell."""
    if np.allclose(mean, STD, atol=1e-4) and np.allclose(std, MEAN, atol=1e-4):
        raise InputError(
            f"{prefix}mean={shown(tuple(mean))} and {prefix}std={shown(tuple(std))} have changed "
            f"places; those of CLIP are mean={MEAN} and std={STD}"
        )
