"""Gated folders between diffusers and us, and what diffusers gets wrong on gated UNets."""

import pytest
import torch
from diffusers import UNet2DConditionModel as Peer
from networks.configs import BASE

from underdraw.errors import InputError
from underdraw.models import Grounding, UNet2DConditionModel

GATED = {**BASE, "attention_type": "gated-text-image", "in_channels": 9}


def test_folders_go_both_ways(tmp_path):
    peer = Peer(**GATED)
    peer.save_pretrained(tmp_path / "peer")
    ours = UNet2DConditionModel.from_pretrained(tmp_path / "peer")
    assert ours.grounding is not None
    ours.without_grounding().with_grounding(ours.grounding).save_pretrained(tmp_path / "ours")
    again = Peer.from_pretrained(tmp_path / "ours", use_safetensors=True)
    assert again.config.attention_type == "gated-text-image"
    state = peer.state_dict()
    assert {name: value.shape for name, value in ours.state_dict().items()} == {
        name: value.shape for name, value in state.items()
    }
    for name, value in again.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_the_peer_gives_an_adapter_to_the_fusers():
    """Defect 5: it takes every attention that is not `attn1` for one to the text, and so asks for
    twice the layers that an IP-Adapter has. Ours: `test_grounding_objects`."""
    peer = Peer(**{**BASE, "attention_type": "gated"})
    fusers = [n for n in peer.attn_processors if ".fuser." in n]
    blocks = len(Grounding.for_unet(UNet2DConditionModel(**BASE), "text").config.fusers)
    assert len(fusers) == blocks
    adapter = {}
    for i, name in enumerate(n for n in Peer(**BASE).attn_processors if "attn2" in n):
        width = peer.get_submodule(name.removesuffix(".processor")).to_q.weight.shape[0]
        adapter |= {f"{2 * i + 1}.to_{p}_ip.weight": torch.zeros(width, 10) for p in "kv"}
    image = {"proj.weight": torch.zeros(4 * 10, 6), "norm.weight": torch.zeros(10)}
    state = {"ip_adapter": adapter, "image_proj": image}
    plain = Peer(**BASE)
    plain._convert_ip_adapter_attn_to_diffusers([state], low_cpu_mem_usage=False)
    with pytest.raises((KeyError, RuntimeError)):
        peer._convert_ip_adapter_attn_to_diffusers([state], low_cpu_mem_usage=False)


@pytest.mark.parametrize(("kind", "n"), [("gated", 30), ("gated-text-image", 3)])
def test_a_call_with_boxes_as_the_peer_takes_them(kind, n):
    torch.manual_seed(0)
    peer = Peer(**{**BASE, "attention_type": kind}).eval()
    for value in peer.parameters():
        value.data += 0.1 * torch.randn_like(value)  # opens the gates, too
    ours = UNet2DConditionModel.adopt(peer)
    low, high = torch.rand(2, 3, n, 4).sort(0).values
    boxes = {"boxes": torch.cat((low[..., :2], high[..., 2:]), -1)}
    features = ["positive"] if kind == "gated" else ["phrases", "image"]
    for name in ("masks", *(f"{name}_masks" for name in features if kind != "gated")):
        boxes[name] = (torch.rand(3, n) > 0.4).float()
    for name in features:
        boxes[f"{name}_embeddings"] = torch.randn(3, n, BASE["cross_attention_dim"])
    x, text = torch.randn(3, 4, 9, 14), torch.randn(3, 7, BASE["cross_attention_dim"])
    given = {"gligen": dict(boxes)}
    with torch.no_grad():
        mine = ours(x, 10, text, cross_attention_kwargs=given).sample
        plain = ours(x, 10, text).sample
        theirs = peer(x, 10, text, cross_attention_kwargs={"gligen": dict(boxes)}).sample
    assert given["gligen"].keys() == boxes.keys()  # diffusers leaves something else in it
    assert (mine - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    assert (mine - plain).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("kind", "given"),
    [("default", {"gligen": {}}), ("gated", {"scales": 1}), ("gated", {"gligen": {"boxes": 1}})],
)
def test_other_arguments_of_attention_are_refused(kind, given):
    ours = UNet2DConditionModel(**{**BASE, "attention_type": kind})
    with pytest.raises(InputError, match="cross_attention_kwargs"):
        ours(torch.randn(1, 4, 8, 8), 1, torch.randn(1, 7, 10), cross_attention_kwargs=given)
