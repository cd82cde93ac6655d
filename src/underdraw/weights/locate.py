"""Where a one-file checkpoint is: on this machine, or a file of a Hub repository."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download

from underdraw.errors import InputTypeError, NotFoundError
from underdraw.weights import hub
from underdraw.weights.files import SUFFIXES

_PAGE = re.compile(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/")
_FILE = re.compile(r"([\w.-]+/[\w.-]+)/(?:(?:blob|resolve)/([^/]+)/)?(.+)")


def find(source: Any, **access: Any) -> Path:
    """The file itself: a path, "owner/name/folder/file.safetensors" on the Hub, or its page.

    Raises NotFoundError where there is nothing of that name.
    """
    if not isinstance(source, str | os.PathLike):
        raise InputTypeError(f"source={source!r} is neither a path nor a file on the Hub")
    name = os.fspath(source)
    if os.path.isfile(name):
        return Path(name)
    if os.path.isdir(name):
        raise NotFoundError(f"{name} is a folder, not a file; folders are read by from_pretrained")
    link = _FILE.fullmatch(_PAGE.sub("", name))
    if link is None or not name.endswith(SUFFIXES) or name.startswith((".", "/")):
        raise NotFoundError(f"{name}: no such file (and not owner/name/file on the Hub)")
    repository, revision, file = link.groups()
    if revision is not None:
        access.setdefault("revision", revision)
    access.setdefault("endpoint", os.environ.get("HF_ENDPOINT") or None)
    try:
        return Path(hf_hub_download(repository, file, **access))
    except Exception as error:
        if not hub.of_the_hub(error) and not isinstance(error, ValueError):
            raise
        raise NotFoundError(
            f"{name}: no such file here, and the Hub gives no {file} of {repository} "
            f"({hub.first_line(error)})"
        ) from None


def find_in(
    source: Any,
    names: Sequence[str],
    weight_name: str | None = None,
    subfolder: str = "",
    **access: Any,
) -> Path:
    """The file of small weights (a LoRA, learned words) that a path, a folder or a Hub id means.

    Args:
        names: what the file of a folder is called where nobody says; of a folder on this machine
            it may also be the only `.safetensors`.
        weight_name, subfolder: what somebody says.

    Raises:
        NotFoundError: there is none, or nothing tells which.
    """
    if not isinstance(source, str | os.PathLike) or not os.fspath(source):
        raise InputTypeError(f"source={source!r:.80} is neither a path nor a name on the Hub")
    path = Path(source)
    if path.is_file() or (os.fspath(source).endswith(SUFFIXES) and weight_name is None):
        return find(source, **access)
    names = names if weight_name is None else (weight_name,)
    if path.is_dir():
        folder = path / subfolder
        found = [folder / name for name in names if (folder / name).is_file()]
        if weight_name is None and not found:
            found = sorted(one for one in folder.glob("*.safetensors") if one.is_file())[:2]
            found = found if len(found) == 1 else []
        if not found:
            there = ", ".join(sorted(p.name for p in folder.glob("*") if p.suffix in SUFFIXES)[:9])
            raise NotFoundError(
                f"{folder}: none of {', '.join(names)} is there; give weight_name, of "
                f"{there or 'no weight file'}"
            )
        return found[0]
    for name in names[:-1]:
        with suppress(NotFoundError):
            return find("/".join(filter(None, (str(source), subfolder, name))), **access)
    return find("/".join(filter(None, (str(source), subfolder, names[-1]))), **access)
