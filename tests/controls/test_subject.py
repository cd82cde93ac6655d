"""Subjects in any pipeline: where their tokens stand, what they do, and with what they go."""

import numpy as np
import pytest
import torch
from controls.test_grounding import EVER, opened
from pipelines import tiny
from pipelines.tiny import counted, run

import underdraw
from underdraw import (
    AttentionEdit,
    Box,
    InputError,
    InputTypeError,
    Layout,
    PerImage,
    Region,
    Structure,
)
from underdraw.backends.deltas import LowRank
from underdraw.controls import Control
from underdraw.controls.subject import Subject, between
from underdraw.controls.subject_run import Subjects
from underdraw.models import Blip2QFormerModel, ControlNetModel
from underdraw.models.overlay import Overlay
from underdraw.models.wordpiece import WordPiece

TOKENS = 4
BLIP = {
    "num_query_tokens": TOKENS,
    "vision_config": {
        "hidden_size": 12,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 3,
        "image_size": 12,
        "patch_size": 4,
    },
    "qformer_config": {
        "hidden_size": tiny.WIDTH,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 12,
    },
}
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "red", "sphere", "cube", "toy", "##s", "a"]
SIZE = {"height": 40, "width": 72}
PROMPT = "a red sphere left of the cube"
ALONE = 1e-5
"""Of the largest number, where a text is encoded by itself and not beside another one. PyTorch
computes the last numbers of an array by other code than its vectors of 8 or 16, so a row's bits
depend on the rows around it: by 1.3e-6 with AVX512, not at all here with AVX2."""


def picture(number):
    random = np.random.default_rng(number)
    return random.integers(0, 256, (9 + number, 14, 3), np.uint8)


BALL, TOY, BLOCK = picture(1), picture(2), picture(3)
SPHERE = Subject(BALL, "red sphere", word="sphere")
CUBE = Subject(TOY, "toy", word="cube")


def encoder(backend="torch"):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        made = tiny.shake(Blip2QFormerModel.from_config(BLIP))
    made = tiny.moved(made, backend)
    made.tokenizer = WordPiece(PIECES)
    return made


@pytest.fixture(scope="module")
def pipe():
    made = tiny.pipeline()
    made.load_subject(encoder())
    return made


def far(a, b):
    """Of the largest value."""
    return float((a - b).abs().max() / b.abs().max())


class Probe(Control):
    """Looks at the words behind the subjects."""

    def __init__(self):
        self.seen = []

    def words(self, nn, words):
        self.seen.append(words)
        return words


def words_of(pipe, prompt, controls, **call):
    probe = Probe()
    run(pipe, prompt, controls=[*controls, probe], num_inference_steps=1, **call)
    return probe.seen[0]


# -- where they stand ------------------------------------------------------------------------------
def test_tokens_stand_before_the_words_and_the_window_keeps_its_size(pipe):
    plain, words = words_of(pipe, PROMPT, []), words_of(pipe, PROMPT, [SPHERE, CUBE])
    before, after = plain.ids[0, 0].tolist(), words.ids[0, 0].tolist()
    sphere, cube = (
        pipe.tokenizer(text, add_special_tokens=False).input_ids for text in ("sphere", "cube")
    )
    at, end = before.index(sphere[0]), before.index(cube[0])
    first = [-1 - i for i in range(TOKENS)]
    second = [-1 - 2**16 - i for i in range(TOKENS)]
    assert after[:at] == before[:at]
    assert after[at : at + TOKENS] == first
    assert after[at + TOKENS : end + TOKENS] == before[at:end]
    assert after[end + TOKENS : end + 2 * TOKENS] == second
    assert after[end + 2 * TOKENS :] == before[end : len(before) - 2 * TOKENS]
    assert np.array_equal(words.ids[1], plain.ids[1])  # the negative prompt
    assert torch.equal(words.embeddings[0, :at], plain.embeddings[0, :at])
    tokens = encoder()(["red sphere"], pixels(BALL), return_dict=False)
    assert torch.allclose(words.embeddings[0, at : at + TOKENS], tokens[0], atol=1e-6)


