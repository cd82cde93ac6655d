"""CLIP's towers and the safety checker against transformers' and diffusers'."""

import numpy as np
import pytest
import torch
from backends.harness import relative, values
from networks.configs import CLIP_L, CLIP_L_VISION, TEXTS, VISIONS
from networks.peer import oracle
from networks.programs import run_safety, run_text, run_vision, token_ids

from underdraw.networks import clip, safety, vision as image_tower
from underdraw.networks.config import read


def check(ours, theirs, names):
    for name in names:
        assert relative(ours[name], theirs[name]) <= 1e-5, name


def text_peer(fields, tensors, ids, keep=None):
    module = oracle.text(fields, tensors)
    mask = None if keep is None else torch.from_numpy(keep.astype(np.int64))
    tower = module.text_model(torch.from_numpy(ids), mask, output_hidden_states=True)
    out = {f"hidden {i}": state.numpy() for i, state in enumerate(tower.hidden_states)}
    # transformers 5 records the last hidden state normalised.
    del out[f"hidden {len(tower.hidden_states) - 1}"]
    out |= {"last": tower.last_hidden_state.numpy(), "pooled": tower.pooler_output.numpy()}
    out["projected"] = module(torch.from_numpy(ids), mask).text_embeds.numpy()
    return out


@pytest.mark.parametrize("backend", ["torch", "jax"])
@pytest.mark.parametrize("name", TEXTS)
def test_text(name, backend):
    fields = TEXTS[name]
    tensors = values(clip.text_layout(read(clip.CLIPTextConfig, fields), projection=True))
    ids = token_ids(fields)
    theirs = text_peer(fields, tensors, ids)
    check(run_text(backend, fields, tensors, ids), theirs, theirs)


def test_text_with_padding_masked():
    fields = TEXTS["end-token-known"]
    tensors = values(clip.text_layout(read(clip.CLIPTextConfig, fields), projection=True))
    ids = token_ids(fields)
    keep = np.arange(ids.shape[1])[None] < np.array([[8], [5], [3], [1]])
    theirs = text_peer(fields, tensors, ids, keep)
    ours = run_text("torch", fields, tensors, ids, keep)
    check(ours, theirs, theirs)
    assert relative(run_text("torch", fields, tensors, ids)["last"], theirs["last"]) > 1e-3


def test_end_token_of_old_configs():
    """`eos_token_id = 2` means the largest id, any other means the first of that id."""
    ids = token_ids(TEXTS["vit-l"])
    tensors = values(clip.text_layout(read(clip.CLIPTextConfig, TEXTS["vit-l"]), projection=True))
    ids[1, 4] = 2
    for fields in (TEXTS["vit-l"], TEXTS["end-token-known"]):
        theirs = text_peer(fields, tensors, ids)["pooled"]
        assert relative(run_text("torch", fields, tensors, ids)["pooled"], theirs) <= 1e-5


@pytest.mark.parametrize("backend", ["torch", "jax"])
@pytest.mark.parametrize("name", VISIONS)
def test_vision(name, backend):
    fields = VISIONS[name]
    tensors = values(image_tower.vision_layout(read(clip.CLIPVisionConfig, fields)))
    image = np.random.default_rng(5).standard_normal((3, 3, 20, 20)).astype(np.float32)
    module = oracle.vision(fields, tensors)
    tower = module.vision_model(torch.from_numpy(image), output_hidden_states=True)
    ours = run_vision(backend, fields, tensors, image)
    for i, state in enumerate(tower.hidden_states):
        assert relative(ours[f"hidden {i}"], state.numpy()) <= 1e-5, i
    assert relative(ours["last"], tower.last_hidden_state.numpy()) <= 1e-5
    assert relative(ours["pooled"], tower.pooler_output.numpy()) <= 1e-5
    projected = module(torch.from_numpy(image)).image_embeds.numpy()
    assert relative(ours["projected"], projected) <= 1e-5


def safety_tensors(fields, image):
    """Random weights, with thresholds near the similarities, so that flags differ."""
    tensors = values(safety.layout(read(clip.CLIPVisionConfig, fields)))
    for name in ("special_care_embeds_weights", "concept_embeds_weights"):
        tensors[name] = np.zeros_like(tensors[name])
    special, concepts = run_safety("torch", fields, tensors, image)
    tensors["special_care_embeds_weights"] = np.sort(special, 0)[-1] - np.float32(0.0007)
    tensors["concept_embeds_weights"] = np.sort(concepts, 0)[-2:].mean(0)
    tensors["concept_embeds_weights"][:14] = 0.99
    return tensors


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_safety_checker(backend):
    from underdraw.formats.stored import stored
    from underdraw.models import StableDiffusionSafetyChecker

    fields = VISIONS["quick-gelu"]
    image = np.random.default_rng(5).standard_normal((9, 3, 20, 20)).astype(np.float32)
    tensors = safety_tensors(fields, image)
    module = oracle.checker(fields, tensors)
    special, concepts = run_safety(backend, fields, tensors, image)
    pooled = module.visual_projection(module.vision_model(torch.from_numpy(image))[1])
    for ours, kind in ((special, "special_care_embeds"), (concepts, "concept_embeds")):
        table, threshold = getattr(module, kind), getattr(module, f"{kind}_weights")
        cosine = torch.nn.functional.cosine_similarity(pooled[:, None], table[None], dim=-1)
        assert np.abs(ours - (cosine - threshold).numpy()).max() <= 2e-6

    shown, theirs = module(torch.from_numpy(image), image.copy())
    checker = StableDiffusionSafetyChecker.from_tensors(
        fields, {name: stored(value) for name, value in tensors.items()}, backend=backend
    )
    from underdraw import backends

    given = backends.get(backend).array(image)
    out, flags = checker.forward(given, image)
    assert flags == theirs
    assert 0 < sum(flags) < len(flags)
    assert np.array_equal(out, shown)


def test_published_layouts():
    with torch.device("meta"):
        text = oracle.CLIPTextModelWithProjection(oracle.CLIPTextConfig(**CLIP_L)).state_dict()
        vision = oracle.CLIPVisionModelWithProjection(
            oracle.CLIPVisionConfig(**CLIP_L_VISION)
        ).state_dict()
    ours = clip.text_layout(read(clip.CLIPTextConfig, CLIP_L), projection=True).shapes
    assert ours == {name: tuple(value.shape) for name, value in text.items()}
    ours = image_tower.vision_layout(read(clip.CLIPVisionConfig, CLIP_L_VISION)).shapes
    assert ours == {name: tuple(value.shape) for name, value in vision.items()}
