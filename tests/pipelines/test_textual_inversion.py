"""Learned words: files of every kind, in prompts and negative prompts, beside other controls."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from controls.test_grounding import EVER, opened
from controls.test_structure import close
from pipelines import tiny
from pipelines.loras import lora
from safetensors.torch import save_file

import underdraw
from underdraw import AttentionEdit, Box, Layout, backends
from underdraw.controls.features import phrase_features
from underdraw.errors import InputError, InputTypeError, NotFoundError, WeightError
from underdraw.text.learned import FIRST, Learned, LearnedTokenizer

SIZE = {"height": 24, "width": 40, "num_inference_steps": 2}


def vectors(count=2, seed=0, width=tiny.WIDTH):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def files(place):
    """The word <toy> in files of every kind."""
    save_file({"<toy>": vectors()}, place / "diffusers.safetensors")
    torch.save({"<toy>": vectors()}, place / "diffusers.bin")
    save_file({"emb_params": vectors()}, place / "<toy>.safetensors")
    params = {"string_to_token": {"*": 265}, "string_to_param": {"*": vectors()}, "name": "<toy>"}
    torch.save(params, place / "a1111.pt")
    torch.save({**params, "string_to_param": {"other": vectors()}}, place / "key.pt")
    names = "diffusers.safetensors diffusers.bin <toy>.safetensors a1111.pt key.pt"
    return [place / name for name in names.split()]


def encoded(pipe, prompt, **options):
    return pipe.encode_prompt(prompt, do_classifier_free_guidance=False, **options)[0]


def by_hand(pipe, ids, rows):
    """The context of tokens of which those below 0 are `rows`."""
    table = pipe.text_encoder.text_model.embeddings.token_embedding.weight
    full = torch.full((77,), pipe.tokenizer.pad_token_id)
    full[: len(ids)] = torch.tensor(ids)
    embeddings = table[full.clamp(min=0)].detach().clone()
    embeddings[full < 0] = rows
    from underdraw.networks import clip

    encoder = pipe.text_encoder
    with torch.no_grad():
        return clip.TEXT(
            encoder.nn, encoder, encoder.config, full[None].clamp(min=0), embeddings[None]
        ).last


def test_files_of_every_kind(tmp_path):
    pipe = tiny.pipeline()
    plain = encoded(pipe, "a <toy> on the table")
    begin, end = pipe.tokenizer.bos_token_id, pipe.tokenizer.eos_token_id
    rest = pipe.tokenizer(["a", "on the table"], add_special_tokens=False).input_ids
    wanted = by_hand(pipe, [begin, *rest[0], -1, -2, *rest[1], end], vectors())
    for path in files(tmp_path):
        pipe.load_textual_inversion(path)
        assert list(pipe.parts.learned) == ["<toy>"], path
        assert close(encoded(pipe, "a <toy> on the table"), wanted, 1e-5), path
        assert close(encoded(pipe, "a <TOY> on the table"), wanted, 1e-5), path
        pipe.unload_textual_inversion()
        assert torch.equal(encoded(pipe, "a <toy> on the table"), plain)
    for source in (
        vectors(),
        {"x": vectors()},
        {"string_to_param": {"*": vectors()}},
        vectors().numpy(),
    ):
        pipe.load_textual_inversion(source, token="<toy>")
        assert close(encoded(pipe, "a <toy> on the table"), wanted, 1e-5)
        pipe.unload_textual_inversion("<toy>")


def test_several_words_at_once(tmp_path):
    pipe = tiny.pipeline()
    save_file({"<toy>": vectors(), "<cup>": vectors(1, 1)}, tmp_path / "two.safetensors")
    pipe.load_textual_inversion([tmp_path / "two.safetensors", vectors(3, 2)], token=[None, "Easy"])
    assert set(pipe.parts.learned) == {"<toy>", "<cup>", "Easy"}
    both = encoded(pipe, "easy <cup>, <toy>")
    pipe.unload_textual_inversion(["<cup>"])
    assert not close(encoded(pipe, "easy <cup>, <toy>"), both, 1e-3)
    assert torch.equal(encoded(pipe, "uneasy"), encoded(tiny.pipeline(), "uneasy"))
    with pytest.raises(InputError, match="learned words: '<toy>', 'Easy'"):
        pipe.unload_textual_inversion("<cup>")


def test_in_negative_prompts_with_weights_and_in_long_ones():
    pipe = tiny.pipeline()
    plain = tiny.run(pipe, negative_prompt="easy", **SIZE)
    pipe.load_textual_inversion(vectors(4), token="easy")
    assert not close(tiny.run(pipe, negative_prompt="easy", **SIZE), plain, 1e-3)
    usual = encoded(pipe, "a red easy cube")
    assert not close(encoded(pipe, "a red (easy:1.4) cube"), usual, 1e-3)
    long = " ".join(["a red sphere on the table and"] * 30) + " easy"
    assert encoded(pipe, long).shape[1] > 77
    before = encoded(pipe, long)
    pipe.unload_textual_inversion()
    assert not close(encoded(pipe, long), before, 1e-4)


def test_beside_a_lora_in_an_edit_and_in_streams():
    pipe = tiny.pipeline()
    pipe.load_textual_inversion(vectors(), token="<toy>")
    pipe.load_lora_weights(lora(pipe, 1))
    prompts = ["a <toy> on the table", "a <toy> and a cube"]
    call = {"controls": [AttentionEdit(weights={"<toy>": 1.5})], **SIZE}
    assert tiny.run(pipe, prompts, **call).shape[0] == 2
    alone = [tiny.run(pipe, [prompt], **SIZE) for prompt in prompts]
    options = {"output_type": "latent", "seed": 3, **SIZE}
    runs = underdraw.batched([pipe.stream([prompt], **options) for prompt in prompts])
    for _ in runs:
        pass
    for stream, one in zip(runs.streams, alone, strict=True):
        assert close(stream.output.images, one, 1e-5)


def test_what_a_lora_brings_along():
    pipe = tiny.pipeline()
    bundled = {
        "bundle_emb.<toy>.string_to_param.*": vectors(),
        "bundle_emb.mud.emb_params": vectors(1),
    }
    pipe.load_lora_weights({**lora(pipe, 1), **bundled})
    assert list(pipe.parts.learned) == ["<toy>", "mud"]


@pytest.mark.parametrize("backend", [b for b in ("jax",) if b in backends.installed()])
def test_on_other_backends(backend):
    parts = tiny.components(unet=tiny.ONE_LEVEL)
    found = []
    for where in ("torch", backend):
        pipe = underdraw.StableDiffusionPipeline(**tiny.on(where, parts))
        pipe.load_textual_inversion(vectors(), token="<toy>")
        found.append(torch.tensor(np.asarray(encoded(pipe, "a <toy>"))))
    assert close(*found, 1e-4)


def test_phrases_of_boxes_know_them():
    """As the prompt of the same words; a phrase without any has the bits from before."""
    pipe = tiny.pipeline()
    pipe.load_grounding(opened(pipe.unet))
    boxes = [Box("a <toy>", (0.1, 0.2, 0.5, 0.6)), Box("red", (0.5, 0.4, 1.0, 1.0))]
    call = {"controls": [Layout(boxes, EVER)], **SIZE}
    unknown, plain = tiny.run(pipe, **call), phrase_features(pipe.parts, ["red"])
    pipe.load_textual_inversion({"<toy>": vectors()})
    assert not close(tiny.run(pipe, **call), unknown, 1e-3)
    features = phrase_features(pipe.parts, ["a <toy>", "red"])
    ids = [pipe.tokenizer.bos_token_id, *pipe.tokenizer("a", add_special_tokens=False).input_ids]
    ids += [FIRST, FIRST - 1, pipe.tokenizer.eos_token_id]
    context = by_hand(pipe, [max(one, 0) if one > 0 else -1 for one in ids], vectors())
    assert close(features[:1], context[:, len(ids) - 1], 1e-6)
    assert torch.equal(features[1:], plain)
    with pytest.raises(InputError, match="tokens"):
        tiny.run(pipe, controls=[Box("<toy> " * 40, (0.1, 0.2, 0.5, 0.6))], **SIZE)


def test_copies_have_words_of_their_own():
    pipe = tiny.pipeline()
    pipe.load_textual_inversion(vectors(), token="<toy>")
    pipe.load_lora_weights(lora(pipe, 1), "clay")
    other = copy.deepcopy(pipe)
    pipe.unload_textual_inversion()
    pipe.unload_lora_weights()
    assert list(other.parts.learned) == ["<toy>"] and other.get_active_adapters() == ["clay"]
    assert not close(tiny.run(other, "a <toy>", **SIZE), tiny.run(pipe, "a <toy>", **SIZE), 1e-3)


def test_ids_and_texts_of_learned_words():
    base = tiny.tokenizer()
    learned = Learned({"<toy>": np.zeros((2, 4), np.float32), "Easy": np.zeros((1, 4), np.float32)})
    tokenizer = LearnedTokenizer(base, learned)
    ids = tokenizer("a <toy> uneasy easy", add_special_tokens=False).input_ids
    assert [one for one in ids if one < 0] == [FIRST, FIRST - 1, FIRST - 2**16]
    assert tokenizer.decode(ids).split()[:2] == ["a", "<toy>"]
    assert tokenizer.convert_ids_to_tokens(ids)[1:3] == ["<<toy>>"] * 2
    assert tokenizer(["a"]).input_ids == base(["a"]).input_ids
    assert tokenizer.model_max_length == base.model_max_length


def test_bad_files_and_arguments(tmp_path):
    pipe = tiny.pipeline()
    pipe.load_textual_inversion(vectors(), token="<toy>")
    torch.save({"string_to_param": {"*": vectors(), "+": vectors()}}, tmp_path / "two.pt")
    (tmp_path / "none").mkdir()
    cases = [
        (lambda: pipe.load_textual_inversion(vectors(), token="<TOY>"), "already"),
        (lambda: pipe.load_textual_inversion(vectors(width=768), token="x"), "Stable Diffusion 1"),
        (lambda: pipe.load_textual_inversion(vectors(width=7), token="x"), "width 7"),
        (lambda: pipe.load_textual_inversion(vectors()), "give token="),
        (lambda: pipe.load_textual_inversion({"x": vectors() / 0}), "NaN or infinity"),
        (lambda: pipe.load_textual_inversion({"x": vectors()[None]}), "textual inversion is"),
        (lambda: pipe.load_textual_inversion({"x": torch.ones(tiny.WIDTH).int()}), "int32"),
        (lambda: pipe.load_textual_inversion({"clip_l": vectors(), "clip_g": vectors()}), "XL"),
        (lambda: pipe.load_textual_inversion({}), "no vector"),
        (lambda: pipe.load_textual_inversion(tmp_path / "two.pt"), "several words"),
        (lambda: pipe.load_textual_inversion(tmp_path / "x.pt"), "no such file"),
        (lambda: pipe.load_textual_inversion(tmp_path / "none"), "weight_name"),
        (lambda: pipe.load_textual_inversion(vectors(), token=3), "not a word"),
        (lambda: pipe.load_textual_inversion([vectors()], token=["a", "b"]), "2 entries"),
        (lambda: pipe.load_textual_inversion(vectors(), token="x", tokenizer=3), "tokenizer"),
        (lambda: pipe.load_textual_inversion(3), "3"),
        (lambda: pipe.load_textual_inversion({"x": vectors(2000)}), "2,000 vectors"),
    ]
    for call, message in cases:
        with pytest.raises((InputError, InputTypeError, WeightError, NotFoundError), match=message):
            call()
        assert list(pipe.parts.learned) == ["<toy>"]
