"""Same ids as transformers' tokenizer from the same files, whichever files there are."""

import copy
import itertools
import json
import pickle
import threading

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from hypothesis import given, settings, strategies

from underdraw.errors import InputError, InputTypeError, NotFoundError, WeightError
from underdraw.text.tokenizer import CLIPTokenizer
from underdraw.text.vocabulary import train_vocabulary

HARD = [
    "",
    " ",
    " \t\n\r\f\v ",
    "a photo of an astronaut",
    "A PHOTO Of An AstroNaut",
    "  leading, trailing and   inner    spaces  ",
    "tab\tnewline\ncarriage\r\nno-break\u00a0ideographic\u3000line\u2028paragraph\u2029next\x85",
    "don't I'LL they'Re we'VE i'm he'D it'S rock'n'roll 'twas ' '' 's 't'll",
    "it’s curly ‘quotes’ “double” … – —",
    "0 1 12 345 3.14159 1,000,000 2024-11-20 ½ ² ³ Ⅷ ① ٣ ३ 一二三",
    "caf\u00e9 cafe\u0301 \u00c5 A\u030a \u212b \u1e9b\u0323 \ud55c\uae00 \u1112\u1161\u11ab",
    "İstanbul I\u0307 ı ß ẞ ſ ŉ ǰ ΐ Σίσυφος ΣΑΣ ὈΔΥΣΣΕΎΣ ᾳ Ǆ ǅ ǆ Ա և",
    "ﬁ ﬂ ﬀ ligature ㎏ ℃ ™ Ⓐ 𝐛𝐨𝐥𝐝 𝓢𝓬𝓻𝓲𝓹𝓽",
    "猫が好きです。日本語\u3000テスト、漢字・カタカナ ﾊﾝｶｸ 中文没有空格 한국어 텍스트",
    "العربية \u200fمن اليمين\u200f עברית ไทยไม่มีเว้นวรรค हिन्दी में க்ஷ ⵜⵉⴼⵉⵏⴰⵖ",
    "👨\u200d👩\u200d👧\u200d👦 👍🏽 🏳️\u200d🌈 🇫🇷🇩🇪 ☺️ ☺ ❤️\u200d🔥 #️⃣ \U0001fae8",
    "zero\u200bwidth \u200d joiner\u200cnon \ufeffbom \u2060 soft\u00adhyphen \u200e\u202e\u2066",
    "control \x00 \x01 \x07 \x08 \x1b[0m \x7f \x80 \x9f end",
    "private \ue000 \U000f0000 noncharacter \ufffe \uffff replacement \ufffd \U0010ffff",
    "combining z\u0351\u036b\u0343\u036a\u0302\u036b a\u0300\u0301\u0302\u0303\u0304 \u0301alone",
    '!!! ??? ... ,,, ;;; ::: --- ___ *** ### $$$ %%% ^^^ &&& === +++ ~~~ ``` """',
    "a!b! c ! d, hello!world !",
    "(masterpiece:1.3), [[blurry]], {x|y}, <lora:foo:0.8> \\( \\)",
    "http://user:pass@example.com:80/a/b?c=d&e=f#g C:\\dir\\file.txt a_b-c.d",
    "<|startoftext|> in the middle <|endoftext|> and<|endoftext|>glued<|startoftext|>",
    "<|STARTOFTEXT|> <|EndOfText|> <|endoftext|<|endoftext|> <|other|> < |endoftext|>",
    "</w> a</w> </w>b Ġ ĠĠ Ċ ï¼Į Ã©",
    "x" * 2000,
    "é" * 333 + "猫" * 333 + "👍🏽" * 99,
    "word " * 500,
    "1" * 200 + "!" * 200 + "'s" * 100,
    "a" + "\u0300" * 400,
]


def added(content, normalized=True):
    kinds = {"lstrip": False, "normalized": normalized, "rstrip": False, "single_word": False}
    return {"content": content, **kinds}


