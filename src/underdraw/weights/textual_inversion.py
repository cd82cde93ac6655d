"""Files of textual inversions: which words they hold, and the vectors of each."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from underdraw.errors import WeightError
from underdraw.formats.stored import Checkpoint, StoredTensor, check_sizes
from underdraw.weights.files import open_checkpoint
from underdraw.weights.quantised import numbers
from underdraw.weights.save import save_tensors

NAMELESS = ("emb_params", "")
"""What A1111 and kohya call the only tensor of a file; its name is the word."""
PARAMS = "string_to_param."
"""Of A1111's pickles, with any key behind it; `name` beside it is the word."""
LARGE = ("clip_l", "clip_g")
MOST_VECTORS = 1024
"""Of a word; a window has 75."""
MOST_WORDS = 4096


def read_inversions(
    source: str | os.PathLike[str] | Checkpoint,
    width: int,
    name: str | None = None,
    *,
    where: str = "state dict",
) -> dict[str, np.ndarray]:
    """The words of a file and their vectors, float32 `(vectors, width)`.

    Args:
        source: `.safetensors`, or a pickle (`.pt`, `.bin`), which is read without running code.
        width: of the text encoder's token embeddings.
        name: of a word that the file does not name; None: what the file says, else its own name.
        where: what errors call a source that is no file.

    Raises:
        NotFoundError: there is no such file.
        WeightError: it holds something else, or vectors for another text encoder.
    """
    if isinstance(source, Checkpoint):
        checkpoint, stem = source, None
    else:
        where, checkpoint, stem = str(source), open_checkpoint(source), Path(source).stem
    try:
        return _read(checkpoint, width, name, stem)
    except WeightError as error:
        raise WeightError(f"{where}: {error}") from error


def write_inversion(
    vectors: np.ndarray, target: str | os.PathLike[str], word: str, spelling: str = "diffusers"
) -> None:
    """Write the vectors `(count, width)` of a word as `read_inversions` reads them: under the word,
    or, with `spelling` "kohya", as A1111 and sd-scripts look for them, under a name that all words
    have; the name of the file is then the word."""
    name = word if spelling == "diffusers" else NAMELESS[0]
    save_tensors(target, {name: np.asarray(vectors, np.float32)}, {"format": "pt", "name": word})


def _read(
    checkpoint: Checkpoint, width: int, name: str | None, stem: str | None
) -> dict[str, np.ndarray]:
    tensors: Mapping[str, StoredTensor] = checkpoint.tensors
    check_sizes(tensors.values())
    if set(LARGE) & set(tensors):
        raise WeightError(
            "this is a textual inversion of Stable Diffusion XL, for two text encoders"
        )
    params = {key: one for key, one in tensors.items() if key.startswith(PARAMS)}
    if params:  # A1111 keeps optimizer states and lists beside them
        tensors = {"": _only(params)}
    if len(tensors) > MOST_WORDS:
        raise WeightError(
            f"it holds {len(tensors):,} tensors; allowed: at most {MOST_WORDS:,} words"
        )
    said = checkpoint.metadata.get("name")
    said = said if isinstance(said, str) and said.strip() else None
    found: dict[str, np.ndarray] = {}
    for key, tensor in tensors.items():
        word = (name or said or stem) if key in NAMELESS else key
        if word is None or not word.strip():
            raise WeightError("nothing names the word; give token=")
        if name is not None and len(tensors) == 1:
            word = name
        found[word] = _vectors(word, tensor, width)
    if not found:
        raise WeightError("there is no vector inside")
    return found


def _only(params: Mapping[str, StoredTensor]) -> StoredTensor:
    if len(params) > 1:
        listed = ", ".join(key.removeprefix(PARAMS) for key in params)
        raise WeightError(
            f"string_to_param holds several words, which A1111 never writes: {listed}"
        )
    return next(iter(params.values()))


def _vectors(word: str, tensor: StoredTensor, width: int) -> np.ndarray:
    shape = tensor.shape
    if "float" not in tensor.dtype or len(shape) not in (1, 2) or tensor.size == 0:
        raise WeightError(
            f"{word!r:.80} is {tensor.dtype} {shape}; a textual inversion is (vectors, {width}) of "
            "floats"
        )
    if shape[-1] != width:
        known = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 1280: "XL's second tower"}
        told = f", as of {known[shape[-1]]}" if shape[-1] in known else ""
        raise WeightError(
            f"{word!r:.80} has vectors of width {shape[-1]}{told}; the text encoder has {width}"
        )
    rows = numbers(tensor).reshape(-1, width)
    if len(rows) > MOST_VECTORS:
        raise WeightError(f"{word!r:.80} has {len(rows):,} vectors; allowed: {MOST_VECTORS}")
    if not np.isfinite(rows).all():
        raise WeightError(f"{word!r:.80} holds NaN or infinity")
    return rows
