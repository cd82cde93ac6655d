"""`from_single_file`: the same pipeline as from a folder."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pipelines import tiny

from underdraw import AutoencoderKL, StableDiffusionPipeline
from underdraw.errors import InputError, InputTypeError, NotFoundError, WeightError
from underdraw.formats.stored import stored
from underdraw.pipelines.components.single_file import load_tokenizer
from underdraw.weights import files, folders, hub, save, single_file
from underdraw.weights.vocabularies import Tokenizer

NETWORKS = ("unet", "vae", "text_encoder")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("single") / "folder"
    tiny.pipeline().save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def file(folder, tmp_path_factory):
    place = tmp_path_factory.mktemp("files") / "model.safetensors"
    write(folder, place)
    return place


def write(folder, place, parts=NETWORKS, scheduler=None):
    found = {name: folders.open_component(folder, name) for name in parts}
    scheduler = scheduler or folders.read_config(folder, "scheduler")
    metadata = single_file.single_file_metadata(found, scheduler)
    save.save_tensors(place, single_file.to_single_file(found), metadata)


def latents(pipe, **arguments):
    pipe.set_progress_bar_config(disable=True)
    return tiny.run(pipe, height=40, width=72, **arguments)


def test_the_same_images_as_the_folder(folder, file):
    ours = StableDiffusionPipeline.from_pretrained(folder)
    read = StableDiffusionPipeline.from_single_file(file, tokenizer=folder / "tokenizer")
    assert read.source == str(file)
    assert type(read.scheduler) is type(ours.scheduler)
    assert torch.equal(latents(ours), latents(read))
    images = [latents(pipe, output_type="np") for pipe in (ours, read)]
    assert np.array_equal(*images)


@pytest.mark.parametrize("form", [str, Path, lambda folder: folder / "tokenizer"])
def test_the_tokenizer_from_folders(folder, file, form):
    read = StableDiffusionPipeline.from_single_file(file, tokenizer=form(folder))
    assert read.tokenizer("a red sphere") == tiny.tokenizer()("a red sphere")


def test_configs_and_tokenizer_of_a_pipeline_folder(folder, tmp_path):
    """A file that does not carry its configs, as those of others."""
    found = {name: folders.open_component(folder, name) for name in NETWORKS}
    save.save_tensors(tmp_path / "bare.safetensors", single_file.to_single_file(found))
    ours = StableDiffusionPipeline.from_pretrained(folder)
    read = StableDiffusionPipeline.from_single_file(tmp_path / "bare.safetensors", config=folder)
    assert read.unet.config == ours.unet.config
    assert torch.equal(latents(ours), latents(read))


def test_components_that_are_given_are_used(folder, file):
    own = tiny.components()
    read = StableDiffusionPipeline.from_single_file(
        file, vae=own["vae"], tokenizer=own["tokenizer"], scheduler=own["scheduler"]
    )
    assert read.vae is own["vae"]
    assert read.tokenizer is own["tokenizer"]
    assert read.scheduler is own["scheduler"]


def test_a_part_that_is_not_inside_must_be_given(folder, tmp_path):
    write(folder, tmp_path / "two.safetensors", ("unet", "text_encoder"))
    load = StableDiffusionPipeline.from_single_file
    with pytest.raises(InputError, match=r"has no vae; StableDiffusionPipeline needs .* vae="):
        load(tmp_path / "two.safetensors", tokenizer=folder)
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae")
    assert load(tmp_path / "two.safetensors", tokenizer=folder, vae=vae).vae is vae


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_dtype(folder, file, name):
    options = {name: torch.bfloat16}
    read = StableDiffusionPipeline.from_single_file(file, tokenizer=folder, **options)
    assert {part.dtype for part in (read.unet, read.vae, read.text_encoder)} == {torch.bfloat16}


def test_prediction_type_and_averaged_weights(folder, file, tmp_path):
    checkpoint = files.open_checkpoint(file)
    tensors = dict(checkpoint.tensors)
    for name, tensor in checkpoint.tensors.items():
        if name.startswith("model.diffusion_model."):
            flat = "model_ema." + name.removeprefix("model.").replace(".", "")
            tensors[flat] = stored(tensor.load() + np.float32(1))
    save.save_tensors(tmp_path / "both.safetensors", tensors, checkpoint.metadata)
    load = StableDiffusionPipeline.from_single_file
    read = load(
        tmp_path / "both.safetensors",
        tokenizer=folder,
        extract_ema=True,
        prediction_type="v_prediction",
    )
    plain = load(tmp_path / "both.safetensors", tokenizer=folder)
    assert read.scheduler.config.prediction_type == "v_prediction"
    assert plain.scheduler.config.prediction_type == "epsilon"
    for name, value in plain.unet.state_dict().items():
        assert torch.equal(read.unet.state_dict()[name], value + 1)


def test_sd2_pads_with_its_own_sign(tmp_path):
    wide = {"hidden_size": 64, "hidden_act": "gelu"}
    unet = {
        "use_linear_projection": True,
        "attention_head_dim": (2, 4),
        "cross_attention_dim": 64,
    }
    tiny.pipeline(text=wide, unet=unet).save_pretrained(tmp_path / "folder")
    write(tmp_path / "folder", tmp_path / "x.safetensors")
    load = StableDiffusionPipeline.from_single_file
    vocabulary = tmp_path / "folder" / "tokenizer"
    assert load(tmp_path / "x.safetensors", tokenizer=vocabulary).tokenizer.pad_token == "!"
    kept = load(tmp_path / "x.safetensors", config=tmp_path / "folder").tokenizer
    assert kept.pad_token == "<|endoftext|>"  # a pipeline's own tokenizer knows


def test_check_finds_nan(folder, file, tmp_path):
    checkpoint = files.open_checkpoint(file)
    tensors = {name: np.array(t.load()) for name, t in checkpoint.tensors.items()}
    tensors["first_stage_model.decoder.conv_in.bias"][2] = np.nan
    save.save_tensors(tmp_path / "nan.safetensors", tensors, checkpoint.metadata)
    load = StableDiffusionPipeline.from_single_file
    with pytest.raises(WeightError, match=r"decoder\.conv_in\.bias"):
        load(tmp_path / "nan.safetensors", tokenizer=folder, check=True)


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))


def test_the_repository_of_the_vocabulary_is_named(file, offline):
    with pytest.raises(NotFoundError, match=r"openai/clip-vit-large-patch14.*give a tokenizer"):
        load_tokenizer(Tokenizer())
    known = len(tiny.tokenizer())
    with pytest.raises(NotFoundError, match=rf"knows {known} tokens, as no published.*give the"):
        StableDiffusionPipeline.from_single_file(file)


def test_the_vocabulary_is_told_by_its_size(folder, file, tmp_path):
    """The scenes' own file needs none; what cannot belong together is refused."""
    names = ("unet", "vae", "text_encoder")
    found = {name: folders.open_component(hub.scenes_folder(), name) for name in names}
    place = tmp_path / "scenes.safetensors"
    metadata = single_file.single_file_metadata(found)
    save.save_tensors(place, single_file.to_single_file(found), metadata)
    read = single_file.read_single_file(place)
    assert read.tokenizer.repository == "underdraw/scenes"
    own = load_tokenizer(read.tokenizer)
    assert len(own) == read.components["text_encoder"][0]["vocab_size"] == read.tokenizer.tokens
    small, large = len(tiny.tokenizer()), len(own)
    with pytest.raises(InputError, match=f"has {large} tokens; .* knows {small}"):
        StableDiffusionPipeline.from_single_file(file, tokenizer="underdraw/scenes")
    with pytest.raises(InputError, match=f"has {small} tokens; .*49408, as that of openai/clip"):
        load_tokenizer(Tokenizer(tokens=49408), folder)
    some_more = load_tokenizer(Tokenizer(None, tokens=small + 3), folder)  # added in training
    assert len(some_more) == small


