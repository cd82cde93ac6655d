"""LoRAs, words and whole networks learn a few pictures, and what they learned is loaded again."""

from __future__ import annotations

import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pipelines import tiny
from training.adapters.shown import SHORT, SMALL, bits, pictures

from underdraw import InputError, StableDiffusionPipeline
from underdraw.backends import hardware, torch_operations
from underdraw.training.adapters.dreambooth import (
    PriorConfig,
    WholeConfig,
    class_pictures,
    train_dreambooth,
)
from underdraw.training.adapters.learners import (
    LoraConfig,
    LoraLearner,
    WholeLearner,
    Word,
    WordLearner,
)
from underdraw.training.adapters.lora import train_lora
from underdraw.training.adapters.pictures import TrainingPictures
from underdraw.training.adapters.running import LEARNER, fitting
from underdraw.training.adapters.task import PictureTask, Prior, check_pipeline
from underdraw.training.adapters.words import saying, train_textual_inversion
from underdraw.training.data import to_signed
from underdraw.training.loop import Draw, Stopped, train
from underdraw.training.parallel import alone

GATED = {"attention_type": "gated"}
BOUND = 1e-5
"""Of the largest number: sums in another order, of float32, in two calls of the UNet."""
UNETS = {
    "plain": {},
    "inpainting": {"in_channels": 9},
    "gated": GATED,
    "gated inpainting": {**GATED, "in_channels": 9},
    "v": {},
}
KINDS = {
    "small": LoraConfig(2),
    "all": LoraConfig(3, alpha=5.0, conv_rank=2, text_encoder=True),
    "dora": LoraConfig(2, alpha=1.0, conv_rank=2, text_encoder=True, dora=True),
}


def pipe_of(kind="plain"):
    pipe = tiny.pipeline(unet={"cross_attention_dim": 32, **UNETS[kind]})
    if kind == "v":
        pipe.scheduler = type(pipe.scheduler).from_config(
            pipe.scheduler.config, prediction_type="v_prediction"
        )
    return pipe


def latents(pipe, prompt="a red sphere on the table"):
    return tiny.run(pipe, prompt, height=40, width=64, num_inference_steps=2)


@pytest.mark.parametrize(
    ("kind", "spelling"),
    [("small", "diffusers"), ("all", "kohya"), ("dora", "diffusers"), ("dora", "kohya")],
)
def test_a_lora_is_written_as_it_was_trained(kind, spelling, tmp_path):
    pipe = pipe_of()
    before, plain = bits(pipe.unet) + bits(pipe.text_encoder), latents(pipe)
    lora, path = train_lora(
        pipe, pictures(), tmp_path, KINDS[kind], SMALL, SHORT, spelling=spelling
    )
    for old, new in zip(before, bits(pipe.unet) + bits(pipe.text_encoder), strict=True):
        assert np.array_equal(old, new)
    assert torch.equal(latents(pipe), plain)
    assert bool(lora.text_encoder) is KINDS[kind].text_encoder
    assert any("resnets" in at for at in lora.unet) is (KINDS[kind].conv_rank is not None)
    pipe.load_lora_weights(lora, "memory")
    held = latents(pipe)
    assert not torch.allclose(held, plain, atol=1e-3)
    pipe.unload_lora_weights()
    pipe.load_lora_weights(path)
    # A scale is written into a factor, or beside it as alpha, and comes back in another order.
    assert float((latents(pipe) - held).abs().max()) <= BOUND * float(held.abs().max())


def test_what_learns_in_a_folder_is_not_disturbed(tmp_path):
    pipe, other = pipe_of(), LoraConfig(3, alpha=5.0)
    word, prior = Word("<toy>", 2, "red"), PriorConfig("a sphere", 2)
    with alone(tmp_path, LEARNER):
        (tmp_path / LEARNER).write_text("its own")
        for learn in (
            lambda: train_lora(pipe, pictures(), tmp_path, other, SMALL, SHORT, resume=False),
            lambda: train_textual_inversion(
                pipe, pictures(2, "a red <toy>"), tmp_path, word, SMALL, SHORT, resume=False
            ),
            lambda: train_dreambooth(
                pipe, pictures(), tmp_path, other, prior, SMALL, SHORT, resume=False
            ),
        ):
            with pytest.raises(InputError, match="another run is at work there"):
                learn()
        assert (tmp_path / LEARNER).read_text() == "its own"
        assert {path.name for path in tmp_path.iterdir()} == {LEARNER, f".{LEARNER}.lock"}
    train_lora(pipe, pictures(), tmp_path, other, SMALL, SHORT, resume=False)


