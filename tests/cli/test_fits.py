"""What fits neither model nor call is told before a network runs, on the command line, too."""

import numpy as np
import pytest
from controls.test_subject import encoder
from PIL import Image
from pipelines import tiny as small

from underdraw import UNet2DConditionModel
from underdraw.engines import eager
from underdraw.models import Grounding


@pytest.fixture(scope="module")
def weights(tiny, tmp_path_factory):
    """Folders of weights, and a picture."""
    place = tmp_path_factory.mktemp("weights")
    unet = UNet2DConditionModel.from_pretrained(tiny, subfolder="unet")
    Grounding.for_unet(unet, "text").save_pretrained(place / "boxes")
    Grounding.for_unet(unet, "keypoints").save_pretrained(place / "keypoints")
    small.controlnet({**small.UNET, "cross_attention_dim": 24}).save_pretrained(place / "net")
    encoder().save_pretrained(place / "subject")
    pixels = np.random.default_rng(0).integers(0, 256, (11, 17, 3), np.uint8)
    Image.fromarray(pixels).save(place / "photo.png")
    return place


LONG = " ".join(["red"] * 80)
BOX = ("--box", "a cube", "0", "0", "1", "1")
WRONG = {
    "phrase": (("--grounding", "{}/boxes", "--box", LONG, "0", "0", "1", "1"), "phrase='red red"),
    "boxes": (("--grounding", "{}/boxes", *BOX * 31), "at most 30"),
    "weights": (("--grounding", "{}/keypoints", *BOX), "attached: 'keypoints'"),
    "net": (("--structure", "{}/net", "{}/photo.png", "0.5"), "UNet"),
    "subject": (
        ("--subject-weights", "{}/subject", "--subject", "{}/photo.png", "toy cube"),
        "no PROMPT has these words",
    ),
}


@pytest.mark.parametrize("which", WRONG)
def test_before_a_network_runs(run, tiny, weights, tmp_path, monkeypatch, which):
    def refuse(self, question):
        raise AssertionError(f"{question.program.name} runs")

    monkeypatch.setattr(eager.Eager, "run", refuse)
    options, told = WRONG[which]
    given = [option.replace("{}", str(weights)) for option in options]
    call = ("generate", "a red cube", "a blue cube", "--steps", "3", "--out", "made")
    result = run(*call, "--model", tiny, *given, code=2)
    assert told in " ".join(result.stderr.split())
    assert not list(tmp_path.glob("made/*"))


def test_what_fits_does_run(run, tiny, weights, monkeypatch):
    """So what is told above is told about the options."""
    asked = []

    def stop(self, question):
        asked.append(question.program.name)
        raise KeyboardInterrupt

    monkeypatch.setattr(eager.Eager, "run", stop)
    run("generate", "a red cube", "--model", tiny, "--grounding", weights / "boxes", *BOX, code=130)
    assert asked == ["clip.text"]
