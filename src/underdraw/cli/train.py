"""`underdraw train`: the scenes family from nothing, or a checkpoint on pictures of one's own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from underdraw.cli import options, outputs, progress, train_family, train_subject
from underdraw.cli.failures import tell
from underdraw.cli.train_structure import train_structure
from underdraw.cli.trained import check_model, schedule, side_of
from underdraw.errors import InputError, NotFoundError

if TYPE_CHECKING:
    from underdraw.training.loop import TrainingConfig

SCENES_DATA = "scenes"


class Recipe(str, Enum):
    """What can be trained."""

    autoencoder = "autoencoder"
    text_to_image = "text-to-image"
    clip = "clip"
    text = "text"
    decoder = "decoder"
    grounding = "grounding"
    structure = "structure"
    subject = "subject"
    subject_finetune = "subject-finetune"
    family = "family"


# Stages of the scenes family that a recipe needs, in order; its own are the last or all.
STAGES = {
    Recipe.text: ("renders", "text"),
    Recipe.autoencoder: ("renders", "autoencoder"),
    Recipe.text_to_image: ("renders", "text", "autoencoder", "latents", "denoiser"),
    Recipe.decoder: ("renders", "autoencoder", "latents", "decoder"),
    Recipe.clip: ("renders", "text", "autoencoder", "latents", "denoiser", "clip"),
    Recipe.grounding: (
        *("renders", "text", "autoencoder", "latents", "denoiser", "clip", "grounding"),
    ),
    Recipe.structure: (
        *("renders", "text", "autoencoder", "latents", "denoiser", "maps"),
        *("structure", "edges", "depth"),
    ),
    Recipe.subject: (
        *("renders", "text", "autoencoder", "latents", "denoiser", "clip"),
        *("subjects", "patterns", "alignment", "subject"),
    ),
    Recipe.family: (
        *("renders", "text", "autoencoder", "latents", "denoiser", "decoder", "clip", "grounding"),
        *("maps", "structure", "edges", "depth", "subjects", "patterns", "alignment", "subject"),
        "export",
    ),
}
OWN = {Recipe.structure: 3, Recipe.subject: 4, Recipe.family: len(STAGES[Recipe.family])}
"""How many stages, from the last on, are a recipe's own, where it is not one."""


@dataclass(frozen=True)
class Boxes:
    """What the command line says of boxes."""

    coordinates: str = "relative"
    annotations: Path | None = None
    captions: Path | None = None
    inpainting: bool = False


