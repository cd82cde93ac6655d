"""Zip archives as strangers may have made them, over a mapped file.

`zipfile` reads a list of contents of any length, allocates what an entry says it has, and inflates
up to 2 GB of an entry that says it is small.
"""

import mmap
import zipfile

from underdraw.formats.stored import Window

MAX_CONTENTS = 1 << 23
"""Bytes of an archive's list of contents: 8 MB, which is 80,000 entries of torch's."""
BLOCK = 1 << 20


def open_archive(mapped: mmap.mmap) -> zipfile.ZipFile:
    """The archive in a mapped file. Raises BadZipFile where it is none, or has too long a list of
    contents."""
    window = Window(mapped, most=MAX_CONTENTS)
    try:
        archive = zipfile.ZipFile(window)  # type: ignore[arg-type]
    except (ValueError, NotImplementedError, EOFError, OSError) as error:
        raise zipfile.BadZipFile(str(error)) from error
    window.most = None  # an entry may be larger
    return archive


def read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """All of an entry, of which no more is read than it says it has. Raises BadZipFile where it is
    damaged, encrypted, or has less."""
    try:
        with archive.open(entry) as file:
            content = file.read(entry.file_size)
    except Exception as error:  # zlib, lzma and CRC errors have no common base
        raise zipfile.BadZipFile(str(error)) from error
    if len(content) != entry.file_size:
        raise zipfile.BadZipFile(f"{len(content):,} bytes of {entry.file_size:,}")
    return content


def check_entries(archive: zipfile.ZipFile, most: int) -> None:
    """Read all entries, a block at a time, for a reader that does not look whether they are whole.

    Args:
        most: how many bytes they may have together.

    Raises:
        BadZipFile: one is damaged, encrypted or has less than it says, or they have more than
            that; the message begins with its name.
    """
    left = most
    for entry in archive.infolist():
        left -= entry.file_size
        if left < 0:
            raise zipfile.BadZipFile(f"{entry.filename:.200}: beyond {most:,} bytes of all entries")
        size = 0
        try:
            with archive.open(entry) as file:
                while block := file.read(BLOCK):  # at its end the sum is compared
                    size += len(block)
        except Exception as error:  # zlib, lzma and CRC errors have no common base
            raise zipfile.BadZipFile(f"{entry.filename:.200}: {error}") from error
        if size != entry.file_size:
            raise zipfile.BadZipFile(
                f"{entry.filename:.200}: {size:,} bytes of {entry.file_size:,}"
            )
