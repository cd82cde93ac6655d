"""A LoRA extracted from a fine-tuned checkpoint: of each layer's change the part that matters most.

The best approximation of a change `D` (out, in) by a matrix of rank `r` keeps its `r` largest
singular values (Eckart and Young 1936): `D ~ U (U' D)`, where the columns of `U` are the first
singular vectors on the side of the outputs. Convolutions are taken as matrices (out, in * kernel *
kernel), which makes `down` a convolution with the kernel and `up` one of 1 x 1.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from underdraw import checks
from underdraw.checkpoints.loras import PARTS, places_of
from underdraw.checkpoints.rewriting import (
    FILE_SUFFIX,
    Tell,
    bar_of,
    checked_target,
    matched,
    sound,
)
from underdraw.checkpoints.sources import open_source
from underdraw.errors import InputError, WeightError
from underdraw.formats.stored import StoredTensor, stored
from underdraw.weights.dtypes import cast, numbers_of
from underdraw.weights.save import save_tensors

LOG = logging.getLogger(__name__)
LAYERS = ("linear", "conv2d")
SPELLINGS = ("diffusers", "kohya")
"""How the file names layers: as diffusers and PEFT do, or as sd-scripts and most web interfaces."""
NOISE = 1e-7
"""Of the size of a weight: changes below it are rounding, not training."""


@dataclass(frozen=True)
class Extracted:
    """What became of a fine-tune."""

    layers: int
    """How many layers the LoRA changes."""
    ranks: tuple[int, ...]
    """Of each of them."""
    error: float
    """How much of the change is missing: the root of the sum of squares that is left, by that of
    all layers."""
    left_out: int
    """Tensors that changed, too, and are no layers that a LoRA fits (norms, biases, embeddings)."""


def extract_lora(
    tuned: Any,
    base: Any,
    target: Any,
    *,
    rank: int | None = None,
    error: float | None = None,
    components: Any = PARTS,
    convolutions: bool = True,
    spelling: str = "diffusers",
    dtype: str | None = "float16",
    variant: str | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
    tell: Tell = LOG.info,
) -> Extracted:
    """Write as a LoRA what a fine-tune learned beyond its base, layer by layer.

    Args:
        tuned, base: folders, single files or Hub ids.
        target: a `.safetensors` file. It appears whole or not at all.
        rank: the most that any layer gets; 32 if neither `rank` nor `error` is given.
        error: how much of each layer's change may be missing, in (0, 1), by the root of the sum of
            squares: each layer gets the least rank that keeps to it, or `rank`.
        components: "unet", "text_encoder", or both.
        convolutions: whether those larger than 1 x 1 get a part, too, which some programs do not
            read.
        spelling: of names: "diffusers", or "kohya" (sd-scripts, most web interfaces).
        dtype: "float16", "bfloat16" or "float32".
        variant: of the weight files of folders, such as "fp16".
        overwrite: whether a file at `target` may be replaced.
        progress: whether to show a bar; None: on terminals.
        tell: takes what is worth knowing; the log if not given.

    Raises:
        InputError, InputTypeError: an argument cannot work, or nothing has changed.
        NotFoundError: there is no such source.
        WeightError: a source is damaged, the two differ in more than numbers, or numbers are NaN or
            infinite.
    """
    place = checked_target(target, dtype, overwrite)
    if place.suffix.lower() != FILE_SUFFIX:
        raise InputError(f"target={checks.shown(target)}; allowed: a file ending in {FILE_SUFFIX}")
    if rank is not None:
        checks.whole("rank", rank)
    if error is not None and not 0 < checks.number("error", error) < 1:
        raise InputError(f"error={checks.shown(error)}; allowed: above 0 and below 1")
    most = 32 if rank is None and error is None else rank
    chosen = checks.sequence("components", components, "names of networks")
    for component in chosen:
        checks.choice("components", component, PARTS)
    chosen = list(dict.fromkeys(chosen))
    checks.choice("spelling", spelling, SPELLINGS)
    checks.flag("convolutions", convolutions)
    opened = [
        sound(open_source(checks.path(n, v), variant))
        for n, v in (("tuned", tuned), ("base", base))
    ]
    found = places_of(opened[0])
    after, before = map(matched, opened)
    if not any(name in after and name in before for name in chosen):
        raise InputError(
            f"components={checks.shown(components)}: {tuned} has {', '.join(after)}, and {base} "
            f"{', '.join(before)}; needed is one that both have"
        )
    named: dict[str, StoredTensor] = {}
    ranks, missing, whole, left_out = [], 0.0, 0.0, 0
    with bar_of(_bytes(after, chosen), progress) as bar:
        for component, key, one, other in _pairs(chosen, after, before, opened):
            change = _change(f"{component}.{key}", one, other)
            bar.update(one.nbytes)
            if change is None:
                continue
            path = key.removesuffix(".weight")
            leaf = found.layouts[component].leaves.get(path)
            fits = leaf is not None and leaf.kind in LAYERS and key != path
            if not fits or (not convolutions and prod(change.shape[2:]) > 1):
                left_out += 1
                continue
            down, up, lost = decomposed(change, most, error)
            ranks.append(len(down))
            missing, whole = (
                missing + lost,
                whole + float(np.square(change, dtype=np.float64).sum()),
            )
            named |= _spelt(component, path, down, up, spelling)
    if not named:
        raise InputError(f"{tuned} has the layers of {base}: there is nothing to extract")
    if left_out:
        tell(
            f"{left_out} tensors that changed are no layers of the LoRA (norms, biases, embeddings"
            f"{'' if convolutions else ', convolutions'})"
        )
    save_tensors(place, {k: cast(k, t, dtype) if dtype else t for k, t in named.items()})
    return Extracted(len(ranks), tuple(ranks), (missing / whole) ** 0.5, left_out)


def decomposed(
    change: np.ndarray, rank: int | None, error: float | None
) -> tuple[np.ndarray, np.ndarray, float]:
    """Of a change `(out, in, ...)` a `down` (rank, in, ...) and an `up` (out, rank, 1, ...) of the
    same size, and the sum of squares that their product lacks.

    Singular vectors are eigenvectors of the smaller of `D D'` and `D' D`, in float64: what is lost
    by squaring lies below the precision of the weights.
    """
    matrix = change.reshape(len(change), -1).astype(np.float64)
    wide = matrix.shape[0] <= matrix.shape[1]
    squares, vectors = np.linalg.eigh(matrix @ matrix.T if wide else matrix.T @ matrix)
    squares, vectors = np.maximum(squares[::-1], 0), vectors[:, ::-1]
    left = np.append(np.cumsum(squares[::-1])[::-1], 0)  # behind each rank
    count = len(squares) if rank is None else min(rank, len(squares))
    if error is not None:
        enough = np.flatnonzero(left <= error**2 * left[0])
        count = min(count, int(enough[0]))
    count = max(count, 1)
    basis = vectors[:, :count]
    size = np.sqrt(np.sqrt(np.maximum(squares[:count], squares[0] * 1e-24)))
    if wide:
        up, down = basis * size, (basis.T @ matrix) / size[:, None]
    else:
        up, down = (matrix @ basis) / size, basis.T * size[:, None]
    ones = (1,) * (change.ndim - 2)
    shaped = down.reshape(count, *change.shape[1:]), up.reshape(len(change), count, *ones)
    return shaped[0].astype(np.float32), shaped[1].astype(np.float32), float(left[count])


def _pairs(
    chosen: list[Any], after: Any, before: Any, opened: Any
) -> Iterator[tuple[str, str, StoredTensor, StoredTensor]]:
    for component in chosen:
        if component not in after or component not in before:
            continue
        ours, theirs = after[component], before[component]
        for key, one in ours.items():
            other = theirs.get(key)
            if other is None or other.shape != one.shape:
                size = "not there" if other is None else f"{list(other.shape)}"
                raise WeightError(
                    f"{component}.{key} is {list(one.shape)} in {opened[0].name} and {size} in "
                    f"{opened[1].name}: they are not of one base"
                )
            yield component, key, one, other


def _bytes(networks: Any, chosen: list[Any]) -> int:
    return sum(t.nbytes for name in chosen for t in networks.get(name, {}).values())


def _change(name: str, one: StoredTensor, other: StoredTensor) -> np.ndarray | None:
    """What was learned, float32; None where that is nothing."""
    after, before = (numbers_of(tensor).astype(np.float32) for tensor in (one, other))
    change = after - before
    if not np.isfinite(change).all():
        raise WeightError(f"{name} holds NaN or infinity")
    rounding = NOISE * float(np.abs(before).max(initial=0))
    return change if float(np.abs(change).max(initial=0)) > rounding else None


def _spelt(
    component: str, path: str, down: np.ndarray, up: np.ndarray, spelling: str
) -> dict[str, StoredTensor]:
    if spelling == "diffusers":
        names = (f"{component}.{path}.lora_A.weight", f"{component}.{path}.lora_B.weight")
        return {names[0]: stored(down), names[1]: stored(up)}
    start = "lora_unet_" if component == "unet" else "lora_te_"
    module = start + path.replace(".", "_")
    alpha = np.array(len(down), np.float32)  # the scale is alpha / rank
    return {
        f"{module}.lora_down.weight": stored(down),
        f"{module}.lora_up.weight": stored(up),
        f"{module}.alpha": stored(alpha),
    }
