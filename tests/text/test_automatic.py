"""Captions and sentences by small random models of transformers; any callable serves instead."""

import pytest
import torch
from PIL import Image
from pipelines import tiny

from underdraw.errors import InputError, InputTypeError
from underdraw.text.automatic import average_context, caption, describe, sentences

transformers = pytest.importorskip("transformers")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"a photograph of red cube on the".split()]
PICTURE = Image.new("RGB", (40, 24), (200, 30, 30))


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blip")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = transformers.BertTokenizer(str(folder / "vocab.txt"))
    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    small["num_attention_heads"] = 2
    text = {"vocab_size": len(WORDS), "encoder_hidden_size": 16, "max_position_embeddings": 64}
    ends = {"bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    config = transformers.BlipConfig(
        text_config={**small, **text, **ends},
        vision_config={**small, "image_size": 32, "patch_size": 16},
        projection_dim=8,
    )
    torch.manual_seed(0)
    model = transformers.BlipForConditionalGeneration(config).eval()
    pictures = transformers.BlipImageProcessor(size={"height": 32, "width": 32})
    return model, transformers.BlipProcessor(pictures, tokenizer)


@pytest.fixture(scope="module")
def t5():
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS[5:]])}
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=len(words),
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
    )
    return transformers.T5ForConditionalGeneration(config).eval(), tokenizer


def test_a_caption_goes_on_from_its_beginning(blip):
    said = caption(PICTURE, *blip, max_new_tokens=5)
    assert said.startswith("a photograph of") and set(said.split()) <= set(WORDS)
    assert caption(PICTURE.convert("L"), *blip, max_new_tokens=5)
    model, processor = blip
    inputs = processor(images=PICTURE, text="a photograph of", return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=5)
    assert said == processor.batch_decode(ids, skip_special_tokens=True)[0].strip()
    with pytest.raises(InputTypeError, match="image is str; a PIL picture"):
        caption("photo.png", *blip)


def test_a_model_without_words(blip):
    model, processor = blip

    class Silent:
        device, dtype = model.device, model.dtype

        def generate(self, **inputs):
            return torch.tensor([[2, 3]])

    with pytest.raises(InputError, match="has no words for it"):
        caption(PICTURE, Silent(), processor)


def test_any_callable_describes():
    assert describe(PICTURE, lambda image: f" {image.width} wide ") == "40 wide"
    for wrong, message in (("blip", "cannot be called"), (lambda image: None, "gave None")):
        with pytest.raises(InputTypeError, match=message):
            describe(PICTURE, wrong)


def test_sentences_come_again_with_their_seed(t5):
    before = torch.get_rng_state()
    first = sentences("a red cube", *t5, count=6, max_new_tokens=8, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert first == sentences("a red cube", *t5, count=6, max_new_tokens=8, seed=1)
    assert len(set(first)) > 1 and 1 <= len(first) <= 6 and all(first)
    assert first != sentences("a red cube", *t5, count=6, max_new_tokens=8, seed=2)


def test_what_cannot_be_asked(t5):
    for arguments, message in (
        ({"concept": " "}, "concept=' ' holds no word"),
        ({"concept": "a", "instruction": "Write!"}, "does not hold {concept}"),
        ({"concept": "a", "count": 0}, "count=0 is too small"),
    ):
        with pytest.raises(InputError, match=message):
            sentences(**arguments, model=t5[0], tokenizer=t5[1])


def test_the_average_of_contexts():
    pipe = tiny.pipeline()
    told = ["a red sphere", "a red cube left of a green sphere", "red"]
    found = average_context(pipe, told)
    each = torch.cat([pipe.encode_prompt(text)[0] for text in told])
    torch.testing.assert_close(found, each.mean(0, keepdim=True))
    # One repeated is itself; a pipeline takes it where it takes prompts.
    one = average_context(pipe, ["a red sphere"] * 3)
    made = tiny.run(pipe, None, prompt_embeds=one)
    torch.testing.assert_close(made, tiny.run(pipe, "a red sphere"), rtol=1e-4, atol=1e-3)


def test_signs_in_sentences_are_text():
    pipe = tiny.pipeline()
    told = "a (red) [cube] BREAK \\ sphere :2)"
    plain = pipe.tokenizer(
        told.replace("BREAK", "break"), padding="max_length", return_tensors="pt"
    )
    with torch.no_grad():
        expected = pipe.text_encoder(plain.input_ids)[0]
    torch.testing.assert_close(average_context(pipe, [told]), expected)
    long = average_context(pipe, [" ".join(["red"] * 100), "a cube"])
    assert long.shape == (1, 154, tiny.WIDTH)


def test_what_is_no_list_of_sentences():
    pipe = tiny.pipeline()
    for wrong, error, message in (
        ("a", InputTypeError, "texts='a' is not a list"),
        ([1], InputTypeError, "is not a list of sentences"),
        ([], InputError, "texts is empty"),
    ):
        with pytest.raises(error, match=message):
            average_context(pipe, wrong)
