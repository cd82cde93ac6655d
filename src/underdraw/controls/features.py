"""Phrases and pictures as the features that grounding layers were trained with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from underdraw.backends.contract import Array
from underdraw.controls.control import tokens_with
from underdraw.controls.subject import Subject
from underdraw.controls.subject_run import Subjects
from underdraw.errors import InputError
from underdraw.networks import clip, image_projection
from underdraw.text.known import warn_of_unknown
from underdraw.text.learned import Learned, LearnedTokenizer
from underdraw.text.prompts import encode, read_texts
from underdraw.text.words import Tokens


def check_width(found: int, width: int) -> None:
    """Raise an InputError where features have another width than grounding weights take."""
    if found != width:
        raise InputError(
            f"features of width {found}; the grounding weights take {width}: they were trained "
            "with another text or image encoder"
        )


def check_phrases(
    components: Any,
    phrases: Sequence[str],
    subjects: Sequence[Subject | None] = (),
    width: int | None = None,
) -> None:
    """Raise an InputError where the pipeline has no text encoder, its features have another width
    than grounding weights take, or a phrase is longer than its window."""
    lacking = [name for name in ("text_encoder", "tokenizer") if getattr(components, name) is None]
    if lacking:
        raise InputError(f"{' and '.join(lacking)}=None; the phrases of boxes are encoded by them")
    encoder, tokenizer = components.text_encoder, components.tokenizer
    if width is not None:
        check_width(encoder.config.hidden_size, width)
    most = _window(components)
    for phrase in phrases:
        count = len(tokenizer(phrase, add_special_tokens=False).input_ids) + 2  # start and end
        if count > most:
            raise InputError(
                f"phrase={phrase!r:.60} has {count - 2} tokens; allowed: at most {most - 2}"
            )
    acting = _acting(subjects)
    if acting:
        known = tuple(phrases)
        ids = read_texts(
            encoder, tokenizer, known, plain=True, controls=acting, components=components
        ).ids
        tokens_with(acting, components, Tokens(known, len(known), ids, tokenizer))


def phrase_features(
    components: Any, phrases: Sequence[str], subjects: Sequence[Subject | None] = ()
) -> Array:
    """The text encoder's pooled output of each phrase, `(phrases, width)`; `check_phrases` tells
    what it needs.

    Args:
        subjects: of each phrase the one that it names, or None.
    """
    encoder, tokenizer = components.text_encoder, components.tokenizer
    warn_of_unknown(phrases, components.words)
    learned = tokenizer.learned if isinstance(tokenizer, LearnedTokenizer) else None
    if (acting := _acting(subjects)) or learned is not None:
        return _as_prompts(components, phrases, acting, learned)
    rows = [tokenizer([phrase]).input_ids[0] for phrase in phrases]
    most = _window(components)
    # Whole windows, as prompts have: of shorter ones the bits would depend on the other phrases.
    ids = np.full((len(rows), most), tokenizer.pad_token_id, np.int64)
    for row, known in zip(ids, rows, strict=True):
        row[: len(known)] = known
    # Tokens see only those before them, so the pooled end token does not notice the padding.
    framework = encoder._framework
    with components.borrow(encoder):
        ids = framework.array(ids, device=framework.device_of(encoder))
        return components.ask(clip.TEXT, encoder, ids).pooled


def _window(components: Any) -> int:
    """The most tokens of a phrase, start and end included."""
    config = components.text_encoder.config
    return min(components.tokenizer.model_max_length, config.max_position_embeddings)


def _acting(subjects: Sequence[Subject | None]) -> list[Subjects]:
    """The subjects of phrases, as a control of these."""
    parts = tuple(
        replace(subject, prompts=(number,))
        for number, subject in enumerate(subjects)
        if subject is not None
    )
    return [Subjects(parts)] if parts else []


def _as_prompts(
    components: Any, phrases: Sequence[str], acting: list[Subjects], learned: Learned | None
) -> Array:
    """The same of phrases that may hold the tokens of subjects, and learned words."""
    encoder = components.text_encoder
    with components.borrow(encoder):
        return encode(
            encoder,
            components.tokenizer,
            phrases,
            plain=True,
            ask=components.ask,
            controls=acting,
            components=components,
            learned=learned,
        ).pooled


def check_sight(components: Any, width: int | None = None) -> None:
    """Raise an InputError where the pipeline lacks what makes features of pictures in boxes, or
    these have another width than grounding weights take."""
    sight = components.sight
    lacking = [name for name, part in sight._asdict().items() if part is None]
    if lacking:
        raise InputError(
            f"{' and '.join(lacking)}=None; images in boxes need CLIP's image encoder, its "
            "processor and the projection into the space of phrases (image_project)"
        )
    if getattr(sight.image_project, "project", None) is not None:  # another's tells by itself
        made = sight.image_encoder.config.projection_dim
        taken = sight.image_project.config.hidden_size
        if made != taken:
            raise InputError(
                f"image_encoder: features of width {made}; image_project takes {taken}"
            )
        if width is not None:
            check_width(taken, width)


def image_features(components: Any, pictures: Sequence[Any]) -> Array:
    """CLIP's embedding of each picture in the space of phrase features, `(pictures, width)`.

    Projected by a matrix of its own (`image_project`) and brought to length 1, float32.
    `check_sight` tells what is needed.
    """
    encoder, project, processor = components.sight
    pixels = processor(images=list(pictures), return_tensors="np")["pixel_values"]
    framework = encoder._framework
    nn = framework.operations
    with components.borrow(encoder):
        pixels = framework.array(np.asarray(pixels), dtype=encoder.dtype, device=encoder.device)
        features = encoder.encode(pixels, components.ask)[1]
    if (layer := getattr(project, "project", None)) is not None:  # else they are as phrases are
        features = nn.cast(features, framework.leaf(layer))
        features = components.ask(image_projection.PROJECT, project, features)
    else:
        features = project(features)
    features = nn.float32(features)
    return features / nn.norm(features)
