"""LoRA files: one LoRA in every spelling, what is written is read back, what is wrong is named."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from pipelines import tiny

from underdraw.backends import get
from underdraw.backends.deltas import LowRank
from underdraw.backends.lycoris import Decomposed
from underdraw.backends.tree import flatten
from underdraw.errors import InputError, NotFoundError, WeightError
from underdraw.formats.stored import Checkpoint, stored
from underdraw.weights.lora import reading, writing
from underdraw.weights.lora.places import places

QUERY = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
OUT = "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0"
CONV = "up_blocks.1.resnets.0.conv1"
TEXT = "text_model.encoder.layers.1.self_attn.v_proj"
TEXT_OUT = "text_model.encoder.layers.0.self_attn.out_proj"
PATHS = {"unet": (QUERY, OUT, CONV), "text_encoder": (TEXT, TEXT_OUT)}
# The tiny UNet has one layer per block: the original numbers its blocks through.
ORIGINAL = {
    QUERY: "input_blocks_1_1_transformer_blocks_0_attn1_to_q",
    OUT: "middle_block_1_transformer_blocks_0_attn2_to_out_0",
    CONV: "output_blocks_2_0_in_layers_2",
}
OLD = {
    QUERY: QUERY.replace("attn1.to_q", "attn1.processor.to_q_lora"),
    OUT: OUT.replace("attn2.to_out.0", "attn2.processor.to_out_lora"),
    TEXT: TEXT.replace("v_proj", "to_v_lora"),
    TEXT_OUT: TEXT_OUT.replace("out_proj", "to_out_lora"),
}


@pytest.fixture(scope="module")
def where():
    parts = tiny.components()
    return places(parts["unet"].config, parts["text_encoder"].config)


def numbers(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def factors(where, component, path, rank=2):
    """`down` and `up` for a layer."""
    out, *rest = where.layouts[component].leaves[path].shape
    return numbers(rank, *rest), numbers(out, rank, *(1 for _ in rest[1:]))


def read(where, tensors, metadata=None):
    held = {name: stored(np.asarray(value, np.float32)) for name, value in tensors.items()}
    make = get("torch").array
    return reading.read_lora(Checkpoint(held, metadata or {}), where, lambda x: make(x))


def flat(path):
    return path.replace(".", "_")


SPELLINGS = {
    "kohya": lambda c, p: (
        f"{'lora_unet' if c == 'unet' else 'lora_te'}_{flat(p)}",
        ".lora_down.weight",
        ".lora_up.weight",
    ),
    "the original's names": lambda c, p: (
        f"lora_unet_{ORIGINAL[p]}" if c == "unet" else f"lora_te1_{flat(p)}",
        ".lora_down.weight",
        ".lora_up.weight",
    ),
    "PEFT": lambda c, p: (f"{c}.{p}", ".lora_A.weight", ".lora_B.weight"),
    "PEFT with an adapter's name": lambda c, p: (
        f"{c}.{p}",
        ".lora_A.default.weight",
        ".lora_B.default.weight",
    ),
    "PEFT's own": lambda c, p: (f"base_model.model.{p}", ".lora_A.weight", ".lora_B.weight"),
    "bare": lambda c, p: (p, ".lora.down.weight", ".lora.up.weight"),
    "diffusers": lambda c, p: (f"{c}.{p}", ".lora.down.weight", ".lora.up.weight"),
    "Transformers": lambda c, p: (
        f"{c}.{p}",
        ".lora_linear_layer.down.weight",
        ".lora_linear_layer.up.weight",
    ),
    "ComfyUI": lambda c, p: (
        f"diffusion_model.{p}" if c == "unet" else f"text_encoder.{p}",
        ".lora_A",
        ".lora_B",
    ),
    "diffusers of old": lambda c, p: (
        f"{c}.{OLD.get(p, p + '_lora')}",
        ".down.weight",
        ".up.weight",
    ),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_one_lora_in_every_spelling(where, spelling):
    tensors = {}
    for component, paths in PATHS.items():
        for path in paths:
            module, down, up = SPELLINGS[spelling](component, path)
            values = factors(where, component, path)
            tensors |= {module + down: values[0], module + up: values[1]}
    found = read(where, tensors)
    for component, paths in PATHS.items():
        deltas = getattr(found, component)
        assert set(deltas) == set(paths)
        for path in paths:
            down, up = factors(where, component, path)
            assert isinstance(deltas[path], LowRank) and deltas[path].scale == 1
            assert np.array_equal(deltas[path].down, down) and np.array_equal(deltas[path].up, up)


def test_alphas(where):
    """A module's own, those of PEFT's settings, and none; 0 is none, as in kohya's trainer."""
    down, up = factors(where, "unet", QUERY)
    start = f"lora_unet_{flat(QUERY)}"
    tensors = {f"{start}.lora_down.weight": down, f"{start}.lora_up.weight": up}
    assert read(where, tensors).unet[QUERY].scale == 1
    assert read(where, {**tensors, f"{start}.alpha": 3.0}).unet[QUERY].scale == 1.5
    assert read(where, {**tensors, f"{start}.alpha": 0.0}).unet[QUERY].scale == 1
    settings = {"unet.lora_alpha": 5, "unet.r": 2, "unet.alpha_pattern": {"attn1.to_q": 7}}
    told = {reading.METADATA: json.dumps(settings)}
    assert read(where, tensors, told).unet[QUERY].scale == 3.5
    settings = {"unet.lora_alpha": 5, "unet.use_rslora": True}
    told = {reading.METADATA: json.dumps(settings)}
    assert np.isclose(read(where, tensors, told).unet[QUERY].scale, 5 / 2**0.5)


