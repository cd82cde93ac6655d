"""`nox` runs what CI runs: lint, the tests on PyTorch and JAX beside diffusers, MindSpore.

`nox -s quick` is for every commit. `-R` installs nothing anew: `nox -R -s quick`.
"""

import os
from pathlib import Path

import nox

nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = True
nox.options.sessions = ["lint", "tests", "mindspore"]

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
}
WORKERS = ("-n", "2", "--dist", "worksteal")
# What a session must find importable, so that a backend or diffusers, had it failed to install,
# cannot leave its tests out in silence.
EXPECTED = {"UNDERDRAW_EXPECT": "torch,jax,diffusers,transformers"}
# Most files that an installation would compile are never imported.
INSTALL = ("--no-compile", "-c")

# Every room of the source is imported and run here: everyday paths and refusals. What is left out
# repeats it against diffusers (`peer`), on full-size networks, in training or in processes.
QUICK = ("tests/test_import.py",)


@nox.session
def environment(session: nox.Session) -> None:
    """The packages of lint, tests and quick: PyTorch is installed once for all three."""
    extras = ".[jax,canny,transformers,train,test]"
    tools = ("ruff", "pyright[nodejs]", "import-linter")
    session.install(*INSTALL, "constraints/tests.txt", extras, "diffusers", "scipy", *tools)


def shared(session: nox.Session, program: str, *arguments: str, **variables: str) -> None:
    """Runs a program of the environment above."""
    root = Path(session.invoked_from) / ".nox" / "environment"
    paths = {"VIRTUAL_ENV": str(root), "PATH": f"{root / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    session.run(program, *arguments, env=paths | variables, external=True)


@nox.session(venv_backend="none", requires=["environment"])
def lint(session: nox.Session) -> None:
    """Lint, format, types and import contracts."""
    sources = {"PYTHONPATH": "src"}
    shared(session, "ruff", "check", ".")
    shared(session, "ruff", "format", "--check", ".")
    shared(session, "pyright")
    shared(session, "lint-imports", **sources)


@nox.session(venv_backend="none", requires=["environment"])
def tests(session: nox.Session) -> None:
    """Everything on PyTorch and JAX, against diffusers (`nox -s tests -- tests/solvers`)."""
    shared(session, "pytest", *WORKERS, *session.posargs, **ENVIRONMENT, **EXPECTED)


@nox.session
def mindspore(session: nox.Session) -> None:
    """The backends and the networks on MindSpore, which needs numpy 1 and so its own room."""
    session.install(*INSTALL, "constraints/mindspore.txt", ".[mindspore,test]")
    weights = "tests/text/test_apply_weights.py"
    chosen = session.posargs or ["tests/backends", "tests/networks", weights]
    expected = {"UNDERDRAW_EXPECT": "torch,mindspore"}
    session.run("pytest", *WORKERS, *chosen, env=ENVIRONMENT | expected)
