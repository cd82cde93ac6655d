"""Eight threads use the package for the first time, at the same moment."""

import copy
import os
import pickle
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

from pipelines import tiny

from underdraw.pipelines.components import adapters

TESTS = Path(__file__).parents[1]
BACKENDS = ["torch", *(["jax"] if find_spec("jax") else [])]


def test_eight_threads_at_once():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(TESTS), *sys.path))}
    ended = subprocess.run(
        [sys.executable, str(TESTS / "pipelines" / "first_use.py"), *BACKENDS],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert ended.stdout.split("\n")[0] == "the same everywhere"


def test_weights_beside_a_pipeline_are_read_once(tmp_path, monkeypatch):
    reads, slow = [], threading.Event()

    def read(components, source):
        reads.append(source)
        slow.wait(0.05)  # others come meanwhile
        return "found", object()

    kind = adapters.AdapterKind("counted", "beside", read, print)
    monkeypatch.setitem(adapters.KINDS, "counted", kind)
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "config.json").touch()
    attached = adapters.Attached()
    components = SimpleNamespace(source=str(tmp_path), offload=None)
    found = tiny.together(*[lambda: attached.of(components, "counted")["found"]] * 8)
    assert len(set(map(id, found))) == len(reads) == 1
    tiny.together(
        *[lambda i=i: attached.attach(components, "counted", str(i), i) for i in range(8)]
    )
    assert len(attached.of(components, "counted")) == 9


def test_what_is_given_comes_over_what_waits_in_the_folder(tmp_path, monkeypatch):
    """Nobody has asked for the folder's weights when others are loaded."""

    def read(components, source):
        components.attached.bring(components, "bringing", (source,))
        return Path(source).name, object()

    kind = adapters.AdapterKind("bringing", "beside", read, print)
    monkeypatch.setitem(adapters.KINDS, "bringing", kind)
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "config.json").touch()
    components = SimpleNamespace(source=str(tmp_path), offload=None)
    components.attached = attached = adapters.Attached()
    attached.load(components, "bringing", "given", {})
    assert attached.of(components, "bringing").keys() == {"beside", "given"}
    assert attached.brought["bringing"] == ("given",)


def test_what_is_attached_is_copied_and_pickled():
    pipe = tiny.pipeline()
    assert pipe.adapters["grounding"] == {}
    for own in (copy.copy(pipe), copy.deepcopy(pipe), pickle.loads(pickle.dumps(pipe))):
        assert own.parts.attached is not pipe.parts.attached
        assert own.adapters == pipe.adapters
