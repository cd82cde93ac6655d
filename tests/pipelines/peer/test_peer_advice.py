"""A folder with advice is a folder like any other to diffusers."""

import diffusers
from diffusers.utils import logging
from pipelines import tiny

from underdraw.pipelines.components.advice import Advice


def test_the_peer_reads_it_without_a_word(tmp_path, caplog):
    pipe = tiny.pipeline()
    pipe.advice = Advice(guidance_scale=4.5)
    pipe.save_pretrained(tmp_path / "ours")
    logging.enable_propagation()
    try:
        theirs = diffusers.StableDiffusionPipeline.from_pretrained(
            tmp_path / "ours", safety_checker=None, requires_safety_checker=False
        )
    finally:
        logging.disable_propagation()
    assert "underdraw" not in caplog.text
    assert theirs.unet.state_dict().keys() == pipe.unet.state_dict().keys()
