"""CLIP's splitting rules; reading and writing tokenizer folders; training a small vocabulary.

CLIP (Radford et al. 2021) splits lower-cased text into words, single digits and runs of other
signs, writes each piece in bytes and merges pairs of symbols (BPE, Sennrich et al. 2016); the last
symbol of a piece carries `</w>`. The vocabulary is 256 bytes, the same 256 closing a word, one
entry per merge and the special tokens.
"""

from __future__ import annotations

import copy
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from underdraw.errors import InputError, NotFoundError, WeightError
from underdraw.formats import opening
from underdraw.schema import shown, within
from underdraw.text import tokens
from underdraw.weights import folders, save

START, END = "<|startoftext|>", "<|endoftext|>"
SPECIAL = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
MOST_MERGES = 1_000_000  # CLIP has 48,894
MOST_ADDED = 20_000
LONGEST = 1000
"""Characters of a token that is added: the library builds an automaton of them."""
_CLOSE = "</w>"
_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


def backend(vocab: Mapping[str, int], merges: Sequence[tuple[str, str]], unknown: str) -> Any:
    """A `tokenizers.Tokenizer` with CLIP's rules that adds no special tokens by itself."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    try:
        model = models.BPE(
            dict(vocab), list(merges), end_of_word_suffix=_CLOSE, unk_token=unknown, fuse_unk=False
        )
    except Exception as error:  # the library raises bare Exception
        raise WeightError(f"the vocabulary does not fit its merges: {error}") from error
    made = Tokenizer(model)
    made.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Lowercase(),
        ]
    )
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    return made


def read_folder(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Arguments of `CLIPTokenizer` from a folder with `tokenizer.json`, or `vocab.json` and
    `merges.txt`; where both are there, the first counts, as in transformers.

    Raises:
        NotFoundError: no folder there, or neither set of files in it.
        WeightError: a file cannot be read as what its name says.
    """
    folder = Path(folder)
    config_file, whole_file = folder / "tokenizer_config.json", folder / "tokenizer.json"
    config = _json(config_file) or {}
    whole = _json(whole_file)
    if whole is not None:
        model = whole.get("model")
        if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
            raise WeightError(f"{whole_file} holds no BPE vocabulary, so it is not CLIP's")
        with within(whole_file):
            arguments: dict[str, Any] = {
                "vocab": tokens.as_vocabulary(model["vocab"]),
                "merges": tokens.as_merges(model.get("merges", [])),
            }
    else:
        names = ("vocab.json", "merges.txt")
        missing = [name for name in names if not opening.is_regular(folder / name)]
        if missing:
            raise NotFoundError(
                f"{folder} holds no tokenizer: needed are tokenizer.json, or vocab.json and"
                f" merges.txt; not there: tokenizer.json, {', '.join(missing)}"
            )
        arguments = {name.split(".")[0]: folder / name for name in names}

    with within(config_file):
        named = _named(config)
        extra = tokens.as_tokens("extra_special_tokens", config.get("extra_special_tokens"))
        name = "additional_special_tokens"
        extra = extra or tokens.as_tokens(name, config.get(name))
        added = tokens.as_added("added_tokens_decoder", config.get("added_tokens_decoder"))
        if config.get("model_max_length") is not None:
            arguments["model_max_length"] = tokens.as_max_length(config["model_max_length"])
    if "added_tokens_decoder" not in config:  # files older than transformers 4.34
        map_file = folder / "special_tokens_map.json"
        with within(map_file):
            old = _json(map_file) or {}
            named |= _named(old)
            extra = tokens.as_tokens(name, old.get(name)) or extra
        special = {_content(token) for token in [*named.values(), *extra]}
        added |= _older_added(folder / "added_tokens.json", special)
        with within(whole_file):
            added |= _listed_added((whole or {}).get("added_tokens"))
    return {**arguments, **named, "added_tokens": added, "extra_special_tokens": extra}


def _named(config: Mapping[str, Any]) -> dict[str, Any]:
    """The special tokens that a config file names."""
    return {key: tokens.as_token(key, config[key]) for key in SPECIAL if config.get(key)}


def _older_added(path: Path, special: set[str]) -> dict[int, Any]:
    """Id -> token from an `added_tokens.json`, which knows texts and ids only."""
    with within(path):
        ids = tokens.as_vocabulary(_json(path) or {})
    return {
        index: {"content": text, "special": text in special, "normalized": text not in special}
        for text, index in ids.items()
    }


def _listed_added(listed: Any) -> dict[int, Any]:
    """Id -> token from the list in a `tokenizer.json`."""
    if listed is not None and not isinstance(listed, list):
        raise WeightError(f"added_tokens={shown(listed)}; allowed: a list of tokens")
    by_id = {}
    for i, token in enumerate(listed or []):
        if not isinstance(token, dict) or type(token.get("id")) is not int:
            raise WeightError(f"added_tokens[{i}]={shown(token)}; allowed: a token with an id")
        by_id[token["id"]] = {key: value for key, value in token.items() if key != "id"}
    return tokens.as_added("added_tokens", by_id)


def read_vocab(vocab: Mapping[str, int] | str | os.PathLike[str]) -> dict[str, int]:
    """Token -> id, from a mapping or a `vocab.json`."""
    if not isinstance(vocab, str | os.PathLike):
        return tokens.as_vocabulary(vocab)
    known = _json(Path(vocab))
    if known is None:
        raise NotFoundError(f"there is no vocabulary at {vocab!s:.500}")
    with within(vocab):
        return tokens.as_vocabulary(known)


