"""Each network learns a few examples, and a published folder is tuned on captioned images."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from training import recorded

from underdraw.errors import InputError
from underdraw.models import (
    AutoencoderKL,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionModelWithProjection,
    UNet2DConditionModel,
)
from underdraw.networks.config import CLIPTextConfig, CLIPVisionConfig, UNetConfig, VAEConfig
from underdraw.training import autoencoder
from underdraw.training.autoencoder import (
    AutoencoderConfig,
    AutoencoderTask,
    Known,
    encode_all,
    psnr,
    scaling_factor,
)
from underdraw.training.clip import ContrastiveConfig, ContrastiveTask, normalise
from underdraw.training.data import CaptionedFolder, FirstOf, RenderedScenes, render_cache
from underdraw.training.loop import Draw, TrainingConfig, train
from underdraw.training.objectives import ObjectiveConfig
from underdraw.training.text_to_image import (
    TextToImageConfig,
    TextToImageTask,
    make_pipeline,
    save_family,
)
from underdraw.training.text_tower import TextTowerTask, initialise, loosely, scenes_tokenizer
from underdraw.training.views import Views, render_views
from underdraw.training.wire import in_bytes, signed

RUN = TrainingConfig(
    steps=40, batch=4, learning_rate=3e-3, warmup=4, ema=0.5, precision="float32", log_steps=5
)
VAE = VAEConfig(
    down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
    block_out_channels=(8, 16),
    norm_num_groups=4,
    sample_size=64,
)
UNET = UNetConfig(
    sample_size=(8, 8),
    block_out_channels=(16, 32),
    layers_per_block=1,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    attention_head_dim=2,
    cross_attention_dim=16,
    norm_num_groups=8,
)
TEXT = CLIPTextConfig(
    hidden_size=16,
    intermediate_size=32,
    projection_dim=12,
    num_hidden_layers=1,
    num_attention_heads=2,
    max_position_embeddings=40,
)
VISION = CLIPVisionConfig(
    hidden_size=16,
    intermediate_size=32,
    projection_dim=12,
    num_hidden_layers=1,
    num_attention_heads=2,
    image_size=64,
    patch_size=16,
)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> RenderedScenes:
    folder = tmp_path_factory.mktemp("renders")
    # Fixed here: what the tests learn from must not move with the recipe.
    render_cache(folder, 14, size=64, mix=(1,) * 7 + (2,) * 8 + (3,) * 3 + (4,) * 2)
    return RenderedScenes(folder, held_back=6)


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory) -> Views:
    folder = tmp_path_factory.mktemp("things") / "views"
    render_views(folder, 12, seed=3, size=64)
    return Views(folder)


@pytest.fixture(scope="module")
def tokenizer(scenes: RenderedScenes):
    captions = scenes.captions(np.arange(len(scenes)).repeat(10), np.random.default_rng(0))
    return scenes_tokenizer(captions, TEXT.max_position_embeddings)


def tower(cls, tokenizer):
    torch.manual_seed(0)
    config = replace(TEXT, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    return cls(config)


class Colours:
    """Four flat images of four colours, easy to learn."""

    names = ("red", "green", "blue", "gray")
    values = torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1], [0, 0, 0]])

    def __len__(self) -> int:
        return 4

    def images(self, indices: np.ndarray) -> torch.Tensor:
        return self.values[indices][:, :, None, None].expand(-1, -1, 64, 64).contiguous()

    def captions(self, indices: np.ndarray, rng: np.random.Generator) -> list[str]:
        return [f"a {self.names[i]} cube" for i in indices]


def losses(folder: Path) -> list[float]:
    rows = (folder / "curve.csv").read_text().splitlines()
    place = rows[0].split(",").index("loss")
    return [float(row.split(",")[place]) for row in rows[1:]]


def test_every_word_of_the_scenes_is_one_token(tokenizer) -> None:
    text = "a small matte purple cylinder to the left of a striped gray torus, behind a wooden box"
    assert len(tokenizer.tokenize(text)) == 18


def test_autoencoder_learns_and_previews(scenes: RenderedScenes, tmp_path: Path) -> None:
    torch.manual_seed(0)
    vae = AutoencoderKL(VAE)
    before = psnr(vae, scenes.shown())
    task = AutoencoderTask(vae, scenes, AutoencoderConfig(crop=24), scenes.shown())
    batch = task.draw(Draw(0, 3, np.random.default_rng(0)))
    assert batch["pixels"].shape == (3, 3, 24, 24)
    assert batch["noise"].shape == (3, 4, 12, 12)
    train(task, replace(RUN, steps=60), tmp_path)
    found = losses(tmp_path)
    assert min(found[-3:]) < 0.8 * found[0]
    assert psnr(vae, scenes.shown()) > before + 1
    with Image.open(tmp_path / "preview.png") as picture:
        assert picture.size == (6 * 64, 2 * 64)


def test_a_decoder_is_asked_to_keep_changes_in_their_place(scenes, monkeypatch) -> None:
    torch.manual_seed(0)
    config = AutoencoderConfig(crop=32, local=1.0)
    task = AutoencoderTask(AutoencoderKL(VAE), scenes, config)
    batch = task.draw(Draw(0, 4, np.random.default_rng(0)))
    windows = batch["window"]
    assert windows.shape == (4, 1, 16, 16)
    for window in windows[:, 0]:  # each is one rectangle, neither nothing nor all
        rows, columns = (window.amax(axis).sum() for axis in (1, 0))
        assert 0 < window.sum() == rows * columns < window.numel()

    def moved(decode: Any) -> float:
        said = SimpleNamespace(sample=None)

        def answer(latents: torch.Tensor) -> Any:
            said.sample = decode(latents[:, :3].repeat_interleave(2, 2).repeat_interleave(2, 3))
            return said

        monkeypatch.setattr(task.vae, "decode", answer)
        return float(task.loss(batch)[1]["moved"])

    assert moved(lambda x: x) == 0
    lit = moved(lambda x: x + x.mean((1, 2, 3), keepdim=True))  # all over the picture
    near = moved(lambda x: (x + x.roll(1, 3)) / 2)  # beside an edge
    assert lit > 0 and near > 0
    # Beside an edge a change counts a quarter of what it counts elsewhere.
    grown = [torch.nn.functional.max_pool2d(part, 3, 1, 1) for part in (windows, 1 - windows)]
    edge = (grown[0] + grown[1] == 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    answers = iter([torch.zeros(4, 3, 32, 32), edge.expand(-1, 3, -1, -1).float()])
    share = edge.float().mean().item()
    expected = 0.25 * share / (0.25 * share + 1 - share)
    assert moved(lambda x: next(answers)) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(InputError, match=r"local=1.0 needs two pictures"):
        one = {name: value[:1] for name, value in batch.items()}
        AutoencoderTask(AutoencoderKL(VAE), scenes, config).loss(one)
    monkeypatch.undo()
    plain = replace(config, local=0.0)
    without = AutoencoderTask(task.vae, scenes, plain).loss(batch)
    loss, told = task.loss(batch)
    torch.testing.assert_close(loss, without[0] + told["moved"])
    assert "moved" not in without[1]
    loss.backward()
    assert task.vae.decoder.conv_out.weight.grad.abs().max() > 0


@pytest.fixture
def beside(scenes: RenderedScenes) -> AutoencoderTask:
    """An autoencoder that learns three pictures beside five whose latents are their numbers."""
    torch.manual_seed(0)
    latents = np.stack([np.full((4, 32, 32), i, np.float16) for i in range(5)])
    known, config = Known(FirstOf(scenes, 5), latents), AutoencoderConfig(crop=None, anchor=0.5)
    vae: Any = AutoencoderKL(VAE)
    return AutoencoderTask(vae, FirstOf(scenes, 3), config, known=known)


@pytest.mark.parametrize("count", [1, 2, 3, 10])
def test_every_second_picture_is_known(
    beside: AutoencoderTask, scenes: RenderedScenes, count: int
) -> None:
    seen: list[int] = []
    for first in range(0, 30, count):  # three epochs of what is known, in whatever parts
        batch = beside.draw(Draw(first, count, np.random.default_rng(0)))
        assert batch["pixels"].shape == (count, 3, 64, 64)
        assert batch["held"].tolist() == [(first + i) % 2 == 0 for i in range(count)]
        for picture, latents in zip(batch["pixels"], batch["known"], strict=True):
            if len({*latents.flatten().tolist()}) == 1 and latents[0, 0, 0] != 0:
                number = int(latents[0, 0, 0])
                assert torch.equal(signed(picture), scenes.images(np.array([number]))[0])
                seen.append(number)
    assert sorted(seen) == sorted([1, 2, 3, 4] * 3)  # 0 is what others have, too


def test_an_autoencoder_learns_more_beside_latents_that_stay(beside: AutoencoderTask) -> None:
    batch = beside.draw(Draw(0, 4, np.random.default_rng(0)))
    loss, told = beside.loss(batch)
    mean = beside.vae.encode(signed(batch["pixels"])).latent_dist.mean
    strayed = (mean - batch["known"])[[0, 2]].square().mean()
    torch.testing.assert_close(told["strayed"], strayed.detach())
    config = beside.config
    beside.config = replace(config, anchor=0.0)
    torch.testing.assert_close(loss, beside.loss(batch)[0] + 0.5 * told["strayed"])
    # Whatever a part of a step holds, parts make the whole.
    beside.config = config
    parts = [beside.loss({k: v[i : i + 1] for k, v in batch.items()}) for i in range(4)]
    torch.testing.assert_close(torch.stack([part for part, _ in parts]).mean(), loss)
    assert {float(figures["strayed"]) for _, figures in parts[1::2]} == {0}


def test_what_is_known_is_whole(beside: AutoencoderTask) -> None:
    vae, others, known, config = beside.vae, beside.examples, beside.known, beside.config
    assert known is not None
    with pytest.raises(InputError, match=r"crop=24: latents of known pictures are of whole ones"):
        AutoencoderTask(vae, others, replace(config, crop=24), known=known)
    with pytest.raises(InputError, match=r"known: 4 latents of 5 pictures"):
        AutoencoderTask(vae, others, config, known=replace(known, latents=known.latents[:4]))


def test_psnr_of_known_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.full((3, 16, 24, 3), 100, np.uint8)
    shifted = torch.full((3, 3, 16, 24), (100 + 10) / 127.5 - 1)
    name = "underdraw.training.autoencoder.reconstruct"
    monkeypatch.setattr(name, lambda vae, part: shifted[: len(part)])
    found = psnr(_OnHost(), images, batch=2)
    assert found == pytest.approx(20 * np.log10(255 / 10), abs=1e-3)


class _OnHost:
    device = torch.device("cpu")


def test_frozen_encoder_keeps_latents_valid(scenes: RenderedScenes, tmp_path: Path) -> None:
    vae = AutoencoderKL(VAE)
    before = {name: p.clone() for name, p in vae.state_dict().items()}
    config = AutoencoderConfig(crop=None, kl=0.0, freeze_encoder=True)
    train(AutoencoderTask(vae, scenes, config), replace(RUN, steps=2), tmp_path)
    after = vae.state_dict()
    changed = {name.split(".")[0] for name, p in after.items() if (p != before[name]).any()}
    assert changed == {"decoder", "post_quant_conv"}


def test_encoding_that_was_interrupted_goes_on(scenes, tmp_path: Path, monkeypatch) -> None:
    torch.manual_seed(0)
    vae, path = AutoencoderKL(VAE), tmp_path / "latents.npy"
    whole = encode_all(vae, scenes, tmp_path / "whole.npy", batch=2)
    monkeypatch.setattr(autoencoder, "_KEEP", 0.0)
    encode, calls = vae.encode, []

    def interrupted(pixels: torch.Tensor) -> Any:
        calls.append(len(pixels))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(pixels)

    monkeypatch.setattr(vae, "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        encode_all(vae, scenes, path, batch=2)
    assert not path.exists()  # nobody takes a part for the whole
    calls.append(0)
    np.testing.assert_array_equal(encode_all(vae, scenes, path, batch=2), whole)
    assert sum(calls[3:]) == len(scenes) - 4
    assert [one.name for one in tmp_path.glob(".*")] == []


def test_latents_are_kept_and_completed(scenes: RenderedScenes, tmp_path: Path) -> None:
    vae = AutoencoderKL(VAE)
    path = tmp_path / "latents.npy"
    whole = np.array(encode_all(vae, scenes, path, batch=3, precision="float32"))
    assert whole.shape == (8, 4, 32, 32)
    with torch.no_grad():
        expected = vae.encode(scenes.images(np.array([5]))).latent_dist.mode().numpy()
    np.testing.assert_allclose(whole[5], expected[0], atol=2e-3)
    np.save(path, whole[:5])
    completed = encode_all(vae, scenes, path, batch=3, precision="float32")
    np.testing.assert_array_equal(completed, whole)
    assert scaling_factor(whole) * np.std(whole, dtype=np.float64) == pytest.approx(1)


def test_text_tower_learns_what_captions_say(scenes, tokenizer, tmp_path: Path) -> None:
    model = tower(CLIPTextModel, tokenizer)
    initialise(model)
    task = TextTowerTask(model, tokenizer, scenes)
    batch = task.draw(Draw(0, 5, np.random.default_rng(0)))
    counts = [len(scenes.described(0, np.random.default_rng(s)).mentions) for s in range(3)]
    assert max(counts) <= 4
    assert batch["facts"].shape == (5, 4, 5)
    assert (batch["there"].sum(1) >= 1).all()
    assert (batch["ids"].gather(1, batch["end"][:, None]) == tokenizer.eos_token_id).all()
    train(task, RUN, tmp_path)
    found = losses(tmp_path)
    assert found[-1] < 0.7 * found[0]


def test_loose_captions_keep_their_words() -> None:
    rng = np.random.default_rng(0)
    text = "a red sphere, a cube and the cone"
    loose = {loosely(text, rng) for _ in range(200)}
    assert {"red sphere, cube and cone", text, text + "."} <= loose


def family(tokenizer) -> dict:
    torch.manual_seed(0)
    return {
        "vae": AutoencoderKL(VAE),
        "text_encoder": tower(CLIPTextModel, tokenizer),
        "tokenizer": tokenizer,
        "unet": UNet2DConditionModel(UNET),
    }


@pytest.mark.parametrize("train_text", [False, True])
def test_denoiser_learns_latents(scenes, tokenizer, tmp_path: Path, train_text: bool) -> None:
    parts = family(tokenizer)
    latents = encode_all(parts["vae"], scenes, tmp_path / "latents.npy")[:, :, ::4, ::4]
    config = TextToImageConfig(
        prompts=("a red sphere", "a cube"), preview_steps=2, train_text=train_text
    )
    text = [p.clone() for p in parts["text_encoder"].parameters()]
    task = TextToImageTask(parts, scenes, config, np.ascontiguousarray(latents))
    train(task, replace(RUN, preview_minutes=1e9), tmp_path)
    found = losses(tmp_path)
    assert np.mean(found[-3:]) < 0.8 * np.mean(found[:2])
    moved = any(
        (a != b).any() for a, b in zip(text, parts["text_encoder"].parameters(), strict=True)
    )
    assert moved == train_text
    with Image.open(tmp_path / "preview.png") as picture:
        assert picture.size == (2 * 16, 16)


def test_denoiser_learns_what_stands_where(scenes, tokenizer, tmp_path: Path) -> None:
    parts = family(tokenizer)
    parts["unet"] = UNet2DConditionModel(
        replace(
            UNET,
            block_out_channels=(16, 16, 32),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"),
        )
    )
    latents = encode_all(parts["vae"], scenes, tmp_path / "latents.npy")[:, :, ::4, ::4]
    config = TextToImageConfig(truth=1.0)
    task = TextToImageTask(parts, scenes, config, np.ascontiguousarray(latents))
    torch.manual_seed(0)
    batch = task.draw(Draw(0, 8, np.random.default_rng(0)))
    assert batch["truth"].shape == (8, 3, 8, 8)
    loss, told = task.loss(batch)
    plain = TextToImageTask(parts, scenes, TextToImageConfig(), np.ascontiguousarray(latents))
    # The heads watch; what the network answers, and so its own loss, stays the same.
    torch.testing.assert_close(plain.loss(batch)[0].detach(), told["denoising"])
    assert loss.item() > told["denoising"]
    train(task, replace(RUN, preview_minutes=1e9), tmp_path)
    assert task.loss(batch)[0].item() < 0.8 * loss.item()


def test_checkpointed_blocks_learn_the_same(scenes, tokenizer) -> None:
    parts, losses = family(tokenizer), []
    for flag in (False, True):
        config = TextToImageConfig(gradient_checkpointing=flag)
        parts["unet"].zero_grad()
        task = TextToImageTask(parts, scenes, config)
        torch.manual_seed(0)
        loss, _ = task.loss(task.draw(Draw(0, 4, np.random.default_rng(0))))
        loss.backward()
        losses.append((loss.item(), parts["unet"].conv_in.weight.grad.clone()))
        assert parts["unet"].is_gradient_checkpointing == flag
    assert losses[0][0] == losses[1][0]
    torch.testing.assert_close(losses[0][1], losses[1][1])


def test_truth_needs_examples_that_know_it(tokenizer) -> None:
    with pytest.raises(InputError, match=r"truth=0.5 .* Colours does not"):
        TextToImageTask(family(tokenizer), Colours(), TextToImageConfig(truth=0.5))


def test_captions_are_dropped_at_the_stated_rate(scenes, tokenizer) -> None:
    parts = family(tokenizer)
    for rate in (0.0, 1.0):
        task = TextToImageTask(parts, scenes, TextToImageConfig(drop_caption=rate))
        batch = task.draw(Draw(0, 8, np.random.default_rng(0)))
        empty = (batch["ids"] == task.tokenize([""])).all(1)
        assert empty.tolist() == [bool(rate)] * 8
        assert batch["pixels"].shape == (8, 3, 64, 64)
        assert batch["posterior"].shape == batch["noise"].shape == (8, 4, 32, 32)


def test_wrong_families_are_named(scenes, tokenizer) -> None:
    parts = family(tokenizer)
    with pytest.raises(InputError, match="3 latents for 8 examples"):
        TextToImageTask(parts, scenes, latents=np.zeros((3, 4, 8, 8), np.float16))
    del parts["vae"]
    with pytest.raises(InputError, match="no 'vae'"):
        TextToImageTask(parts, scenes)
    with pytest.raises(InputError, match="crop=17"):
        AutoencoderTask(AutoencoderKL(VAE), scenes, AutoencoderConfig(crop=17))


def test_published_folder_is_tuned_on_captioned_images(tokenizer, tmp_path: Path) -> None:
    """Load, tune, save, load again: the whole way a user goes with a real checkpoint."""
    from underdraw.pipelines.stable_diffusion import StableDiffusionPipeline

    objective = ObjectiveConfig(prediction_type="epsilon", weighting="min_snr")
    save_family(family(tokenizer), objective, tmp_path / "model", half=False)
    photos = tmp_path / "photos"
    photos.mkdir()
    lines = []
    for i, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (40, 24 + i), colour).save(photos / f"{i}.png")
        lines.append(json.dumps({"file_name": f"{i}.png", "text": f"a {colour} thing"}))
    (photos / "metadata.jsonl").write_text("\n".join(lines))

    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "model")
    before = {name: p.clone() for name, p in pipe.unet.state_dict().items()}
    parts = {name: getattr(pipe, name) for name in ("vae", "text_encoder", "tokenizer", "unet")}
    config = TextToImageConfig(objective, train_text=True)
    task = TextToImageTask(parts, CaptionedFolder(photos, 16), config)
    average = train(task, replace(RUN, steps=10, accumulate=2, batch=6), tmp_path / "run")
    found = losses(tmp_path / "run")
    assert found[-1] < found[0]
    assert any((p != before[name]).any() for name, p in pipe.unet.state_dict().items())

    call: dict[str, Any] = {"num_inference_steps": 2, "seed": 1, "output_type": "np"}
    call |= {"height": 16, "width": 24}
    with average.applied():
        save_family(parts, objective, tmp_path / "tuned", half=False)
        images = make_pipeline(parts, objective)("a red thing", **call).images
    again = StableDiffusionPipeline.from_pretrained(tmp_path / "tuned")
    same = again("a red thing", **call)
    np.testing.assert_array_equal(same.images, images)


def test_towers_learn_to_match(scenes, tokenizer, tmp_path: Path) -> None:
    torch.manual_seed(0)
    image = CLIPVisionModelWithProjection(VISION)
    text = tower(CLIPTextModelWithProjection, tokenizer)
    frozen = text.text_model.embeddings.token_embedding.weight.clone()
    colours = Colours()
    shown = colours.images(np.arange(4)), colours.captions(np.arange(4), np.random.default_rng(0))
    task = ContrastiveTask(image, text, tokenizer, colours, shown=shown)
    train(task, RUN, tmp_path)
    found = losses(tmp_path)
    assert found[-1] < 0.8 * found[0]
    assert torch.equal(frozen, text.text_model.embeddings.token_embedding.weight)
    assert (tmp_path / "measured.csv").read_text().split() == ["step,retrieved", "40,1.0"]


def test_image_tower_meets_pooled_phrases_of_cut_out_things(
    scenes, tokenizer, tmp_path: Path
) -> None:
    """Without a projection of its own the text tower stays as it is, all of it."""
    torch.manual_seed(0)
    image = CLIPVisionModelWithProjection(replace(VISION, projection_dim=TEXT.hidden_size))
    text = tower(CLIPTextModel, tokenizer)
    before = {name: p.clone() for name, p in text.state_dict().items()}
    task = ContrastiveTask(image, text, tokenizer, scenes, ContrastiveConfig(crops=0.5))
    batch = task.draw(Draw(0, 4, np.random.default_rng(0)))
    assert batch["pixels"].shape == (4, 3, 64, 64)
    train(task, replace(RUN, steps=60), tmp_path)
    found = losses(tmp_path)
    assert np.mean(found[-3:]) < 0.9 * np.mean(found[:2])
    assert all(torch.equal(p, before[name]) for name, p in text.state_dict().items())
    with pytest.raises(InputError, match=r"crops=0.5 needs rendered scenes; Colours"):
        ContrastiveTask(image, text, tokenizer, Colours(), ContrastiveConfig(crops=0.5))


def test_steps_of_towers_and_of_the_autoencoder_can_be_recorded(
    scenes, views, tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = CLIPVisionModelWithProjection(replace(VISION, projection_dim=TEXT.hidden_size))
    text, config = tower(CLIPTextModel, tokenizer), ContrastiveConfig(crops=0.25, views=0.5)
    task = ContrastiveTask(image, text, tokenizer, scenes, config, views=views)
    recorded.check(task, monkeypatch, 8)
    pictures = AutoencoderTask(AutoencoderKL(VAE), scenes, AutoencoderConfig(crop=32, local=1.0))
    recorded.check(pictures, monkeypatch)
    assert pictures.draw(Draw(0, 2, np.random.default_rng(0)))["pixels"].dtype == torch.uint8
    recorded.check(TextToImageTask(family(tokenizer), scenes), monkeypatch)
    recorded.check(TextTowerTask(text, tokenizer, scenes), monkeypatch)


def test_image_tower_sees_things_alone(scenes, views, tokenizer, tmp_path: Path) -> None:
    image = CLIPVisionModelWithProjection(replace(VISION, projection_dim=TEXT.hidden_size))
    text = tower(CLIPTextModel, tokenizer)
    config = ContrastiveConfig(crops=0.25, views=0.5)
    task = ContrastiveTask(image, text, tokenizer, scenes, config, views=views)
    batch = task.draw(Draw(0, 8, np.random.default_rng(3)))
    pixels, said = views.told(4, np.random.default_rng(3), 64)
    assert torch.equal(batch["pixels"][:4], in_bytes(pixels)) and len(batch["pixels"]) == 8
    length = batch["ids"].shape[1]
    assert torch.equal(batch["ids"][:4, :length], padded(task._tokenize(said), length, tokenizer))
    train(task, replace(RUN, steps=2, batch=8), tmp_path)
    with pytest.raises(InputError, match=r"crops=0.7 and views=0.6 must be shares"):
        ContrastiveConfig(crops=0.7, views=0.6)
    with pytest.raises(InputError, match=r"views=0.5 needs the argument"):
        ContrastiveTask(image, text, tokenizer, scenes, config)


def padded(ids: torch.Tensor, length: int, tokenizer: Any) -> torch.Tensor:
    more = length - ids.shape[1]
    return torch.nn.functional.pad(ids, (0, more), value=tokenizer.pad_token_id)


def test_equal_words_are_both_right(scenes, tokenizer) -> None:
    image = CLIPVisionModelWithProjection(replace(VISION, projection_dim=TEXT.hidden_size))
    task = ContrastiveTask(image, tower(CLIPTextModel, tokenizer), tokenizer, scenes)
    pixels = torch.zeros(2, 3, 64, 64)
    same = task.loss({"pixels": pixels, "ids": task._tokenize(["a cube"] * 2)})
    assert same[1]["matched"] == 1.0
    np.testing.assert_allclose(same[0].item(), np.log(2), atol=1e-5)


def test_images_are_normalised_as_clips_processor_does() -> None:
    from underdraw.models import CLIPImageProcessor

    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    pictures = [Image.fromarray(p) for p in pixels]
    expected = np.asarray(CLIPImageProcessor(32, (32, 32))(pictures)["pixel_values"])
    signed = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    np.testing.assert_allclose(normalise(signed, 32).numpy(), expected, atol=1e-4)
