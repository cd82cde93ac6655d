"""`underdraw train lora`, `train textual-inversion` and `train dreambooth`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from underdraw.cli.failures import tell
from underdraw.cli.train_options import (
    Alpha,
    ConvRank,
    Dora,
    Format,
    Rank,
    Spelling,
    Text,
    Training,
    with_training,
)
from underdraw.errors import InputError


@with_training
def train_lora(
    *,
    training: Training,
    rank: Rank = 8,
    alpha: Alpha = None,
    conv_rank: ConvRank = None,
    text: Text = False,
    dora: Dora = False,
    caption: Annotated[
        str | None, typer.Option(help="Of pictures of which nothing else is said.")
    ] = None,
    spelling: Format = Spelling.diffusers,
) -> None:
    """Train a LoRA on a folder of pictures with captions; interrupted, the same command goes on."""
    from underdraw.training.adapters.learners import LoraConfig
    from underdraw.training.adapters.lora import RUN, train_lora as run
    from underdraw.training.adapters.pictures import read_folder

    plan = training.plan(RUN)
    config = LoraConfig(rank, alpha, conv_rank, text, dora)
    pictures = read_folder(training.data, caption)
    pipe = training.pipeline()
    tell(f"LoRA of {pipe.source} on {len(pictures)} pictures, {plan.steps} steps")
    where = (training.out, config, training.looking(pipe), plan)
    typer.echo(run(pipe, pictures, *where, spelling=spelling.value, **training.running)[1])


@with_training
def train_textual_inversion(
    *,
    training: Training,
    word: Annotated[str, typer.Option(help='What prompts are to write, such as "<my-cat>".')],
    vectors: Annotated[int, typer.Option(min=1, max=64, help="Places that the word takes.")] = 1,
    initialiser: Annotated[
        str | None,
        typer.Option("--initialiser", "--initializer", help="Words it begins as, such as cat."),
    ] = None,
    style: Annotated[
        bool,
        typer.Option("--style", help="The word is a style; where pictures have no captions."),
    ] = False,
    spelling: Format = Spelling.diffusers,
) -> None:
    """Learn a word from a folder of pictures; captions, where there are any, have it inside.
    Interrupted, the same command goes on."""
    from underdraw.training.adapters.learners import Word
    from underdraw.training.adapters.pictures import read_folder
    from underdraw.training.adapters.words import RUN, saying, train_textual_inversion as run

    plan, told = training.plan(RUN), Word(word, vectors, initialiser)
    pictures = read_folder(training.data, saying(word, style))
    pipe = training.pipeline()
    tell(f"{word} of {len(pictures)} pictures beside {pipe.source}, {plan.steps} steps")
    where = (training.out, told, training.looking(pipe), plan)
    typer.echo(run(pipe, pictures, *where, spelling=spelling.value, **training.running)[1])


@with_training
def train_dreambooth(
    *,
    training: Training,
    prompt: Annotated[
        str | None,
        typer.Option(
            help='Of pictures without captions: a rare word and the class, "a photo of sks dog".'
        ),
    ] = None,
    class_prompt: Annotated[
        str | None, typer.Option(help='The class alone, "a photo of a dog", to keep what it is.')
    ] = None,
    class_count: Annotated[
        int, typer.Option(min=1, help="How many pictures of the class; missing ones are drawn.")
    ] = 100,
    class_data: Annotated[
        Path | None, typer.Option(help="Where they are, by default OUT/class.")
    ] = None,
    prior_weight: Annotated[float, typer.Option(min=0, help="Of their part of the loss.")] = 1.0,
    whole: Annotated[
        bool, typer.Option("--whole", help="Train all of the UNet, into OUT/model, not a LoRA.")
    ] = False,
    rank: Rank = 8,
    alpha: Alpha = None,
    conv_rank: ConvRank = None,
    text: Text = False,
    dora: Dora = False,
    spelling: Format = Spelling.diffusers,
) -> None:
    """Learn a subject from a few pictures, beside pictures of its class (DreamBooth). Interrupted,
    the same command goes on."""
    from underdraw.training.adapters.dreambooth import (
        RUN,
        WHOLE_RUN,
        PriorConfig,
        WholeConfig,
        train_dreambooth as run,
    )
    from underdraw.training.adapters.learners import LoraConfig
    from underdraw.training.adapters.pictures import read_folder

    if whole and (rank, alpha, conv_rank, dora, spelling) != (8, None, None, False, "diffusers"):
        raise InputError("--rank, --alpha, --conv-rank, --dora and --format are not for --whole")
    if class_prompt is None and class_data is not None:
        raise InputError("--class-data needs --class-prompt: what the pictures in it are")
    plan = training.plan(WHOLE_RUN if whole else RUN)
    config: Any = WholeConfig(text) if whole else LoraConfig(rank, alpha, conv_rank, text, dora)
    pictures = read_folder(training.data, prompt)
    pipe = training.pipeline()
    looking, prior = training.looking(pipe), None
    if class_prompt is not None:
        where = None if class_data is None else str(class_data)
        how = {"folder": where, "guidance": looking.guidance}
        prior = PriorConfig(class_prompt, class_count, prior_weight, **how)
    tell(f"DreamBooth of {len(pictures)} pictures beside {pipe.source}, {plan.steps} steps")
    given = (training.out, config, prior, looking, plan)
    typer.echo(run(pipe, pictures, *given, spelling=spelling.value, **training.running)[1])


train_lora.examples = """Examples:

\b
  underdraw train lora --data ./clay --model ./sd15 --out clay --rank 16 --steps 1500
  underdraw train lora --data ./clay --out clay --conv-rank 8 --text --flip --min-snr 5
  underdraw train lora --data ./clay --out clay --format kohya --preview "a clay cube\""""  # type: ignore[attr-defined]
train_textual_inversion.examples = """Examples:

\b
  underdraw train textual-inversion --data ./cat --word "<my-cat>" --initialiser cat --out cat
  underdraw train textual-inversion --data ./ink --word "<ink>" --style --vectors 4 --out ink"""  # type: ignore[attr-defined]
train_dreambooth.examples = """Examples:

\b
  underdraw train dreambooth --data ./dog --prompt "a sks dog" --class-prompt "a dog" --out dog
  underdraw train dreambooth --data ./dog --prompt "a sks dog" --whole --out dog"""  # type: ignore[attr-defined]