def pixels(image):
    from underdraw.models import BlipImageProcessor

    return BlipImageProcessor(size=12)(image, return_tensors="pt").pixel_values


def test_subjects_of_the_same_words_take_turns(pipe):
    prompt = "a cube left of the cube"
    two = words_of(pipe, prompt, [CUBE, Subject(BALL, "cube")]).ids[0, 0]
    cube = pipe.tokenizer("cube", add_special_tokens=False).input_ids[0]
    places = np.flatnonzero(two == cube)
    assert two[places[0] - 1] == -TOKENS
    assert two[places[1] - 1] == -(2**16) - TOKENS


@pytest.mark.parametrize(
    ("prompt", "windows"),
    [
        ("(red cube:1.4) on the table", {0}),
        ("a red " + "table " * 90 + "cube", {1}),
        ("a cube BREAK a red cube", {0, 1}),
        ("cubes and a cube", {0}),
    ],
)
def test_each_window_with_the_words_has_the_subject(pipe, prompt, windows):
    words = words_of(pipe, prompt, [CUBE])
    assert {i for i, ids in enumerate(words.ids[0]) if (ids < 0).any()} == windows
    assert all((ids < 0).sum() in (0, TOKENS) for ids in words.ids[0])


def test_weights_stay_with_their_words(pipe):
    words = words_of(pipe, "a (red cube:1.4) on the table", [CUBE])
    heavy = words.ids[0, 0][words.weights[0, 0] == np.float32(1.4)]
    expected = pipe.tokenizer("red cube", add_special_tokens=False).input_ids
    assert heavy.tolist() == expected


# -- what they do ----------------------------------------------------------------------------------
def test_they_act_and_leave_no_trace(pipe):
    before = run(pipe, PROMPT, **SIZE)
    acting = run(pipe, PROMPT, controls=[SPHERE], **SIZE)
    assert far(acting, before) > 1e-2
    assert far(run(pipe, PROMPT, controls=[CUBE], **SIZE), acting) > 1e-3
    assert torch.equal(run(pipe, PROMPT, **SIZE), before)
    bare = tiny.pipeline()
    with pytest.raises(InputError, match="no subject weights are attached"):
        run(bare, PROMPT, controls=[SPHERE])
    bare.load_subject(encoder(), name="mine")
    assert torch.equal(run(bare, PROMPT, controls=[SPHERE], **SIZE), acting)
    assert list(bare.adapters["subject"]) == ["mine"]
    bare.unload_subject("mine")
    assert torch.equal(run(bare, PROMPT, **SIZE), before)


def test_several_pictures_and_the_way_between_two_subjects(pipe):
    one, other = Subject(BALL, "red sphere", word="cube"), Subject(TOY, "toy", word="cube")

    def drawn(subject):
        return run(pipe, PROMPT, controls=[subject], **SIZE)

    both = Subject([BALL, TOY], ["red sphere", "toy"], word="cube")
    ends = drawn(one), drawn(other)
    assert far(drawn(between(one, other, 0.0)), ends[0]) <= 1e-5
    assert far(drawn(between(one, other, 1.0)), ends[1]) <= 1e-5
    assert far(drawn(between(one, other, 0.5)), drawn(both)) <= 1e-5
    assert all(far(drawn(both), end) > 1e-3 for end in ends)
    shares = Subject([BALL, TOY], ["red sphere", "toy"], word="cube", shares=(0.25, 0.75))
    assert far(drawn(shares), drawn(between(one, other, 0.75))) <= 1e-5
    assert far(drawn(Subject([BALL, BALL], "red sphere", word="cube")), ends[0]) <= 1e-5


