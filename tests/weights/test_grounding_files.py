"""Grounding parts in all the files they come in; what is written under the original's names is made
here from a small gated UNet."""

import numpy as np
import pytest
import torch
from networks.configs import BASE

from underdraw.errors import InputError, NotFoundError, WeightError
from underdraw.formats.stored import stored
from underdraw.models import (
    CLIPImageProjection,
    Grounding,
    UNet2DConditionModel,
    load_grounding,
    save_grounding,
)
from underdraw.networks.gligen.config import KINDS, MAPS
from underdraw.weights import key_tables as keys, single_file
from underdraw.weights.files import open_checkpoint
from underdraw.weights.save import save_tensors

ENCODER = {"resize": 32, "backbone_widths": (4, 6, 8), "backbone_depths": (1, 1, 1)}
SMALL = {"keypoints": {"people": 2}, **dict.fromkeys(MAPS, ENCODER)}
SMALL["semantic"] = {**ENCODER, "classes": 5}
UNET = UNet2DConditionModel(**BASE)


def part_of(kind):
    return Grounding.for_unet(UNET, kind, **SMALL.get(kind, {}))


def same(one, other):
    assert one.config == other.config
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def original(part, base=None):
    """Names as GLIGEN's own code has them."""
    table = keys.inverse(single_file.table_of("unet", UNET.config.to_dict()))
    table["downsample_net"] = "downsample_net"
    state = {**(base or {}), **part.state_dict()}
    return {keys.rename(name, table): value for name, value in state.items()}


def rest_of_a_run():
    return {
        "autoencoder": {"decoder.conv_in.weight": torch.zeros(2)},
        "text_encoder": {"transformer.text_model.embeddings.position_ids": torch.arange(3)},
        "diffusion": {"betas": torch.zeros(3)},
        "opt": {"state": {0: {"exp_avg": torch.zeros(2)}}},
        "config_dict": {"target": "text_grounding_net", "size": 64},
        "iters": 7,
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_or_folder_of_its_own(tmp_path, kind):
    part = part_of(kind)
    for name in ("part.safetensors", "part"):
        save_grounding(part, tmp_path / name)
        assert same(load_grounding(tmp_path / name), part)
    assert same(Grounding.from_pretrained(tmp_path / "part"), part)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoints_of_the_original(tmp_path, kind):
    """The whole training run is in them; only the part is taken."""
    part = part_of(kind)
    model = original(part, UNET.state_dict())
    (tmp_path / kind).mkdir()
    path = tmp_path / kind / "diffusion_pytorch_model.pth"
    torch.save({"model": model, **rest_of_a_run()}, path)
    assert same(load_grounding(path, UNET), part)
    other = UNet2DConditionModel(**BASE)
    assert load_grounding(path, other).config.kind == kind


@pytest.mark.parametrize("kind", ["text", "depth"])
def test_adapters_without_the_unet(tmp_path, kind):
    """Under the original's names, as they go round, and under those of folders."""
    part = part_of(kind)
    named = {"original": original(part), "folder": part.state_dict()}
    for how, state in named.items():
        path = tmp_path / f"{how}-{kind}.safetensors"
        save_tensors(path, {n: stored(v.numpy()) for n, v in state.items()}, {"format": "pt"})
        assert same(load_grounding(path, UNET), part)


def test_canny_and_depth_look_alike(tmp_path):
    part = part_of("canny")
    torch.save({"model": original(part)}, tmp_path / "edges.pth")
    with pytest.raises(InputError, match="give kind='canny' or kind='depth'"):
        load_grounding(tmp_path / "edges.pth", UNET)
    assert same(load_grounding(tmp_path / "edges.pth", UNET, kind="canny"), part)
    # A folder of the original has no config; its name may tell.
    folder = tmp_path / "generation-canny"
    folder.mkdir()
    torch.save({"model": original(part)}, folder / "diffusion_pytorch_model.bin")
    assert same(load_grounding(folder, UNET), part)
    with pytest.raises(InputError, match=r"kind='text'.*canny or depth"):
        load_grounding(tmp_path / "edges.pth", UNET, kind="text")
    with pytest.raises(InputError, match="kind='edges' is not known"):
        load_grounding(tmp_path / "edges.pth", UNET, kind="edges")


@pytest.mark.parametrize("channels", [4, 9])
@pytest.mark.parametrize("attention", ["gated", "gated-text-image"])
def test_gated_folders(tmp_path, channels, attention):
    """Of a UNet or of a pipeline; an inpainting one brings its first convolution where needed."""
    gated = UNet2DConditionModel(**{**BASE, "attention_type": attention, "in_channels": channels})
    gated.save_pretrained(tmp_path / "pipeline" / "unet")
    (tmp_path / "pipeline" / "model_index.json").write_text("{}")
    for place in ("pipeline", "pipeline/unet"):
        assert same(load_grounding(tmp_path / place, UNET), gated.lift_grounding())
        assert same(load_grounding(tmp_path / place, gated), gated.grounding)
    assert UNet2DConditionModel.from_pretrained(tmp_path / "pipeline" / "unet").grounding


def test_one_file_checkpoints(tmp_path):
    gated = UNet2DConditionModel(**{**BASE, "attention_type": "gated"})
    tensors = {n: stored(v.numpy()) for n, v in gated.state_dict().items()}
    whole = single_file.to_single_file({"unet": (gated.export_config(), tensors)})
    save_tensors(tmp_path / "whole.safetensors", whole)
    assert same(load_grounding(tmp_path / "whole.safetensors", UNET), gated.grounding)


def test_dtype_and_backend_follow_the_unet(tmp_path):
    save_grounding(part_of("text"), tmp_path / "part.safetensors")
    half = UNet2DConditionModel(**BASE).half()
    assert load_grounding(tmp_path / "part.safetensors", half).dtype == torch.float16
    assert load_grounding(tmp_path / "part.safetensors").dtype == torch.float32


# -- errors
def changed(tmp_path, change, kind="text"):
    state = original(part_of(kind))
    change(state)
    torch.save({"model": state}, tmp_path / "part.pth")
    return tmp_path / "part.pth"


ATTENTION = "input_blocks.1.1.transformer_blocks.0.fuser"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop(f"{ATTENTION}.alpha_attn"), r"1 missing: down_blocks.0.*alpha_attn"),
        (lambda s: s.update({f"{ATTENTION}.beta": torch.zeros(2)}), r"1 left over: .*beta"),
        (lambda s: s.update({"position_net.more": torch.zeros(2)}), r"1 left over: .*more"),
        (lambda s: s.update({"surprise": torch.zeros(2)}), r"1 left over: .*surprise"),
        (
            lambda s: [s.pop(n) for n in list(s) if n.startswith(ATTENTION)],
            r"1 attentions have no fuser: down_blocks\.0\.attentions\.0",
        ),
        (lambda s: [s.pop(n) for n in list(s) if ".fuser." in n], "no fuser is inside"),
        (lambda s: s.update({f"{ATTENTION}.norm1.bias": torch.zeros(5)}), "of another kind"),
    ],
    ids=["missing", "unknown", "unknown in net", "unknown beside", "block", "none", "shape"],
)
def test_strict_in_both_directions(tmp_path, change, message):
    path = changed(tmp_path, change)
    with pytest.raises(WeightError, match=message) as error:
        load_grounding(path, UNET)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_what_is_no_grounding_part(tmp_path):
    """Defect 6 of diffusers: such a checkpoint gives an attribute error there."""
    UNET.save_pretrained(tmp_path / "plain")
    with pytest.raises(WeightError, match=r"attention_type='default'.*not a GLIGEN checkpoint"):
        load_grounding(tmp_path / "plain", UNET)
    lora = {"lora_unet_x.lora_up.weight": stored(np.zeros((2, 2), "f4"))}
    save_tensors(tmp_path / "lora.safetensors", lora)
    with pytest.raises(WeightError, match=r"position_net.*a LoRA, not a GLIGEN checkpoint"):
        load_grounding(tmp_path / "lora.safetensors", UNET)
    with pytest.raises(NotFoundError):
        load_grounding(tmp_path / "nothing", UNET)


