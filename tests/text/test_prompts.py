"""Weights and windows: what the syntax means, and that nothing changes where it is not used."""

import warnings

import numpy as np
import pytest
import transformers

from underdraw.errors import InputError, InputTypeError
from underdraw.text.prompts import parse_weights, tokenize_prompts

UP, DOWN = 1.1, 1 / 1.1


@pytest.mark.parametrize(
    ("prompt", "runs"),
    [
        ("", [("", 1)]),
        ("a red cube", [("a red cube", 1)]),
        ("a (red) cube", [("a ", 1), ("red", UP), (" cube", 1)]),
        ("a [red] cube", [("a ", 1), ("red", DOWN), (" cube", 1)]),
        ("a (red:1.3) cube", [("a ", 1), ("red", 1.3), (" cube", 1)]),
        ("(red:.5)(blue:2)(green:0)", [("red", 0.5), ("blue", 2), ("green", 0)]),
        ("(red: 1.25 )", [("red", 1.25)]),
        ("((red))", [("red", UP * UP)]),
        ("(((red)))", [("red", UP**3)]),
        ("[[red]]", [("red", DOWN * DOWN)]),
        ("((red:1.5))", [("red", 1.5 * UP)]),
        ("((a:1.2) b:1.5) c", [("a", 1.8), (" b", 1.5), (" c", 1)]),
        ("a [b (c:2) d] e", [("a ", 1), ("b ", DOWN), ("c", 2 * DOWN), (" d", DOWN), (" e", 1)]),
        ("(a (b [c]:2):3)", [("a ", 3), ("b ", 6), ("c", 6 * DOWN)]),
        (r"\(a\) \[b\] \\ c", [(r"(a) [b] \ c", 1)]),
        (r"(a\):1.2) \(b:1.3\)", [("a)", 1.2), (" (b:1.3)", 1)]),
        (r"back\slash \n stays", [(r"back\slash \n stays", 1)]),
        ("ends in \\", [("ends in \\", 1)]),
        ("no brackets: 1.3", [("no brackets: 1.3", 1)]),
        ("(a sign: hello)", [("a sign: hello", UP)]),
        ("(a sign: 'hello, world')", [("a sign: 'hello, world'", UP)]),
        ("(a: b: c:1.4)", [("a: b: c", 1.4)]),
        ("([a:b])", [("a:b", DOWN * UP)]),
        ("()[] (:1.3)x", [(" x", 1)]),
        ("(猫:1.2)、犬", [("猫", 1.2), ("、犬", 1)]),
        ("(two\nlines:1.2)", [("two\nlines", 1.2)]),
    ],
)
def test_the_syntax_means(prompt, runs):
    got = parse_weights(prompt)
    assert [text for text, _ in got] == [text for text, _ in runs]
    assert [weight for _, weight in got] == pytest.approx([weight for _, weight in runs])


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("a (red cube", r"'\(' at character 3 is never closed"),
        ("a red) cube", r"'\)' at character 6 closes nothing"),
        ("a [red cube", r"'\[' at character 3"),
        ("a red] cube", r"'\]' at character 6"),
        ("(a]", r"'\]' at character 3"),
        ("([a)]", r"'\)' at character 4"),
        ("((a:1.2)", "never closed"),
        ("(a:1.2))", "closes nothing"),
        ("(a:1.3.4)", r"weight '1\.3\.4' after 'a'"),
        ("(a:1,3)", "weight '1,3'"),
        ("(a:)", "weight ''"),
        ("(a: )", "weight ''"),
        ("(a:-1)", "weight '-1'"),
        ("(a: -0.5)", "weight '-0.5'"),
        ("(a:+1)", r"weight '\+1'"),
        ("(a:nan)", "weight 'nan'"),
        ("(a: inf)", "weight 'inf'"),
        ("(a:1e3)", "weight '1e3'"),
        ("(a:11)", "from 0 to 10"),
        ("(a:high)", "weight 'high'"),
        ("[a:0.5]", "square brackets"),
    ],
)
def test_malformed_weights_say_where(prompt, words):
    with pytest.raises(InputError, match=words):
        parse_weights(prompt)


PLAIN = ["a red cube", "", "  ", "hello!world! ... 猫 <|endoftext|> x", "it's 345 things"]


