"""JSON from files: one reader for configs, indices, layouts, annotations and what weights carry.

Before a text is parsed, its nesting and its values are counted, for one of 100 bytes may be too
deep to be walked, and values take fifty times the memory of their text. Refused are besides: a name
that stands twice in one object (readers differ in which they take), NaN, whole numbers no format
has a use for, text that is not Unicode. Infinity stays: published scheduler configs hold it.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from underdraw.errors import WeightError
from underdraw.formats.opening import MB, TEXT, Fault, Name, decoded, read_bytes
from underdraw.formats.stored import looks_like

_DIGITS = 100
_BLOCK = MB // 4
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_STEPS = np.zeros(256, np.int8)
_STEPS[list(b"[{")], _STEPS[list(b"]}")] = 1, -1


@dataclass(frozen=True)
class Limits:
    """The most of a text: bytes, values (entries of lists and objects), levels of containers.
    `nan` lets NaN pass, for readers that look at every number."""

    size: int = TEXT
    values: int = 1_000_000
    depth: int = 64
    nan: bool = False


LIMITS = Limits()


def read(path: Name, limits: Limits = LIMITS, *, fault: Fault = WeightError) -> Any:
    """What a JSON file holds: any value.

    Raises:
        NotFoundError: there is no file.
        fault: it is no regular file, too large, or not readable as JSON; the message begins with
            its name.
    """
    return parse(read_bytes(path, limits.size, fault=fault), str(path), limits, fault=fault)


def read_object(
    path: Name, limits: Limits = LIMITS, *, fault: Fault = WeightError
) -> dict[str, Any]:
    """As `read`, of a file that holds an object."""
    return as_object(read(path, limits, fault=fault), str(path), fault=fault)


def read_list(path: Name, limits: Limits = LIMITS, *, fault: Fault = WeightError) -> list[Any]:
    """As `read`, of a file that holds a list."""
    content = read(path, limits, fault=fault)
    if not isinstance(content, list):
        raise fault(f"{path}: a JSON list was expected, not {_KINDS[type(content)]}")
    return content


def as_object(content: Any, source: str, *, fault: Fault = WeightError) -> dict[str, Any]:
    """`content` if it is an object."""
    if not isinstance(content, dict):
        raise fault(f"{source}: a JSON object was expected, not {_KINDS[type(content)]}")
    return content


_KINDS: Mapping[type, str] = {
    dict: "an object",
    list: "a list",
    str: "a text",
    int: "a number",
    float: "a number",
    bool: "a truth value",
    type(None): "null",
}


def parse(
    text: bytes | str,
    source: str,
    limits: Limits = LIMITS,
    *,
    fault: Fault = WeightError,
    told: str = ": not readable as JSON",
) -> Any:
    """The value of a JSON text, as UTF-8 (or UTF-16, UTF-32) or decoded. Errors are of class
    `fault` and begin with `source` and `told`."""
    if isinstance(text, bytes):
        encoding = json.detect_encoding(text)
        raw = text
        text = decoded(text, f"{source}{told}", encoding, fault=fault)
        if not encoding.startswith("utf-8"):
            raw = text.encode(errors="replace")
    else:
        raw = text.encode(errors="replace")
        text = text.removeprefix("\ufeff")
    try:
        _check_extent(raw, limits)
        content = json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=float if limits.nan else _constant,
            parse_int=_whole,
        )
        if _SURROGATE.search(raw):
            json.dumps(content, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise fault(f"{source}{told}: {_reason(raw, error)}") from error
    return content


def _reason(raw: bytes, error: Exception) -> str:
    if isinstance(error, UnicodeEncodeError):
        return "a text in it holds half of a surrogate pair, which is no character"
    what = "the file is empty" if not raw.strip() else looks_like(raw[:512])
    return str(error) if what is None or what.startswith("a JSON") else what


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        names: set[str] = set()
        twice = next(name for name, _ in pairs if name in names or names.add(name))
        raise ValueError(f"{twice[:80]!r} is there twice")
    return mapping


def _constant(name: str) -> float:
    if name == "NaN":
        raise ValueError("it holds NaN, which is no number")
    return float(name)


def _whole(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise ValueError(f"a whole number of {len(digits):,} digits; allowed: {_DIGITS}")
    return int(digits)


def _check_extent(raw: bytes, limits: Limits) -> None:
    """Refuse a text of too many bytes, values or levels, whether or not it is JSON: what a parser
    gets to see before it finds the first fault is counted exactly."""
    if len(raw) > limits.size:
        raise ValueError(f"{len(raw):,} bytes; allowed are {limits.size:,}")
    if len(raw) <= limits.values and raw.count(b"[") + raw.count(b"{") <= limits.depth:
        return
    level = values = 0
    inside = escaped = False
    for start in range(0, len(raw), _BLOCK):
        block = raw[start : start + _BLOCK]
        if escaped:
            block = b" " + block[1:]
        block = block.replace(rb"\\", b"  ")
        escaped = block.endswith(b"\\")
        codes = np.asarray(memoryview(block.replace(rb"\"", b"  ")))
        # Quotes so far, modulo 256: odd inside of a text.
        quotes = np.cumsum(codes == ord('"'), dtype=np.uint8) + np.uint8(inside)
        outside = quotes % 2 == 0
        steps = _STEPS[codes] * outside
        levels = np.cumsum(steps, dtype=np.int32) + level
        values += np.count_nonzero(steps > 0) + np.count_nonzero(outside & (codes == ord(",")))
        if levels.max() > limits.depth:
            raise ValueError(f"nested deeper than {limits.depth} levels")
        if values > limits.values:
            raise ValueError(f"it holds more than {limits.values:,} values")
        level, inside = int(levels[-1]), not outside[-1]
