"""What all tests share: a quiet CPU, and which parts of the suite need a peer that is not here."""

import gc
import os
from importlib.util import find_spec

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Numbers are under test, not speed: XLA compiles in a quarter of the time when LLVM optimises less,
# the older, smaller code for fused loops is written, and a program is not split for other cores.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    " --xla_cpu_parallel_codegen_split_count=1",
)
if cache := os.environ.get("UNDERDRAW_JAX_CACHE"):
    # A folder for each worker: JAX writes its files in place, so another one could read halves.
    worker = os.environ.get("PYTEST_XDIST_WORKER", "alone")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(cache, worker)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
os.environ.setdefault("GLOG_v", "3")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["UNDERDRAW_CACHE"] = ""  # compiled graphs of tests are kept where tests say

if find_spec("torch"):
    import torch

    # How threads share a sum depends on its length, so that rows of a batch would differ by
    # rounding from the same rows alone; networks here are too small for a second thread anyway.
    torch.set_num_threads(1)
    # oneDNN prepares each small convolution for three times as long as PyTorch's own code computes.
    torch.backends.mkldnn.enabled = False

    from underdraw.backends import hardware

    # "auto" is float32 on every processor: tests that mean bfloat16 say so.
    hardware._cpu_has_bfloat16 = lambda: False

# MindSpore needs numpy 1 and lives in an environment without the peers. CI says which of them it
# expects (UNDERDRAW_EXPECT, tests/backends/test_installed.py), so nothing is left out unnoticed.
collect_ignore_glob = [] if find_spec("diffusers") else ["**/peer/*"]
collect_ignore_glob += [] if find_spec("jax") else ["flax_names/*"]
collect_ignore_glob += [] if find_spec("mindspore") else ["mindspore_names/*"]
NEEDED = ("jax", "mindspore", "openvino", "optax")
collect_ignore_glob += [f"**/test_{name}.py" for name in NEEDED if find_spec(name) is None]
if not find_spec("openvino"):
    collect_ignore_glob += ["**/engines/test_kept.py", "**/test_openvino_calls.py"]


@pytest.fixture(scope="module")
def onednn():
    """For modules whose networks are those that ship, or larger: it computes them sooner."""
    torch.backends.mkldnn.enabled = True
    yield
    torch.backends.mkldnn.enabled = False


gc.disable()  # while ten thousand tests are collected, which stay


def pytest_collection_finish():
    """What has been imported and collected stays to the end: no need to look through it again.
    And traces of programs are many objects that go without it: looking after each 700, as is
    Python's default, is 4 % of the time of tests on JAX; after as many as here 1 %."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 10)
    gc.enable()
