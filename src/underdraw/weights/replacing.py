"""Files of a folder replaced as a whole, which survives being killed at any moment.

The new files are ready in a folder of their own inside the target, with a list of what comes and
what goes. Renaming that folder to `JOURNAL` decides: from then on the new files are what counts.
First all old files are moved out, what loading begins with before the rest, then the new ones in,
in the reverse order. So there are never old and new files side by side, and in between nothing
loads. Whoever reads or writes the folder next calls `settle`, which goes on where it stopped: what
is left to do can be told from where the files are.
"""

import json
import os
import shutil
import stat
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from underdraw.errors import InputError, WeightError
from underdraw.formats import leftovers
from underdraw.formats.writing import sync
from underdraw.weights import folders

JOURNAL = ".underdraw-saving"
NEW, OLD, LIST = "new", "old", "list.json"
GATES = (folders.MODEL_INDEX, "config.json", "tokenizer.json", "vocab.json")
"""Files without which nothing of a folder loads, from the outermost on; then comes other JSON, such
as indexes of shards."""
PATIENCE, PAUSE = 200, 0.05
"""How often to look again, and after how many seconds, while another process moves its files: a few
renames."""


@dataclass(frozen=True)
class Replacing:
    """`new` files come into `target`, `gone` ones go without another in their place; paths in it.

    `place` holds the new files, and takes the old ones.
    """

    target: Path
    place: Path
    new: tuple[str, ...]
    gone: tuple[str, ...]

    def forward(self) -> None:
        """Move the old files out and the new ones in, as far as that is not done."""
        for file in self._outermost_first():
            if file in self.gone or self._is_in(NEW, file):
                self._move(self.target, self.place / OLD, file)
        for file in reversed(self._outermost_first()):
            self._move(self.place / NEW, self.target, file)

    def back(self) -> None:
        """Move the new files out and the old ones in, as far as they were moved."""
        for file in self._outermost_first():
            if file in self.new and not self._is_in(NEW, file):
                self._move(self.target, self.place / NEW, file)
        for file in reversed(self._outermost_first()):
            self._move(self.place / OLD, self.target, file)

    def folders(self) -> set[Path]:
        """Those that files come into."""
        return {(self.target / file).parent for file in self.new}

    def _outermost_first(self) -> list[str]:
        return sorted({*self.new, *self.gone}, key=_rank)

    def _is_in(self, part: str, file: str) -> bool:
        return os.path.lexists(self.place / part / file)

    def _move(self, source: Path, target: Path, file: str) -> None:
        if os.path.lexists(source / file):
            os.makedirs((target / file).parent, exist_ok=True)
            os.replace(source / file, target / file)


def _rank(file: str) -> tuple[int, str]:
    name = PurePosixPath(file).name
    if name in GATES:
        return GATES.index(name), file
    return len(GATES) + (not name.endswith(".json")), file


def replace_files(place: Path, target: Path) -> None:
    """Move the files of `place / NEW`, a held folder inside `target`, to where they belong there.

    Other files of the target stay, weights of another form and the same variant go. If something
    fails or is interrupted on the way, everything is moved back.
    """
    while True:
        todo = _compare(place, target)
        text = json.dumps({"new": todo.new, "gone": todo.gone})
        (place / LIST).write_text(text, encoding="utf-8")
        sync([place / LIST, place])
        try:
            os.rename(place, target / JOURNAL)
            break
        except OSError:
            if not _is_half_moved(target):
                raise
            _finish(target)  # another process was quicker
    todo = Replacing(target, target / JOURNAL, todo.new, todo.gone)
    made = [folder for folder in todo.folders() if not folder.exists()]
    try:
        todo.forward()
        sync(todo.folders())
    except BaseException:
        todo.back()  # if this fails as well, the journal stays for `settle`
        for folder in sorted(made, reverse=True):
            with suppress(OSError):
                os.rmdir(folder)
        _close(target, place)
        raise
    _close(target, place)


def settle(folder: Path) -> None:
    """Finish what a killed process had begun to move into a folder, the one above or those in it.

    Raises:
        WeightError: that is not possible; nothing in the folder counts then.
    """
    for place in (folder.parent, folder):
        _finish(place)
    with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        with os.scandir(folder) as entries:
            inside = [Path(entry) for entry in entries if _is_folder(entry)]
        for place in inside:
            _finish(place)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads back to itself
        return False


