"""What the makers of a checkpoint advise for calls: kept in its `model_index.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from underdraw import checks
from underdraw.errors import InputTypeError, UnderdrawError

KEY = "_underdraw"
"""Under this name; diffusers passes over what begins with a line."""


@dataclass(frozen=True)
class Advice:
    """Arguments that suit a checkpoint better than the usual ones (None where the usual do), and
    the words it knows."""

    guidance_scale: float | None = None
    words: tuple[str, ...] = ()
    """All that texts of its training could contain, in small letters: others have no meaning that
    it learned. Empty: nobody says so."""

    def __post_init__(self) -> None:
        if not isinstance(self.words, list | tuple) or not all(
            isinstance(word, str) for word in self.words
        ):
            raise InputTypeError(f"words={self.words!r:.100} is not a list of strings")
        object.__setattr__(self, "words", tuple(self.words))
        if self.guidance_scale is not None:
            checks.number("guidance_scale", self.guidance_scale, 0.0)

    def to_index(self) -> dict[str, Any]:
        """What `model_index.json` holds of it; nothing where nothing is advised."""
        told = {name: value for name, value in asdict(self).items() if value not in (None, ())}
        return {KEY: told} if told else {}


def read_advice(index: Mapping[str, Any], where: str) -> Advice:
    """The advice in a parsed `model_index.json`; what a later version added to it is left out.

    Raises:
        InputError, InputTypeError: it is damaged.
    """
    told = index.get(KEY)
    if not isinstance(told, Mapping):
        return Advice()
    names = {field.name for field in fields(Advice)}
    try:
        return Advice(**{name: value for name, value in told.items() if name in names})
    except UnderdrawError as error:
        raise type(error)(f"{where}: {KEY} in model_index.json: {error}") from error
