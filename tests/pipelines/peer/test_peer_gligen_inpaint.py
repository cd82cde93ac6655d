"""GLIGEN's inpainting against diffusers'.

Under `compat="diffusers"` both draw from PyTorch's global stream; in what order diffusers fills an
array depends on how a convolution laid it out in memory, so it is told to fill row by row. Without
compat, what lies inside the mask is compared, where nobody is wrong.
"""

import numpy as np
import pytest
import torch
from pipelines.peer import gligen, oracle
from pipelines.peer.test_peer_gligen import BLUE, BOXES, IMAGES, LIMIT, PHRASES, RED

PICTURE = gligen.picture((64, 64), 5)
CALLS = {
    "plain": {},
    "unguided": {"guidance_scale": 1.0},
    "always": {"gligen_scheduled_sampling_beta": 1.0},
    "batch": {"prompt": [RED, BLUE], "seeds": (1, 2), "gligen_scheduled_sampling_beta": 0.6},
    "other picture": {"gligen_inpaint_image": gligen.picture((90, 71), 5)},
    "thin box": {"gligen_boxes": [[0.1, 0.2, 0.3, 0.9], [0.51, 0.0, 0.8, 0.26]]},
}


def both(kind, latents=None, **arguments):
    """Images of both, each from a fresh global stream."""
    made = []
    for pipe in gligen.pair(kind):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(11)
            made.append(oracle.images(pipe, latents=latents, **arguments))
    return made


@pytest.fixture
def compat(monkeypatch):
    monkeypatch.setattr(torch, "randn_like", lambda like: torch.randn(like.shape))
    for kind in ("text, inpainting", "image, inpainting"):
        monkeypatch.setattr(gligen.pair(kind)[1], "compat", "diffusers")


@pytest.mark.usefixtures("compat")
@pytest.mark.parametrize(
    ("kind", "call"),
    [
        (kind, call)
        for kind in ("text, inpainting", "image, inpainting")
        for call in CALLS
        if kind[0] == "t" or call in ("plain", "batch")
    ],
)
def test_old_numbers(kind, call):
    arguments = {"gligen_boxes": BOXES, "gligen_phrases": PHRASES, "prompt": RED, **CALLS[call]}
    arguments.setdefault("gligen_inpaint_image", PICTURE)
    if kind[0] == "i":
        arguments["gligen_images"] = IMAGES
    theirs, ours = both(kind, **arguments)
    assert theirs.std() > 1e-3 and np.abs(theirs - ours).max() <= LIMIT


@pytest.mark.parametrize("guidance", [7.5, 1.0])
@pytest.mark.parametrize("kind", ["text, inpainting", "image, inpainting"])
def test_inside_of_the_mask_at_every_step(kind, guidance, monkeypatch):
    """With one noise for all calls, as `Region` keeps the background, the numbers are diffusers':
    inside of the mask after each call, outside before each call."""
    theirs, ours = gligen.pair(kind)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    monkeypatch.setattr(torch, "randn_like", lambda like: noise)
    gaussian = oracle.diffusers.models.autoencoders.vae.DiagonalGaussianDistribution
    monkeypatch.setattr(gaussian, "sample", lambda self, generator=None: self.mode())
    draw = "underdraw.pipelines.call.denoise.draw_noise"
    monkeypatch.setattr(draw, lambda components, plan, shape: noise.expand(*shape))
    arguments = {"gligen_boxes": BOXES, "gligen_phrases": PHRASES, "prompt": [RED, BLUE]}
    arguments |= {"gligen_inpaint_image": PICTURE, "gligen_scheduled_sampling_beta": 0.5}
    arguments |= {"guidance_scale": guidance, "latents": latents, "output_type": "latent"}
    if kind[0] == "i":
        arguments |= {"gligen_images": IMAGES, "gligen_scheduled_sampling_beta": 1.0}
    seen = []
    for pipe in (theirs, ours):
        steps = []
        with oracle.warnings.catch_warnings():
            oracle.warnings.simplefilter("ignore")
            pipe(
                num_inference_steps=4,
                callback=lambda i, t, x, steps=steps: steps.append(x.clone()),
                **arguments,
            )
        seen.append(torch.stack(steps))
    inside = 1 - theirs.draw_inpaint_mask_from_boxes(BOXES, (8, 8))
    assert seen[0].std() > 0.1 and inside.mean() < 0.9
    assert ((seen[0] - seen[1]) * inside).abs().max() <= LIMIT
    # Outside, ours ends on the picture; diffusers on what the network's last step makes of it.
    known = ours.vae.encode(ours.image_processor.preprocess(PICTURE)).latent_dist.mean
    known = known * ours.vae.config.scaling_factor
    drift = [((one[-1] - known) * (1 - inside)).abs().max().item() for one in seen]
    assert drift[1] <= 1e-5 < 1e-2 < drift[0]