@pytest.mark.parametrize(
    ("source", "error", "says"),
    [
        ("nowhere.safetensors", NotFoundError, "no such file"),
        ("/nowhere/at/all.safetensors", NotFoundError, "no such file"),
        ("owner/name/model.txt", NotFoundError, "no such file"),
        ("owner/name/model.safetensors", NotFoundError, "the Hub gives no model.safetensors"),
        (
            "https://huggingface.co/owner/name/blob/main/a/model.ckpt",
            NotFoundError,
            "the Hub gives no a/model.ckpt of owner/name",
        ),
        (3, InputTypeError, "source=3"),
        (None, InputTypeError, "source=None"),
    ],
)
def test_what_is_not_there(source, error, says, offline):
    with pytest.raises(error, match=says):
        StableDiffusionPipeline.from_single_file(source, local_files_only=True)


def test_mistakes(folder, file):
    load = StableDiffusionPipeline.from_single_file
    with pytest.raises(NotFoundError, match="folders are read by from_pretrained"):
        load(folder)
    with pytest.raises(InputTypeError, match=r"no arguments \['image_size'\]"):
        load(file, image_size=512)
    with pytest.raises(NotFoundError, match=r"original_config=v1\.yaml: no such file"):
        load(file, original_config="v1.yaml")
    with pytest.raises(InputError, match="prediction_type='noise'"):
        load(file, prediction_type="noise", tokenizer=folder)
    with pytest.raises(NotFoundError, match="nowhere"):
        load(file, tokenizer=folder / "nowhere")
    with pytest.raises(NotFoundError, match="nowhere"):
        load(file, config=folder / "nowhere")


def test_a_file_in_the_cache_of_the_hub(folder, file, tmp_path, monkeypatch):
    """As `huggingface_hub` leaves it: by commit, the branch noted beside."""
    cache, commit = tmp_path / "hub", "a" * 40
    place = cache / "models--owner--name" / "snapshots" / commit / "v1"
    place.mkdir(parents=True)
    (place / "model.safetensors").write_bytes(file.read_bytes())
    (cache / "models--owner--name" / "refs").mkdir()
    (cache / "models--owner--name" / "refs" / "main").write_text(commit)
    for name in (
        "owner/name/v1/model.safetensors",
        "https://huggingface.co/owner/name/resolve/main/v1/model.safetensors",
    ):
        read = StableDiffusionPipeline.from_single_file(
            name, cache_dir=cache, local_files_only=True, config=folder
        )
        assert read.source == name
        assert read.unet.config.sample_size == 8