@pytest.mark.parametrize("kind", UNETS)
def test_every_kind_of_unet_learns(kind, tmp_path):
    pipe = pipe_of(kind)
    check_pipeline(pipe)
    looking = replace(SMALL, flip=True, offset_noise=0.1, weighting="min_snr", drop_caption=0.2)
    one = TrainingPictures(pictures(1).pictures, ["a red sphere"])
    learner = LoraLearner(pipe.parts, LoraConfig(8, conv_rank=8))
    task = PictureTask(pipe, one, learner, looking)
    batch = task.draw(Draw(0, 8, np.random.default_rng(0)))
    before = task.loss(batch)[0].item()
    train(task, replace(SHORT, steps=5, learning_rate=1e-2), tmp_path)
    assert task.loss(batch)[0].item() < before


@pytest.mark.parametrize(
    "make",
    [
        lambda parts: LoraLearner(parts, KINDS["dora"]),
        lambda parts: WordLearner(parts, Word("<toy>", 2, "red")),
        lambda parts: WholeLearner(parts, text_encoder=True),
    ],
    ids=["lora", "word", "whole"],
)
def test_a_killed_run_goes_on_with_the_same_bits(make, tmp_path):
    def task():
        pipe = pipe_of()
        check_pipeline(pipe)
        shown = pictures(5, "a red <toy>")
        prior = Prior(pictures(3, "a sphere"), 0.5)
        return PictureTask(pipe, shown, make(pipe.parts), replace(SMALL, flip=True), prior)

    whole, first, again = task(), task(), task()
    run = replace(SHORT, steps=3, checkpoint_steps=1)
    expected = train(whole, run, tmp_path / "whole")

    class Killed(BaseException):
        pass

    def killed(batch, loss=first.loss, calls=iter(range(9))):  # noqa: B008
        if next(calls) == 2:
            raise Killed
        return loss(batch)

    first.loss = killed
    with pytest.raises(Killed):
        train(first, run, tmp_path / "run")
    found = train(again, run, tmp_path / "run")
    assert again.learner.modules.keys() == expected_modules(expected)
    assert all(torch.equal(one, found.shadow[name]) for name, one in expected.shadow.items())


def expected_modules(average):
    return {name.split(".")[0] for name in average.shadow}


def test_recomputing_gives_the_same_gradients(tmp_path):
    made = []
    for again in (False, True):
        pipe = pipe_of()
        looking = replace(SMALL, gradient_checkpointing=again)
        lora, _ = train_lora(pipe, pictures(2), tmp_path / str(again), KINDS["all"], looking, SHORT)
        made.append(lora.unet)
        assert not pipe.unet.gradient_checkpointing
    for path, one in made[0].items():
        np.testing.assert_allclose(one.up, made[1][path].up, atol=1e-6, err_msg=path)


def test_accumulated_parts_are_one_step(tmp_path):
    made = []
    for parts in (1, 3):
        run = replace(SHORT, accumulate=parts)
        lora, _ = train_lora(pipe_of(), pictures(), tmp_path / str(parts), None, SMALL, run)
        made.append(lora.unet)
    for path, one in made[0].items():
        # Adam makes a whole step of the smallest gradient, so sums of another order show.
        np.testing.assert_allclose(one.up, made[1][path].up, atol=2e-4, err_msg=path)


