"""Small files that would cost minutes or gigabytes, by kind; each writes itself to a path."""

import io
import json
import pickle
import struct
import zipfile
import zlib
from pathlib import Path

BIG = 1 << 40
ENTRY = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}


# ---- JSON ----------------------------------------------------------------------------------------
JSON = {
    "deep": b'{"a":' * 30_000 + b"1" + b"}" * 30_000,
    "deep lists": b'{"a":' + b"[" * 90_000 + b"]" * 90_000 + b"}",
    "open": b"[" * 1_000_000,
    "wide": b'{"a":[' + b"{}," * 3_000_000 + b"{}]}",
    "texts": b'{"a":[' + b'"",' * 3_000_000 + b'""]}',
    "numbers": b'{"a":[' + b"1," * 4_000_000 + b"1]}",
    "keys": b"{" + ",".join(map('"%x":0'.__mod__, range(1_100_000))).encode() + b"}",
    "doubled": b'{"a":1,' * 1 + b",".join([b'"b":0'] * 300_000) + b"}",
    "doubled last": b"{" + ",".join(map('"%x":0'.__mod__, range(300_000))).encode() + b',"0":1}',
    "digits": b'{"a":' + b"9" * 4000 + b"}",
    "more digits": b'{"a":' + b"9" * 8_000_000 + b"}",
    "NaN": b'{"a":NaN}',
    "escapes": b'{"a":"' + b"\\" * 200_000 + b'[[[["}',
    "half a pair": rb'{"a":"\ud800"}',
    "latin-1": '{"a":"é"}'.encode("latin-1"),
    "cut UTF-8": b'{"a":"\xe2\x82"}',
    "UTF-16 cut": '{"a":1}'.encode("utf-16")[:-1],
    "cut": b'{"a":[1,',
    "list": b"[1]",
    "text": b'"a"',
    "number": b"3",
    "null": b"null",
    "true": b"true",
    "empty": b"",
    "blank": b" \n ",
    "zeros": b"\0" * 100,
    "page": b"<!DOCTYPE html><html>",
    "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 3\n",
    "17 MB": b'{"a":"' + b"x" * (17 << 20) + b'"}',
    "two": b'{"a":1}{"a":1}',
    "comment": b'{"a":1} // why',
}


# ---- safetensors ---------------------------------------------------------------------------------
def headed(text: bytes, data: bytes = b"") -> bytes:
    return len(text).to_bytes(8, "little") + text + data


def header(**tensors) -> bytes:
    return headed(json.dumps(tensors).encode())


def doubled_names() -> bytes:
    one = b'"x%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    names = [*range(30_000), *range(30_000)]
    return headed(b"{" + b",".join(one % n for n in names) + b"}")


SAFETENSORS = {
    "doubled names": doubled_names,
    "doubled entries": lambda: headed(
        b'{"x":{' + b",".join(b'"%x":0' % i for i in range(200_000)) + b',"0":1}}'
    ),
    "a million axes": lambda: header(x=ENTRY | {"shape": [2] * 900_000}),
    "a million axes of 1": lambda: header(x=ENTRY | {"shape": [1] * 900_000}),
    "40 axes": lambda: header(x=ENTRY | {"shape": [1] * 40, "data_offsets": [0, 4]}),
    "empty and huge": lambda: header(x=ENTRY | {"shape": [0, 1 << 61]}),
    "empty and huge together": lambda: header(x=ENTRY | {"shape": [0, 1 << 40, 1 << 40]}),
    "negative": lambda: header(x=ENTRY | {"shape": [-1]}),
    "a text for a shape": lambda: header(x=ENTRY | {"shape": "12"}),
    "an object for a shape": lambda: header(x=ENTRY | {"shape": {}}),
    "a long name": lambda: header(**{"x" * 1_000_000: ENTRY}),
    "99 MB of blanks": lambda: headed(b"{}" + b" " * 99_000_000),
    "metadata wide": lambda: headed(b'{"__metadata__":{"a":[' + b"[]," * 9_000_000 + b"[]]}}"),
    "metadata of numbers": lambda: header(__metadata__={"a": 1}),
    "metadata nested": lambda: header(__metadata__={"a": {"b": "c"}}),
    "deep": lambda: headed(b'{"a":' * 100_000 + b"}" * 100_000),
    "values": lambda: headed(b'{"a":[' + b"0," * 15_000_000 + b"0]}"),
    "NaN": lambda: headed(b'{"x":{"dtype":"U8","shape":[NaN],"data_offsets":[0,0]}}'),
    "digits": lambda: headed(
        b'{"x":{"dtype":"U8","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,0]}}'
    ),
    "length": lambda: b"\xff" * 7 + b"\x7f{}",
}


