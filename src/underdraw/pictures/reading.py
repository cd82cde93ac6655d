"""Pictures and masks that callers bring, as the autoencoder and the loop want them."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from underdraw import backends, checks
from underdraw.backends.contract import Array
from underdraw.errors import InputError, InputTypeError
from underdraw.pictures import modes
from underdraw.pictures.cropping import Crop, filled
from underdraw.pictures.writing import to_bytes


def read_pictures(
    name: str,
    image: Any,
    framework: Any,
    height: int | None = None,
    width: int | None = None,
    *,
    factor: int = 8,
    crop: Crop | None = None,
    latent_channels: int | None = None,
) -> Array:
    """Pictures as `(images, 3, height, width)` in [-1, 1], float32.

    Args:
        name: of the argument, for errors.
        image: a PIL picture of any mode (`modes.plain`); an array of numpy `(height, width, 3)` or
            `(images, height, width, 3)`, or of the backend `(3, height, width)` or `(images, 3,
            height, width)`, in [0, 1], or uint8 or uint16, or with negative numbers if it is in
            [-1, 1]; or a list of one kind.
        height, width: to which PIL pictures are resized (Lanczos) and arrays by taking the nearest
            pixel; by default the first picture's, rounded down to multiples of `factor`.
        crop: of PIL pictures, first; they are then fitted into the size, and what stays empty
            repeats their edges.
        latent_channels: an array of the backend with so many channels is latents and stays as it
            is.

    Raises:
        InputTypeError: it is no picture, or a list of different kinds.
        InputError: a shape that does not fit, no pixels or more than `modes.MOST_PIXELS`, numbers
            outside [-1, 1], NaN.
    """
    parts = _listed(name, image)
    if all(isinstance(part, Image.Image) for part in parts):
        parts = [modes.plain(name, part) for part in parts]
        wide, high = parts[0].size if crop is None else (0, 0)
        size = (width or wide - wide % factor, height or high - high % factor)
        if 0 in size:
            raise InputError(f"{name} is {wide} x {high} pixels; at least {factor} are needed")
        if height is None and len({part.size for part in parts}) > 1:
            sizes = sorted({part.size for part in parts})
            raise InputError(f"{name} holds sizes {sizes}; allowed: one size")
        pixels = np.empty((len(parts), size[1], size[0], 3), np.float32)
        for row, part in zip(pixels, parts, strict=True):  # in place: large pictures fill memory
            np.divide(_fitted(part, size, crop), 255, out=row, dtype=np.float32)
        pixels *= np.float32(2)
        pixels -= np.float32(1)
        return framework.array(pixels.transpose(0, 3, 1, 2))
    shape = tuple(parts[0].shape) if framework.is_array(parts[0]) else ()
    if latent_channels is not None and shape[-3:-2] == (latent_channels,):
        return _latents(name, parts, framework)
    x = _stacked(name, parts, framework, colour=True)
    if x.shape[1] != 3:
        raise InputError(f"{name} has {x.shape[1]} channels; allowed: 3")
    lowest, highest = float(x.min()), float(x.max())
    if not (lowest >= -1 and highest <= 1):  # false for NaN, too
        raise InputError(
            f"{name} has values from {lowest:g} to {highest:g}; allowed: 0 to 1 (or -1 to 1)"
        )
    high, wide = x.shape[2:]
    x = nearest(x, height or high - high % factor, width or wide - wide % factor)
    return framework.array(x if lowest < 0 else x * np.float32(2) - 1)


def size_of(image: Any, factor: int, latent_channels: int) -> tuple[int, int] | None:
    """Height and width of the first of some pictures, rounded down to multiples of a factor; of
    latents those of the picture they stand for. None for what is no picture."""
    first: Any = image[0] if isinstance(image, list | tuple) and image else image
    if isinstance(first, Image.Image):
        height, width = modes.upright_size(first)[::-1]
    elif len(shape := tuple(getattr(first, "shape", ()))) < 3:
        return None
    elif isinstance(first, np.ndarray):
        height, width = first.shape[-3:-1]
    else:
        times = factor if shape[-3] == latent_channels else 1
        height, width = shape[-2] * times, shape[-1] * times
    return height - height % factor, width - width % factor


def read_masks(
    name: str,
    mask: Any,
    framework: Any,
    height: int,
    width: int,
    crop: Crop | None = None,
) -> Array:
    """Masks as `(masks, 1, height, width)` of 0 and 1, float32: 1 where a picture is to change.

    `mask` is a PIL picture (its luminance, `modes.as_mask`), an array `(height, width)`, `(masks,
    height, width)`, `(masks, 1, height, width)` or, of numpy, `(masks, height, width, 1)`, in
    [0, 1], uint8 or uint16, or a list of one kind; from 0.5 on a place is to change. Sizes and
    crops are as in `read_pictures`.

    Raises:
        InputTypeError, InputError: likewise.
    """
    parts = _listed(name, mask)
    if all(isinstance(part, Image.Image) for part in parts):
        ready = [modes.as_mask(name, part) for part in parts]
        grey = [_fitted(part, (width, height), crop).convert("L") for part in ready]
        pixels = np.stack([np.asarray(one, np.float32) / np.float32(255) for one in grey])
        return framework.array((pixels >= 0.5).astype(np.float32)[:, None])
    x = _stacked(name, parts, framework, colour=False)
    lowest, highest = float(x.min()), float(x.max())
    if not (lowest >= 0 and highest <= 1):  # false for NaN, too
        raise InputError(f"{name} has values from {lowest:g} to {highest:g}; allowed: 0 to 1")
    return framework.array((nearest(x, height, width) >= 0.5).astype(np.float32))


def read_soft_masks(name: str, mask: Any, framework: Any, height: int, width: int) -> Array:
    """Masks of which each place says how much it counts, `(masks, 1, height, width)` in [0, 1],
    float32: PIL pictures as `read_masks` has them, 0 or 1 and of this size, arrays as they are, in
    their own.

    Raises:
        InputTypeError, InputError: as of `read_masks`.
    """
    parts = _listed(name, mask)
    if all(isinstance(part, Image.Image) for part in parts):
        return read_masks(name, mask, framework, height, width)
    x = _stacked(name, parts, framework, colour=False)
    lowest, highest = float(x.min()), float(x.max())
    if not (lowest >= 0 and highest <= 1):  # false for NaN, too
        raise InputError(f"{name} has values from {lowest:g} to {highest:g}; allowed: 0 to 1")
    return framework.array(x.astype(np.float32))


def read_mask(nn: Any, mask: Any, images: int, size: tuple[int, int], factor: int) -> Array:
    """A caller's masks as float32 `(images, 1, height, width)` of 0 and 1, 1 where to edit.

    Args:
        mask: as `read_masks` takes it, one, or one per image. It has the size of
            the latents, or is brought to that of the picture: of a latent pixel at least half must
            then be set.
        size: height and width of the latents.
        factor: pixels to one latent, along each side.

    Raises:
        InputError: another number, a shape that is no mask, values outside [0, 1].
        InputTypeError: something else than masks.
    """
    framework = backends.get(nn.name)
    first: Any = mask[0] if isinstance(mask, list | tuple) and mask else mask
    picture = isinstance(first, Image.Image)
    found = modes.upright_size(first)[::-1] if picture else getattr(first, "shape", ())[-2:]
    if tuple(found) == size:
        read = read_masks("mask_image", mask, framework, *size)
    else:
        large = read_masks("mask_image", mask, framework, size[0] * factor, size[1] * factor)
        read = shrunk(nn, large, factor)
    if read.shape[0] not in (1, images):
        raise InputError(f"mask_image holds {read.shape[0]} masks; allowed: 1 or {images}")
    return nn.expand(read, (images, *read.shape[1:]))


def nearest(x: np.ndarray, height: int, width: int) -> np.ndarray:
    """`x (images, channels, h, w)` at another size: of each place the nearest above and left."""
    if tuple(x.shape[2:]) == (height, width):
        return x
    rows = np.arange(height) * x.shape[2] // height
    columns = np.arange(width) * x.shape[3] // width
    return x[:, :, rows][:, :, :, columns]


def shrunk(nn: Any, mask: Array, factor: int) -> Array:
    """A mask `(masks, 1, height, width)` of pixels as one of latent pixels, of 0 and 1: 1 where at
    least half of a latent's pixels are."""
    masks, _, height, width = mask.shape
    cells = mask.reshape(masks, height // factor, factor, width // factor, factor)
    return nn.cast(nn.mean(cells, (2, 4), False)[:, None] >= 0.5, mask)


def _fitted(picture: Any, size: tuple[int, int], crop: Crop | None) -> Any:
    if crop is None:
        return picture.resize(size, Image.Resampling.LANCZOS)
    return filled(picture.crop(crop), *size)


def _listed(name: str, value: Any) -> list[Any]:
    parts = list(value) if isinstance(value, list | tuple) else [value]
    if not parts:
        raise InputError(f"{name} is an empty list; give at least one")
    if len({isinstance(part, Image.Image) for part in parts}) > 1:
        raise InputTypeError(f"{name} mixes PIL pictures and arrays; allowed: one kind")
    for part in parts:
        if isinstance(part, Image.Image) and 0 in part.size:
            raise InputError(f"{name} is {part.size[0]} x {part.size[1]} pixels, so empty")
    return parts


def _latents(name: str, parts: list[Any], framework: Any) -> Array:
    rows = [part if part.ndim == 4 else part[None] for part in parts]
    for row in rows:
        if tuple(row.shape[1:]) != tuple(rows[0].shape[1:]) or 0 in row.shape:
            raise InputError(f"{name} holds latents of shape {tuple(row.shape)}")
        if not framework.is_floating(row) or not checks.finite(name, row, framework):
            raise InputError(f"{name} holds latents which are no numbers, NaN or infinite")
    return rows[0] if len(rows) == 1 else framework.operations.concat(rows, 0)


def _stacked(name: str, parts: list[Any], framework: Any, colour: bool) -> np.ndarray:
    """Arrays as one of float32 `(images, channels, height, width)`."""
    numpy = isinstance(parts[0], np.ndarray)
    for part in parts:
        if not (isinstance(part, np.ndarray) if numpy else framework.is_array(part)):
            kind = framework.operations.name
            raise InputTypeError(
                f"{name} holds a {type(part).__name__}; allowed: PIL pictures, numpy arrays, "
                f"{kind} arrays"
            )
        modes.check_pixels(name, tuple(part.shape))
    made = []
    for part in parts:
        plain = part if numpy else checks.readable(name, part, framework.to_numpy)
        made.append(_four_axes(name, plain, numpy, colour))
    if len({one.shape[1:] for one in made}) > 1:
        raise InputError(f"{name} holds shapes {sorted({one.shape for one in made})}; allowed: one")
    return np.concatenate(made)


def _four_axes(name: str, x: np.ndarray, numpy: bool, colour: bool) -> np.ndarray:
    shape, last = x.shape, numpy and colour
    if colour:
        x = x[None] if x.ndim == 3 else x
        allowed = "(height, width, 3), (images, height, width, 3)"
        allowed = allowed if numpy else "(3, height, width), (images, 3, height, width)"
    else:
        allowed = "(height, width), (masks, height, width), (masks, 1, height, width)"
        if numpy and x.ndim == 3 and x.shape[2] in (3, 4) and x.shape[1] != x.shape[2]:
            raise InputError(f"{name} has shape {shape}, so it has colours; allowed: {allowed}")
        if x.ndim == 3 and x.shape[2] == 1 != x.shape[1]:
            x = x[None]
        last = x.ndim == 4 and x.shape[3] == 1 != x.shape[1]
        x = x if x.ndim == 4 else x[:, None] if x.ndim == 3 else x[None, None]
    x = x.transpose(0, 3, 1, 2) if last and x.ndim == 4 else x
    if x.ndim != 4 or 0 in x.shape or (not colour and x.shape[1] != 1):
        raise InputError(f"{name} has shape {shape}; allowed: {allowed}")
    if x.dtype.kind not in "biuf":
        raise InputTypeError(f"{name} has dtype {x.dtype}; allowed: numbers")
    return modes.unit(x)


def on_the_host(array: Any) -> np.ndarray:
    """An array of a framework, on any device, in any dtype."""
    if hasattr(array, "detach"):
        array = array.detach().cpu()
        array = array.float() if array.is_floating_point() else array
    return np.asarray(array)


def as_picture(name: str, image: Any) -> Any:
    """A PIL image in RGB of a PIL image of any mode (`modes.plain`) or an array, uint8, uint16 or
    in [0, 1]: one of numpy is `(height, width, 3)`, one of a framework `(3, height, width)`, as
    everywhere.

    Raises:
        InputTypeError: it is no picture.
        InputError: it is empty, too large, has another shape, or values outside its range.
    """
    if isinstance(image, Image.Image):
        return modes.plain(name, image)
    first = not isinstance(image, np.ndarray) and hasattr(image, "__array__")
    modes.check_pixels(name, tuple(getattr(image, "shape", ())))
    if first:
        image = checks.readable(name, image, on_the_host)
    if not isinstance(image, np.ndarray) or image.dtype.kind not in "uf":
        raise InputTypeError(
            f"{name}={type(image).__name__}; allowed: a PIL image, or an array of it"
        )
    if image.ndim != 3 or image.shape[0 if first else 2] != 3 or image.size == 0:
        needed = "(3, height, width)" if first else "(height, width, 3)"
        raise InputError(f"{name} has shape {image.shape}; needed is {needed}")
    image = image.transpose(1, 2, 0) if first else image
    if image.dtype != np.uint8:
        image = modes.unit(image) if image.dtype == np.uint16 else image
        if not (image.min() >= 0 and image.max() <= 1):  # false for NaN, too
            raise InputError(f"{name} has values outside [0, 1], where it is not uint8")
        image = to_bytes(image)
    return Image.fromarray(np.ascontiguousarray(image))


def check_alike(image: Any, mask: Any, name: str = "mask_image") -> None:
    """That masks can lie over pictures which their files turn (EXIF orientation): they are turned
    likewise, or have the size of the turned picture, which is not also that of the file.

    Raises:
        InputError: they might be drawn for the picture as it lies in the file.
    """
    if mask is None:
        return
    pictures, masks = (list(v) if isinstance(v, list | tuple) else [v] for v in (image, mask))
    for i, picture in enumerate(pictures):
        turned, other = modes.orientation(picture), masks[i % len(masks)] if masks else None
        if turned == 1 or modes.orientation(other) == turned:
            continue
        seen = modes.upright_size(picture)
        size = getattr(other, "shape", ())[-2:][::-1]
        if isinstance(other, Image.Image):
            size = modes.upright_size(other)
        if tuple(size) != seen or seen == picture.size:
            raise InputError(
                f"the picture's EXIF orientation {turned} turns it, and {name} may not fit it then:"
                " turn the picture first (PIL.ImageOps.exif_transpose), and draw the mask for that"
            )
