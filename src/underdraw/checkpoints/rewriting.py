"""Checkpoints written anew, tensor by tensor: as a folder or a single file, in another dtype."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from underdraw import checks
from underdraw.checkpoints.sources import NETWORKS, PIPELINE, SINGLE, Source, open_source
from underdraw.errors import InputError, NotFoundError, WeightError
from underdraw.formats.leftovers import is_empty
from underdraw.formats.opening import read_bytes
from underdraw.formats.stored import StoredTensor, check_sizes
from underdraw.networks.config import read
from underdraw.pipelines.components.single_file import NoVocabularyError, load_tokenizer
from underdraw.weights import hub, save, single_file
from underdraw.weights.dtypes import cast
from underdraw.weights.folders import is_weight_file
from underdraw.weights.match import match_network
from underdraw.weights.vocabularies import Tokenizer, tokenizer_of

IN_SINGLE_FILES = ("unet", "vae", "text_encoder")
FILE_SUFFIX = ".safetensors"
DTYPES = ("float32", "bfloat16", "float16")
"""Of weights that are written."""
LOG = logging.getLogger(__name__)
Networks = dict[str, dict[str, StoredTensor]]
"""Unread tensors by component and name, as the networks have them."""
Tell = Callable[[str], None]
"""Takes what a person may want to know."""


def convert(
    source: Any,
    target: Any,
    *,
    dtype: str | None = None,
    prediction_type: str | None = None,
    extract_ema: bool = False,
    tokenizer: str | None = None,
    variant: str | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
    tell: Tell = LOG.info,
) -> Path:
    """Write a checkpoint anew: a single file as a folder, a folder as an original single file, or
    either in another dtype. One tensor is in memory at a time.

    Args:
        source: a folder of a pipeline or of one network, a single file, or a Hub id.
        target: a folder, or a file ending in `.safetensors`. It appears whole or not at all.
        dtype: "float32", "bfloat16" or "float16"; None: as they are.
        prediction_type: what the UNet was trained to predict, where the source does not say it
            rightly: "epsilon", "v_prediction", "sample".
        extract_ema: take the averaged UNet of a single file that has both.
        tokenizer: folder or Hub id of the vocabulary, for a single file that becomes a folder.
        variant: of the weight files of a folder, such as "fp16".
        overwrite: whether what is at `target` may be replaced.
        progress: whether to show a bar; None: on terminals.
        tell: takes what is worth knowing; the log if not given.

    Raises:
        InputError, InputTypeError: an argument cannot work.
        NotFoundError: there is no such source, or no vocabulary.
        WeightError: the source is damaged, or holds numbers that `dtype` does not.
    """
    place = checked_target(target, dtype, overwrite)
    opened = sound(
        open_source(checks.path("source", source), variant, prediction_type, extract_ema)
    )
    if extract_ema and opened.kind != SINGLE:
        raise InputError(f"extract_ema or --ema is for single files; {source} is a {opened.kind}")
    for line in opened.notes:
        tell(line)
    with bar_of(opened.bytes, progress) as bar:
        prepared = as_written(matched(opened), dtype, bar.update)
        write(opened, prepared, place, tokenizer, dtype, tell)
    return place


def checked_target(target: Any, dtype: str | None, overwrite: bool) -> Path:
    """The target as a path.

    Raises:
        InputError, InputTypeError, NotFoundError: target, dtype or overwrite cannot work.
    """
    place = Path(checks.path("target", target))
    if dtype is not None:
        checks.choice("dtype", dtype, DTYPES)
    check_target(place, checks.flag("overwrite", overwrite))
    return place


def bar_of(nbytes: int, progress: bool | None) -> Any:
    """A bar for so many bytes that are read."""
    hidden = None if progress is None else not checks.flag("progress", progress)
    return tqdm(total=nbytes, unit="B", unit_scale=True, leave=False, disable=hidden)


def check_target(target: Path, overwrite: bool, switch: str = "overwrite=True") -> None:
    """Raise where something stands that must not be lost; `switch` is how to say that it may.

    Raises:
        InputError: it is there, or of a kind that is not written.
        NotFoundError: the folder that it is to be in is not there.
    """
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
    if (full or target.is_file()) and not overwrite:
        raise InputError(f"{target} exists; {switch} writes over it")
    if not target.parent.is_dir():
        raise NotFoundError(f"{target.parent}: no such folder")


def sound(source: Source) -> Source:
    """The source, where all of it could be opened.

    Raises:
        WeightError: parts of it cannot be read.
        InputError: it has no weights.
    """
    if source.problems or source.broken:
        faults = [*source.problems, *(f"{name}: {why}" for name, why in source.broken.items())]
        raise WeightError(f"{source.name}: {'; '.join(faults)}")
    if not source.networks:
        raise InputError(f"{source.name} has no weights to convert or merge")
    return source


def matched(source: Source) -> Networks:
    """The tensors of each network under the names and in the shapes that it asks for.

    Raises:
        WeightError: names or shapes are not those of the network.
    """
    found = {}
    for name, (kind, config, tensors) in source.networks.items():
        cls = NETWORKS.get(kind)
        if cls is not None:
            understood = read(cls.config_class, cls.adapt_config(dict(config)))
            layout = cls.layout(understood).shapes
            tensors = match_network(cls.network, layout, tensors, f"{source.name}: {name}")
        check_sizes(tensors.values())
        found[name] = tensors
    return found


def as_written(networks: Networks, dtype: str | None, tick: Callable[[int], Any]) -> Networks:
    """The same in another dtype; `tick` is told the bytes of each tensor when it is loaded."""
    return {
        name: {
            key: counted(cast(f"{name}.{key}", tensor, dtype) if dtype else tensor, tick)
            for key, tensor in tensors.items()
        }
        for name, tensors in networks.items()
    }


def write(
    source: Source,
    tensors: Networks,
    target: Path,
    tokenizer: str | None,
    dtype: str | None,
    tell: Tell,
) -> None:
    """A single file where `target` ends like one, else a folder."""
    if target.suffix.lower() == FILE_SUFFIX:
        write_file(source, tensors, target, tell)
    else:
        write_folder(source, tensors, target, tokenizer, dtype)


def counted(tensor: StoredTensor, tick: Callable[[int], Any]) -> StoredTensor:
    """The tensor, which tells when it is loaded."""

    def load() -> Any:
        tick(tensor.nbytes)
        return tensor.load()

    return type(tensor)(tensor.dtype, tensor.shape, load)


def write_file(source: Source, tensors: Networks, target: Path, tell: Tell) -> None:
    """One file with the original names. What has no place in it is told."""
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
        tell(f"left out, since single files hold no {', '.join(left)}")
    metadata = single_file.single_file_metadata(fitting, source.scheduler)
    save.save_tensors(target, single_file.to_single_file(fitting), metadata)
    if "text_encoder" in fitting and tokenizer_of("sd1", fitting["text_encoder"][0]).repository != (
        hub.SCENES
    ):
        tell("single files hold no vocabulary; loading this one takes tokenizer= or --tokenizer")


def write_folder(
    source: Source,
    tensors: Networks,
    target: Path,
    tokenizer: str | None,
    dtype: str | None,
) -> None:
    """A pipeline folder, or that of a component where the source is no more."""
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
        raise InputError(
            "tokenizer or --tokenizer is for single files that become pipeline folders"
        )
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
    """The tokenizer of a single file."""
    try:
        return load_tokenizer(source.tokenizer or Tokenizer(), tokenizer)
    except NoVocabularyError as error:
        raise NotFoundError(f"{error}: tokenizer=, or --tokenizer") from error


def copy_texts(source: Path, target: Path) -> None:
    """Copy configs and vocabularies, but no weights."""
    for path in source.iterdir():
        is_text = path.is_file() and path.suffix in (".json", ".txt", ".model")
        if is_text and not is_weight_file(path.name):
            (target / path.name).write_bytes(read_bytes(path))


def with_dtype(config: dict[str, Any], dtype: str | None) -> dict[str, Any]:
    """A config that names the dtype of its weights (transformers' do) with the new one."""
    named = {name: dtype for name in ("dtype", "torch_dtype") if dtype and config.get(name)}
    return json.loads(json.dumps(config)) | named
