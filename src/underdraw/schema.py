"""One validator for the frozen dataclasses that hold what files and callers say.

A field's annotation says everything about it: its type, and through `Annotated` what is allowed.

    @dataclass(frozen=True)
    class Crop(Schema):
        owner = "crop"
        sides: tuple[Annotated[int, Range(1, 4096)], ...] = (224, 224)
        fill: Annotated[str, OneOf("black", "edge")] = "black"

Making one checks every field and brings it into the form that its annotation names: lists and
arrays become tuples, numbers of numpy and PyTorch plain numbers, 64.0 the whole number 64, and null
in the place of a switch is off, as diffusers reads it. What several fields say together is checked
by the method `check`.
"""

from __future__ import annotations

import dataclasses
import math
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from numbers import Integral, Real
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from underdraw.errors import InputError, InputTypeError, NotFoundError, WeightError
from underdraw.shown import shown as shown

MOST_ENTRIES = 100_000
"""Of a list, where its annotation says nothing else."""
MOST_SIGNS = 100_000
"""Of a text, likewise."""


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; `above` and `below` are bounds that are not.
    Infinity is allowed where a bound names it."""

    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    odd: bool = False

    def allows(self, value: float) -> bool:
        """Whether a number is inside."""
        if math.isinf(value):
            return value in (self.low, self.high)
        return (
            (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
            and not (self.odd and value % 2 == 0)
        )

    def __str__(self) -> str:
        low = None if self.low is None else f"{self.low} or more"
        low = low if self.above is None else f"above {self.above}"
        high = None if self.high is None else f"at most {self.high}"
        high = high if self.below is None else f"below {self.below}"
        if self.low is not None and self.high is not None:
            low, high = f"{self.low} .. {self.high}", None
        return ", ".join(part for part in (low, high, "odd" if self.odd else None) if part)


@dataclass(frozen=True, init=False)
class OneOf:
    """One of a few values. `meaning` maps further ones to those which they stand for."""

    values: tuple[Any, ...]
    meaning: tuple[tuple[Any, Any], ...]

    def __init__(self, *values: Any, meaning: Mapping[Any, Any] | None = None) -> None:
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "meaning", tuple((meaning or {}).items()))

    def ours(self, value: Any) -> Any:
        """What a value stands for."""
        for theirs, meant in self.meaning:
            if type(value) is type(theirs) and value == theirs:
                return meant
        return value

    def allows(self, value: Any) -> bool:
        """Whether a value is among them."""
        return value in self.values

    def __str__(self) -> str:
        return ", ".join(map(repr, self.values))


@dataclass(frozen=True)
class Length:
    """Entries of a list, or signs of a text."""

    low: int = 0
    high: int = MOST_ENTRIES

    def allows(self, value: Sequence[Any]) -> bool:
        """Whether there are as many."""
        return self.low <= len(value) <= self.high

    def __str__(self) -> str:
        return f"{self.low}" if self.low == self.high else f"{self.low} .. {self.high}"


@dataclass(frozen=True)
class Matching:
    """A text of this form; `says` tells it to people."""

    pattern: str
    says: str

    def allows(self, value: str) -> bool:
        """Whether a text has it."""
        return re.fullmatch(self.pattern, value) is not None

    def __str__(self) -> str:
        return self.says


class Refused(Exception):
    """What a value is not, on the way up to the field it stands in."""

    def __init__(self, value: Any, allowed: str, place: str = "") -> None:
        super().__init__(allowed)
        self.value, self.allowed, self.place = value, allowed, place


class Schema:
    """Base of dataclasses whose fields are checked as they are made.

    Raises:
        InputError: a field has a value that it cannot have; the message names the owner, the field,
            the value and what is allowed.
    """

    owner = ""
    """What messages call this; without a type, or it would be a field."""
    closed = False
    """Whether reading one refuses what is no field, instead of leaving it out."""

    def __post_init__(self) -> None:
        for name, hint in hints_of(type(self)).items():
            given = getattr(self, name)
            kept = accept(type(self).owner, name, given, hint)
            if kept is not given:
                object.__setattr__(self, name, kept)
        self.check()

    def check(self) -> None:
        """Rules about several fields, each of which is already what its annotation says."""


AnySchema = TypeVar("AnySchema")


@cache
def hints_of(cls: type) -> dict[str, Any]:
    """The annotations of the fields, by name, with what `Annotated` adds."""
    hints = get_type_hints(cls, include_extras=True)
    return {each.name: hints[each.name] for each in dataclasses.fields(cls)}


def accept(owner: str, name: str, value: Any, hint: Any) -> Any:
    """`value` as `hint` has it.

    Raises:
        InputError: it is nothing that the hint allows.
    """
    try:
        return _accept(value, hint)
    except Refused as refused:
        entry = f" in entry {refused.place}" if refused.place else ""
        raise fault(
            owner, f"{name}={shown(refused.value)} is not supported{entry}; allowed: {refused}"
        ) from None
    except InputError as error:  # of a schema inside, which the field's name tells
        told = str(error)
        for inner in _owners(hint):
            told = told.removeprefix(f"{inner}: ")
        raise fault(owner, f"{name}: {told}") from None


def _owners(hint: Any) -> Iterator[str]:
    """Of the schemas that stand where one value may be."""
    kind, _ = _split(hint)
    for option in get_args(kind) if get_origin(kind) in _UNIONS else (kind,):
        if isinstance(option, type) and issubclass(option, Schema) and option.owner:
            yield option.owner


def read(cls: type[AnySchema], raw: Any) -> AnySchema:
    """A schema from a mapping such as parsed JSON. Keys that are no fields are left out, but by one
    that is `closed`.

    Raises:
        InputError: it is no mapping, lacks a field, or a value cannot be; a key is not known.
    """
    owner = getattr(cls, "owner", "") or cls.__name__
    known: Any = dataclasses.fields(cls)  # type: ignore[arg-type]
    if not isinstance(raw, Mapping):
        raise InputError(f"{owner} is {shown(raw)}; allowed: an object with fields")
    names = [each.name for each in known]
    if getattr(cls, "closed", False) and (unknown := [key for key in raw if key not in names]):
        raise fault(owner, f"{shown(unknown[0])} is not known; allowed: {', '.join(names)}")
    for each in known:
        required = each.default is each.default_factory is dataclasses.MISSING
        if required and each.name not in raw:
            raise fault(
                owner, f"there is no {each.name}; needed is {described(hints_of(cls)[each.name])}"
            )
    return cls(**{each.name: raw[each.name] for each in known if each.name in raw})


def fault(owner: str, message: str) -> InputError:
    """The error of a field."""
    return InputError(f"{owner}: {message}" if owner else message)


@contextmanager
def within(where: Any) -> Iterator[None]:
    """Messages of what is read inside name the file it comes from, or the class it is for."""
    try:
        yield
    except _TOLD as error:
        kind = next(each for each in _TOLD if isinstance(error, each))
        told = str(error)
        raise kind(told if told.startswith(str(where)) else f"{where}: {told}") from None


_TOLD = (InputError, InputTypeError, NotFoundError, WeightError)


def _accept(value: Any, hint: Any) -> Any:
    kind, rules = _split(hint)
    if kind is Any:
        return value
    if get_origin(kind) in _UNIONS:
        return _accept_one_of(value, get_args(kind), hint)
    value = plain(value)
    for rule in rules:
        if isinstance(rule, OneOf):
            value = rule.ours(value)
    if get_origin(kind) is tuple:
        return _entries(value, get_args(kind), rules, hint)
    if isinstance(kind, type) and issubclass(kind, Schema):
        return value if isinstance(value, kind) else read(kind, value)
    kept = _FORMS[get_origin(kind) or kind](value)
    if kept is None and kind is not type(None):
        raise Refused(value, described(hint))
    limits: tuple[Any, ...] = (*rules, *_bounds(kind, rules))
    if not all(rule.allows(kept) for rule in limits):
        raise Refused(value, described(hint))
    return kept


def _accept_one_of(value: Any, options: tuple[Any, ...], hint: Any) -> Any:
    inner: Refused | None = None
    for option in options:
        # Where null is a value of its own it is not a switch that is off.
        if value is None and type(None) in options and option is not type(None):
            continue
        try:
            return _accept(value, option)
        except Refused as refused:
            inner = refused if refused.place else inner
    raise inner or Refused(value, described(hint))


def _entries(value: Any, kinds: tuple[Any, ...], rules: Sequence[Any], hint: Any) -> Any:
    repeated = kinds[-1] is Ellipsis
    bounds = [rule for rule in rules if isinstance(rule, Length)] or [Length()]
    length = bounds[0] if repeated else Length(len(kinds), len(kinds))
    # A text is a sequence of texts, which is never meant.
    if not isinstance(value, Sequence) or isinstance(value, str | bytes | bytearray):
        raise Refused(value, described(hint))
    if not length.allows(value):
        raise Refused(value, f"{described(hint)} ({len(value)} entries are given)")
    made = []
    for i, entry in enumerate(value):
        try:
            made.append(_accept(entry, kinds[0] if repeated else kinds[i]))
        except Refused as refused:
            raise Refused(refused.value, refused.allowed, f"[{i}]{refused.place}") from None
    return tuple(made)


def plain(value: Any) -> Any:
    """A number or an array of numpy or of a framework as Python's numbers and lists; else the same
    value."""
    try:
        fits = hasattr(value, "tolist") and math.prod(value.shape) <= MOST_ENTRIES
        return value.tolist() if fits else value
    except Exception:  # a tensor without numbers, a class of somebody else
        return value


def _switch(value: Any) -> bool | None:
    if value is None:
        return False
    return bool(value) if isinstance(value, Real) and value in (0, 1) else None


def _whole(value: Any) -> int | None:
    number = _number(value)
    return int(number) if number is not None and number == number // 1 else None


def _number(value: Any) -> float | None:
    """None for NaN, for switches, and for what is too large."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    if number != number:
        return None
    return int(value) if isinstance(value, Integral) else number