def test_another_unet(tmp_path):
    save_grounding(part_of("text"), tmp_path / "part.safetensors")
    wider = UNet2DConditionModel(**{**BASE, "block_out_channels": (8, 16, 32)})
    with pytest.raises(InputError, match=r"trained for another UNet: widths 8 .*24 .*32 "):
        load_grounding(tmp_path / "part.safetensors", wider)


def test_the_config_inside_a_file_is_checked(tmp_path):
    save_grounding(part_of("text"), tmp_path / "part.safetensors")
    read = open_checkpoint(tmp_path / "part.safetensors")
    save_tensors(tmp_path / "bad.safetensors", read.tensors, {"underdraw.grounding": "[1"})
    with pytest.raises(WeightError, match=r"metadata 'underdraw\.grounding' is not readable"):
        load_grounding(tmp_path / "bad.safetensors")


def test_the_projection_matrix(tmp_path):
    """The file has no suffix; the original multiplies by it from the right."""
    matrix, x = torch.randn(6, 6), torch.randn(3, 6)
    torch.save(matrix, tmp_path / "projection_matrix")
    module = CLIPImageProjection.from_matrix_file(tmp_path / "projection_matrix")
    assert torch.allclose(module(x), x @ matrix, atol=1e-6)
    module.save_pretrained(tmp_path / "image_project")
    again = CLIPImageProjection.from_pretrained(tmp_path / "image_project")
    assert torch.equal(again(x), module(x))
    torch.save(torch.randn(6, 5), tmp_path / "other.pth")
    with pytest.raises(WeightError, match="a single square matrix"):
        CLIPImageProjection.from_matrix_file(tmp_path / "other.pth")
    with pytest.raises(NotFoundError):
        CLIPImageProjection.from_matrix_file(tmp_path / "none")
