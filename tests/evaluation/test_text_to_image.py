"""The whole evaluation with generators that are known to be right, wrong or interrupted."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from underdraw.errors import InputError
from underdraw.evaluation import evaluate_text_to_image, held_out_captions, real_renders
from underdraw.evaluation.sheet import judged_sheet

CAPTIONS = held_out_captions(20, seed=31, mix={1: 2, 2: 3})
WRONG = "a gray torus"


def perfect(prompts, seeds):
    return real_renders(prompts, seeds)


def wrong(prompts, seeds):
    return real_renders([WRONG] * len(prompts), seeds)


class Pipeline:
    """Called as a pipeline is, and only so."""

    def __init__(self):
        self.calls = []

    @property
    def components(self):
        return {}

    def __call__(self, prompt, *, num_inference_steps, seed, output_type, guidance_scale=7.5):
        assert output_type == "np"
        self.calls.append((len(prompt), num_inference_steps, list(seed), guidance_scale))
        return SimpleNamespace(images=real_renders(prompt, seed))


def test_a_perfect_generator_reaches_the_bound(tmp_path):
    report = evaluate_text_to_image(
        perfect, CAPTIONS, batch=6, folder=tmp_path / "run", progress=False, seed=100
    )
    assert report.scores.one.of == 8
    assert report.scores.two.of == 12
    assert report.scores.mention.share > 0.9
    assert report.upper_bound.mention.share > 0.9
    assert report.scores.relation.share > 0.9
    told = json.loads((tmp_path / "run" / "report.json").read_text())
    assert told["scores"]["mention"]["right"] == report.scores.mention.right
    assert told["upper_bound"]["mention"]["of"] == 32
    assert told["settings"]["seed"] == 100
    assert (tmp_path / "run" / "table.txt").read_text() == report.table() + "\n"
    assert "upper bound" in report.table()
    with Image.open(tmp_path / "run" / "sheet.png") as sheet:
        assert sheet.width > 8 * 128
        assert sheet.height > 3 * 128
    assert len(list((tmp_path / "run").glob("0*.png"))) == 20


def test_a_wrong_generator_scores_nothing():
    report = evaluate_text_to_image(wrong, CAPTIONS, progress=False)
    allowed = sum(m.colour in ("gray", None) for c in CAPTIONS for m in c.mentions)
    assert report.scores.mention.right <= allowed
    assert report.scores.two.right == 0
    assert report.upper_bound.mention.share > 0.9


def test_pipelines_are_called_their_way():
    pipe = Pipeline()
    report = evaluate_text_to_image(
        pipe, CAPTIONS[:5], steps=3, seed=40, batch=2, progress=False, guidance_scale=4.0
    )
    assert pipe.calls == [
        (2, 3, [40, 41], 4.0),
        (2, 3, [42, 43], 4.0),
        (1, 3, [44], 4.0),
    ]
    assert report.settings["steps"] == 3
    assert report.settings["arguments"] == {"guidance_scale": "4.0"}


def test_an_interrupted_run_goes_on(tmp_path):
    asked = []

    def stops(prompts, seeds):
        if len(asked) >= 8:
            raise KeyboardInterrupt
        asked.extend(seeds)
        return perfect(prompts, seeds)

    def goes_on(prompts, seeds):
        asked.extend(seeds)
        return perfect(prompts, seeds)

    with pytest.raises(KeyboardInterrupt):
        evaluate_text_to_image(stops, CAPTIONS, batch=4, folder=tmp_path, progress=False)
    assert len(list(tmp_path.glob("0*.png"))) == 8
    (tmp_path / "0003.png").write_bytes(b"half a pict")  # as a full disk leaves it
    resumed = evaluate_text_to_image(goes_on, CAPTIONS, batch=5, folder=tmp_path, progress=False)
    assert sorted(asked) == sorted([*range(20), 3])
    whole = evaluate_text_to_image(perfect, CAPTIONS, batch=20, progress=False)
    assert resumed.judgements == whole.judgements
    assert resumed.scores == whole.scores
    # And once more: nothing is left to make.
    again = evaluate_text_to_image(stops, CAPTIONS, folder=tmp_path, progress=False)
    assert again.scores == whole.scores


def test_a_folder_of_another_run_is_left_alone(tmp_path):
    evaluate_text_to_image(perfect, CAPTIONS[:2], folder=tmp_path / "a", progress=False)
    with pytest.raises(InputError, match="other seed"):
        evaluate_text_to_image(perfect, CAPTIONS[:2], seed=1, folder=tmp_path / "a")
    with pytest.raises(InputError, match="other captions"):
        evaluate_text_to_image(perfect, CAPTIONS[:3], folder=tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "letter.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        evaluate_text_to_image(perfect, CAPTIONS[:2], folder=tmp_path / "b")
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["letter.txt"]


@pytest.fixture
def model():
    """A random pipeline that makes pictures of 64 x 64."""
    from pipelines import tiny

    return tiny.pipeline()


def test_a_folder_says_which_model_made_it(tmp_path, model):
    model.source = "some/where"
    call = {"captions": CAPTIONS[:2], "steps": 1, "progress": False, "folder": tmp_path / "a"}
    first = evaluate_text_to_image(model, **call)
    told = json.loads((tmp_path / "a" / "run.json").read_text())["model"]
    assert told == first.settings["model"]
    assert (told["source"], told["dtype"]) == ("some/where", "float32")
    assert told["scheduler"] == "EulerDiscreteScheduler"
    assert evaluate_text_to_image(model, **call).scores == first.scores


@pytest.mark.parametrize(
    "change",
    [
        lambda pipe: pipe.unet.conv_out.bias.data.add_(1e-3),
        lambda pipe: pipe.to(dtype=__import__("torch").bfloat16),
        lambda pipe: setattr(pipe, "source", "else/where"),
        lambda pipe: setattr(pipe, "scheduler", type(pipe.scheduler)(beta_end=0.013)),
    ],
)
def test_pictures_of_another_model_are_not_taken_for_its_own(tmp_path, model, change):
    call = {"captions": CAPTIONS[:1], "steps": 1, "progress": False, "folder": tmp_path / "a"}
    evaluate_text_to_image(model, **call)
    change(model)
    with pytest.raises(InputError, match="other model"):
        evaluate_text_to_image(model, **call)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"steps": 0}, "steps=0"),
        ({"batch": 0}, "batch=0"),
        ({"seed": -1}, "seed=-1"),
        ({"captions": []}, "empty"),
        ({"captions": ["a red giraffe"]}, "giraffe"),
    ],
)
def test_wrong_arguments(arguments, words):
    with pytest.raises(InputError, match=words):
        evaluate_text_to_image(perfect, **{"captions": CAPTIONS[:1], **arguments})


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (np.zeros((2, 64, 64, 3), np.float32), "2 pictures for 1"),
        (np.full((1, 64, 64, 3), np.nan, np.float32), "nan"),
        (np.zeros((1, 3, 64, 64), np.float32), "height, width, 3"),
        ([], "empty"),
    ],
)
def test_wrong_pictures(made, words):
    with pytest.raises(InputError, match=words):
        evaluate_text_to_image(lambda p, s: made, CAPTIONS[:1], progress=False)


def test_the_sheet_marks_what_is_wrong():
    report = evaluate_text_to_image(wrong, CAPTIONS[-2:], progress=False)
    pictures = real_renders([WRONG] * 2)
    sheet = np.asarray(judged_sheet(pictures, report.judgements, columns=2), np.float32)
    red = sheet[..., 0] > sheet[..., 1:].max(-1) + 60.0
    assert red[0:4].any()  # the frame
    assert red[140:].any()  # the words
    for arguments in ({"columns": 0}, {"scale": 0}):
        with pytest.raises(InputError):
            judged_sheet(pictures, report.judgements, **arguments)