def outdated(folder: Path, written: Iterable[str]) -> list[str]:
    """Files of a folder that say the same as those just written, in another form."""
    written = set(written)
    kinds = {parsed.variant for parsed in map(folders.parse, written) if parsed}
    # Added tokens stand in a file of their own only where the vocabulary lacks them.
    rest = {"added_tokens.json"} if "vocab.json" in written else set[str]()
    if not folder.is_dir() or not (kinds or rest):
        return []
    return [
        name
        for name in os.listdir(folder)
        if name not in written
        and (name in rest or ((parsed := folders.parse(name)) and parsed.variant in kinds))
    ]


def _compare(place: Path, target: Path) -> Replacing:
    """What comes and what goes. InputError where a folder stands in a file's place, or reversed."""
    new, gone = list[str](), list[str]()
    for at, _, names in os.walk(place / NEW):
        inside = Path(at).relative_to(place / NEW)
        here = target / inside
        if os.path.lexists(here) and not here.is_dir():
            raise InputError(f"{here} is a file; a folder to write into was expected")
        for name in names:
            if (here / name).is_dir() and not (here / name).is_symlink():
                raise InputError(f"{here / name} is a folder; a file is to be written there")
            new.append((inside / name).as_posix())
        gone += [(inside / name).as_posix() for name in outdated(here, names)]
    return Replacing(target, place, tuple(new), tuple(gone))


def _finish(target: Path) -> None:
    journal = target / JOURNAL
    if not _is_half_moved(target):
        return
    try:
        for _ in range(PATIENCE):
            with leftovers.open_lock(journal / leftovers.LOCK) as lock:
                if leftovers.hold(lock, journal / leftovers.LOCK):
                    _read(target).forward()
                    _close(target, target / leftovers.new_name(target.name))
                    return
            time.sleep(PAUSE)  # a living process brings its files to their places
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not _is_half_moved(target):
            return
        raise WeightError(
            f"{target}: a save was interrupted while files were moved, and they cannot be moved "
            f"now ({error.strerror or error}). New ones are in {journal / NEW}, old ones in "
            f"{journal / OLD}"
        ) from error
    raise WeightError(f"{target}: another process is writing into it and does not end")


def _is_half_moved(target: Path) -> bool:
    """Whether there is a journal of one's own, or of whom the folder belongs to: in a folder that
    all may write into, others could have files moved by it."""
    try:
        journal, folder = os.lstat(target / JOURNAL), os.stat(target)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return False
    own = os.geteuid() if hasattr(os, "geteuid") else folder.st_uid
    return stat.S_ISDIR(journal.st_mode) and journal.st_uid in (own, folder.st_uid)


def _read(target: Path) -> Replacing:
    """What a journal tells. It may have come with a folder from anywhere: it moves files inside of
    that folder only."""
    raw = folders.read_json(target / JOURNAL / LIST)
    new, gone = (raw.get(name) for name in ("new", "gone"))
    root = os.path.realpath(target)
    if not isinstance(new, list) or not isinstance(gone, list):
        raise WeightError(f"{target / JOURNAL / LIST} is not a list of files")
    for file in (*new, *gone):
        inside = isinstance(file, str) and ".." not in PurePosixPath(file).parts
        if not inside or os.path.isabs(file) or "\\" in file or ":" in file:
            raise WeightError(f"{target / JOURNAL / LIST}: {file!r} is no file of the folder")
        for top in (target, target / JOURNAL / NEW, target / JOURNAL / OLD):
            if os.path.commonpath([root, os.path.realpath((top / file).parent)]) != root:
                raise WeightError(f"{target / JOURNAL / LIST}: {file!r} lies outside, by a link")
    return Replacing(target, target / JOURNAL, tuple(new), tuple(gone))


def _close(target: Path, place: Path) -> None:
    """What a journal still holds goes: the files that were replaced."""
    os.rename(target / JOURNAL, place)
    shutil.rmtree(place, ignore_errors=True)
