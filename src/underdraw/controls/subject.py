"""`Subject`: what pictures show is put into the prompt as tokens of its own (Li et al. 2023,
"BLIP-Diffusion", section 3.2).

The subject encoder makes a few tokens (16, as published) of a picture and the category of what is
to be seen in it. They stand in the prompt before the words that name the subject, "a [tokens] dog
in the snow", and the text encoder reads both. Nothing else changes, so subjects go with everything
that acts on a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from underdraw import checks
from underdraw.checks import shown
from underdraw.controls.control import Control, Part
from underdraw.controls.strength import ALWAYS, Strength, as_strength
from underdraw.controls.subject_run import Subjects
from underdraw.errors import InputError, InputTypeError
from underdraw.pictures.reading import as_picture

MOST_PICTURES = 64
"""Of one subject."""
ROUNDING = 1e-4
"""Of shares that add up to 1."""
LARGEST_SHARE = 100.0
"""Beyond 1, and below 0, shares lead past a subject."""


@dataclass(frozen=True, eq=False)
class Subject(Part):
    """One subject, shown by a picture or several.

        pipe("a dog in the snow", controls=[Subject(photo, "dog")])

    The pipeline needs subject weights, `load_subject`. Several subjects are several controls.

    Args:
        image: shows it: a PIL picture, or an array, of numpy `(height, width, 3)`, of a framework
            `(3, height, width)`, uint8 or in [0, 1]; or a list of them, whose embeddings are
            averaged. None where `embedding` is given, or `encoder` names a tuned subject.
        category: what is to be seen there, in a word or two; or one for each picture.
        word: the words of the prompt before which its tokens stand, in each window of tokens once;
            by default the category. Several subjects of the same words take the first, second, ...
        prompts: numbers of the call's prompts that it is for, counted from 0. None: all that have
            the words.
        strength: over the run, see `Strength`: where it is off, the prompt is read without the
            subject; between, the context lies in between.
        shares: how much each picture counts; they add up to 1. With pictures of two subjects this
            is the way from one to the other (`between`).
        at: stand at this position of a prompt's first window instead of before words; the start
            token is at 0.
        encoder: which subject weights, where several are attached. Of a subject that was tuned
            (`training.subject_tuning`) the name it was attached by; it needs neither pictures nor
            an embedding, but a category.
        embedding: tokens `(1 or n, tokens, width)` instead of pictures, as
            `get_query_embeddings` gives them; n of them are averaged by `shares`.

    Raises:
        InputError, InputTypeError: an argument cannot work; what depends on the prompts and the
            weights is checked when the call begins.
    """

    of_words = True

    image: Any = None
    category: str | Sequence[str] = ""
    word: str | None = None
    prompts: tuple[int, ...] | None = None
    strength: Strength | tuple[float, float, float] = ALWAYS
    shares: Sequence[float] | None = None
    at: int | None = None
    encoder: str | None = None
    embedding: Any = None

    @staticmethod
    def whole(parts: Sequence[Any]) -> Control:
        """The subjects of a run."""
        return Subjects(tuple(parts))

    def __post_init__(self) -> None:
        def keep(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        given = (self.image is not None) + (self.embedding is not None)
        if given != 1 and (given or self.encoder is None):
            raise InputError(
                "Subject: give image or embedding, one of them, or encoder= of a tuned subject"
            )
        keep("strength", as_strength(self.strength))
        if not given:
            count = 1
            keep("category", _categories(self.category or self.word or "", 1))
        elif self.embedding is None:
            pictures = self.image if isinstance(self.image, list | tuple) else [self.image]
            count = self._count("image", len(pictures))
            keep("image", tuple(as_picture("Subject(image)", one) for one in pictures))
            keep("category", _categories(self.category, count))
        else:
            shape = getattr(self.embedding, "shape", ())
            if len(shape) != 3 or 0 in shape:
                raise InputTypeError(
                    f"Subject(embedding) is {shown(self.embedding)}; needed is an array (1 or n, "
                    "tokens, width)"
                )
            count = self._count("embedding", shape[0])
            keep("category", _categories(self.category or self.word or "-", 1))
        keep("shares", _shares(self.shares, count))
        if self.at is not None:
            checks.whole("Subject(at)", self.at, 1)
        if self.word is None:
            if len(set(self.category)) > 1 and self.at is None:
                raise InputError(
                    f"Subject(category={shown(self.category)}): there are several, so say before "
                    "which words of the prompt it stands: word="
                )
            keep("word", self.category[0])
        checks.texts("Subject(word)", _text("word", self.word))
        if self.prompts is not None:
            given = (self.prompts,) if isinstance(self.prompts, int) else self.prompts
            numbers = checks.sequence("Subject(prompts)", given, "numbers of prompts")
            keep("prompts", tuple(checks.whole("Subject(prompts)", one, 0) for one in numbers))
        if self.encoder is not None:
            _text("encoder", self.encoder)

    @staticmethod
    def _count(name: str, count: int) -> int:
        if not 1 <= count <= MOST_PICTURES:
            raise InputError(
                f"Subject({name}) holds {count} entries; allowed: 1 .. {MOST_PICTURES}"
            )
        return count

    @property
    def name(self) -> str:
        """The words it stands before."""
        assert self.word is not None  # set when it was made
        return self.word


def between(one: Subject, other: Subject, share: float) -> Subject:
    """A subject on the way from one (`share` 0) to another (1), as `one` in all else.

    Raises:
        InputError, InputTypeError: they are not given as pictures, or of different weights.
    """
    for given in (one, other):
        if not isinstance(given, Subject) or given.embedding is not None:
            raise InputTypeError(f"between({shown(given)}): allowed: a Subject of pictures")
    if one.encoder != other.encoder:
        raise InputError(
            f"between: encoder={one.encoder!r} and {other.encoder!r}; allowed: the same"
        )
    share = checks.number("share", share, -LARGEST_SHARE, LARGEST_SHARE)
    return replace(
        one,
        image=(*one.image, *other.image),
        category=(*one.category, *other.category),
        shares=(
            *(s * (1 - share) for s in one.shares or ()),
            *(s * share for s in other.shares or ()),
        ),
    )


# -- checking arguments ----------------------------------------------------------------------------
def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputTypeError(f"Subject({name}={shown(value)}) is not a text")
    return value


def _categories(given: Any, count: int) -> tuple[str, ...]:
    """One category for each picture."""
    listed = [given] if isinstance(given, str) else given
    listed = checks.sequence("Subject(category)", listed, "texts")
    made = [_text("category", one) for one in listed]
    checks.texts("Subject(category)", made)
    if len(made) not in (1, count):
        raise InputError(
            f"Subject(category) has {len(made)} entries; there are {count} pictures: allowed: 1 or "
            "as many"
        )
    return tuple(made * count if len(made) == 1 else made)


def _shares(given: Any, count: int) -> tuple[float, ...]:
    """How much each picture counts."""
    if given is None:
        return (1 / count,) * count
    shares = checks.numbers("Subject(shares)", given)
    if len(shares) != count:
        raise InputError(f"Subject(shares) has {len(shares)} entries; there are {count} pictures")
    if abs(sum(shares) - 1) > ROUNDING or max(map(abs, shares)) > LARGEST_SHARE:
        raise InputError(f"Subject(shares)={shown(shares)} must add up to 1")
    return shares
