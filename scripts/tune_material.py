"""Teach the scenes family a material it has never met: `python scripts/tune_material.py FOLDER`.

Renders 20 pictures of things of a material that no training has seen, trains a LoRA on them (or,
with `--word`, the vectors of a word), draws held-out captions before and after, and prints what the
evaluator says beside its upper bound, real renders: captions with the material, and captions
without it, of which nothing is to change. What was done before an interruption is kept.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from underdraw import StableDiffusionPipeline, scenes
from underdraw.evaluation import (
    evaluate_text_to_image,
    held_out_captions,
    real_renders,
    score_captions,
)
from underdraw.evaluation.materials import MaterialEvaluator
from underdraw.evaluation.rates import Rate, table
from underdraw.pictures.writing import to_bytes
from underdraw.scenes import Caption, Scene
from underdraw.scenes.draw import contact_sheet
from underdraw.scenes.vocabulary import MATERIALS, UNSEEN_MATERIALS
from underdraw.training.adapters.learners import LoraConfig, Word
from underdraw.training.adapters.lora import train_lora
from underdraw.training.adapters.pictures import TrainingPictures
from underdraw.training.adapters.task import PicturesConfig
from underdraw.training.adapters.words import train_textual_inversion
from underdraw.training.config import TrainingConfig

SEED, ASKED = 90_127_013, 90_127_014
MIX = {1: 1, 2: 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--word", action="store_true", help="a textual inversion, not a LoRA")
    parser.add_argument("--material", choices=UNSEEN_MATERIALS, default=UNSEEN_MATERIALS[0])
    parser.add_argument("--pictures", type=int, default=20)
    parser.add_argument("--captions", type=int, default=32, help="of either sort")
    parser.add_argument("--drawn", type=int, default=15, help="solver steps of a picture")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--vectors", type=int, default=4)
    told = parser.parse_args()
    pipe = StableDiffusionPipeline.from_pretrained("underdraw/scenes", dtype="float32")
    pipe.set_progress_bar_config(disable=True)
    pipe.advice = replace(pipe.advice, words=())
    guidance = pipe.advice.guidance_scale
    asked = {
        "with": list(captions_with(told.material, told.captions)),
        "without": held_out_captions(told.captions, mix=MIX),
    }

    shown = examples(told.material, told.pictures)
    told.folder.mkdir(parents=True, exist_ok=True)
    contact_sheet([*shown.pictures], 10).save(told.folder / "pictures.png")
    began, used = time.monotonic(), time.process_time()
    path = learn(pipe, shown, told)
    took = {"minutes": (time.monotonic() - began) / 60, "cpu": (time.process_time() - used) / 60}
    print(f"training: {took['minutes']:.1f} minutes, {took['cpu']:.1f} of one core", flush=True)
    judge = MaterialEvaluator((*MATERIALS, told.material))

    def scores(when: str, sort: str) -> Any:
        place = told.folder / f"{when}-{sort}"
        how = {"folder": place, "evaluator": judge, "guidance_scale": guidance, "progress": False}
        how |= {"steps": told.drawn}
        return evaluate_text_to_image(pipe, asked[sort], **how)

    before = {sort: scores("before", sort) for sort in asked}
    if told.word:
        pipe.load_textual_inversion(path)
    else:
        pipe.load_lora_weights(path)
    after = {sort: scores("after", sort) for sort in asked}
    real = score_captions(real_renders(asked["with"]), asked["with"], evaluator=judge)
    bound = _told(real.judgements, told.material)
    text = written(told.material, bound, before, after)
    print(text, flush=True)
    (told.folder / "table.txt").write_text(text + "\n")
    (told.folder / "took.json").write_text(json.dumps({**vars(told), **took}, default=str))


def learn(pipe: Any, shown: TrainingPictures, told: argparse.Namespace) -> Path:
    looking = PicturesConfig(flip=False, buckets=False, drop_caption=0.1)
    rate = told.learning_rate or (5e-3 if told.word else 1e-3)
    run = TrainingConfig(
        told.steps, told.batch, learning_rate=rate, warmup=10, ema=0.0, precision="float32"
    )
    where = told.folder / "training"
    if told.word:
        word = Word(told.material, told.vectors, "rubber metal")
        return train_textual_inversion(pipe, shown, where, word, looking, run)[1]
    config = LoraConfig(told.rank, text_encoder=True)
    return train_lora(pipe, shown, where, config, looking, run)[1]


def of_material(scene: Scene, material: str) -> Scene:
    """The same with its first thing of a material."""
    first, *others = scene.objects
    return replace(scene, objects=(replace(first, material=material), *others))


def examples(material: str, count: int) -> TrainingPictures:
    """Scenes of one thing and of two, of which one is of the material, with captions that say so;
    ten captions each, which say more or less of all else."""
    pictures, texts = [], []
    for index in range(count):
        rng = scenes.scene_rng(SEED, index)
        scene = of_material(scenes.sample_scene(rng, 1 + index % 2), material)
        pictures.append(to_bytes(scenes.render(scene).image))
        told = (one.text for one in naming(scene, material, rng))
        texts.append([text for text, _ in zip(told, range(10), strict=False)])
    return TrainingPictures(pictures, texts)


def captions_with(material: str, count: int) -> Iterator[Caption]:
    """Of scenes that no training has seen, each with one thing of the material."""
    for index in range(count):
        rng = scenes.scene_rng(ASKED, index, "held_out")
        scene = of_material(scenes.sample_scene(rng, 1 + index % 2, "held_out"), material)
        yield next(naming(scene, material, rng))


def naming(scene: Scene, material: str, rng: np.random.Generator) -> Iterator[Caption]:
    """Captions of a scene that name all its things and the material."""
    while True:
        made = scenes.caption(scene, rng)
        if material in made.text and len(made.mentions) == len(scene.objects):
            yield made


def written(material: str, bound: Rate, before: dict[str, Any], after: dict[str, Any]) -> str:
    """What the evaluator says."""
    rows: list[tuple[Any, ...]] = []
    words = {
        "mention": "colour and shape, each thing",
        "relation": "relation, of two both right",
        "number": "number of things",
        "size": "size, where told and found",
        "material": "material, where told and found",
    }
    for sort in before:
        named = [(before[sort], "scores"), (after[sort], "scores"), (after[sort], "upper_bound")]
        if sort == "with":
            told = [_told(one.judgements, material) for one, _ in named[:2]]
            rows.append((f"looks {material}, where its shape was found", *told, bound))
        for name, text in words.items():
            if sort == "with" and name == "material":
                continue
            cells = [getattr(getattr(one, part), name) for one, part in named]
            rows.append((f"{text} ({sort} {material})", *cells))
    return table(rows, ("", "before", "after", "upper bound (real renders)"))


def _told(judgements: Any, material: str) -> Rate:
    """Of the things that a caption calls by the material, and of which one of that shape is there,
    those that look it; whatever their colour, which the evaluator reads badly in things that are
    white in part."""
    looks = []
    for judged in judgements:
        for mention in judged.caption.mentions:
            alike = [one.material for one in judged.detections if one.shape == mention.shape]
            if mention.material == material and alike:
                looks.append(material in alike)
    return Rate.count(looks)


if __name__ == "__main__":
    main()
