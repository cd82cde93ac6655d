"""Files as strangers may have made them: every one that underdraw reads is opened here.

Only regular files (or links to them) are opened: a pipe, a device or a socket under a file's name
would hang or never end. Each kind of file has a most that it can hold, and no more is ever read,
whatever a file says of itself.
"""

import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from underdraw.errors import NotFoundError, UnderdrawError, WeightError

MB = 1 << 20
TEXT = 16 * MB
"""The most bytes of a text file; the longest that are published (vocabularies) have 3 MB."""
LINE = MB
"""The most bytes of a line in a file of lines."""
LINES = 1_000_000

Fault = type[UnderdrawError]
Name = str | os.PathLike[str]


def open_regular(path: Name, most: int | None = None, *, fault: Fault = WeightError) -> BinaryIO:
    """A regular file, open for reading bytes.

    Args:
        most: how many bytes it may have; None for files of which only parts are looked at.
        fault: the class of error for what is no such file.

    Raises:
        NotFoundError: there is none.
        fault: it is something else than a file, too large, or cannot be read; the message begins
            with its name.
    """
    try:
        _check(os.stat(path), path, most, fault)  # to open some devices does something already
        # What was put there in between does not hang either: a pipe opens at once, too.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
        descriptor = os.open(path, flags | getattr(os, "O_BINARY", 0))
        try:
            _check(os.fstat(descriptor), path, most, fault)
            return open(descriptor, "rb")
        except BaseException:
            os.close(descriptor)
            raise
    except FileNotFoundError as error:
        raise NotFoundError(f"{_named(path)}: no such file") from error
    except OSError as error:
        raise fault(f"{_named(path)}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        if isinstance(error, UnderdrawError):
            raise
        raise fault(f"{_named(path)}: no file can have this name: {error}") from error


def is_regular(path: Name) -> bool:
    """Whether there is a regular file; False also for names that no file can have."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def read_bytes(path: Name, most: int = TEXT, *, fault: Fault = WeightError) -> bytes:
    """All of a file of at most `most` bytes; errors as for `open_regular`."""
    with open_regular(path, most, fault=fault) as file, _told(path, fault):
        size = os.fstat(file.fileno()).st_size
        content = file.read(size + 1)
        if len(content) > size:  # it grew, or is of those in /proc that call themselves empty
            content += file.read(most)
    if len(content) > most:
        raise fault(_too_large(path, f"over {most:,}", most))
    return content


def read_text(path: Name, most: int = TEXT, *, fault: Fault = WeightError) -> str:
    """A file as text in UTF-8, without a byte order mark; errors as for `open_regular`."""
    return decoded(read_bytes(path, most, fault=fault), _named(path), fault=fault)


def read_lines(
    path: Name, most: int = 1024 * MB, *, fault: Fault = WeightError
) -> Iterator[tuple[int, str]]:
    """The lines of a text file that are not blank, with their numbers from 1 on, one in memory at
    a time: at most `LINES` of at most `LINE` bytes each. Errors as for `open_regular`."""
    with open_regular(path, most, fault=fault) as file:
        for number in range(1, LINES + 2):
            with _told(path, fault):
                line = file.readline(LINE + 1)
            if not line:
                return
            at = f"{_named(path)}:{number}"
            if number > LINES:
                raise fault(f"{_named(path)}: more than {LINES:,} lines")
            if len(line) > LINE:
                raise fault(f"{at}: a line of over {LINE:,} bytes")
            text = decoded(line, at, fault=fault).strip()
            if text:
                yield number, text


def read_blocks(
    path: Name, most: int, block: int = 4 * MB, *, fault: Fault = WeightError
) -> Iterator[bytes]:
    """A file of at most `most` bytes in blocks; errors as for `open_regular`."""
    with open_regular(path, most, fault=fault) as file:
        done = 0
        while done <= most:
            with _told(path, fault):
                content = file.read(block)
            if not content:
                return
            done += len(content)
            yield content
    raise fault(_too_large(path, f"over {most:,}", most))


def decoded(raw: bytes, source: str, encoding: str = "utf-8-sig", *, fault: Fault) -> str:
    """Bytes as text. Raises `fault` that tells `source` and the first wrong byte."""
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        name = encoding.removesuffix("-sig").upper()
        wrong = error.object[error.start]
        raise fault(f"{source}: not {name} text: byte {error.start:,} is {wrong:#04x}") from error


def map_file(path: Name) -> mmap.mmap:
    """The whole file as copy-on-write memory, which costs nothing before it is looked at. Raises
    WeightError also for an empty file."""
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise WeightError(f"{_named(path)}: the file is empty (0 bytes)")
        try:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError, OverflowError) as error:
            raise WeightError(f"{_named(path)}: cannot be read: {error}") from error


@contextmanager
def _told(path: Name, fault: Fault) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise fault(f"{_named(path)}: cannot be read: {error.strerror or error}") from error


def _check(status: os.stat_result, path: Name, most: int | None, fault: Fault) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise fault(f"{_named(path)} is a folder; a file was expected")
    if not stat.S_ISREG(status.st_mode):
        raise fault(f"{_named(path)} is a {_kind(status.st_mode)}, not a file")
    if most is not None and status.st_size > most:
        raise fault(_too_large(path, f"{status.st_size:,}", most))


def _kind(mode: int) -> str:
    if stat.S_ISFIFO(mode):
        return "pipe"
    return "socket" if stat.S_ISSOCK(mode) else "device"


def _too_large(path: Name, size: str, most: int) -> str:
    return f"{_named(path)}: {size} bytes; a file of this kind has at most {most:,}"


def _named(path: Name) -> str:
    name = os.fspath(path)
    return name if len(name) < 300 and name.isprintable() else f"{name[:300]!r}"
