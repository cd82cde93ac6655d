"""Folders that cannot be loaded: each says what is wrong where, and harms nothing."""

import json
import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from pipelines import tiny
from pipelines.tiny import run
from safetensors.numpy import load_file, save_file

from underdraw import StableDiffusionPipeline
from underdraw.errors import InputError, InputTypeError, NotFoundError, UnderdrawError, WeightError
from underdraw.models import UNet2DConditionModel

UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"


@pytest.fixture(scope="module")
def good(tmp_path_factory, pipe):
    place = tmp_path_factory.mktemp("good") / "pipe"
    pipe.save_pretrained(place)
    return place


@pytest.fixture
def folder(tmp_path, good):
    return shutil.copytree(good, tmp_path / "pipe")


def files(place):
    return {
        str(path.relative_to(place)): path.read_bytes()
        for path in sorted(place.rglob("*"))
        if path.is_file()
    }


def tensors(place, name, change):
    held = load_file(place / name)
    change(held)
    save_file(held, place / name, metadata={"format": "pt"})


def config(place, name, **changes):
    path = place / name
    content = json.loads(path.read_text())
    content.update(changes)
    path.write_text(json.dumps(content))


def remove(*names):
    def act(place):
        for name in names:
            path = place / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return act


def write(name, content):
    def act(place):
        path = place / name
        path.write_bytes(content) if isinstance(content, bytes) else path.write_text(content)

    return act


def cut(name, keep):
    def act(place):
        raw = (place / name).read_bytes()
        (place / name).write_bytes(raw[: int(len(raw) * keep)])

    return act


def swap(a, b):
    def act(place):
        first, second = (place / a).read_bytes(), (place / b).read_bytes()
        (place / a).write_bytes(second)
        (place / b).write_bytes(first)

    return act


class Evil:
    def __reduce__(self):
        return os.system, ("touch ran-code",)


def evil(place):
    (place / UNET).unlink()
    with open(place / "unet" / "diffusion_pytorch_model.bin", "wb") as file:
        pickle.dump({"conv_in.weight": Evil()}, file)


