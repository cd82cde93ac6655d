"""Learning a word from pictures (textual inversion, Gal et al. 2022), and writing its vectors."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from underdraw import checks
from underdraw.errors import InputError
from underdraw.text.learned import FIRST
from underdraw.training.adapters.learners import Word, WordLearner
from underdraw.training.adapters.pictures import TrainingPictures
from underdraw.training.adapters.running import fitting, learn, learning
from underdraw.training.adapters.task import PicturesConfig, PictureTask, check_pipeline
from underdraw.training.config import TrainingConfig
from underdraw.weights.lora.writing import SPELLINGS
from underdraw.weights.textual_inversion import write_inversion

RUN = TrainingConfig(1000, 4, learning_rate=5e-3, warmup=20, weight_decay=0.0, ema=0.0)
"""If nothing else is said."""
FILE = "learned_embeds.safetensors"
THINGS = (
    "a photo of a {}",
    "a picture of a {}",
    "a close-up photo of a {}",
    "a photo of the {}",
    "a bright photo of a {}",
    "a cropped photo of a {}",
    "there is a {} in this picture",
    "a {}",
)
STYLES = (
    "a picture in the style of {}",
    "a drawing in the style of {}",
    "a photo in the style of {}",
    "a close-up in the style of {}",
    "a bright picture in the style of {}",
    "{} style",
)


def saying(word: str, style: bool = False) -> list[str]:
    """What may be said of a picture that has no caption: of a thing, or of a style."""
    return [text.format(word) for text in (STYLES if style else THINGS)]


def train_textual_inversion(
    pipe: Any,
    pictures: TrainingPictures,
    folder: str | Path,
    word: Word,
    looking: PicturesConfig | None = None,
    training: TrainingConfig | None = None,
    *,
    spelling: str = "diffusers",
    resume: bool = True,
    progress: bool | None = None,
) -> tuple[np.ndarray, Path]:
    """Learn a word beside a pipeline; its vectors, float32 `(vectors, width)`, and their file in
    `folder`.

        word = Word("<my-cat>", vectors=4, initialiser="cat")
        _, path = train_textual_inversion(
            pipe, read_folder("cats", saying("<my-cat>")), "runs/cat", word
        )
        pipe.load_textual_inversion(path)

    Args:
        pipe: any pipeline of ours on PyTorch; it stays as it is.
        pictures: with the word in every caption.
        looking: how pictures are looked at, and what previews draw into `folder / "samples"`.
        training: steps, batch and rate; by default 1000 steps of 4.
        spelling: of the file: "diffusers", which names the word inside, or "kohya" (sd-scripts,
            A1111, ComfyUI), where the file's own name is the word.

    Raises:
        InputError, InputTypeError: an argument cannot work: a caption lacks the word, or the
            pipeline knows it already. Or `folder` is of another task.
        loop.Stopped: interrupted; the same call goes on with the same bits.
    """
    checks.choice("spelling", spelling, SPELLINGS)
    check_pipeline(pipe)
    if word.text.lower() in (one.lower() for one in pipe.parts.learned):
        raise InputError(f"word={word.text!r} is a learned word of pipe already; unload it before")
    run = fitting(pipe, training or RUN)
    learner = WordLearner(pipe.parts, word)
    for i in range(len(pictures)):
        lacking = [one for one in pictures.texts(i) if not learner.learned.pattern.search(one)]
        if lacking:
            raise InputError(f"captions[{i}]={lacking[0]!r:.80} lacks the word {word.text!r}")
        for text in pictures.texts(i):
            if int((learner.ids([text]) <= FIRST).sum()) < word.vectors:
                raise InputError(f"captions[{i}]={text!r:.80} is too long: its end is not read")
    with learning(learner, folder, resume):
        task = PictureTask(pipe, pictures, learner, looking, None, run.seed, progress)
        with learn(task, run, folder, resume, progress).applied():
            made = learner.result()
        path = Path(folder) / (
            FILE if spelling == "diffusers" else f"{file_name(word.text)}.safetensors"
        )
        write_inversion(made, path, word.text, spelling)
        return made, path


def file_name(word: str) -> str:
    """A word as the name of a file."""
    return re.sub(r"[^\w.+-]+", "-", word).strip("-.") or "word"
