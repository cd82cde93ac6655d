"""Several checkpoints made into one, and LoRAs merged into it, a tensor at a time."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from underdraw import checks
from underdraw.checkpoints.loras import merged_loras
from underdraw.checkpoints.rewriting import (
    DTYPES,
    Networks,
    Tell,
    as_written,
    bar_of,
    checked_target,
    matched,
    sound,
    write,
)
from underdraw.checkpoints.sources import Source, open_source
from underdraw.errors import InputError, InputTypeError, WeightError
from underdraw.formats.stored import StoredTensor
from underdraw.weights.dtypes import cast, numbers_of

LOG = logging.getLogger(__name__)
SUM = 1e-3
"""How far shares of models may be from 1 together: as far as people round thirds."""
ALONE = ("safety_checker",)
"""Networks that are the first model's, whatever the others have."""
GROWS = "conv_in.weight"
"""The layer of a UNet whose inputs differ between a model and its inpainting model."""


@dataclass(frozen=True)
class Shares:
    """How much of each model is in the result."""

    all: tuple[float, ...]
    blocks: Mapping[str, tuple[float, ...]]
    """By the path of a block; the longest that fits counts."""

    def of(self, name: str) -> tuple[float, ...]:
        """For a tensor, by its component and name."""
        fitting = [block for block in self.blocks if _inside(name, block)]
        return self.blocks[max(fitting, key=len)] if fitting else self.all


def merge(
    sources: Sequence[Any],
    target: Any,
    *,
    weights: float | Sequence[float] | None = None,
    base: Any = None,
    blocks: Mapping[str, float | Sequence[float]] | None = None,
    loras: Mapping[Any, float] | None = None,
    dtype: str | None = None,
    tokenizer: str | None = None,
    variant: str | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
    tell: Tell = LOG.info,
) -> Path:
    """Make one checkpoint of several, and write it. Of each tensor the models' numbers are read,
    added in float32, rounded and written before the next, so that a few tensors are in memory.

    Without `base` the result is the weighted sum `w1 m1 + w2 m2 + ...`, whose weights are 1
    together. With `base` it is the first model with what the others have learned beyond their base:
    `m1 + w2 (m2 - base) + w3 (m3 - base) + ...`.

    What only the first model has (tokenizer, scheduler, safety checker, further networks) comes
    from it; a network that only some of the others lack is the first model's where they would
    count. An inpainting model may be the first of a difference: its further input channels stay.

    Args:
        sources: folders, single files or Hub ids, the first of which lends all that is not merged.
        target: a folder, or a file ending in `.safetensors`. It appears whole or not at all.
        weights: without `base` one for each model, all alike if not given; one number is the second
            of two models' share. With `base` one for each model but the first, 1 if not given.
        base: what the others of `sources` were trained from.
        blocks: other weights for parts of the networks, by component and path, such as
            `{"unet.up_blocks.1": 0.3, "vae": [1, 0], "text_encoder": 0}`; the longest path counts.
        loras: files -> scales of LoRAs (of every kind that pipelines load) that are merged into the
            result; with them `sources` may be a single one.
        dtype: "float32", "bfloat16" or "float16"; None: as the first model has it.
        tokenizer: folder or Hub id of the vocabulary, where the first is a single file and `target`
            a folder.
        variant: of the weight files of folders, such as "fp16".
        overwrite: whether what is at `target` may be replaced.
        progress: whether to show a bar; None: on terminals.
        tell: takes what is worth knowing; the log if not given.

    Returns:
        The target.

    Raises:
        InputError, InputTypeError: an argument cannot work.
        NotFoundError: there is no such source.
        WeightError: a source is damaged, the networks differ, a LoRA does not fit, or a result is
            NaN, infinite or too large for `dtype`.
    """
    place = checked_target(target, dtype, overwrite)
    named = [checks.path("sources", one) for one in checks.sequence("sources", sources, "models")]
    files = _loras(loras)
    if len(named) < 2 and not (named and files):
        raise InputError(
            f"sources={checks.shown(sources)}; needed are two models, or one and loras"
        )
    if len(named) == 1 and any(given is not None for given in (weights, blocks, base)):
        raise InputError("weights, blocks and base are for several models; loras have scales")
    shares = _shares(len(named), weights, blocks, base is not None)
    opened = [sound(open_source(name, variant)) for name in named]
    last = [] if base is None else [sound(open_source(checks.path("base", base), variant))]
    _require_one_prediction([*opened, *last])
    networks = [matched(one) for one in (*opened, *last)]
    joined = _joined(opened, last, networks, shares, tell)
    joined = merged_loras(opened[0], joined, files, tell)
    rounded = {
        name: {
            key: _rounded(f"{name}.{key}", tensor, networks[0][name][key], dtype)
            for key, tensor in tensors.items()
        }
        for name, tensors in joined.items()
    }
    nbytes = sum(t.nbytes for tensors in rounded.values() for t in tensors.values())
    with bar_of(nbytes, progress) as bar:
        write(opened[0], as_written(rounded, None, bar.update), place, tokenizer, dtype, tell)
    return place


