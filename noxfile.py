"""`nox` runs what CI runs: lint and the tests on PyTorch and JAX beside diffusers, then MindSpore.

`nox -s quick` is for every commit. `-R` installs nothing anew: `nox -R -s quick`.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nox

nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = True
nox.options.sessions = ["tests", "mindspore"]

# Two workers with one thread each: small networks gain nothing from more threads, and
# spinning OpenMP threads of two workers on two cores cost a factor.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "JAX_PLATFORMS": "cpu",
    "GLOG_v": "3",
    "PYTHONPATH": "",
    # Else each process that a test starts would compile diffusers' and PyTorch's sources again.
    "PYTHONDONTWRITEBYTECODE": "",
    # Programs that JAX compiled once are not compiled again (see `tests/conftest.py`).
    "UNDERDRAW_JAX_CACHE": str(Path(__file__).parent / ".nox" / "jax"),
}
WORKERS = ("-n", "2", "--dist", "worksteal")
# What a session must find importable, so that a backend or diffusers, had it failed to install,
# cannot leave its tests out in silence.
EXPECTED = {"UNDERDRAW_EXPECT": "torch,jax,openvino,optax,diffusers,transformers"}
# What numbers are held against, and never a run-time dependency.
ORACLES = ("diffusers", "peft", "lycoris-lora")
# Most files that an installation would compile are never imported.
INSTALL = ("--no-compile", "-c")

# Every room of the source is imported and run here: everyday paths and refusals. What is left out
# repeats it against diffusers (`peer`), on full-size networks, in training or in processes.
QUICK = """
test_import.py test_exceptions.py test_walk.py formats/test_one_room.py test_recorded_calls.py
backends/test_operations.py backends/test_layout.py networks/test_sites.py
networks/test_layouts.py models/test_pickling.py solvers/test_scheduler_errors.py
sampling/test_loop.py controls/test_control_sites.py text/test_prompts.py weights/test_folders.py
weights/test_match.py pipelines/test_bad_calls.py pipelines/test_stream.py pipelines/test_masks.py
scenes/test_scene_changes.py evaluation/test_captioner.py training/test_objectives.py
cli/test_info.py cli/test_merge.py
""".split()


@nox.session
def environment(session: nox.Session) -> None:
    """The packages of lint, tests and quick: PyTorch is installed once for all three."""
    extras = ".[jax,jax-train,canny,openvino,transformers,train,test]"
    tools = ("ruff", "pyright[nodejs]", "import-linter")
    session.install(*INSTALL, "constraints/tests.txt", extras, *ORACLES, "scipy", *tools)


@contextmanager
def ahead(session: nox.Session, later: str) -> Iterator[None]:
    """Where another session comes later, its packages are installed beside: pip waits for the net
    and the disk most of its time. Its turn then finds all but this package there."""
    runner = session._runner
    if later not in runner.manifest or runner.global_config.no_install:
        yield
        return
    command = [sys.executable, "-m", "nox", "--install-only", "-s", later]
    with subprocess.Popen(command) as installing:
        yield
    if installing.returncode:
        session.error(f"{later} could not be installed")


def shared(session: nox.Session, program: str, *arguments: str, **variables: str) -> None:
    """Runs a program of the environment above."""
    command = str(_bin(session) / program)
    session.run(command, *arguments, env=_paths(session) | variables, external=True)


def _bin(session: nox.Session) -> Path:
    return session.cache_dir.parent / "environment" / "bin"


def _paths(session: nox.Session) -> dict[str, str]:
    programs = _bin(session)
    paths = f"{programs}{os.pathsep}{os.environ['PATH']}"
    return {"VIRTUAL_ENV": str(programs.parent), "PATH": paths}


def rules(session: nox.Session) -> None:
    """Lint, format and import contracts."""
    shared(session, "ruff", "check", ".")
    shared(session, "ruff", "format", "--check", ".")
    shared(session, "lint-imports", PYTHONPATH="src")


@contextmanager
def types(session: nox.Session) -> Iterator[None]:
    """Types are checked beside what runs meanwhile: alone they keep one core busy."""
    running = subprocess.Popen(["pyright"], env=os.environ | _paths(session))
    try:
        yield
    finally:
        failed = running.wait()
    if failed:
        session.error("pyright found errors")


@nox.session(venv_backend="none", requires=["environment"])
def lint(session: nox.Session) -> None:
    """Lint, format, import contracts and types."""
    with types(session):
        rules(session)


@nox.session(venv_backend="none", requires=["environment"])
def quick(session: nox.Session) -> None:
    """Lint, types and a part of the tests on the sources as they are, for every commit."""
    with types(session):
        rules(session)
        chosen = [f"tests/{path}" for path in QUICK]
        variables = {**ENVIRONMENT, "PYTHONPATH": "src"}
        shared(session, "pytest", *WORKERS, *chosen, **variables, **EXPECTED)


@nox.session(venv_backend="none", requires=["environment"])
def tests(session: nox.Session) -> None:
    """Lint, types and everything on PyTorch and JAX, against diffusers; `nox -s tests --
    tests/solvers` runs these tests alone."""
    if session.posargs:
        shared(session, "pytest", *WORKERS, *session.posargs, **ENVIRONMENT, **EXPECTED)
        return
    with types(session), ahead(session, "mindspore"):
        rules(session)
        shared(session, "pytest", *WORKERS, **ENVIRONMENT, **EXPECTED)


@nox.session(venv_backend="none", requires=["environment"])
def pairs(session: nox.Session) -> None:
    """All pairs of controls on every engine that compiles; half an hour, so for releases."""
    chosen = session.posargs or ["tests/pipelines/pairs_on_engines.py"]
    shared(session, "pytest", *WORKERS, *chosen, **ENVIRONMENT, **EXPECTED)


@nox.session
def jax_alone(session: nox.Session) -> None:
    """Backends, networks, pipelines, training and Flax's names on JAX where nothing else is
    installed; `tests` runs the same beside all the rest, so for releases."""
    session.install(*INSTALL, "constraints/tests.txt", ".[jax,jax-train,test]")
    files = ["pipelines/test_backends.py", "training/test_optax.py", "flax_names"]
    chosen = session.posargs or ["tests/backends", "tests/networks", *(f"tests/{f}" for f in files)]
    expected = {"UNDERDRAW_EXPECT": "torch,jax"}
    named = ("-k", "jax or flax or optax or installed")
    session.run("pytest", *WORKERS, *named, *chosen, env=ENVIRONMENT | expected)


@nox.session
def mindspore(session: nox.Session) -> None:
    """Backends, networks and pipelines on MindSpore, which needs numpy 1 and so its own room."""
    session.install(*INSTALL, "constraints/mindspore.txt", ".[mindspore,test]")
    files = ["text/test_apply_weights.py", "pipelines/test_backends.py", "mindspore_names"]
    chosen = session.posargs or ["tests/backends", "tests/networks", *(f"tests/{f}" for f in files)]
    expected = {"UNDERDRAW_EXPECT": "torch,mindspore"}
    # What MindSpore has no part in has been run by `tests`.
    session.run(
        "pytest", *WORKERS, "-k", "mindspore or installed", *chosen, env=ENVIRONMENT | expected
    )
