"""Write a pipeline folder of Stable Diffusion 1.5's architecture with random fp16 weights (2 GB).

    python benchmarks/full_size.py FOLDER

What `cold_start.py` loads: UNet, autoencoder, text encoder, PNDM scheduler and a tokenizer with a
vocabulary of 49,408 entries (invented merges: what it costs to load is what matters). No safety
checker.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from underdraw import AutoencoderKL, CLIPTextModel, CLIPTokenizer, UNet2DConditionModel
from underdraw.benchmark.random_weights import SD15_TEXT, SD15_UNET, SD15_VAE, random_tensors
from underdraw.schedulers import PNDMScheduler
from underdraw.text.vocabulary import END, START, train_vocabulary
from underdraw.weights import save

COMPONENTS = (
    ("unet", UNet2DConditionModel, SD15_UNET, "diffusers"),
    ("vae", AutoencoderKL, SD15_VAE, "diffusers"),
    ("text_encoder", CLIPTextModel, SD15_TEXT, "transformers"),
)


def vocabulary(size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A vocabulary of exactly `size` entries with invented merges."""
    vocab, merges = train_vocabulary([], 514)
    tokens = [token for token in vocab if token not in (START, END)]
    starts = [token for token in tokens if not token.endswith("</w>")]
    known, draw = set(tokens), random.Random(0)
    while len(tokens) < size - 2:
        pair = draw.choice(starts), draw.choice(tokens[:600])
        joined = "".join(pair)
        if joined in known or len(joined) > 16:
            continue
        known.add(joined)
        tokens.append(joined)
        merges.append(pair)
        if not joined.endswith("</w>"):
            starts.append(joined)
    return {token: i for i, token in enumerate([*tokens, START, END])}, merges


def write(folder: Path, changes: Mapping[str, Mapping[str, Any]] | None = None) -> None:
    """The whole folder; `changes` are config fields by component, for tests at tiny size."""
    changes = changes or {}
    index: dict[str, Any] = {"_class_name": "StableDiffusionPipeline"}
    index |= {"_diffusers_version": "0.42.1", "requires_safety_checker": False}
    index |= {name: [None, None] for name in ("safety_checker", "feature_extractor")}
    folder.mkdir(parents=True, exist_ok=True)
    for name, kind, fields, library in COMPONENTS:
        config = kind._read_config(None, {**fields, **changes.get(name, {})})
        place = folder / name
        place.mkdir(exist_ok=True)
        published = {"_class_name": kind.__name__, **config.to_dict()}
        if library == "transformers":
            published |= {"architectures": [kind.__name__], "model_type": "clip_text_model"}
        save.write_json(place / "config.json", published)
        tensors = random_tensors(kind.layout(config).shapes, "float16")
        save.save_weights(place, tensors, stem=kind.weights_name)
        index[name] = [library, kind.__name__]
    size = changes.get("text_encoder", {}).get("vocab_size", 49408)
    vocab, merges = vocabulary(size)
    CLIPTokenizer(vocab, merges).save_pretrained(folder / "tokenizer")
    # Published folders of SD 1 hold the two older files only.
    (folder / "tokenizer" / "tokenizer.json").unlink()
    PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        steps_offset=1,
    ).save_pretrained(folder / "scheduler")
    index |= {
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "PNDMScheduler"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    write(Path(sys.argv[1]))
