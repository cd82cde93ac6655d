"""Zip archives as strangers may have made them, over a mapped file.

`zipfile` reads a list of contents of any length, allocates what an entry says it has, and inflates
up to 2 GB of an entry that says it is small.
"""

import mmap
import zipfile

from underdraw.formats.stored import Window

MAX_CONTENTS = 1 << 23
"""Bytes of an archive's list of contents: 8 MB, which is 80,000 entries of torch's."""


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
