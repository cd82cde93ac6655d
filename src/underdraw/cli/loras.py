"""LoRAs and learned words on the command line: `--lora FILE[:SCALE]`, `--embedding FILE`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from underdraw.cli.files import with_scale
from underdraw.errors import InputError, NotFoundError

OPTION, WORDS = "--lora", "--embedding"


@dataclass(frozen=True)
class Loras:
    """What a command names."""

    files: tuple[Path, ...] = ()
    scales: tuple[float, ...] = ()
    embeddings: tuple[Path, ...] = ()

    @property
    def names(self) -> list[str]:
        """Under which the LoRAs are known: their files' own, but for dots, which none may have."""
        return [name_of(path) for path in self.files]

    @property
    def every(self) -> tuple[Path, ...]:
        """All files."""
        return (*self.files, *self.embeddings)

    def options_of(self) -> dict[str, Any]:
        """What would say the same on the command line: values by option."""
        pairs = zip(self.files, self.scales, strict=True)
        told = {"lora": [f"{path}:{scale:g}" for path, scale in pairs]}
        told["embedding"] = [str(path) for path in self.embeddings]
        return {name: values for name, values in told.items() if values}

    def attach(self, pipe: Any) -> None:
        """Load all of it into a pipeline, and make the LoRAs active."""
        for path in self.embeddings:
            pipe.load_textual_inversion(path)
        for path, name in zip(self.files, self.names, strict=True):
            pipe.load_lora_weights(path, name)
        if self.files:
            pipe.set_adapters(self.names, list(self.scales))


NOTHING = Loras()


def read_loras(
    loras: Sequence[str] | None,
    embeddings: Sequence[Path] | None,
    before: Mapping[str, float] = MappingProxyType({}),
) -> Loras:
    """What the options say, checked.

    Args:
        before: scales of the picture that is made again, by name, where none are said.

    Raises:
        InputError, NotFoundError: a scale is no number, two files have one name, or there is none.
    """
    from underdraw import checks

    files: list[Path] = []
    scales: list[float] = []
    for text in loras or ():
        path, scale = with_scale(OPTION, text, "FILE or FILE:0.8")
        known = before.get(name_of(path), 1.0) if scale is None else scale
        scales.append(checks.factor(f"{OPTION} {text!r:.200}: scale", known))
        files.append(_file(OPTION, path))
    found = Loras(
        tuple(files), tuple(scales), tuple(_file(WORDS, path) for path in embeddings or ())
    )
    if len(set(found.names)) < len(files):
        raise InputError(f"{OPTION}: two files are called {', '.join(found.names):.200}")
    return found


def name_of(path: Path) -> str:
    """Under which the LoRA of a file is known."""
    return path.stem.replace(".", "_")


def _file(option: str, path: Path) -> Path:
    if not path.is_file():
        raise NotFoundError(f"{option} {str(path)!r:.200}: no such file")
    return path.resolve()


def check_recorded(path: Path, recorded: Mapping[str, Any] | None) -> None:
    """Raise an InputError where a picture was made with LoRAs that nobody names; a record holds no
    files."""
    if recorded:
        told = " ".join(f"{OPTION} {name}.safetensors" for name in recorded)
        raise InputError(f"{path} was made with LoRAs; name their files: {told:.300}")