def publish(folder, learnt, pad="<|endoftext|>"):
    """The files SD 1 (and with pad "!" SD 2) were published with."""
    vocab, merges = learnt
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(vocab))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    start, end = added("<|startoftext|>"), added("<|endoftext|>")
    names = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": pad}
    (folder / "special_tokens_map.json").write_text(json.dumps(names))
    typed = {
        key: {"__type": "AddedToken", **token} if isinstance(token, dict) else token
        for key, token in names.items()
        if key != "pad_token"
    }
    config = {
        **typed,
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": 77,
        "name_or_path": "openai/clip-vit-large-patch14",
        "special_tokens_map_file": "./special_tokens_map.json",
        "tokenizer_class": "CLIPTokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def sd1(folder, learnt):
    publish(folder, learnt)


def sd2(folder, learnt):
    publish(folder, learnt, pad="!")


def saved_by_peer(folder, learnt):
    publish(folder.with_name("origin"), learnt)
    transformers.CLIPTokenizer.from_pretrained(folder.with_name("origin")).save_pretrained(folder)


def sd2_saved_by_peer(folder, learnt):
    publish(folder.with_name("origin"), learnt, pad="!")
    transformers.CLIPTokenizer.from_pretrained(folder.with_name("origin")).save_pretrained(folder)


def only_tokenizer_json(folder, learnt):
    saved_by_peer(folder, learnt)
    (folder / "tokenizer_config.json").unlink()


def saved_here(folder, learnt):
    CLIPTokenizer(*learnt, pad_token="!", model_max_length=33).save_pretrained(folder)


def old_merges_as_text(folder, learnt):
    """`tokenizer.json` of tokenizers before 0.20 has merges as "a b"."""
    saved_by_peer(folder, learnt)
    whole = json.loads((folder / "tokenizer.json").read_text())
    whole["model"]["merges"] = [" ".join(pair) for pair in whole["model"]["merges"]]
    (folder / "tokenizer.json").write_text(json.dumps(whole))


def transformers_4(folder, learnt):
    """`added_tokens_decoder` in the config, the special tokens matched in normalised text."""
    publish(folder, learnt)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    decoder = {
        str(learnt[0][name]): {**added(name), "special": True}
        for name in ("<|startoftext|>", "<|endoftext|>")
    }
    names = {"bos_token": "<|startoftext|>", "clean_up_tokenization_spaces": True}
    names |= dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>")
    config |= {**names, "added_tokens_decoder": decoder}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def textual_inversion(folder, learnt):
    publish(folder, learnt)
    count = len(learnt[0])
    words = {"<cat-toy>": count, "mySpecialStyle": count + 1}
    (folder / "added_tokens.json").write_text(json.dumps(words))


def bare_vocabulary(folder, learnt):
    publish(folder, learnt)
    (folder / "tokenizer_config.json").unlink()
    (folder / "special_tokens_map.json").unlink()


def tokenizer_json_beside_other_vocabulary(folder, learnt):
    """`tokenizer.json` is the one that counts."""
    saved_by_peer(folder, learnt)
    other = folder.with_name("other")
    publish(other, train_vocabulary(["quite another text"], 520))
    for name in ("vocab.json", "merges.txt"):
        (other / name).rename(folder / name)


def vocabulary_without_merges_beside_tokenizer_json(folder, learnt):
    saved_by_peer(folder, learnt)
    (folder / "vocab.json").write_text(json.dumps(learnt[0]))


FOLDERS = [
    sd1,
    sd2,
    saved_by_peer,
    sd2_saved_by_peer,
    only_tokenizer_json,
    saved_here,
    old_merges_as_text,
    transformers_4,
    textual_inversion,
    bare_vocabulary,
    tokenizer_json_beside_other_vocabulary,
    vocabulary_without_merges_beside_tokenizer_json,
]


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda make: make.__name__)
def pair(request, learnt, tmp_path_factory):
    """(ours, transformers') from one folder."""
    folder = tmp_path_factory.mktemp("tokenizer") / "files"
    request.param(folder, learnt)
    peer = transformers.CLIPTokenizer.from_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder), peer


def test_ids_and_tokens_are_the_peers(pair):
    ours, peer = pair
    for text in [*HARD, "a <cat-toy> in MySpecialStyle, mySpecialStyle<cat-toy>"]:
        assert ours(text).input_ids == peer(text).input_ids, text
        assert ours.tokenize(text) == peer.tokenize(text), text


def test_ids_are_the_peers_on_random_unicode(pair):
    ours, peer = pair

    @settings(max_examples=150, deadline=None, derandomize=True, database=None)
    @given(strategies.text(max_size=40))
    def same(text):
        assert ours.encode(text) == peer.encode(text)

    same()


