"""What weights of subjects lay over the networks: in the rows of their prompts, on every engine,
and gone without a trace."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from controls.test_subject import ALONE, BALL, PROMPT, SIZE, SPHERE, TOKENS, encoder, far, pixels
from pipelines import tiny
from pipelines.tiny import run

import underdraw
from underdraw import InputError, Subject, WeightError
from underdraw.backends.deltas import Full, LowRank
from underdraw.models.overlay import FACTS, Overlay, TunedSubject
from underdraw.weights.save import save_tensors

UNET = "mid_block.attentions.0.transformer_blocks.0.attn2.to_v"
CONV = "down_blocks.0.resnets.0.conv1"
TEXT = "text_model.encoder.layers.0.mlp.fc1"
PROMPTS = [PROMPT, "the table and a cube", "a blue sphere"]


def numbers(seed, *shape):
    return np.random.default_rng(seed).normal(0, 0.3, shape).astype(np.float32)


def overlay(seed=0, text=False):
    unet = {
        UNET: LowRank(numbers(seed, 2, tiny.WIDTH), numbers(seed + 1, 32, 2)),
        CONV: Full(numbers(seed + 2, 16, 16, 3, 3), numbers(seed + 3, 16)),
    }
    return Overlay(unet, {TEXT: Full(numbers(seed + 4, 48, tiny.WIDTH))} if text else {})


TUNED = TunedSubject("sphere", numbers(9, 1, TOKENS, tiny.WIDTH), overlay(20, text=True))
LEARNED = Subject(encoder="ball", category="sphere")


@pytest.fixture(scope="module")
def pipe():
    made, reader = tiny.pipeline(), encoder()
    reader.overlay = overlay()
    made.load_subject(reader)
    made.load_subject(TUNED, name="ball")
    return made


def timed(subject, *strength):
    return replace(subject, strength=strength)


@pytest.mark.parametrize("subject", [SPHERE, LEARNED], ids=["encoder", "tuned"])
def test_rows_without_the_subject_keep_their_own(pipe, subject):
    """In a batch, two images of each prompt; and beside other runs of the batch engine."""
    call = {"num_inference_steps": 2, "output_type": "latent", **SIZE}
    acting = [[] if i == 1 else [subject] for i in range(3)]
    alone = [
        run(pipe, PROMPTS[i // 2], seed=i, controls=acting[i // 2], **call) for i in range(0, 6, 2)
    ]
    batch = run(
        pipe, PROMPTS, num_images_per_prompt=2, seed=list(range(6)), controls=[subject], **call
    )
    streams = [pipe.stream(PROMPTS[i], seed=2 * i, controls=acting[i], **call) for i in range(3)]
    for _ in (runs := underdraw.batched(streams)):
        pass
    for i, one in enumerate(alone):
        assert far(batch[2 * i : 2 * i + 1], one) <= 1e-5
        assert far(runs.streams[i].output.images, one) <= 1e-5


def test_they_act_as_much_as_their_subject(pipe):
    plain = run(pipe, PROMPT, **SIZE)
    bare = encoder()
    other = underdraw.StableDiffusionPipeline.from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    other.unload_subject()
    other.load_subject(bare)
    assert (
        far(
            run(pipe, PROMPT, controls=[SPHERE], **SIZE),
            run(other, PROMPT, controls=[SPHERE], **SIZE),
        )
        > 1e-3
    )
    for subject in (SPHERE, LEARNED):
        off = run(pipe, PROMPT, controls=[timed(subject, 0, 0, 1)], **SIZE)
        assert far(off, plain) <= ALONE
        half = run(pipe, PROMPT, controls=[timed(subject, 0.5, 0, 0.5)], **SIZE)
        assert far(half, plain) > 1e-3
        assert far(half, run(pipe, PROMPT, controls=[subject], **SIZE)) > 1e-3
    assert torch.equal(run(pipe, PROMPT, **SIZE), plain)


def test_the_overlay_is_the_weights_with_the_difference(pipe):
    """An embedding of its own, over the UNet and the text encoder, beside networks that have it."""
    parts = tiny.components()
    for path, delta in TUNED.overlay.unet.items():
        leaf = parts["unet"].get_submodule(path)
        low = isinstance(delta, LowRank)
        weight = delta.up @ delta.down if low else delta.weight
        leaf.weight.data += torch.from_numpy(weight)
        if not low:
            leaf.bias.data += torch.from_numpy(delta.bias)
    changed = underdraw.StableDiffusionPipeline(**parts)
    fc1 = TUNED.overlay.text_encoder[TEXT].weight
    plain = changed.text_encoder.get_submodule(TEXT).weight.data.clone()
    subject = Subject(embedding=torch.from_numpy(TUNED.embedding), word="sphere")
    call = {"guidance_scale": 1.0, **SIZE}  # a negative prompt would be read as ever
    changed.text_encoder.get_submodule(TEXT).weight.data = plain + torch.from_numpy(fc1)
    expected = run(changed, PROMPT, controls=[subject], **call)
    assert far(run(pipe, PROMPT, controls=[LEARNED], **call), expected) <= 1e-4


def test_several_together_and_the_embedding_of_the_only_encoder(pipe):
    both = [Subject(BALL, "toy", word="cube"), LEARNED]
    made = run(pipe, PROMPT, controls=both, **SIZE)
    assert all(far(made, run(pipe, PROMPT, controls=[one], **SIZE)) > 1e-3 for one in both)
    tokens = pipe.subjects["subject"](["red sphere"], pixels(BALL), return_dict=False).detach()
    known = Subject(embedding=tokens, word="sphere")
    first = run(pipe, PROMPT, controls=[SPHERE], **SIZE)
    assert far(run(pipe, PROMPT, controls=[known], **SIZE), first) <= 1e-5


def test_without_tokens_words_alone_name_it(pipe):
    pipe.load_subject(TunedSubject("sphere", None, overlay(40)), name="words")
    subject = Subject(encoder="words", word="sphere")
    assert far(run(pipe, PROMPT, controls=[subject], **SIZE), run(pipe, PROMPT, **SIZE)) > 1e-3
    pipe.unload_subject("words")


def test_files(pipe, tmp_path):
    before = run(pipe, PROMPT, controls=[SPHERE], **SIZE)
    learned = run(pipe, PROMPT, controls=[LEARNED], **SIZE)
    pipe.save_adapter("subject", tmp_path / "reader", "subject")
    TUNED.to_file(tmp_path / "ball.safetensors", "float32")
    other = underdraw.StableDiffusionPipeline.from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    other.unload_subject()
    other.load_subject(tmp_path / "ball.safetensors", name="ball")
    with pytest.raises(InputError, match="of tuned subjects alone"):
        run(other, PROMPT, controls=[SPHERE], **SIZE)
    other.load_subject(tmp_path / "reader")
    assert torch.equal(run(other, PROMPT, controls=[SPHERE], **SIZE), before)
    assert torch.equal(run(other, PROMPT, controls=[LEARNED], **SIZE), learned)
    half = TunedSubject.from_file(_saved(tmp_path / "half.safetensors"))
    assert half.category == "sphere"
    assert np.abs(half.embedding - TUNED.embedding).max() < 1e-3
    other.enable_model_cpu_offload(device="cpu:0")
    assert torch.equal(run(other, PROMPT, controls=[LEARNED], **SIZE), learned)
    other.disable_model_cpu_offload()


def _saved(path):
    TUNED.to_file(path)
    return path


# -- what cannot be --------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("subject", "message"),
    [
        (Subject(encoder="ball", image=BALL, category="sphere"), "is a tuned subject, which reads"),
        (Subject(encoder="subject", category="sphere"), "is a subject encoder: give image"),
        (Subject(encoder="none", category="sphere"), "'none'. is not attached"),
    ],
)
def test_subjects_of_another_kind(pipe, subject, message):
    with pytest.raises(InputError, match=message):
        run(pipe, PROMPT, controls=[subject], **SIZE)


def test_a_subject_needs_a_name():
    with pytest.raises(underdraw.InputTypeError, match="category"):
        Subject(encoder="ball")


WRONG = {
    "another UNet": TunedSubject("sphere", None, Overlay({"mid_block.nothing": Full(np.ones(3))})),
    "another width": TunedSubject(
        "sphere", None, Overlay({UNET: LowRank(np.ones((2, 5)), np.ones((32, 2)))})
    ),
    "tokens": TunedSubject("sphere", np.ones((1, 2, 7), np.float32)),
}


@pytest.mark.parametrize("kind", WRONG)
def test_weights_for_another_base_are_refused(pipe, kind):
    with pytest.raises(InputError, match=r"not for this one|another base"):
        pipe.load_subject(WRONG[kind], name="x")
    assert set(pipe.subjects) == {"subject", "ball"}


ARRAYS = TUNED.overlay.tensors()
DAMAGED = {
    "says what its subject is": ({}, {"category": ""}, "what its subject is"),
    "unknown": ({"unet.x.y": np.ones(3)}, None, "is no difference to a layer"),
    "half": ({f"unet.{UNET}.lora_A.weight": np.ones((2, 3))}, None, "has down; a down has an up"),
    "nan": ({f"unet.{CONV}.diff": np.full((2, 2), np.nan)}, None, "not finite"),
    "whole": ({f"unet.{CONV}.diff": np.ones(3, np.int64)}, None, "floats are needed"),
    "flat": ({"subject.embedding": np.ones((3, 4))}, None, "has shape"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_files_are_told(pipe, tmp_path, kind):
    tensors, facts, message = DAMAGED[kind]
    path = tmp_path / "x.safetensors"
    save_tensors(path, tensors or ARRAYS, {FACTS: json.dumps(facts or {"category": "sphere"})})
    with pytest.raises(WeightError, match=message):
        pipe.load_subject(path, name="x")
