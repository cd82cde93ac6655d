"""Training on a few pictures of one subject with pictures of its class beside them (DreamBooth,
Ruiz et al. 2023): a LoRA, or the whole UNet."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from tqdm import tqdm

from underdraw import checks
from underdraw.errors import InputError
from underdraw.formats import json_text
from underdraw.formats.opening import is_regular
from underdraw.formats.writing import writing_file
from underdraw.schema import Length, Range, Schema
from underdraw.training.adapters.learners import LoraConfig, LoraLearner, WholeLearner
from underdraw.training.adapters.lora import lora_path
from underdraw.training.adapters.pictures import SUFFIXES, TrainingPictures
from underdraw.training.adapters.running import fitting, learn, learning
from underdraw.training.adapters.task import (
    PicturesConfig,
    PictureTask,
    Prior,
    check_pipeline,
    drawing,
)
from underdraw.training.config import TrainingConfig
from underdraw.training.loop import Stopped
from underdraw.weights.lora.reading import LoraWeights
from underdraw.weights.lora.writing import SPELLINGS, write_lora

RUN = TrainingConfig(800, 4, learning_rate=1e-4, warmup=20, ema=0.0)
"""For a LoRA, if nothing else is said."""
WHOLE_RUN = TrainingConfig(800, 4, learning_rate=2e-6, warmup=20, ema=0.0)
"""For the whole UNet."""
CLASS, FACTS, MODEL = "class", "class.json", "model"


@dataclass(frozen=True)
class WholeConfig(Schema):
    """All of the UNet is trained; with `text_encoder` all of the text encoder, too."""

    owner = "config of a training"

    text_encoder: bool = False


@dataclass(frozen=True)
class PriorConfig(Schema):
    """Pictures of the class that the subject is of, so that the checkpoint goes on drawing others.

    `prompt` says the class alone, such as "a dog". `count` pictures are drawn with it, by the
    pipeline as it is, where `folder` (by default "class" beside the training) holds fewer;
    pictures that are there are kept, whoever made them. `weight` is of their part of the loss.
    `steps`, `guidance` and `batch` are of drawing them.
    """

    owner = "prior"

    prompt: Annotated[str, Length(1)]
    count: Annotated[int, Range(1, 100_000)] = 100
    weight: Annotated[float, Range(0, 1000)] = 1.0
    folder: str | None = None
    steps: Annotated[int, Range(1, 1000)] = 25
    guidance: Annotated[float, Range(0, 1000)] = 7.5
    batch: Annotated[int, Range(1, 256)] = 4


def train_dreambooth(
    pipe: Any,
    pictures: TrainingPictures,
    folder: str | Path,
    config: LoraConfig | WholeConfig | None = None,
    prior: PriorConfig | None = None,
    looking: PicturesConfig | None = None,
    training: TrainingConfig | None = None,
    *,
    spelling: str = "diffusers",
    resume: bool = True,
    progress: bool | None = None,
) -> tuple[LoraWeights | Any, Path]:
    """Learn one subject from a few pictures. A LoRA and its file in `folder`; or, where the whole
    UNet is trained, a pipeline and its folder.

        made, path = train_dreambooth(
            pipe, read_folder("my-dog", "a photo of sks dog"), "runs/dog",
            prior=PriorConfig("a photo of a dog"),
        )

    Args:
        pipe: any pipeline of ours on PyTorch; it stays as it is.
        pictures: with a rare word and the class in their captions.
        config: a LoRA's (the default), or `WholeConfig()`.
        prior: class pictures to keep what the checkpoint knows; None for none.
        looking: how pictures are looked at, and what previews draw into `folder / "samples"`.
        training: by default 800 steps of 4, of which half are class pictures.
        spelling: of a LoRA's file, "diffusers" or "kohya".

    Raises:
        InputError, InputTypeError: an argument cannot work, or `folder` is of another task.
        loop.Stopped: interrupted; the same call goes on with the same bits.
    """
    checks.choice("spelling", spelling, SPELLINGS)
    check_pipeline(pipe)
    whole = isinstance(config, WholeConfig)
    run = fitting(pipe, training or (WHOLE_RUN if whole else RUN))
    looking = looking or PicturesConfig()
    if isinstance(config, WholeConfig):
        learner = WholeLearner(pipe.parts, config.text_encoder)
    else:
        learner = LoraLearner(pipe.parts, config or LoraConfig(), run.seed)
    with learning(learner, folder, resume):
        beside = None
        if prior is not None:
            known = class_pictures(pipe, prior, looking, folder, run.seed, progress)
            beside = Prior(known, prior.weight)
        task = PictureTask(pipe, pictures, learner, looking, beside, run.seed, progress)
        average = learn(task, run, folder, resume, progress)
        if isinstance(learner, LoraLearner):
            with average.applied():
                made = learner.result()
            path = lora_path(folder, spelling)
            write_lora(made, path, spelling)
            return made, path
        path = Path(folder) / MODEL
        with average.applied():
            tuned = learner.pipeline(pipe)
            for network in learner.modules.values():
                network.eval()
            # Of the captions nobody says what words they have.
            tuned.advice = replace(tuned.advice, words=())
            tuned.save_pretrained(path)
        return tuned, path


def class_pictures(
    pipe: Any,
    prior: PriorConfig,
    looking: PicturesConfig,
    folder: str | Path,
    seed: int = 0,
    progress: bool | None = None,
) -> TrainingPictures:
    """The pictures of a class: those that are there, and as many as are missing, drawn and kept.
    Picture `i` has the seed `seed + i`, so an interrupted call goes on with the same ones.

    Raises:
        InputError: the folder holds pictures that another prompt was drawn with, or the pipeline's
            safety checker lets none through.
        loop.Stopped: interrupted.
    """
    place = Path(prior.folder) if prior.folder is not None else Path(folder) / CLASS
    if place.exists() and not place.is_dir():
        raise InputError(f"{place}: pictures of the class are in a folder, and this is none")
    place.mkdir(parents=True, exist_ok=True)
    facts = {"prompt": prior.prompt, "steps": prior.steps, "guidance": prior.guidance, "seed": seed}
    if is_regular(place / FACTS):
        told = json_text.read_object(place / FACTS)
        if told != facts:
            raise InputError(
                f"{place} holds pictures drawn with {told}; asked for is {facts}. Take another "
                "folder, or remove it"
            )
    missing = prior.count - len(_there(place))
    if missing > 0:
        with writing_file(place / FACTS) as file:
            file.write(json.dumps(facts).encode())
        bar = tqdm(
            total=missing,
            unit="picture",
            desc=prior.prompt,
            disable=None if progress is None else not progress,
        )
        with bar:
            try:
                for _ in _drawn(pipe, prior, looking, place, seed):
                    bar.update()
            except KeyboardInterrupt:
                raise Stopped(
                    f"stopped after {len(_there(place))} of {prior.count} class pictures, which "
                    f"are in {place}; the same command goes on from there"
                ) from None
    found = _there(place)
    if not found:
        raise InputError(f"prior: the safety checker of pipe let no picture of {prior.prompt!r} by")
    return TrainingPictures(found[: prior.count], [prior.prompt] * len(found[: prior.count]))


def _there(place: Path) -> list[Path]:
    return sorted(one for one in place.iterdir() if one.suffix.lower() in SUFFIXES)


def _drawn(
    pipe: Any, prior: PriorConfig, looking: PicturesConfig, place: Path, seed: int
) -> Iterator[Path]:
    """Draws and writes what is missing."""
    draw, number = drawing(pipe, looking), 0
    while (missing := prior.count - len(_there(place))) > 0 and number < 2 * prior.count:
        numbers: list[int] = []
        while len(numbers) < min(missing, prior.batch):
            if not (place / f"{number:06d}.png").exists():
                numbers.append(number)
            number += 1
        made = draw(
            [prior.prompt] * len(numbers),
            num_inference_steps=prior.steps,
            guidance_scale=prior.guidance,
            seed=[seed + i for i in numbers],
        )
        flags = made.nsfw_content_detected or [False] * len(numbers)
        for i, picture, flagged in zip(numbers, made.images, flags, strict=True):
            if flagged:  # the checker has blackened it
                continue
            with writing_file(place / f"{i:06d}.png") as file:
                picture.save(file, "PNG")
            yield place / f"{i:06d}.png"
