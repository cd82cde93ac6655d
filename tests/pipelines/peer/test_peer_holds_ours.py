"""Our tokenizer, schedulers and networks inside diffusers' pipeline object."""

import warnings

import diffusers
import numpy as np
import pytest
import torch
import transformers
from diffusers.utils import logging
from pipelines import tiny
from pipelines.peer import oracle
from pipelines.peer.oracle import images, pair

from underdraw import schedulers
from underdraw.text.tokenizer import CLIPTokenizer

CALL = {"prompt": ["a red sphere", "blue cube"], "seeds": (1, 2), "height": 40, "width": 72}
LONG = "a red sphere on the table left of blue " * 12


def held(theirs, **parts):
    """diffusers' pipeline with some parts of ours."""
    made = diffusers.StableDiffusionPipeline(
        **{**theirs.components, **parts}, requires_safety_checker=False
    )
    return oracle.quiet(made)


@pytest.mark.parametrize("kind", ["sd1", "mask"])
@pytest.mark.parametrize("negative", [None, "green"])
def test_our_tokenizer_makes_the_same_images(kind, negative):
    theirs, ours = pair(kind)
    assert type(ours.tokenizer) is CLIPTokenizer
    mixed = held(theirs, tokenizer=ours.tokenizer)
    call = {**CALL, "negative_prompt": negative and [negative, negative]}
    assert np.array_equal(images(mixed, **call), images(theirs, **call))


def test_prompts_that_are_cut_are_told_in_the_same_words(caplog):
    theirs, ours = pair("sd1")
    logging.enable_propagation()
    told = []
    try:
        for pipe in (theirs, held(theirs, tokenizer=ours.tokenizer)):
            caplog.clear()
            with caplog.at_level("WARNING", logger="diffusers"):
                made = images(pipe, prompt=LONG, num_inference_steps=1)
            told.append((made, [r.getMessage() for r in caplog.records if "77" in r.getMessage()]))
    finally:
        logging.disable_propagation()
    assert np.array_equal(told[0][0], told[1][0])
    assert told[0][1] == told[1][1]
    assert "only handle sequences up to 77 tokens" in told[0][1][0]


@pytest.mark.parametrize(
    "name",
    [
        "DDIM",
        "PNDM",
        "EulerDiscrete",
        "EulerAncestralDiscrete",
        "DPMSolverMultistep",
        "UniPCMultistep",
    ],
)
def test_our_schedulers_make_the_same_images(name):
    theirs, _ = pair("sd1")
    config = {**theirs.scheduler.config, "clip_sample": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one, two = (
            held(theirs, scheduler=getattr(library, f"{name}Scheduler").from_config(config))
            for library in (diffusers, schedulers)
        )
    assert np.abs(images(one, **CALL) - images(two, **CALL)).max() <= 1e-4


def test_a_pipeline_of_the_peer_all_of_ours():
    theirs, ours = pair("sd1")
    mixed = held(ours)
    assert np.abs(images(mixed, **CALL) - images(ours, **CALL)).max() <= 1e-4
    assert np.abs(images(mixed, **CALL) - images(theirs, **CALL)).max() <= 1e-4


@pytest.mark.parametrize("pad", ["<|endoftext|>", "!"])
def test_what_trainers_read_from_a_tokenizer(tmp_path, pad):
    ours = tiny.tokenizer(pad_token=pad)
    ours.save_pretrained(tmp_path)
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    for extra in ((), ("<cat>", "<cat>_1")):
        assert ours.add_tokens(list(extra)) == theirs.add_tokens(list(extra))
        for name in (
            *("added_tokens_encoder", "all_special_tokens", "all_special_ids"),
            *("special_tokens_map", "model_max_length", "vocab_size"),
        ):
            assert getattr(ours, name) == getattr(theirs, name), name
        decoded = [
            {index: str(token) for index, token in each.added_tokens_decoder.items()}
            for each in (ours, theirs)
        ]
        assert decoded[0] == decoded[1]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": "longest"},
        {"padding": "max_length"},
        {"padding": "max_length", "max_length": 9},
    ],
)
@pytest.mark.parametrize("tensors", [None, "np", "pt"])
def test_padding_as_trainers_do(tmp_path, options, tensors):
    ours = tiny.tokenizer()
    ours.save_pretrained(tmp_path)
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    rows = [ours(text).input_ids for text in ("a red sphere", "cube", "")]
    for given in (
        {"input_ids": rows},
        {"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]},
        [{"input_ids": row} for row in rows],
    ):
        a, b = (each.pad(given, **options, return_tensors=tensors) for each in (ours, theirs))
        for name in ("input_ids", "attention_mask"):
            if tensors == "pt":
                assert torch.equal(a[name], b[name])
            else:
                assert np.array_equal(np.asarray(a[name]), np.asarray(b[name]))
