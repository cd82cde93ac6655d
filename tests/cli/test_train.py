"""`underdraw train`: what is trained belongs to tests/training; here, that it is reached."""

import json
from dataclasses import replace

import numpy as np
import pytest
from controls.test_subject import encoder
from PIL import Image

from underdraw.cli import train_family
from underdraw.training import recipes
from underdraw.training.workshop import Workshop
from underdraw.weights import folders


@pytest.fixture
def pictures(tmp_path):
    """A folder of captioned pictures, wider than high."""
    folder, rng = tmp_path / "pictures", np.random.default_rng(0)
    folder.mkdir()
    lines = []
    for i in range(5):
        array = rng.integers(0, 255, (70, 90, 3), dtype=np.uint8)
        Image.fromarray(array).save(folder / f"{i}.png")
        lines.append(json.dumps({"file_name": f"{i}.png", "text": ["a cone", "a cube"]}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


QUICK = ("--steps", 3, "--batch", 2, "--precision", "float32")


@pytest.mark.parametrize(
    ("recipe", "changed", "kept"),
    [("text-to-image", "unet", "vae"), ("autoencoder", "vae", "unet")],
)
def test_a_checkpoint_on_a_folder(run, tiny, pictures, recipe, changed, kept):
    arguments = ("train", recipe, "--data", pictures, "--model", tiny, "--out", "work", *QUICK)
    done = run(*arguments)
    assert done.stdout == "work/model\n"
    assert "on 5 pictures, 3 steps" in done.stderr
    for part, same in ((changed, False), (kept, True)):
        before, after = (folders.open_component(f, part)[1] for f in (tiny, "work/model"))
        assert before.keys() == after.keys()
        equal = all(np.array_equal(t.load(), after[n].load()) for n, t in before.items())
        assert equal is same
    assert "no problems found" in run("info", "work/model", "--check").stdout
    run("generate", "a cone", "--model", "work/model", "--steps", 2, "--out", "a.png")


def boxes_of(pictures, sides=(1, 1)):
    """Two boxes for each picture of the folder, as current trainers write them."""
    (pictures / "metadata.jsonl").unlink()
    for path in pictures.glob("*.png"):
        boxes = [[0.2, 0.1, 0.6, 0.7], [0.5, 0.5, 0.9, 1.0]]
        boxes = [[v * side for v, side in zip(b, sides * 2, strict=True)] for b in boxes]
        lines = [json.dumps({"label": f"a cube {b[0]}", "bbox": b}) for b in boxes]
        path.with_suffix(".bbox").write_text("\n".join(lines))
    return pictures


@pytest.mark.parametrize(
    ("sides", "options"),
    [((1, 1), ()), ((90, 70), ("--coordinates", "pixels")), ((1, 1), ("--inpainting",))],
)
def test_grounding_layers_beside_a_checkpoint(run, tiny, pictures, sides, options):
    arguments = ("train", "grounding", "--data", boxes_of(pictures, sides), "--model", tiny)
    done = run(*arguments, "--out", "work", *QUICK, *options)
    assert done.stdout == "work/grounding\n"
    assert "on 5 pictures, 3 steps" in done.stderr
    config, made = folders.open_component("work/grounding", "")
    assert config["kind"] == "text"
    first = "down_blocks.0.attentions.0.transformer_blocks.0.fuser.ff.net.2.weight"
    assert np.abs(made[first].load()).max() > 0  # began at zero
    assert ("conv_in.weight" in made) == ("--inpainting" in options)


def test_a_seed_gives_the_same_grounding_layers_each_time(run, tiny, pictures):
    arguments = ("train", "grounding", "--data", boxes_of(pictures), "--model", tiny, *QUICK)
    for out, seed in (("a", 3), ("b", 3), ("c", 4)):
        run(*arguments, "--seed", seed, "--out", out)
    a, b, c = (folders.open_component(f"{out}/grounding", "")[1] for out in "abc")
    assert all(np.array_equal(t.load(), b[name].load()) for name, t in a.items())
    assert not all(np.array_equal(t.load(), c[name].load()) for name, t in a.items())


def no_objects(pictures):
    """Captions alone: for other recipes that is enough."""


def empty_lists(pictures):
    lines = [json.dumps({"file_name": f"{i}.png", "objects": []}) for i in range(5)]
    (pictures / "metadata.jsonl").write_text("\n".join(lines))


def empty_files(pictures):
    (pictures / "metadata.jsonl").unlink()
    for i in range(5):
        (pictures / f"{i}.json").write_text("[]")


def outside(pictures):
    """Pictures are 90 wide and 70 high; a square in the middle is cut from them."""
    (pictures / "metadata.jsonl").unlink()
    for i in range(5):
        line = json.dumps({"label": "a cube", "bbox": [0.0, 0.1, 0.05, 0.9]})
        (pictures / f"{i}.bbox").write_text(line)


@pytest.mark.parametrize("told", [no_objects, empty_lists, empty_files, outside])
def test_a_folder_without_boxes_is_refused(run, tiny, pictures, told, tmp_path):
    told(pictures)
    arguments = ("train", "grounding", "--data", pictures, "--model", tiny, *QUICK)
    failed = run(*arguments, "--out", "work", code=2)
    wanted = "no box of 5 pictures" if told is outside else "none of 5 annotated pictures"
    assert wanted in failed.stderr
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("maps", [True, False])
def test_a_controlnet_for_a_checkpoint(run, tiny, pictures, maps):
    listed = [json.loads(line) for line in (pictures / "metadata.jsonl").read_text().splitlines()]
    for one in listed:
        with Image.open(pictures / one["file_name"]) as picture:
            picture.convert("L").save(pictures / f"map-{one['file_name']}")
        one["map"] = f"map-{one['file_name']}"
    if maps:
        (pictures / "metadata.jsonl").write_text("\n".join(map(json.dumps, listed)))
    arguments = ("train", "structure", "--data", pictures, "--model", tiny, *QUICK)
    done = run(*arguments, *(() if maps else ("--maps", "edges")), "--out", "work")
    assert done.stdout == "work/structure\n" and "on 5 pictures, 3 steps" in done.stderr
    _, made = folders.open_component("work/structure", "")
    assert np.abs(made["controlnet_mid_block.weight"].load()).max() > 0
    beside = ("--structure", "work/structure", pictures / "map-1.png", "1")
    run("generate", "a cone", "--model", tiny, "--steps", 2, *beside, "--out", "a.png")


@pytest.mark.parametrize("recipe", ["text-to-image", "autoencoder", "grounding"])
@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n", None])
def test_pictures_that_cannot_be_read_are_told_before_a_model_is_loaded(
    run, tiny, pictures, recipe, content, monkeypatch
):
    from underdraw.cli import loading

    monkeypatch.setattr(loading, "load_pipeline", None)
    if recipe == "grounding":
        boxes_of(pictures)
    place = pictures / "3.png"
    place.write_bytes(content) if content is not None else place.unlink()
    arguments = ("train", recipe, "--data", pictures, "--model", tiny, *QUICK)
    if content is None and recipe == "grounding":  # boxes of a picture that is not there
        place.symlink_to(pictures / "nowhere.png")
    failed = run(*arguments, "--out", "work", code=2)
    assert "3.png" in failed.stderr


def test_interrupted_it_goes_on_with_the_same_command(run, tiny, pictures, monkeypatch):
    from underdraw.training import loop

    arguments = ("train", "text-to-image", "--data", pictures, "--model", tiny, *QUICK)
    run(*arguments, "--out", "whole")
    original = loop.train
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train", lambda *a, **k: original(*a, **k, stop_after=2))
        stopped = run(*arguments, "--out", "parts", code=130)
    assert "stopped before step 2" in stopped.stderr
    assert "goes on from there" in stopped.stderr
    run(*arguments, "--out", "parts")
    whole, parts = (folders.open_component(f"{n}/model", "unet")[1] for n in ("whole", "parts"))
    assert all(np.array_equal(t.load(), parts[name].load()) for name, t in whole.items())


def test_stages_of_the_scenes_family_run_in_order_and_once(run, monkeypatch, tmp_path):
    from underdraw.training import recipes

    calls = []

    def stage(name, folder, recipe, **options):
        calls.append((name, recipe, options))
        (folder / name).mkdir(exist_ok=True)

    monkeypatch.setattr(recipes, "train_stage", stage)
    arguments = ("train", "text-to-image", "--out", "work", "--device", "cpu")
    done = run(*arguments, "--steps", 7, "--seed", 3, "--minutes", 2, "--scenes", 100)
    names = ["renders", "text", "autoencoder", "latents", "denoiser"]
    assert [name for name, _, _ in calls] == names
    assert done.stdout == "work/denoiser\n"
    plain, recipe = recipes.ScenesRecipe(), calls[-1][1]
    assert (recipe.run("denoiser").steps, recipe.run("denoiser").seed) == (7, 3)
    assert recipe.run("autoencoder") == plain.run("autoencoder")
    assert recipe.scenes == 100
    assert calls[-1][2] == {"minutes": 2, "device": "cpu", "progress": True}
    calls.clear()
    run(*arguments)
    assert [name for name, _, _ in calls] == ["denoiser"]
    assert set(recipes.STAGES) == {name for group in stages().values() for name in group}


def stages():
    from underdraw.cli.train import STAGES

    return STAGES


def test_a_few_steps_of_the_text_tower_of_the_scenes_family(run, tmp_path, monkeypatch):
    # It needs captions of scenes alone; things in views are rendered in `training/test_recipes.py`.
    views = recipes.render_views
    monkeypatch.setattr(recipes, "render_views", lambda to, count, **how: views(to, 2, **how))
    whole, narrow = Workshop.text_config, {"hidden_size": 32, "intermediate_size": 64}
    monkeypatch.setattr(Workshop, "text_config", lambda *told: replace(whole(*told), **narrow))
    arguments = ("train", "text", "--out", "work", "--scenes", 72, *QUICK)
    assert run(*arguments).stdout.endswith("work/text\n")
    assert (tmp_path / "work" / "text" / "state.pt").exists()
    failed = run(*arguments, "--no-resume", code=2)
    assert "already holds text; name another --out" in failed.stderr


@pytest.mark.parametrize("options", [("--rank", 2), ("--text", "--no-embedding")])
def test_a_subject_of_a_few_pictures(run, tiny, pictures, tmp_path, options):
    """It is drawn by its file, beside a model that stays as it is."""
    encoder().save_pretrained(tmp_path / "weights")
    weights = () if "--no-embedding" in options else ("--subject-weights", "weights")
    lines = [{"file_name": f"{i}.png", "text": ["a cone", "a cube"]} for i in range(5)]
    (pictures / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    told = ("--data", pictures, "--category", "cube", "--model", tiny, *options, *weights)
    done = run("train", "subject-finetune", *told, "--out", "work", *QUICK)
    assert done.stdout == "work/subject.safetensors\n"
    assert "cube of 5 pictures" in done.stderr and "3 steps" in done.stderr
    call = ("generate", "a red cube", "--model", tiny, "--steps", 2, "--seed", 1, "--out")
    run(*call, "plain.png")
    shown = ("--subject", "work/subject.safetensors", "cube")
    run(*call, "mine.png", *shown)
    mine, plain = (np.asarray(Image.open(tmp_path / name)) for name in ("mine.png", "plain.png"))
    assert (mine != plain).any()
    again = ("generate", "--again", "mine.png", "--model", tiny, "--out")
    assert "one of them was tuned" in run(*again, "x.png", code=2).stderr
    run(*again, "again.png", *shown)
    assert (np.asarray(Image.open(tmp_path / "again.png")) == mine).all()
    failed = run(*call, "x.png", "--subject", other(tmp_path), "cube", code=2)
    assert "holds no tuned subject" in failed.stderr


def other(place):
    from underdraw.weights.save import save_tensors

    save_tensors(place / "other.safetensors", {"x": np.ones(3, np.float32)})
    return place / "other.safetensors"


def test_a_subject_encoder_on_a_folder(run, tiny, pictures, tmp_path, monkeypatch):
    from underdraw.pipelines.stable_diffusion import StableDiffusionPipeline as Pipeline

    lines = [{"file_name": f"{i}.png", "category": "cube"} for i in range(5)]
    (pictures / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    told = ("train", "subject", "--data", pictures, "--model", tiny, "--out", "work", *QUICK)
    assert "neither a subject encoder nor an image_encoder" in run(*told, code=2).stderr
    known = encoder()
    with monkeypatch.context() as patch:
        patch.setattr(Pipeline, "subjects", property(lambda self: {"own": known}))
        assert run(*told).stdout == "work/qformer\n"
    weights = ("--subject-weights", "work/qformer", "--subject", pictures / "0.png", "cube")
    run("generate", "a cube", "--model", tiny, "--steps", 2, "--out", "a.png", *weights)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["autoencoder", "--data", "nowhere"], "--data nowhere: no such folder"),
        (["autoencoder", "--model", "x"], "are for --data FOLDER"),
        (["clip", "--data", "pictures"], "clip is trained with --data scenes only"),
        (["text-to-image", "--data", "pictures", "--scenes", "99"], "--scenes is for --data"),
        (["text-to-image", "--data", "pictures", "--size", "60"], "size=60"),
        (["autoencoder", "--data", "pictures", "--text"], "--text is for text-to-image"),
        (["grounding", "--data", "pictures", "--text"], "--text is for text-to-image"),
        (["grounding", "--data", "pictures", "--captions", "x"], "--captions is for --annotations"),
        (["grounding", "--data", "pictures", "--coordinates", "cm"], "coordinates='cm'"),
        (["grounding", "--data", "pictures", "--annotations", "x"], "no annotations x"),
        (["structure", "--data", "pictures"], "metadata.jsonl:1 names no map"),
        (["structure", "--data", "pictures", "--maps", "pose"], "allowed: edges, soft-edges"),
        (["structure", "--data", "pictures", "--maps", "edges", "--text"], "--text is for"),
        (["structure", "--maps", "edges"], "--maps is for structure with --data FOLDER"),
        (["grounding", "--data", "pictures", "--maps", "edges"], "--maps is for structure"),
        (["structure", "--data", "pictures", "--inpainting"], "are for grounding with --data"),
        (["grounding", "--inpainting"], "are for grounding with --data FOLDER"),
        (["clip", "--data", "pictures", "--inpainting"], "are for grounding with --data FOLDER"),
        (["text-to-image", "--data", "pictures", "--learning-rate", "-1"], "learning_rate=-1"),
        (["text-to-image", "--data", "pictures", "--precision", "int8"], "precision='int8'"),
        (["clip", "--rank", "3"], "are for subject-finetune"),
        (["subject-finetune"], "needs --data FOLDER"),
        (["subject-finetune", "--data", "pictures"], "needs --category"),
        (
            ["subject-finetune", "--data", "pictures", "--category", "cone"],
            "has no subject weights",
        ),
        (["subject", "--data", "pictures"], "lacks a file_name or a category"),
        (["subject", "--data", "pictures", "--text"], "--text is for text-to-image and subject"),
    ],
)
def test_mistakes(run, tiny, pictures, arguments, says):
    model = ("--model", tiny) if "pictures" in arguments else ()
    assert says in run("train", *arguments, *model, "--out", "work", code=2).stderr


@pytest.mark.parametrize(
    ("budget", "seconds"), [("10m", 600), ("1h30m", 5400), ("90s", 90), (" 2h1s ", 7201)]
)
def test_a_budget_is_a_time(budget, seconds):
    assert train_family.seconds_of(budget) == seconds


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("family", "--budget", "10"), "--budget '10'; wanted a time such as 10m"),
        (("family", "--budget", ""), "wanted a time"),
        (("family", "--budget", "0m"), "wanted a time"),
        (("family", "--budget", "9m", "--steps", "3"), "leave out --steps"),
        (("family", "--budget", "9m", "--no-resume"), "leave out --no-resume"),
        (("clip", "--budget", "9m"), "--budget is for family"),
        (("family", "--start", "underdraw/scenes"), "--start is for family with --budget"),
    ],
)
def test_budgets_that_cannot_be_kept_are_refused(run, tmp_path, arguments, told):
    failed = run("train", *arguments, "--out", "work", code=2)
    assert told in failed.stderr
    assert not (tmp_path / "work").exists()


def test_a_budget_is_the_familys(run, monkeypatch):
    from underdraw.training import family

    asked = []

    def train(out, budget, recipe, **how):
        asked.append((str(out), budget, recipe.start, recipe.scenes, how["device"]))
        return "a table"

    monkeypatch.setattr(family, "train_family", train)
    arguments = ("--budget", "2m", "--start", "underdraw/scenes", "--scenes", 99, "--device", "cpu")
    done = run("train", "family", *arguments, "--out", "work")
    assert done.stdout == "a table\n" and "family: work/export" in done.stderr
    assert asked == [("work", 120, "underdraw/scenes", 99, "cpu")]
