"""What a checkpoint is and what would be loaded from it, found out without any framework."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from underdraw.checkpoints.sources import NETWORKS, Source
from underdraw.errors import UnderdrawError, WeightError
from underdraw.formats.stored import NUMPY_DTYPES, StoredTensor, check_sizes
from underdraw.networks.config import read
from underdraw.schema import within
from underdraw.weights.known_keys import FOLDERS, SINGLE_FILE, Known, reason
from underdraw.weights.match import match_network

# Exponent bits that are all set in NaN and infinity, for dtypes that numpy gives as integers.
# (float8_e4m3fn has no infinity; only all bits below the sign stand for NaN.)
EXPONENT = {"bfloat16": 0x7F80, "float8_e5m2": 0x7C, "float8_e4m3fn": 0x7F}


@dataclass
class Part:
    """A component and what would be loaded of it."""

    name: str
    kind: str
    parameters: int | None = None
    dtypes: dict[str, int] = field(default_factory=dict)
    """Numbers of each dtype."""
    bytes: int = 0
    files: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    ignored: dict[str, list[str]] = field(default_factory=dict)
    """Names of tensors that are left out, by reason."""
    problems: list[str] = field(default_factory=list)
    not_finite: dict[str, int] = field(default_factory=dict)
    """How many numbers are NaN or infinite, by tensor."""


@dataclass
class Report:
    """A checkpoint."""

    name: str
    kind: str
    place: str
    parts: list[Part]
    ignored: dict[str, list[str]]
    notes: list[str]
    problems: list[str]
    checked: bool = False

    @property
    def sound(self) -> bool:
        """Whether no problem was found."""
        return not self.problems and not any(p.problems or p.not_finite for p in self.parts)


def inspect(source: Source, check: bool, tick: Callable[[int], Any] = lambda _: None) -> Report:
    """Look at every part of a source.

    Args:
        check: read all numbers and look for NaN and infinity.
        tick: told how many bytes have been read.
    """
    report = Report(
        source.name, source.kind, str(source.place), [], {}, list(source.notes),
        list(source.problems), check,
    )  # fmt: skip
    if source.original is not None:
        report.ignored = by_reason(SINGLE_FILE, source.original)
    for name, (kind, config, tensors) in source.networks.items():
        report.parts.append(network(name, kind, config, tensors, check, tick))
        report.parts[-1].files = list(source.files.get(name, ()))
    for name, (kind, details) in source.others.items():
        report.parts.append(Part(name, kind, details=dict(details)))
    for name, problem in source.broken.items():
        report.parts.append(Part(name, "?", problems=[problem]))
    return report


def network(
    name: str,
    kind: str,
    config: Mapping[str, Any],
    tensors: Mapping[str, StoredTensor],
    check: bool,
    tick: Callable[[int], Any],
) -> Part:
    """A network: what its config wants, what its files hold, and whether these agree."""
    part = Part(name, kind)
    cls = NETWORKS.get(kind)
    if cls is None:
        part.details["note"] = "not a network that underdraw loads"
        used = dict(tensors)
    else:
        used = {}
        try:
            with within(f"config.json does not describe a {kind}"):
                understood = read(cls.config_class, cls.adapt_config(dict(config)))
            layout = cls.layout(understood).shapes
            part.details |= described(understood)
            rules = FOLDERS[cls.network]
            left = {n: t for n, t in tensors.items() if n not in layout}
            part.ignored = by_reason(rules.ignored, left)
            used = match_network(cls.network, layout, tensors)
        except UnderdrawError as error:
            part.problems.append(str(error))
        except (TypeError, ValueError, AttributeError) as error:
            part.problems.append(f"config.json does not describe a {kind}: {error}")
        used = used or dict(tensors)
    part.parameters = sum(tensor.size for tensor in used.values())
    part.bytes = sum(tensor.nbytes for tensor in used.values())
    counts: Counter[str] = Counter()
    for tensor in used.values():
        counts[tensor.dtype] += tensor.size
    part.dtypes = dict(counts.most_common())
    if check:
        try:
            check_sizes(used.values())
        except WeightError as error:
            part.problems.append(str(error))
            return part
        for key, tensor in used.items():
            try:
                bad = count_non_finite(tensor)
            except WeightError as error:
                part.problems.append(f"{key}: {error}")
                continue
            finally:
                tick(tensor.nbytes)
            if bad:
                part.not_finite[key] = bad
    return part


def by_reason(known: tuple[Known, ...], names: Mapping[str, Any]) -> dict[str, list[str]]:
    """Names that are left out, by the reason why."""
    found: dict[str, list[str]] = {}
    for name in names:
        why = reason(known, name)
        if why is not None:
            found.setdefault(why, []).append(name)
    return found


def count_non_finite(tensor: StoredTensor) -> int:
    """How many of its numbers are NaN or infinite."""
    array = tensor.load()
    if tensor.dtype in EXPONENT:
        mask = array.dtype.type(EXPONENT[tensor.dtype])
        return int(np.count_nonzero((array & mask) == mask))
    if NUMPY_DTYPES[tensor.dtype].kind not in "fc":
        return 0
    # A sum is NaN or infinite if a number is, and costs no temporary; it may also overflow.
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(array.sum(dtype="f8" if array.dtype.kind == "f" else "c16")):
            return 0
    return int(array.size - np.count_nonzero(np.isfinite(array)))


def described(config: Any) -> dict[str, Any]:
    """The few entries of a config that people ask for."""
    wanted = (
        "sample_size", "in_channels", "block_out_channels", "cross_attention_dim",
        "attention_type", "latent_channels", "scaling_factor", "hidden_size", "num_hidden_layers",
        "vocab_size", "image_size", "projection_dim",
    )  # fmt: skip
    found = {name: getattr(config, name, None) for name in wanted}
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in found.items()
        if value not in (None, "default")
    }