def test_known_embeddings(pipe):
    network = encoder()
    with torch.no_grad():
        tokens = network("toy", pixels(TOY), return_dict=False)
        more = network(
            ["toy", "red sphere"], torch.cat([pixels(TOY), pixels(BALL)]), return_dict=False
        )
    drawn = run(pipe, PROMPT, controls=[Subject(embedding=tokens, word="cube")], **SIZE)
    assert far(drawn, run(pipe, PROMPT, controls=[CUBE], **SIZE)) <= 1e-5
    mean = Subject([TOY, BALL], ["toy", "red sphere"], word="cube")
    drawn = run(pipe, PROMPT, controls=[Subject(embedding=more, word="cube")], **SIZE)
    assert far(drawn, run(pipe, PROMPT, controls=[mean], **SIZE)) <= 1e-5


def timed(subject, on, decay, off):
    return Subject(subject.image, subject.category, word=subject.word, strength=(on, decay, off))


def test_strength_over_the_run(pipe):
    def drawn(*subjects, **call):
        call = {"num_inference_steps": 4, **SIZE, **call}
        return run(pipe, PROMPT, controls=subjects, **call)

    assert far(drawn(timed(SPHERE, 0, 0, 1)), drawn()) <= ALONE
    assert torch.equal(drawn(timed(SPHERE, 1, 0, 0)), drawn(SPHERE))
    assert far(drawn(timed(SPHERE, 0, 0, 1), CUBE), drawn(CUBE)) <= ALONE
    half = drawn(timed(SPHERE, 0.5, 0, 0.5))
    assert far(half, drawn()) > 1e-3
    assert far(half, drawn(SPHERE)) > 1e-4
    seen = []
    pipe(
        PROMPT, controls=[timed(SPHERE, 0.25, 0.75, 0)], num_inference_steps=4, seed=3,
        output_type="latent", guidance_scale=[2.0], **SIZE,
        callback_on_step_end=lambda *a: seen.append(a[1]),
    )  # fmt: skip
    assert seen == [0, 1, 2, 3]


def test_contexts_in_between(pipe):
    """A subject of strength s is in s of the context, whatever the others do."""
    whole = Subjects((timed(SPHERE, 0, 0.5, 0.5), timed(CUBE, 0.25, 0.75, 0)))
    grabbed = []

    class Grab(Control):
        def prepare(self, run):
            grabbed.append(run)

    run(pipe, PROMPT, controls=[*whole.parts, Grab()], num_inference_steps=4, **SIZE)
    ready = whole.prepare(grabbed[0])
    from underdraw.controls.control import Call

    calls = [ready._layers(Call(i, 4, 0.0, True)) for i in range(4)]
    assert calls[0] == [((0, 1), 0.5), ((1,), 0.5)]
    assert [sum(share for _, share in one) for one in calls] == [1.0] * 4
    assert calls[2] == [((1,), pytest.approx(1 / 3)), ((), pytest.approx(2 / 3))]
    assert calls[3] == [((), 1.0)]
    hook = ready.at(Call(0, 4, 0.0, True), 1)
    both, cube = ready.by_set[0, 1], ready.by_set[1,]
    nn = pipe.unet.nn
    context = torch.cat([both * 0 + 7, both])
    made = hook(nn, context)
    assert torch.equal(made[:1], context[:1])
    assert torch.allclose(made[1:], 0.5 * both + 0.5 * cube, atol=1e-6)


def test_guidance_and_clip_skip_go_on(pipe):
    for call in ({"guidance_scale": 1.0}, {"clip_skip": 1}, {"negative_prompt": "blue"}):
        plain = run(pipe, PROMPT, **SIZE, **call)
        assert far(run(pipe, PROMPT, controls=[SPHERE], **SIZE, **call), plain) > 1e-3
        off = run(pipe, PROMPT, controls=[timed(SPHERE, 0, 0, 1)], **SIZE, **call)
        assert far(off, plain) <= ALONE


# -- with what they go -----------------------------------------------------------------------------
PROMPTS = ["a red sphere left of the cube", "the table and a cube", "a blue sphere"]
BOX = Box("sphere on the table", (0.1, 0.2, 0.5, 0.7), subject=SPHERE)
OTHER = Box("cube", (0.4, 0.3, 1.0, 0.9))


