"""BLIP-Diffusion's model objects: files, vocabulary, pictures, and what they refuse."""

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image
from pipelines.blip import recorded

from underdraw.errors import InputError, InputTypeError, NotFoundError, WeightError
from underdraw.formats.stored import stored
from underdraw.models import Blip2QFormerModel, BlipImageProcessor
from underdraw.models.wordpiece import WordPiece
from underdraw.weights import save
from underdraw.weights.subject import read_subject, to_original

record = recorded.record
CATEGORIES = record.THREE["source_subject_category"]


@pytest.fixture(scope="module")
def encoder():
    return recorded.network("qformer")


@pytest.fixture(scope="module")
def tower():
    return recorded.network("text_encoder")


# -- the vocabulary --------------------------------------------------------------------------------
def test_ids_are_those_of_berts_tokenizer(tmp_path):
    ids, keep = WordPiece(record.PIECES)(CATEGORIES)
    assert ids.tolist() == recorded.arrays()["bert_ids"].tolist()
    assert keep.tolist() == (ids != 0).astype(float).tolist()


HARD = [
    "Réd  ball!",
    "a-toy",
    "reddish cubes",
    "中 b",
    "un known",
    "\tBALL\n",
    "x" * 120,
    "[SEP] a",
]


def test_ids_of_hard_texts_are_those_of_transformers(tmp_path):
    from transformers import BertTokenizer

    record.write_tokenizers(tmp_path)
    theirs = BertTokenizer.from_pretrained(str(tmp_path / "bert"))
    ours = WordPiece.from_pretrained(tmp_path / "bert")
    for text in HARD:
        ids, keep = ours(text)
        assert ids[0].tolist() == theirs(text)["input_ids"], text
        assert keep.all()


def test_every_file_of_it_gives_the_same(tmp_path):
    record.write_tokenizers(tmp_path)
    (tmp_path / "whole").mkdir()
    content = {"type": "WordPiece", "vocab": {t: i for i, t in enumerate(record.PIECES)}}
    (tmp_path / "whole" / "tokenizer.json").write_text(json.dumps({"model": content}))
    places = (tmp_path / "bert", tmp_path / "bert" / "vocab.txt", tmp_path / "whole")
    found = [WordPiece.from_pretrained(place) for place in places]
    assert all(one.vocab == WordPiece(record.PIECES).vocab for one in found)
    found[0].save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "vocab.txt").read_text() == "\n".join(record.PIECES) + "\n"
    assert found[0].vocab["[DEC]"] == len(record.PIECES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "vocabulary has no"),
        ("[PAD]\n[UNK]\n[CLS]\na\n", r"vocabulary has no \[SEP\], so it is not BERT's"),
        ("[PAD]\n[UNK]\n[CLS]\n[SEP]\na\na\n", "'a' stands twice"),
        (b"[PAD]\n\xff\n", "not UTF-8 text"),
    ],
)
def test_bad_vocabularies(tmp_path, content, message):
    raw = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "vocab.txt").write_bytes(raw)
    with pytest.raises(WeightError, match=f"vocab.txt.*{message}"):
        WordPiece.from_pretrained(tmp_path)


