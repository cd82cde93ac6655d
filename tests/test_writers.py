"""Whatever writes files, killed, stopped or out of space at any of its file operations."""

from __future__ import annotations

import ast
import errno
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from weights.kills import FAULTS, Disk, files_in

import underdraw
from underdraw.cli import convert
from underdraw.evaluation import report
from underdraw.models import (
    AutoencoderKL,
    CLIPImageProcessor,
    CLIPTextModel,
    Grounding,
    UNet2DConditionModel,
    load_grounding,
    save_grounding,
)
from underdraw.pictures.writing import read_metadata, save_png
from underdraw.pipelines.components import folders as pipeline_folders
from underdraw.pipelines.components.advice import Advice
from underdraw.pipelines.components.processor import CLIPProcessor
from underdraw.pipelines.diffedit.edit import Kept
from underdraw.schedulers import DDIMScheduler
from underdraw.text.tokenizer import CLIPTokenizer
from underdraw.text.vocabulary import train_vocabulary
from underdraw.training import autoencoder, checkpoints, recipes, views
from underdraw.training.curve import Curve
from underdraw.training.truth import read_heads
from underdraw.weights import folders, hub, save
from underdraw.weights.files import open_tensors
from underdraw.weights.folders import read_json
from underdraw.weights.replacing import JOURNAL, settle

TEXT = {
    "vocab_size": 9,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 5,
    "projection_dim": 4,
    "bos_token_id": 7,
    "eos_token_id": 8,
    "pad_token_id": 8,
}
VAE: dict[str, Any] = {
    "block_out_channels": (4,),
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "down_block_types": ("DownEncoderBlock2D",),
    "up_block_types": ("UpDecoderBlock2D",),
}
UNET: dict[str, Any] = {
    "block_out_channels": (4,),
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "down_block_types": ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",),
    "mid_block_type": None,
    "sample_size": 8,
    "attention_head_dim": 2,
}
PART = {
    "kind": "text",
    "token_width": 4,
    "phrase_width": 4,
    "hidden_width": 4,
    "frequencies": 1,
    "fusers": (("mid_block.attentions.0.transformer_blocks.0", 4, 2),),
}


@cache
def filled(kind: Any, value: int) -> Any:
    """A network of which every number is `value`."""
    model = kind(**KINDS[kind])
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(value)
    return model


NAME = re.compile(r"\.saving-\w{8}")
KINDS: dict[Any, dict[str, Any]] = {
    CLIPTextModel: TEXT,
    AutoencoderKL: VAE,
    UNet2DConditionModel: UNET,
    Grounding: PART,
}


def value_in(*models: Any) -> int:
    """The number that all parameters are: old and new ones are not mixed."""
    (value,) = {v for m in models for p in m.parameters() for v in p.unique().tolist()}
    return int(value)


@cache
def tokenizer(value: int) -> CLIPTokenizer:
    """The old one has a token more, in a file of its own."""
    made = CLIPTokenizer(*train_vocabulary(["a red cube"] * 2, 516 + value))
    if value == 1:
        made.add_tokens(["<mine>"])
    return made


def tokenizer_value(folder: Path) -> int:
    made = CLIPTokenizer.from_pretrained(folder)
    return next(v for v in (1, 2) if made.get_vocab() == tokenizer(v).get_vocab())


def processor(value: int) -> CLIPProcessor:
    return CLIPProcessor(CLIPImageProcessor(value), tokenizer(value))


def processor_value(folder: Path) -> int:
    read = CLIPProcessor.from_pretrained(folder)
    assert read.image_processor.shortest_edge == tokenizer_value(folder)
    return read.image_processor.shortest_edge


def write_network(kind: Any, shards: tuple[str, str] = ("1GB", "1GB")) -> Any:
    def write(place: Path, value: int) -> None:
        filled(kind, value).save_pretrained(place, max_shard_size=shards[value - 1])

    return write


def write_pipeline(place: Path, value: int) -> None:
    """What `pipe.save_pretrained` calls; the old one is sharded and has a component more."""
    parts = {
        "unet": filled(UNet2DConditionModel, value),
        "text_encoder": filled(CLIPTextModel, value),
        "scheduler": DDIMScheduler(num_train_timesteps=value),
    }
    if value == 1:
        parts["feature_extractor"] = CLIPImageProcessor(value)
    size = ("3KB", "1GB")[value - 1]
    more = {"variant": None, "max_shard_size": size, "safe_serialization": True}
    pipeline_folders.write_folder(place, "StableDiffusionPipeline", parts, Advice(), **more)


def pipeline_value(place: Path) -> int:
    read_json(hub.resolve(place) / "model_index.json")
    networks = [
        UNet2DConditionModel.from_pretrained(place, subfolder="unet"),
        CLIPTextModel.from_pretrained(place, subfolder="text_encoder"),
    ]
    steps = DDIMScheduler.from_pretrained(place, subfolder="scheduler").config.num_train_timesteps
    assert value_in(*networks) == steps
    return steps


