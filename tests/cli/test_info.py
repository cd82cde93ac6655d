"""`underdraw info`."""

import json
import shutil

import numpy as np
import pytest

from underdraw.checkpoints import sources
from underdraw.cli.inspection import count_non_finite
from underdraw.formats.stored import stored
from underdraw.weights import files, save


def change(path, edit):
    """Rewrite the tensors of a file."""
    tensors = {key: np.array(t.load()) for key, t in files.open_tensors(path).items()}
    edit(tensors)
    save.save_tensors(path, tensors)


def parts(run, *arguments, code=0):
    report = json.loads(run("info", *arguments, "--json", code=code).stdout)
    return report, {part["name"]: part for part in report["parts"]}


@pytest.fixture
def copy(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_pipeline_folder(run, tiny):
    report, found = parts(run, tiny)
    assert (report["kind"], report["sound"]) == ("pipeline folder", True)
    assert set(found) == {"vae", "text_encoder", "unet", "tokenizer", "scheduler"}
    from underdraw import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(tiny, subfolder="unet")
    assert found["unet"]["parameters"] == sum(p.numel() for p in unet.parameters())
    assert found["unet"]["dtypes"] == {"float32": found["unet"]["parameters"]}
    assert found["unet"]["bytes"] == 4 * found["unet"]["parameters"]
    assert found["unet"]["files"] == ["unet/diffusion_pytorch_model.safetensors"]
    assert found["scheduler"]["details"]["prediction_type"] == "epsilon"
    assert found["tokenizer"]["details"]["pad_token"] == "<|endoftext|>"
    told = run("info", tiny).stdout
    assert "UNet2DConditionModel" in told
    assert told.endswith("no problems found\n")
    assert "all numbers finite" in run("info", tiny, "--check").stdout


@pytest.mark.parametrize(
    ("component", "kind"),
    [("unet", "UNet2DConditionModel"), ("vae", "AutoencoderKL"), ("text_encoder", "CLIPTextModel")],
)
def test_a_component_by_its_folder_or_file(run, tiny, component, kind):
    for path in (tiny / component, next((tiny / component).glob("*.safetensors"))):
        report, found = parts(run, path)
        assert report["kind"] == "component folder"
        assert found[component]["kind"] == kind
        assert report["sound"]


def test_a_scheduler_folder(run, tiny):
    assert "PNDMScheduler" in run("info", tiny / "scheduler").stdout


def test_a_single_file_and_what_is_left_out(run, tiny):
    run("convert", tiny, "one.safetensors")
    original = files.open_checkpoint("one.safetensors")
    tensors = {name: np.array(t.load()) for name, t in original.tensors.items()}
    tensors["alphas_cumprod"] = np.zeros(1000, "f4")
    tensors["model_ema.decay"] = np.zeros((), "f4")
    save.save_tensors("more.safetensors", tensors, original.metadata)
    report, found = parts(run, "more.safetensors", "--check")
    assert report["kind"] == "single file"
    assert set(found) == {"unet", "vae", "text_encoder", "scheduler"}
    names = [name for group in report["ignored"].values() for name in group]
    assert sorted(names) == ["alphas_cumprod", "model_ema.decay"]
    told = run("info", "more.safetensors").stdout
    assert "left out: alphas_cumprod (the noise schedule" in told
    assert "prediction type epsilon" in told


def test_reasons_why_tensors_are_left_out_of_a_folder(run, copy):
    path = copy / "text_encoder" / "model.safetensors"
    change(
        path, lambda t: t.update({"text_model.embeddings.position_ids": np.zeros((1, 77), "i8")})
    )
    report, found = parts(run, copy)
    assert report["sound"]
    assert list(found["text_encoder"]["ignored"].values()) == [
        ["text_model.embeddings.position_ids"]
    ]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_check_names_what_is_not_finite(run, copy, value):
    def spoil(tensors):
        tensors["mid_block.resnets.0.conv1.weight"][0, 1, 2, 0] = value

    change(copy / "unet" / "diffusion_pytorch_model.safetensors", spoil)
    assert run("info", copy).exit_code == 0
    failed = run("info", copy, "--check", code=1)
    assert "mid_block.resnets.0.conv1.weight holds 1 NaN or infinite" in failed.stdout
    assert failed.stdout.endswith("problems found\n")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_finding_nan_and_infinity_in_every_dtype(dtype):
    bits = {
        "float32": ("u4", [0x7F800000, 0xFF800000, 0x7FC00000, 0x7F7FFFFF, 0, 0x3F800000]),
        "float16": ("u2", [0x7C00, 0xFC00, 0x7E00, 0x7BFF, 0, 0x3C00]),
        "bfloat16": ("u2", [0x7F80, 0xFF80, 0x7FC0, 0x7F7F, 0, 0x3F80]),
    }[dtype]
    array = np.array(bits[1], bits[0])
    array = array if dtype == "bfloat16" else array.view(dtype)
    assert count_non_finite(stored(array, dtype)) == 3
    assert count_non_finite(stored(array[3:], dtype)) == 0
    assert count_non_finite(stored(np.tile(array[3:4], 5000), dtype)) == 0  # sums overflow


def test_integers_are_finite():
    assert count_non_finite(stored(np.array([0x7F80, 0x7FFF], "i4"))) == 0


def drop(tensors):
    del tensors["conv_in.weight"]


def add(tensors):
    tensors["conv_between.weight"] = np.zeros(3, "f4")


def reshape(tensors):
    tensors["conv_in.weight"] = tensors["conv_in.weight"][:, :2]


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (drop, "1 missing: conv_in.weight"),
        (add, "1 left over: conv_between.weight"),
        (reshape, "conv_in.weight is [32, 2, 3, 3], wanted [32, 4, 3, 3]"),
    ],
)
def test_weights_that_do_not_fit(run, copy, edit, says):
    change(copy / "unet" / "diffusion_pytorch_model.safetensors", edit)
    assert says in run("info", copy, code=1).stdout


