"""What the files of a tokenizer, and its callers, may say: checked before the library sees it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from numbers import Integral
from typing import Annotated, Any

from underdraw import checks
from underdraw.errors import WeightError
from underdraw.schema import Length, Range, Schema, accept, fault, read, shown, within

OWNER = "tokenizer"
MOST_ID = 2**24
"""More than any text encoder embeds."""

Text = Annotated[str, Length(1, 1000)]
Id = Annotated[int, Range(0, MOST_ID)]
MaxLength = Annotated[int, Range(1, 10**31)]
"""transformers writes 10^30, as the nearest number in double precision, where nothing is known."""
KNOWN_LENGTH = 100_000
"""Longer ones stand for a length that nobody knows."""


@dataclass(frozen=True)
class Token(Schema):
    """A special or added token as config files spell it out; None: the library's default."""

    content: Text
    single_word: bool | None = None
    lstrip: bool | None = None
    rstrip: bool | None = None
    normalized: bool | None = None
    special: bool | None = None


def as_token(name: str, value: Any) -> Any:
    """A text, the fields of a token, or the library's own.

    Raises:
        InputError: it is none of these.
    """
    if isinstance(value, Mapping):
        with within(f"{OWNER}: {name}"):
            token = read(Token, value)
        said = {each.name: getattr(token, each.name) for each in fields(token)}
        return {field: kept for field, kept in said.items() if kept is not None}
    if isinstance(getattr(value, "content", None), str):
        return value
    return accept(OWNER, name, value, Text)


def as_tokens(name: str, value: Any) -> list[Any]:
    """Several tokens; transformers 5 also writes them by name."""
    if value is None:
        return []
    if isinstance(value, Mapping):
        value = list(value.values())
    if not isinstance(value, list | tuple):
        raise fault(OWNER, f"{name}={shown(value)} is not supported; allowed: a list of tokens")
    return [as_token(f"{name}[{i}]", token) for i, token in enumerate(value)]


def as_added(name: str, value: Any) -> dict[int, Any]:
    """Id -> token; ids may be texts, as JSON has them."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise fault(OWNER, f"{name}={shown(value)} is not supported; allowed: tokens by id")
    added = {}
    for index, token in value.items():
        plain = int(index) if isinstance(index, str) and index.isdecimal() else index
        if isinstance(index, str) and len(index) > 8:
            plain = index
        added[accept(OWNER, f"id in {name}", plain, Id)] = as_token(f"{name}[{index!r:.20}]", token)
    return added


def as_ids(name: str, value: Any, deep: bool = True) -> Any:
    """A token id, a list of them, or a list of rows, as plain numbers.

    Raises:
        InputError, InputTypeError: it is something else, or ids that no vocabulary has.
    """
    if hasattr(value, "tolist"):
        value = checks.readable(name, value, lambda array: array.tolist())
    if isinstance(value, Integral) and not isinstance(value, bool):
        return checks.whole(name, value, 0, MOST_ID)
    if isinstance(value, range):
        value = list(value)
    listed = checks.listed(name, value, "token ids")
    rows = [isinstance(one, list | tuple) or hasattr(one, "tolist") for one in listed]
    if deep and rows and all(rows):
        return [as_ids(name, row, deep=False) for row in listed]
    return [checks.whole(name, one, 0, MOST_ID) for one in listed]


def as_max_length(value: Any) -> int:
    """`model_max_length`."""
    return accept(OWNER, "model_max_length", value, MaxLength)


def as_vocabulary(value: Any) -> dict[str, int]:
    """Token -> id.

    Raises:
        WeightError: it is no such mapping, or two tokens have one id.
    """
    if not isinstance(value, Mapping):
        raise WeightError(f"a vocabulary maps tokens to whole numbers; this is {shown(value)}")
    known = dict(value)
    for token, index in known.items():
        if not isinstance(token, str) or type(index) is not int or not 0 <= index <= MOST_ID:
            raise WeightError(
                f"a vocabulary maps tokens to whole numbers in 0 .. {MOST_ID}; this one has "
                f"{shown(token)}: {shown(index)}"
            )
    _check_unicode("a vocabulary", known)
    if len(set(known.values())) < len(known):
        owners: dict[int, str] = {}
        a, b = next(
            (owners[index], token)
            for token, index in known.items()
            if owners.setdefault(index, token) != token
        )
        raise WeightError(f"a vocabulary gives {a!r:.80} and {b!r:.80} the same id {known[a]}")
    return known


def as_merges(value: Any) -> list[tuple[str, str]]:
    """Pairs of symbols in order of rank, from pairs or texts `"a b"`.

    Raises:
        WeightError: it is something else.
    """
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise WeightError(f"merges are a list of pairs; these are {shown(value)}")
    try:
        listed = list(value)
    except Exception:  # an array without dimensions, an iterator of somebody else
        raise WeightError(f"merges are a list of pairs; these are {shown(value)}") from None
    pairs = []
    for merge in listed:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        whole = isinstance(pair, list | tuple) and len(pair) == 2
        if not whole or not all(isinstance(symbol, str) and symbol for symbol in pair):
            raise WeightError(f"a merge joins two symbols; got {shown(merge)}")
        pairs.append((pair[0], pair[1]))
    _check_unicode("merges", (symbol for pair in pairs for symbol in pair))
    return pairs


def _check_unicode(what: str, symbols: Iterable[str]) -> None:
    """Half a surrogate pair is no text."""
    joined = " ".join(symbols)
    try:
        joined.encode("utf-8")
    except UnicodeEncodeError as error:
        bad = joined[max(error.start - 10, 0) : error.end + 10]
        raise WeightError(f"{what} must be valid unicode; found {bad!r}") from None