def test_pictures_keep_their_proportions_and_are_mirrored():
    pipe = pipe_of()
    check_pipeline(pipe)
    shown = pictures(3)
    looking = replace(SMALL, flip=True, size=64, drop_caption=0.5)
    task = PictureTask(pipe, shown, LoraLearner(pipe.parts, LoraConfig()), looking)
    sides = [tuple(one.mean.shape[2:]) for one in task.shown.encoded]
    assert sides == [(8, 8), (6, 10), (10, 6)]
    for i, (height, width) in enumerate(sides):
        mirrored = shown.cut(i, height * 8, width * 8)[:, ::-1]
        with torch.no_grad():
            seen = pipe.vae.encode(to_signed(mirrored[None].copy())).latent_dist
        # Two pictures in a batch are summed in another order.
        assert torch.allclose(task.shown.encoded[i].mean[1], seen.mean[0], atol=1e-5)
    seen_texts = set()
    for number in range(6):
        batch = task.draw(Draw(3 * number, 3, np.random.default_rng(number)))
        seen_texts |= {tuple(row.tolist()) for row in batch["ids"]}
        loss, _ = task.loss(batch)
        assert torch.isfinite(loss)
    assert len(seen_texts) == 3  # two captions, and none
    square = PictureTask(
        pipe, shown, LoraLearner(pipe.parts, LoraConfig()), replace(looking, buckets=False)
    )
    assert {tuple(one.mean.shape[2:]) for one in square.shown.encoded} == {(8, 8)}


def test_offset_noise_is_of_whole_channels():
    pipe = pipe_of()
    check_pipeline(pipe)
    learner = LoraLearner(pipe.parts, LoraConfig())
    drawn = []
    for amount in (0.0, 0.5):
        task = PictureTask(pipe, pictures(1), learner, replace(SMALL, offset_noise=amount))
        drawn.append(task.draw(Draw(0, 2, np.random.default_rng(0)))["noise"])
    added = [one - other for one, other in zip(drawn[1], drawn[0], strict=True)]
    for one in added:
        assert torch.allclose(one, one[:, :1, :1].expand_as(one), atol=1e-6)
    assert 0.05 < torch.stack(added).std() < 1.5


def test_holes_as_the_kind_of_unet_wants_them():
    """Stable Diffusion's are 1 inside, and cut into the picture; GLIGEN's 0, and into latents."""
    for kind in ("inpainting", "gated inpainting"):
        pipe = pipe_of(kind)
        check_pipeline(pipe)
        task = PictureTask(pipe, pictures(1), LoraLearner(pipe.parts, LoraConfig()), SMALL)
        batch = task.draw(Draw(0, 1, np.random.default_rng(5)))
        (keep,), (clean,) = batch["keep"], batch["clean"]
        assert 0 < keep.mean() < 1
        first, second = task._seen_of_holes(batch, [0], clean[None])
        if kind == "inpainting":
            assert torch.equal(first[0], 1 - keep)
            assert second.shape == clean[None].shape
            assert not torch.allclose(second, clean[None] * keep, atol=1e-2)
        else:
            assert torch.equal(first[0], clean * keep)
            assert torch.equal(second[0], keep)


# -- words ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("spelling", ["diffusers", "kohya"])
def test_a_word_is_read_in_prompts_as_in_training(spelling, tmp_path):
    pipe = pipe_of()
    word = Word("<My-toy>", 3, "red sphere")
    shown = TrainingPictures(pictures().pictures, [saying("<My-toy>")] * 5)
    before = bits(pipe.text_encoder)
    vectors, path = train_textual_inversion(
        pipe, shown, tmp_path, word, SMALL, SHORT, spelling=spelling
    )
    assert all(map(np.array_equal, before, bits(pipe.text_encoder)))
    table = pipe.text_encoder.text_model.embeddings.token_embedding.weight.detach().numpy()
    ids = pipe.tokenizer("red sphere", add_special_tokens=False).input_ids
    moved = vectors - table[[ids[0], ids[1], ids[0]]]
    assert (np.abs(moved).max(1) > 1e-4).all()
    learner = WordLearner(pipe.parts, word)
    learner.vectors.values.data = torch.from_numpy(vectors)
    prompt = "a <my-toy> on the table"
    with torch.no_grad():
        trained = learner.context(learner.ids([prompt, ""]))
    pipe.load_textual_inversion(path, token=None if spelling == "diffusers" else word.text)
    asked = pipe.encode_prompt(prompt, "cpu", 1, True, "")
    # A loop of training reads all texts in one batch.
    for one, other in zip(trained, asked, strict=True):
        assert torch.allclose(one, other[0], atol=1e-5)


