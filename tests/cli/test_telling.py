"""What is told while a command works: the logger, progress, notes, completion."""

import logging

import pytest

from underdraw.cli import logs, progress
from underdraw.cli.solvers import SOLVERS
from underdraw.pictures.writing import read_metadata

QUICK = ("--steps", 2, "--dtype", "float32", "--height", 40, "--width", 72, "--seed", 5)


class Stream:
    encoding = "utf-8"

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass


@pytest.fixture
def lines():
    """A stream of lines whose clock is told, and what they were written to."""
    stream, now = Stream(), [0.0]
    made = progress.Lines(stream, every=5, clock=lambda: now[0])
    return made, stream, now


@pytest.mark.parametrize("leave", [False, True])
@pytest.mark.parametrize(("seconds", "told"), [(0.1, 0), (1, 3), (4, 9), (5, 19), (60, 19)])
def test_a_bar_becomes_a_line_every_few_seconds(lines, leave, seconds, told):
    from tqdm import tqdm

    made, stream, now = lines
    options = {"file": made, "mininterval": 0, "miniters": 1, "leave": leave, "desc": "it"}
    with tqdm(total=20, **options) as bar:
        for _ in range(20):
            now[0] += seconds
            bar.update()
    found = stream.text.splitlines()
    assert abs(len(found) - told) <= 1
    assert all(line.startswith("it: ") and "/20 [" in line and "|" not in line for line in found)
    assert "\r" not in stream.text
    made.write("plain\n")
    assert stream.text.endswith("plain\n")


def test_other_text_goes_through(lines):
    made, stream, _ = lines
    for text in ("a", "\n", "", "b\nc\n"):
        made.write(text)
    assert stream.text == "a\nb\nc\n"
    assert not made.isatty() and made.encoding == "utf-8"


def test_text_beside_a_bar_keeps_its_lines(lines):
    made, stream, now = lines
    for text in ("\r 0/2", "a note", "\n", "\r 1/2", "\n", "end", "\n"):
        now[0] += 3
        made.write(text)
    assert stream.text == "a note\n1/2\nend\n"


def test_progress_of_a_command_without_a_terminal(run, tiny, monkeypatch):
    usual = progress.bar_options
    at_once = {"mininterval": 0, "miniters": 1}
    monkeypatch.setattr(progress, "EVERY", 0.0)
    monkeypatch.setattr(progress, "bar_options", lambda label: usual(label) | at_once)
    words = ("generate", "a cone", "-n", 2, "--no-grid", "--model", tiny, *QUICK)
    told = run(*words, "--out", "a.png").stderr
    for label in ("picture 1 of 2: 50%, 1/2 [", "picture 2 of 2: 100%, 2/2 ["):
        assert label in told
    assert run(*words, "--out", "b.png", "--quiet").stderr == ""


def test_quiet_tells_errors_only(run, tiny):
    words = ["generate", "a", "cone", "--no-grid", "--model", tiny, *QUICK, "--out", "a.png"]
    loud = run(*words)
    assert loud.stderr.startswith("note: 2 prompts of one word")
    quiet = run("--quiet", *words, "--force")
    assert (quiet.stderr, quiet.stdout) == ("", loud.stdout)
    assert run("info", "no/such", "--quiet", code=2).stderr.startswith("error: ")


def test_verbose_tells_what_the_library_logs(run, tiny):
    words = ("generate", "a cone", "--model", tiny, *QUICK)
    plain, verbose = (run(*words, "--out", n, *m).stderr for n, m in
                      (("a.png", ()), ("b.png", ("--verbose",))))  # fmt: skip
    assert "underdraw.pipelines" not in plain
    assert "underdraw.pipelines.base: " in verbose and set(plain.split("\n")) <= set(
        verbose.split("\n")
    )
    assert "both given" in run(*words, "--verbose", "--quiet", code=2).stderr