def lose_weights(folder):
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()


def cut_weights(folder):
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def lose_component(folder):
    index = json.loads((folder / "model_index.json").read_text())
    del index["unet"]
    (folder / "model_index.json").write_text(json.dumps(index))


def spoil_config(folder):
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"layers_per_block": "two"}))


def spoil_scheduler(folder):
    (folder / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "MyScheduler"}')


def lose_vocabulary(folder):
    shutil.rmtree(folder / "tokenizer")


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lose_weights, "vae"),
        (cut_weights, "diffusion_pytorch_model.safetensors"),
        (lose_component, "needs a unet"),
        (spoil_config, "config.json does not describe a UNet2DConditionModel"),
        (spoil_scheduler, "MyScheduler"),
        (lose_vocabulary, "tokenizer"),
    ],
)
def test_a_harmed_folder_is_described_as_far_as_it_goes(run, copy, harm, says):
    harm(copy)
    failed = run("info", copy, code=1)
    problems = [line for line in failed.stdout.splitlines() if "problem" in line]
    assert any(says in line for line in problems), failed.stdout
    assert "text_encoder  CLIPTextModel" in failed.stdout
    assert len(problems) == 2  # the last line says that there are some


def test_other_files_are_named(run, tmp_path):
    save.save_tensors("lora.safetensors", {"lora_unet_x.lora_up.weight": np.zeros((2, 2), "f4")})
    assert "looks like a LoRA" in run("info", "lora.safetensors", code=1).stdout
    (tmp_path / "page.safetensors").write_text("<html>")
    assert "a web page" in run("info", "page.safetensors", code=1).stderr
    (tmp_path / "empty").mkdir()
    assert "model_index.json" in run("info", "empty", code=2).stderr
    (tmp_path / "notes.txt").write_text("x")
    assert "unknown kind of weight file" in run("info", "notes.txt", code=1).stderr


def test_a_pipeline_of_another_kind_is_described(run, copy):
    index = json.loads((copy / "model_index.json").read_text())
    index["_class_name"] = "StrangePipeline"
    (copy / "model_index.json").write_text(json.dumps(index))
    assert "underdraw has no StrangePipeline" in run("info", copy).stdout


def test_every_network_class_is_known():
    from underdraw import models

    classes = {n for n in models.__all__ if isinstance(getattr(models, n), type)}
    processors = {"BlipImageProcessor", "CLIPImageProcessor"}
    several = {"MultiAdapter", "MultiControlNetModel"}
    assert set(sources.NETWORKS) == classes - processors - several