def write_export(place: Path, value: int) -> None:
    """The last stage of training the scenes family."""
    save_family = recipes.save_family
    (place.parent / "grounding").mkdir(exist_ok=True)
    (place.parent / "grounding" / checkpoints.NAME).touch()
    shop: Any = SimpleNamespace(
        folder=place.parent,
        recipe=SimpleNamespace(denoiser=SimpleNamespace(objective=None)),
        family=lambda: value,
        grounding=lambda: filled(Grounding, value),
        heads=lambda: heads,
    )
    heads = torch.nn.Linear(2, 2, bias=False)
    torch.nn.init.constant_(heads.weight, value)
    try:
        recipes.save_family = lambda family, _, folder: write_network(CLIPTextModel)(folder, family)  # type: ignore
        recipes._export(shop, None, {})
    finally:
        recipes.save_family = save_family


def export_value(place: Path) -> int:
    value = value_in(CLIPTextModel.from_pretrained(place))
    assert value_in(load_grounding(place / "grounding")) == value
    assert float((read_heads(str(place)) or {})["weight"].mean()) == value
    return value


def weights_value(place: Path) -> int:
    settle(place)
    tensors = folders.open_weights(place, folders.component_files(place))
    (value,) = {int(v) for tensor in tensors.values() for v in tensor.load()}
    assert len(tensors) == 2 + value
    return value


def write_converted(place: Path, value: int) -> None:
    """`underdraw convert --force`, from a folder or to a single file."""
    source = place.parent.parent / f"source-{value}"
    if not source.exists():
        filled(UNet2DConditionModel, value).save_pretrained(source)
    dtype = None if value == 1 else convert.Stored.float16
    convert.convert(str(source), place, dtype, None, False, None, None, True)


def write_views(place: Path, value: int) -> None:
    draw = views._draw
    picture = np.full((8, 8, 3), value, np.uint8)
    thing = {"shape": "cube", "colour": "red", "material": "metal", "size": "large"}
    views._draw = lambda *_: (picture, thing)  # type: ignore[assignment]
    try:
        views.render_views(place, value, size=8)
    finally:
        views._draw = draw


def views_value(place: Path) -> int:
    found = views.Views(place)
    assert found._images.shape[0] == len(found) == found._images.max()
    return len(found)


def write_kept(path: Path, value: int) -> None:
    kept = Kept(path, {"edit": "the same"})
    kept.mask, kept.levels = np.full((3, 5), value, "f4"), [np.full((2, 2), value, "f4")] * value
    kept.write()


def kept_value(path: Path) -> int:
    kept = Kept(path, {"edit": "the same"})
    assert kept.mask is not None and (kept.mask == len(kept.levels)).all()
    return len(kept.levels)


def write_curve(path: Path, value: int) -> None:
    curve = Curve(path.parent, 1)
    for step in range(1, value + 1):
        curve.add(step, 1.0, step, 1e-3, {"loss": 1.0 / step})
    curve.flush()
    curve.note(value, {"psnr": 1.0})


def curve_value(path: Path) -> int:
    curve = Curve(path.parent, 1)
    curve.rewind(9)
    return len(curve.rows)


def told(value: int) -> Any:
    return SimpleNamespace(table=lambda: f"{value}", to_json=lambda: {"value": value})


def state(value: int) -> dict[str, Any]:
    return {"step": value, "modules": {}, "average": {"w": torch.full((3,), float(value))}}


STRIDE = {"killed": 1, "stopped": 3, "full": 4}
"""Of the operations that are met by a fault; every process can be killed at each."""


@dataclass(frozen=True)
class Writer:
    """`write(place, value)`, `read(place) -> value`; of a folder nothing loads without `gate`."""

    write: Callable[[Path, int], Any]
    read: Callable[[Path], int]
    target: str = "made"
    gate: str = ""
    again: bool = True
    """Whether it writes what is there already once more, and so finds what was left over."""


