"""Phrases and pictures as the features that grounding layers were trained with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from underdraw.backends.contract import Array
from underdraw.controls.subject import Subject
from underdraw.controls.subject_run import Subjects
from underdraw.errors import InputError
from underdraw.networks import clip, image_projection
from underdraw.text.known import warn_of_unknown
from underdraw.text.prompts import encode


def phrase_features(
    components: Any, phrases: Sequence[str], subjects: Sequence[Subject | None] = ()
) -> Array:
    """The text encoder's pooled output of each phrase, `(phrases, width)`.

    Args:
        subjects: of each phrase the one that it names, or None.

    Raises:
        InputError: the pipeline has no text encoder, or a phrase is longer than its window.
    """
    encoder, tokenizer = components.text_encoder, components.tokenizer
    lacking = [name for name in ("text_encoder", "tokenizer") if getattr(components, name) is None]
    if lacking:
        raise InputError(f"{' and '.join(lacking)}=None; the phrases of boxes are encoded by them")
    rows = [tokenizer([phrase]).input_ids[0] for phrase in phrases]
    most = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
    for phrase, row in zip(phrases, rows, strict=True):
        if len(row) > most:
            raise InputError(
                f"phrase={phrase!r:.60} has {len(row) - 2} tokens; allowed: at most {most - 2}"
            )
    warn_of_unknown(phrases, components.words)
    if any(subject is not None for subject in subjects):
        return _with_subjects(components, phrases, subjects)
    # Whole windows, as prompts have: of shorter ones the bits would depend on the other phrases.
    ids = np.full((len(rows), most), tokenizer.pad_token_id, np.int64)
    for row, known in zip(ids, rows, strict=True):
        row[: len(known)] = known
    # Tokens see only those before them, so the pooled end token does not notice the padding.
    framework = encoder._framework
    with components.borrow(encoder):
        ids = framework.array(ids, device=framework.device_of(encoder))
        return components.ask(clip.TEXT, encoder, ids).pooled


def _with_subjects(
    components: Any, phrases: Sequence[str], subjects: Sequence[Subject | None]
) -> Array:
    """The same of phrases that hold the tokens of subjects."""
    parts = tuple(
        replace(subject, prompts=(number,))
        for number, subject in enumerate(subjects)
        if subject is not None
    )
    encoder = components.text_encoder
    with components.borrow(encoder):
        return encode(
            encoder,
            components.tokenizer,
            phrases,
            plain=True,
            ask=components.ask,
            controls=[Subjects(parts)],
            components=components,
        ).pooled


def image_features(components: Any, pictures: Sequence[Any]) -> Array:
    """CLIP's embedding of each picture in the space of phrase features, `(pictures, width)`.

    Projected by a matrix of its own (`image_project`) and brought to length 1, float32.

    Raises:
        InputError: the pipeline lacks one of the networks.
    """
    encoder, project, processor = sight = components.sight
    lacking = [name for name, part in sight._asdict().items() if part is None]
    if lacking:
        raise InputError(
            f"{' and '.join(lacking)}=None; images in boxes need CLIP's image encoder, its "
            "processor and the projection into the space of phrases (image_project)"
        )
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