def edges(number):
    return np.random.default_rng(number).random((40, 72, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def full(pipe):
    """With grounding weights and a ControlNet, too."""
    made = underdraw.StableDiffusionPipeline.from_pipe(pipe)
    made.set_progress_bar_config(disable=True)
    made.load_grounding(opened(made.unet))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(8)
        net = ControlNetModel.from_unet(made.unet, conditioning_embedding_out_channels=(4, 8, 8, 8))
        for name, value in net.named_parameters():
            if "controlnet_" in name:
                value.data.normal_(0, 0.05)
    return made, net


def all_together(net, number):
    """A subject in the text and in a box, another box, and a map, for one of three images."""
    word = "sphere" if number != 1 else "cube"
    subject = Subject((BALL, TOY, BLOCK)[number], "toy", word=word)
    layout = Layout([[BOX, OTHER], [OTHER], [BOX]][number], EVER)
    return [subject, layout, Structure(net, edges(number), scale=0.5 + 0.2 * number)]


CALL = {"num_inference_steps": 3, "output_type": "latent", **SIZE}


def test_all_together_in_a_batch_whose_images_differ(full):
    """Two boxes, one of which holds a subject, under a map, with negative prompts: equal to single
    runs, and to three runs of the engine that joins calls."""
    pipe, net = full
    singles = [
        pipe(
            PROMPTS[i], controls=all_together(net, i), seed=3 + i, negative_prompt="blue", **CALL
        ).images
        for i in range(3)
    ]
    parts = [all_together(net, i) for i in range(3)]
    subjects = [
        Subject(one.image, one.category, word=one.word, prompts=(i,))
        for i, (one, *_) in enumerate(parts)
    ]
    layouts = PerImage(*(layout for _, layout, _ in parts))
    maps = Structure(net, [edges(i) for i in range(3)], scale=[0.5, 0.7, 0.9])
    batch = pipe(
        PROMPTS, controls=[*subjects, layouts, maps], seed=[3, 4, 5], negative_prompt="blue", **CALL
    ).images
    streams = [
        pipe.stream(PROMPTS[i], controls=parts[i], seed=3 + i, negative_prompt="blue", **CALL)
        for i in range(3)
    ]
    for _ in (runs := underdraw.batched(streams)):
        pass
    for i, single in enumerate(singles):
        assert far(batch[i : i + 1], single) <= 1e-5
        assert far(runs.streams[i].output.images, single) <= 1e-5
    without = pipe(PROMPTS[0], controls=parts[0][1:], seed=3, negative_prompt="blue", **CALL).images
    assert far(without, singles[0]) > 1e-3


def test_a_box_that_holds_a_subject(full):
    pipe, _ = full
    tokens = 3 * torch.randn(1, TOKENS, tiny.WIDTH, generator=torch.Generator().manual_seed(2))
    other = Box(BOX.phrase, BOX.box, subject=Subject(embedding=tokens, word="sphere"))
    boxes = [Layout([box], EVER) for box in (BOX, Box(BOX.phrase, BOX.box), other)]
    each = [run(pipe, PROMPT, controls=[layout], **SIZE) for layout in boxes]
    assert far(each[0], each[1]) > 1e-4
    assert far(each[0], each[2]) > 1e-4
    call = {"seed": [3, 3, 3], "num_images_per_prompt": 3, **SIZE}
    together = run(pipe, PROMPT, controls=[PerImage(*boxes)], **call)
    assert all(far(together[i : i + 1], one) <= 1e-5 for i, one in enumerate(each))


def test_masks_and_attention_edits(pipe):
    mask = np.zeros((5, 9), np.float32)
    mask[1:4, 2:6] = 1
    clean = torch.zeros(1, 4, 5, 9)
    kept = run(pipe, PROMPT, controls=[SPHERE, Region(mask, latents=clean)], **SIZE)
    assert far(kept, run(pipe, PROMPT, controls=[Region(mask, latents=clean)], **SIZE)) > 1e-3
    pair = ["a red sphere on the table", "a blue sphere on the table"]
    edit = AttentionEdit(mode="refine", cross=1.0, blend=("sphere",))
    subject = Subject(TOY, "toy", word="sphere", prompts=(1,))
    seeds = {"seed": [3, 3]}
    plain = run(pipe, pair[0], seed=3, **SIZE)
    made = run(pipe, pair, controls=[subject, edit], **seeds, **SIZE)
    assert far(made[:1], plain) <= 1e-5
    assert far(made[1:], run(pipe, pair, controls=[edit], **seeds, **SIZE)[1:]) > 1e-4


def test_attention_edits_know_where_the_words_are(pipe):
    """The words behind a subject have moved; tokens of a subject take nothing."""
    pair = ["a red sphere on the table", "a red sphere on the table"]
    edit, grabbed = AttentionEdit(mode="refine"), []

    class Grab(Control):
        def prepare(self, run):
            grabbed.append(edit.prepare(run))

    subject = Subject(TOY, "toy", word="sphere", prompts=(1,))
    run(pipe, pair, controls=[subject, Grab()], seed=[3, 3], num_inference_steps=1)
    (found,) = grabbed[0].edits
    mapping = found.mapping.numpy()
    sphere = 3  # start, a, red, sphere
    assert not mapping[:, sphere : sphere + TOKENS].any()
    assert mapping[sphere, sphere + TOKENS] == 1
    assert mapping[6, 6 + TOKENS] == 1
    assert not found.taken[sphere : sphere + TOKENS].any()


def test_other_pipelines_and_offloading(pipe):
    photo = picture(7)[:8, :8].repeat(5, 0).repeat(9, 1)[:40, :72]
    given = {"strength": 0.6, "num_inference_steps": 5, "seed": 3, "output_type": "latent"}
    other = underdraw.StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    plain = other(PROMPT, photo, **given).images
    acting = other(PROMPT, photo, controls=[SPHERE], **given).images
    assert far(acting, plain) > 1e-3
    made = underdraw.StableDiffusionPipeline.from_pipe(pipe)
    made.set_progress_bar_config(disable=True)
    before = run(made, PROMPT, controls=[SPHERE])
    made.enable_model_cpu_offload(device="cpu:0")
    assert torch.equal(run(made, PROMPT, controls=[SPHERE]), before)
    made.disable_model_cpu_offload()


OVERLAY = Overlay(
    {
        path: LowRank(np.full((2, width), 0.1, np.float32), np.full((16, 2), 0.2, np.float32))
        for path, width in (
            ("mid_block.attentions.0.transformer_blocks.0.attn2.to_v", tiny.WIDTH),
            ("mid_block.attentions.0.transformer_blocks.0.attn2.to_q", 16),
        )
    }
)


# -- what cannot be --------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Subject(), InputError, "give image or embedding, one of them"),
        (lambda: Subject(BALL), InputTypeError, "category=''.* is not a text"),
        (lambda: Subject([], "toy"), InputError, "image.* holds 0 entries"),
        (lambda: Subject("a.png", "toy"), InputTypeError, "image.*=str; allowed"),
        (lambda: Subject(np.zeros((3, 3)), "toy"), InputError, r"has shape \(3, 3\)"),
        (lambda: Subject([BALL] * 65, "toy"), InputError, "holds 65 entries; allowed: 1 .. 64"),
        (lambda: Subject([BALL, TOY], ["a", "b", "c"]), InputError, "category.* has 3 entries"),
        (lambda: Subject([BALL, TOY], ["a", "b"]), InputError, "there are several, so say"),
        (lambda: Subject(BALL, "toy", word=3), InputTypeError, "word=3.* is not a text"),
        (lambda: Subject(BALL, "toy", prompts=(-1,)), InputError, "prompts.*=-1 is too small"),
        (lambda: Subject(BALL, "toy", shares=(0.5,)), InputError, "shares.* must add up to 1"),
        (lambda: Subject(BALL, "toy", shares=(0.5, 0.5)), InputError, "shares.* has 2 entries"),
        (lambda: Subject(BALL, "toy", at=0), InputError, "at.*=0 is too small"),
        (lambda: Subject(BALL, "toy", strength=(1, 1, 1)), InputError, "add up to 1"),
        (lambda: Subject(embedding=torch.zeros(4, 32), word="a"), InputTypeError, "embedding"),
        (lambda: between(SPHERE, 3, 0.5), InputTypeError, "allowed: a Subject of pictures"),
        (lambda: between(SPHERE, CUBE, float("nan")), InputError, "share=nan"),
        (lambda: Box("a", (0, 0, 1, 1), subject=3), InputTypeError, "subject=3.* is not a Subject"),
        (lambda: Box(None, (0, 0, 1, 1), BALL, SPHERE), InputError, "has no phrase"),
    ],
)
def test_bad_subjects(make, error, message):
    with pytest.raises(error, match=message):
        make()