# ---- pickles -------------------------------------------------------------------------------------
def archive(program: bytes, *, deflated: bool = False, **records: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(
        file, "w", zipfile.ZIP_DEFLATED if deflated else 0, compresslevel=1
    ) as made:
        made.writestr("archive/data.pkl", program)
        for key, raw in records.items():
            made.writestr(f"archive/data/{key.removeprefix('r')}", raw)
    return file.getvalue()


def torch_save(program: bytes) -> bytes:
    """A file of the older form, around the pickle of its tensors."""
    start = b"".join(pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {}))
    return start + program + pickle.dumps([], 2)


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


STEPS, COPIES = 40_000, 400_000
"""The test lowers the machine's bounds to these; programs that are to be carried out whole stay
below them."""
LIST = b"(" + b"K\x00" * 1000 + b"l"
STORAGE = (
    b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ"
)
KEY = b"X\x01\x00\x00\x000"
SIZE, MAPPING = b"ctorch\nSize\n", b"ccollections\nOrderedDict\n"
SUBCLASS = b"ctorch._tensor\n_rebuild_from_type_v2\n"
DICTIONARY = b"}(" + b"".join(b"J%sK\x00" % struct.pack("<i", i) for i in range(9_000)) + b"u"
PAIRS = b"(" + b"(K\x00K\x00t" * 1000 + b"l"
MANY = 10 * STEPS


def tensor(size: bytes, stride: bytes, storage: bytes = STORAGE) -> bytes:
    """Opcodes of a tensor; sizes and strides as opcodes."""
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00" + size + stride + b"\x89NtR"


def number(value: int) -> bytes:
    return b"\x8a\x08" + value.to_bytes(8, "little", signed=True)


def calls(argument: bytes, function: bytes, again: bytes = b"h\x01h\x00\x85R") -> bytes:
    """A function called with one argument over and over; all results are kept."""
    return argument + b"q\x00" + function + b"q\x01" + again * (STEPS // 5)


PROGRAMS = {
    "steps": b"N0" * MANY + b"}",
    "stack": b"N" * MANY,
    "dictionaries": b"}" * MANY,
    "marks": b"(" * MANY + b"}",
    "deep": b"]" * 18_000 + b"a" * 17_999,
    "torch.Size of a list": calls(LIST, SIZE),
    "torch.Size of a text": calls(text("x" * 1_000_000), SIZE),
    "OrderedDict of a list": calls(PAIRS, MAPPING),
    "OrderedDict of a dictionary": calls(DICTIONARY, MAPPING),
    "subclasses in one another": SUBCLASS
    + b"q\x01"
    + SIZE
    + b"q\x02)q\x03"
    + b"h\x01h\x02h\x03\x87q\x03" * 7000
    + b"h\x01h\x03R",
    "subclasses over and over": SUBCLASS
    + b"q\x01"
    + SIZE
    + b"q\x02)q\x03"
    + b"h\x01h\x02h\x03\x87q\x03" * 4000
    + b"h\x01h\x03R0" * 4000
    + b"}",
    "a list in a subclass": LIST
    + b"\x85q\x00"
    + SUBCLASS
    + b"q\x01"
    + SIZE
    + b"q\x02"
    + b"h\x01h\x02h\x02h\x00\x87R" * 6000,
    "shared children": b"](" + b"K\x00" * 15_000 + b"eq\x00(" + b"h\x00" * 20_000 + b"l",
    "shared state": DICTIONARY + b"q\x00cx\nY\nq\x01(" + b"h\x01)Rh\x00b" * 4000 + b"l",
    "shared items": DICTIONARY + b"q\x00(" + b"(K\x01h\x00d" * 5000 + b"l",
    "long names": text("k" * 900) + b"q\x00}q\x01" + b"}h\x00h\x01sq\x01" * 60,
    "a longer name": text("k" * 900_000)
    + b"q\x00}h\x00"
    + tensor(b"K\x01\x85", b"K\x01\x85")
    + b"s",
    "long key and equal one": text("k" * 4_000_000)
    + b"q\x00"
    + text("k" * 4_000_000)
    + b"q\x01}"
    + b"h\x00Nsh\x01Ns" * 6000,
    "a whole number of 8 MB": b"\x8b" + struct.pack("<i", 8_000_000) + b"\x7f" * 8_000_000,
    "digits": b"I" + b"9" * 500_000 + b"\n",
    "a long class": text("m" * 4_000_000) + b"q\x00" + b"h\x00h\x00\x930" * 9000 + b"}",
    "a long storage": STORAGE.replace(KEY, text("k" * 4_000_000)),
    "a million axes": b"}X\x01\x00\x00\x00w"
    + tensor(b"(" + b"K\x01" * 19_000 + b"t", b"(" + b"K\x01" * 19_000 + b"t")
    + b"s",
    "empty and huge": b"}X\x01\x00\x00\x00w"
    + tensor(b"K\x00" + number(1 << 61) + b"\x86", b"K\x00K\x00\x86")
    + b"s",
    "bytes that are not there": b"\x8e" + struct.pack("<Q", BIG) + b"abc",
    "a text of 40 MB": b"}X" + struct.pack("<I", 40 << 20) + b"x" * (40 << 20) + b"Ns",
    "frames": (b"\x95" + struct.pack("<Q", BIG)) * 100 + b"}",
    "loop": b"}q\x00X\x01\x00\x00\x00ah\x00s",
    "tower": b")" + b"2\x86" * 15_000,
}
PROGRAMS = {name: b"\x80\x04" + program + b"." for name, program in PROGRAMS.items()}


def lying_entry() -> bytes:
    """An entry that says it has 9 bytes, and inflates to 300 MB."""
    squeezed = zlib.compressobj(1, zlib.DEFLATED, -15)
    block = b"N0" * (1 << 19)
    raw = b"".join(squeezed.compress(block) for _ in range(300)) + squeezed.flush()
    whole = bytearray(archive(b"x" * 9, deflated=True))
    with zipfile.ZipFile(io.BytesIO(whole)) as made:
        info = made.infolist()[0]
    local = (
        struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 8, 0, 0, 0, len(raw), 9, len(info.filename), 0)
        + info.filename.encode()
    )
    central = (
        struct.pack(
            "<4s6H3I5H2I",
            b"PK\1\2",
            20,
            20,
            0,
            8,
            0,
            0,
            0,
            len(raw),
            9,
            len(info.filename),
            0,
            0,
            0,
            0,
            0,
            0,
        )
        + info.filename.encode()
    )
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1, 1, len(central), len(local) + len(raw), 0)
    return local + raw + central + end