def test_a_layer_that_is_linear_here_and_a_convolution_there(where):
    """Stable Diffusion 2 has linear layers where 1 has convolutions of size 1, and files differ."""
    path = "down_blocks.0.attentions.0.proj_in"
    out, inside = where.layouts["unet"].leaves[path].shape[:2]
    for ones in ((), (1, 1)):
        tensors = {
            f"unet.{path}.lora_A.weight": numbers(2, inside, *ones),
            f"unet.{path}.lora_B.weight": numbers(out, 2, *ones),
        }
        assert read(where, tensors).unet[path].down.shape[:2] == (2, inside)


def kinds(where):
    """Modules of every kind, as LyCORIS names them."""
    out, inside = where.layouts["unet"].leaves[QUERY].shape
    wide, deep, *kernel = where.layouts["unet"].leaves[CONV].shape
    low = {"lora_down.weight": numbers(2, inside), "lora_up.weight": numbers(out, 2), "alpha": 3.0}
    square = numbers(out // 4, 4, 4) * 0.1
    return {
        "LoRA": (QUERY, low),
        "LoCon with a kernel": (
            CONV,
            {
                "lora_down.weight": numbers(2, deep, 1, 1),
                "lora_mid.weight": numbers(2, 2, *kernel),
                "lora_up.weight": numbers(wide, 2, 1, 1),
                "alpha": 1.0,
            },
        ),
        "DoRA of inputs": (QUERY, {**low, "dora_scale": 1 + numbers(1, inside) ** 2}),
        "LoHa": (
            CONV,
            {
                "hada_w1_a": numbers(2, wide),
                "hada_w1_b": numbers(2, deep),
                "hada_t1": numbers(2, 2, *kernel),
                "hada_w2_a": numbers(wide, 2),
                "hada_w2_b": numbers(2, deep * 9),
                "alpha": 1.0,
            },
        ),
        "LoKr": (
            QUERY,
            {
                "lokr_w1": numbers(4, 2),
                "lokr_w2_a": numbers(out // 4, 1),
                "lokr_w2_b": numbers(1, inside // 2),
                "alpha": 0.5,
            },
        ),
        "LoKr whole": (
            QUERY,
            {"lokr_w1": numbers(4, 2), "lokr_w2": numbers(out // 4, inside // 2)},
        ),
        "GLoRA": (
            QUERY,
            {
                "a1.weight": numbers(inside, 2),
                "a2.weight": numbers(2, inside),
                "b1.weight": numbers(out, 2),
                "b2.weight": numbers(2, inside),
                "alpha": 1.0,
            },
        ),
        "IA3": (QUERY, {"weight": numbers(inside), "on_input": 1.0}),
        "OFT": (QUERY, {"oft_blocks": square, "rescale": 1 + numbers(out, 1) * 0.1}),
        "BOFT": (QUERY, {"oft_blocks": numbers(2, out // 4, 4, 4) * 0.1}),
        "full": (CONV, {"diff": numbers(wide, deep, *kernel), "diff_b": numbers(wide)}),
        "norm": (
            "down_blocks.0.resnets.0.norm1",
            {"w_norm": numbers(16), "b_norm": numbers(16)},
        ),
    }


def test_what_is_written_is_read_back(where, tmp_path):
    nn = get("torch").operations
    for kind, (path, parts) in kinds(where).items():
        module = f"lora_unet_{flat(path)}"
        first = read(where, {f"{module}.{part}": value for part, value in parts.items()})
        writing.write_lora(first, tmp_path / f"{kind}.safetensors")
        again = reading.read_lora(tmp_path / f"{kind}.safetensors", where, get("torch").array)
        assert again.unet.keys() == {path}, kind
        leaf = where.layouts["unet"].leaves[path]
        weight = torch.from_numpy(numbers(*leaf.shape))
        for one, other in zip(
            first.unet[path].difference(nn, leaf, weight),
            again.unet[path].difference(nn, leaf, weight),
            strict=True,
        ):
            assert (one is None) == (other is None)
            assert one is None or torch.allclose(one, other, rtol=1e-4, atol=1e-5), kind


def test_a_magnitude_of_peft_is_of_the_output(where):
    out, inside = where.layouts["unet"].leaves[QUERY].shape
    tensors = {
        f"unet.{QUERY}.lora_A.weight": numbers(2, inside),
        f"unet.{QUERY}.lora_B.weight": numbers(out, 2),
        f"unet.{QUERY}.lora_magnitude_vector": numbers(out) ** 2,
    }
    found = read(where, tensors).unet[QUERY]
    assert isinstance(found, Decomposed) and not found.on_input


def test_several_parts_of_one_file(where):
    """Kinds may differ from module to module, and textual inversions may come along."""
    tensors = {}
    for path, parts in dict(kinds(where).values()).items():
        tensors |= {f"lora_unet_{flat(path)}.{part}": value for part, value in parts.items()}
    tensors["bundle_emb.clay.string_to_param.*"] = numbers(2, tiny.WIDTH)
    tensors["lora_te_text_projection.lora_down.weight"] = numbers(2, 3)
    found = read(where, tensors)
    assert len(found.unet) == 3 and set(found.embeddings) == {"clay"}
    assert len(flatten(dict(found.unet))[0]) > 5


def test_bad_files_are_named(where):
    """A table: what is in the file, and what the error says of it. 30 cases."""
    out, inside = where.layouts["unet"].leaves[QUERY].shape
    down, up = numbers(2, inside), numbers(out, 2)
    start = f"lora_unet_{flat(QUERY)}"
    good = {f"{start}.lora_down.weight": down, f"{start}.lora_up.weight": up}

    def but(**changes):
        """Some parts of the module, others in their place; None leaves one out."""
        named = {f"{start}.{part.replace('__', '.')}": value for part, value in changes.items()}
        return {name: value for name, value in {**good, **named}.items() if value is not None}

    def alone(**parts):
        return {f"{start}.{part}": value for part, value in parts.items()}

    cases = [
        ({}, "nothing inside"),
        (but(lora_up__weight=None), r"lacks 'up'"),
        (but(lora_down__weight=None), r"lacks 'down'"),
        (but(lora_down__weight=numbers(2, inside + 1)), r"LowRank has down \(2, 17\)"),
        (but(lora_up__weight=numbers(out, 3)), r"LowRank has"),
        (but(lora_up__weight=numbers(out + 1, 2)), r"LowRank has"),
        (but(lora_down__weight=np.full((2, inside), np.nan)), "NaN or infinity"),
        (but(alpha=numbers(2)), r"alpha must be one finite number"),
        (but(alpha=np.float32(np.inf)), "alpha"),
        (but(hada_w1_a=up), "more than one kind"),
        (but(dora_scale=numbers(out + 1, 1)), "Decomposed has magnitude"),
        (but(oft_blocks=numbers(4, 4, 4)), "more than one kind"),
        (alone(alpha=1.0), "no difference"),
        (alone(hada_w1_a=up, hada_w1_b=down, hada_w2_a=up), "lacks 'hada_w2_b'"),
        (
            alone(hada_w1_a=up, hada_w1_b=down, hada_w2_a=up, hada_w2_b=numbers(2, 3)),
            "Hadamard has",
        ),
        (alone(lokr_w1=numbers(4, 4)), "lacks 'lokr_w2_a'"),
        (alone(lokr_w1=numbers(3, 4), lokr_w2=numbers(4, 4)), "Kronecker has"),
        (alone(oft_blocks=numbers(4, 4, 3)), "square blocks"),
        (alone(oft_blocks=numbers(4, 4)), "square blocks"),
        (alone(oft_blocks=numbers(3, 4, 4)), "Rotated has"),
        (alone(on_input=0.0), "lacks 'weight'"),
        (alone(on_input=0.0, weight=numbers(out + 1)), "Rescaled has"),
        (alone(diff=numbers(out, inside + 1)), "Full has weight"),
        (alone(**{"a1.weight": numbers(inside, 2)}), "lacks"),
        (
            {**good, f"unet.{QUERY}.lora_A.weight": down, f"unet.{QUERY}.lora_B.weight": up},
            "two modules",
        ),
        ({**good, f"{start}.lora.down.weight": down}, "two spellings"),
        ({**good, "something": up}, "no kind that is known: 'something'"),
        ({**good, f"{start}.lora_B.bias": up}, "no kind"),
        (
            {
                **good,
                "lora_unet_nowhere.lora_up.weight": up,
                "lora_unet_nowhere.lora_down.weight": down,
            },
            "1 of 2 modules",
        ),
        (
            {"lora_te2_x.lora_up.weight": up, "lora_te2_x.lora_down.weight": down},
            "Stable Diffusion XL",
        ),
        ({"lllite_unet_x.lora_up.weight": up}, "LLLite"),
        ({"unet.conv_in.weight": up, "unet.conv_out.weight": up}, "this is no LoRA"),
        ({"model.diffusion_model.out.2.bias": up}, "no LoRA|no kind"),
    ]
    for tensors, message in cases:
        with pytest.raises(WeightError, match=message):
            read(where, tensors)
    with pytest.raises(WeightError, match="JSON"):
        read(where, good, {reading.METADATA: "{"})


def test_bad_targets(where, tmp_path):
    found = reading.LoraWeights()
    with pytest.raises(InputError, match="nothing to write"):
        writing.write_lora(found, tmp_path)
    with pytest.raises(InputError, match="no LoRA layers"):
        writing.write_layers(tmp_path, {"unet": None}, {})
    for name in ("a.bin", "x/../../y.safetensors"):
        with pytest.raises(InputError, match="weight_name"):
            writing.write_layers(tmp_path, {"unet": {"a": torch.zeros(1)}}, {}, name)
    with pytest.raises(NotFoundError):
        reading.read_lora(tmp_path / "none.safetensors", where, get("torch").array)
    assert not any(tmp_path.iterdir())