def _loras(loras: Any) -> list[tuple[str, float]]:
    if loras is None:
        return []
    if not isinstance(loras, Mapping):
        raise InputTypeError(f"loras={checks.shown(loras)} is no mapping of files to scales")
    return [
        (checks.path("loras", file), checks.factor(f"loras[{checks.shown(file)}]", scale))
        for file, scale in loras.items()
    ]


def _shares(models: int, weights: Any, blocks: Any, difference: bool) -> Shares:
    """The weights that are meant, checked."""
    if weights is None:
        given = (1.0,) * (models - 1) if difference else (1 / models,) * models
    else:
        given = _weights("weights", weights, models, difference)
    if blocks is not None and not isinstance(blocks, Mapping):
        raise InputTypeError(f"blocks={checks.shown(blocks)} is no mapping of paths to weights")
    found = {}
    for path, value in (blocks or {}).items():
        if not isinstance(path, str) or not path:
            raise InputTypeError(
                f"blocks: {checks.shown(path)} is no path such as 'unet.mid_block'"
            )
        found[path] = _weights(f"blocks[{path!r:.80}]", value, models, difference)
    return Shares(given, found)


def _weights(name: str, value: Any, models: int, difference: bool) -> tuple[float, ...]:
    if checks.is_number(value):
        if models > 2:
            raise InputError(
                f"{name}={checks.shown(value)} is for two models; {models} need a list"
            )
        more = checks.factor(name, value)
        return (more,)[: models - 1] if difference else (1 - more, more)[:models]
    found = tuple(checks.factor(name, one) for one in checks.numbers(name, value))
    wanted = models - difference
    if len(found) != wanted:
        which = f"{models} models without the first" if difference else f"{models} models"
        raise InputError(f"{name} has {len(found)} numbers; {which} need {wanted}")
    if not difference and abs(sum(found) - 1) > SUM:
        raise InputError(f"{name}={checks.shown(value)} is {sum(found):.6g} together; needed is 1")
    return found


def _require_one_prediction(sources: Sequence[Source]) -> None:
    """Raise an InputError where some predict noise and others something else."""
    told = {
        one.name: one.scheduler.get("prediction_type", "epsilon")
        for one in sources
        if one.scheduler and "unet" in one.networks
    }
    if len(set(told.values())) > 1:
        listed = ", ".join(f"{name}: {kind}" for name, kind in told.items())
        raise InputError(f"models that predict different things cannot be merged ({listed})")