def test_the_logger_is_left_as_it_was():
    logger = logging.getLogger("underdraw")
    before = (logger.level, logger.propagate, list(logger.handlers))
    with pytest.raises(KeyError), logs.shown(verbose=True):
        assert logger.isEnabledFor(logging.DEBUG)
        raise KeyError
    assert (logger.level, logger.propagate, list(logger.handlers)) == before


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["ed"], ["edit"]),
        (["generate", "--sol"], ["--solver"]),
        (["generate", "--solver", "dpm++_s"], [n for n in SOLVERS if n.startswith("dpm++_s")]),
        (["edit", "--engine", ""], ["eager", "compiled", "jit"]),
        (["generate", "--dtype", "b"], ["bfloat16"]),
    ],
)
def test_shells_complete(run, monkeypatch, typed, offered):
    monkeypatch.setenv("_UNDERDRAW_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", " ".join(["underdraw", *typed]))
    monkeypatch.setenv("COMP_CWORD", str(len(typed)))
    found = run().stdout.split()
    assert set(offered) <= set(found)
    assert all(name.startswith(typed[-1]) for name in found)


# -- formats ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "webp"])
def test_pictures_in_other_formats_come_again(run, tiny, suffix):
    run("generate", "a cone", "--model", tiny, *QUICK, "--out", "a.png")
    run("generate", "a cone", "--model", tiny, *QUICK, "--out", f"b.{suffix}")
    assert read_metadata("a.png") == read_metadata(f"b.{suffix}")
    run("generate", "--again", f"b.{suffix}", "--as-recorded", "--out", "c.png")
    with open("a.png", "rb") as first, open("c.png", "rb") as second:
        assert first.read() == second.read()


def test_a_folder_in_another_format(run, tiny):
    words = ("generate", "a cone", "-n", 2, "--model", tiny, *QUICK, "--format", "webp")
    names = ["in/a-cone-5.webp", "in/a-cone-6.webp", "in/a-cone-5-grid.webp"]
    assert run(*words, "--out", "in").stdout.split() == names
    failed = run("generate", "--again", names[2], "--as-recorded", code=2)
    assert "is a sheet" in failed.stderr


# -- words that a model does not know --------------------------------------------------------------
@pytest.mark.parametrize(
    ("prompts", "unknown"),
    [
        (["a red sphere"], []),
        (["A (Red:1.2) sphere, [left] of a cube."], []),
        (["two cubes", "a cat"], ["two", "cubes", "cat"]),
        (["a cat", "a cat and a dog's ball"], ["cat", "dog's", "ball"]),
        (["a <my-thing> cube"], []),
        (["3 cubes"], ["3", "cubes"]),
        (["", "..."], []),
        (["une sphère"], ["une", "sphère"]),
    ],
)
def test_unknown_words(prompts, unknown):
    from underdraw.scenes import words
    from underdraw.text.known import unknown_words

    assert unknown_words(prompts, words()) == unknown


def test_the_scenes_family_tells_the_words_of_the_scenes(tiny):
    from underdraw import Box, StableDiffusionPipeline
    from underdraw.controls.features import phrase_features
    from underdraw.pipelines.components.advice import Advice, read_advice
    from underdraw.scenes import words
    from underdraw.training.text_to_image import ADVICE
    from underdraw.weights import folders, hub

    index = folders.read_model_index(hub.scenes_folder())
    assert read_advice(index, "it") == ADVICE == Advice(4.5, words())
    pipe = StableDiffusionPipeline.from_pretrained(tiny)
    pipe.set_progress_bar_config(disable=True)
    pipe.advice = ADVICE
    call = {"num_inference_steps": 1, "height": 16, "width": 16, "output_type": "latent"}
    pipe("a red sphere", **call)
    for options in ({"prompt": "a cat"}, {"prompt": "a cube", "negative_prompt": "a cat"}):
        with pytest.warns(UserWarning, match=r"never saw the words cat, .* knows: a, an, and, beh"):
            pipe(**options, **call)
    with pytest.warns(UserWarning, match="never saw the words cat"):
        phrase_features(pipe.parts, [Box("a cat", (0, 0, 1, 1)).phrase])


def test_a_note_of_unknown_words_is_told_once(run, tiny, tmp_path):
    import shutil

    from underdraw.weights import folders, save

    shutil.copytree(tiny, "knowing")
    index = folders.read_model_index("knowing")
    save.write_json(
        tmp_path / "knowing" / "model_index.json", {**index, "_underdraw": {"words": ["a"]}}
    )
    told = run("generate", "a cat", "-n", 2, "--model", "knowing", *QUICK, "--out", "a.png").stderr
    assert told.count("note: this model never saw the words cat") == 1