NAN = torch.full((1, TOKENS, tiny.WIDTH), torch.nan)


@pytest.mark.parametrize(
    ("prompt", "controls", "message"),
    [
        ("a table", [SPHERE], "word='sphere'.*: these words are not in prompt='a table'"),
        (["a table", "a cube"], [Subject(BALL, "cube", prompts=(0,))], "prompt='a table'"),
        (["a table", "a cube"], [Subject(BALL, "cube", prompts=(2,))], "there is no prompt 2"),
        (
            PROMPT,
            [Subject(BALL, "cube", encoder="other")],
            "'other'.* is not attached; attached: 's",
        ),
        (PROMPT, [Subject(embedding=NAN[..., :8], word="cube")], r"needed is \(any, any, 32\)"),
        (PROMPT, [Subject(embedding=NAN, word="cube")], "holds NaN or infinity"),
        ("a cube " * 30, [Subject(BALL, "cube")] * 65, "65 subjects; allowed: at most 64"),
        ("cube", [Subject(embedding=torch.ones(1, 74, 32), word="cube")] * 2, "148 tokens"),
    ],
)
def test_bad_calls(pipe, prompt, controls, message):
    calls = counted(pipe)
    with pytest.raises(InputError, match=message):
        run(pipe, prompt, controls=controls)
    assert not calls


