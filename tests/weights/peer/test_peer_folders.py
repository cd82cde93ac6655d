"""Folders between the peers and us: what either writes, the other reads."""

import numpy as np
import pytest
from diffusers import AutoencoderKL
from transformers import CLIPTextConfig, CLIPTextModel

from underdraw.formats.stored import stored
from underdraw.weights import folders, save


def small_vae():
    return AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )


def small_text():
    return CLIPTextModel(
        CLIPTextConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            vocab_size=300,
        )
    )


@pytest.mark.parametrize("make", [small_vae, small_text])
@pytest.mark.parametrize("variant", [None, "fp16", "non_ema"])
@pytest.mark.parametrize("size", ["10GB", "20KB"])
def test_what_the_peers_save_is_read(tmp_path, make, variant, size):
    module = make()
    module.save_pretrained(tmp_path / "part", variant=variant, max_shard_size=size)
    names = [path.name for path in (tmp_path / "part").iterdir()]
    assert any("-of-" in name for name in names) == (size == "20KB")
    config, tensors = folders.open_component(tmp_path, "part", variant)
    assert config
    assert tensors.keys() == module.state_dict().keys()
    for name, tensor in module.state_dict().items():
        assert np.array_equal(tensors[name].load(), tensor.numpy())


@pytest.mark.parametrize("make", [small_vae])
def test_pickled_folders_of_the_peers(tmp_path, make):
    module = make()
    module.save_pretrained(tmp_path, safe_serialization=False)
    config, tensors = folders.open_component(tmp_path)
    assert config["_class_name"] == "AutoencoderKL"
    assert tensors.keys() == module.state_dict().keys()


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_the_peer_reads_shards(tmp_path, variant):
    vae = small_vae()
    tensors = {name: stored(t.numpy()) for name, t in vae.state_dict().items()}
    vae.save_config(tmp_path)
    written = save.save_weights(tmp_path, tensors, variant=variant, max_shard_size="100KB")
    assert len(written) > 3
    assert all((tmp_path / name).stat().st_size < 160_000 for name in written)
    again = AutoencoderKL.from_pretrained(tmp_path, variant=variant).state_dict()
    _, ours = folders.open_component(tmp_path, variant=variant)
    assert ours.keys() == again.keys()
    for name, tensor in vae.state_dict().items():
        assert np.array_equal(again[name].numpy(), tensor.numpy())
        assert np.array_equal(ours[name].load(), tensor.numpy())
