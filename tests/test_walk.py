"""`ARCHITECTURE.md` tells a call as a walk through files; here the call is made and watched."""

import re
import sys
from pathlib import Path

from controls.test_grounding import RED, opened
from pipelines import tiny

import underdraw

SOURCE = Path(underdraw.__file__).parent
TEXT = (Path(__file__).parents[1] / "ARCHITECTURE.md").read_text(encoding="utf-8")
ANYWHERE = {"checks.py", "schema.py", "shown.py", "networks/config.py"}
"""Called from many places."""


def told():
    """Files of the walk, line by line."""
    walk = TEXT[TEXT.index("<!-- walk -->") : TEXT.index("<!-- end of the walk -->")]
    lines = [line for line in walk.splitlines() if re.match(r"\d+\. ", line)]
    return [re.findall(r"`([\w/]+\.py)`", line.partition(": ")[0]) for line in lines]


def entered(call):
    """Our files in the order in which a call first enters them."""
    order = []

    def hook(frame, event, argument):
        path = Path(frame.f_code.co_filename)
        if event == "call" and path not in seen:
            seen.add(path)
            if path.is_relative_to(SOURCE):
                order.append(path.relative_to(SOURCE).as_posix())

    seen: set[Path] = set()
    sys.setprofile(hook)
    try:
        call()
    finally:
        sys.setprofile(None)
    return order


def test_the_walk_is_what_runs():
    """No file is missing, none is told that does not run, and lines stand in order."""
    pipe = tiny.pipeline()
    pipe.load_grounding(opened(pipe.unet))

    def call():
        pipe("a red sphere", num_inference_steps=4, seed=7, output_type="np", controls=[RED])

    call()  # what is computed once in a process is not part of a call
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)  # its tables are
    runs = [path for path in entered(call) if path not in ANYWHERE]
    lines = told()
    walked = [path for line in lines for path in line]
    assert len(set(walked)) == len(walked), "a file is told twice"
    assert sorted(walked) == sorted(runs)
    # The first file of a line is entered after the first of the line before.
    firsts = [runs.index(line[0]) for line in lines]
    assert firsts == sorted(firsts)
