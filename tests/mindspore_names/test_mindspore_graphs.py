"""The engine `jit` on MindSpore: what is recorded once follows its inputs, and nothing is recorded
twice."""

import numpy as np
import pytest
from backends.cases import CASES
from backends.harness import give, relative, take, tree, values
from backends.test_operations import draw, layout_of
from pipelines import tiny

import underdraw
from underdraw import backends, engines, schedulers
from underdraw.backends import mindspore_graphs
from underdraw.engines.engine import Question
from underdraw.errors import InputError
from underdraw.models import UNet2DConditionModel
from underdraw.networks.program import Program

PLAIN = {
    **tiny.UNET,
    "block_out_channels": (16,),
    "down_block_types": ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",),
    "mid_block_type": None,
}
"""A UNet without attention: MindSpore takes 10 ms and more to record each operation."""
FIRST = {case.operation: case for case in reversed(CASES)}
CHOSEN = [case for case in CASES if case.operation == "python" or case is FIRST[case.operation]]
"""One of each operation, and what arrays do by themselves."""
BOUND = 1e-4
ops = pytest.importorskip("mindspore").ops
NN = backends.get("mindspore").operations


@pytest.fixture
def recorded(monkeypatch):
    """The graphs that were recorded."""
    record, made = mindspore_graphs._recording, []

    def noted(graph, arrays):
        made.append(graph)
        return record(graph, arrays)

    monkeypatch.setattr(mindspore_graphs, "_recording", noted)
    return made


def test_all_operations_follow_their_inputs(recorded):
    """What MindSpore fails to record would be the number of the first call for ever."""
    parameters, first, second = [], [], []
    for case in CHOSEN:
        inputs = draw(case, "float32")
        layout = layout_of(case, inputs)
        parameters.append(tree("mindspore", layout, values(layout)))
        other = [x if x.dtype.kind in "iub" else x[::-1] * 0.75 for x in inputs]
        first.append([give("mindspore", x) for x in inputs])
        second.append([give("mindspore", np.ascontiguousarray(x)) for x in other])

    def every(p, given):
        return [
            case.call(NN, one, *inputs) for case, one, inputs in zip(CHOSEN, p, given, strict=True)
        ]

    graph = backends.get("mindspore").compiled(every)
    for given in (first, first, second):
        found, wanted = graph(parameters, given), every(parameters, given)
        for case, mine, theirs in zip(CHOSEN, found, wanted, strict=True):
            assert relative(take("mindspore", mine), take("mindspore", theirs)) <= 1e-6, case
    assert len(recorded) == 1


def test_another_seed_strength_and_solver_record_nothing(recorded):
    """And another network of the same config. The first call of a program runs as it is written,
    the second is recorded."""
    parts = {**tiny.components(), "unet": tiny.shake(UNet2DConditionModel(**PLAIN))}
    context = np.random.default_rng(0).standard_normal((1, 5, tiny.WIDTH)).astype(np.float32)
    pipes = []
    for backend in ("torch", "mindspore"):
        pipes.append(underdraw.StableDiffusionPipeline(**tiny.on(backend, parts)))
        pipes[-1].set_progress_bar_config(disable=True)
    pipes[1].engine = "jit"
    engine = pipes[1].engine
    assert isinstance(engine, engines.Compiled)

    def same(seed, scale):
        pair = []
        for pipe in pipes:
            embeds = pipe.parts.framework.array(context)
            call = {"prompt_embeds": embeds, "negative_prompt_embeds": embeds * 0.5}
            size = {"height": 40, "width": 72, "num_inference_steps": 3}
            made = pipe(**call, **size, seed=seed, guidance_scale=scale, output_type="latent")
            pair.append(pipe.parts.framework.to_numpy(made.images))
        assert np.abs(pair[0] - pair[1]).max() <= BOUND * np.abs(pair[0]).max()

    same(1, 5.0)
    programs = [program.name for program, _ in engine.compiled]
    assert programs.count("unet") == 1 and len(recorded) == 1
    same(2, 3.0)
    count = len(recorded)
    for pipe in pipes:
        pipe.scheduler = schedulers.DDIMScheduler(**tiny.SCHEDULE, clip_sample=False)
    same(3, 4.0)
    unet = tiny.shake(UNet2DConditionModel(**PLAIN))
    pipes[0].unet, pipes[1].unet = unet, tiny.moved(unet, "mindspore")
    same(4, 4.0)
    assert len(recorded) == count and len(engine.compiled) == len(programs)


def test_what_cannot_be_recorded_is_told_and_leaves_nothing(recorded):
    unet = UNet2DConditionModel(**PLAIN, backend="mindspore")
    x = give("mindspore", np.ones((3, 4)))
    program = Program("counts", lambda nn, p, config, x: x + ops.arange(4, dtype=x.dtype))
    engine = engines.get("jit")
    question = Question(program, unet, (x,), NN)
    assert take("mindspore", engine.run(question))[2].tolist() == [1, 2, 3, 4]
    for _ in range(2):
        with pytest.raises(InputError, match="engine='jit': MindSpore makes no graph"):
            engine.run(question)
    doubled = Question(Program("double", lambda nn, p, config, x: x * 2.5), unet, (x,), NN)
    for _ in range(3):
        assert np.array_equal(take("mindspore", engine.run(doubled)), np.full((3, 4), 2.5))
    assert len(recorded) == 3
