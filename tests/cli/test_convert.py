"""`underdraw convert`."""

import json
import shutil

import numpy as np
import pytest
import torch

from underdraw.errors import WeightError
from underdraw.formats.stored import stored
from underdraw.weights import files, folders, hub, save, single_file
from underdraw.weights.dtypes import cast, to_bfloat16, widened


def tensors_of(folder):
    """All networks of a pipeline folder, as float32."""
    found = {}
    for name in ("unet", "vae", "text_encoder"):
        _, tensors = folders.open_component(folder, name)
        for key, tensor in tensors.items():
            found[f"{name}.{key}"] = widened(tensor)
    return found


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name, array in a.items():
        assert np.array_equal(array, b[name]), name


def snapshot(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_folder_to_file_and_back(run, tiny, tmp_path):
    done = run("convert", tiny, "one.safetensors")
    assert done.stdout == "one.safetensors\n"
    assert "hold no vocabulary" in done.stderr
    assert "--tokenizer" in done.stderr
    assert run("convert", "one.safetensors", "back", "--tokenizer", tiny).stdout == "back\n"
    assert_same(tensors_of(tiny), tensors_of(tmp_path / "back"))
    from underdraw import StableDiffusionPipeline

    ours, again = (StableDiffusionPipeline.from_pretrained(p) for p in (tiny, "back"))
    assert type(again.scheduler) is type(ours.scheduler)
    assert again.tokenizer("a red sphere") == ours.tokenizer("a red sphere")
    for pipe in (ours, again):
        pipe.set_progress_bar_config(disable=True)
    made = [p("a cone", 40, 72, 2, seed=1, output_type="np").images for p in (ours, again)]
    assert np.array_equal(*made)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_dtypes_are_rounded_as_pytorch_does(run, tiny, tmp_path, dtype):
    run("convert", tiny, "small", "--dtype", dtype)
    wanted = {
        name: torch.from_numpy(np.array(array)).to(getattr(torch, dtype)).float().numpy()
        for name, array in tensors_of(tiny).items()
    }
    assert_same(wanted, tensors_of(tmp_path / "small"))
    for path in (tmp_path / "small").rglob("*.safetensors"):
        assert {tensor.dtype for tensor in files.open_tensors(path).values()} == {dtype}
    run("convert", "small", "wide", "--dtype", "float32")
    assert_same(wanted, tensors_of(tmp_path / "wide"))
    for name in ("tokenizer", "scheduler"):
        names = sorted(p.name for p in (tiny / name).iterdir())
        assert sorted(p.name for p in (tmp_path / "small" / name).iterdir()) == names


def test_bfloat16_rounds_to_even_and_keeps_nan():
    values = np.array([1.0, 1.00390625, 1.01171875, -0.0, np.inf, -np.inf, 3.39e38, 1e-45], "f4")
    values = np.concatenate([values, np.random.default_rng(0).normal(size=1000).astype("f4")])
    wanted = torch.from_numpy(values).bfloat16().view(torch.uint16).numpy()
    assert np.array_equal(to_bfloat16(values), wanted)
    bits = np.array([0x7FC00000, 0x7F800001, 0xFFFFFFFF], "u4").view("f4")
    assert np.isnan((to_bfloat16(bits).astype("u4") << 16).view("f4")).all()


def test_numbers_too_large_for_float16_are_named():
    tensor = stored(np.array([1.0, 70000.0], "f4"))
    with pytest.raises(WeightError, match=r"x\.y holds 7e\+04, float16 ends at 65504"):
        cast("x.y", tensor, "float16").load()
    assert cast("x.y", tensor, "bfloat16").load().dtype == np.uint16
    broken = stored(np.array([np.inf, np.nan], "f4"))
    assert np.isinf(cast("x", broken, "float16").load()[0])  # told by `info --check`, not here
    assert cast("x", stored(np.array([1])), "float16").load().dtype == np.int64


def test_a_component_alone_and_a_file_with_one_component(run, tiny, tmp_path):
    run("convert", tiny / "vae", "vae", "--dtype", "float16")
    config, tensors = folders.open_component("vae")
    assert config["_class_name"] == "AutoencoderKL"
    assert {tensor.dtype for tensor in tensors.values()} == {"float16"}
    run("convert", "vae", "vae.safetensors")
    run("convert", "vae.safetensors", "again")
    _, again = folders.open_component("again")
    assert again.keys() == tensors.keys()
    assert (tmp_path / "again" / "config.json").exists()


def test_a_file_without_text_encoder_makes_no_pipeline(run, tiny):
    run("convert", tiny, "one.safetensors")
    checkpoint = files.open_checkpoint("one.safetensors")
    cut = {n: t for n, t in checkpoint.tensors.items() if not n.startswith("cond_stage")}
    save.save_tensors("two.safetensors", cut, checkpoint.metadata)
    assert "has no text_encoder" in run("convert", "two.safetensors", "x", code=2).stderr


def test_file_to_file_with_averaged_weights_and_prediction_type(run, tiny):
    run("convert", tiny, "one.safetensors")
    checkpoint = files.open_checkpoint("one.safetensors")
    tensors = dict(checkpoint.tensors)
    prefix = "model.diffusion_model."
    for name, tensor in checkpoint.tensors.items():
        if name.startswith(prefix):
            flat = "model_ema." + name.removeprefix("model.").replace(".", "")
            tensors[flat] = stored(tensor.load() + np.float32(1))
    save.save_tensors("both.safetensors", tensors, checkpoint.metadata)
    run(
        *("convert", "both.safetensors", "mean.safetensors", "--ema"),
        *("--prediction-type", "v_prediction"),
    )
    read = single_file.read_single_file("mean.safetensors")
    plain = single_file.read_single_file("one.safetensors")
    assert read.prediction_type == "v_prediction"
    for name, tensor in plain.components["unet"][1].items():
        got = read.components["unet"][1][name].load()
        assert np.array_equal(got, tensor.load() + np.float32(1))
    assert not any("model_ema" in name for name in files.open_tensors("mean.safetensors"))


def test_prediction_type_of_a_folder(run, tiny, tmp_path):
    run("convert", tiny, "v", "--prediction-type", "v_prediction")
    path = tmp_path / "v" / "scheduler" / "scheduler_config.json"
    assert json.loads(path.read_text())["prediction_type"] == "v_prediction"


def test_nothing_is_overwritten_without_force(run, tiny, tmp_path):
    run("convert", tiny, "one.safetensors")
    run("convert", tiny, "folder")
    before = snapshot(tmp_path)
    for target in ("one.safetensors", "folder"):
        failed = run("convert", tiny, target, "--dtype", "float16", code=2)
        assert f"{target} exists; --force writes over it" in failed.stderr
    assert snapshot(tmp_path) == before
    for target in ("one.safetensors", "folder"):
        run("convert", tiny, target, "--dtype", "float16", "--force")
        assert "float16" in run("info", target).stdout
    run("convert", "folder", "folder", "--dtype", "bfloat16", "--force")
    assert "bfloat16" in run("info", "folder", "--check").stdout


@pytest.mark.parametrize("target", ["one.safetensors", "folder", "new", "new.safetensors"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_interrupted_it_changes_nothing(run, tiny, tmp_path, monkeypatch, target, error):
    run("convert", tiny, "one.safetensors")
    run("convert", tiny, "folder")
    before, calls = snapshot(tmp_path), []
    original = save._bytes

    def fail(name, tensor):
        calls.append(name)
        if len(calls) == 60:
            raise error
        return original(name, tensor)

    monkeypatch.setattr(save, "_bytes", fail)
    code = 130 if isinstance(error, KeyboardInterrupt) else 1
    failed = run("convert", tiny, target, "--force", "--dtype", "float16", code=code)
    last = failed.stderr.splitlines()[-1]
    assert last == (
        f"stopped: {target} is as it was before"
        if code == 130
        else "error: No space left on device"
    )
    assert snapshot(tmp_path) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "one.safetensors"]


def test_one_tensor_at_a_time(run, tiny, monkeypatch):
    """All that is loaded is dropped before the next is."""
    import weakref

    from underdraw.weights import dtypes

    made, most = [], []
    original = dtypes.widened

    class Array(np.ndarray):
        pass

    def watched(tensor):
        array = original(tensor).copy().view(Array)
        made.append(weakref.ref(array))
        most.append(sum(one() is not None for one in made))
        return array

    monkeypatch.setattr(dtypes, "widened", watched)
    run("convert", tiny, "small", "--dtype", "float16")
    assert len(most) > 100
    assert max(most) <= 2


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["model.ckpt"], 2, "written as .safetensors only"),
        (["x", "--ema"], 2, "--ema is for single files"),
        (["x", "--tokenizer", "y"], 2, "--tokenizer is for single files"),
        (["missing/x"], 2, "missing: no such folder"),
        (["file"], 2, "file is a file"),
        (["dir.safetensors"], 2, "is a folder"),
        (["x", "--dtype", "int8"], 2, "--dtype"),
    ],
)
def test_mistakes(run, tiny, tmp_path, arguments, code, says):
    (tmp_path / "file").write_text("x")
    (tmp_path / "dir.safetensors").mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert says in run("convert", tiny, *arguments, code=code).stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_the_vocabulary_that_is_missing_is_named(run, tiny, tmp_path):
    run("convert", tiny, "one.safetensors")
    failed = run("convert", "one.safetensors", "back", code=2)
    # Not CLIP's, whose vocabulary has 49,408.
    tokens = folders.read_config(tiny, "text_encoder")["vocab_size"]
    told = f"knows {tokens} tokens, as no published vocabulary has"
    assert told in failed.stderr and "--tokenizer" in failed.stderr
    assert not (tmp_path / "back").exists()


def test_the_scenes_bring_their_vocabulary_to_their_file(run, tmp_path):
    done = run("convert", "underdraw/scenes", "one.safetensors")
    assert "vocabulary" not in done.stderr
    run("convert", "one.safetensors", "back")
    names = ("vocab.json", "merges.txt", "tokenizer.json")
    own = next(name for name in names if (hub.scenes_folder() / "tokenizer" / name).exists())
    assert (tmp_path / "back" / "tokenizer" / own).exists()


def test_a_damaged_source_is_not_converted(run, tiny, tmp_path):
    shutil.copytree(tiny, "copy")
    path = tmp_path / "copy" / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = dict(files.open_tensors(path))
    tensors.pop("conv_in.bias")
    save.save_tensors(path, tensors)
    failed = run("convert", "copy", "x", code=1)
    assert "1 missing: conv_in.bias" in failed.stderr
    assert not (tmp_path / "x").exists()
    (tmp_path / "copy" / "vae" / "config.json").unlink()
    assert "vae" in run("convert", "copy", "x", code=1).stderr
    np.savez(tmp_path / "x.npz")
    assert "no weights to convert" in run("convert", tiny / "scheduler", "x", code=2).stderr