def train(
    recipe: Annotated[Recipe, typer.Argument(help="What to train.")],
    out: options.OutFolder,
    data: Annotated[
        str,
        typer.Option(
            help="scenes, or a folder of pictures with captions in metadata.jsonl "
            "(grounding: with boxes, there or beside each picture; structure: with maps, there)."
        ),
    ] = SCENES_DATA,
    model: Annotated[
        str | None, typer.Option(help="The checkpoint to begin with, if --data is a folder.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps.")] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="End each stage after this time at the latest.")
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Examples of a step.")] = None,
    accumulate: Annotated[
        int | None, typer.Option(min=1, help="Parts in which a step is computed.")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="The highest.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="auto, float32, bfloat16 or float16.")
    ] = None,
    seed: options.Seed = None,
    size: Annotated[
        int | None, typer.Option(min=8, help="Of the pictures of a folder, in pixels.")
    ] = None,
    scenes: Annotated[int | None, typer.Option(min=65, help="How many scenes to render.")] = None,
    text: Annotated[
        bool,
        typer.Option(
            "--text", help="Also train the text encoder (text-to-image, subject-finetune)."
        ),
    ] = False,
    coordinates: Annotated[
        str, typer.Option(help="Of boxes (grounding): relative, in 0 .. 1, or pixels.")
    ] = "relative",
    annotations: Annotated[
        Path | None, typer.Option(help="COCO instances for the folder (grounding).")
    ] = None,
    captions: Annotated[
        Path | None, typer.Option(help="COCO captions for the folder (grounding).")
    ] = None,
    inpainting: Annotated[
        bool, typer.Option("--inpainting", help="Train to fill holes, too (grounding).")
    ] = False,
    maps: Annotated[
        str | None,
        typer.Option(
            help="What is made of the pictures of a folder, in place of maps that metadata.jsonl "
            "names: edges or soft-edges (structure)."
        ),
    ] = None,
    category: Annotated[
        str | None, typer.Option(help="What the subject of the folder is (subject-finetune).")
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(
            min=1, help="Train low-rank differences instead of the UNet (subject-finetune)."
        ),
    ] = None,
    embedding: Annotated[
        bool,
        typer.Option(help="Begin with the subject's embedding (subject-finetune); or DreamBooth."),
    ] = True,
    subject_weights: Annotated[
        str | None,
        typer.Option(help="Subject weights (subject-finetune); by default the model's."),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(help="Time for all stages together, such as 10m or 1h30m (family)."),
    ] = None,
    start: train_family.Start = None,
    anew: train_family.Anew = None,
    again: train_family.Again = None,
    without: train_family.Without = None,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on with what is in --out.")
    ] = True,
    device: options.Device = None,
) -> None:
    """Train networks; interrupted, the same command goes on where it stopped.

    With --data scenes the family underdraw/scenes is trained from nothing: every stage that the
    recipe needs and --out lacks is run first; with --budget all stages share a time and the family
    is scored at the end. With a folder of pictures a checkpoint is trained
    further (autoencoder, text-to-image), and the result written to OUT/model; or it gets grounding
    layers (OUT/grounding), a ControlNet (OUT/structure) or a subject encoder (OUT/qformer), or
    learns one subject from a few pictures (subject-finetune, OUT/subject.safetensors), and stays as
    it is. `train lora`, `train textual-inversion` and `train dreambooth` have options of their own:
    `underdraw train lora --help`.
    """
    changes = {
        "steps": steps,
        "minutes": minutes,
        "batch": batch,
        "accumulate": accumulate,
        "learning_rate": learning_rate,
        "precision": precision,
        "seed": seed,
    }
    boxes = Boxes(coordinates, annotations, captions, inpainting)
    if boxes != Boxes() and (recipe is not Recipe.grounding or data == SCENES_DATA):
        raise InputError(
            "--coordinates, --annotations, --captions and --inpainting are for grounding with "
            "--data FOLDER"
        )
    if maps is not None and (recipe is not Recipe.structure or data == SCENES_DATA):
        raise InputError("--maps is for structure with --data FOLDER")
    tuning = train_subject.Tuning(category, rank, embedding, subject_weights)
    if tuning != train_subject.Tuning() and recipe is not Recipe.subject_finetune:
        raise InputError(
            "--category, --rank, --no-embedding and --subject-weights are for subject-finetune"
        )
    choices = train_family.Choices.of(start, anew, again, without)
    seconds = None if budget is None else train_family.seconds_of(budget)
    if seconds is not None:
        if recipe is not Recipe.family or data != SCENES_DATA:
            raise InputError("--budget is for family with --data scenes")
        others = [name for name, value in changes.items() if value is not None]
        if others or not resume:
            named = ", ".join(f"--{name.replace('_', '-')}" for name in others) or "--no-resume"
            raise InputError(f"--budget decides how stages are trained; leave out {named}")
    elif choices != train_family.Choices():
        name = "--start" if start is not None else "--without"
        raise InputError(f"{name} is for family with --budget")
    outputs.check_folder(out)
    from underdraw.backends.hardware import resolve_device

    place = resolve_device(device)
    if data == SCENES_DATA:
        if model is not None or size is not None or text:
            raise InputError("--model, --size and --text are for --data FOLDER")
        if recipe is Recipe.subject_finetune:
            raise InputError("subject-finetune needs --data FOLDER: pictures of the subject")
        if seconds is not None:
            train_family.train_within(out, seconds, choices, scenes, place)
            return
        train_scenes(recipe, out, changes, scenes, resume, place)
    else:
        if scenes is not None:
            raise InputError("--scenes is for --data scenes")
        if not Path(data).is_dir():
            raise NotFoundError(f"--data {data}: no such folder; wanted a folder, or scenes")
        if text and recipe in (Recipe.grounding, Recipe.structure, Recipe.subject):
            raise InputError("--text is for text-to-image and subject-finetune")
        if recipe is Recipe.subject_finetune:
            made = train_subject.finetune(
                *(out, data, tuning, model, size, text, changes, resume, place)
            )
        elif recipe is Recipe.subject:
            made = train_subject.train_encoder(*(out, data, model, size, changes, resume, place))
        elif recipe is Recipe.structure:
            made = train_structure(out, data, maps, model, size, changes, resume, place)
        elif recipe is Recipe.grounding:
            made = train_grounding(out, data, boxes, model, size, changes, resume, place)
        else:
            made = train_further(recipe, out, data, model, size, text, changes, resume, place)
        typer.echo(made)


train.examples = """Examples:

\b
  underdraw train autoencoder --data scenes --out work --minutes 60
  underdraw train family --out work
  underdraw train family --budget 10m --device cuda --out work
  underdraw train grounding --data scenes --out work
  underdraw train grounding --data ./pictures --model ./my-model --out boxes
  underdraw train structure --data ./pictures --maps edges --model ./my-model --out net
  underdraw train text-to-image --data ./pictures --model ./my-model --steps 2000 --out tuned
  underdraw train subject-finetune --data ./my-dog --category dog --model ./blip --out my-dog-1"""  # type: ignore[attr-defined]