def many_entries() -> bytes:
    """A list of contents of 400,000 entries, all of the same few bytes."""
    one = (
        struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0)
        + b"a"
    )
    central = one * 400_000
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0xFFFE, 0xFFFE, len(central), 30, 0)
    return b"PK\3\4" + b"\0" * 26 + central + end


def inflated_storages() -> bytes:
    """Twelve tensors of 32 MB of zeros in 400 kB."""
    count = b"J" + struct.pack("<i", 1 << 23)
    program = b"\x80\x02}("
    for i in range(12):
        storage = STORAGE.replace(b"K\x01tQ", count + b"tQ").replace(KEY, text(str(i)))
        program += text(f"w{i}") + tensor(count + b"\x85", b"K\x01\x85", storage)
    zeros = {f"r{i}": bytes(1 << 25) for i in range(12)}
    return archive(program + b"u.", deflated=True, **zeros)


ARCHIVES = {
    "deflated steps": lambda: archive(b"\x80\x02" + b"N0" * (1 << 24) + b"}.", deflated=True),
    "an entry that lies": lying_entry,
    "400,000 entries": many_entries,
    "inflated storages": inflated_storages,
}


# ---- pictures ------------------------------------------------------------------------------------
def png(*chunks: tuple[bytes, bytes]) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        checked = kind + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    head = struct.pack(">2I5B", 1, 1, 8, 0, 0, 0, 0)
    parts = [(b"IHDR", head), *chunks, (b"IDAT", zlib.compress(b"\0\0")), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in parts)


MEGABYTE = zlib.compress(b" " * 1_000_000)


def record(content: bytes) -> tuple[bytes, bytes]:
    return b"iTXt", b"underdraw\0\0\0\0\0" + content


RECORDS = {
    "zTXt": lambda: png((b"zTXt", b"underdraw\0\0" + zlib.compress(b"[" * (1 << 24)))),
    "many zTXt": lambda: png(*[(b"zTXt", b"k%d\0\0" % i + MEGABYTE) for i in range(100)]),
    "iTXt, compressed": lambda: png(
        (b"iTXt", b"underdraw\0\1\0\0\0" + zlib.compress(b"[" * (1 << 24)))
    ),
    "profile": lambda: png((b"iCCP", b"p\0\0" + zlib.compress(b"\0" * (1 << 24)))),
}


def link(path: Path, to: str) -> None:
    path.symlink_to(to)
