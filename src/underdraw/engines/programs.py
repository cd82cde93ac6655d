"""Programs that JAX compiled on disk, so that the next process need not compile them.

The files are JAX's own: it writes, reads and evicts them (the longest unused go first). One folder
serves a process, for all that JAX compiles in it for a second or more; where the process or its
environment has named one to JAX itself (`jax_compilation_cache_dir`), that one stays.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from underdraw.engines.kept import Kept

ENDS = ("-cache", "-atime")
"""Of the names of JAX's files: a program, and when it was used last."""


@dataclass(frozen=True)
class Programs:
    """A folder of compiled programs of at most `most` bytes."""

    folder: Path
    most: int

    @classmethod
    def within(cls, kept: Kept) -> Programs:
        """That beside what other engines keep, as large again."""
        return cls(kept.folder / "jax", kept.most)

    def prepare(self) -> bool:
        """Whether the folder is there, and nobody but this user writes into it: programs are read
        as code."""
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            return Kept(self.folder, self.most).is_private()
        return False

    def sizes(self) -> list[int]:
        """Bytes of each program."""
        found = []
        with suppress(OSError):
            for path in self.folder.glob(f"*{ENDS[0]}"):
                with suppress(OSError):
                    found.append(path.stat().st_size)
        return found

    def clear(self) -> int:
        """Remove all of them; how many bytes that were. Processes that have some go on."""
        total = sum(self.sizes())
        for end in ENDS:
            with suppress(OSError):
                for path in [*self.folder.glob(f"*{end}")]:
                    path.unlink(missing_ok=True)
        return total
