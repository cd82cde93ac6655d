"""Pictures that a command begins with: read from files, and fitted to the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from underdraw.cli import embedded, sizes
from underdraw.cli.again import Request
from underdraw.cli.failures import note
from underdraw.cli.files import read
from underdraw.errors import InputError

IMG2IMG, INPAINT = "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"
SMALLEST = 8
"""Pixels of a side."""


def photo(option: str, path: Path) -> Any:
    """The picture of an option in RGB, large enough for a model.

    Raises:
        NotFoundError, InputError: there is no such file; it is no picture, or too small.
    """
    from underdraw.pictures.reading import as_picture

    picture = as_picture(option, read(path))
    if min(picture.size) < SMALLEST:
        raise InputError(
            f"{str(path)!r} is {sizes.shown(picture.size)} pixels; at least {SMALLEST} are needed"
        )
    return picture


def begin(request: Request, image: Path | None, mask: Path | None, strength: float | None) -> None:
    """Let a request begin with pictures; what is not given stays as its record has it.

    Raises:
        NotFoundError, InputError: a file is no picture; a mask or a strength without a picture;
            sizes that differ; a strength that is none.
    """
    call = request.call
    if strength is not None and not 0 < strength <= 1:
        raise InputError(f"--strength {strength} is out of range; allowed: above 0, to 1")
    if image is not None:
        call["image"] = photo("--image", image)
    if "image" not in call:
        for name, value in (("--mask", mask), ("--strength", strength)):
            if value is not None:
                raise InputError(f"{name} needs --image, the picture to begin with")
        return
    if strength is not None:
        call["strength"] = strength
    if mask is not None:
        call["mask_image"] = read(mask)
        call["paste_back"] = True
    if image is None and mask is None:
        return
    if "mask_image" not in call:
        request.loading["kind"] = IMG2IMG
        for name in ("height", "width"):
            call.pop(name, None)
        return
    request.loading["kind"] = INPAINT
    sides = call["mask_image"].size, call["image"].size
    if sides[0] != sides[1]:
        raise InputError(
            f"--mask is {sizes.shown(sides[0])} pixels, --image {sizes.shown(sides[1])}; "
            "needed is one size"
        )


def fit(pipe: Any, request: Request, wanted: sizes.Size, path: Path | None) -> None:
    """Give a request the size at which the model works on its picture.

    Without a mask the picture is brought to it; with one it is a size of the call alone, and what
    is outside the mask keeps its own pixels.

    Args:
        path: where the picture was read from. None: it comes from a record, so that it stays as it
            is if no size is wanted.
    """
    call, name = request.call, "the picture" if path is None else str(path)
    picture = call.get("image")
    ready = path is None and ("mask_image" not in call or "height" in call)
    if picture is None or (ready and not wanted.given):
        return
    size = None if wanted.given else request.fitted_before()
    if size is None:
        trained, factor = sizes.trained_size(pipe), pipe.vae.config.factor
        size = sizes.fitted_size(picture.size, wanted, trained, factor)
    sizes.tell_fit(name, picture.size, size, wanted)
    if "mask_image" in call:
        call["width"], call["height"] = size
    else:
        call["image"] = sizes.fitted(picture, size)
        if path is None:
            held = request.inputs["image"]["name"]
            request.inputs["image"] = embedded.kept(call["image"], held)


def keep(request: Request, image: Path | None, mask: Path | None) -> None:
    """Let a request tell in its record which pictures it begins with.

    Args:
        image, mask: files that were read; what is None is as the request has it.
    """
    for argument, path in (("image", image), ("mask_image", mask)):
        if argument in request.call and path is not None:
            before = request.inputs.get(argument)
            now = embedded.kept(request.call[argument], path.name)
            if before is not None and before.get("sha256") != now["sha256"]:
                note(f"{path} is not the picture ({before['name']}) of before")
            request.inputs[argument] = now