def test_a_vocabulary_of_another_kind(tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE", "vocab": {}}}))
    with pytest.raises(WeightError, match="holds a 'BPE' vocabulary; BERT's is 'WordPiece'"):
        WordPiece.from_pretrained(tmp_path)
    with pytest.raises(NotFoundError, match="holds neither vocab"):
        WordPiece.from_pretrained(os.fspath(_empty(tmp_path)))


def _empty(folder):
    (folder / "empty").mkdir()
    return folder / "empty"


def test_the_constructor_fetches_nothing_and_the_error_says_what_is_needed(monkeypatch, tmp_path):
    """diffusers' constructor fetches `bert-base-uncased`."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    made = Blip2QFormerModel.from_config(record.BLIP)
    with pytest.raises(InputError, match=r"Needed is the file vocab.txt of 'bert-base-uncased'"):
        made.words()
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(40))]
    made.tokenizer = WordPiece(tokens)
    with pytest.raises(InputError, match="it has 45 tokens, the Q-Former knows 20"):
        made.words()


# -- files -----------------------------------------------------------------------------------------
def test_folder(encoder, tmp_path):
    encoder.save_pretrained(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["config.json", "model.safetensors", "vocab.txt"]
    again = Blip2QFormerModel.from_pretrained(tmp_path)
    assert again.tokenizer.vocab == encoder.tokenizer.vocab
    assert again.config == encoder.config
    for name, value in again.state_dict().items():
        assert torch.equal(value, encoder.state_dict()[name])
    # Older folders do not say the width of what the Q-Former sees, and hold a buffer.
    raw = json.loads((tmp_path / "config.json").read_text())
    del raw["qformer_config"]["encoder_hidden_size"]
    raw["text_config"] = {"model_type": "opt"}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    tensors = {**encoder.stored_tensors(), "embeddings.position_ids": stored(np.zeros((1, 4)))}
    save.save_tensors(tmp_path / "model.safetensors", tensors)
    (tmp_path / "vocab.txt").unlink()
    record.write_tokenizers(tmp_path)
    again = Blip2QFormerModel.from_pretrained(tmp_path, tokenizer=tmp_path / "bert")
    assert again.config == encoder.config
    assert len(again.tokenizer) == len(encoder.tokenizer)


@pytest.mark.parametrize("form", ["folder", "old folder", "file"])
def test_the_originals_files(encoder, tmp_path, form):
    """Names and shapes of LAVIS; what its training had besides is left out by name."""
    tensors = to_original(encoder.stored_tensors())
    beside = ("blip.Qformer.cls.predictions.bias", "blip.temp", "blip.itm_head.weight")
    beside += ("blip.Qformer.bert.embeddings.position_ids", "blip.vision_proj.weight")
    tensors |= {name: stored(np.zeros(3, np.float32)) for name in beside}
    if form == "file":
        source = tmp_path / "whole.pth"
        torch.save({"model": {n: torch.tensor(t.load()) for n, t in tensors.items()}}, source)
    else:
        source = tmp_path
        for prefix, part in (("blip.", "blip_model/blip_weight"), ("proj_layer.", None)):
            file = tmp_path / f"{part or 'proj_layer/proj_weight'}.pt"
            file.parent.mkdir()
            named = {
                name.removeprefix(prefix).replace("Qformer", "text_model")
                if form == "old folder" and part
                else name.removeprefix(prefix): torch.tensor(tensor.load())
                for name, tensor in tensors.items()
                if name.startswith(prefix)
            }
            torch.save(named, file)
    config, found = read_subject(source)
    # No shape tells how many heads there are; published ones are 64 wide.
    heads = {"vision_config": {**config["vision_config"], "num_attention_heads": 5}}
    heads["vision_config"]["layer_norm_eps"] = 1e-6
    heads["qformer_config"] = {**config["qformer_config"], "num_attention_heads": 3}
    # A picture that is no multiple of its patches is told by their number alone.
    heads["vision_config"]["image_size"] = 28
    assert config["vision_config"]["image_size"] == 27
    made = Blip2QFormerModel.from_tensors({**config, **heads}, found)
    assert made.config == encoder.config
    for name, value in made.state_dict().items():
        assert torch.equal(value, encoder.state_dict()[name]), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("blip.query_tokens"), "names and shapes are not those of BLIP"),
        (lambda t: t.update(odd=t["blip.query_tokens"]), "1 tensors of .* are unknown: odd"),
        (
            lambda t: [t.pop(n) for n in list(t) if n.startswith("proj_layer.")],
            "there is no proj_layer: this is a BLIP-2 checkpoint",
        ),
        (lambda t: t.pop("blip.visual_encoder.conv1.weight"), "names and shapes are not those"),
    ],
)
def test_files_of_another_kind(encoder, tmp_path, change, message):
    tensors = to_original(encoder.stored_tensors())
    change(tensors)
    save.save_tensors(tmp_path / "file.safetensors", tensors)
    with pytest.raises(WeightError, match=f"file.safetensors: .*{message}"):
        read_subject(tmp_path / "file.safetensors")


def test_a_folder_that_lacks_a_part(tmp_path):
    with pytest.raises(NotFoundError, match="no blip_model/blip_weight"):
        read_subject(tmp_path)


# -- pictures --------------------------------------------------------------------------------------
def test_pictures_as_diffusers_prepares_them():
    processor = BlipImageProcessor(size=recorded.SIDE)
    told = {"image_mean": record.MEAN, "image_std": record.STD}
    for form in (list, lambda p: [np.asarray(one) for one in p]):
        found = processor.preprocess(form(recorded.pictures()), **told)["pixel_values"]
        assert np.abs(found - recorded.arrays()["pixels"]).max() <= 2e-6
    assert processor(recorded.pictures()[0], return_tensors="pt").pixel_values.shape == (
        1,
        3,
        28,
        28,
    )


def test_processor_files(tmp_path):
    made = BlipImageProcessor(size={"height": 20, "width": 30}, image_std=(0.1, 0.2, 0.3))
    made.save_pretrained(tmp_path)
    assert BlipImageProcessor.from_pretrained(tmp_path) == made


def test_processor_options():
    picture = Image.fromarray(record.picture(1, (10, 12)))
    plain = BlipImageProcessor(size={"height": 6, "width": 8})
    raw = plain(picture, do_resize=False, do_rescale=False, do_normalize=False)["pixel_values"]
    assert raw.shape == (1, 3, 6, 8)  # its middle
    assert np.array_equal(raw[0].transpose(1, 2, 0), np.asarray(picture)[2:8, 2:10])
    larger = plain(picture, do_resize=False, size={"height": 14, "width": 12})["pixel_values"]
    assert larger.shape == (1, 3, 14, 12)
    assert (larger[:, :, :2] == 0).all()
    out = torch.linspace(-2, 2, 24).reshape(1, 3, 2, 4)
    assert plain.postprocess(out, "pt").max() == 1
    assert plain.postprocess(out, "np").shape == (1, 2, 4, 3)
    assert plain.postprocess(out)[0].size == (4, 2)


SWAPPED = {"image_mean": (0.26862954, 0.26130258, 0.27577711)}
SWAPPED["image_std"] = (0.48145466, 0.4578275, 0.40821073)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (SWAPPED, "have changed places; those of CLIP are mean="),
        ({"image_std": (0.0, 1, 1)}, r"image_std=0.0 is not supported in entry \[0\]"),
        ({"image_mean": (0.5, 0.5)}, "image_mean=.*a list of 3"),
        ({"size": {"height": 0}}, "height=0 is not supported"),
        ({"size": "large"}, "size is 'large'"),
        ({"resample": 9}, "resample=9 is not supported"),
        ({"rescale_factor": float("nan")}, "rescale_factor=nan is not supported"),
    ],
)
def test_bad_processors(fields, message):
    with pytest.raises(InputError, match=message):
        BlipImageProcessor(**fields)


@pytest.mark.parametrize(
    ("picture", "error", "message"),
    [
        ([], InputError, "images is an empty list"),
        ("cat.png", InputTypeError, "images=str; allowed: a PIL image, or an array"),
        (np.full((4, 4, 3), np.nan), InputError, r"images has values outside \[0, 1\]"),
        (np.zeros((4, 4)), InputError, r"images has shape \(4, 4\); needed is"),
        (torch.zeros(4, 4, 3), InputError, r"images has shape \(4, 4, 3\); needed is \(3, height"),
    ],
)
def test_impossible_pictures(picture, error, message):
    with pytest.raises(error, match=message):
        BlipImageProcessor()(picture)


# -- the text encoder ------------------------------------------------------------------------------
def context(tower, **changes):
    tokens = record.WINDOW - record.QUERIES
    prompts = recorded_prompts()
    ids = recorded.tokenizer()(
        prompts, padding="max_length", truncation=True, max_length=tokens, return_tensors="pt"
    ).input_ids
    added = torch.from_numpy(recorded.arrays()["queries"])
    given = {"input_ids": ids, "ctx_embeddings": added, "ctx_begin_pos": [2, 2, 2]}
    return tower(**{**given, **changes})


def recorded_prompts():
    three = record.THREE
    pairs = zip(three["prompt"], three["target_subject_category"], strict=True)
    return [", ".join([f"a {target} {prompt.strip()}"] * 20) for prompt, target in pairs]


@torch.no_grad()
def test_subjects_between_the_tokens_of_a_text(tower):
    out = context(tower)
    assert np.abs(out.last_hidden_state.numpy() - recorded.arrays()["context"]).max() <= 1e-5
    plain = context(tower, ctx_embeddings=None, ctx_begin_pos=None)
    assert plain.last_hidden_state.shape[1] == record.WINDOW - record.QUERIES
    # The causal mask: what stands before the subject does not notice it.
    assert torch.equal(out.last_hidden_state[:, :2], plain.last_hidden_state[:, :2])
    assert (out.last_hidden_state[:, 7:] - plain.last_hidden_state[:, 2:]).abs().max() > 0.1


@torch.no_grad()
def test_the_pooled_output_is_that_of_the_end_token(tower):
    """diffusers takes the position that the end token has without the subject."""
    out = context(tower)
    last = record.WINDOW - 1  # the texts fill their window
    assert torch.equal(out.pooler_output, out.last_hidden_state[:, last])
    theirs = recorded.arrays()["context"][:, last - record.QUERIES]
    assert np.abs(out.pooler_output.numpy() - theirs).max() > 0.1


@torch.no_grad()
def test_rows_may_begin_elsewhere_and_padding_may_be_hidden(tower):
    mixed = context(tower, ctx_begin_pos=[2, 5, 0]).last_hidden_state
    for row, at in enumerate([2, 5, 0]):
        alone = context(tower, ctx_begin_pos=[at] * 3).last_hidden_state
        assert torch.allclose(mixed[row], alone[row], atol=1e-6)
    keep = torch.ones(3, record.WINDOW - record.QUERIES)
    keep[:, 20:] = 0
    whole = torch.ones(3, record.WINDOW)
    whole[:, 25:] = 0
    a, b = (context(tower, attention_mask=mask).last_hidden_state for mask in (keep, whole))
    assert torch.equal(a, b)
    assert (a - context(tower).last_hidden_state).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"ctx_begin_pos": [2]}, InputError, "ctx_begin_pos has 1 entries; input_ids has 3 rows"),
        ({"ctx_begin_pos": None}, InputTypeError, "ctx_begin_pos=None is not a list of positions"),
        ({"ctx_begin_pos": [2, 2, 99]}, InputError, "ctx_begin_pos=99 is too large"),
        ({"ctx_begin_pos": [2, 2, 1.5]}, InputTypeError, "ctx_begin_pos=1.5 is not a whole"),
        ({"ctx_embeddings": torch.zeros(3, 9, 24)}, InputError, "are more than the 33 positions"),
        ({"ctx_embeddings": torch.zeros(3, 5, 23)}, InputError, r"needed is \(3, any, 24\)"),
        ({"ctx_embeddings": torch.full((3, 5, 24), torch.nan)}, InputError, "holds NaN"),
        ({"input_ids": None}, InputError, "input_ids=None"),
        ({"position_ids": torch.zeros(1)}, InputError, "position_ids=.* is not used"),
    ],
)
def test_bad_contexts(tower, changes, error, message):
    with pytest.raises(error, match=message):
        context(tower, **changes)


@pytest.mark.parametrize(
    ("text", "image", "error", "message"),
    [
        (None, torch.zeros(1, 3, 28, 28), InputError, "text_input=None; give the category"),
        ("a", None, InputError, "image_input=None; give pictures"),
        ([], torch.zeros(1, 3, 28, 28), InputError, "text_input is an empty list"),
        (["a", "b"], torch.zeros(3, 3, 28, 28), InputError, "3 pictures; there are 2 categories"),
        ("a", torch.zeros(1, 3, 28, 27), InputError, r"needed is \(any, 3, 28, 28\)"),
        ("a " * 16, torch.zeros(1, 3, 28, 28), InputError, "has 16 tokens; allowed: at most 15"),
    ],
)
def test_bad_calls_of_the_encoder(encoder, text, image, error, message):
    with pytest.raises(error, match=message):
        encoder(text, image)
