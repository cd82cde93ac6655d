"""The stages of training the scenes family (`scenes_recipe.ScenesRecipe`).

`train_stage(name, folder)` runs one stage on a working folder; a stage that was interrupted goes on
where it was. In order: "renders", "text", "autoencoder", "latents", "denoiser", "clip", "export";
"decoder", which can be run after "latents" and before "patterns" to sharpen the pictures; and
"grounding", which trains the layers for boxes beside the denoiser and the image tower; "maps" and
"structure", which train a ControlNet on maps of all kinds, and "edges" and "depth", which go on
with it on one; "subjects", which renders things with textures of their own, "patterns", which
teaches them to the autoencoder while the latents of scenes stay what they were, and "alignment" and
"subject", which train the subject encoder on them. A recipe with a `start` goes on from a family
that is there already, and needs no stage whose networks that has.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from underdraw.errors import InputError, NotFoundError
from underdraw.formats.arrays import read_array
from underdraw.models import (
    CLIPTextModel,
    ControlNetModel,
)
from underdraw.pipelines.components.registry import LIBRARIES
from underdraw.training import checkpoints
from underdraw.training.autoencoder import (
    AutoencoderTask,
    Known,
    encode_all,
    scaling_factor,
)
from underdraw.training.clip import ContrastiveTask
from underdraw.training.config import shorter
from underdraw.training.data import FirstOf, render_cache
from underdraw.training.grounding import GroundingTask
from underdraw.training.lanes import lanes_for
from underdraw.training.loop import train
from underdraw.training.maps import KINDS, map_all
from underdraw.training.parallel import alone
from underdraw.training.scenes_recipe import ScenesRecipe
from underdraw.training.spoken import Spoken, read_captions
from underdraw.training.structure import StructureTask, louder
from underdraw.training.subject_encoder import AlignmentTask
from underdraw.training.subject_scenes import (
    TRUTH as SUBJECT_TRUTH,
    SubjectExamples,
    render_subjects,
)
from underdraw.training.subjects import SubjectTask
from underdraw.training.text_to_image import TextToImageTask, save_family
from underdraw.training.text_tower import TextTowerTask, initialise, scenes_tokenizer
from underdraw.training.truth import save_heads
from underdraw.training.views import render_views
from underdraw.training.workshop import (
    FACTS,
    LATENTS,
    SPOKEN,
    SUBJECT_LATENTS,
    Workshop,
)
from underdraw.weights.atomic import writing_folder
from underdraw.weights.folders import MODEL_INDEX, read_model_index
from underdraw.weights.save import write_json

Run = Callable[["Workshop", "float | None", "dict[str, Any]"], None]
"""What runs a stage: where, for how many minutes, and on which device with what progress."""


def train_stage(
    stage: str,
    folder: str | Path,
    recipe: ScenesRecipe | None = None,
    *,
    minutes: float | None = None,
    device: str = "cpu",
    progress: bool | None = None,
    arriving: int | None = None,
) -> None:
    """Run one stage of a recipe in its working folder, or go on with it.

    Args:
        arriving: how many scenes there will be, where another process still renders them; the
            stage "autoencoder" begins with those that are there.

    Raises:
        InputError: no stage of that name, "decoder" behind "patterns", or another run is at this
            stage in the folder.
        NotFoundError: an earlier stage is missing.
        loop.Stopped: interrupted; a checkpoint was saved.
    """
    if stage not in STAGES:
        raise InputError(f"stage={stage!r} is not known; allowed: {', '.join(STAGES)}")
    shop = Workshop(recipe or ScenesRecipe(), Path(folder), arriving)
    with alone(folder, stage):
        STAGES[stage](shop, minutes, {"device": device, "progress": progress})


MEANS = (
    "autoencoder",
    "decoder",
    "patterns",
    "denoiser",
    "grounding",
    "structure",
    *KINDS,
    "subject",
)
"""Stages whose losses are means over their examples, which threads can share."""


def _train(shop: Workshop, stage: str, task: Any, minutes: float | None, where: dict) -> None:
    config = shorter(shop.recipe.run(stage), minutes=minutes)
    if not config.threads and where["device"] == "cpu" and stage in MEANS:
        config = replace(config, threads=lanes_for(config))
    train(task, config, shop.folder / stage, **where)


def _on(device: str, family: dict[str, Any]) -> dict[str, Any]:
    """The family with its networks, trained or not, on a device."""
    return {
        name: part.to(device) if isinstance(part, torch.nn.Module) else part
        for name, part in family.items()
    }


def workers_for(pictures: int) -> int:
    """Processes that render; to start one takes as long as some hundred pictures."""
    return max(1, min(os.cpu_count() or 1, pictures // 256))


def _renders(shop: Workshop, minutes: float | None, where: dict) -> None:
    render_the_views(shop, where["progress"])
    render_the_scenes(shop, where["progress"])


def render_the_scenes(shop: Workshop, bar: bool | None, seconds: float | None = None) -> None:
    """The scenes of a recipe, or as many as can be rendered in `seconds`."""
    recipe = shop.recipe
    how = {"seed": recipe.seed, "workers": workers_for(recipe.scenes), "progress": bar}
    render_cache(shop.folder / "renders", recipe.scenes, seconds=seconds, **how)


def render_the_views(shop: Workshop, bar: bool | None) -> None:
    """The pictures of single things of a recipe."""
    recipe = shop.recipe
    how = {"seed": recipe.seed, "workers": workers_for(recipe.views), "progress": bar}
    render_views(shop.folder / "views", recipe.views, **how)


def render_the_subjects(shop: Workshop, bar: bool | None) -> None:
    """The things with textures of their own of a recipe."""
    recipe = shop.recipe
    how = {"seed": recipe.seed + 6, "workers": workers_for(recipe.subjects), "progress": bar}
    render_subjects(shop.folder / "subjects", recipe.subjects, **how)


def make_the_maps(shop: Workshop, bar: bool | None) -> None:
    """Maps of the scenes of a recipe, of all kinds."""
    (shop.folder / "maps").mkdir(exist_ok=True)
    examples = shop.examples
    count = _mapped(shop)
    for kind in KINDS:
        place = shop.folder / "maps" / f"{kind}.npy"
        map_all(examples, kind, place, bar, count=count, workers=workers_for(count))


def _mapped(shop: Workshop) -> int:
    """How many scenes get maps."""
    return min(len(shop.examples), shop.recipe.mapped or len(shop.examples))


def _text(shop: Workshop, minutes: float | None, where: dict) -> None:
    examples, place = shop.examples, shop.folder / "text" / "tokenizer"
    if not place.exists():
        rng = np.random.default_rng(shop.recipe.seed)
        indices = np.arange(min(len(examples), 30000))
        scenes_tokenizer(examples.captions(indices, rng)).save_pretrained(place)
    tokenizer = shop.tokenizer()
    tower: Any = CLIPTextModel(shop.text_config(tokenizer))
    initialise(tower, shop.recipe.seed)
    _train(shop, "text", TextTowerTask(tower, tokenizer, examples), minutes, where)


def _autoencoder(shop: Workshop, minutes: float | None, where: dict) -> None:
    examples = shop.pictures
    vae = shop.vae(trained=False)
    task = AutoencoderTask(vae, examples, shop.recipe.autoencoder, examples.shown())
    _train(shop, "autoencoder", task, minutes, where)


def _decoder(shop: Workshop, minutes: float | None, where: dict) -> None:
    if (shop.folder / "patterns" / checkpoints.NAME).exists():
        raise InputError(
            f"stage='decoder': {shop.folder / 'patterns'} went on from what it would change; run "
            "it before the stage 'patterns'"
        )
    examples = shop.examples
    config = replace(shop.recipe.autoencoder, crop=None, kl=0.0, freeze_encoder=True)
    task = AutoencoderTask(shop.vae(), examples, config, examples.shown())
    _train(shop, "decoder", task, minutes, where)


def _latents(shop: Workshop, minutes: float | None, where: dict) -> None:
    with suppress(FileNotFoundError):
        (shop.folder / FACTS).unlink()  # it is written anew, whatever is in it
    latents = _encoded(shop, shop.examples, LATENTS, where)
    if shop.recipe.measures:
        write_json(shop.folder / FACTS, {"scaling_factor": round(scaling_factor(latents), 5)})


def _encoded(shop: Workshop, examples: Any, name: str, where: dict) -> np.ndarray:
    """Latents of pictures, in a file of that name."""
    vae = shop.vae().to(where["device"]).eval()
    batch = 32 if vae.device.type == "cpu" else 512
    return encode_all(vae, examples, shop.folder / name, batch, progress=where["progress"])


def _denoiser(shop: Workshop, minutes: float | None, where: dict) -> None:
    latents = read_array(shop._needs("latents", LATENTS))
    family = _on(where["device"], shop.family(trained=False))
    config, heads = shop.recipe.denoiser, shop.heads() if shop.recipe.denoiser.truth else None
    spoken = _spoken(shop, family, where) if config.captions else None
    made: Any = TextToImageTask(
        *(family, shop.examples, config, latents), spoken=spoken, heads=heads
    )
    _train(shop, "denoiser", made, minutes, where)


def _spoken(shop: Workshop, family: dict[str, Any], where: dict) -> Spoken:
    """Captions as the text tower reads them, which is done here and now where they are missing."""
    place, examples = shop.folder / SPOKEN, shop.examples
    read_captions(
        *(family["text_encoder"], family["tokenizer"], examples, place),
        shop.recipe.denoiser.captions,
        seed=shop.recipe.seed,
        progress=where["progress"],
    )
    return Spoken(place, len(examples))


def _clip(shop: Workshop, minutes: float | None, where: dict) -> None:
    examples, text = shop.examples, shop.text_encoder()
    image = shop.image_encoder(trained=False)
    held, rng = np.arange(-examples.held_back, 0), np.random.default_rng(0)
    shown = examples.images(held), examples.captions(held, rng)
    task = ContrastiveTask(
        image,
        text.to(where["device"]),
        shop.tokenizer(),
        examples,
        shop.recipe.clip,
        shown,
        views=shop.views if shop.recipe.clip.views else None,
    )
    _train(shop, "clip", task, minutes, where)


def _grounding(shop: Workshop, minutes: float | None, where: dict) -> None:
    latents = read_array(shop._needs("latents", LATENTS))
    family = _on(where["device"], shop.family())
    if "image_encoder" not in family:
        raise NotFoundError(f"{shop.folder / 'clip'} is not there; run the stage 'clip' first")
    part, heads = shop.grounding(trained=False), shop.heads()
    config = replace(shop.recipe.grounding, truth=shop.recipe.grounding.truth if heads else 0.0)
    examples, views = shop.examples, shop.views if config.views else None
    if heads is not None:
        heads.to(where["device"])

    def another(index: int, box: np.ndarray, rng: np.random.Generator, size: int) -> Any:
        return views and views.of(examples.thing(index, box), rng, size)

    task = GroundingTask(part, family, examples, config, latents, heads=heads, another=another)
    _train(shop, "grounding", task, minutes, where)


def _maps(shop: Workshop, minutes: float | None, where: dict) -> None:
    make_the_maps(shop, where["progress"])


def _structure(stage: str, kinds: Sequence[str]) -> Run:
    def run(shop: Workshop, minutes: float | None, where: dict) -> None:
        count = _mapped(shop)
        latents = read_array(shop._needs("latents", LATENTS))[:count]
        family = _on(where["device"], shop.family())
        net = shop.structure(stage, trained=False)
        for network in (net, family["unet"]):
            network.to(memory_format=torch.channels_last)  # a tenth faster on CPUs
        maps = {kind: shop.maps(kind) for kind in kinds}
        config = shop.recipe.structure
        if stage != "structure" and shop.reads(stage):
            config = replace(config, reading=0.0)
        examples = FirstOf(shop.examples, count)
        task = StructureTask(net, family, examples, maps, config, latents)
        _train(shop, stage, task, minutes, where)

    return run


def _subjects(shop: Workshop, minutes: float | None, where: dict) -> None:
    render_the_subjects(shop, where["progress"])


def _patterns(shop: Workshop, minutes: float | None, where: dict) -> None:
    latents = read_array(shop._needs("latents", LATENTS))
    pictures = SubjectExamples(shop.subjects)
    config = replace(shop.recipe.autoencoder, crop=None, local=1.0)
    known = Known(shop.examples, latents)
    task = AutoencoderTask(shop.vae(), pictures, config, pictures.shown(), known=known)
    for stale in shop.folder.glob(f"*{Path(SUBJECT_LATENTS).stem}*.npy"):  # and what is half done
        stale.unlink()
    _train(shop, "patterns", task, minutes, where)


def _alignment(shop: Workshop, minutes: float | None, where: dict) -> None:
    family = shop.family()
    encoder = shop.subject_encoder(family, "")
    task = AlignmentTask(encoder, _on(where["device"], family), shop.subjects)
    _train(shop, "alignment", task, minutes, where)


def _subject(shop: Workshop, minutes: float | None, where: dict) -> None:
    began = time.monotonic()
    latents = _encoded(shop, shop.subjects, SUBJECT_LATENTS, where)
    if minutes is not None:
        minutes = max(0.01, minutes - (time.monotonic() - began) / 60)
    family = shop.family()
    encoder, config = shop.subject_encoder(family, "alignment"), shop.recipe.subject
    if (
        encoder.overlay.unet
    ):  # trained before, beside heads that nobody kept; new ones would undo it
        config = replace(config, truth=0.0)
    family = _on(where["device"], family)
    family["unet"].to(memory_format=torch.channels_last)  # a tenth faster on CPUs
    how: dict[str, Any] = {"kinds": SUBJECT_TRUTH, "begin": encoder.overlay.unet}
    task = SubjectTask(encoder, family, shop.subjects, config, latents, **how)
    _train(shop, "subject", task, minutes, where)


def _export(shop: Workshop, minutes: float | None, where: dict) -> None:
    with writing_folder(shop.folder / "export") as place:
        save_family(shop.family(), shop.recipe.denoiser.objective, place)
        if (heads := shop.heads()) is not None:
            save_heads(heads, place)
        if (shop.folder / "grounding" / checkpoints.NAME).exists():
            shop.grounding().half().save_pretrained(place / "grounding")
        for kind in KINDS:
            if (shop.folder / kind / checkpoints.NAME).exists():
                started = shop._started(ControlNetModel, f"structure/{kind}", optional=True)
                gain = shop.recipe.gain if started is None else 1.0  # which has it already
                louder(shop.structure(kind), gain).half().save_pretrained(
                    place / "structure" / kind
                )
        if (shop.folder / "subject" / checkpoints.NAME).exists():
            save_encoder(shop.subject_encoder(shop.family()), place)


def save_encoder(encoder: Any, place: Path) -> None:
    """Write a subject encoder into the folder of a family, which `BlipDiffusionPipeline` loads,
    too, from then on."""
    encoder.half().save_pretrained(place / "qformer")
    encoder.image_processor.save_pretrained(place / "image_processor")
    listed = {
        name: [LIBRARIES[name], type(part).__name__]
        for name, part in (("qformer", encoder), ("image_processor", encoder.image_processor))
    }
    write_json(place / MODEL_INDEX, {**read_model_index(place), **listed})


STAGES: dict[str, Run] = {
    "renders": _renders,
    "text": _text,
    "autoencoder": _autoencoder,
    "latents": _latents,
    "denoiser": _denoiser,
    "decoder": _decoder,
    "clip": _clip,
    "grounding": _grounding,
    "maps": _maps,
    "structure": _structure("structure", tuple(KINDS)),
    **{kind: _structure(kind, (kind,)) for kind in KINDS},
    "subjects": _subjects,
    "patterns": _patterns,
    "alignment": _alignment,
    "subject": _subject,
    "export": _export,
}
