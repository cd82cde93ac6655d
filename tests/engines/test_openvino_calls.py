"""Pictures by the engine `openvino`: every control, in streams and batches.

All recorded calls (`scripts/record_calls.py`) run on it with `UNDERDRAW_CALLS=all`, in minutes, for
each compiles graphs of its own; one always does.
"""

import os

import numpy as np
import pytest
from controls.test_grounding import EVER, RED, opened
from controls.test_structure import close
from engines.test_everywhere import calls
from pipelines import tiny
from pipelines.blip import recorded as subjects
from pipelines.loras import lora
from pipelines.test_beginnings import masked, picture

import underdraw
from underdraw import AttentionEdit, Layout, Region, Structure
from underdraw.engines.eager import EAGER, Eager
from underdraw.engines.openvino import OpenVino

EXACT = 1e-5
"""Of the largest value, after a few steps."""
CALL = {"height": 40, "width": 72, "num_inference_steps": 2, "seed": 3}
ALL = os.environ.get("UNDERDRAW_CALLS") == "all"
CHOSEN = sorted(calls.CALLS) if ALL else ["distilled"]
LOOSE = {"solver_ddpm": 1e-3, "half": 0.1, "inversions": 1e-2, "diffedit_upwards": 1e-2}
"""Clipping, rounding to bfloat16, an optimiser and a guided inversion make of rounding what they
like."""


def programs(engine):
    return [program.name for program, _ in engine.compiled]


@pytest.fixture
def engine(caplog):
    """Nothing may run as it is written without a reason that a test knows of."""
    made = OpenVino(kept=None)
    yield made
    assert not caplog.records


def test_a_picture_of_everything(engine):
    """Boxes, a region, maps by a ControlNet and an adapter, a LoRA, in one call; and its VAE."""
    pipe = tiny.pipeline()
    pipe.load_grounding(opened(pipe.unet))
    pipe.load_lora_weights(lora(pipe, texts=("q_proj",)), "clay")
    maps = [
        Structure(net, picture(), scale=0.8) for net in (tiny.controlnet(pipe.unet), tiny.adapter())
    ]
    given = {
        "prompt": ["a (red:1.3) sphere", "a blue cube"],
        "controls": [Layout([RED], EVER), Region(masked(), image=picture(seed=1)), *maps],
        "output_type": "np",
        **CALL,
    }
    plain = pipe(**given).images
    pipe.engine = engine
    made = pipe(**given).images
    assert np.abs(made - plain).max() <= EXACT
    assert sorted(set(programs(engine))) == [
        "clip.text", "controlnet", "controlnet.hint", "t2i_adapter", "unet", "vae.decode",
        "vae.encode",
    ]  # fmt: skip
    assert programs(engine).count("unet") == 1
    compiled = len(engine.compiled)
    pipe.set_adapters("clay", 0.5)
    again = pipe(**{**given, "seed": 5, "guidance_scale": 4.0}).images
    pipe.engine = None
    assert np.abs(again - pipe(**{**given, "seed": 5, "guidance_scale": 4.0}).images).max() <= EXACT
    assert len(engine.compiled) == compiled


def test_a_subject(engine):
    pipe = subjects.pipeline()
    given = subjects.arguments("one", pipe)
    plain = pipe(**given).images
    pipe.engine = engine
    assert np.abs(pipe(**given).images - plain).max() <= EXACT * np.abs(plain).max() * 10
    assert {"blip.subject", "clip.text", "unet"} <= set(programs(engine))


def test_streams_share_calls(engine):
    """One graph for the joined call; an edit of attention among them."""
    pipe = tiny.pipeline(unet=tiny.ONE_LEVEL)
    edit = AttentionEdit(weights={"green": 2.0})
    two = ["a red sphere", "a green sphere"]
    arguments = [
        {"prompt": "a cube", "output_type": "latent", **CALL},
        {"prompt": two, "controls": [edit], "output_type": "latent", **CALL, "guidance_scale": 3.0},
    ]
    alone = [pipe(**one).images for one in arguments]
    pipe.engine = engine
    runs = underdraw.batched([pipe.stream(**one) for one in arguments])
    for _ in runs:
        pass
    for stream, expected in zip(runs.streams, alone, strict=True):
        made = stream.output.images
        assert (made - expected).abs().max() <= EXACT * expected.abs().max()
    assert programs(engine).count("unet") <= 2  # the edit acts in a part of the run


@pytest.mark.parametrize("name", CHOSEN)
def test_recorded_calls(name, monkeypatch, caplog):
    """As they are written and as graphs."""
    plain = calls.arrays(name)
    engine, run, inside = OpenVino(kept=None), Eager.run, []

    def by_graph(self, question):
        if inside:  # what the engine runs as it is written
            return run(EAGER, question)
        inside.append(question)
        try:
            return engine.run(question)
        finally:
            inside.pop()

    monkeypatch.setattr(Eager, "run", by_graph)
    made = calls.arrays(name)
    assert "unet" in programs(engine)
    assert [r.getMessage() for r in caplog.records if "a gradient is recorded" not in r.msg] == []
    for key, expected in plain.items():
        found = made[key].astype(np.float64)
        if expected.dtype.kind in "iub" or expected.max() > 50:  # masks and pictures
            assert (np.abs(found - expected) > 1).mean() <= 0.02, key
        else:
            bound = LOOSE.get(name, EXACT)
            assert np.abs(found - expected).max() <= bound * np.abs(expected).max(), key


def test_the_record_of_a_picture_names_it(engine):
    pipe = tiny.pipeline(unet=tiny.ONE_LEVEL)
    pipe.engine = engine
    assert "engine openvino" in repr(pipe)


def test_mixes_on_the_layers_of_times_leave_weights_unread(engine, monkeypatch):
    """What blocks make of times is asked call by call there, and ahead once it stays."""
    pipe = tiny.pipeline()
    pipe.load_lora_weights(lora(pipe, texts=(), unet=("time_emb_proj",)), "clay")
    pipe.set_adapters([])
    given = {
        "prompt": ["a red sphere", "a blue cube"],
        "controls": [underdraw.Lora("clay", [1.0, -0.5])],
        "output_type": "latent",
        **CALL,
        "num_inference_steps": 6,
    }
    plain = pipe(**given).images
    pipe.engine, summed = engine, []
    kind = pipe.unet._framework.Watch
    look = kind._summed
    monkeypatch.setattr(kind, "_summed", lambda self: summed.append(self) or look(self))
    for _ in range(2):
        summed.clear()
        assert close(pipe(**given).images, plain, EXACT)
        own = engine._watches[pipe.unet]
        assert sum(one is own for one in summed) == 2  # when the run begins, and a step later
