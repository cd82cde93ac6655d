"""`underdraw generate`."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from pipelines.tiny import small_vae

from underdraw import AutoencoderTiny
from underdraw.cli import solvers
from underdraw.errors import InputError
from underdraw.pictures.writing import read_metadata, save_png

QUICK = ("--steps", 2, "--dtype", "float32", "--height", 40, "--width", 72)


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_a_picture_with_all_that_is_needed(run, tiny, tmp_path):
    done = run("generate", "a red sphere", "--model", tiny, *QUICK, "--seed", 5, "--out", "a.png")
    assert done.stdout == "a.png\n"
    assert done.stderr == f"{tiny}: float32 on cpu, PNDMScheduler, 2 steps, seed 5\n"
    assert pixels("a.png").shape == (40, 72, 3)
    record = read_metadata("a.png")
    assert record["model"] == str(tiny)
    assert record["call"]["prompt"] == "a red sphere"
    assert record["call"]["seed"] == 5
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_the_same_numbers_as_the_pipeline(run, tiny):
    from underdraw import EulerAncestralDiscreteScheduler, StableDiffusionPipeline

    run(
        *("generate", "a cone", "--negative", "blue", "--model", tiny, *QUICK, "--seed", 3),
        *("--guidance", 3.5, "--solver", "euler_a", "--out", "a.png"),
    )
    pipe = StableDiffusionPipeline.from_pretrained(tiny)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config)
    (image,) = pipe("a cone", 40, 72, 2, guidance_scale=3.5, negative_prompt="blue", seed=3).images
    assert np.array_equal(pixels("a.png"), np.asarray(image))


def test_each_picture_of_several_comes_again_bit_by_bit(run, tiny):
    options = ("--negative", "blue", "--solver", "dpm++_sde", "--guidance", 4)
    done = run("generate", "a cone", "-n", 3, "--model", tiny, *QUICK, *options, "--out", "x.png")
    assert done.stdout.split() == ["x-0.png", "x-1.png", "x-2.png", "x.png"]
    assert pixels("x.png").shape == (2 * 44 - 4, 2 * 76 - 4, 3)
    for i in range(3):
        again = run(
            "generate", "--again", f"x-{i}.png", "--as-recorded", "--out", "y.png", "--force"
        )
        assert "DPMSolverMultistepScheduler, 2 steps" in again.stderr
        with open(f"x-{i}.png", "rb") as first, open("y.png", "rb") as second:
            assert first.read() == second.read()


@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_the_memory_layout_comes_again(run, tiny, dtype):
    """Convolutions add in another order with their channels last: without that in the record, every
    other of these pictures came again one level off somewhere."""
    call = ("--steps", 1, "--height", 128, "--width", 128, "--dtype", dtype, "--no-grid")
    run("generate", "a cone", "-n", 4, "--model", tiny, *call, "--out", "x.png")
    for i in range(4):
        run("generate", "--again", f"x-{i}.png", "--as-recorded", "--out", "y.png", "--force")
        assert np.array_equal(pixels(f"x-{i}.png"), pixels("y.png"))


def test_a_record_names_networks_only(run, tiny):
    run("generate", "a cone", "--model", tiny, *QUICK, "--out", "x.png")
    with Image.open("x.png") as image:
        record = read_metadata("x.png") | {"channels_last": ["scheduler", "os", 3, "unet"]}
        save_png(image, "y.png", record)
    run("generate", "--again", "y.png", "--as-recorded", "--out", "z.png")
    assert read_metadata("z.png")["channels_last"] == ["unet"]


def test_again_with_changes(run, tiny):
    run("generate", "a cone", "--model", tiny, *QUICK, "--seed", 1, "--out", "a.png")
    run("generate", "a cube", "--again", "a.png", "--as-recorded", "--seed", 2, "--out", "b.png")
    before, after = read_metadata("a.png"), read_metadata("b.png")
    assert after["call"] == before["call"] | {"prompt": "a cube", "seed": 2}
    assert not np.array_equal(pixels("a.png"), pixels("b.png"))


def test_what_was_left_out_is_left_out_again(run, tiny):
    call = ("--model", tiny, "--steps", 10, "--dtype", "float32", "--height", 40, "--width", 72)
    run("generate", "a cone", *call, "--seed", 1, "--speed", "faster", "--out", "a.png")
    told = read_metadata("a.png")["settings"]["acceleration"]
    assert told["deep_cache"]["every"] == 3
    run("generate", "--again", "a.png", "--as-recorded", "--out", "b.png")
    assert np.array_equal(pixels("a.png"), pixels("b.png"))
    few = ("--again", "a.png", "--as-recorded", "--steps", 5)
    says = run("generate", *few, "--out", "c.png", code=2).stderr
    assert "has DeepCache" in says and "allowed: 9 steps or more, or --speed exact" in says
    run("generate", "--again", "a.png", "--as-recorded", "--speed", "exact", "--out", "c.png")
    assert "acceleration" not in read_metadata("c.png")["settings"]
    assert not np.array_equal(pixels("a.png"), pixels("c.png"))


def test_settings_of_a_picture_come_again(run, tiny):
    from underdraw import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(tiny)
    pipe.set_progress_bar_config(disable=True)
    pipe.enable_vae_slicing()
    pipe.enable_attention_slicing()
    pipe("a cone", 40, 72, 2, seed=3).save("a.png")
    run("generate", "--again", "a.png", "--as-recorded", "--out", "b.png")
    assert read_metadata("a.png") == read_metadata("b.png")
    assert np.array_equal(pixels("a.png"), pixels("b.png"))


def test_without_a_seed_each_run_has_its_own_and_tells_it(run, tiny):
    told = [run("generate", "a cone", "--model", tiny, *QUICK) for _ in range(2)]
    seeds = [int(each.stderr.rsplit("seed ", 1)[1]) for each in told]
    assert seeds[0] != seeds[1]
    assert [each.stdout for each in told] == [f"a-cone-{seed}.png\n" for seed in seeds]


def test_several_prompts_share_seeds_and_nothing_is_overwritten(run, tiny, tmp_path):
    arguments = ("generate", "a cone", "a cube", "-n", 2, "--model", tiny, *QUICK, "--seed", 7)
    names = ["a-cone-7.png", "a-cone-8.png", "a-cube-7.png", "a-cube-8.png"]
    first = run(*arguments, "--out", "some/where").stdout.split()
    assert first == [f"some/where/{name}" for name in [*names, "a-cone-7-grid.png"]]
    again = run(*arguments, "--out", "some/where", "--no-grid").stdout.split()
    assert again == [f"some/where/{name.replace('.', '-2.')}" for name in names]
    for a, b in zip(first, again, strict=False):
        assert np.array_equal(pixels(a), pixels(b))


def test_a_batch_at_once_is_the_same_pictures(run, tiny):
    arguments = ("generate", "a cone", "-n", 3, "--model", tiny, *QUICK, "--seed", 7)
    run(*arguments, "--out", "one.png")
    run(*arguments, "--batch", 2, "--out", "two.png")
    for i in range(3):
        difference = pixels(f"one-{i}.png").astype(int) - pixels(f"two-{i}.png")
        assert abs(difference).max() <= 1


def test_words_without_quotes_are_noticed(run, tiny):
    told = run("generate", "a", "cone", "--model", tiny, *QUICK, "--no-grid").stderr
    assert "note: 2 prompts of one word; one prompt of several words needs quotes" in told


def test_a_single_file_and_again(run, tiny):
    run("convert", tiny, "one.safetensors")
    run("generate", "a cone", "--model", tiny, *QUICK, "--seed", 7, "--out", "a.png")
    model = ("--model", "one.safetensors", "--tokenizer", tiny)
    run("generate", "a cone", *model, *QUICK, "--seed", 7, "--out", "b.png")
    run("generate", "--again", "b.png", "--as-recorded", "--out", "c.png")
    assert np.array_equal(pixels("a.png"), pixels("b.png"))
    assert np.array_equal(pixels("a.png"), pixels("c.png"))


def test_a_model_advises_its_guidance(run, tiny, advised):
    for model, arguments, scale in (
        (advised, (), 3.25),
        (advised, ("--guidance", 6), 6.0),
        (tiny, (), 7.5),
    ):
        run("generate", "a cone", "--model", model, *QUICK, *arguments, "--out", "a.png", "--force")
        assert read_metadata("a.png")["call"]["guidance_scale"] == scale
    # A picture that was made with another one keeps it.
    run(
        "generate",
        "a cone",
        "--again",
        "a.png",
        "--as-recorded",
        "--model",
        advised,
        "--out",
        "b.png",
    )
    assert read_metadata("b.png")["call"]["guidance_scale"] == 7.5


def test_a_single_file_without_a_vocabulary_names_the_option(run, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    run("convert", tiny, "one.safetensors")
    failed = run("generate", "a cone", "--model", "one.safetensors", *QUICK, code=2)
    assert failed.stderr.rstrip().endswith(": --tokenizer")
    named = ("--model", "one.safetensors", "--tokenizer", "none")
    assert "none" in run("generate", "a cone", *named, *QUICK, code=2).stderr


@pytest.mark.parametrize("out", ["x.png", "some/where"])
def test_previews_show_what_is_being_made_and_go(run, tiny, tmp_path, monkeypatch, out):
    from underdraw.cli.outputs import Target

    seen, original = [], Target.write_preview

    def write_preview(target, *arguments):
        original(target, *arguments)
        seen.append(sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.png")))

    monkeypatch.setattr(Target, "write_preview", write_preview)
    steps = ("--model", tiny, "--dtype", "float32", "--height", 40, "--width", 72, "--seed", 7)
    several = ("a cone", "-n", 2, "--steps", 5, "--no-grid", "--solver", "euler", *steps)
    done = run("generate", *several, "--out", out, "--preview", 2)
    names = ["x-0", "x-1"] if out == "x.png" else [f"{out}/a-cone-{i}" for i in (7, 8)]
    first, second = (f"{name}.png" for name in names)
    assert done.stdout.split() == [first, second]
    shown = [f"{name}-preview.png" for name in names]
    assert seen == [[shown[0]]] * 2 + [sorted([first, shown[1]])] * 2
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.png")) == [first, second]
    run("generate", *several, "--out", "plain.png")
    assert np.array_equal(pixels(first), pixels("plain-0.png"))


def test_previews_by_a_tiny_autoencoder(run, tiny, tmp_path, monkeypatch):
    """Which decodes previews and not the picture; without --preview there is nothing to decode."""
    small = small_vae()
    small.save_pretrained(tmp_path / "taesd")
    seen, decode = [], type(small).decode_with
    monkeypatch.setattr(
        AutoencoderTiny, "decode_with", lambda *given: seen.append(1) or decode(*given)
    )
    arguments = ("--model", tiny, "--solver", "euler", "--steps", 3, "--seed", 1)
    run("generate", "a cone", *arguments, "--out", "a.png")
    more = ("--preview", 1, "--preview-decoder", tmp_path / "taesd")
    run("generate", "a cone", *arguments, *more, "--out", "b.png")
    assert len(seen) == 2
    assert np.array_equal(pixels("a.png"), pixels("b.png"))
    told = run("generate", "a cone", "--preview-decoder", "taesd", code=2).stderr
    assert "--preview-decoder taesd needs --preview N" in told


def test_an_interrupted_preview_is_kept(run, tiny, tmp_path, monkeypatch):
    from underdraw.cli.outputs import Target

    original = Target.write_preview

    def stop(target, index, image, record):
        original(target, index, image, record)
        if record["preview"] == "2 of 3":
            raise KeyboardInterrupt

    monkeypatch.setattr(Target, "write_preview", stop)
    arguments = ("--model", tiny, "--solver", "euler", "--steps", 3, "--out", "a.png")
    done = run("generate", "a cone", *arguments, "--preview", 1, code=130)
    assert "a-preview.png" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a-preview.png"]


def test_prediction_type_is_the_users(run, tiny):
    options = ("--prediction-type", "v_prediction", "--seed", 7)
    run("generate", "a cone", "--model", tiny, *QUICK, *options, "--out", "a.png")
    assert read_metadata("a.png")["scheduler"]["prediction_type"] == "v_prediction"


@pytest.mark.parametrize("name", [*solvers.SOLVERS, *solvers.ALIASES, "Euler-A", "dpm++_karras"])
def test_every_solver_name_gives_a_table(name):
    config = {"beta_schedule": "scaled_linear", "steps_offset": 1, "skip_prk_steps": True}
    table = solvers.make_solver(name, config).make_table(5)
    assert len(table) >= 5
    assert np.isfinite(table.timesteps).all()


@pytest.mark.parametrize("grid", list(solvers.GRIDS))
@pytest.mark.parametrize("name", ["euler", "heun", "dpm2_a", "dpm++", "unipc", "deis", "lms"])
def test_noise_grids(name, grid):
    made = solvers.make_solver(f"{name}_{grid}", {"use_karras_sigmas": True})
    assert [switch for switch in solvers.GRIDS.values() if made.config[switch]] == [
        solvers.GRIDS[grid]
    ]


@pytest.mark.parametrize("name", ["foo", "", "karras", "ddim_karras", "euler_"])
def test_unknown_solvers_list_all(name):
    with pytest.raises(InputError, match=r"ddim, ddpm, pndm, .*, tcd"):
        solvers.make_solver(name, {})


def test_solver_help_lists_them(run):
    assert "euler_a" in run("generate", "--solver", "help").stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--solver", "foo"], "--solver foo is not known; allowed: ddim"),
        (["--height", "30"], "height=30 is not a multiple of 8"),
        (["--guidance", "nan"], "--guidance nan is out of range"),
        (["--device", "tpu9"], "device='tpu9' is not known"),
        (["--device", "cuda:77"], "device='cuda:77' is not on this machine; allowed: cpu"),
        (["--out", "x.gif"], "written as .png, .jpg, .jpeg or .webp"),
        (["--out", "file/x.png"], "is a file"),
        (["--out", "file"], "is a file"),
        (["--variant", "fp16"], "variant 'fp16'"),
        (["--tokenizer", "x"], "--tokenizer is for single files"),
        (["--again", "none.png"], "there is no file 'none.png'"),
        (["--again", "file"], "is not a picture"),
        (["--again", "plain.png"], "holds no underdraw metadata"),
        (["--again", "odd.png"], "cannot read"),
        (["--again", "unseeded.png"], "does not hold its seed"),
        (["--again", "controlled.png"], "does not hold its controls"),
        (["--again", "strange.png"], "has no arguments os_system"),
        (["--again", "foreign.png"], "no pipeline 'EvilPipeline'"),
        (["--again", "tuned.png"], "settings of the picture cannot be read"),
    ],
)
def test_mistakes(run, tiny, tmp_path, arguments, says):
    (tmp_path / "file").write_text("not a picture")
    image = Image.new("RGB", (8, 8))
    save_png(image, "plain.png")
    save_png(image, "odd.png", {"underdraw": "0.0"})
    record = {
        "pipeline": "StableDiffusionPipeline",
        "missing": [],
        "call": {"prompt": "x", "seed": 1},
        "scheduler": {"_class_name": "DDIMScheduler"},
    }
    save_png(image, "unseeded.png", record | {"call": {"prompt": "x"}})
    save_png(image, "controlled.png", record | {"missing": ["controls"]})
    save_png(image, "strange.png", record | {"call": record["call"] | {"os_system": "ls"}})
    save_png(image, "foreign.png", record | {"pipeline": "EvilPipeline"})
    save_png(image, "tuned.png", record | {"settings": {"turbo": True}})
    before = sorted(tmp_path.iterdir())
    prompt = [] if "--again" in arguments else ["a cone"]
    failed = run("generate", *prompt, "--model", tiny, "--steps", 2, *arguments, code=2)
    assert says in failed.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_broken_weights_are_no_black_picture(run, tiny, tmp_path):
    shutil.copytree(tiny, "broken")
    spoil(tmp_path / "broken" / "unet" / "diffusion_pytorch_model.safetensors")
    failed = run("generate", "a cone", "--model", "broken", *QUICK, "--out", "a.png", code=1)
    assert "underdraw info --check" in failed.stderr
    assert not (tmp_path / "a.png").exists()


def spoil(path, name="conv_in.weight", value=np.nan):
    """Put a value into a tensor of a file."""
    from underdraw.weights import files, save

    tensors = {key: np.array(t.load()) for key, t in files.open_tensors(path).items()}
    tensors[name].flat[3] = value
    save.save_tensors(path, tensors)


def test_interrupted_it_keeps_what_is_done_and_says_so(run, tiny, tmp_path, monkeypatch):
    from underdraw import StableDiffusionPipeline

    original, calls = StableDiffusionPipeline.__call__, []

    def call(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    call.__signature__ = __import__("inspect").signature(original)
    monkeypatch.setattr(StableDiffusionPipeline, "__call__", call)
    done = run("generate", "a cone", "-n", 4, "--model", tiny, *QUICK, "--out", "x.png", code=130)
    assert done.stderr.splitlines()[-1] == "stopped: kept x-0.png, x-1.png"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x-0.png", "x-1.png"]


def test_long_prompts_of_a_compat_pipeline_give_a_note(run, tiny):
    run("generate", "a cone", "--model", tiny, *QUICK, "--seed", 1, "--out", "a.png")
    record = read_metadata("a.png")
    with Image.open("a.png") as image:
        save_png(image, "b.png", record | {"compat": "diffusers"})
    told = run(
        "generate", "a cone " * 60, "--again", "b.png", "--as-recorded", "--out", "c.png"
    ).stderr
    assert told.count("note: only the first 77 tokens") == 1
    assert "Warning" not in told
    assert json.loads(json.dumps(read_metadata("c.png")))["compat"] == "diffusers"


def test_a_sheet_says_which_pictures_it_holds(run, tiny):
    run("generate", "a cone", "-n", 2, "--model", tiny, *QUICK, "--out", "x.png")
    done = run("generate", "--again", "x.png", code=2)
    assert "x.png is a sheet of several pictures" in done.stderr
    assert "x-0.png, x-1.png" in done.stderr


def test_mistakes_are_told_before_a_framework_is_imported(spawn):
    for arguments, says in (
        (["a cone", "--model", "nope"], "nope"),
        (["a cone", "--model", "nope.safetensors"], "no such file"),
        (["a (cone"], "("),
        (["a cone", "--negative", "blue)"], ")"),
    ):
        code = (
            "import os, sys\nos.environ['HF_HUB_OFFLINE'] = '1'\n"
            "from underdraw.cli.app import app\n"
            f"sys.argv = ['underdraw', 'generate', *{arguments}]\n"
            "try:\n    app()\nexcept SystemExit as end:\n    print('code', end.code)\n"
            "print('torch' in sys.modules)"
        )
        done = spawn("-c", code)
        assert done.stdout.split("\n")[-2:] == ["False", ""], done.stderr
        assert "code 0" not in done.stdout
        assert says in done.stderr