def test_special_tokens_and_sizes_are_the_peers(pair):
    ours, peer = pair
    for name in ("bos", "eos", "unk", "pad"):
        assert getattr(ours, f"{name}_token") == getattr(peer, f"{name}_token")
        assert getattr(ours, f"{name}_token_id") == getattr(peer, f"{name}_token_id")
    assert len(ours) == len(peer)
    assert ours.vocab_size == peer.vocab_size
    assert ours.get_vocab() == peer.get_vocab()
    assert ours.model_max_length == min(peer.model_max_length, 77)  # transformers' default is 1e30


def test_decoding_is_the_peers(pair):
    ours, peer = pair
    for text, skip in itertools.product(HARD, (False, True)):
        ids = peer(text).input_ids
        assert ours.decode(ids, skip_special_tokens=skip) == peer.decode(
            ids, skip_special_tokens=skip
        )


CUTS = (True, "longest_first", "only_first")
CALLS = [
    {
        "padding": padding,
        "max_length": length,
        "truncation": truncation,
        "add_special_tokens": edges,
    }
    for padding, length, truncation, edges in itertools.product(
        (False, True, "longest", "max_length", "do_not_pad"),
        (None, 2, 7, 77),
        (None, True, False, "longest_first", "only_first", "do_not_truncate"),
        (True, False),
    )
    if not (padding in (True, "longest") and length and truncation not in CUTS)  # peer warns
]


def test_every_way_to_call_gives_the_peers_ids_and_mask(learnt, tmp_path):
    publish(tmp_path / "files", learnt, pad="!")
    ours = CLIPTokenizer.from_pretrained(tmp_path / "files")
    peer = transformers.CLIPTokenizer.from_pretrained(tmp_path / "files")
    for options, text in itertools.product(CALLS, ("a red cube!", ["", HARD[4], "word " * 90])):
        got, wanted = ours(text, **options), peer(text, **options)
        assert got.input_ids == wanted.input_ids, options
        assert got["attention_mask"] == wanted["attention_mask"], options


@pytest.mark.parametrize("kind", ["np", "pt"])
def test_tensors_are_the_peers(learnt, kind, tmp_path):
    publish(tmp_path / "files", learnt)
    ours = CLIPTokenizer.from_pretrained(tmp_path / "files")
    peer = transformers.CLIPTokenizer.from_pretrained(tmp_path / "files")
    options = {"padding": "max_length", "max_length": 77, "truncation": True}
    for text in (HARD, "one text"):
        got = ours(text, **options, return_tensors=kind)
        wanted = peer(text, **options, return_tensors=kind)
        assert set(got) == set(wanted)
        for name in got:
            assert type(got[name]) is type(wanted[name])
            assert got[name].dtype == wanted[name].dtype
            assert got[name].shape == wanted[name].shape
            assert bool((got[name] == wanted[name]).all())
    assert got.to("cpu").input_ids.shape == (1, 77) if kind == "pt" else got.input_ids.ndim == 2


def test_what_is_saved_is_read_back_by_both(pair, tmp_path):
    ours, _ = pair
    ours.save_pretrained(tmp_path / "ours")
    again = CLIPTokenizer.from_pretrained(tmp_path / "ours")
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    for reader in (again, theirs, CLIPTokenizer.from_pretrained(tmp_path / "theirs")):
        assert [reader(text).input_ids for text in HARD] == [ours(text).input_ids for text in HARD]
        assert reader.pad_token_id == ours.pad_token_id
        assert reader.model_max_length == ours.model_max_length
        assert len(reader) == len(ours)


def test_the_saved_tokenizer_json_works_by_itself(pair, tmp_path):
    """transformers 4 takes the file as it is, start and end token included."""
    ours, _ = pair
    ours.save_pretrained(tmp_path)
    whole = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in HARD:
        assert whole.encode(text).ids == ours.encode(text), text


