"""Maps in any pipeline: they act, each image has its own, and all controls go together."""

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from controls.test_grounding import BLUE, EVER, RED, opened
from engines.test_compiled import JAX, by_dynamo
from PIL import Image
from pipelines import tiny
from pipelines.tiny import run, together

import underdraw
from underdraw import AttentionEdit, Layout, PerImage, Region, Structure, engines
from underdraw.controls import Strength
from underdraw.engines.compiled import Compiled, Regional
from underdraw.engines.eager import EAGER
from underdraw.errors import InputError, InputTypeError
from underdraw.pictures.maps import Maps, masked_map, read_maps, sized

SIZE = {"height": 40, "width": 72}  # latents 5 x 9
PROMPTS = ["a red sphere", "a blue cube on the table", "green left of the red cube"]


def maps(count=1, seed=0, height=40, width=72):
    """Maps of thin lines; one alone, or a list."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[random.integers(0, height, 3)] = 255
        pixels[:, random.integers(0, width, 3)] = 255
        made.append(Image.fromarray(pixels))
    return made if count > 1 else made[0]


@pytest.fixture(scope="module")
def pipe():
    return tiny.pipeline()


@pytest.fixture(scope="module")
def net(pipe):
    return tiny.controlnet(pipe.unet)


@pytest.fixture(scope="module")
def nets(net):
    return {"controlnet": net, "full": tiny.adapter(), "light": tiny.adapter(**tiny.LIGHT)}


def close(a, b, bound=1e-5):
    """Batches of other sizes sum in another order."""
    return float((a - b).abs().max()) <= bound * float(b.abs().max())


@pytest.mark.parametrize("name", ["controlnet", "full", "light"])
def test_a_map_acts_and_leaves_no_trace(pipe, nets, name):
    one = nets[name]
    if name == "light":  # which is made for last two levels of one width
        pipe = tiny.pipeline(unet={"block_out_channels": (16, 16)})
    plain = run(pipe, **SIZE)
    state = {key: value.clone() for key, value in pipe.unet.state_dict().items()}
    steered = run(pipe, **SIZE, controls=[Structure(one, maps())])
    assert not close(steered, plain, 1e-2)
    assert not close(run(pipe, **SIZE, controls=[Structure(one, maps(seed=1))]), steered, 1e-3)
    assert torch.equal(run(pipe, **SIZE, controls=[Structure(one, maps(), scale=0)]), plain)
    assert torch.equal(run(pipe, **SIZE), plain)
    assert all(torch.equal(state[key], value) for key, value in pipe.unet.state_dict().items())
    # Two of half the scale are one: what nets give adds up.
    half = Structure(one, maps(), scale=0.5)
    assert close(run(pipe, **SIZE, controls=[half, half]), steered)


def test_a_new_controlnet_changes_nothing(pipe):
    new = underdraw.ControlNetModel.from_unet(pipe.unet)
    assert torch.equal(run(pipe, **SIZE, controls=[Structure(new, maps())]), run(pipe, **SIZE))


VALUES: dict[str, list[Any]] = {
    "map": maps(3),
    "scale": [0.4, 0.0, 1.5],
    "start": [0.0, 0.3, 0.6],
    "end": [0.4, 0.7, 1.0],
    "strength": [(1, 0, 0), (0.25, 0.75, 0), Strength(0.5, 0.0, 0.5)],
}
"""By argument, another one for each of three images."""


@pytest.mark.parametrize("argument", [*VALUES, "all"])
@pytest.mark.parametrize("name", ["controlnet", "full"])
def test_each_image_has_its_own(pipe, nets, name, argument):
    one, call = nets[name], {"num_inference_steps": 4, **SIZE}
    own = VALUES if argument == "all" else {argument: VALUES[argument]}
    own = {"map": maps(), **own}
    every = run(pipe, PROMPTS, controls=[Structure(one, **own)], seed=[1, 2, 3], **call)
    for i, prompt in enumerate(PROMPTS):
        alone = {k: v[i] if isinstance(v, list) else v for k, v in own.items()}
        single = run(pipe, prompt, controls=[Structure(one, **alone)], seed=1 + i, **call)
        assert close(single[0], every[i])


def test_it_acts_between_start_and_end(pipe, net, monkeypatch):
    """In calls that begin at or after `start` and are over at `end`, and is asked in no other."""
    asked = []
    original = type(pipe.engine).run

    def watching(self, question):
        asked.append(question.program.name)
        return original(self, question)

    monkeypatch.setattr(type(pipe.engine), "run", watching)
    for start, end, count in ((0.0, 1.0, 4), (0.25, 1.0, 3), (0.0, 0.5, 2), (0.3, 0.6, 0)):
        asked.clear()
        run(pipe, controls=[Structure(net, maps(), start=start, end=end)], num_inference_steps=4)
        assert asked.count("controlnet") == count
        assert asked.count("controlnet.hint") == 1
        assert asked.count("controlnet.context") == asked.count("controlnet.times") == min(count, 1)


def test_guess_mode_acts_on_the_conditional_half(pipe, net, monkeypatch):
    """The other half is not asked for; without guidance deeper residuals still count more. Where
    both are, they have latents and map in common, and differ where they read texts."""
    rows, original = [], type(pipe.engine).run

    def watching(self, question):
        if question.program.name == "controlnet":
            latents, _, keys = question.inputs[:3]
            assert latents.shape[0] == 1
            rows.append(next(iter(keys.values()))[0].shape[0])
        return original(self, question)

    monkeypatch.setattr(type(pipe.engine), "run", watching)
    made = [
        run(pipe, controls=[Structure(net, maps(), guess=guess)], guidance_scale=scale)
        for guess in (False, True)
        for scale in (7.5, 1.0)
    ]
    assert set(rows[:3]) == {2} and set(rows[3:]) == {1}
    assert not close(made[0], made[2], 1e-3) and not close(made[1], made[3], 1e-3)
    rows.clear()
    pooling = tiny.controlnet(pipe.unet, global_pool_conditions=True)
    run(pipe, controls=[Structure(pooling, maps())])
    assert set(rows) == {1}


# -- kinds of maps ---------------------------------------------------------------------------------
PIXELS = np.random.default_rng(3).integers(0, 256, (40, 72, 3), np.uint8)
GREY = PIXELS[..., 0]
ALIKE = {
    "array": PIXELS,
    "numbers": PIXELS.astype(np.float64) / 255,
    "uint16": PIXELS.astype(np.uint16) * 257,
    "tensor": torch.from_numpy(PIXELS.transpose(2, 0, 1)),
    "tensor of several": torch.from_numpy(PIXELS.transpose(2, 0, 1)[None] / np.float32(255)),
    "list": [PIXELS],
    "opaque": Image.fromarray(np.dstack((PIXELS, np.full(GREY.shape, 255, np.uint8)))),
}


@pytest.mark.parametrize("kind", ALIKE)
def test_a_map_is_the_same_in_every_kind(kind):
    wanted = sized("map", read_maps("map", Image.fromarray(PIXELS)), 3, 40, 72)
    assert np.allclose(sized("map", read_maps("map", ALIKE[kind]), 3, 40, 72), wanted, atol=1e-6)


def test_grey_maps_are_for_three_channels_and_one(pipe):
    three = sized("map", read_maps("map", GREY), 3, 40, 72)
    assert (three == three[:, :1]).all()
    for kind in (GREY, Image.fromarray(GREY), GREY[..., None], torch.from_numpy(GREY[None])):
        one = sized("map", read_maps("map", kind), 1, 40, 72)
        assert np.allclose(one, three[:, :1], atol=1e-6)
    assert sized("map", read_maps("map", [PIXELS, GREY]), 3, 20, 36).shape == (2, 3, 20, 36)
    grey = tiny.adapter(in_channels=1)
    assert run(pipe, **SIZE, controls=[Structure(grey, GREY)]).isfinite().all()
    with pytest.raises(InputError, match="3 channels; the network takes 1"):
        run(pipe, **SIZE, controls=[Structure(grey, PIXELS)])


def test_maps_for_inpainting_are_open_where_masked(pipe, net):
    mask = np.zeros((20, 36), np.uint8)
    mask[5:10, 8:20] = 255
    wanted = PIXELS.astype(np.float32) / 255
    wanted[10:20, 16:40] = -1
    for one in (mask, Image.fromarray(mask), mask / 255, torch.from_numpy(mask)):
        assert np.array_equal(masked_map(PIXELS, one), wanted)
    open_places = run(pipe, **SIZE, controls=[Structure(net, masked_map(PIXELS, mask))])
    assert not close(open_places, run(pipe, **SIZE, controls=[Structure(net, PIXELS)]), 1e-3)


def test_maps_are_brought_to_the_size_of_the_result(pipe, net):
    whole = Image.fromarray(PIXELS)
    fitted = whole.resize((72, 64), Image.Resampling.LANCZOS)
    made = [
        run(pipe, height=64, width=72, controls=[Structure(net, one)]) for one in (whole, fitted)
    ]
    assert torch.equal(*made)


# -- what goes wrong -------------------------------------------------------------------------------
NAN = PIXELS / np.float32(255)
NAN[3, 4] = np.nan
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no net": ({"net": 3}, "net=3.*ControlNetModel"),
    "NaN in a map": ({"map": NAN}, "map.*nan"),
    "beyond the range": ({"map": PIXELS.astype(np.float32)}, r"map\) has values from 0 to 255"),
    "between open and black": ({"map": NAN * 0 - 0.5}, "map"),
    "four channels": ({"map": np.dstack((PIXELS, GREY))}, r"map\) has shape \(40, 72, 4\)"),
    "latents": ({"map": torch.zeros(1, 4, 5, 9)}, r"map\) has shape \(1, 4, 5, 9\)"),
    "no map": ({"map": None}, "map"),
    "an empty list": ({"map": []}, "map.*empty"),
    "a path": ({"map": "edges.png"}, "map"),
    "an empty map": ({"map": np.zeros((0, 4, 3))}, "map.*shape"),
    "complex": ({"map": PIXELS.astype(np.complex64)}, "map.*dtype"),
    "scale of NaN": ({"scale": float("nan")}, "scale"),
    "scales with NaN": ({"scale": [1.0, float("nan")]}, "scale"),
    "no scale": ({"scale": []}, "scale"),
    "a huge scale": ({"scale": 1e30}, "scale"),
    "start after end": ({"start": 0.6, "end": 0.5}, "start=0.6, end=0.5"),
    "starts after ends": ({"start": [0.1, 0.6], "end": 0.5}, "start=0.6"),
    "as many starts as ends": ({"start": [0.1, 0.2], "end": [0.3, 0.4, 0.5]}, "start has 2"),
    "a start beyond the run": ({"start": 1.5}, "start"),
    "a strength of two": ({"strength": (0.5, 0.5)}, "strength"),
    "guess of a number": ({"guess": 1}, "guess"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_no_structure_can_be(net, name):
    wrong, words = BAD[name]
    with pytest.raises((InputError, InputTypeError), match=f"(?i){words}"):
        Structure(**{"net": net, "map": maps(), **wrong})


def test_a_guess_is_of_controlnets():
    with pytest.raises(InputError, match="guess=True"):
        Structure(tiny.adapter(), maps(), guess=True)


UNFIT = {
    "three maps for two images": (lambda p: (tiny.controlnet(p.unet), maps(3)), {}, "3 entries"),
    "three scales": (lambda p: (tiny.controlnet(p.unet), maps()), {"scale": [1] * 3}, "scale"),
    "another width": (
        lambda p: (tiny.controlnet({**tiny.UNET, "block_out_channels": (16, 64)}), maps()),
        {},
        "block_out_channels",
    ),
    "other texts": (
        lambda p: (tiny.controlnet({**tiny.UNET, "cross_attention_dim": 48}), maps()),
        {},
        "cross_attention_dim=48",
    ),
    "other layers": (
        lambda p: (tiny.controlnet({**tiny.UNET, "layers_per_block": 2}), maps()),
        {},
        "residual blocks per level",
    ),
    "an adapter of two levels": (
        lambda p: (tiny.adapter(channels=(16, 48)), maps()),
        {},
        "(16, 32)",
    ),
    "a name that is not attached": (lambda p: ("edges", maps()), {}, "'edges'.*not attached"),
    "nothing attached": (lambda p: (None, maps()), {}, "load_structure"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_does_not_fit_is_told_before_the_first_call(pipe, name):
    make, more, words = UNFIT[name]
    calls = tiny.counted(pipe)
    control = Structure(*make(pipe), **more)
    with pytest.raises(InputError, match=words.replace("(", r"\(").replace(")", r"\)")):
        run(pipe, PROMPTS[:2], controls=[control])
    assert not calls


def test_a_net_reads_latents_alone(net):
    """Beside an inpainting UNet, too, which takes the mask and the masked picture besides."""
    parts = tiny.components(unet={"in_channels": 9})
    pipe = underdraw.StableDiffusionInpaintPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    call = {"image": maps(), "mask_image": np.ones((40, 72)), **SIZE}
    assert run(pipe, controls=[Structure(net, maps())], **call).isfinite().all()
    wide = tiny.controlnet({**tiny.UNET, "in_channels": 9})
    with pytest.raises(InputError, match="takes 9 channels; latents have 4"):
        run(pipe, controls=[Structure(wide, maps())], **call)


# -- together --------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Case:
    """A prompt and its edit, on which everything acts, each with a value of its own."""

    prompts: list[str]
    seed: int
    guidance: float
    boxes: list[Any]
    mask: np.ndarray
    kept: torch.Tensor
    edge: Any
    depth: Any
    scale: float
    end: float


def case(i):
    mask = np.zeros((1, 40, 72), np.float32)
    mask[:, 8 : 24 + 4 * i, 16:56] = 1
    return Case(
        [PROMPTS[i], PROMPTS[i].replace("red", "green").replace("blue", "green")],
        5 + i,
        [3.0, 5.0, 7.5][i],
        [[RED, BLUE], [BLUE, RED], [RED]][i],
        mask,
        torch.full((1, 4, 5, 9), 0.1 * i),
        maps(3)[i],
        maps(3, seed=9)[i],
        [0.4, 1.0, 1.3][i],
        [0.5, 1.0, 0.75][i],
    )


def arguments(cases, net, second):
    """A call of some cases: two images of each, a prompt's and its edit's."""

    def twice(of):
        return [value for one in cases for value in [of(one)] * 2]

    layouts = twice(lambda one: Layout(one.boxes, EVER))
    return {
        "prompt": [prompt for one in cases for prompt in one.prompts],
        "seed": twice(lambda one: one.seed),
        "guidance_scale": twice(lambda one: one.guidance),
        "negative_prompt": "green",
        "controls": [
            PerImage(*layouts),
            Region(
                np.concatenate(twice(lambda one: one.mask)),
                latents=torch.cat(twice(lambda one: one.kept)),
            ),
            *(AttentionEdit(source=2 * i, targets=(2 * i + 1,)) for i in range(len(cases))),
            Structure(
                net,
                twice(lambda one: one.edge),
                twice(lambda one: one.scale),
                end=twice(lambda one: one.end),
            ),
            Structure(second, twice(lambda one: one.depth), 0.7),
        ],
        "num_inference_steps": 4,
        "output_type": "latent",
        **SIZE,
    }


@pytest.mark.parametrize("second", ["controlnet", "full"])
def test_all_together_in_a_batch_and_as_streams(pipe, nets, second):
    """Two boxes, a region, an attention edit and two nets at once: three cases in one batch equal
    single runs, and so do three runs that share the calls of their UNet."""
    both = nets["controlnet"], nets[second]
    pipe.load_grounding(opened(pipe.unet))
    try:
        three = [case(i) for i in range(3)]
        singles = [pipe(**arguments([one], *both)).images for one in three]
        every = pipe(**arguments(three, *both)).images
        for i, alone in enumerate(singles):
            assert close(every[2 * i : 2 * i + 2], alone, 1e-4)
        plain = arguments(three, *both)
        plain["controls"] = plain["controls"][:-2]
        assert not close(pipe(**plain).images, every, 1e-2)
        runs = underdraw.batched([pipe.stream(**arguments([one], *both)) for one in three])
        for _ in runs:
            pass
        for stream, alone in zip(runs.streams, singles, strict=True):
            assert close(stream.output.images, alone, 1e-4)
    finally:
        pipe.unload_grounding()


def test_with_an_attention_edit(pipe, net):
    """Source and target of a prompt-to-prompt edit, both along a map, equal the map alone where
    nothing is edited."""
    edit = AttentionEdit()
    pair = ["a red sphere", "a blue sphere"]
    plain = run(pipe, pair, seed=[1, 1], controls=[Structure(net, maps()), edit], **SIZE)
    alone = run(pipe, pair, seed=[1, 1], controls=[edit], **SIZE)
    single = run(pipe, pair[0], seed=1, controls=[Structure(net, maps())], **SIZE)
    assert close(plain[0], single[0], 1e-4)
    assert not close(plain[1], alone[1], 1e-2)


def test_null_texts_reach_the_net(pipe, net):
    """What replaces the context of a call replaces it for the ControlNet, too."""
    context = pipe.encode_prompt("a blue cube", do_classifier_free_guidance=True)
    seen = []

    class Look(Structure):
        def during_call(self, nn, carry, asked, call):
            seen.append(asked.context)
            return super().during_call(nn, carry, asked, call)

    texts = underdraw.NullText([context[0] + 1] * 3)
    run(pipe, controls=[texts, Look(net, maps())], **SIZE)
    assert all(torch.allclose(one[:1], context[0] + 1) for one in seen)


def test_a_callback_that_replaces_the_context_is_followed(pipe, net):
    other = torch.cat(pipe.encode_prompt("a blue cube")[::-1])

    def change(pipe, step, timestep, tensors):
        return {"prompt_embeds": other} if step == 1 else {}

    call = {"num_inference_steps": 4, "callback_on_step_end": change, **SIZE}
    followed = run(pipe, controls=[Structure(net, maps())], **call)
    short = run(pipe, controls=[Structure(net, maps(), end=0.5)], **call)
    assert not close(followed, short, 1e-3)

    # In place, too: the array stays, its numbers are others.
    def in_place(pipe, step, timestep, tensors):
        if step == 1:
            tensors["prompt_embeds"].copy_(other)
        return tensors

    call["callback_on_step_end_tensor_inputs"] = ["prompt_embeds"]
    again = run(
        pipe, controls=[Structure(net, maps())], **{**call, "callback_on_step_end": in_place}
    )
    assert close(again, followed)


# -- engines, devices, adapters --------------------------------------------------------------------
class OfNets:
    """Compiles the programs of ControlNets as a whole, and runs others as they are."""

    def __init__(self):
        self.compiled = Compiled(by_dynamo([]))

    def run(self, question):
        engine = self.compiled if question.program.name == "controlnet" else EAGER
        return engine.run(question)


@pytest.mark.parametrize("make", [lambda: Regional(by_dynamo([])), OfNets], ids=["blocks", "whole"])
def test_compiled_networks(make):
    torch.compiler.reset()
    pipe = tiny.pipeline(unet=tiny.ONE_LEVEL)
    nets = tiny.controlnet(pipe.unet), tiny.adapter(channels=(16,), num_res_blocks=1)
    controls = [Structure(nets[0], maps(), 0.7), Structure(nets[1], maps(seed=2))]
    wanted = run(pipe, controls=controls)
    pipe.engine = make()
    assert close(run(pipe, controls=controls), wanted, 1e-4)


@JAX
def test_other_maps_compile_nothing_on_jax(nets):
    shape = {"unet": tiny.ONE_LEVEL}
    parts = tiny.components(**shape)
    net = tiny.controlnet(parts["unet"])
    eager = underdraw.StableDiffusionPipeline(**parts)
    jitted = underdraw.StableDiffusionPipeline(**tiny.on("jax", parts))
    moved, engine = tiny.moved(net, "jax"), engines.Compiled()
    jitted.engine = engine
    for pipe in (eager, jitted):
        pipe.set_progress_bar_config(disable=True)
    texts = [eager.encode_prompt(prompt) for prompt in PROMPTS]  # towers take time to compile
    to_jax = jitted.unet._framework.array

    def told(pipe, i):
        context, negative = texts[i]
        if pipe is jitted:
            context, negative = (to_jax(x.detach().numpy()) for x in (context, negative))
        return {"prompt_embeds": context, "negative_prompt_embeds": negative}

    counts = []
    for seed, scale, start in ((0, 0.7, 0.0), (1, 1.1, 0.2)):
        call = {"num_inference_steps": 4, "seed": seed, **SIZE, "output_type": "latent"}
        made = [
            pipe(
                **told(pipe, seed),
                controls=[Structure(one, maps(seed=seed), scale, start)],
                **call,
            )
            for pipe, one in ((eager, net), (jitted, moved))
        ]
        ours, wanted = (np.asarray(one.images) for one in made)
        assert np.abs(ours - wanted).max() <= 1e-4 * np.abs(wanted).max()
        counts.append(len(engine.compiled))
    # The second begins later: the UNet without residuals is the one structure that is new.
    assert counts[1] - counts[0] == 1
    call = {"num_inference_steps": 4, "seed": 5, **SIZE, "output_type": "latent"}
    jitted(**told(jitted, 2), controls=[Structure(moved, maps(seed=5), 0.3, end=0.7)], **call)
    assert len(engine.compiled) == counts[1]


def test_nets_are_of_the_backend_of_the_unet(pipe, nets):
    pytest.importorskip("jax")
    with pytest.raises(InputError, match="backend 'jax'; the UNet is on 'torch'"):
        run(pipe, controls=[Structure(tiny.moved(nets["full"], "jax"), maps())])


def test_half_precision_nets_steer_a_float32_unet(pipe):
    net = tiny.controlnet(pipe.unet)
    wanted = run(pipe, controls=[Structure(net, maps())])
    found = run(pipe, controls=[Structure(net.to(torch.bfloat16), maps())])
    assert found.dtype == wanted.dtype and close(found, wanted, 0.2)


@pytest.mark.parametrize("name", ["controlnet", "full"])
def test_attached_nets_have_names(pipe, nets, tmp_path, name):
    one = nets[name]
    wanted = run(pipe, controls=[Structure(one, maps())])
    pipe.load_structure(one, name="edges")
    try:
        assert pipe.adapters["structure"] == {"edges": one}
        assert torch.equal(run(pipe, controls=[Structure("edges", maps())]), wanted)
        assert torch.equal(run(pipe, controls=[Structure(None, maps())]), wanted)
        pipe.save_structure(tmp_path / "written")
        pipe.unload_structure("edges")
        pipe.load_structure(tmp_path / "written")
        assert torch.equal(run(pipe, controls=[Structure("written", maps())]), wanted)
        pipe.load_structure(one, name="edges")
        with pytest.raises(InputError, match=r"None.*'written', 'edges'"):
            run(pipe, controls=[Structure(None, maps())])
    finally:
        pipe.unload_structure()
    assert pipe.adapters["structure"] == {}


def test_nets_of_a_folder_are_known_by_their_folders(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    nets = {name: tiny.controlnet(pipe.unet, seed=i) for i, name in enumerate(("edges", "depth"))}
    for name, one in nets.items():
        one.save_pretrained(tmp_path / "structure" / name)
    own = underdraw.StableDiffusionPipeline.from_pretrained(tmp_path)
    own.set_progress_bar_config(disable=True)
    assert sorted(own.adapters["structure"]) == ["depth", "edges"]
    wanted = {name: run(pipe, controls=[Structure(one, maps())]) for name, one in nets.items()}
    for name in nets:
        assert torch.equal(run(own, controls=[Structure(name, maps())]), wanted[name])
    with pytest.raises(InputError, match=r"None.*'depth', 'edges'"):
        run(own, controls=[Structure(None, maps())])
    # One's own stands before those of the folder, one of whose name in its place.
    for name in ("mine", "depth"):
        own.load_structure(nets["edges"], name=name)
        assert torch.equal(run(own, controls=[Structure(None, maps())]), wanted["edges"])
        own.unload_structure(name)
    assert torch.equal(run(own, controls=[Structure(None, maps())]), wanted["edges"])
    assert copy.deepcopy(own.parts.attached).own["structure"] == {"edges"}


def test_two_threads_share_a_net(pipe, net):
    """Nothing is kept on it between calls."""
    tasks = [
        lambda i=i: run(pipe, controls=[Structure(net, maps(seed=i))], seed=i, **SIZE)
        for i in range(2)
    ]
    alone = [task() for task in tasks]
    assert all(map(torch.equal, together(*tasks), alone))


def test_maps_are_read_once():
    read = read_maps("map", maps(2))
    assert isinstance(read, Maps) and read_maps("map", read) is read
    assert Structure(tiny.adapter(), read).map is read