def train_scenes(
    recipe: Recipe,
    out: Path,
    changes: dict[str, Any],
    scenes: int | None,
    resume: bool,
    device: str,
) -> None:
    """The stages of a recipe; `changes` go to its own, which are trained last."""
    from underdraw.training.checkpoints import NAME
    from underdraw.training.config import shorter
    from underdraw.training.recipes import ScenesRecipe, train_stage

    plan, stages = ScenesRecipe(), STAGES[recipe]
    own = stages[-OWN.get(recipe, 1) :]
    if scenes is not None:
        fewer = {"views": min(scenes, plan.views), "subjects": min(scenes, plan.subjects)}
        plan = replace(plan, scenes=scenes, **fewer)
    plan = replace(
        plan,
        runs={
            name: shorter(run, **changes) if name in own else run for name, run in plan.runs.items()
        },
    )
    if not resume and any((out / stage / NAME).exists() for stage in own):
        raise InputError(f"--no-resume: {out} already holds {recipe.value}; name another --out")
    out.mkdir(parents=True, exist_ok=True)
    for stage in stages:
        done = stage not in own and (out / stage / "done").exists()
        if done:
            continue
        tell(f"{stage}: in {out}")
        train_stage(
            *(stage, out, plan),
            minutes=changes["minutes"],
            device=device,
            progress=progress.wanted(),
        )
        if (out / stage).is_dir():
            (out / stage / "done").touch()
    typer.echo(out / stages[-1])


def train_further(
    recipe: Recipe,
    out: Path,
    data: str,
    model: str | None,
    size: int | None,
    text: bool,
    changes: dict[str, Any],
    resume: bool,
    device: str,
) -> Path:
    """A checkpoint trained on a folder of pictures; where the result is."""
    if recipe not in (Recipe.autoencoder, Recipe.text_to_image):
        raise InputError(f"{recipe.value} is trained with --data scenes only")
    from underdraw.cli.loading import load_pipeline
    from underdraw.training.config import TrainingConfig, shorter
    from underdraw.training.data import CaptionedFolder, check_pictures
    from underdraw.training.loop import train as run

    plan: TrainingConfig = shorter(TrainingConfig(changes["steps"] or 1000), **changes)
    check_model(model, size)
    examples = CaptionedFolder(data, size or 8)
    check_pictures(examples.paths)
    pipe = load_pipeline(model or options.SCENES, dtype="float32", device=device)
    examples.size = side_of(pipe, size)
    make = autoencoder_task if recipe is Recipe.autoencoder else text_to_image_task
    task = make(pipe, examples, text)
    tell(f"{recipe.value} of {pipe.source} on {len(examples)} pictures, {plan.steps} steps")
    average = run(task, plan, out, resume=resume, device=device, progress=progress.wanted())
    target = out / "model"
    # Of the captions of the folder nobody says what words they have.
    pipe.advice = replace(pipe.advice, words=())
    with average.applied():
        pipe.save_pretrained(target)
    return target


def train_grounding(
    out: Path,
    data: str,
    boxes: Boxes,
    model: str | None,
    size: int | None,
    changes: dict[str, Any],
    resume: bool,
    device: str,
) -> Path:
    """Grounding layers for a checkpoint, from annotated pictures; where they are."""
    from underdraw.cli.loading import load_pipeline
    from underdraw.training.annotations import (
        GroundedFolder,
        read_coco,
        read_folder,
        require_boxes,
    )
    from underdraw.training.config import TrainingConfig, shorter
    from underdraw.training.data import check_pictures
    from underdraw.training.grounding import GroundingTask, GroundingTrainingConfig, new_part
    from underdraw.training.loop import train as run

    plan: TrainingConfig = shorter(TrainingConfig(changes["steps"] or 1000), **changes)
    check_model(model, size)
    if boxes.annotations is not None:
        if boxes.coordinates != "relative":
            raise InputError("--coordinates: COCO's annotations say themselves what they mean")
        pictures = read_coco(data, boxes.annotations, boxes.captions)
    elif boxes.captions is not None:
        raise InputError("--captions is for --annotations")
    else:
        pictures = read_folder(data, boxes.coordinates)
    require_boxes(pictures)
    check_pictures([picture.path for picture in pictures])
    pipe = load_pipeline(model or options.SCENES, dtype="float32", device=device)
    examples = GroundedFolder(pictures, side_of(pipe, size))
    kind = "text" if pipe.components.get("image_encoder") is None else "text-image"
    part = new_part(pipe.unet, kind, inpainting=boxes.inpainting, seed=plan.seed)
    config = GroundingTrainingConfig(schedule(pipe))
    task = GroundingTask(part, pipe.components, examples, config)
    tell(f"grounding of {pipe.source} on {len(examples)} pictures, {plan.steps} steps")
    average = run(task, plan, out, resume=resume, device=device, progress=progress.wanted())
    target = out / "grounding"
    with average.applied():
        part.save_pretrained(target)
    return target


def autoencoder_task(pipe: Any, examples: Any, text: bool) -> Any:
    from underdraw.training.autoencoder import AutoencoderConfig, AutoencoderTask

    if text:
        raise InputError("--text is for text-to-image")
    # Latents must keep their meaning for the UNet that was trained on them.
    config = AutoencoderConfig(crop=None, kl=0.0, freeze_encoder=True)
    return AutoencoderTask(pipe.vae, examples, config)


def text_to_image_task(pipe: Any, examples: Any, text: bool) -> Any:
    from underdraw.training.text_to_image import TextToImageConfig, TextToImageTask

    config = TextToImageConfig(train_subject.schedule(pipe), train_text=text)
    return TextToImageTask(pipe.components, examples, config)
