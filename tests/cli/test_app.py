"""The command line as a whole: help, versions, exit codes, and how it fails."""

import signal
import subprocess
import sys
import time

import pytest

import underdraw
from underdraw.errors import InputError, NonFiniteError, WeightError

COMMANDS = (
    *("generate", "info", "convert", "merge", "extract-lora"),
    *("scenes", "train", "evaluate", "bench"),
)
HEAVY = ("torch", "jax", "mindspore", "numpy", "PIL", "huggingface_hub", "tokenizers", "tqdm")


def test_help_names_all_commands_and_imports_nothing_heavy(spawn):
    script = (
        "import sys\nfrom underdraw.cli import main\nsys.argv = ['underdraw', '--help']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert end.code == 0\n"
        f"print('LOADED', [m for m in {HEAVY} if m in sys.modules])"
    )
    done = spawn("-c", script)
    assert done.returncode == 0, done.stderr
    assert "LOADED []" in done.stdout
    for command in COMMANDS:
        assert f"\n  {command} " in done.stdout
    assert 'underdraw generate "a red sphere left of a blue cube"' in done.stdout
    assert "Exit codes" in done.stdout


def test_version_through_the_module(spawn):
    done = spawn("-m", "underdraw", "--version")
    assert (done.returncode, done.stdout) == (0, f"underdraw {underdraw.__version__}\n")


def test_info_reads_a_folder_without_a_framework(spawn, tiny):
    script = (
        "import sys\nfrom underdraw.cli import main\n"
        f"sys.argv = ['underdraw', 'info', {str(tiny)!r}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "print('LOADED', [m for m in ('torch', 'jax') if m in sys.modules])"
    )
    done = spawn("-c", script)
    assert "LOADED []" in done.stdout, done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(run, command):
    shown = run(command, "--help").stdout
    assert f"underdraw {command}" in shown
    assert "Examples:" in shown


def test_without_a_command_help_is_shown(run):
    assert "Commands:" in run().stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["generte"], "No such command 'generte'"),
        (["generate", "x", "--stps", "3"], "--stps"),
        (["generate", "x", "--steps", "many"], "--steps"),
        (["generate", "x", "--steps", "0"], "--steps"),
        (["generate", "x", "--dtype", "float8"], "--dtype"),
        (["generate"], "no PROMPT"),
        (["info"], "PATH_OR_ID"),
        (["info", "nowhere/at/all"], "nowhere/at/all: no such folder"),
        (["info", "owner/name"], "owner/name: offline"),
        (["convert", "nowhere.ckpt"], "TARGET"),
        (["convert", "nowhere/at/all", "there"], "no such folder"),
        (["train", "everything", "--out", "x"], "everything"),
        (["train", "clip"], "--out"),
        (["scenes", "--size", "huge"], "--size huge is not HEIGHTxWIDTH"),
    ],
)
def test_mistakes_give_one_line_and_2(run, arguments, says):
    failed = run(*arguments, code=2)
    assert failed.stderr.startswith("error: ")
    assert failed.stderr.count("\n") == 1
    assert says.lower() in failed.stderr.lower()
    assert failed.stdout == ""


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("a\nb"), 2, "error: a b\n"),
        (FileNotFoundError(2, "No such file", "x.png"), 2, "error: x.png: No such file\n"),
        (PermissionError(13, "Permission denied", "x"), 2, "error: x: Permission denied\n"),
        (WeightError("damaged"), 1, "error: damaged\n"),
        (NonFiniteError("NaN"), 1, "error: NaN\n"),
        (OSError(28, "No space left on device"), 1, "error: No space left on device\n"),
        (MemoryError(), 1, "error: out of memory\n"),
        (KeyboardInterrupt(), 130, "stopped: nothing was written\n"),
    ],
)
def test_exit_codes(run, monkeypatch, error, code, line):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("underdraw.checkpoints.sources.open_source", fail)
    assert run("info", "x", code=code).stderr == line


def test_gpu_memory_running_out_is_no_traceback(run, monkeypatch):
    class OutOfMemoryError(RuntimeError):
        pass

    def fail(*_, **__):
        raise OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("underdraw.checkpoints.sources.open_source", fail)
    assert run("info", "x", code=1).stderr == "error: out of memory: CUDA out of memory\n"


def test_a_bug_keeps_its_traceback(run, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("a bug")

    monkeypatch.setattr("underdraw.checkpoints.sources.open_source", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        run("info", "x")


@pytest.mark.parametrize("place", [0, 2])
def test_debug_shows_where_an_error_comes_from(run, monkeypatch, place):
    def fail(*_, **__):
        raise InputError("wrong")

    monkeypatch.setattr("underdraw.checkpoints.sources.open_source", fail)
    arguments = ["info", "x"]
    arguments.insert(place, "--debug")
    from typer.testing import CliRunner

    from underdraw.cli.app import app

    failed = CliRunner().invoke(app, arguments)
    assert failed.exit_code == 2
    assert "Traceback" in failed.stderr
    assert failed.stderr.endswith("error: wrong\n")


def test_warnings_of_ours_are_notes_and_others_silent(run, monkeypatch):
    def warn(*_, **__):
        exec(
            "import warnings; warnings.warn('ours')",
            {"__name__": "underdraw.text.encode"},
        )
        exec(
            "import warnings; warnings.warn('theirs'); warnings.warn('old', DeprecationWarning)",
            {"__name__": "another.package"},
        )
        raise InputError("end")

    monkeypatch.setattr("underdraw.checkpoints.sources.open_source", warn)
    assert run("info", "x", code=2).stderr == "note: ours\nerror: end\n"


def test_ctrl_c_in_a_process_ends_it_with_130(environment, tiny, tmp_path):
    # What starts the tests in the background ignores Ctrl-C, and its children inherit that.
    listening = (
        "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "runpy.run_module('underdraw', run_name='__main__')"
    )
    command = [sys.executable, "-c", listening, "generate", "a sphere", "--count", "9999"]
    process = subprocess.Popen(
        [*command, "--model", str(tiny), "--steps", "2", "--out", "made", "--dtype", "float32"],
        env=environment,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    end = time.monotonic() + 300
    try:
        while not list(tmp_path.glob("made/*.png")) and time.monotonic() < end:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "stopped: kept made/a-sphere-" in told.splitlines()[-1]
    assert "Traceback" not in told
    kept = list(tmp_path.glob("made/*"))
    assert kept
    assert all(path.suffix == ".png" and not path.name.startswith(".") for path in kept)
