"""Files of a tokenizer, each value of each in turn replaced by what it is not meant to be: it is
read and encodes, or an error of ours names file or field."""

import json
import shutil
from functools import partial

import pytest
import torch
from pipelines import tiny
from trying import JSON, LEFT_OUT, PYTHON, outcome, paths, put

from underdraw.errors import UnderdrawError
from underdraw.schema import shown
from underdraw.text.tokenizer import CLIPTokenizer
from underdraw.text.vocabulary import train_vocabulary

TOKENS = (
    *({"content": "x"}, {"content": 5}, {"content": "q", "lstrip": "yes"}, [{"content": "z"}]),
    *({"5": {"content": "x"}}, {"-1": {"content": "x"}}, {"x": {}}, {"9" * 30: {"content": "q"}}),
    *([["a", "b"]], ["a b c"], [{}], {"0": "hello"}, 10**30, 1e30),
)
MERGES = ("", "x", "a b c", "a  b", "a b\na b\n", "\x00 \x00", "\n\n", b"\xff\xfe", "a\tb")
# Seven of each place: all of them stand somewhere.
VALUES = (*JSON, *TOKENS)
OLD = ("added_tokens_decoder", "extra_special_tokens")


@pytest.fixture(scope="module")
def contents(tmp_path_factory):
    """File -> content, of a small vocabulary with a token of its own."""
    folder = tmp_path_factory.mktemp("tokenizer")
    made = CLIPTokenizer(*train_vocabulary(["a red sphere", "a cube"], 530), pad_token="!")
    made.add_tokens(["<toy>"])
    made.save_pretrained(folder)
    (folder / "added_tokens.json").write_text(json.dumps({"<toy>": len(made) - 1}))
    return {
        file.name: json.loads(file.read_text()) if file.suffix == ".json" else file.read_text()
        for file in folder.iterdir()
    }


def written(folder, contents):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in contents.items():
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            text = content if name.endswith(".txt") else json.dumps(content)
            (folder / name).write_text(text)


def used(folder):
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    padding = "max_length" if tokenizer.model_max_length < 1000 else True
    ids = tokenizer(["a red sphere", "é <toy>"], padding=padding, truncation=True).input_ids
    tokenizer.decode(ids)


def forms(contents):
    """As transformers 5 reads, as transformers 4 did, and as before 4.34."""
    split = {name: content for name, content in contents.items() if name != "tokenizer.json"}
    config = contents["tokenizer_config.json"]
    old = {"tokenizer_config.json": {k: v for k, v in config.items() if k not in OLD}}
    return {"whole": contents, "split": split, "old": contents | old, "older": split | old}


@pytest.mark.parametrize("form", ["whole", "split", "old", "older"])
def test_json_files(form, contents, tmp_path):
    files = forms(contents)[form]
    turn = 0
    for name, content in files.items():
        places = list(paths(content, 4)) if name.endswith(".json") else []
        named = ("extra_special_tokens", "additional_special_tokens", "unk_token", "mask_token")
        places += [(key,) for key in named if name.endswith(("config.json", "map.json"))]
        for place in places:
            step = [VALUES[(turn + k) % len(VALUES)] for k in range(7)]
            turn += 7
            present = not place or place[0] in content
            for value in (*step, LEFT_OUT) if place and present else step:
                written(tmp_path / "t", {**files, name: put(content, place, value)})
                wrong = outcome(partial(used, tmp_path / "t"), str(tmp_path / "t"))
                assert wrong is None, (name, place, shown(value))
    assert turn > 150


def test_merges(contents, tmp_path):
    files = forms(contents)["split"]
    for text in (*MERGES, files["merges.txt"][:300], files["merges.txt"] + "q zzz\n"):
        written(tmp_path / "t", {**files, "merges.txt": text})
        assert outcome(partial(used, tmp_path / "t"), str(tmp_path / "t")) is None, text[:20]


def test_arguments(contents):
    """Of the constructor, which takes what files hold, and more."""
    vocab, merges = contents["vocab.json"], contents["merges.txt"].splitlines()[1:]

    def made(**arguments):
        tokenizer = CLIPTokenizer(**{"vocab": vocab, "merges": merges, **arguments})
        tokenizer(["a cube"], padding=True)

    named = [name + "_token" for name in ("bos", "eos", "unk", "pad", "sep", "cls", "mask")]
    for name in (*named, "added_tokens", "extra_special_tokens", "model_max_length", "merges"):
        for value in (*PYTHON, *TOKENS):
            wrong = outcome(partial(made, **{name: value}))
            assert wrong is None, (name, shown(value))
    for value in (*PYTHON, *TOKENS, {"a": -1}, {"a": 2**40}, {"a": True}, {1: 1}, {"a": 0, "b": 0}):
        assert outcome(partial(made, vocab=value)) is None, shown(value)


@pytest.mark.parametrize(
    ("name", "place", "value", "told"),
    [
        ("tokenizer_config.json", ("model_max_length",), "long", "model_max_length='long'"),
        ("tokenizer_config.json", ("bos_token",), 7, "bos_token=7"),
        ("tokenizer_config.json", ("added_tokens_decoder",), [1], "added_tokens_decoder=[1]"),
        ("tokenizer.json", ("model", "merges", 0), ["a"], "a merge joins two symbols; got ['a']"),
        ("tokenizer.json", ("model", "vocab", "a"), -1, "'a': -1"),
        ("tokenizer.json", ("model", "vocab", "b"), 0, "the same id"),
    ],
)
def test_file_and_field_are_named(name, place, value, told, contents, tmp_path):
    written(tmp_path / "t", {**contents, name: put(contents[name], place, value)})
    with pytest.raises(UnderdrawError) as error:
        CLIPTokenizer.from_pretrained(tmp_path / "t")
    assert str(error.value).startswith(f"{tmp_path / 't' / name}: ") and told in str(error.value)


def test_the_length_of_no_model(contents, tmp_path):
    """What transformers writes where nothing is known."""
    config = contents["tokenizer_config.json"] | {"model_max_length": int(1e30)}
    written(tmp_path / "t", {**contents, "tokenizer_config.json": config})
    assert CLIPTokenizer.from_pretrained(tmp_path / "t").model_max_length == int(1e30)


def test_a_length_that_nobody_knows(tmp_path):
    """transformers writes 1e30; texts are then made as long as the longest, prompts as the network
    takes them."""
    made = tiny.tokenizer()
    made.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["model_max_length"] = 1e30
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    read = CLIPTokenizer.from_pretrained(tmp_path)
    found = read(["a red sphere", "a"], padding="max_length", truncation=True).input_ids
    assert found == made(["a red sphere", "a"], padding=True).input_ids
    for wrong in (10**9, -1, 1e30, "77"):
        with pytest.raises(UnderdrawError, match="max_length="):
            read("a", padding="max_length", max_length=wrong)
    pipe = tiny.pipeline()
    expected = tiny.run(pipe)
    pipe.tokenizer = read
    assert torch.equal(tiny.run(pipe), expected)