def _joined(
    sources: Sequence[Source],
    base: Sequence[Source],
    networks: Sequence[Networks],
    shares: Shares,
    tell: Tell,
) -> Networks:
    """The first model's networks with what the others add, unread."""
    others, joined = [*sources[1:], *base], {}
    if others and not any(all(name in held for held in networks[1:]) for name in networks[0]):
        told = "; ".join(
            f"{one.name}: {', '.join(held)}"
            for one, held in zip([sources[0], *others], networks, strict=True)
        )
        raise InputError(f"sources have no network in common, so nothing is merged ({told})")
    for name, tensors in networks[0].items():
        lacking = [
            one.name for one, held in zip(others, networks[1:], strict=True) if name not in held
        ]
        if name in ALONE or lacking or not others:
            if lacking:
                tell(f"{name} is that of {sources[0].name}; there is none in {', '.join(lacking)}")
            joined[name] = tensors
            continue
        all_of = [held[name] for held in networks]
        for one, held in zip(others, all_of[1:], strict=True):
            _require_alike(name, sources[0].name, tensors, one.name, held, bool(base))
        joined[name] = {
            key: _combined(
                f"{name}.{key}",
                [held[key] for held in all_of[: len(sources)]],
                all_of[-1][key] if base else None,
                shares.of(f"{name}.{key}"),
            )
            for key in tensors
        }
    _require_blocks(joined, shares)
    return joined


def _require_blocks(networks: Networks, shares: Shares) -> None:
    """Raise an InputError for a block that nothing is in."""
    names = [f"{name}.{key}" for name, tensors in networks.items() for key in tensors]
    for block in shares.blocks:
        if not any(_inside(name, block) for name in names):
            parts = sorted({".".join(name.split(".")[:2]) for name in names})
            raise InputError(
                f"blocks: nothing is in {block!r:.80}; there are {', '.join(parts):.600}"
            )


def _inside(name: str, block: str) -> bool:
    return name == block or name.startswith(f"{block}.")


def _require_alike(
    name: str, first: str, wanted: Any, other: str, found: Any, difference: bool
) -> None:
    """Raise a WeightError where two networks have other tensors or sizes."""
    faults = [f"{key} is in one of them only" for key in sorted(set(wanted) ^ set(found))]
    for key in wanted.keys() & found.keys():
        ours, theirs = wanted[key].shape, found[key].shape
        if ours != theirs and not (difference and key == GROWS and _grows(ours, theirs)):
            faults.append(f"{key} is {list(ours)} and {list(theirs)}")
    if faults:
        raise WeightError(
            f"{name} of {first} and {other} differ, so they cannot be merged: "
            f"{'; '.join(sorted(faults)[:3])}"
        )


def _grows(ours: tuple[int, ...], theirs: tuple[int, ...]) -> bool:
    """Whether the first convolution has further inputs, as that of inpainting models."""
    return len(ours) == len(theirs) == 4 and ours[1] > theirs[1] and ours[::2] == theirs[::2]


def _combined(
    name: str, tensors: list[StoredTensor], base: StoredTensor | None, shares: tuple[float, ...]
) -> StoredTensor:
    """What one tensor becomes; one that is a single model's is its own, to the bit."""
    acting = [i for i, share in enumerate(shares) if share]
    if base is not None and not acting:
        return tensors[0]
    if base is None and len(acting) == 1 and shares[acting[0]] == 1:
        return tensors[acting[0]]
    return StoredTensor("float32", tensors[0].shape, partial(_added, name, tensors, base, shares))


def _added(
    name: str, tensors: list[StoredTensor], base: StoredTensor | None, shares: tuple[float, ...]
) -> np.ndarray:
    total = np.zeros(tensors[0].shape, np.float32)
    start = None
    if base is not None:
        total += numbers_of(tensors[0])
        tensors, start = tensors[1:], numbers_of(base)
    with np.errstate(over="ignore", invalid="ignore"):
        for tensor, share in zip(tensors, shares, strict=True):
            if share:
                more = numbers_of(tensor) if start is None else numbers_of(tensor) - start
                into = total if more.shape == total.shape else total[:, : more.shape[1]]
                into += np.float32(share) * more
    if not np.isfinite(total).all():
        raise WeightError(f"{name}: merging gives NaN or infinity")
    return total


def _rounded(
    name: str, tensor: StoredTensor, like: StoredTensor, dtype: str | None
) -> StoredTensor:
    """In the dtype that is asked for, or in that of the first model."""
    own = like.dtype if like.dtype in DTYPES else "float16"
    return cast(name, tensor, dtype or own)