@pytest.mark.parametrize(
    ("word", "shown", "says"),
    [
        (Word("<toy>"), pictures(2, "a red sphere"), "lacks the word '<toy>'"),
        (Word("known"), pictures(2, "a known sphere"), "is a learned word of pipe already"),
        (Word("<toy>", 1, ""), pictures(2, "a <toy>"), "has no token"),
        (Word("<toy>"), pictures(2, "red " * 80 + "<toy>"), "too long: its end is not read"),
    ],
)
def test_words_that_cannot_be_learned(word, shown, says, tmp_path):
    pipe = pipe_of()
    pipe.load_textual_inversion({"Known": np.zeros((1, 32), np.float32)})
    with pytest.raises(InputError, match=says):
        train_textual_inversion(pipe, shown, tmp_path / "run", word, SMALL, SHORT)
    assert not (tmp_path / "run").exists()


# -- DreamBooth ----------------------------------------------------------------------------------
def test_class_pictures_are_drawn_once_and_kept(tmp_path, monkeypatch):
    pipe = pipe_of()
    prior = PriorConfig("a sphere", 5, steps=1, batch=2)
    whole = class_pictures(pipe, prior, SMALL, tmp_path / "whole", 3, False)
    assert len(whole) == 5
    calls, call = [], StableDiffusionPipeline.__call__

    def interrupted(self, prompts, **told):
        calls.append(told["seed"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return call(self, prompts, **told)

    monkeypatch.setattr(StableDiffusionPipeline, "__call__", interrupted)
    with pytest.raises(Stopped, match="2 of 5 class pictures"):
        class_pictures(pipe, prior, SMALL, tmp_path / "run", 3, False)
    found = class_pictures(pipe, prior, SMALL, tmp_path / "run", 3, False)
    assert calls == [[3, 4], [5, 6], [5, 6], [7]]
    for i in range(5):
        assert np.array_equal(whole.cut(i, 32, 32), found.cut(i, 32, 32))
    class_pictures(pipe, prior, SMALL, tmp_path / "run", 3, False)
    assert len(calls) == 4
    with pytest.raises(InputError, match=r"asked for is .*'a cube'"):
        class_pictures(pipe, replace(prior, prompt="a cube"), SMALL, tmp_path / "run", 3, False)
    # Pictures of one's own are taken as they are.
    own = tmp_path / "own"
    shutil.copytree(tmp_path / "run" / "class", own)
    (own / "class.json").unlink()
    prior = replace(prior, prompt="a cube", folder=str(own), count=4)
    assert len(class_pictures(pipe, prior, SMALL, tmp_path / "x", 3, False)) == 4
    assert len(calls) == 4


def test_a_file_is_no_folder_of_class_pictures(tmp_path):
    (tmp_path / "a").write_text("x")
    with pytest.raises(InputError, match="in a folder, and this is none"):
        class_pictures(pipe_of(), PriorConfig("a", folder=str(tmp_path / "a")), SMALL, tmp_path)


def test_half_of_what_is_seen_is_of_the_class():
    pipe = pipe_of()
    check_pipeline(pipe)
    shown, known = pictures(3, "a red sphere"), pictures(4, "a sphere")
    looking = replace(SMALL, drop_caption=0.0)
    task = PictureTask(pipe, shown, WholeLearner(pipe.parts), looking, Prior(known, 0.25))
    weights, texts = [], set()
    for step in range(4):
        batch = task.draw(Draw(3 * step, 3, np.random.default_rng(step)))
        weights += batch["weights"].tolist()
        texts |= {tuple(row.tolist()) for row in batch["ids"]}
    assert weights == [1.0, 0.25] * 6
    assert len(texts) == 4  # two captions of each
    batch = task.draw(Draw(0, 2, np.random.default_rng(0)))
    whole, _ = task.loss(batch)
    parts = []
    for row, weight in ((0, 1.0), (1, 0.25)):
        one = {name: value[row : row + 1] for name, value in batch.items()}
        parts.append(task.loss({**one, "weights": torch.ones(1)})[0].item() * weight)
    assert whole.item() == pytest.approx(sum(parts) / 2, rel=1e-5)


@pytest.mark.parametrize("kind", ["plain", "gated", "inpainting"])
def test_the_whole_unet_of_a_subject(kind, tmp_path):
    pipe = pipe_of(kind)
    before = bits(pipe.unet)
    prior = PriorConfig("a sphere", 2, steps=1)
    looking = replace(SMALL, prompts=("a red sphere",), steps=1)
    made, path = train_dreambooth(
        pipe, pictures(), tmp_path, WholeConfig(text_encoder=kind == "plain"), prior, looking, SHORT
    )
    assert all(map(np.array_equal, before, bits(pipe.unet)))
    assert not made.unet.training
    assert (tmp_path / "samples" / "000002.png").exists()
    loaded = type(made).from_pretrained(path)
    for name in ("unet", "text_encoder"):
        new = dict(getattr(loaded, name).named_parameters())
        for at, old in getattr(pipe, name).named_parameters():
            equal = torch.equal(old, new[at])
            if ".fuser." in at or "position_net" in at or name != "unet":
                assert equal == (name == "unet" or kind != "plain") or "position_emb" in at, at
            elif old.ndim > 1 and "class_embedding" not in at:
                assert not equal, at


def test_samples_show_what_was_learned(tmp_path):
    pipe = pipe_of()
    looking = replace(SMALL, prompts=("a red sphere", "a cube"), steps=2, guidance=3.0)
    learned = LoraConfig(4, alpha=64.0)
    for name, rate in (("much", 0.3), ("little", 1e-9)):
        run = replace(SHORT, learning_rate=rate, clip_norm=None)
        train_lora(pipe, pictures(), tmp_path / name, learned, looking, run)
    one, other = (tmp_path / name / "samples" / "000002.png" for name in ("much", "little"))
    assert one.read_bytes() != other.read_bytes()


# -- what cannot work ----------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: LoraConfig(0), "rank"),
        (lambda: LoraConfig(4, alpha=0.0), "alpha"),
        (lambda: LoraConfig(4, conv_rank=-1), "conv_rank"),
        (lambda: Word("two words"), "one word"),
        (lambda: Word("x", 0), "vectors"),
        (lambda: replace(SMALL, drop_caption=1.0), "drop_caption"),
        (lambda: replace(SMALL, offset_noise=float("nan")), "offset_noise"),
        (lambda: replace(SMALL, weighting="p2"), "weighting"),
        (lambda: PriorConfig(""), "prompt"),
        (lambda: PriorConfig("a dog", 0), "count"),
        (lambda: replace(SHORT, optimizer="sgd"), "optimizer='sgd'"),
    ],
)
def test_settings_that_cannot_work(make, says):
    with pytest.raises(InputError, match=says):
        make()


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"in_channels": 5}, "5 channels at its input"),
        ({"in_channels": 8}, "8 channels at its input"),
    ],
)
def test_pipelines_that_cannot_be_trained_beside(changed, says, tmp_path):
    pipe = tiny.pipeline()
    pipe.parts.named["unet"] = type(pipe.unet)(**{**tiny.UNET, **changed})
    with pytest.raises(InputError, match=says):
        train_lora(pipe, pictures(), tmp_path / "x", None, SMALL, SHORT)
    with pytest.raises(InputError, match=r"size=36.*multiple of 8"):
        train_lora(tiny.pipeline(), pictures(), tmp_path, None, replace(SMALL, size=36), SHORT)
    with pytest.raises(InputError, match="spelling='peft'"):
        train_lora(tiny.pipeline(), pictures(), tmp_path, None, SMALL, SHORT, spelling="peft")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("has", [True, False], ids=["the processor has both", "none"])
