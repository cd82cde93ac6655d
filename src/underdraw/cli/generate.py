"""`underdraw generate`: pictures from prompts."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Annotated

import typer

from underdraw.cli import (
    again as records,
    boxes,
    early,
    image_prompts,
    loras,
    memory as spared,
    options,
    outputs,
    pictures,
    sizes,
    solvers,
    structure,
    subjects,
)
from underdraw.cli.again import Request
from underdraw.cli.failures import note, tell
from underdraw.errors import InputError

STEPS = 25
MOST = 100_000
"""Pictures per prompt."""
IMG2IMG_STRENGTH = 0.8
"""If none is given, as in the pipeline."""
PER_CALL = 1
"""Pictures made at once if not said. One: its bits are then the same alone and among others."""


def generate(
    prompts: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROMPT...", help="What to show, in quotes; one or several."),
    ] = None,
    negative: Annotated[str | None, typer.Option(help="What to steer away from.")] = None,
    model: options.Model = None,
    image: Annotated[
        Path | None, typer.Option(help="Begin with this picture instead of noise.")
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(help="Of the picture's size: make anew only what is white, keep the rest."),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(help="How much of --image to make anew, above 0 to 1; 0.8, or 1 in a mask."),
    ] = None,
    size: options.Size = None,
    height: options.Height = None,
    width: options.Width = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    seed: options.Seed = None,
    count: Annotated[
        int, typer.Option("--count", "-n", min=1, max=MOST, help="Pictures per prompt.")
    ] = 1,
    solver: options.Solver = None,
    backend: options.Framework = None,
    engine: options.Engine = None,
    packages: options.Packages = None,
    speed: options.Speed = None,
    dtype: options.Precision = None,
    device: options.Device = None,
    memory: options.Memory = None,
    variant: options.Variant = None,
    tokenizer: options.Vocabulary = None,
    prediction_type: options.PredictionType = None,
    box: Annotated[
        list[str] | None,
        typer.Option(
            "--box",
            metavar="PHRASE X0 Y0 X1 Y1",
            help="What is to be seen where, in fractions of width and height; may be repeated.",
        ),
    ] = None,
    layout: Annotated[
        Path | None, typer.Option(help="Boxes from a JSON file, see docs/grounding.md.")
    ] = None,
    grounding: Annotated[
        str | None,
        typer.Option(help="Grounding weights that boxes need: a folder, a file or a Hub id."),
    ] = None,
    structures: options.Structures = None,
    edges: options.Edges = None,
    depth: options.Depth = None,
    subject: Annotated[
        list[str] | None,
        typer.Option(
            "--subject",
            metavar="PICTURE CATEGORY",
            help="What the picture shows, such as photo.png dog, is to be seen where a prompt says "
            "dog; may be repeated.",
        ),
    ] = None,
    as_words: Annotated[
        str | None,
        typer.Option(
            "--as", metavar="WORDS", help="Behind --subject: other words of the prompt for it."
        ),
    ] = None,
    subject_weights: Annotated[
        str | None,
        typer.Option(
            help="Weights that --subject needs, if the model has none: a folder, a file or a Hub "
            "id."
        ),
    ] = None,
    draw_boxes: Annotated[
        bool, typer.Option("--draw-boxes", help="Also a copy with the boxes, as NAME-boxes.png.")
    ] = False,
    batch: Annotated[int, typer.Option(min=1, max=MOST, help="Pictures made at once.")] = PER_CALL,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="A .png, .jpg or .webp file, or a folder (here, if not given)."
        ),
    ] = None,
    format: options.Format = None,
    force: options.Force = False,
    grid: Annotated[
        bool, typer.Option("--grid/--no-grid", help="Also all pictures on one sheet, if several.")
    ] = True,
    preview: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Every N steps, write the picture being made beside its place, as "
            "NAME-preview.png, which goes when the picture is done.",
        ),
    ] = None,
    preview_decoder: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="With --preview: a tiny autoencoder (taesd_decoder.safetensors, a folder or a Hub "
            "id) that makes previews in a fraction of the time.",
        ),
    ] = None,
    lora: options.Loras = None,
    embedding: options.Embeddings = None,
    image_prompt: Annotated[
        list[str] | None,
        typer.Option(
            image_prompts.OPTION,
            metavar="PICTURE[:SCALE]",
            help="Let a picture act beside the prompt, and how much, 1 as in training; needs "
            "--ip-adapter; may be repeated.",
        ),
    ] = None,
    ip_adapter: Annotated[
        str | None,
        typer.Option(
            image_prompts.WEIGHTS,
            metavar="FILE",
            help="The IP-Adapter that --image-prompt needs: a file, a folder, or a file of the "
            "Hub (owner/name/folder/file.bin).",
        ),
    ] = None,
    again: Annotated[
        Path | None,
        typer.Option(
            help="Make the picture in this file again; other options change it. It holds what is "
            "needed, small pictures that it began with included; larger ones are given again "
            "with --image, --mask, --layout or --structure, and edits are made again by edit."
        ),
    ] = None,
    as_recorded: Annotated[
        bool,
        typer.Option(
            records.ASK,
            help="With --again: load the model, vocabulary, grounding weights and nets that the "
            "file names. Without it these are the shipped ones, or those you name.",
        ),
    ] = False,
) -> None:
    """Make pictures from prompts.

    Every picture holds what is needed to make it again (--again). Paths of the pictures go to
    standard output, everything else to standard error.
    """
    from underdraw.cli import loading, making

    if solver == "help":
        solvers.show_help()
        return
    wanted = sizes.wanted_size(size, height, width)
    request = Request()
    if again is not None:
        named = {"image": image, "mask_image": mask, "engine": engine or packages, "seed": seed}
        named |= {"controls": layout or box, structure.OPTION: structures or edges or depth}
        named |= {subjects.SUBJECT: subject, "subject": subject_weights}
        named |= {"model": model, "tokenizer": tokenizer, "grounding": grounding}
        named |= {"num_inference_steps": steps, "solver": solver}
        named |= {loras.OPTION: lora, image_prompts.OPTION: image_prompt}
        named |= {image_prompts.WEIGHTS: ip_adapter}
        held = [name for name, value in named.items() if value is not None]
        request = records.recorded(again, held, as_recorded)
    if speed is not None:
        request.speed = speed.value
    request.loras = loras.read_loras(lora, embedding, request.scales)
    request.memory = spared.read_ways(memory, request.memory.quantized)
    pictures.begin(request, image, mask, strength)
    if (placed := boxes.read_boxes(box, layout)) is not None:
        request.layout = placed
    if (maps := structure.read_maps(structures, edges, depth)) is not None:
        request.structures = maps
    if as_words is not None:
        raise InputError(f"--as {as_words!r} stands behind no --subject PICTURE CATEGORY")
    if (shown := subjects.read_subjects(subject)) is not None:
        request.subjects = shown
    if preview_decoder is not None and preview is None:
        raise InputError(f"--preview-decoder {preview_decoder:.200} needs --preview N")
    if (beside := image_prompts.read_prompts(image_prompt)) is not None:
        request.image_prompts = beside
    request.ip_adapter = ip_adapter
    image_prompts.check(request.image_prompts, ip_adapter)
    if draw_boxes and request.layout is None:
        raise InputError("--draw-boxes needs --box or --layout")
    if not prompts and request.layout is not None and "prompt" in request.layout:
        prompts = [request.layout["prompt"]]
    if not prompts and "prompt" not in request.call:
        raise InputError('no PROMPT; for example: underdraw generate "a red sphere"')
    words = [prompt for prompt in prompts or () if not prompt.strip() or " " not in prompt.strip()]
    if len(words) > 1 and len(words) == len(prompts or ()):
        note(f"{len(words)} prompts of one word; one prompt of several words needs quotes")
    given = {
        "model": model,
        "backend": backend and backend.value,
        "engine": engine,
        "dtype": dtype and dtype.value,
        "device": device,
        "variant": variant,
        "tokenizer": tokenizer,
        "prediction_type": prediction_type and prediction_type.value,
        "grounding": grounding,
        "subject": subject_weights,
    }
    request.loading |= {name: value for name, value in given.items() if value is not None}
    packaged = loading.packaged(packages, engine, request.loading.get("backend"))
    if packaged is not None:
        request.loading.pop("engine", None)  # of a record
    changes = {
        "negative_prompt": negative,
        "guidance_scale": guidance,
        "num_inference_steps": steps,
    }
    if "image" not in request.call:
        exact = wanted.exact()
        changes |= {"height": exact.height, "width": exact.width}
    request.call |= {name: value for name, value in changes.items() if value is not None}
    if steps is not None:
        request.call.pop("timesteps", None)
        request.call.pop("sigmas", None)
    request.call.setdefault("num_inference_steps", STEPS)
    if seed is not None or "seed" not in request.call:
        request.call["seed"] = secrets.randbelow(2**31) if seed is None else seed

    every = [p for p in prompts or [request.call["prompt"]] for _ in range(count)]
    first = request.call["seed"]
    if not 0 <= first <= 2**63 - count:
        raise InputError(f"--seed {first} is out of range; allowed: 0 .. 2**63 - {count}")
    seeds = [first + i % count for i in range(len(every))]
    target = outputs.Target(
        out,
        every,
        seeds,
        inputs=read_files(image, mask, again, layout, request),
        force=force,
        suffix=format and f".{format.value}",
        beside=("boxes",) if draw_boxes else (),
        sheet=grid,
    )
    # A mistake should not wait for a model to be loaded.
    check(request, every, wanted, solver)
    pipe = making.load(request, solver)
    if packaged is not None:
        pipe.engine = packaged
    if preview_decoder is not None:
        pipe.load_preview(preview_decoder)
    pictures.fit(pipe, request, wanted, image)
    structure.draw_lines(request.structures or [], *sizes.of_call(pipe, request.call))
    pictures.keep(request, image, mask)
    if pipe.advice.guidance_scale is not None:
        request.call.setdefault("guidance_scale", pipe.advice.guidance_scale)
    tell(
        f"{loading.summary(pipe, 'packages' if packages else request.loading.get('engine'))}, "
        f"{type(pipe.scheduler).__name__}, "
        f"{request.call['num_inference_steps']} steps, "
        f"seed {first if count == 1 else f'{first} to {first + count - 1}'}"
    )
    making.make(pipe, request, every, seeds, target, batch, making.Showing(preview, draw_boxes))
    if grid and len(every) > 1:
        target.write_sheet(columns=count if len(every) > count else None)


generate.examples = """Examples:

