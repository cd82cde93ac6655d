"""Subjects on the command line: what pictures show, in other pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from underdraw.cli import embedded
from underdraw.cli.files import read_plain
from underdraw.errors import InputError, InputTypeError, NotFoundError
from underdraw.schema import Length, Schema, read, within

SUBJECT, AS, WEIGHTS = "--subject", "--as", "--subject-weights"
USAGE = (
    f"{SUBJECT} takes a picture and what it shows, or the file of a tuned subject and what that "
    f'is: {SUBJECT} photo.png "dog", then perhaps {AS} '
)
PARTS = 2
FOLDER = "qformer"
"""Of a pipeline's folder that has subject weights."""
TUNED = ".safetensors"
"""Of files of tuned subjects."""

Words = Annotated[str, Length(1, 1000)]
Picture = Annotated[str, Length(1, 4096)] | Mapping[str, Any]
"""A path, or what a record holds of a picture."""
Subjects = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Entry(Schema):
    """A subject as JSON keeps it."""

    image: Picture
    category: Words
    word: Words | None = None

    @property
    def words(self) -> str:
        """What names it in a prompt."""
        return self.word or self.category

    @property
    def tuned(self) -> str | None:
        """The file of a tuned subject; None for a picture."""
        return _tuned(self.image)


def read_subjects(options: list[str] | None) -> list[dict[str, Any]] | None:
    """The subjects of a command as JSON keeps them, checked; None without any.

    Raises:
        InputError, InputTypeError, NotFoundError: one of them is none.
    """
    if not options:
        return None
    found = [_option(text) for text in options]
    controls_of(found)
    return found


def _option(text: str) -> dict[str, Any]:
    from underdraw.formats import json_text

    parts = json_text.parse(text, SUBJECT, fault=InputError) if text.startswith("[") else [text]
    if len(parts) not in (2, 3) or not all(part.strip() for part in parts):
        raise InputError(f'{USAGE}"corgi"; got {" ".join(map(repr, parts))}')
    entry = {"image": str(Path(parts[0]).resolve()), "category": parts[1]}
    return entry | ({"word": parts[2]} if len(parts) == 3 else {})


def controls_of(subjects: Subjects, prompts: Sequence[str] | None = None) -> list[Any]:
    """The controls of subjects; with `prompts` of those which one of these names."""
    from underdraw.controls.subject import Subject

    made = []
    for i, entry in enumerate(subjects):
        where = f"subject {i + 1}"
        with within(where):
            known = read(Entry, entry)
        if prompts is not None and not _named(known, prompts):
            continue
        if known.tuned is not None:
            _check_tuned(known.tuned, where)
            shown, encoder = None, known.tuned
        else:
            shown, encoder = embedded.picture(known.image, where, SUBJECT), None
        try:
            made.append(Subject(shown, known.category, known.words, encoder=encoder))
        except (InputError, InputTypeError) as error:
            raise type(error)(f"{where}: {error}") from error
    return made


def _tuned(image: Any) -> str | None:
    return image if isinstance(image, str) and image.lower().endswith(TUNED) else None


def _check_tuned(path: str, where: str) -> None:
    from underdraw.models.overlay import is_tuned

    if not Path(path).is_file():
        raise NotFoundError(f"{where}: there is no file {path!r}")
    if not is_tuned(path):
        raise InputError(f"{where}: {path} holds no tuned subject; {SUBJECT} takes a picture, too")


def attach(pipe: Any, subjects: Subjects) -> None:
    """Load the tuned subjects among these, each by the name of its file."""
    for path in dict.fromkeys(_tuned(entry["image"]) for entry in subjects):
        if path is not None:
            pipe.load_subject(path, name=path)


def check_words(subjects: Subjects, prompts: Sequence[str]) -> None:
    """Raise an InputError for a subject that no prompt names."""
    for entry in subjects:
        known = read(Entry, entry)
        if not _named(known, prompts):
            option = f"{AS} {known.word!r}" if known.word else f"{SUBJECT} ... {known.category!r}"
            raise InputError(
                f"{option}: no PROMPT has these words, before which the subject stands"
            )


def _named(entry: Entry, prompts: Sequence[str]) -> bool:
    words = " ".join(entry.words.lower().split())
    return any(words in " ".join(prompt.lower().split()) for prompt in prompts)


def with_pictures(subjects: Subjects) -> list[dict[str, Any]]:
    """Subjects that hold their pictures instead of naming files, for the record of what is made."""
    made = []
    for entry in subjects:
        image = entry["image"]
        if isinstance(image, str) and _tuned(image) is None:
            image = embedded.kept(read_plain(Path(image)), Path(image).name)
        made.append({**entry, "image": image})
    return made


def check_recorded(path: Path, subjects: Sequence[Any]) -> None:
    """Raise an InputError where subjects of a record are damaged, or name files: pictures choose
    none."""
    with within(f"{path}: its subjects"):
        for entry in subjects:
            if isinstance(entry, Mapping) and (file := _tuned(entry.get("image"))) is not None:
                raise InputError(f"one of them was tuned ({file}); give {SUBJECT} anew")
            if not isinstance(entry, Mapping) or not isinstance(entry.get("image"), Mapping):
                raise InputError(f"one of them is damaged: {entry!r:.80}")
        controls_of(subjects)


def files_of(subjects: Subjects) -> list[str]:
    """Files of their pictures."""
    return [entry["image"] for entry in subjects if isinstance(entry["image"], str)]


def need_weights(subjects: Subjects) -> bool:
    """Whether one of these is shown by a picture."""
    return any(_tuned(entry["image"]) is None for entry in subjects)


def check_weights(model: str, given: str | None) -> None:
    """Raise an InputError where there are no subject weights, a NotFoundError where those given are
    nowhere."""
    from underdraw.cli.loading import is_single_file
    from underdraw.weights import hub

    if given is not None:
        if not Path(given).is_file():
            hub.resolve(given, weights=False)
    elif is_single_file(model) or not (hub.resolve(model, weights=False) / FOLDER).is_dir():
        raise InputError(
            f"{model} has no subject weights, which {SUBJECT} needs; name some with {WEIGHTS}: a "
            "folder or Hub id of BLIP-Diffusion, or the original's files"
        )