@pytest.mark.parametrize("weighting", [True, False])
@pytest.mark.parametrize("pad", ["<|endoftext|>", "!"])
def test_plain_prompts_get_the_plain_ids(tokenizer, learnt, pad, weighting, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    ours = type(tokenizer).from_pretrained(tmp_path, pad_token=pad)
    peer = transformers.CLIPTokenizer.from_pretrained(tmp_path, pad_token=pad)
    for one in (ours, peer):
        ids, weights = tokenize_prompts(one, PLAIN, weighting=weighting)
        wanted = one(
            PLAIN, padding="max_length", max_length=77, truncation=True, return_tensors="np"
        )
        assert ids.dtype == np.int64
        assert weights.dtype == np.float32
        assert ids.shape == weights.shape == (len(PLAIN), 1, 77)
        assert (ids[:, 0] == wanted.input_ids).all()
        assert (weights == 1).all()


def test_without_weighting_every_sign_is_text(tokenizer):
    prompts = ["a (red:1.3) [cube", "a smile :)", "one BREAK two"]
    ids, weights = tokenize_prompts(tokenizer, prompts, weighting=False)
    wanted = tokenizer(prompts, padding="max_length", return_tensors="np").input_ids
    assert (ids[:, 0] == wanted).all()
    assert (weights == 1).all()


def test_each_token_has_the_weight_of_its_word(tokenizer):
    ids, weights = tokenize_prompts(tokenizer, ["a (astronauts:1.3) on [mars]"])
    got = list(zip(tokenizer.convert_ids_to_tokens(ids[0, 0].tolist()), weights[0, 0], strict=True))
    words = [("a", 1), ("astronauts", 1.3), ("on", 1), ("mars", DOWN)]
    wanted = [(token, w) for word, w in words for token in tokenizer.tokenize(word)]
    edge = [("<|startoftext|>", 1)], [("<|endoftext|>", 1)] * (76 - len(wanted))
    wanted = [*edge[0], *wanted, *edge[1]]
    assert [token for token, _ in got] == [token for token, _ in wanted]
    assert [w for _, w in got] == pytest.approx([w for _, w in wanted])
    assert len(tokenizer.tokenize("astronauts")) > 1


def test_long_prompts_lose_nothing(tokenizer):
    prompt = " ".join(f"{n} (red:1.5) cube" for n in range(60))
    ids, weights = tokenize_prompts(tokenizer, [prompt, "short", ""])
    plain = tokenizer(prompt.replace("(", "").replace(":1.5)", ""), add_special_tokens=False)
    count = -(-len(plain.input_ids) // 75)
    assert ids.shape == weights.shape == (3, count, 77)
    assert (ids[:, :, 0] == tokenizer.bos_token_id).all()
    assert (ids[0, :-1, 76] == tokenizer.eos_token_id).all()
    inner = ids[0, :, 1:-1].reshape(-1)[: len(plain.input_ids)]
    assert inner.tolist() == plain.input_ids
    red = tokenizer.encode("red", add_special_tokens=False)[0]
    assert (weights[0][ids[0] == red] == 1.5).all()
    assert (weights[0][ids[0] != red] == 1).all()
    empty = tokenizer("", padding="max_length", return_tensors="np").input_ids[0]
    assert (ids[2] == empty).all()


def test_shorter_prompts_repeat_their_own_windows(tokenizer):
    ids, weights = tokenize_prompts(tokenizer, ["a BREAK (b:1.2)", "c BREAK d BREAK e", "f"])
    assert ids.shape == weights.shape == (3, 6, 77)
    for row, count in enumerate((2, 3, 1)):
        alone, alone_weights = tokenize_prompts(
            tokenizer, [["a BREAK (b:1.2)", "c BREAK d BREAK e", "f"][row]]
        )
        assert (ids[row] == np.tile(alone[0], (6 // count, 1))).all()
        assert (weights[row] == np.tile(alone_weights[0], (6 // count, 1))).all()


@pytest.mark.parametrize("tokens", [74, 75, 76, 150, 151])
def test_windows_fill_up_before_the_next_begins(tokenizer, tokens):
    assert len(tokenizer.tokenize("red " * tokens)) == tokens
    ids, _ = tokenize_prompts(tokenizer, ["red " * tokens])
    assert ids.shape[1] == -(-tokens // 75)
    red = tokenizer.encode("red", add_special_tokens=False)[0]
    full = [75] * (tokens // 75) + ([tokens % 75] if tokens % 75 else [])
    assert (ids[0] == red).sum(1).tolist() == full


def test_break_starts_a_new_window(tokenizer):
    ids, weights = tokenize_prompts(tokenizer, ["a red cube BREAK (a blue BREAK sphere:1.2)"])
    wanted = tokenizer(
        ["a red cube", "a blue", "sphere"], padding="max_length", return_tensors="np"
    ).input_ids
    assert (ids[0] == wanted).all()
    sphere = len(tokenizer.tokenize("sphere"))
    assert weights[0, 1, 1:3] == pytest.approx([1.2, 1.2])
    assert weights[0, 2, 1 : 1 + sphere] == pytest.approx([1.2] * sphere)
    assert (weights[0, 0] == 1).all()


@pytest.mark.parametrize("prompt", ["BREAK a", "a BREAK", "BREAK a BREAK BREAK", "BREAK", ""])
def test_break_makes_no_empty_windows(tokenizer, prompt):
    assert tokenize_prompts(tokenizer, [prompt])[0].shape == (1, 1, 77)


def test_break_within_a_word_or_in_lower_case_is_text(tokenizer):
    prompts = ["BREAKFAST at nine", "a break", "OUTBREAK"]
    assert tokenize_prompts(tokenizer, prompts)[0].shape[1] == 1


def test_truncation_is_the_peers_and_names_what_is_cut(tokenizer, tmp_path):
    prompt = "red " * 74 + "cube, then a blue sphere"
    with pytest.warns(UserWarning, match="then a blue sphere"):
        ids, weights = tokenize_prompts(tokenizer, [prompt, "short"], truncate=True)
    wanted = tokenizer(
        [prompt, "short"], padding="max_length", truncation=True, return_tensors="np"
    ).input_ids
    assert ids.shape == weights.shape == (2, 1, 77)
    assert (ids[:, 0] == wanted).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenize_prompts(tokenizer, ["red " * 75], truncate=True)


def test_windows_have_the_length_asked_for(tokenizer):
    ids, _ = tokenize_prompts(tokenizer, ["red " * 9], max_length=5)
    assert ids.shape == (1, 3, 5)
    assert (ids[0, :, 4] == tokenizer.eos_token_id).all()


@pytest.mark.parametrize(
    ("prompts", "options", "error"),
    [
        ("a text, no list", {}, InputTypeError),
        ([], {}, InputError),
        (["a", None], {}, InputTypeError),
        ([["a"]], {}, InputTypeError),
        (["a (red:x)"], {}, InputError),
        (["a"], {"max_length": 2}, InputError),
        (["a"], {"max_length": 10**30}, InputError),
        (["half \ud800 pair"], {}, InputError),
    ],
)
def test_bad_prompts_are_errors(tokenizer, prompts, options, error):
    with pytest.raises(error):
        tokenize_prompts(tokenizer, prompts, **options)
