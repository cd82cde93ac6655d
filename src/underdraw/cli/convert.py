"""`underdraw convert`: single file to folder and back, and other dtypes."""

from __future__ import annotations

import json
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from underdraw.cli import options, outputs, progress
from underdraw.cli.failures import Interrupted, note
from underdraw.errors import InputError, NotFoundError, WeightError

if TYPE_CHECKING:
    from underdraw.cli.sources import Source
    from underdraw.formats.stored import StoredTensor

IN_SINGLE_FILES = ("unet", "vae", "text_encoder")
FILE_SUFFIX = ".safetensors"


class Stored(str, Enum):
    """Of weights in files."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def convert(
    source: Annotated[str, typer.Argument(help="A folder, a single file, or a Hub id.")],
    target: Annotated[Path, typer.Argument(help=f"A folder, or a file ending in {FILE_SUFFIX}.")],
    dtype: Annotated[
        Stored | None, typer.Option(help="Of the weights written; as they are, if not given.")
    ] = None,
    prediction_type: options.PredictionType = None,
    ema: Annotated[
        bool, typer.Option("--ema", help="Take the averaged weights of a single file.")
    ] = False,
    tokenizer: options.Vocabulary = None,
    variant: options.Variant = None,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Write over what is at the target.")
    ] = False,
) -> None:
    """Rewrite a checkpoint: single file to folder, folder to single file, another dtype.

    Works tensor by tensor, so it needs little memory. The target appears whole or not at all.
    """
    from tqdm import tqdm

    from underdraw.cli.sources import SINGLE, open_source

    check_target(target, force)
    opened = open_source(source, variant, prediction_type and prediction_type.value, ema)
    if opened.problems or opened.broken:
        faults = [*opened.problems, *(f"{name}: {why}" for name, why in opened.broken.items())]
        raise WeightError(f"{source}: {'; '.join(faults)}")
    if not opened.networks:
        raise InputError(f"{source} has no weights to convert")
    if ema and opened.kind != SINGLE:
        raise InputError(f"--ema is for single files; {source} is a {opened.kind}")
    for line in opened.notes:
        note(line)
    try:
        with tqdm(total=opened.bytes, unit="B", unit_scale=True, **progress.bar_options()) as bar:
            prepared = prepare(opened, dtype and dtype.value, bar.update)
            if target.suffix.lower() == FILE_SUFFIX:
                write_file(opened, prepared, target)
            else:
                write_folder(opened, prepared, target, tokenizer, dtype and dtype.value)
    except KeyboardInterrupt:
        raise Interrupted(f"{target} is as it was before") from None
    typer.echo(target)


convert.examples = f"""Examples:

\b
  underdraw convert model.ckpt ./my-model --dtype float16 --tokenizer ./clip-vit-large-patch14
  underdraw convert ./my-model my-model{FILE_SUFFIX}
  underdraw convert ./my-model ./my-model-bf16 --dtype bfloat16"""  # type: ignore[attr-defined]


def check_target(target: Path, force: bool) -> None:
    """Raises InputError where something stands that must not be lost."""
    from underdraw.formats.leftovers import is_empty

    is_file = target.suffix.lower() == FILE_SUFFIX
    if target.is_dir() and is_file:
        raise InputError(f"{target} is a folder; name a file that ends in {FILE_SUFFIX}")
    if target.is_file() and not is_file:
        raise InputError(
            f"{target} is a file; the target is a folder, or a file that ends in {FILE_SUFFIX}"
        )
    if target.suffix.lower() in (".ckpt", ".pt", ".pth", ".bin"):
        raise InputError(f"{target}: single files are written as {FILE_SUFFIX} only")
    full = target.is_dir() and not is_empty(target)
    if (full or target.is_file()) and not force:
        raise InputError(f"{target} exists; --force writes over it")
    if not target.parent.is_dir():
        raise NotFoundError(f"{target.parent}: no such folder")
    outputs.check_folder(target.parent, [target.name])


def prepare(
    source: Source, dtype: str | None, tick: Callable[[int], Any]
) -> dict[str, dict[str, StoredTensor]]:
    """By component the tensors to write, unread: matched with the network, in another dtype."""
    from underdraw.cli.dtypes import cast
    from underdraw.cli.sources import NETWORKS
    from underdraw.formats.stored import check_sizes
    from underdraw.networks.config import read
    from underdraw.weights.match import match_network

    prepared = {}
    for name, (kind, config, tensors) in source.networks.items():
        cls = NETWORKS.get(kind)
        if cls is not None:
            understood = read(cls.config_class, cls.adapt_config(dict(config)))
            layout = cls.layout(understood).shapes
            tensors = match_network(cls.network, layout, tensors, f"{source.name}: {name}")
        check_sizes(tensors.values())
        prepared[name] = {
            key: counted(cast(f"{name}.{key}", tensor, dtype) if dtype else tensor, tick)
            for key, tensor in tensors.items()
        }
    return prepared


def counted(tensor: StoredTensor, tick: Callable[[int], Any]) -> StoredTensor:
    """The tensor, which tells when it is loaded."""

    def load() -> Any:
        tick(tensor.nbytes)
        return tensor.load()

    return type(tensor)(tensor.dtype, tensor.shape, load)


def write_file(source: Source, tensors: dict[str, dict[str, StoredTensor]], target: Path) -> None:
    """One file with the original names. What has no place in it is told."""
    from underdraw.weights import hub, save, single_file
    from underdraw.weights.vocabularies import tokenizer_of

    fitting = {
        name: (source.networks[name][1], tensors[name])
        for name in IN_SINGLE_FILES
        if name in tensors
    }
    if not fitting:
        raise InputError(
            f"{source.name} has none of {', '.join(IN_SINGLE_FILES)}, which single files hold"
        )
    if left := [name for name in tensors if name not in fitting]:
        note(f"left out, since single files hold no {', '.join(left)}")
    metadata = single_file.single_file_metadata(fitting, source.scheduler)
    save.save_tensors(target, single_file.to_single_file(fitting), metadata)
    if "text_encoder" in fitting and tokenizer_of("sd1", fitting["text_encoder"][0]).repository != (
        hub.SCENES
    ):
        note("single files hold no vocabulary; give it with --tokenizer when loading this one")


def write_folder(
    source: Source,
    tensors: dict[str, dict[str, StoredTensor]],
    target: Path,
    tokenizer: str | None,
    dtype: str | None,
) -> None:
    """A pipeline folder, or that of a component where the source is no more."""
    from underdraw.cli.sources import NETWORKS, PIPELINE, SINGLE
    from underdraw.weights import save

    alone = source.kind != PIPELINE and len(tensors) == 1
    vocabulary: Any = None
    if source.kind == SINGLE and not alone:
        lacking = [name for name in IN_SINGLE_FILES if name not in tensors]
        if lacking:
            raise InputError(
                f"{source.name} has no {' and no '.join(lacking)} for a pipeline folder"
            )
        vocabulary = load_vocabulary(source, tokenizer)
    elif tokenizer is not None:
        raise InputError("--tokenizer is for single files that become pipeline folders")
    with save.writing_folder(target) as place:
        for name, found in tensors.items():
            kind, config, _ = source.networks[name]
            folder = place if alone else place / name
            folder.mkdir(exist_ok=True)
            if source.kind != SINGLE:
                copy_texts(source.place / ("" if alone else name), folder)
            save.write_json(folder / "config.json", with_dtype(config, dtype))
            stem = NETWORKS[kind].weights_name if kind in NETWORKS else "model"
            save.save_weights(folder, found, stem=stem)
        if alone:
            return
        index = source.index or {"_class_name": "StableDiffusionPipeline"}
        if source.kind == PIPELINE:
            for name in source.others:
                (place / name).mkdir(exist_ok=True)
                copy_texts(source.place / name, place / name)
        else:
            vocabulary.save_pretrained(place / "tokenizer")
            index = index | single_file_index(source)
        if source.scheduler:
            (place / "scheduler").mkdir(exist_ok=True)
            save.write_json(place / "scheduler" / "scheduler_config.json", source.scheduler)
        save.write_json(place / "model_index.json", index)


def single_file_index(source: Source) -> dict[str, Any]:
    """`model_index.json` of the pipeline in a single file."""
    index: dict[str, Any] = {"_diffusers_version": "0.35.0"}
    for name, (kind, _, _) in source.networks.items():
        index[name] = ["transformers" if name == "text_encoder" else "diffusers", kind]
    index["scheduler"] = ["diffusers", source.scheduler["_class_name"]]
    index["tokenizer"] = ["transformers", "CLIPTokenizer"]
    return index | {"safety_checker": [None, None], "feature_extractor": [None, None]}


def load_vocabulary(source: Source, tokenizer: str | None) -> Any:
    from underdraw.pipelines.components.single_file import NoVocabularyError, load_tokenizer
    from underdraw.weights.vocabularies import Tokenizer

    try:
        return load_tokenizer(source.tokenizer or Tokenizer(), tokenizer)
    except NoVocabularyError as error:
        raise NotFoundError(f"{error}: --tokenizer") from error


def copy_texts(source: Path, target: Path) -> None:
    """Copy configs and vocabularies, but no weights."""
    from underdraw.formats.opening import read_bytes
    from underdraw.weights.folders import is_weight_file

    for path in source.iterdir():
        is_text = path.is_file() and path.suffix in (".json", ".txt", ".model")
        if is_text and not is_weight_file(path.name):
            (target / path.name).write_bytes(read_bytes(path))


def with_dtype(config: dict[str, Any], dtype: str | None) -> dict[str, Any]:
    """A config that names the dtype of its weights (transformers' do) with the new one."""
    named = {name: dtype for name in ("dtype", "torch_dtype") if dtype and config.get(name)}
    return json.loads(json.dumps(config)) | named
