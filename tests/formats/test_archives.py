"""Archives that others read, looked at before."""

import io
import mmap
import zipfile

import pytest

from underdraw.formats.archives import check_entries, open_archive

MOST = 4096


def archive(packed=zipfile.ZIP_STORED):
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", packed) as file:
        file.writestr("code/red", "a red sphere" * 100)
        file.writestr("blue", "a blue cube" * 100)
    return made.getvalue()


def check(content, most=MOST):
    mapped = mmap.mmap(-1, len(content))
    mapped[:] = content
    with mapped, open_archive(mapped) as opened:
        check_entries(opened, most)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (archive().replace(b"red sphere", b"bed sphere", 1), "^code/red: Bad CRC-32"),
        (archive().replace(b"blue cube", b"flue cube", 1), "^blue: Bad CRC-32"),
        (archive()[:-40], "zip"),
        (b"x", "zip"),
    ],
)
def test_what_is_not_whole(content, says):
    with pytest.raises(zipfile.BadZipFile, match=says):
        check(content)


def test_no_more_is_read_than_allowed():
    content = archive(zipfile.ZIP_DEFLATED)
    check(archive())
    check(content)
    with pytest.raises(zipfile.BadZipFile, match=r"^blue: beyond 2,000 bytes"):
        check(content, 2000)
