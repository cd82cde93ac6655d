"""Prompts that nobody has to write: a caption of the picture, and many sentences with one concept.

For edits that need to know what a picture shows (DiffEdit, inversion):

    source = caption(photo, model, processor)                     # BLIP, or any callable
    fruit = average_context(pipe, sentences("bowl of fruits", model, tokenizer))
    pears = average_context(pipe, sentences("bowl of pears", model, tokenizer))
    pipe.generate_mask(photo, source_prompt_embeds=fruit, target_prompt_embeds=pears)

Models and their processors are those of the package `transformers` (`pip install
'underdraw[transformers]'`); this module imports nothing of it before it is asked to load one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from underdraw.backends.contract import Array
from underdraw.backends.seeds import global_seed
from underdraw.errors import InputError, InputTypeError, NotFoundError
from underdraw.pictures import modes
from underdraw.text.prompts import encode_prompts

Captioner = Callable[[Any], str]
"""From one PIL picture to what it shows."""
Writer = Callable[[str], list[str]]
"""From a concept to sentences with it."""

BLIP, FLAN_T5 = "Salesforce/blip-image-captioning-base", "google/flan-t5-large"
INSTRUCTION = "Write an English caption of at most 150 characters for a picture with {concept}."


def caption(
    image: Any,
    model: Any,
    processor: Any,
    *,
    beginning: str = "a photograph of",
    max_new_tokens: int = 64,
) -> str:
    """What a picture shows, by a captioning model such as BLIP (Li et al. 2022).

    Args:
        image: a PIL picture.
        model, processor: of transformers: `BlipForConditionalGeneration`, `BlipProcessor`, or
            others with the same calls.
        beginning: words that the caption goes on from; "" for none. They stay in it.

    Raises:
        InputTypeError: it is no picture.
        InputError: the model said nothing.
    """
    if not hasattr(image, "convert"):
        raise InputTypeError(f"image is {type(image).__name__}; a PIL picture is needed")
    texts = {"text": beginning} if beginning else {}
    inputs = processor(images=modes.plain("image", image), return_tensors="pt", **texts)
    inputs = inputs.to(device=model.device, dtype=model.dtype)
    ids = model.generate(**inputs, max_new_tokens=max_new_tokens)
    said = processor.batch_decode(ids, skip_special_tokens=True)[0].strip()
    if not said:
        raise InputError("image: the model has no words for it; write the prompt yourself")
    return said


def describe(image: Any, captioner: Captioner) -> str:
    """The caption of any captioner, after checking that it is one.

    Raises:
        InputTypeError: it cannot be called, or gives no text.
    """
    if not callable(captioner):
        raise InputTypeError(f"captioner={captioner!r:.80} cannot be called with a picture")
    said = captioner(image)
    if not isinstance(said, str) or not said.strip():
        raise InputTypeError(f"captioner gave {said!r:.80}; a text is needed")
    return said.strip()


def sentences(
    concept: str,
    model: Any,
    tokenizer: Any,
    *,
    count: int = 16,
    instruction: str = INSTRUCTION,
    temperature: float = 0.8,
    top_k: int = 10,
    max_new_tokens: int = 128,
    seed: int | None = None,
) -> list[str]:
    """Different sentences with one concept, by an instructed model such as Flan-T5 (Chung et al.
    2022). Their average says what they have in common, and little of how it was put.

    Args:
        concept: "a bowl of fruits".
        model, tokenizer: of transformers, of sequence-to-sequence models.
        count: how many; equal ones are kept, empty ones are not.
        instruction: what is asked, with `{concept}`.
        temperature, top_k: how freely the next word is drawn, from how many.
        seed: gives the same sentences again; None draws from PyTorch's stream.

    Raises:
        InputError: no concept, an instruction without it, or only empty sentences.
    """
    if not isinstance(concept, str) or not concept.strip():
        raise InputError(f"concept={concept!r} holds no word")
    if "{concept}" not in instruction:
        raise InputError(f"instruction={instruction!r:.80} does not hold {{concept}}")
    if count < 1:
        raise InputError(f"count={count} is too small; allowed: 1 or more")
    asked = tokenizer(instruction.replace("{concept}", concept.strip()), return_tensors="pt")
    with global_seed(seed):
        ids = model.generate(
            asked.input_ids.to(model.device),
            do_sample=True,
            num_return_sequences=count,
            temperature=temperature,
            top_k=top_k,
            max_new_tokens=max_new_tokens,
        )
    told = [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
    if not any(told):
        raise InputError(f"concept={concept!r}: the model wrote only empty sentences")
    return [text for text in told if text]


def average_context(pipe: Any, texts: Sequence[str]) -> Array:
    """The mean context of some sentences, `(1, tokens, width)`: give it as `prompt_embeds`.

    Brackets in the sentences are text, not weights. Long sentences make it several windows long;
    `pipe` needs a text encoder and a tokenizer.

    Raises:
        InputError, InputTypeError: no sentences, or something else than texts.
    """
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise InputTypeError(f"texts={texts!r:.80} is not a list of sentences")
    if not texts:
        raise InputError("texts is empty; at least one sentence is needed")
    plain = [re.sub(r"([()\[\]\\])", r"\\\1", text).replace("BREAK", "break") for text in texts]
    contexts, _ = encode_prompts(pipe.text_encoder, pipe.tokenizer, plain)
    return pipe.text_encoder._framework.operations.mean(contexts, (0,))


def load_captioner(name: str = BLIP, **options: Any) -> Captioner:
    """A captioner from a folder or Hub id of a BLIP model; `options` go to `from_pretrained`."""
    kinds = _transformers("BlipForConditionalGeneration", "BlipProcessor")
    model, processor = (kind.from_pretrained(name, **options) for kind in kinds)
    return partial(caption, model=model.eval(), processor=processor)


def load_writer(name: str = FLAN_T5, **options: Any) -> Writer:
    """A writer of sentences from a folder or Hub id of a sequence-to-sequence model."""
    kinds = _transformers("AutoModelForSeq2SeqLM", "AutoTokenizer")
    model, tokenizer = (kind.from_pretrained(name, **options) for kind in kinds)
    return partial(sentences, model=model.eval(), tokenizer=tokenizer)


def _transformers(*names: str) -> list[Any]:
    try:
        import transformers
    except ImportError as error:
        raise NotFoundError(
            "automatic prompts need the package transformers: pip install 'underdraw[transformers]'"
        ) from error
    return [getattr(transformers, name) for name in names]