def test_beside_networks_in_half_precision(dtype, has, monkeypatch, tmp_path):
    monkeypatch.setattr(hardware, "_cpu_has_bfloat16", lambda: has)
    monkeypatch.setattr(torch_operations, "_has_half", lambda: has)
    pipe = pipe_of("gated inpainting")
    pipe.to(dtype)
    auto = replace(SHORT, precision="auto", learning_rate=1e-2)
    lora, _ = train_lora(pipe, pictures(2), tmp_path, KINDS["all"], SMALL, auto)
    assert all(np.isfinite(delta.up).all() for delta in lora.unet.values())
    assert any(delta.up.any() for delta in lora.unet.values())
    other = "bfloat16" if dtype == torch.float16 else "float16"
    for precision in ("float32", other):
        wrong = replace(SHORT, precision=precision)
        with pytest.raises(InputError, match=f"precision='{precision}', but pipe has its unet in"):
            train_lora(pipe, pictures(2), tmp_path / "b", None, SMALL, wrong)
    with pytest.raises(InputError, match="round away"):
        train_dreambooth(pipe, pictures(2), tmp_path / "c", WholeConfig(), None, SMALL, auto)


@pytest.mark.parametrize("others", [torch.float16, torch.bfloat16])
def test_networks_in_unlike_precisions(others, monkeypatch, tmp_path):
    """The autoencoder of an inpainting checkpoint is asked in each step, and in its own."""
    monkeypatch.setattr(hardware, "_cpu_has_bfloat16", lambda: True)
    auto = replace(SHORT, precision="auto", learning_rate=1e-2)
    own = torch.bfloat16 if others == torch.float16 else torch.float16
    pipe = pipe_of("inpainting")
    pipe.unet.to(own)
    pipe.vae.to(others)
    lora, _ = train_lora(pipe, pictures(2), tmp_path / "a", KINDS["all"], SMALL, auto)
    assert any(delta.up.any() for delta in lora.unet.values())
    pipe.text_encoder.to(others)
    for precision in ("auto", "float32", "float16", "bfloat16"):
        run = replace(auto, precision=precision)
        named = f"unet in {str(own)[6:]}, text_encoder in {str(others)[6:]}: a CPU trains beside"
        with pytest.raises(InputError, match=named):
            train_lora(pipe, pictures(2), tmp_path / "b", KINDS["all"], SMALL, run)
    pipe.unet.to(torch.float32)  # then the text encoder's decides
    lora, _ = train_lora(pipe, pictures(2), tmp_path / "c", KINDS["all"], SMALL, auto)
    assert any(delta.up.any() for delta in lora.text_encoder.values())


