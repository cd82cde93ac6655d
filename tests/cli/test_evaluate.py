"""`underdraw evaluate`: scores belong to tests/evaluation; here, what is asked for and kept."""

import json
import shutil

import pytest

from underdraw import evaluation


class Report:
    def table(self):
        return "score 1.0"

    def to_json(self):
        return {"score": 1.0}


@pytest.fixture
def calls(monkeypatch):
    """What the evaluation is asked for."""
    made = []

    def text_to_image(pipe, captions, **options):
        made.append((pipe, captions, options))
        return Report()

    monkeypatch.setattr(evaluation, "load_evaluator", lambda: "judge")
    monkeypatch.setattr(evaluation, "evaluate_text_to_image", text_to_image)
    monkeypatch.setattr(evaluation, "evaluate_autoencoder", lambda *_, **__: Report())
    return made


def test_a_report(run, tiny, calls, tmp_path):
    (tmp_path / "out").mkdir()
    done = run(
        *("evaluate", "--model", tiny, "--count", 5, "--steps", 3, "--guidance", 4, "--seed", 9),
        *("--batch", 2, "--solver", "euler", "--dtype", "float32", "--out", "out"),
    )
    pipe, captions, options = calls[0]
    assert len(captions) == 5
    assert type(pipe.scheduler).__name__ == "EulerDiscreteScheduler"
    assert {n: v for n, v in options.items() if n != "folder"} == {
        "steps": 3, "seed": 9, "batch": 2, "progress": True, "evaluator": "judge",
        "guidance_scale": 4.0,
    }  # fmt: skip
    assert done.stdout == "score 1.0\nscore 1.0\n"
    assert done.stderr == f"{tiny}: float32 on cpu\nreport: out\n"
    assert json.loads((tmp_path / "out" / "autoencoder.json").read_text()) == {"score": 1.0}


def test_defaults_are_those_of_the_report_that_counts(run, tiny, calls):
    run("evaluate", "--model", tiny, "--no-autoencoder")
    _, captions, options = calls[0]
    assert (len(captions), options["steps"], options["seed"]) == (128, 20, 0)
    assert "guidance_scale" not in options


def test_a_model_advises_its_guidance(run, advised, calls):
    for arguments, scale in ((), 3.25), (("--guidance", 6), 6.0):
        run("evaluate", "--model", advised, "--no-autoencoder", *arguments)
        assert calls[-1][2]["guidance_scale"] == scale


def test_interrupted_it_says_how_to_go_on(run, tiny, calls, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "evaluate_text_to_image", stop)
    told = run("evaluate", "--model", tiny, "--out", "out", code=130).stderr
    assert told.endswith("stopped: pictures made so far are in out; the same command goes on\n")


def test_mistakes(run, tiny, calls):
    assert "--count" in run("evaluate", "--count", 0, code=2).stderr
    failed = run("evaluate", "--model", tiny, "--solver", "foo", code=2)
    assert "--solver foo is not known" in failed.stderr


def test_boxes_are_judged_with_the_weights_that_are_named(run, tiny, calls, monkeypatch, tmp_path):
    from underdraw import StableDiffusionPipeline
    from underdraw.evaluation import grounding
    from underdraw.models import Grounding

    asked = []

    def judged(generate, layouts, **options):
        asked.append((generate(layouts[:2], [3, 4]), layouts, options))
        filled = options["fill"](options["holes"][:1], [5])
        assert filled.shape == asked[0][0][:1].shape
        assert options["round_trip"](filled).shape == filled.shape
        return Report()

    monkeypatch.setattr(grounding, "evaluate_grounding", judged)
    unet = StableDiffusionPipeline.from_pretrained(tiny).unet
    Grounding.for_unet(unet, "text").save_pretrained(tmp_path / "boxes")
    arguments = ("evaluate", "--task", "grounding", "--model", tiny, "--steps", 2, "--count", 3)
    done = run(*arguments, "--grounding", "boxes", "--strength", 1, 0, 0, "--out", "out")
    assert done.stdout == "score 1.0\n"
    pictures, layouts, options = asked[0]
    assert (len(layouts), len(options["holes"]), options["subjects"]) == (3, 1, None)
    assert pictures.shape[0] == 2
    assert options["settings"]["arguments"] == {"strength": "(1.0, 0.0, 0.0)"}
    failed = run(*arguments, "--out", "other", code=2)
    assert "has no grounding weights for boxes; name some with --grounding" in failed.stderr
    failed = run("evaluate", "--model", tiny, "--grounding", "boxes", code=2)
    assert "are for --task grounding" in failed.stderr


def test_maps_are_judged_with_the_nets_that_belong_to_the_model(
    run, tiny, calls, monkeypatch, tmp_path
):
    from pipelines.tiny import controlnet

    from underdraw import UNet2DConditionModel
    from underdraw.evaluation import structure

    asked = []

    def judged(generate, maps, **options):
        asked.append((generate([one.along("edges") for one in maps[:2]], [3, 4]), maps, options))
        return Report()

    monkeypatch.setattr(structure, "evaluate_structure", judged)
    shutil.copytree(tiny, tmp_path / "family")
    unet = UNet2DConditionModel.from_pretrained(tiny, subfolder="unet")
    controlnet(unet).save_pretrained(tmp_path / "family" / "structure" / "edges")
    arguments = ("evaluate", "--task", "structure", "--steps", 2, "--count", 3, "--out", "out")
    assert run(*arguments, "--model", "family").stdout == "score 1.0\n"
    pictures, maps, options = asked[0]
    assert (len(maps), options["kinds"], pictures.shape[0]) == (3, ["edges"], 2)
    assert options["settings"]["steps"] == 2
    failed = run(*arguments, "--model", tiny, code=2)
    assert "has no nets of its own for maps of edges or of depth" in failed.stderr
