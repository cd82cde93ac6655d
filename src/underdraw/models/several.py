"""Several networks that act as one, in neighbouring folders: `name`, `name_1`, `name_2`, ..."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from typing_extensions import Self

from underdraw.arguments import checked
from underdraw.errors import InputError, InputTypeError, NotFoundError
from underdraw.models.base import Model
from underdraw.shown import shown

One = TypeVar("One", bound=Model)


class Several(Generic[One]):
    """Base of what holds several networks of a kind.

    Raises:
        InputTypeError, InputError: there are none, or something else is among them.
    """

    kind: ClassVar[type[Any]]
    """The class of each."""
    networks: tuple[One, ...]

    def __init__(self, networks: Sequence[One]) -> None:
        name = type(self).__name__
        if not isinstance(networks, list | tuple):
            raise InputTypeError(f"{name}({shown(networks)}); needed is a list of networks")
        if not networks:
            raise InputError(f"{name} holds no networks; give at least one")
        for i, one in enumerate(networks):
            if not isinstance(one, self.kind):
                raise InputTypeError(
                    f"{name}: entry {i} is {shown(one)}; needed is a {self.kind.__name__}"
                )
        self.networks = tuple(networks)

    def __len__(self) -> int:
        return len(self.networks)

    def __iter__(self) -> Iterator[One]:
        return iter(self.networks)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.networks))})"

    @property
    def dtype(self) -> Any:
        """That of the first."""
        return self.networks[0].dtype

    @property
    def device(self) -> Any:
        """That of the first."""
        return self.networks[0].device

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move or convert all of them; returns the object itself."""
        for one in self.networks:
            one._framework.move(one, *args, **kwargs)
        return self

    @checked
    def save_pretrained(self, folder: str | os.PathLike[str], **options: Any) -> None:
        """Write each to a folder of its own: `folder`, `folder_1`, ...; options as of one."""
        for one, place in zip(self.networks, folders_of(folder), strict=False):
            one.save_pretrained(place, **options)

    @classmethod
    @checked
    def from_pretrained(cls, folder: str | os.PathLike[str], **options: Any) -> Self:
        """Read `folder`, `folder_1`, ... up to the last that there is; options as of one.

        Raises:
            NotFoundError: there is no such folder.
        """
        networks = []
        for place in folders_of(folder):
            if not place.is_dir():
                break
            networks.append(cls.kind.from_pretrained(place, **options))
        if not networks:
            raise NotFoundError(f"there is no folder {os.fspath(folder)!r}")
        return cls(networks)


def folders_of(first: str | os.PathLike[str]) -> Iterator[Path]:
    """Where several networks are kept: `first`, then the same with `_1`, `_2`, ..."""
    path, number = Path(first), 0
    while True:
        yield path if not number else path.with_name(f"{path.name}_{number}")
        number += 1
