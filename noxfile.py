"""`nox` runs what CI runs: lint, the tests on PyTorch and JAX beside the peers, MindSpore."""

import nox

nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = True

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


@nox.session
def lint(session: nox.Session) -> None:
    """Lint, format, types and import contracts."""
    constraints = "constraints/tests.txt"
    session.install("-c", constraints, "-e", ".[jax]", "scipy", "opencv-python-headless")
    session.install("-c", constraints, "ruff", "pyright[nodejs]", "import-linter")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("pyright")
    session.run("lint-imports")


# What a session must find importable is said in UNDERDRAW_EXPECT, so that a backend or a peer which
# failed to install cannot leave its tests out in silence.


@nox.session
def tests(session: nox.Session) -> None:
    """Everything on PyTorch and JAX, against the peers (`nox -s tests -- tests/solvers`)."""
    constraints = "constraints/tests.txt"
    session.install("-c", constraints, ".[jax,canny,transformers,train,test]")
    session.install("-c", constraints, "diffusers", "scipy")
    expected = {"UNDERDRAW_EXPECT": "torch,jax,diffusers,transformers"}
    session.run("pytest", *WORKERS, *session.posargs, env=ENVIRONMENT | expected)


@nox.session
def mindspore(session: nox.Session) -> None:
    """The backends and the networks on MindSpore, which needs numpy 1 and so its own room."""
    constraints = "constraints/mindspore.txt"
    session.install("-c", constraints, ".[mindspore,test]")
    weights = "tests/text/test_apply_weights.py"
    chosen = session.posargs or ["tests/backends", "tests/networks", weights]
    expected = {"UNDERDRAW_EXPECT": "torch,mindspore"}
    session.run("pytest", *WORKERS, *chosen, env=ENVIRONMENT | expected)
