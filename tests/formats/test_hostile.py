"""Every reader of files, on files of every fault: one clear error, and hardly any memory."""

import io
import json
import os
import signal
import socket
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
from formats import hostile
from PIL import Image

from underdraw.cli.boxes import read_layout
from underdraw.errors import UnderdrawError
from underdraw.evaluation.detector import load_evaluator
from underdraw.formats.arrays import read_array, read_arrays
from underdraw.models import CLIPImageProcessor
from underdraw.pictures.writing import read_metadata
from underdraw.pipelines.diffedit.edit import Kept
from underdraw.schedulers import DDIMScheduler
from underdraw.text.tokenizer import CLIPTokenizer
from underdraw.training import checkpoints
from underdraw.training.annotations import read_coco, read_folder
from underdraw.training.data import CaptionedFolder, RenderedScenes
from underdraw.training.views import Views
from underdraw.weights import folders
from underdraw.weights.files import open_tensors
from underdraw.weights.grounding import read_grounding, read_projection
from underdraw.weights.single_file import read_single_file

MB = 1 << 20
VOCAB = json.dumps({"<|startoftext|>": 0, "<|endoftext|>": 1, "a": 2, "b": 3, "ab": 4}).encode()
MERGES = b"#version: 0.2\na b\n"


class Reader(NamedTuple):
    """What reads `file` in a folder that holds `beside`, too."""

    file: str
    read: Callable[[Path], Any]
    """Of the folder."""
    beside: Mapping[str, bytes] = MappingProxyType({})
    json: bool = False


def shards(folder: Path) -> Any:
    return folders.open_weights(folder, folders.component_files(folder))


READERS = {
    "config": Reader("config.json", folders.read_config, json=True),
    "model index": Reader("model_index.json", folders.read_model_index, json=True),
    "index": Reader(
        "model.safetensors.index.json",
        shards,
        {"model-00001-of-00002.safetensors": hostile.headed(b"{}")},
        json=True,
    ),
    "scheduler": Reader("scheduler_config.json", DDIMScheduler.from_pretrained, json=True),
    "processor": Reader("preprocessor_config.json", CLIPImageProcessor.from_pretrained, json=True),
    "tokenizer": Reader("tokenizer.json", CLIPTokenizer.from_pretrained, json=True),
    "vocabulary": Reader(
        "vocab.json", CLIPTokenizer.from_pretrained, {"merges.txt": MERGES}, json=True
    ),
    "merges": Reader("merges.txt", CLIPTokenizer.from_pretrained, {"vocab.json": VOCAB}),
    "layout": Reader("layout.json", lambda folder: read_layout(folder / "layout.json"), json=True),
    "lines": Reader("metadata.jsonl", read_folder),
    "sidecar": Reader("a.json", read_folder, {"a.png": b""}, json=True),
    "coco": Reader("i.json", lambda folder: read_coco(folder, folder / "i.json"), json=True),
    "captions": Reader("metadata.jsonl", lambda folder: CaptionedFolder(folder, 8)),
    "record": Reader("a.png", lambda folder: read_metadata(folder / "a.png")),
    "safetensors": Reader("a.safetensors", lambda folder: open_tensors(folder / "a.safetensors")),
    "pickle": Reader("a.bin", lambda folder: open_tensors(folder / "a.bin")),
    "single file": Reader("a.ckpt", lambda folder: read_single_file(folder / "a.ckpt")),
    "grounding": Reader("a.pth", lambda folder: read_grounding(folder / "a.pth")),
    "projection": Reader("projection", lambda folder: read_projection(folder / "projection")),
    "edit": Reader("a.safetensors", lambda folder: Kept(folder / "a.safetensors", {})),
    "evaluator": Reader("a.safetensors", lambda f: load_evaluator(f / "a.safetensors")),
    "state": Reader("state.pt", lambda folder: checkpoints.load(folder / "state.pt")),
    "array": Reader("a.npy", lambda folder: read_array(folder / "a.npy")),
    "arrays": Reader("a.npz", lambda folder: read_arrays(folder / "a.npz")),
    "scenes": Reader("000/scenes.json", RenderedScenes, json=True),
    "views": Reader("things.json", Views, json=True),
}


