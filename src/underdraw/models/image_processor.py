"""`CLIPImageProcessor`: pictures as CLIP's image tower wants them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from PIL import Image

from underdraw import backends
from underdraw.arguments import checked
from underdraw.errors import InputError, InputTypeError
from underdraw.models.keywords import SAVING, drop_neutral
from underdraw.pictures import modes
from underdraw.schema import Range, Schema, accept, fault, shown, within
from underdraw.shown import of_fields
from underdraw.weights import folders, hub as hubs, save

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
FILE = "preprocessor_config.json"
NORMALISING = ("image_mean", "image_std")


Side = Annotated[int, Range(1, 8192)]
Mean = Annotated[float, Range(-1000, 1000)]
Deviation = Annotated[float, Range(1e-6, 1000)]


@dataclass(frozen=True)
class CLIPImageProcessor(Schema):
    """Shortest side to `shortest_edge` (bicubic), centre crop to `crop`, normalised per channel."""

    owner = "image processor config"

    shortest_edge: Side = 224
    crop: tuple[Side, Side] = (224, 224)
    image_mean: tuple[Mean, Mean, Mean] = MEAN
    image_std: tuple[Deviation, Deviation, Deviation] = STD

    @classmethod
    @checked
    def from_config(cls, raw: Mapping[str, Any]) -> CLIPImageProcessor:
        """From a parsed `preprocessor_config.json`, in its older or newer form."""
        if not isinstance(raw, Mapping):
            raise fault(cls.owner, f"{shown(raw)} is not the content of a {FILE}")
        given = {name: value for name, value in raw.items() if value is not None}
        edge, crop = given.get("size", 224), given.get("crop_size", 224)
        if isinstance(edge, Mapping):
            edge = edge.get("shortest_edge", edge.get("height", 224))
        if isinstance(crop, Mapping):
            crop = crop.get("shortest_edge", crop)
        if isinstance(crop, Mapping):
            crop = crop.get("height"), crop.get("width")
        else:
            crop = crop, crop
        sides = {
            name: accept(cls.owner, told, value, hint)
            for name, told, value, hint in (
                ("shortest_edge", "size", edge, Side),
                ("crop", "crop_size", crop, tuple[Side, Side]),
            )
        }
        return cls(**sides, **{name: given[name] for name in NORMALISING if name in given})

    @classmethod
    @checked
    def from_pretrained(
        cls, name_or_path: str | Path, subfolder: str | None = None, **hub: Any
    ) -> CLIPImageProcessor:
        """From a folder or Hub id that holds `preprocessor_config.json`."""
        hub = drop_neutral("CLIPImageProcessor.from_pretrained", hub)
        path = hubs.resolve(name_or_path, subfolder=subfolder or "", **hub)
        place = path / (subfolder or "") / FILE
        raw = folders.read_json(place)
        with within(place):
            return cls.from_config(raw)

    @checked
    def save_pretrained(self, folder: str | Path, **familiar: Any) -> None:
        """Write `preprocessor_config.json`, which diffusers reads."""
        drop_neutral("CLIPImageProcessor.save_pretrained", familiar, SAVING, ())
        with save.writing_folder(folder) as place:
            save.write_json(place / FILE, self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """The content of `preprocessor_config.json`."""
        return {
            "crop_size": {"height": self.crop[0], "width": self.crop[1]},
            "do_center_crop": True,
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": list(self.image_mean),
            "image_processor_type": "CLIPImageProcessor",
            "image_std": list(self.image_std),
            "resample": 3,
            "rescale_factor": 1 / 255,
            "size": {"shortest_edge": self.shortest_edge},
        }

    def to_json_string(self) -> str:
        """`to_dict` as text."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True)

    def __call__(self, images: Any, return_tensors: str | None = "np") -> ProcessedImages:
        """Prepare a PIL image, a `(height, width, 3)` array (uint8, uint16, or float in [0, 1]), or
        a list.

        Returns `pixel_values (batch, 3, crop height, crop width)`, float32; `return_tensors` is
        "np" or "pt".
        """
        if return_tensors not in (None, "np", "pt"):
            raise InputError(f"return_tensors={return_tensors!r}; allowed: None, 'np', 'pt'")
        several = isinstance(images, Sequence) or getattr(images, "ndim", 3) == 4
        pixels: Any = np.stack([self._one(image) for image in (images if several else [images])])
        if return_tensors == "pt":
            pixels = backends.get("torch").array(pixels)
        return ProcessedImages(pixels)

    def _one(self, image: Any) -> np.ndarray:
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8:
                image = _bytes(image)
            image = Image.fromarray(image)
        if not isinstance(image, Image.Image):
            raise InputTypeError(
                f"images holds {type(image).__name__}; allowed: PIL image, numpy array"
            )
        image = modes.plain("images", image)
        width, height = image.size
        short = min(width, height)
        sides = [int(self.shortest_edge * s / short) for s in (width, height)]
        sides[width > height] = self.shortest_edge
        image = image.resize((sides[0], sides[1]), Image.Resampling.BICUBIC)
        pixels = centre(np.asarray(image, np.float32) / 255.0, *self.crop)
        mean, std = np.array(self.image_mean, np.float32), np.array(self.image_std, np.float32)
        return ((pixels - mean) / std).transpose(2, 0, 1)


@dataclass
class ProcessedImages:
    """`pixel_values (batch, 3, height, width)`; also answers to `["pixel_values"]` and `.to`."""

    pixel_values: Any

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)

    def __repr__(self) -> str:
        return of_fields(self)

    def to(self, *args: Any, **kwargs: Any) -> ProcessedImages:
        """The same on another device or in another dtype (PyTorch tensors)."""
        return ProcessedImages(self.pixel_values.to(*args, **kwargs))


def _bytes(image: np.ndarray) -> np.ndarray:
    """uint8 of numbers in [0, 1], of which rounding may have left a little outside."""
    x = modes.unit(image)
    low, high = float(x.min()), float(x.max())
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # false for NaN, too
        raise InputError(f"images has values from {low:g} to {high:g}; allowed: uint8, or 0 to 1")
    return (x.clip(0, 1) * 255).round().astype(np.uint8)


def centre(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """The middle `(height, width)` of a picture, with black around it where it is smaller."""
    rows, columns = pixels.shape[:2]
    out = np.zeros((max(height, rows), max(width, columns), 3), pixels.dtype)
    top, left = (out.shape[0] - rows) // 2, (out.shape[1] - columns) // 2
    out[top : top + rows, left : left + columns] = pixels
    top, left = (out.shape[0] - height) // 2, (out.shape[1] - width) // 2
    return out[top : top + height, left : left + width]