def test_vocabulary_files_alone_are_enough_for_both(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (tmp_path / name).unlink()
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    ours = CLIPTokenizer(tmp_path / "vocab.json", tmp_path / "merges.txt")
    for text in HARD:
        assert tokenizer(text).input_ids == ours(text).input_ids == theirs(text).input_ids


def test_windows_line_ends_in_merges_do_not_matter(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    merges = tmp_path / "merges.txt"
    merges.write_bytes(merges.read_bytes().replace(b"\n", b"\r\n"))
    (tmp_path / "tokenizer.json").unlink()
    assert CLIPTokenizer.from_pretrained(tmp_path).encode(HARD[3]) == tokenizer.encode(HARD[3])


def test_added_tokens_are_the_peers_and_survive_saving(learnt, tmp_path):
    publish(tmp_path / "files", learnt)
    ours = CLIPTokenizer.from_pretrained(tmp_path / "files")
    peer = transformers.CLIPTokenizer.from_pretrained(tmp_path / "files")
    for tokens, special in (
        (["<toy>", "MyStyle", "cube"], False),
        ("<pad>", True),
        ("<toy>", False),
    ):
        assert ours.add_tokens(tokens, special) == peer.add_tokens(tokens, special)
    ours.save_pretrained(tmp_path / "saved")
    again = CLIPTokenizer.from_pretrained(tmp_path / "saved")
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path / "saved")
    for text in ("a <toy> in MyStyle", "mystyle <TOY><pad>cube", "cubes <toy><toy>"):
        wanted = peer(text).input_ids
        assert [t(text).input_ids for t in (ours, again, theirs)] == [wanted] * 3
    assert len(ours) == len(peer) == len(again)
    assert ours.convert_tokens_to_ids(["<toy>", "cube", "nowhere"]) == peer.convert_tokens_to_ids(
        ["<toy>", "cube", "nowhere"]
    )


def test_ids_and_tokens_convert_both_ways(tokenizer):
    tokens = tokenizer.tokenize("a red cube")
    ids = tokenizer.convert_tokens_to_ids(tokens)
    assert tokenizer.convert_ids_to_tokens(ids) == tokens
    assert tokenizer.convert_ids_to_tokens(ids[0]) == tokens[0]
    assert tokenizer.convert_tokens_to_ids(tokens[0]) == ids[0]


def test_decode_takes_rows_arrays_and_single_ids(tokenizer):
    ids = tokenizer(["a red cube", "Sphere"], padding=True, return_tensors="np").input_ids
    words = tokenizer.batch_decode(ids, skip_special_tokens=True)
    assert words == ["a red cube", "sphere"]
    assert tokenizer.decode(torch.as_tensor(ids), True) == words
    assert tokenizer.decode(ids[0][1]) == "a"
    assert tokenizer.decode([]) == ""


def test_options_replace_what_the_files_say(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "pipeline" / "tokenizer")
    loaded = CLIPTokenizer.from_pretrained(
        tmp_path / "pipeline", subfolder="tokenizer", pad_token="!", model_max_length=9
    )
    assert loaded.pad_token_id == tokenizer.get_vocab()["!"]
    assert loaded("hi", padding="max_length").input_ids[-1] == loaded.pad_token_id
    assert len(loaded("word " * 40, truncation=True).input_ids) == 9


def test_a_hub_repository_is_read_from_the_cache(tokenizer, tmp_path):
    commit = "0" * 40
    cached = tmp_path / "models--someone--model"
    tokenizer.save_pretrained(cached / "snapshots" / commit / "tokenizer")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    options = {"cache_dir": tmp_path, "local_files_only": True}
    loaded = CLIPTokenizer.from_pretrained("someone/model", subfolder="tokenizer", **options)
    assert loaded.encode("a red cube") == tokenizer.encode("a red cube")
    with pytest.raises(NotFoundError, match="someone/other"):
        CLIPTokenizer.from_pretrained("someone/other", subfolder="tokenizer", **options)


def test_copies_and_pickles_work(tokenizer):
    for other in (copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        assert other("a red cube").input_ids == tokenizer("a red cube").input_ids


def test_threads_share_one_tokenizer(tokenizer):
    """Another call's padding or truncation must not leak in: nothing is set on the tokenizer."""
    settings_of = [
        {"padding": "max_length", "max_length": 5 + n, "truncation": True} for n in range(8)
    ]
    wanted = [tokenizer("word " * 9, **options).input_ids for options in settings_of]
    wrong = []

    def work(n):
        for _ in range(200):
            if tokenizer("word " * 9, **settings_of[n]).input_ids != wanted[n]:
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(
    ("text", "options", "error", "words"),
    [
        (7, {}, InputTypeError, "text"),
        (None, {}, InputTypeError, "text"),
        (["a", 7], {}, InputTypeError, "text"),
        ([["a"]], {}, InputTypeError, "text"),
        ([], {}, InputError, "empty"),
        ("a", {"padding": "most"}, InputError, "padding='most'"),
        ("a", {"truncation": "some"}, InputError, "truncation='some'"),
        ("a", {"return_tensors": "tf"}, InputError, "return_tensors='tf'"),
        ("a", {"max_length": 1}, InputError, "max_length=1"),
        (["a", "a b"], {"return_tensors": "np"}, InputError, "padding"),
        ("half \ud800 pair", {}, InputError, "unicode"),
    ],
)
def test_bad_calls_name_the_argument(tokenizer, text, options, error, words):
    with pytest.raises(error, match=words):
        tokenizer(text, **options)


def test_missing_and_damaged_files_are_named(tokenizer, tmp_path):
    with pytest.raises(NotFoundError, match="nowhere"):
        CLIPTokenizer.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(NotFoundError, match=r"tokenizer\.json"):
        CLIPTokenizer.from_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    whole = (tmp_path / "tokenizer.json").read_text()
    for text, words in (
        (whole[:900], r"tokenizer\.json"),
        ("[1, 2]", "object"),
        ("{}", "BPE"),
        (whole.replace('"cube</w>":', '"cubic</w>":'), "merges"),
    ):
        (tmp_path / "tokenizer.json").write_text(text)
        with pytest.raises(WeightError, match=words):
            CLIPTokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b c\n")
    with pytest.raises(WeightError, match="two symbols"):
        CLIPTokenizer.from_pretrained(tmp_path)
    (tmp_path / "merges.txt").write_text("#version: 0.2\na nowhere</w>\n")
    with pytest.raises(WeightError, match="merges"):
        CLIPTokenizer.from_pretrained(tmp_path)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(NotFoundError, match=r"merges\.txt"):
        CLIPTokenizer.from_pretrained(tmp_path)


def test_an_added_token_must_get_the_id_its_embedding_has(learnt):
    with pytest.raises(WeightError, match="<toy>"):
        CLIPTokenizer(*learnt, added_tokens={len(learnt[0]) + 5: "<toy>"})


def test_a_learnt_vocabulary_is_clips_kind(learnt):
    vocab, merges = learnt
    assert len(vocab) <= 900
    assert list(vocab.values()) == list(range(len(vocab)))
    assert list(vocab)[-2:] == ["<|startoftext|>", "<|endoftext|>"]
    assert sum(token.endswith("</w>") for token in list(vocab)[:512]) == 256
    assert "cube</w>" in vocab
    assert len(merges) >= len(vocab) - 514
    assert all(a in vocab and b in vocab and a + b in vocab for a, b in merges)


def test_learning_ignores_the_order_of_texts_and_stops_when_all_is_merged():
    texts = ["a red cube", "a blue cube", "red and blue", "two red cubes"]
    small = train_vocabulary(texts, 520)
    assert small == train_vocabulary(texts[::-1], 520)
    assert len(small[0]) == 520
    vocab, _ = train_vocabulary(texts, 5000)
    assert len(vocab) < 600
    tokenizer = CLIPTokenizer(*train_vocabulary(texts, 5000))
    assert tokenizer.tokenize("two red cubes and a") == [
        "two</w>",
        "red</w>",
        "cubes</w>",
        "and</w>",
        "a</w>",
    ]
    assert train_vocabulary([], 514) == train_vocabulary(["", "  "], 9000)
    with pytest.raises(InputError, match="514"):
        train_vocabulary(texts, 513)


def test_learning_matches_counting_from_scratch():
    """The quick bookkeeping of pair counts gives what the definition of BPE gives."""
    words = {"abab": 3, "ababab": 2, "aaa": 4, "bcbc": 5, "cab": 1, "aaaa": 2}
    split = {word: [*word[:-1], word[-1] + "</w>"] for word in words}
    wanted = []
    for _ in range(9):
        counts = {}
        for word, symbols in split.items():
            for one in itertools.pairwise(symbols):
                counts[one] = counts.get(one, 0) + words[word]
        best = min(counts, key=lambda one: (-counts[one], one))
        wanted.append(best)
        for word, symbols in split.items():
            text, merged = 0, []
            while text < len(symbols):
                step = 2 if tuple(symbols[text : text + 2]) == best else 1
                merged.append("".join(symbols[text : text + step]))
                text += step
            split[word] = merged
    _, merges = train_vocabulary([f"{w} " * n for w, n in words.items()], 514 + 9)
    assert merges == wanted


def test_ids_are_int64_and_masks_mark_padding(tokenizer):
    out = tokenizer(["a red cube", ""], padding="max_length", max_length=9, return_tensors="np")
    assert out.input_ids.dtype == np.int64
    assert out.attention_mask.sum(1).tolist() == [5, 2]
    with pytest.raises(AttributeError):
        _ = out.token_type_ids
