"""Where a one-file checkpoint is: on this machine, or a file of a Hub repository."""

from __future__ import annotations

import os
import re
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
    try:
        return Path(hf_hub_download(repository, file, **access))
    except Exception as error:
        if not hub.of_the_hub(error) and not isinstance(error, ValueError):
            raise
        raise NotFoundError(
            f"{name}: no such file here, and the Hub gives no {file} of {repository} "
            f"({hub.first_line(error)})"
        ) from None