def evil_archive(place):
    (place / UNET).unlink()
    torch.save({"conv_in.weight": Evil()}, place / "unet" / "diffusion_pytorch_model.bin")


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2145\nsize 3438167540\n"
CASES = {
    "no folder": (lambda p: shutil.rmtree(p), NotFoundError, "pipe"),
    "an empty folder": (
        lambda p: (shutil.rmtree(p), p.mkdir()),
        NotFoundError,
        "no model_index.json, so not a pipeline folder; it holds nothing",
    ),
    "a file": (lambda p: (shutil.rmtree(p), p.write_text("x")), NotFoundError, "is a file, not a"),
    "no index": (remove("model_index.json"), NotFoundError, "no model_index.json"),
    "index not JSON": (
        write("model_index.json", "{"),
        WeightError,
        "model_index.json: not readable",
    ),
    "index a list": (write("model_index.json", "[]"), WeightError, "a JSON object was expected"),
    "index bytes": (write("model_index.json", b"\xff\x00"), WeightError, "model_index.json: not"),
    "index without unet": (
        lambda p: config(p, "model_index.json", unet=[None, None]),
        InputError,
        "has no unet, which StableDiffusionPipeline needs",
    ),
    "unknown scheduler": (
        lambda p: config(p, "model_index.json", scheduler=["diffusers", "FastScheduler"]),
        InputError,
        "scheduler 'FastScheduler' is not known; allowed: .*DDIMScheduler",
    ),
    **{
        f"no {name} folder": (remove(name), NotFoundError, name)
        for name in ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
    },
    "no weights": (remove(UNET), NotFoundError, "unet: no weights; expected .*safetensors"),
    "no config": (remove("vae/config.json"), NotFoundError, "vae: no config.json"),
    "no scheduler config": (
        remove("scheduler/scheduler_config.json"),
        NotFoundError,
        "no scheduler_config.json",
    ),
    "config not JSON": (write("unet/config.json", "{'a'"), WeightError, "unet/config.json: not"),
    "config a list": (write("vae/config.json", "[1]"), WeightError, "JSON object was expected"),
    "scheduler not JSON": (
        write("scheduler/scheduler_config.json", "nope"),
        WeightError,
        "scheduler_config.json: not readable as JSON",
    ),
    "config value": (
        lambda p: config(p, "unet/config.json", act_fn="relu9"),
        InputError,
        "UNet config: act_fn='relu9' is not supported; allowed: ",
    ),
    "config block": (
        lambda p: config(p, "unet/config.json", down_block_types=["MyBlock"] * 3),
        InputError,
        "UNet config: down_block_types='MyBlock' is not supported",
    ),
    "config lengths": (
        lambda p: config(p, "vae/config.json", block_out_channels=[8, 8]),
        InputError,
        "VAE config: down_block_types=.* has 4 entries; block_out_channels has 2",
    ),
    "config type": (
        lambda p: config(p, "unet/config.json", block_out_channels="wide"),
        UnderdrawError,
        "block_out_channels",
    ),
    "config width": (
        lambda p: config(p, "text_encoder/config.json", hidden_size=16),
        WeightError,
        r"embedding.weight is \[542, 32\], wanted \[542, 16\]",
    ),
    "scheduler value": (
        lambda p: config(p, "scheduler/scheduler_config.json", beta_schedule="steep"),
        InputError,
        "beta_schedule='steep'",
    ),
    "truncated": (cut(UNET, 0.6), WeightError, UNET),
    "truncated header": (cut(VAE, 0.001), WeightError, VAE),
    "empty weights": (cut(TEXT, 0), WeightError, TEXT),
    "not safetensors": (write(UNET, b"\x80\x02}q\x00." * 30), WeightError, UNET),
    "a web page": (write(UNET, "<!DOCTYPE html><html>404</html>"), WeightError, UNET),
    "an LFS pointer": (write(UNET, POINTER), WeightError, "(?i)lfs"),
    "an LFS pointer as config": (write("unet/config.json", POINTER), WeightError, "(?i)lfs"),
    "swapped": (swap(UNET, VAE), WeightError, "missing: .*left over: "),
    "one key missing": (
        lambda p: tensors(p, UNET, lambda held: held.pop("conv_out.bias")),
        WeightError,
        "1 missing: conv_out.bias",
    ),
    "one key left over": (
        lambda p: tensors(p, UNET, lambda held: held.update({"lora.up": np.ones(3, "f4")})),
        WeightError,
        "1 left over: lora.up",
    ),
    "wrong shape": (
        lambda p: tensors(p, VAE, lambda held: held.update({"quant_conv.bias": np.ones(3, "f4")})),
        WeightError,
        r"quant_conv.bias is \[3\], wanted \[8\]",
    ),
    "whole numbers": (
        lambda p: tensors(p, UNET, lambda held: held.update({"conv_out.bias": np.ones(4, "i8")})),
        WeightError,
        "conv_out.bias",
    ),
    "a pickle that runs code": (evil, WeightError, "bin"),
    "an archive that runs code": (evil_archive, WeightError, "bin"),
    "no vocabulary": (
        lambda p: [path.unlink() for path in (p / "tokenizer").glob("*.*")],
        UnderdrawError,
        "tokenizer",
    ),
    "broken vocabulary": (
        lambda p: [path.write_text("{") for path in (p / "tokenizer").glob("*.*")],
        UnderdrawError,
        "tokenizer",
    ),
    "text encoder of another size": (
        lambda p: tiny.components(text={"hidden_size": 16})["text_encoder"].save_pretrained(
            p / "text_encoder"
        ),
        InputError,
        "text_encoder gives tokens of width 16, the UNet takes 32",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_folders_that_cannot_be_loaded(folder, monkeypatch, tmp_path, name):
    damage, kind, message = CASES[name]
    damage(folder)
    monkeypatch.chdir(tmp_path)
    before = files(folder) if folder.is_dir() else None
    with pytest.raises(kind, match=message) as caught:
        StableDiffusionPipeline.from_pretrained(folder)
    assert isinstance(caught.value, UnderdrawError)
    assert len(str(caught.value)) < 1500
    assert not (tmp_path / "ran-code").exists()
    assert before is None or files(folder) == before


def test_good_folders_load_as_before(good, pipe):
    again = StableDiffusionPipeline.from_pretrained(good)
    again.set_progress_bar_config(disable=True)
    assert torch.equal(run(again), run(pipe))


WRONG = [
    ({"variant": "fp16"}, NotFoundError, "no component has variant 'fp16'; .* none"),
    ({"dtype": "int8"}, InputError, "dtype='int8'"),
    ({"backend": "tensorflow"}, InputError, "backend"),
    ({"unets": None}, InputTypeError, r"has no arguments \['unets'\]"),
    ({"compat": "peer"}, InputError, "compat='peer'"),
    ({"unet": None}, InputTypeError, "unet=None"),
    ({"unet": 3}, InputTypeError, "unet: int cannot serve as UNet2DConditionModel"),
]


@pytest.mark.parametrize(("options", "kind", "message"), WRONG)
def test_options_that_cannot_work(good, options, kind, message):
    with pytest.raises(kind, match=message):
        StableDiffusionPipeline.from_pretrained(good, **options)


def test_a_missing_hub_repository_offline():
    with pytest.raises(NotFoundError, match="nobody/nothing"):
        StableDiffusionPipeline.from_pretrained("nobody/nothing", local_files_only=True)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    ("name", "cls"),
    [(UNET, "UNet2DConditionModel"), (VAE, "AutoencoderKL"), (TEXT, "CLIPTextModel")],
)
def test_check_finds_nan_in_weights(folder, name, cls, value):
    def spoil(held):
        key = sorted(held)[5]
        held[key] = held[key].copy()
        held[key].reshape(-1)[-1] = value

    tensors(folder, name, spoil)
    with pytest.raises(WeightError, match=f"{cls}: 1 weights hold NaN or infinity: "):
        StableDiffusionPipeline.from_pretrained(folder, check=True)
    StableDiffusionPipeline.from_pretrained(folder)


def test_check_passes_good_weights(good):
    StableDiffusionPipeline.from_pretrained(good, check=True)


def test_an_interrupted_save_leaves_the_old_folder(folder, good, monkeypatch):
    """The new folder appears whole, or not at all."""
    other = tiny.pipeline(unet={"layers_per_block": 2})
    before = files(folder)

    def stop(*_, **__):
        raise KeyboardInterrupt

    for component in ("tokenizer", "scheduler"):  # written among the networks
        with monkeypatch.context() as patch:
            patch.setattr(type(getattr(other, component)), "save_pretrained", stop)
            with pytest.raises(KeyboardInterrupt):
                other.save_pretrained(folder)
        assert files(folder) == before
        assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    other.save_pretrained(folder)
    assert files(folder) != before
    again = StableDiffusionPipeline.from_pretrained(folder)
    again.set_progress_bar_config(disable=True)
    assert torch.equal(run(again), run(other))


def test_saving_onto_the_folder_the_weights_are_mapped_from(folder):
    """Parameters are views of the old file: they stay what they were."""
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    before = run(pipe)
    pipe.unet.conv_out.bias.data += 0.5
    changed = run(pipe)
    pipe.save_pretrained(folder)
    assert torch.equal(run(pipe), changed) and not torch.equal(before, changed)
    again = StableDiffusionPipeline.from_pretrained(folder)
    again.set_progress_bar_config(disable=True)
    assert torch.equal(run(again), changed)


def test_training_loaded_weights_does_not_touch_the_file(folder):
    before = (folder / UNET).read_bytes()
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    for value in unet.parameters():
        value.data.zero_()
    assert (folder / UNET).read_bytes() == before


def test_saving_where_a_file_is(tmp_path, pipe):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises((UnderdrawError, OSError)):
        pipe.save_pretrained(tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "mine"
