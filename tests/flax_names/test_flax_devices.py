"""Calls over eight devices give the pictures of one."""

import json
import os
import subprocess
import sys
from pathlib import Path

from flax_names.recorded import BOUND


def test_eight_devices():
    flags = os.environ.get("XLA_FLAGS", "")
    os_too = {**os.environ, "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count=8"}
    script = Path(__file__).with_name("sharded.py")
    done = subprocess.run([sys.executable, script], env=os_too, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["devices"] == 8
    assert found["shape"] == [2, 1, 24, 40, 3]
    assert found["shards"] == [8, 2, 3]
    assert found["original"] <= BOUND
    assert found["mesh"] <= BOUND
    assert found["divided"] == [64, 32]
    assert found["unreplicated"] == [0, 1, 2]
    assert "8 devices" in found["refused"]
    assert found["ordinary"] <= 1e-4
    assert found["rows"] == ["P('data',)"] and set(found["compiled"]) == {1}