\b
  underdraw generate "a red sphere left of a blue cube" --seed 7
  underdraw generate "a red sphere" "a blue cube" --count 4 --out pictures/
  underdraw generate "a castle" --model model.safetensors --tokenizer ./tokenizer --solver dpm++
  underdraw generate "a red sphere" --image photo.png --strength 0.6
  underdraw generate "a red sphere" --image photo.png --mask mask.png
  underdraw generate "a table" --box "a red sphere" 0.1 0.2 0.4 0.6 --draw-boxes
  underdraw generate "a dog in the snow" --subject photo.png "dog" --model ./blipdiffusion
  underdraw generate "a red cube and a blue sphere" --edges photo.png
  underdraw generate "a castle" --model ./sd15 --structure ./canny-net edges.png 0.8
  underdraw generate "a clay cube" --model ./sd15 --lora clay.safetensors:0.8
  underdraw generate "a cube" --model ./sd15 --ip-adapter ip.bin --image-prompt photo.png:0.6
  underdraw generate --again picture.png --steps 50"""  # type: ignore[attr-defined]


def read_files(
    image: Path | None,
    mask: Path | None,
    again: Path | None,
    layout: Path | None,
    request: Request,
) -> dict[str, Path | None]:
    """Option -> file that is read, and must not be written over."""
    files: dict[str, Path | None] = {
        "--image": image,
        "--mask": mask,
        "--again": again,
        "--layout": layout,
    }
    shown = [] if request.layout is None else boxes.files_of(request.layout)
    files |= {f"the picture {path} of a box": Path(path) for path in shown}
    files |= structure.inputs_of(request.structures or [])
    files |= {f"the weights {path}": path for path in request.loras.every}
    beside = image_prompts.files_of(request.image_prompts or [])
    files |= {f"the picture {path} of {image_prompts.OPTION}": Path(path) for path in beside}
    if request.ip_adapter is not None:
        files[image_prompts.WEIGHTS] = Path(request.ip_adapter)
    known = subjects.files_of(request.subjects or ())
    return files | {f"the picture {path} of a subject": Path(path) for path in known}


def check(request: Request, prompts: list[str], wanted: sizes.Size, solver: str | None) -> None:
    """Refuse what can be refused by the configs of the model."""
    if solver is not None:
        solvers.make_solver(solver, {})
    call, begins = request.call, request.loading.get("kind") == pictures.IMG2IMG
    if request.compat is None:
        early.check_texts(list(dict.fromkeys((*prompts, call.get("negative_prompt") or ""))))
    from underdraw.cli.loading import check_engine

    loading = request.loading
    check_engine(loading.get("engine") or "eager", loading.get("backend") or "torch")
    if request.subjects is not None:
        subjects.check_words(request.subjects, prompts)
        if subjects.need_weights(request.subjects) or "subject" in loading:
            subjects.check_weights(loading.get("model", options.SCENES), loading.get("subject"))
    if "grounding" in request.loading:
        early.check_grounding(request.loading["grounding"])
    elif request.layout is not None and request.layout.get("boxes"):
        early.check_boxes(request.loading.get("model", options.SCENES))
    structure.check_nets(request.structures or [], loading.get("model", options.SCENES))
    known = early.facts(request.loading.get("model", options.SCENES), request.scheduler)
    recorded = {"--height": call.get("height"), "--width": call.get("width")}
    strength = call.get("strength", IMG2IMG_STRENGTH if begins else None)
    early.check_call(
        known,
        steps=call.get("num_inference_steps"),
        guidance=call.get("guidance_scale"),
        sides=wanted.sides("image" in call) or recorded,
        strength=strength,
    )
    if not (call.get("timesteps") or call.get("sigmas")):
        speed, said = request.leaves_out()
        early.check_speed(known, call["num_inference_steps"], strength, solver, speed, said)