def _text(value: Any) -> str | None:
    """None for half a surrogate pair, too, which no file can hold."""
    if not isinstance(value, str) or len(value) > MOST_SIGNS:
        return None
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return None
    return value


def _object(value: Any) -> Any:
    return value if isinstance(value, Mapping) else None


def _nothing(value: Any) -> Any:
    if value is not None:
        raise Refused(value, "None")


def _bounds(kind: Any, rules: Sequence[Any]) -> tuple[Range, ...]:
    """Of numbers whose field says nothing of its own."""
    if kind not in (int, float) or any(isinstance(rule, Range | OneOf) for rule in rules):
        return ()
    return (FINITE,) if kind is float else (MACHINE,)


_UNIONS = (Union, types.UnionType)
FINITE, MACHINE = Range(), Range(-(2**63), 2**63 - 1)
_FORMS: Mapping[Any, Callable[[Any], Any]] = {
    bool: _switch,
    int: _whole,
    float: _number,
    str: _text,
    dict: _object,
    Mapping: _object,
    type(None): _nothing,
}
_WORDS: Mapping[Any, str] = {
    bool: "True, False",
    int: "a whole number",
    float: "a finite number",
    str: "a text",
    dict: "an object",
    Mapping: "an object",
    type(None): "None",
}


def described(hint: Any) -> str:
    """What a hint allows, for people."""
    kind, rules = _split(hint)
    for rule in rules:
        if isinstance(rule, OneOf):
            return str(rule)
    if get_origin(kind) in _UNIONS:
        return " or ".join(map(described, get_args(kind)))
    if get_origin(kind) is tuple:
        return _described_list(get_args(kind), rules)
    words = _WORDS.get(get_origin(kind) or kind, "an object")
    if kind is float and any(isinstance(rule, Range) for rule in rules):
        words = "a number"
    told = (f"of {rule} signs" if isinstance(rule, Length) else str(rule) for rule in rules)
    return ", ".join((words, *told))


def _described_list(kinds: tuple[Any, ...], rules: Sequence[Any]) -> str:
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        number = "".join(f"of {rule} entries, " for rule in rules if isinstance(rule, Length))
        return f"a list, {number}each {described(kinds[0])}"
    return f"a list of {len(kinds)}: " + "; ".join(map(described, kinds))


def _split(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """The type of a hint, and its rules."""
    if get_origin(hint) is Annotated:
        return hint.__origin__, hint.__metadata__
    return hint, ()
