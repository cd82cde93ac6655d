"""PyTorch: what its compiler made, brought from one process to the next."""

from __future__ import annotations

import os
import re
import struct
import tempfile
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from underdraw.backends.machine import processor
from underdraw.errors import InputError

Function = Callable[[Any, Sequence[Tensor]], Sequence[Tensor]]
"""From a network and arrays to arrays."""
MODEL = "model."
"""What the names of a network's parameters begin with in a package."""
MADE_FOR = "underdraw.made_for"
"""Under which word of a package its own name is."""
HOW = {
    # The parameters are the network's, whichever of the kind it is, and lie in memory once.
    "aot_inductor.package_constants_in_so": False,
    # As many threads as there are where it runs, and not where it was made.
    "cpp.dynamic_threads": True,
}


def maker() -> str:
    """What compiled code depends on besides the program: PyTorch and the processor."""
    said = repr((torch.__version__, processor().flags, torch.version.cuda))
    return blake2b(said.encode(), digest_size=4).hexdigest()


# -- what was compiled while running --------------------------------------------------------------
LIBRARY = re.compile(r"[a-z0-9]{2}/[a-z0-9.]{8,80}\.so")
"""A kernel in PyTorch's folder."""
HEAD = struct.Struct("<HQ")
"""Before each part: bytes of its name, which PyTorch's own record lacks, and of the part."""


def made_artifacts() -> bytes | None:
    """What PyTorch has compiled, or found compiled, since the process began; None for nothing.

    Of kernels for CPUs its own record holds the source alone; so the libraries go along which this
    process has loaded from PyTorch's folder (on Linux, which tells)."""
    # PyTorch before 2.7 hands nothing over.
    save = getattr(torch.compiler, "save_cache_artifacts", lambda: None)
    if (made := save()) is None:
        return None
    folder = _kernels()
    parts = {"": made[0], **{name: (folder / name).read_bytes() for name in _loaded(folder)}}
    heads = {name: HEAD.pack(len(name), len(content)) for name, content in parts.items()}
    return b"".join(heads[name] + name.encode() + content for name, content in parts.items())


def take_artifacts(found: bytes) -> bool:
    """Have PyTorch find there what it compiled in another process; whether it could read it.

    They hold code that will run: only what this user has written is to be given.
    """
    try:
        folder, at, taken = _kernels(), 0, False
        while at < len(found):
            length, size = HEAD.unpack_from(found, at)
            at += HEAD.size
            name, content = found[at : at + length].decode(), found[at + length :][:size]
            at += length + size
            if not name:
                taken = torch.compiler.load_cache_artifacts(content) is not None
            elif LIBRARY.fullmatch(name) and not (folder / name).exists():
                _write(folder / name, content)
        return taken
    except Exception:  # whatever a damaged file makes of its reader
        return False


def _kernels() -> Path:
    """Where PyTorch keeps what it compiles."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return Path(cache_dir())


def _loaded(folder: Path) -> list[str]:
    """Libraries of this folder that the process has loaded, relative to it."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    paths = {line.split(maxsplit=5)[-1] for line in lines if line.endswith(".so")}
    inside = (path[len(f"{folder}/") :] for path in paths if path.startswith(f"{folder}/"))
    return sorted(name for name in inside if LIBRARY.fullmatch(name))


def _write(path: Path, content: bytes) -> None:
    """A library that is whole whenever another process looks for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(content)
    os.replace(file.name, path)


# -- packages -------------------------------------------------------------------------------------
class _Whole(nn.Module):
    def __init__(self, model: Any, function: Function) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, *arrays: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.function(self.model, arrays))


def packaged(function: Function, model: Any, arrays: Sequence[Tensor], name: str) -> bytes:
    """The file of a function compiled for arrays as these, with the parameters of the network left
    out.

    Args:
        name: what it was made for, which is written into it.

    Raises:
        InputError: there is no C++ compiler, PyTorch is older than 2.8, or the function holds
            arrays of its own.
    """
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 8):
        raise InputError(f"packages without weights need PyTorch 2.8; here is {torch.__version__}")
    from torch._inductor import aoti_compile_and_package
    from torch._inductor.exc import InvalidCxxCompiler

    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "made.pt2")
        exported = torch.export.export(_Whole(model, function), tuple(arrays), strict=False)
        if exported.constants:
            raise InputError(f"the program holds arrays of its own: {[*exported.constants][:5]}")
        try:
            how = {**HOW, "aot_inductor.metadata": {MADE_FOR: name}}
            aoti_compile_and_package(exported, package_path=str(file), inductor_configs=how)
        except InvalidCxxCompiler as error:
            raise InputError("packages need a C++ compiler, such as g++") from error
        return file.read_bytes()


class Package:
    """A compiled function. Threads may call it, one after another."""

    def __init__(self, file: Path) -> None:
        self._run: Any = torch._inductor.aoti_load_package(str(file))
        self._names = self._run.get_constant_fqns()
        self._held: list[Tensor] = []

    @property
    def made_for(self) -> str | None:
        """The name it was made under, which tells its network and inputs."""
        return self._run.get_metadata().get(MADE_FOR)

    def __call__(self, model: Any, arrays: Sequence[Tensor]) -> Sequence[Tensor]:
        """The outputs, computed with the parameters of this network as they are now."""
        known: dict[str, Tensor] = dict(model.named_parameters())
        wanted = [known[name.removeprefix(MODEL)] for name in self._names]
        places = [one.data_ptr() for one in wanted]
        if places != [one.data_ptr() for one in self._held]:
            # Where they lie is noted, so they are held.
            self._held = [one.detach() for one in wanted]
            given = dict(zip(self._names, self._held, strict=True))
            self._run.load_constants(given, check_full_update=True, user_managed=True)
        return self._run(*arrays)
