"""Pictures that a command begins with, read from files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from underdraw.errors import InputError

IMG2IMG, INPAINT = "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"


def read(path: Path) -> Any:
    """A PIL picture, upright as cameras mean it.

    Raises:
        NotFoundError: there is no such file.
        InputError: it is no picture.
    """
    from underdraw.pictures.files import read_file

    return read_file(path)


def beginning(
    image: Path | None, mask: Path | None, strength: float | None
) -> tuple[str | None, dict[str, Any]]:
    """The pipeline that begins with a picture, and its arguments; None and nothing without one.

    Raises:
        InputError: a mask or a strength without a picture; sizes that differ; a strength that is
            none.
    """
    if image is None:
        for name, value in (("--mask", mask), ("--strength", strength)):
            if value is not None:
                raise InputError(f"{name} needs --image, the picture to begin with")
        return None, {}
    call = {"image": read(image)}
    if strength is not None and not 0 < strength <= 1:
        raise InputError(f"--strength {strength} is out of range; allowed: above 0, to 1")
    if strength is not None:
        call["strength"] = strength
    if mask is None:
        return IMG2IMG, call
    cells = read(mask)
    if cells.size != call["image"].size:
        raise InputError(
            f"--mask is {cells.size[0]} x {cells.size[1]} pixels, --image "
            f"{call['image'].size[0]} x {call['image'].size[1]}; needed is one size"
        )
    width, height = (max(side - side % 8, 8) for side in cells.size)
    call |= {"mask_image": cells, "paste_back": True, "height": height, "width": width}
    return INPAINT, call
