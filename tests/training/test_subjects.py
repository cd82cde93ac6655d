"""A subject encoder learns to read pictures and what its tokens mean; a subject is tuned to; the
networks of the base keep their bits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pipelines import tiny
from training import recorded
from training.test_grounding import VISION

from underdraw.backends.deltas import Full, LowRank
from underdraw.controls.subject import Subject
from underdraw.errors import InputError, NotFoundError
from underdraw.models import CLIPVisionModelWithProjection
from underdraw.models.overlay import Overlay
from underdraw.scenes import named_plainly, sample_subject, scene_rng, subject_phrase, subject_scene
from underdraw.training.differences import Differences, copy_with, difference
from underdraw.training.loop import Draw, Stopped, TrainingConfig, train
from underdraw.training.subject_encoder import AlignmentTask, EncoderConfig, new_encoder
from underdraw.training.subject_folder import SubjectFolder, read_pictures
from underdraw.training.subject_scenes import TRUTH, SubjectScenes, render_subjects
from underdraw.training.subject_tuning import (
    SubjectPictures,
    SubjectTuningTask,
    TuningConfig,
    tune_subject,
)
from underdraw.training.subject_words import OWN, prompts, read
from underdraw.training.subjects import SubjectTask, SubjectTrainingConfig

RUN = TrainingConfig(
    steps=30, batch=6, learning_rate=3e-3, warmup=4, ema=0.5, precision="float32", log_steps=5
)
SIZE = EncoderConfig(tokens=3, image_layers=1, layers=1, heads=2, intermediate=16)


class Inks:
    """A cube or a sphere in one of three colours, all over the picture; the caption says which
    shape it is and the picture of it in which colour."""

    inks = ("red", "green", "blue")

    def __len__(self) -> int:
        return 12

    def _rgb(self, index: int) -> torch.Tensor:
        made = torch.full((3, 1, 1), -1.0)
        made[index % 3] = 1
        return made

    def images(self, indices: np.ndarray) -> torch.Tensor:
        return torch.stack([self._rgb(int(i)).expand(3, 32, 48) for i in indices])

    def captions(self, indices: np.ndarray, rng: np.random.Generator) -> list[str]:
        return [f"a {self.category(int(i))} on the table" for i in indices]

    def category(self, index: int) -> str:
        return ("cube", "sphere")[index % 2]

    def described(self, index: int, rng: np.random.Generator) -> str:
        return f"a {self.inks[index % 3]} {self.category(index)}"

    def shown(self, index: int, rng: np.random.Generator, size: int) -> torch.Tensor:
        return self._rgb(index).expand(1, 3, size, size) * float(rng.uniform(0.8, 1))

    def where(self, indices: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
        return torch.ones(len(indices), *size)

    def truth(self, indices: np.ndarray) -> np.ndarray:
        cells = [np.full((2, 4, 6), 1 + i % 2) for i in indices]
        return np.stack(cells).astype(np.int64)


@pytest.fixture
def family() -> dict[str, Any]:
    torch.manual_seed(0)
    tower = CLIPVisionModelWithProjection(VISION).eval()
    return {**tiny.components(unet=tiny.DEEP), "image_encoder": tower}


@pytest.fixture
def latents() -> np.ndarray:
    """Of each picture its colour in four channels."""
    inks = np.eye(4, dtype=np.float32)[np.arange(12) % 3]
    return np.broadcast_to(inks[:, :, None, None], (12, 4, 4, 6)).astype(np.float16)


def encoder(family: dict[str, Any]) -> Any:
    return new_encoder(family, tiny.WORDS, SIZE)


def rows(folder: Path) -> list[dict[str, float]]:
    head, *lines = (folder / "curve.csv").read_text().splitlines()
    return [dict(zip(head.split(","), map(float, line.split(",")), strict=True)) for line in lines]


def bits(module: torch.nn.Module) -> list[torch.Tensor]:
    return [value.clone() for value in module.state_dict().values()]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# -- the encoder -----------------------------------------------------------------------------------
def test_a_new_encoder_begins_as_the_image_tower(family) -> None:
    made, tower = encoder(family), family["image_encoder"]
    pixels = torch.randn(2, 3, 32, 32)
    seen = made.visual_encoder
    e, theirs = seen.embeddings, tower.vision_model.embeddings
    assert torch.equal(e.patch_embedding.weight, theirs.patch_embedding.weight)
    from underdraw.networks.blip import qformer
    from underdraw.networks.program import directly

    ours = directly(qformer.SEE, made, pixels).last
    hidden = tower(pixels, output_hidden_states=True).hidden_states[-1]
    assert torch.allclose(ours, torch.nn.functional.layer_norm(hidden, [16], eps=1e-5), atol=1e-5)
    tokens = made(["cube", "sphere"], pixels, return_dict=False)
    words = family["text_encoder"].text_model.embeddings.token_embedding.weight
    assert 0.5 < tokens.std() / words.std() < 2
    assert made.words()("xyz cube")[0].shape == (1, 6)  # spelled
    with pytest.raises(InputError, match="image_layers=9"):
        new_encoder(family, [], replace(SIZE, image_layers=9))
    with pytest.raises(InputError, match="no 'image_encoder'"):
        new_encoder({**family, "image_encoder": None}, [])


def test_it_learns_to_say_what_it_sees(family, tmp_path: Path) -> None:
    for name, p in family["text_encoder"].named_parameters():
        if p.ndim == 2 and "embedding" not in name:
            p.data *= 3  # or it would hardly tell one token from another
    text = bits(family["text_encoder"])
    task = AlignmentTask(encoder(family), family, Inks())
    train(task, replace(RUN, steps=25, learning_rate=1e-2), tmp_path)
    first, *_, last = rows(tmp_path)
    assert last["contrast"] < 0.8 * first["contrast"]
    assert last["generation"] < 0.1 * first["generation"]
    assert last["found"] > 2 * first["found"]
    assert same(bits(family["text_encoder"]), text)


def test_steps_can_be_recorded(family, latents, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded.check(AlignmentTask(encoder(family), family, Inks()), monkeypatch)
    config = SubjectTrainingConfig(rank=2, truth=0.1, drop_all=0.3)
    task = SubjectTask(encoder(family), family, Inks(), config, latents, kinds=(3, 3))
    recorded.check(task, monkeypatch)


def test_tokens_of_a_subject_stand_where_room_was_left(family) -> None:
    tokens, tower = torch.randn(2, 3, tiny.WIDTH), family["text_encoder"]
    ids = prompts(family["tokenizer"], 20, ["a red cube", ""], ["red", None], 3)
    assert ids.shape == (2, 20) and (ids[0] == OWN).nonzero().flatten().tolist() == [2, 3, 4]
    seen: list[torch.Tensor] = []

    def text(nn: Any, p: Any, config: Any, ids: Any, made: torch.Tensor) -> None:
        seen.append(made)

    embed = tower.text_model.embeddings.token_embedding
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("underdraw.networks.clip.text", text)
        read(tower, ids, tokens)
    (made,) = seen
    assert torch.equal(made[0, 2:5], tokens[0]) and torch.equal(made[0, :2], embed(ids[0, :2]))
    assert torch.equal(made[0, 5:], embed(ids[0, 5:])) and torch.equal(made[1], embed(ids[1]))


def test_its_tokens_come_to_mean_something_to_the_denoiser(family, latents, tmp_path) -> None:
    unet, text = bits(family["unet"]), bits(family["text_encoder"])
    config = SubjectTrainingConfig(rank=2, truth=0.1)
    torch.manual_seed(1)  # of the heads
    task = SubjectTask(encoder(family), family, Inks(), config, latents, kinds=(3, 3))
    tower = bits(task.encoder.visual_encoder)
    run = replace(RUN, steps=12, batch=4, log_steps=3)
    average = train(task, run, tmp_path / "whole")
    first, *_, last = rows(tmp_path / "whole")
    assert last["denoising"] < 0.95 * first["denoising"]
    assert last["truth"] < first["truth"]
    assert same(bits(family["unet"]), unet) and same(bits(family["text_encoder"]), text)
    assert same(bits(task.encoder.visual_encoder), tower)
    assert max(np.abs(delta.up).max() for delta in task.overlay().values()) > 0  # type: ignore
    # Stopped and resumed: the same bits.
    torch.manual_seed(1)
    again = SubjectTask(encoder(family), family, Inks(), config, latents, kinds=(3, 3))
    with pytest.raises(Stopped):
        train(again, run, tmp_path / "parts", stop_after=5)
    resumed = train(again, run, tmp_path / "parts")
    assert same(list(resumed.shadow.values()), list(average.shadow.values()))


def test_pictures_without_latents_and_without_differences(family, tmp_path) -> None:
    config = SubjectTrainingConfig(rank=0, image_tower=True)
    task = SubjectTask(encoder(family), family, Inks(), config)
    tower = bits(task.encoder.visual_encoder)
    train(task, replace(RUN, steps=2), tmp_path)
    assert set(task.modules) == {"qformer"} and not task.overlay()
    assert not same(bits(task.encoder.visual_encoder), tower)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: SubjectTrainingConfig(drop_all=0.7, drop_caption=0.5), "must not add up"),
        (lambda f: SubjectTrainingConfig(drop_all=2), "drop_all=2"),
        (lambda f: SubjectTrainingConfig(early=0.5), "early=0.5"),
        (lambda f: SubjectTrainingConfig(rank=-1), "rank=-1"),
        (
            lambda f: SubjectTask(None, f, Inks(), latents=np.zeros((3, 4, 4, 6))),
            "3 latents for 12",
        ),
        (lambda f: SubjectTask(None, {**f, "vae": None}, Inks()), "no 'vae'"),
        (
            lambda f: SubjectTask(None, f, Inks(), SubjectTrainingConfig(truth=1.0)),
            "needs the argument `kinds`",
        ),
        (lambda f: prompts(f["tokenizer"], 20, ["a cube"], ["sphere"], 3), "'sphere' are not in"),
        (lambda f: TuningConfig(drop_caption=1), "drop_caption=1"),
        (lambda f: TuningConfig(rank=0), "rank=0"),
        (lambda f: TuningConfig(early=0), "early=0"),
        (lambda f: SubjectPictures([], "cube"), "pictures is empty"),
        (lambda f: SubjectPictures([1, 2], "cube", ["a cube"]), "captions has 1"),
        (lambda f: Differences(f["unet"], 0), "no layer that is chosen"),
        (
            lambda f: Differences(f["unet"], 1, begin={"conv_in": Full(np.ones(3))}),
            "no low-rank difference",
        ),
        (lambda f: copy_with(f["unet"], {"conv_in": Full(np.ones(3))}), "no low-rank difference"),
    ],
)
def test_mistakes_are_told(family, make, message) -> None:
    with pytest.raises(InputError, match=message):
        make(family)


# -- differences -----------------------------------------------------------------------------------
def test_differences_go_on_with_others(family) -> None:
    unet, path = family["unet"], "mid_block.resnets.0.conv1"
    rng = np.random.default_rng(0)
    low = LowRank(
        rng.normal(size=(2, 32, 3, 3)).astype(np.float32),
        rng.normal(size=(32, 2, 1, 1)).astype(np.float32),
    )
    made = Differences(unet, 3, lambda p, leaf: p.startswith("mid_block"), {path: low}, seed=1)
    arrays: Any = made.arrays()
    assert arrays[path].down.shape == (5, 32, 3, 3)
    assert np.array_equal(arrays[path].up[:, :2], low.up) and not arrays[path].up[:, 2:].any()
    assert "mid_block.attentions.0.proj_in" in arrays and "conv_in" not in arrays
    trained = copy_with(unet, {path: low})
    (changed,) = difference(unet, trained).items()
    assert changed[0] == path
    product = np.einsum("orxy,rikl->oikl", low.up, low.down)
    assert np.allclose(changed[1].weight, product, atol=1e-4)  # type: ignore[attr-defined]


# -- tuning ----------------------------------------------------------------------------------------
def photos(count: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (60 + i, 70, 3), dtype=np.uint8) for i in range(count)]


@pytest.mark.parametrize(
    ("config", "kinds"),
    [
        (TuningConfig(text_encoder=True), {"unet": Full, "text_encoder": Full}),
        (TuningConfig(rank=2, text_encoder=True), {"unet": LowRank, "text_encoder": LowRank}),
        (TuningConfig(rank=2), {"unet": LowRank}),
        (TuningConfig(embedding=False), {"unet": Full}),
    ],
    ids=["whole", "low-rank", "unet", "without embedding"],
)
def test_a_subject_is_learned_and_taken_away(family, tmp_path, config, kinds) -> None:
    pipe = tiny.pipeline()
    reader = encoder(family)
    reader.overlay = Overlay(Differences(pipe.unet, 1).arrays())
    pipe.load_subject(reader)
    before = tiny.run(pipe, "a cube"), bits(pipe.unet), bits(pipe.text_encoder)
    shown = SubjectPictures(photos(), "cube")
    run = replace(RUN, steps=3, batch=2)
    made, path = tune_subject(pipe, shown, tmp_path, config, run, progress=False)
    assert same(bits(pipe.unet), before[1]) and same(bits(pipe.text_encoder), before[2])
    assert made.category == "cube"
    for name in ("unet", "text_encoder"):
        laid = getattr(made.overlay, name)
        assert {type(delta) for delta in laid.values()} == (
            {kinds[name]} if name in kinds else set()
        )
    assert (made.embedding is None) is not config.embedding
    if made.embedding is not None:
        zero = pipe.subjects["subject"].read(["cube"])
        assert made.embedding.shape == (1, 3, tiny.WIDTH) and zero
    pipe.load_subject(path, name="mine")
    control = Subject(encoder="mine", category="cube")
    acting = tiny.run(pipe, "a cube", controls=[control])
    assert float((acting - before[0]).abs().max()) > 1e-3
    pipe.unload_subject("mine")
    assert torch.equal(tiny.run(pipe, "a cube"), before[0])


def test_the_embedding_is_the_mean_of_the_pictures(family) -> None:
    pipe = tiny.pipeline()
    pipe.load_subject(encoder(family))
    task = SubjectTuningTask(pipe, SubjectPictures(photos(), "cube"))
    one = [
        SubjectTuningTask(pipe, SubjectPictures([photo], "cube")).result().embedding
        for photo in photos()
    ]
    assert np.allclose(task.result().embedding, np.mean(one, 0), atol=1e-6)  # type: ignore
    loss, _ = task.loss(task.draw(Draw(0, 4, np.random.default_rng(0))))
    loss.backward()
    assert task.tokens is not None and task.tokens.values.grad.abs().max() > 0


# -- examples --------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def subjects(tmp_path_factory) -> SubjectScenes:
    folder = tmp_path_factory.mktemp("subjects")
    render_subjects(folder, 4, seed=3, size=64)
    stamp = (folder / "000" / "facts.json").stat().st_mtime_ns
    render_subjects(folder, 4, seed=3, size=64)  # nothing is done
    assert (folder / "000" / "facts.json").stat().st_mtime_ns == stamp
    return SubjectScenes(folder, held_back=1)


def test_rendered_subjects(subjects: SubjectScenes) -> None:
    indices, rng = np.arange(3), np.random.default_rng(0)
    assert len(subjects) == 3 and subjects.images(indices).shape == (3, 3, 64, 64)
    for i, text in enumerate(subjects.captions(indices, rng)):
        thing = subjects.scene(i).objects[0]
        assert f"a {thing.shape}" in text and subjects.category(i) == thing.shape
        said = subjects.described(i, rng)
        assert thing.colour in said and thing.texture.second in said  # type: ignore[union-attr]
    truth, where = subjects.truth(indices), subjects.where(indices, (8, 8))
    assert truth.shape == (3, 4, 8, 8)
    for question, answers in enumerate(TRUTH):
        assert truth[:, question].min() >= 0 and truth[:, question].max() < answers
    own = where > 0.9
    assert (truth[:, 3][own.numpy()] > 0).all()  # a pattern wherever the subject is
    pictures = [subjects.shown(1, np.random.default_rng(k), 24) for k in range(12)]
    assert all(one.shape == (1, 3, 24, 24) and one.abs().max() <= 1 for one in pictures)
    assert len({round(float(one[0, 0, 0, 0]), 3) for one in pictures}) > 3  # on many backgrounds


def test_captions_call_the_subject_by_its_shape_alone() -> None:
    for number in range(30):
        rng = scene_rng(11, number)
        subject = sample_subject(rng)
        scene = subject_scene(subject, rng, 1 + number % 4)
        text = named_plainly(scene, rng)
        assert f"a {subject.shape}" in text
        first = text.index(f"a {subject.shape}")
        assert text.find(f" {subject.shape}") == first + 1
        assert subject_phrase(subject).partition(" ")[2] not in text
        assert " and ".join((subject.colour, subject.texture.second)) not in text  # type: ignore


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lines = []
    for i, photo in enumerate(photos()):
        Image.fromarray(photo).save(tmp_path / f"{i}.png")
        line: dict[str, Any] = {"file_name": f"{i}.png", "category": "cube"}
        if i == 1:
            mask = Image.new("L", (70, 61))
            mask.paste(255, (0, 0, 35, 61))
            (tmp_path / "masks").mkdir()
            mask.save(tmp_path / "masks" / "1.png")
            line |= {"mask": "masks/1.png", "text": "a red cube"}
        lines.append(json.dumps(line))
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    return tmp_path


def test_folders_of_subjects(folder: Path) -> None:
    examples, rng = SubjectFolder(folder, 32, background=1.0), np.random.default_rng(0)
    indices = np.arange(3)
    assert examples.captions(indices, rng) == ["a cube", "a red cube", "a cube"]
    assert examples.described(1, rng) == "a red cube" and examples.category(2) == "cube"
    where = examples.where(indices, (4, 4))
    assert where[0].min() == 1 and where[1, :, 0].min() == 1 and where[1, :, 3].max() == 0
    images = examples.images(indices)
    shown = [examples.shown(1, rng, 32)[0] for _ in range(8)]
    assert all(torch.equal(one[:, :, :8], images[1][:, :, :8]) for one in shown)
    assert any(not torch.equal(one[:, :, 24:], images[1][:, :, 24:]) for one in shown)
    assert torch.equal(examples.shown(0, rng, 32)[0], images[0])
    told = read_pictures(folder, "cube")
    assert len(told) == 3 and told.says(1, rng) == "a red cube"
    (folder / "metadata.jsonl").unlink()
    assert {read_pictures(folder, "cube").says(0, rng) for _ in range(20)} == {
        "a cube", "a photo of a cube", "a picture of a cube",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("line", "error", "message"),
    [
        ('{"file_name": "0.png"}', InputError, "lacks a file_name or a category"),
        ('{"file_name": "9.png", "category": "cube"}', NotFoundError, "there is no file"),
        ('{"file_name": "0.png", "category": "cube", "text": "a dog"}', InputError, "lacks the"),
        ('{"file_name": "0.png", "category": "cube", "mask": 3}', InputError, "is 3, no file"),
        ("", InputError, "names no picture"),
        ("{", InputError, "is not JSON"),
    ],
)
def test_folders_that_are_none(folder: Path, line, error, message) -> None:
    (folder / "metadata.jsonl").write_text(line)
    with pytest.raises(error, match=message):
        SubjectFolder(folder, 32)


def test_folders_without_pictures(tmp_path: Path) -> None:
    for make in (
        lambda: read_pictures(tmp_path / "x", "cube"),
        lambda: read_pictures(tmp_path, "cube"),
        lambda: SubjectFolder(tmp_path, 32),
        lambda: SubjectScenes(tmp_path),
    ):
        with pytest.raises(NotFoundError):
            make()
    for i in range(65):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{i}.png")
    with pytest.raises(InputError, match="65 pictures; allowed: 64"):
        read_pictures(tmp_path, "cube")