def test_on_an_accelerator_either_half_precision_will_do(monkeypatch):
    parts = SimpleNamespace(
        unet=SimpleNamespace(dtype=torch.float16),
        text_encoder=SimpleNamespace(dtype=torch.bfloat16),
        vae=SimpleNamespace(device=torch.device("cuda")),
    )
    pipe = SimpleNamespace(parts=parts)
    for fast in ("bfloat16", "float32"):
        monkeypatch.setattr(hardware, "fastest_dtype", lambda device: fast)  # noqa: B023
        for precision in ("float16", "bfloat16"):
            run = replace(SHORT, precision=precision)
            assert fitting(pipe, run) is run
        with pytest.raises(InputError, match=r"'float32', but pipe has its unet in float16, text"):
            fitting(pipe, SHORT)
        found = fitting(pipe, replace(SHORT, precision="auto"))
        # Where the device computes in bfloat16 that is what "auto" means; else the UNet's own.
        assert found.precision == ("auto" if fast == "bfloat16" else "float16")


def test_weights_in_8_bits_learn_no_more():
    pipe = pipe_of()
    pipe.quantize()
    with pytest.raises(InputError, match="8 bits cannot be trained"):
        WholeLearner(pipe.parts)


def test_a_folder_is_of_one_learner(tmp_path):
    pipe = pipe_of()

    def learned(text, resume=True):
        shown = TrainingPictures(pictures(1).pictures, [f"a {text}"])
        told = {"word": Word(text), "looking": SMALL, "training": SHORT, "resume": resume}
        return train_textual_inversion(pipe, shown, tmp_path, **told)[0]

    first = learned("<toy>")
    assert np.array_equal(learned("<toy>"), first)
    with pytest.raises(InputError, match="with text='<toy>'; asked for is text='<cat>'"):
        learned("<cat>")
    assert np.array_equal(learned("<cat>", resume=False), first)
    with pytest.raises(InputError, match=r"with kind='word'.* asked for is kind='lora'"):
        train_lora(pipe, pictures(1), tmp_path, LoraConfig(2), SMALL, SHORT)
