"""Loading and saving under names and with arguments of diffusers."""

import json
from pathlib import Path

import pytest
import torch
from pipelines.tiny import controlnet, pipeline

import underdraw
from underdraw import (
    AutoencoderKL,
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    AutoPipelineForText2Image,
    DiffusionPipeline,
    StableDiffusionGLIGENPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from underdraw.errors import InputError, InputTypeError, NotFoundError, UnderdrawError
from underdraw.weights import save, single_file

TASKS = {
    AutoPipelineForText2Image: StableDiffusionPipeline,
    AutoPipelineForImage2Image: StableDiffusionImg2ImgPipeline,
    AutoPipelineForInpainting: StableDiffusionInpaintPipeline,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder for each of two classes, of the same networks."""
    place, pipe = tmp_path_factory.mktemp("folders"), pipeline()
    owners = [pipe, StableDiffusionGLIGENPipeline.from_pipe(pipe)]
    for owner in owners:
        owner.save_pretrained(place / type(owner).__name__)
    return place, owners


@pytest.mark.parametrize(("auto", "kind"), TASKS.items())
def test_a_task_names_a_class(folders, auto, kind):
    for owner in folders[1]:
        made = auto.from_pretrained(folders[0] / type(owner).__name__, dtype="bfloat16")
        assert type(made) is kind and made.dtype == torch.bfloat16
        again = auto.from_pipe(owner, requires_safety_checker=False)
        assert type(again) is kind and again.unet is owner.unet
    with pytest.raises(InputTypeError, match="from_pretrained"):
        auto(folders[1][0])
    with pytest.raises(InputError, match="enable_pag is not supported"):
        auto.from_pretrained(folders[0] / "StableDiffusionPipeline", enable_pag=True)


@pytest.mark.parametrize(("auto", "kind"), TASKS.items())
def test_a_task_along_maps(folders, tmp_path, auto, kind):
    """A ControlNet, or two, that are given, or that a folder or a pipeline has."""
    place, (owner, _) = folders[0] / "StableDiffusionPipeline", folders[1]
    along = getattr(underdraw, kind.__name__.replace("Diffusion", "DiffusionControlNet"))
    net = controlnet(owner.unet)
    made = auto.from_pretrained(place, controlnet=net)
    assert type(made) is along and made.controlnet is net
    two = auto.from_pipe(owner, controlnet=[net, net])
    assert type(two) is along and len(two.controlnet.nets) == 2 and two.unet is owner.unet
    two.save_pretrained(tmp_path / "two")
    read = auto.from_pretrained(tmp_path / "two", dtype="bfloat16")
    assert type(read) is along and len(read.controlnet.nets) == 2
    assert {one.dtype for one in read.parts.networks} == {torch.bfloat16}
    assert {one.dtype for one in read.to(torch.float32).parts.networks} == {torch.float32}
    assert type(auto.from_pipe(read)) is along
    assert type(auto.from_pipe(read, controlnet=None)) is kind
    with pytest.raises(InputTypeError, match=r"controlnet: .* cannot serve as ControlNetModel"):
        auto.from_pretrained(place, controlnet=object())
    with pytest.raises(InputError, match=r"controlnet=None|has no controlnet"):
        along.from_pretrained(place)


def test_a_single_file_with_a_controlnet(one_file):
    pipe, path = one_file
    given = {"tokenizer": pipe.tokenizer, "controlnet": controlnet(pipe.unet)}
    made = underdraw.StableDiffusionControlNetPipeline.from_single_file(path, **given)
    assert made.controlnet is given["controlnet"]
    with pytest.raises(InputError, match="needs them: give controlnet="):
        underdraw.StableDiffusionControlNetPipeline.from_single_file(path, tokenizer=pipe.tokenizer)


@pytest.mark.parametrize("auto", TASKS)
def test_a_task_of_another_family(tmp_path, auto):
    (tmp_path / "StableDiffusionPipeline").mkdir()
    index = tmp_path / "StableDiffusionPipeline" / "model_index.json"
    index.write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(InputError, match=r"FluxPipeline.*not known"):
        auto.from_pretrained(tmp_path / "StableDiffusionPipeline")
    with pytest.raises(NotFoundError):
        auto.from_pretrained(tmp_path / "nowhere")


def test_dtypes_by_component(folders):
    folder = folders[0] / "StableDiffusionPipeline"
    dtype = {"vae": "float32", "unet": torch.bfloat16, "default": "float16"}
    for name in ("torch_dtype", "dtype"):
        made = StableDiffusionPipeline.from_pretrained(folder, **{name: dtype})
        found = [made.vae.dtype, made.unet.dtype, made.text_encoder.dtype]
        assert found == [torch.float32, torch.bfloat16, torch.float16]
    made = StableDiffusionPipeline.from_pretrained(folder, dtype={"vae": "float16"})
    assert [made.vae.dtype, made.unet.dtype] == [torch.float16, torch.float32]
    for wrong in ({"nets": "float16"}, {"default": "float17"}, {3: "float16"}):
        with pytest.raises(UnderdrawError, match="dtype"):
            StableDiffusionPipeline.from_pretrained(folder, dtype=wrong)


@pytest.fixture(scope="module")
def one_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    pipe = pipeline()
    networks = {name: getattr(pipe, name) for name in ("unet", "vae", "text_encoder")}
    components = {n: (m.export_config(), m.stored_tensors()) for n, m in networks.items()}
    path = folder / "model.safetensors"
    metadata = single_file.single_file_metadata(components)
    save.save_tensors(path, single_file.to_single_file(components), metadata)
    pipe.save_pretrained(folder / "folder")
    return pipe, path


@pytest.mark.parametrize("kind", [UNet2DConditionModel, AutoencoderKL])
def test_networks_from_a_single_file(one_file, kind):
    pipe, path = one_file
    theirs = getattr(pipe, kind.network)
    for options in ({}, {"config": path.parent / "folder"}, {"torch_dtype": "bfloat16"}):
        made = kind.from_single_file(path, **options)
        assert made.config == theirs.config
        assert str(made.dtype).endswith(options.get("torch_dtype", "float32"))
        for (name, one), (again, other) in zip(
            made.named_parameters(), theirs.named_parameters(), strict=True
        ):
            assert name == again and torch.equal(one, other.to(one.dtype))
    for arguments, options, error in (
        ((path.parent / "none.safetensors",), {}, NotFoundError),
        ((path,), {"nonsense": 1}, InputTypeError),
        ((path,), {"config": path.parent / "nowhere"}, NotFoundError),
        ((3,), {}, InputTypeError),
    ):
        with pytest.raises(error):
            kind.from_single_file(*arguments, **options)


YAML = """
model:
  base_learning_rate: 1.0e-4
  params:
    parameterization: "v"   # which
    linear_start: 0.001
    linear_end: 0.0130
    timesteps: 900
    scale_factor: 0.5
"""
PARSED = {"model": {"params": {"parameterization": "v", "linear_start": 0.001, "timesteps": 900}}}


@pytest.mark.parametrize("form", ["file", "text", "dict"])
def test_original_configs(one_file, tmp_path, form):
    pipe, path = one_file
    (tmp_path / "a.yaml").write_text(YAML)
    source = {"file": tmp_path / "a.yaml", "text": str(tmp_path / "a.yaml"), "dict": PARSED}[form]
    made = StableDiffusionPipeline.from_single_file(
        path, original_config=source, tokenizer=pipe.tokenizer, load_safety_checker=False,
        requires_safety_checker=False, compat="diffusers",
    )  # fmt: skip
    config = made.scheduler.config
    assert config.prediction_type == "v_prediction"
    assert (config.beta_start, config.num_train_timesteps) == (0.001, 900)
    assert made.vae.config.scaling_factor == (0.18215 if form == "dict" else 0.5)
    assert (made.requires_safety_checker, made.compat) == (False, "diffusers")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("model:\n parameterization: x1", InputError),
        ("model:\n timesteps: many", InputError),
        ("nothing", InputError),
        (None, NotFoundError),
        (3, InputTypeError),
        (["a"], InputTypeError),
        ({"linear_start": "low"}, InputError),
    ],
)
def test_original_configs_that_are_none(one_file, tmp_path, text, error):
    source = text
    if isinstance(text, str):
        source = tmp_path / "a.yaml"
        source.write_text(text)
    elif text is None:
        source = tmp_path / "none.yaml"
    with pytest.raises(error, match="original_config"):
        UNet2DConditionModel.from_single_file(one_file[1], original_config=source)


def test_the_published_checker_is_asked_of_the_hub(one_file, monkeypatch):
    pipe, path = one_file
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(NotFoundError, match="stable-diffusion-safety-checker"):
        StableDiffusionPipeline.from_single_file(
            path, tokenizer=pipe.tokenizer, load_safety_checker=True
        )


def test_what_was_made_goes_to_the_hub(monkeypatch):
    done = []

    class Api:
        def __init__(self, token=None):
            self.token = token

        def create_repo(self, repo_id, private, exist_ok):
            done.append((repo_id, private, exist_ok, self.token))
            return type("Repository", (), {"repo_id": f"me/{repo_id}"})

        def upload_folder(self, *, folder_path, **options):
            names = {str(p.relative_to(folder_path)) for p in Path(folder_path).rglob("*.json")}
            done.append((names, options))
            return "https://hub/commit"

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    pipe = pipeline()
    for what, held in (
        (pipe, "model_index.json"),
        (pipe.unet, "config.json"),
        (pipe.scheduler, "scheduler_config.json"),
    ):
        done.clear()
        assert what.push_to_hub("thing", private=True, token="t") == "https://hub/commit"
        assert done[0] == ("thing", True, True, "t")
        assert held in done[1][0]
        assert done[1][1]["repo_id"] == "me/thing" and done[1][1]["create_pr"] is False
        for wrong in ("../a", "a/b/c", "", 3, None):
            with pytest.raises(InputError, match="repo_id"):
                what.push_to_hub(wrong)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="HF_HUB_OFFLINE"):
        pipe.push_to_hub("a/b")


def test_folders_are_told_apart_from_calls(folders):
    folder, pipe = folders[0] / "StableDiffusionPipeline", folders[1][0]
    assert DiffusionPipeline.download(folder) == folder
    assert pipe.load_config(folder)["_class_name"] == "StableDiffusionPipeline"
    assert json.loads(pipe.to_json_string())["unet"] == ["diffusers", "UNet2DConditionModel"]
    assert json.loads(pipe.unet.to_json_string())["sample_size"] == 8
    assert pipe.unet.get_memory_footprint() == 4 * pipe.unet.num_parameters()
