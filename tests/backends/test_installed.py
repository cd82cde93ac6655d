"""Which backends and peers this run has. CI says what it expects, so that nothing goes untested."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from underdraw import backends
from underdraw.errors import InputError


def test_everything_expected_is_here():
    """UNDERDRAW_EXPECT, such as "torch,jax,diffusers", names what must be importable."""
    expected = os.environ.get("UNDERDRAW_EXPECT", "torch").split(",")
    missing = [name for name in expected if find_spec(name) is None]
    assert not missing, f"UNDERDRAW_EXPECT names {missing}; their tests would not have run"
    assert {name for name in expected if name in backends.NAMES} <= set(backends.installed())


def test_unknown_backends_are_named():
    with pytest.raises(
        InputError, match="'tensorflow' is not known; allowed: torch, jax, mindspore"
    ):
        backends.get("tensorflow")


def test_absent_backends_say_what_to_install(monkeypatch):
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: None)
    assert backends.installed() == ()
    with pytest.raises(InputError, match=r"pip install 'underdraw\[jax\]'"):
        backends.get.__wrapped__("jax")


@pytest.mark.parametrize("name", backends.installed())
def test_one_backend_loads_no_other(name):
    others = set(backends.NAMES) - {name}
    code = f"""
import sys
from underdraw import backends
from underdraw.networks import clip, safety, unet, vae
assert not set(backends.NAMES) & set(sys.modules), "networks are free of frameworks"
backends.get({name!r})
assert not {others!r} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=300)