def read_merges(merges: Iterable[Any] | str | os.PathLike[str]) -> list[tuple[str, str]]:
    """Pairs in order of rank, from pairs, strings `"a b"`, or a `merges.txt`."""
    if not isinstance(merges, str | os.PathLike):
        return tokens.as_merges(merges)
    lines = _text(Path(merges))
    if lines is None:
        raise NotFoundError(f"there are no merges at {merges!s:.500}")
    if lines.count("\n") > MOST_MERGES:
        raise WeightError(f"{merges}: more than {MOST_MERGES:,} lines")
    lines = [line.rstrip("\r") for line in lines.split("\n")]
    with within(merges):
        return tokens.as_merges(
            [line for line in lines if line and not line.startswith("#version")]
        )


def as_added(token: Any, **defaults: Any) -> Any:
    """`token` (text, a dict from a config file, or the library's own) as an `AddedToken`."""
    from tokenizers import AddedToken

    text = token.get("content") if isinstance(token, dict) else token
    if isinstance(text, str) and len(text) > LONGEST:
        raise WeightError(f"an added token has {len(text):,} characters; allowed are {LONGEST:,}")
    if isinstance(token, dict):
        return AddedToken(**{**defaults, **{k: v for k, v in token.items() if k != "__type"}})
    return AddedToken(token, **defaults) if isinstance(token, str) else token


def write_folder(folder: str | os.PathLike[str], made: Any, config: Mapping[str, Any]) -> None:
    """Write all files transformers 4 and 5 look for, or none if interrupted."""
    state = json.loads(made.to_str())
    vocab, merges = state["model"]["vocab"], state["model"]["merges"]
    added = {token.pop("id"): token for token in copy.deepcopy(state["added_tokens"])}
    names = {key: config[key] for key in SPECIAL if config.get(key)}
    edges = {
        key: [config[token], made.token_to_id(config[token])]
        for key, token in (("cls", "bos_token"), ("sep", "eos_token"))
    }
    # What puts start and end around a text in readers that take the file as it is.
    state["post_processor"] = {
        "type": "RobertaProcessing",
        **edges,
        "trim_offsets": False,
        "add_prefix_space": False,
    }
    texts = {
        "vocab.json": _dump(dict(sorted(vocab.items(), key=lambda item: item[1]))),
        "merges.txt": "\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges), ""]),
        "tokenizer.json": _dump(state),
        "special_tokens_map.json": _dump(names),
        "tokenizer_config.json": _dump(
            {**config, "added_tokens_decoder": added, "tokenizer_class": "CLIPTokenizer"}
        ),
    }
    beyond = {
        token["content"]: index for index, token in added.items() if token["content"] not in vocab
    }
    if beyond:
        texts["added_tokens.json"] = _dump(beyond)
    with save.writing_folder(folder) as new:
        for name, text in texts.items():
            (new / name).write_text(text, encoding="utf-8", newline="\n")


def train_vocabulary(
    texts: Iterable[str], size: int = 1000
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Learn a vocabulary of at most `size` tokens: 512 byte symbols, merges, start and end token.

    The same texts always give the same vocabulary, in any order of the texts (pairs of equal count
    are merged in alphabetical order). Fewer tokens come out where nothing is left to merge.

    Returns:
        `(vocab, merges)`, the first two arguments of `CLIPTokenizer`.
    Raises:
        InputError: `size` has no room for the bytes and the special tokens.
    """
    from tokenizers import pre_tokenizers

    if size < 514:
        raise InputError(f"size={size}: at least 514 (512 byte symbols, a start and an end token)")
    rules = backend({}, [], END)
    counts: Counter[str] = Counter()
    for text in texts:
        clean = rules.normalizer.normalize_str(text)
        counts.update(word for word, _ in rules.pre_tokenizer.pre_tokenize_str(clean))
    words = [[*word[:-1], word[-1] + _CLOSE] for word in sorted(counts)]
    weights = [counts[word] for word in sorted(counts)]

    pairs: Counter[tuple[str, str]] = Counter()
    where: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
    for index, word in enumerate(words):
        for pair in pairwise(word):
            pairs[pair] += weights[index]
            where[pair].add(index)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    symbols = [*alphabet, *(sign + _CLOSE for sign in alphabet)]
    known, merges = set(symbols), []
    while len(symbols) < size - 2 and pairs:
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        if pairs[best] <= 0:
            break
        merges.append(best)
        if (joined := "".join(best)) not in known:  # two merges may spell one token
            known.add(joined)
            symbols.append(joined)
        for index in sorted(where[best]):
            word, weight = words[index], weights[index]
            for pair in pairwise(word):
                pairs[pair] -= weight
            words[index] = word = _joined(word, best)
            for pair in pairwise(word):
                pairs[pair] += weight
                where[pair].add(index)
        del pairs[best], where[best]
    return {token: index for index, token in enumerate([*symbols, START, END])}, merges


def _joined(word: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    position = 0
    while position < len(word):
        step = 2 if tuple(word[position : position + 2]) == pair else 1
        out.append("".join(word[position : position + step]))
        position += step
    return out


def _content(token: Any) -> str:
    return token["content"] if isinstance(token, dict) else str(token)


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2) + "\n"


def _text(path: Path) -> str | None:
    return opening.read_text(path) if opening.is_regular(path) else None


def _json(path: Path) -> dict[str, Any] | None:
    return folders.read_json(path) if opening.is_regular(path) else None
