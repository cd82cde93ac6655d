"""Words of prompts in their contexts, and which token of one prompt takes from which of another."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from pipelines import tiny

from underdraw.errors import InputError
from underdraw.text.alignment import align, find, words
from underdraw.text.prompts import tokenize_prompts

TOKENIZER = tiny.tokenizer()
SOURCE = "a red sphere left of a blue cube"


def read(prompt, **options):
    return words(TOKENIZER, prompt, **options)


def taken(source, target, replace=True):
    """By position of the target, where it takes from and how much."""
    mapping, has = align(read(source), read(target), replace)
    assert mapping.shape == (read(source).count, read(target).count)
    assert (mapping.any(0) == has).all()
    return [[(int(i), round(float(c[i]), 3)) for i in c.nonzero()[0]] for c in mapping.T]


def test_words_and_their_places():
    prompt = read("A  (purple:1.3) sphere, [cube]")
    assert prompt.texts == ("a", "purple", "sphere", ",", "cube")
    assert prompt.places[0] == (1,) and len(prompt.places[1]) > 1
    assert [place for word in prompt.places for place in word] == list(range(1, prompt.ends[0]))
    brackets = words(TOKENIZER, "(cube:1.3)", plain=True)
    assert brackets.texts == ("(", "cube", ":", "1", ".", "3", ")")


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from([*tiny.WORDS, "purple", "BREAK", "3,", "naïve"]), max_size=200))
def test_the_ids_of_words_stand_at_their_places(listed):
    text = " ".join(listed)
    prompt, (ids, _) = read(text), tokenize_prompts(TOKENIZER, [text])
    flat = ids.reshape(-1)
    assert prompt.count == len(flat)
    for numbers, places, shown in zip(prompt.ids, prompt.places, prompt.texts, strict=True):
        assert tuple(flat[list(places)]) == numbers and shown
    every = [place for word in prompt.places for place in word]
    assert sorted(every) == every
    assert (flat[list(prompt.ends)] == TOKENIZER.eos_token_id).all()


def test_added_tokens_are_words():
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["<my-cat>"])
    prompt = words(tokenizer, "a <my-cat> cube")
    assert [len(ids) for ids in prompt.ids] == [1, 1, 1]
    assert find(tokenizer, "<my-cat>", prompt) == [2] and find(tokenizer, "cube", prompt) == [3]


def test_finding_phrases():
    prompt = read("a purple cube and a blue cube BREAK cube")
    length = len(prompt.places[1])
    assert find(TOKENIZER, "purple", prompt) == list(range(2, 2 + length))
    assert find(TOKENIZER, "Cube", prompt) == [2 + length, 6 + length, 78]
    assert find(TOKENIZER, "blue cube", prompt) == [5 + length, 6 + length]
    for absent in ("ube", "purpl", "cube blue", "red"):
        assert find(TOKENIZER, absent, prompt) == []
    with pytest.raises(InputError, match="'  ' holds no word"):
        find(TOKENIZER, "  ", prompt)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.sampled_from([*tiny.WORDS, "purple", "BREAK"]), max_size=100))
def test_a_prompt_takes_from_itself_position_by_position(listed):
    prompt = read(" ".join(listed))
    for replace in (True, False):
        mapping, has = align(prompt, prompt, replace)
        assert has.all() and (mapping == np.eye(prompt.count)).all()


def test_a_word_instead_of_another():
    swapped = taken(SOURCE, "a green sphere left of a blue cube")
    assert swapped == [[(i, 1.0)] for i in range(77)]
    kept = taken(SOURCE, "a green sphere left of a blue cube", replace=False)
    assert kept == [*swapped[:2], [], *swapped[3:]]


def test_a_word_of_several_tokens_shares_what_it_replaces():
    target = "a purple sphere left of a blue cube"
    places = read(target).places[1]
    many, share = len(places), round(1 / len(places), 3)
    assert many > 1
    found = taken(SOURCE, target)
    assert all(found[place] == [(2, share)] for place in places)
    # What stands behind moves along.
    assert found[places[-1] + 1 : 9 + many] == [[(i, 1.0)] for i in range(3, 10)]
    back = taken(target, SOURCE)
    assert [i for i, _ in back[2]] == list(places) and {w for _, w in back[2]} == {1.0}
    # Equally many words, one by one; else all from all.
    assert taken("a red cube", "a blue sphere")[2:4] == [[(2, 1.0)], [(3, 1.0)]]
    assert taken("a red cube", "a sphere")[2] == [(2, 1.0), (3, 1.0)]
    assert taken("a sphere", "a red cube")[2:4] == [[(2, 0.5)], [(2, 0.5)]]


@pytest.mark.parametrize("replace", [True, False])
def test_added_and_left_out_words(replace):
    longer = "a red sphere and green cube left of a blue cube"
    added = taken(SOURCE, longer, replace)
    assert added[4:7] == [[], [], []]
    assert added[7:13] == [[(i, 1.0)] for i in range(4, 10)]  # to the end token
    assert added[13:] == [[(i, 1.0)] for i in range(13, 77)]  # padding at equal positions
    shorter = taken(longer, SOURCE, replace)
    assert shorter[4:10] == [[(i, 1.0)] for i in range(7, 13)]
    assert shorter[10:13] == [[], [], []] and shorter[13:] == added[13:]


def test_prompts_of_several_windows():
    long = " ".join(["red sphere"] * 50)
    source, target = f"{long} BREAK a blue cube", f"green {long} BREAK a green cube"
    found = taken(source, target)
    assert read(source).windows == 3 and len(found) == 3 * 77
    assert found[1] == [] and found[2:76] == [[(i, 1.0)] for i in range(1, 75)]
    assert found[78] == [(75, 1.0)]  # pushed into the next window
    assert [found[i] for i in (0, 77, 154)] == [[(i, 1.0)] for i in (0, 77, 154)]
    assert found[154:] == [[(i, 1.0)] for i in range(154, 231)]
    with pytest.raises(InputError, match=r"needs 2 windows of 77 tokens, its source 'a' 1"):
        align(read("a"), read("a BREAK b"), True)