def array_file() -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros((1, 8, 8, 3), np.uint8))
    return file.getvalue()


ARRAYS = {"000/images.npy": array_file(), "000/cells.npy": array_file(), "images.npy": array_file()}


def pipe(path: Path) -> None:
    os.mkfifo(path)


def plug(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        here = os.getcwd()
        os.chdir(path.parent)  # the name of a socket is short
        try:
            made.bind(path.name)
        finally:
            os.chdir(here)


def sparse(path: Path) -> None:
    """A terabyte of zeros, which takes no disk."""
    with open(path, "wb") as file:
        file.truncate(hostile.BIG)


NO_FILES: dict[str, Callable[[Path], Any]] = {
    "pipe": pipe,
    "socket": plug,
    "zeros without an end": lambda path: path.symlink_to("/dev/zero"),
    "noise without an end": lambda path: path.symlink_to("/dev/urandom"),
    "terminal": lambda path: path.symlink_to("/dev/tty"),
    "memory": lambda path: path.symlink_to("/proc/self/mem"),
    "no end of links": lambda path: path.symlink_to(path.name),
    "link to a pipe": lambda path: (pipe(path.with_name("p")), path.symlink_to("p")),
    "link to nowhere": lambda path: path.symlink_to("nowhere"),
    "folder": lambda path: path.mkdir(),
    "terabyte": sparse,
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(4096)),
    "no text": lambda path: path.write_bytes(b"\xff\xfe\xfd" * 99),
    "page": lambda path: path.write_bytes(b"<!DOCTYPE html><html>"),
    "pointer": lambda path: path.write_bytes(hostile.JSON["pointer"]),
    "GGUF": lambda path: path.write_bytes(b"GGUF\x03\0\0\0" + bytes(99)),
    "picture": lambda path: Image.new("RGB", (3, 2)).save(path, "BMP"),
}
SMALL_JSON = {
    name: text() if callable(text) else text
    for name, text in hostile.JSON.items()
    if not callable(text)
}


FINE = {"merges": ("empty", "page", "pointer"), "edit": ("no end of links", "link to nowhere")}
"""Faults that are none: no merges, a merge of two odd words, an edit that is not there yet."""


@pytest.fixture
def bounded():
    """Ends what hangs, and tells the memory that a call takes."""

    def stuck(*_: Any) -> None:
        raise AssertionError("it never ends")

    def check(call: Callable[[], Any], most: int) -> str:
        tracemalloc.start()
        before = signal.signal(signal.SIGALRM, stuck)
        signal.alarm(300)
        try:
            with pytest.raises(UnderdrawError) as caught:
                call()
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < most
        told = str(caught.value)
        assert "\n" not in told
        assert len(told) < 1500
        return told

    return check


def placed(folder: Path, reader: Reader) -> Path:
    path = folder / reader.file
    for name, content in {**ARRAYS, **reader.beside}.items():
        if (folder / name) != path and (name in reader.beside or path.suffix == ".json"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
    path.parent.mkdir(exist_ok=True)
    return path


@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_such_file_is_told(tmp_path, reader, bounded):
    for number, (fault, make) in enumerate(NO_FILES.items()):
        if fault in FINE.get(reader, ()):
            continue
        folder = tmp_path / str(number)
        folder.mkdir()
        make(path := placed(folder, READERS[reader]))
        told = bounded(lambda folder=folder: READERS[reader].read(folder), 8 * MB)
        assert str(folder) in told, (fault, path)


@pytest.mark.parametrize("reader", [name for name, reader in READERS.items() if reader.json])
def test_json_that_is_refused_costs_little(tmp_path, reader, bounded):
    path = placed(tmp_path, READERS[reader])
    for fault, text in SMALL_JSON.items():
        if fault in ("list", "escapes") or len(text) > MB:
            continue  # some are lists; the large ones have a process of their own
        path.write_bytes(text)
        told = bounded(lambda: READERS[reader].read(tmp_path), 8 * MB)
        assert READERS[reader].file in told or tmp_path.name in told, fault