def test_embeddings_of_prompts_cannot_be_changed(pipe):
    context = torch.zeros(1, 77, tiny.WIDTH)
    with pytest.raises(InputError, match="the prompts were given as embeddings"):
        run(pipe, None, prompt_embeds=context, negative_prompt_embeds=context, controls=[SPHERE])


def test_weights_of_another_base_or_backend():
    bare = tiny.pipeline()
    wide = {**BLIP, "qformer_config": {**BLIP["qformer_config"], "hidden_size": 16}}
    with pytest.raises(InputError, match="tokens of width 16, the text encoder takes 32"):
        bare.load_subject(Blip2QFormerModel.from_config(wide))
    with pytest.raises(InputError, match="backend 'jax', the UNet on 'torch'"):
        bare.load_subject(encoder("jax"))
    with pytest.raises(underdraw.NotFoundError):
        bare.load_subject("/nowhere/at/all")
    with pytest.raises(InputTypeError, match="name=3 is not a string"):
        bare.load_subject(encoder(), name=3)
    with pytest.raises(InputTypeError, match="image_processor=3 cannot be called"):
        bare.load_subject(encoder(), image_processor=3)
    bare.load_subject(encoder(), name="a")
    bare.load_subject(encoder(), name="b")
    with pytest.raises(InputError, match=r"several subject weights are attached \('a', 'b'\)"):
        run(bare, PROMPT, controls=[SPHERE])
    named = Subject(BALL, "red sphere", word="sphere", encoder="b")
    assert run(bare, PROMPT, controls=[named]).shape == (1, 4, 8, 8)


def test_saved_weights_are_read_again(pipe, tmp_path):
    pipe.save_adapter("subject", tmp_path / "subject")
    bare = tiny.pipeline()
    bare.load_subject(tmp_path / "subject")
    assert torch.equal(run(bare, PROMPT, controls=[CUBE]), run(pipe, PROMPT, controls=[CUBE]))