WRITERS = {
    "network": Writer(
        write_network(AutoencoderKL),
        lambda p: value_in(AutoencoderKL.from_pretrained(p)),
        gate="config.json",
    ),
    "network, other shards": Writer(
        write_network(CLIPTextModel, ("1KB", "2KB")),
        lambda p: value_in(CLIPTextModel.from_pretrained(p)),
        gate="config.json",
    ),
    "network, to shards": Writer(
        write_network(CLIPTextModel, ("1GB", "2KB")),
        lambda p: value_in(CLIPTextModel.from_pretrained(p)),
        gate="config.json",
    ),
    "weights alone, no config": Writer(
        lambda p, v: save.save_weights(
            p, {f"w{i}": np.full(3, v, "f4") for i in range(2 + v)}, max_shard_size=13
        ),
        weights_value,
        gate="diffusion_pytorch_model.safetensors.index.json",
    ),
    "pipeline": Writer(write_pipeline, pipeline_value, gate="model_index.json"),
    "export": Writer(write_export, export_value, target="export", gate="config.json"),
    "converted folder": Writer(
        write_converted,
        lambda p: value_in(UNet2DConditionModel.from_pretrained(p)),
        gate="config.json",
    ),
    "converted file": Writer(
        write_converted,
        lambda p: int(next(iter(open_tensors(p).values())).load().reshape(-1)[0]),
        target="made.safetensors",
    ),
    "tokenizer": Writer(
        lambda p, v: tokenizer(v).save_pretrained(p), tokenizer_value, gate="tokenizer.json"
    ),
    "processor": Writer(
        lambda p, v: processor(v).save_pretrained(p), processor_value, gate="tokenizer.json"
    ),
    "image processor": Writer(
        lambda p, v: CLIPImageProcessor(v).save_pretrained(p),
        lambda p: CLIPImageProcessor.from_pretrained(p).shortest_edge,
        gate="preprocessor_config.json",
    ),
    "scheduler": Writer(
        lambda p, v: DDIMScheduler(num_train_timesteps=v).save_pretrained(p),
        lambda p: DDIMScheduler.from_pretrained(p).config.num_train_timesteps,
        gate="scheduler_config.json",
    ),
    "config of a network": Writer(
        lambda p, v: CLIPTextModel(**{**TEXT, "hidden_size": 8 * v}).save_config(p),
        lambda p: CLIPTextModel.load_config(p)["hidden_size"] // 8,
        gate="config.json",
    ),
    "grounding folder": Writer(
        lambda p, v: save_grounding(filled(Grounding, v), p),
        lambda p: value_in(load_grounding(p)),
        gate="config.json",
    ),
    "grounding file": Writer(
        lambda p, v: save_grounding(filled(Grounding, v), p),
        lambda p: value_in(load_grounding(p)),
        target="made.safetensors",
    ),
    "rendered views": Writer(write_views, views_value, gate="things.json", again=False),
    "picture": Writer(
        lambda p, v: save_png(Image.new("RGB", (9, 7), (v, v, v)), p, {"value": v}),
        lambda p: read_metadata(p)["value"] if np.asarray(Image.open(p)).max() else 0,
        target="made.png",
    ),
    "kept edit": Writer(write_kept, kept_value, target="made.safetensors"),
    "training state": Writer(
        lambda p, v: checkpoints.save(p, state(v)),
        lambda p: int(checkpoints.load(p)["average"]["w"][0]),
        target="state.pt",
    ),
    "curve": Writer(write_curve, curve_value, target="curve.csv"),
    "latents": Writer(
        lambda p, v: autoencoder._keep(p, [np.full((v, 1, 2, 3), v, "f2")]),
        lambda p: len(kept) if (kept := autoencoder._kept(p)) is not None else 0,
        target="latents.npy",
    ),
    "report": Writer(
        lambda p, v: report.write_report(p.parent, told(v)),
        lambda p: int(read_json(p)["value"]),
        target="report.json",
    ),
    "edits of a batch": Writer(
        lambda p, v: report.write_arrays(p, {"a": np.full(5, v), "b": np.full(3, v)}),
        lambda p: int(made["b"][0]) if (made := report.read_arrays(p)) is not None else 0,
        target="0000-4.npz",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", WRITERS)
def test_what_is_there_is_old_or_new(
    name: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = WRITERS[name]
    before, fresh, now = (tmp_path / part for part in ("before", "fresh", "now"))
    for place, values in ((before, (1,)), (fresh, (1, 2))):
        place.mkdir()
        for value in values:
            writer.write(place / writer.target, value)
        if writer.gate:
            (place / writer.target / "mine.txt").write_text("mine")
            (place / writer.target / "unet").mkdir(exist_ok=True)
            (place / writer.target / "unet" / "mine.bin").write_text("mine")
    (before / ".other.saving-01234567").write_text("of somebody else")
    shutil.copy(before / ".other.saving-01234567", fresh)
    old, new = files_in(before), files_in(fresh)
    gate = f"{writer.target}/{writer.gate}" if writer.gate else ""
    disk, seen, known, place, at = Disk(monkeypatch), set(), set(), now / writer.target, 0
    while True:
        at += STRIDE[fault]
        if not now.exists():
            shutil.copytree(before, now)
        error = disk.run(fault, at, lambda: writer.write(place, 2))
        if error is None:
            break
        assert fault != "full" or not isinstance(error, OSError) or error.errno == errno.ENOSPC
        left = files_in(now)
        if left == old and seen:  # as if nothing had been tried
            continue
        assert_not_mixed(visible(left), old, new, gate)
        # What follows depends on nothing else, so it is tried once for each of them, and while all
        # is in hidden files, for some numbers of these.
        state = frozenset(
            (NAME.sub(".saving", path), old.get(path) == content, new.get(path) == content)
            for path, content in left.items()
            if JOURNAL in path or path in visible(left)
        ) | {(len(left) - len(visible(left))) // 3}
        if state not in known:
            known.add(state)
            seen.add(value := writer.read(place))
            assert value in (1, 2)
            if gate:
                assert visible(files_in(now)) in (visible(old), visible(new))
            if fault == "stopped" and value == 1 and gate:
                assert left == old  # nothing is left over where handlers could work
            writer.write(place, 2)
            assert writer.read(place) == 2
            assert_only(now, new, gate, writer.again or value == 1)
        shutil.rmtree(now)
    assert_only(now, new, gate)
    assert at > 3
    # Some come before what decides, some after; what leaves no trace at all is not among them.
    assert seen == {1, 2} if fault == "killed" else seen <= {1, 2}


def assert_only(folder: Path, files: dict[str, bytes], gate: str, clean: bool = True) -> None:
    """Nothing else is there. (PyTorch writes a state with other bytes each time.)"""
    there = files_in(folder)
    if not clean:
        there, files = visible(there), visible(files)
    assert there == files if gate else there.keys() == files.keys()


def visible(files: dict[str, bytes]) -> dict[str, bytes]:
    return {p: c for p, c in files.items() if not any(x.startswith(".") for x in p.split("/"))}


def assert_not_mixed(
    shown: dict[str, bytes], old: dict[str, bytes], new: dict[str, bytes], gate: str
) -> None:
    """To who knows nothing of us: files of one state, all of them where the gate is."""
    if not gate:  # single files: each is whole
        assert all(shown[p] in (old.get(p), new.get(p)) for p in shown)
        return
    fits = [
        all(state.get(p) == c for p, c in shown.items()) for state in (visible(old), visible(new))
    ]
    assert any(fits)
    if gate in shown:
        assert shown in (visible(old), visible(new))


def test_everything_is_written_by_the_functions_under_test() -> None:
    """A writer that opens files by itself would not survive what these tests try."""
    source = Path(underdraw.__file__).parent
    names = ("formats/leftovers", "formats/writing", "weights/atomic", "weights/replacing")
    own = {source / f"{name}.py" for name in names}
    found = {}
    for path in source.rglob("*.py"):
        text = path.read_text()
        if path not in own and re.search(r"\b(open|\w*save\w*|os|shutil|write_\w+|touch)\b", text):
            raw = Raw()
            raw.visit(ast.parse(text))
            if raw.found:
                found[path.relative_to(source).as_posix()] = raw.found
    assert found == {
        "backends/torch_packages.py": ["replace"],  # in a cache that PyTorch keeps
        "checkpoints/rewriting.py": ["write_bytes"],  # into a folder being made
        "cli/embedded.py": ["save"],  # into memory
        "cli/outputs.py": ["touch"],  # an empty file, removed at once: whether there can be one
        "cli/scenes.py": ["save"],  # outputs.save
        "cli/train.py": ["touch"],  # an empty file, that a stage is done
        "engines/kept.py": ["replace"],  # of a cache, made in a folder of its own
        "evaluation/augment.py": ["save"],  # into memory
        "evaluation/train_evaluator.py": ["save"],  # into memory
        "formats/locks.py": ["open"],  # an empty file, that a run holds
        "models/ip_adapter.py": ["save_file"],  # a method, by weights.save
        "shown.py": ["save"],  # into memory
    }


class Raw(ast.NodeVisitor):
    """Calls that change files, outside of `with writing_file(...)` and the like."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def visit_With(self, node: ast.With) -> None:
        text = " ".join(ast.unparse(item.context_expr) for item in node.items)
        if "writing_file(" not in text and "writing_folder(" not in text:
            self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        name = ast.unparse(node.func)
        last = name.rpartition(".")[2]
        given = [*node.args, *(keyword.value for keyword in node.keywords)]
        texts = [one.value for one in given if isinstance(one, ast.Constant)]
        opens = last == "open" and any(set(str(text)) <= set("rwaxbt+") - {"r"} for text in texts)
        saves = name.endswith(".save") and given and name != "checkpoints.save"
        moves = name in ("os.replace", "os.rename", "shutil.move", "os.link")
        if last in WRITE or opens or saves or moves:
            self.found.append(last)
        self.generic_visit(node)


WRITE = {
    *("write_text", "write_bytes", "touch", "tofile", "savez", "savez_compressed", "save_file"),
    *("copyfile", "copy2", "symlink_to", "hardlink_to", "link_to", "truncate"),
}
