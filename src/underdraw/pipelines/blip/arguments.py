"""What the BLIP-Diffusion pipelines are told beside other pipelines: subjects, and prompts about
them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from underdraw import checks
from underdraw.controls.subject import Subject
from underdraw.errors import InputError, InputTypeError
from underdraw.pictures.reading import as_picture
from underdraw.text.weighting import parse_weights

MOST_REPETITIONS = 1000
"""Of a prompt; the window of the text encoder holds 20 of the shortest."""


@dataclass(frozen=True)
class Told:
    """The arguments of a call about its subjects, checked and as many as there are prompts."""

    prompts: list[str]
    references: list[Any]
    """Of each prompt its pictures: a list."""
    sources: list[str]
    targets: list[str]
    strength: float
    repetitions: int

    @property
    def texts(self) -> list[str]:
        """The prompts as the text encoder reads them."""
        return build_prompts(self.prompts, self.targets, self.strength, self.repetitions)

    def subjects(self, begin: int) -> tuple[Subject, ...]:
        """A control for each subject, whose tokens begin at this position of the window."""
        pairs = list(zip(self.references, self.sources, strict=True))
        first = pairs[0]
        if all(pictures is first[0] and source == first[1] for pictures, source in pairs):
            return (Subject(first[0], first[1], word=self.targets[0], at=begin),)
        return tuple(
            Subject(pictures, source, word=target, at=begin, prompts=(i,))
            for i, ((pictures, source), target) in enumerate(zip(pairs, self.targets, strict=True))
        )

    def recorded(self, count: int, own: Mapping[str, Any]) -> Callable[[int], dict[str, Any]]:
        """Of `count` images the arguments that make one of them again, by its number."""

        def of_image(index: int) -> dict[str, Any]:
            at = index * len(self.prompts) // count
            return {
                **own,
                "prompt": self.prompts[at],
                "source_subject_category": self.sources[at],
                "target_subject_category": self.targets[at],
                "prompt_strength": self.strength,
                "prompt_reps": self.repetitions,
                "reference_image": self.references[at],
            }

        return of_image


def read_subjects(
    components: Any,
    prompt: Any,
    reference_image: Any,
    source: Any,
    target: Any,
    strength: Any,
    repetitions: Any,
) -> Told:
    """Check the arguments of a call about its subjects.

    Raises:
        InputError, InputTypeError: one of them cannot work.
    """
    prompts = checks.texts("prompt", prompt)
    count = len(prompts)
    sources = _each("source_subject_category", source, count)
    targets = _each("target_subject_category", target, count)
    strength = checks.number("prompt_strength", strength, 0.0, MOST_REPETITIONS)
    repetitions = checks.whole("prompt_reps", repetitions, 1, MOST_REPETITIONS)
    if int(strength * repetitions) < 1:
        raise InputError(
            f"prompt_strength={strength} of prompt_reps={repetitions} repetitions leaves none; "
            f"allowed: {1 / repetitions:.3g} or more"
        )
    references = read_references(reference_image, count)
    network = components.qformer
    network.read(sources, "source_subject_category")
    check_weights(components, "prompt", prompts)
    check_weights(components, "target_subject_category", targets)
    return Told(prompts, references, sources, targets, strength, repetitions)


def build_prompts(
    prompts: Sequence[str], targets: Sequence[str], strength: float = 1.0, repetitions: int = 20
) -> list[str]:
    """ "a [target] [prompt]" of each, again and again, which amplifies it, as the original does."""
    times = int(strength * repetitions)
    pairs = zip(prompts, targets, strict=True)
    return [", ".join([f"a {target} {prompt.strip()}"] * times) for prompt, target in pairs]


def check_weights(components: Any, name: str, texts: Sequence[str]) -> None:
    """Raise an InputError where brackets of a text do not make weights."""
    if components.compat != "diffusers":
        for text in texts:
            parse_weights(text, name)


def read_negative(components: Any, neg_prompt: Any, negative_prompt: Any) -> Any:
    """The negative prompt, under diffusers' name or that of other pipelines; None without one."""
    neg_prompt = None if isinstance(neg_prompt, str) and not neg_prompt else neg_prompt
    if neg_prompt is None:
        return negative_prompt
    if negative_prompt is not None:
        raise InputError("neg_prompt and negative_prompt are both given; only one of them can be")
    check_weights(components, "neg_prompt", checks.texts("neg_prompt", neg_prompt))
    return neg_prompt


def _each(name: str, value: Any, count: int) -> list[str]:
    """A text for each prompt."""
    if value is None:
        raise InputError(f"{name}=None; give what the subject is, such as 'dog'")
    texts = checks.texts(name, value)
    if any(not text.strip() for text in texts):
        raise InputError(f"{name}={checks.shown(value)} is empty; give what the subject is")
    if len(texts) not in (1, count):
        raise InputError(f"{name} has {len(texts)} entries; there are {count} prompts")
    return texts * count if len(texts) == 1 else texts


def read_references(given: Any, count: int) -> list[Any]:
    """Pictures of the subject of each prompt."""
    name = "reference_image"
    if given is None:
        raise InputError(f"{name}=None; give a picture of the subject")
    if not isinstance(given, list | tuple):
        four = len(getattr(given, "shape", ())) == 4
        given = [given[i] for i in range(given.shape[0])] if four else [given]
    if not given:
        raise InputError(f"{name} is an empty list; give at least one")
    if count == 1 and not any(isinstance(one, list | tuple) for one in given):
        return [_pictures(name, given)]  # several of the one subject
    if len(given) not in (1, count):
        raise InputError(f"{name} has {len(given)} entries; there are {count} prompts")
    read = [_pictures(name, one if isinstance(one, list | tuple) else [one]) for one in given]
    return read * count if len(read) == 1 else read


def _pictures(name: str, pictures: Sequence[Any]) -> list[Any]:
    if not pictures:
        raise InputError(f"{name} holds an empty list; give at least one picture of each subject")
    if any(isinstance(one, list | tuple) for one in pictures):
        raise InputTypeError(f"{name} holds lists in lists of pictures; allowed: one for a prompt")
    return [as_picture(name, one) for one in pictures]
