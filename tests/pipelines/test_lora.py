"""LoRAs in calls: several at once, another mix in each image, merged, taken out; in every pipeline,
on every engine."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from controls.test_structure import close, maps
from engines.test_compiled import by_dynamo
from pipelines import tiny
from pipelines.loras import lora
from pipelines.test_beginnings import picture
from pipelines.test_engine import Recording

import underdraw
from underdraw import Lora, Structure
from underdraw.backends.tree import map_arrays
from underdraw.controls import Control
from underdraw.engines.compiled import Regional
from underdraw.errors import InputError, InputTypeError, NotFoundError, WeightError
from underdraw.networks.sites import NO_SITES
from underdraw.pictures.writing import METADATA
from underdraw.pipelines.call.record import repeat
from underdraw.schedulers import EulerDiscreteScheduler, HeunDiscreteScheduler
from underdraw.weights.lora.scales import as_scales

SIZE = {"height": 24, "width": 40, "num_inference_steps": 2}
PROMPTS = ["a red sphere", "a blue cube", "green"]


def loaded(pipe=None, **options):
    """A pipeline with two LoRAs, "clay" and "snow", both active."""
    pipe = tiny.pipeline() if pipe is None else pipe
    pipe.load_lora_weights(lora(pipe, 1, **options), "clay")
    pipe.load_lora_weights(lora(pipe, 2, **options), "snow")
    pipe.set_adapters(["clay", "snow"])
    return pipe


@pytest.fixture(scope="module")
def plain():
    return tiny.run(tiny.pipeline(), **SIZE)


def test_all_that_can_be_done_and_undone(plain):
    pipe = tiny.pipeline()
    pipe.load_lora_weights(lora(pipe, 1), "clay")
    clay = tiny.run(pipe, **SIZE)
    assert not close(clay, plain, 1e-2) and pipe.get_active_adapters() == ["clay"]
    pipe.load_lora_weights(lora(pipe, 2), "snow")
    assert pipe.get_active_adapters() == ["snow"]
    snow = tiny.run(pipe, **SIZE)
    pipe.set_adapters("clay")
    assert torch.equal(tiny.run(pipe, **SIZE), clay)
    pipe.set_adapters(["clay", "snow"], [0.7, -0.4])
    mixed = tiny.run(pipe, **SIZE)
    assert not any(close(mixed, other, 1e-2) for other in (clay, snow, plain))
    pipe.disable_lora()
    assert torch.equal(tiny.run(pipe, **SIZE), plain)
    pipe.enable_lora()
    assert torch.equal(tiny.run(pipe, **SIZE), mixed)
    half = tiny.run(pipe, cross_attention_kwargs={"scale": 0.5}, **SIZE)
    pipe.set_adapters(["snow", "clay"], [-0.2, 0.35])
    assert close(tiny.run(pipe, **SIZE), half, 1e-5)
    assert torch.equal(tiny.run(pipe, cross_attention_kwargs={"scale": 0.0}, **SIZE), plain)
    names = {"unet": ["clay", "snow"], "text_encoder": ["clay", "snow"]}
    assert pipe.get_list_adapters() == names
    pipe.delete_adapters("snow")
    assert pipe.get_active_adapters() == ["clay"]
    pipe.unload_lora_weights()
    assert torch.equal(tiny.run(pipe, **SIZE), plain) and pipe.get_list_adapters() == {}


def test_times_are_computed_one_time_where_all_rows_are_alike():
    """Two LoRAs change what blocks make of times, in all calls alike; mixes do so in each row."""
    pipe, steps = loaded(), {**SIZE, "num_inference_steps": 3}
    pipe.engine = engine = Recording()
    active = tiny.run(pipe, PROMPTS, **steps)
    assert engine.names.count("unet.times") == 1
    engine.names.clear()
    pipe.disable_lora()
    mixes = [Lora(name, [1.0] * len(PROMPTS)) for name in ("clay", "snow")]
    assert close(tiny.run(pipe, PROMPTS, **steps, controls=mixes), active, 1e-5)
    assert engine.names.count("unet.times") == 3


@dataclass(frozen=True)
class Later(Control):
    """A mix that begins at a call, or is another object in each one."""

    mix: Lora
    first: int = 0
    anew: bool = False

    def prepare(self, run):
        return self.mix.prepare(run)

    def before_call(self, nn, carry, latents, call):
        if call.index < self.first:
            return latents, NO_SITES, carry
        given = self.mix.sites_at(nn, carry, latents, call)
        if self.anew:
            given = replace(given, leaves=map_arrays(lambda x: 1 * x, given.leaves))
        return latents, given, carry


@pytest.mark.parametrize("solver", [EulerDiscreteScheduler, HeunDiscreteScheduler])
def test_times_of_mixes_are_known_ahead_where_they_stay(solver):
    """The same bits as asked call by call."""
    pipe = tiny.pipeline()
    pipe.load_lora_weights(lora(pipe, 1, texts=()), "clay")
    pipe.set_adapters([])
    pipe.scheduler = solver.from_config(pipe.scheduler.config)
    mix, steps = Lora("clay", [0.2, 1.0, -0.5]), {**SIZE, "num_inference_steps": 5}
    asked = {}
    for name, control in (
        ("stays", mix),
        ("anew", Later(mix, anew=True)),
        ("later", Later(mix, first=3)),
        ("later anew", Later(mix, first=3, anew=True)),
    ):
        pipe.engine = engine = Recording()
        made = tiny.run(pipe, PROMPTS, **steps, controls=[control])
        told = "".join({"unet": "u", "unet.times": "t"}.get(one, "") for one in engine.names)
        asked[name] = (told, made)
    calls = asked["stays"][0].count("u")
    assert calls == (9 if solver is HeunDiscreteScheduler else 5)
    assert asked["stays"][0] == "tu" + (calls - 1) * "t" + (calls - 1) * "u"
    assert asked["anew"][0] == "tu" * calls
    # What came before was all calls at once; the mix then has those calls that it was there for.
    assert asked["later"][0] == "tuuutu" + (calls - 1) * "t" + (calls - 4) * "u"
    assert asked["later anew"][0] == "tuuu" + "tu" * (calls - 3)
    assert torch.equal(asked["stays"][1], asked["anew"][1])
    assert torch.equal(asked["later"][1], asked["later anew"][1])
    assert not close(asked["stays"][1], asked["later"][1], 1e-3)


def test_merged_and_brought_back(plain, tmp_path):
    pipe = loaded()
    networks = pipe.unet, pipe.text_encoder
    shared = underdraw.StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    pipe.set_adapters(["clay", "snow"], [0.7, -0.4])
    mixed = tiny.run(pipe, **SIZE)
    pipe.fuse_lora(safe_fusing=True)
    assert pipe.num_fused_loras == 2 and pipe.fused_loras == {"clay", "snow"}
    assert close(tiny.run(pipe, **SIZE), mixed, 1e-5)
    assert shared.unet is networks[0] and pipe.unet is not networks[0]
    pipe.save_pretrained(tmp_path / "merged")
    again = underdraw.StableDiffusionPipeline.from_pretrained(tmp_path / "merged")
    again.set_progress_bar_config(disable=True)
    assert close(tiny.run(again, **SIZE), mixed, 1e-5)
    for refused in (pipe.delete_adapters, lambda name: pipe.load_lora_weights({}, name)):
        with pytest.raises((InputError, WeightError), match=r"merged|nothing inside"):
            refused("clay")
    pipe.unfuse_lora()
    assert (pipe.unet, pipe.text_encoder) == networks and pipe.num_fused_loras == 0
    assert torch.equal(tiny.run(pipe, **SIZE), mixed)
    pipe.fuse_lora(["unet"], lora_scale=0.5, adapter_names=["clay"])
    pipe.fuse_lora(["unet"], lora_scale=0.5, adapter_names=["snow"])
    pipe.unload_lora_weights()
    assert torch.equal(tiny.run(pipe, **SIZE), plain)


def test_another_mix_in_each_image():
    """Eight images with eight mixes in one call, single calls, and streams that share calls."""
    pipe = loaded()
    pipe.set_adapters([])
    clay = [1.0, 0.0, 0.5, -0.4, 0.0, 0.9, 0.2, -1.0]
    snow = [0.0, -1.0, 0.3, 0.8, 0.0, 0.1, -0.6, 1.0]
    prompts = [PROMPTS[i % 3] for i in range(8)]

    def arguments(images):
        controls = [
            Lora("clay", [clay[i] for i in images]),
            Lora("snow", [snow[i] for i in images]),
        ]
        return {"controls": controls, "seed": [3 + i for i in images], **SIZE}

    whole = tiny.run(pipe, prompts, **arguments(range(8)))
    options = {"output_type": "latent"}
    streams = [pipe.stream([prompts[i]], **arguments((i,)), **options) for i in range(8)]
    runs = underdraw.batched(streams)
    for _ in runs:
        pass
    for i, stream in enumerate(runs.streams):
        assert close(stream.output.images[0], whole[i], 3e-5)
    for i in range(3):
        single = tiny.run(pipe, [prompts[i]], **arguments((i,)))
        assert close(single[0], whole[i], 3e-5)
        pipe.set_adapters(["clay", "snow"], [clay[i], snow[i]])
        alone = tiny.run(pipe, [prompts[i]], seed=[3 + i], **SIZE)
        assert close(alone[0], whole[i], 3e-5)
        pipe.set_adapters([])


def test_images_of_one_prompt_share_its_text():
    pipe = loaded()
    pipe.set_adapters([])
    call = {"num_images_per_prompt": 2, **SIZE}
    with pytest.raises(InputError, match="give the prompt as often"):
        tiny.run(pipe, controls=[Lora("clay", [0.0, 1.0])], **call)
    tiny.run(pipe, controls=[Lora("clay", [0.4, 0.4])], **call)
    pipe = loaded(texts=())
    tiny.run(pipe, controls=[Lora("clay", [0.0, 1.0])], **call)


def test_amounts_by_block():
    pipe = loaded(tiny.pipeline(unet=tiny.DEEP), texts=())
    wanted = {"unet": {"down": 0.0, "mid": 0.0, "up": {"block_1": 0.0, "block_2": [0.0, 1.0]}}}
    pipe.set_adapters("clay", wanted)
    mixed = tiny.run(pipe, **SIZE)
    kept = {
        name: value
        for name, value in lora(pipe, 1, texts=()).items()
        if name.startswith(
            ("unet.up_blocks.0", "unet.up_blocks.2.resnets.1", "unet.up_blocks.2.attentions.1")
        )
    }
    pipe.load_lora_weights(kept, "clay")
    assert close(tiny.run(pipe, **SIZE), mixed, 1e-5)
    scales = as_scales("x", {"text_encoder": 0.5})
    assert scales.of("text_encoder", "a.b") == 0.5 and scales.of("unet", "conv_in") == 1


def kinds():
    """Every familiar pipeline with a short call."""
    still, hole = picture(24, 40), np.zeros((24, 40), np.float32)
    hole[4:16, 8:32] = 1
    picked = {"image": still, "strength": 1.0, "num_inference_steps": 2}
    edges = {"image": maps(1, height=24, width=40), **SIZE}
    return {
        "StableDiffusionPipeline": ({}, SIZE),
        "StableDiffusionImg2ImgPipeline": ({}, picked),
        "StableDiffusionInpaintPipeline": ({}, {**picked, "mask_image": hole}),
        "StableDiffusionControlNetPipeline": ({"controlnet": tiny.controlnet()}, edges),
        "StableDiffusionAdapterPipeline": ({"adapter": tiny.adapter()}, edges),
    }


@pytest.mark.parametrize("name", kinds())
def test_in_every_pipeline(name):
    more, call = kinds()[name]
    pipe = getattr(underdraw, name)(**tiny.components(), **more)
    pipe.set_progress_bar_config(disable=True)
    before = tiny.run(pipe, **call)
    loaded(pipe)
    assert not close(tiny.run(pipe, **call), before, 1e-2)
    pipe.unload_lora_weights()
    assert torch.equal(tiny.run(pipe, **call), before)


def test_diffedit():
    """Mask, inversion and call all run with it."""
    parts = tiny.components(scheduler=underdraw.schedulers.DDIMScheduler(**tiny.SCHEDULE))
    inverse = underdraw.schedulers.DDIMInverseScheduler(**tiny.SCHEDULE)
    pipe = underdraw.StableDiffusionDiffEditPipeline(**parts, inverse_scheduler=inverse)
    pipe.set_progress_bar_config(disable=True)
    call = {"image": picture(24, 40), "num_inference_steps": 4, "seed": 1}
    seen, ask = [], type(pipe.parts.engine).run

    def noted(engine, question):
        made = ask(engine, question)
        if question.program.name == "unet":
            seen.append(made.sample)
        return made

    answers, looked = [], []
    texts = {"target_prompt": "a blue cube", "source_prompt": "a red sphere"}
    how = {**call, "num_maps_per_mask": 1, "guidance_scale": 1.0}
    for scale in (None, 1.0, 0.0):
        if scale is not None:
            how["cross_attention_kwargs"] = {"scale": scale}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(pipe.parts.engine), "run", noted)
            pipe.generate_mask(**texts, **how)
        looked.append(seen.pop())
        answers.append(pipe.invert(prompt="a red sphere", **call).latents)
        if scale is None:
            pipe.load_lora_weights(lora(pipe, 1, texts=()), "clay")
    assert not close(answers[1], answers[0], 1e-2)
    assert not close(looked[1], looked[0], 1e-2)
    assert torch.equal(looked[2], looked[0])


def test_beside_a_map_and_on_a_gated_unet():
    pipe = loaded()
    net, map_ = tiny.controlnet(), maps(1, height=24, width=40)
    both = tiny.run(pipe, controls=[Structure(net, map_)], **SIZE)
    assert not close(tiny.run(pipe, **SIZE), both, 1e-3)
    pipe.disable_lora()
    assert not close(tiny.run(pipe, controls=[Structure(net, map_)], **SIZE), both, 1e-3)


def test_compiled():
    """Blocks with differences are traced whole."""
    torch.compiler.reset()
    pipe = loaded(tiny.pipeline(unet=tiny.ONE_LEVEL))
    wanted = tiny.run(pipe, **SIZE)
    graphs = []
    pipe.engine = Regional(by_dynamo(graphs))
    assert close(tiny.run(pipe, **SIZE), wanted, 1e-4)
    assert graphs


def test_files_and_folders(tmp_path):
    pipe = loaded()
    wanted = tiny.run(pipe, **SIZE)
    pipe.save_adapter("lora", tmp_path, "clay")
    type(pipe).save_lora_weights(
        tmp_path / "snow",
        {n.removeprefix("unet."): v for n, v in lora(pipe, 2, texts=()).items()},
        {n.removeprefix("text_encoder."): v for n, v in lora(pipe, 2, unet=()).items()},
        weight_name="s.safetensors",
    )
    pipe.unload_lora_weights()
    pipe.load_lora_weights(tmp_path)
    pipe.load_lora_weights(str(tmp_path / "snow"), weight_name="s.safetensors")
    pipe.load_lora_weights(tmp_path / "snow", "only file")
    assert list(pipe.adapters["lora"]) == ["default_0", "default_1", "only file"]
    pipe.set_adapters(["default_0", "default_1"])
    assert close(tiny.run(pipe, **SIZE), wanted, 1e-5)
    for source, options in ((tmp_path / "none", {}), (tmp_path, {"weight_name": "x.safetensors"})):
        with pytest.raises(NotFoundError):
            pipe.load_lora_weights(source, **options)


def test_a_picture_tells_and_is_made_again():
    pipe = loaded()
    pipe.set_adapters(["clay", "snow"], [0.7, {"unet": {"mid": -0.5}}])
    call = {**SIZE, "seed": 3, "cross_attention_kwargs": {"scale": 0.5}}
    image = pipe("a red sphere", **call).images[0]
    pipe.set_adapters([])
    again = repeat(pipe, image.info[METADATA])
    assert np.array_equal(np.asarray(image), np.asarray(again)) and not pipe.get_active_adapters()
    pipe.delete_adapters("snow")
    with pytest.raises(InputError, match="LoRAs that are not attached: 'snow'"):
        repeat(pipe, image.info[METADATA])
    pipe.set_adapters("clay")
    pipe.fuse_lora()
    image = pipe("a red sphere", **{**SIZE, "seed": 3}).images[0]
    with pytest.raises(InputError, match="lacks fuse_lora"):
        repeat(pipe, image.info[METADATA])


def test_a_refused_file_changes_nothing(plain):
    pipe = tiny.pipeline()
    tensors = lora(pipe, 1)
    name = next(iter(tensors))
    for bad in (
        {**tensors, name: tensors[name][:, :1]},
        {**tensors, name: torch.full_like(tensors[name], float("nan"))},
        {**tensors, "nowhere.lora_A.weight": tensors[name]},
        {},
    ):
        with pytest.raises(WeightError):
            pipe.load_lora_weights(bad)
        assert pipe.get_list_adapters() == {} and pipe.get_active_adapters() == []
    assert torch.equal(tiny.run(pipe, **SIZE), plain)


def test_arguments_that_cannot_work():
    pipe = loaded()
    cases = [
        (lambda: pipe.set_adapters("mud"), "not attached; attached: 'clay', 'snow'"),
        (lambda: pipe.set_adapters(["clay", "clay"]), "twice"),
        (lambda: pipe.set_adapters(["clay"], [1.0, 2.0]), "2 entries"),
        (lambda: pipe.set_adapters("clay", float("nan")), "adapter_weights"),
        (lambda: pipe.set_adapters("clay", {"vae": 1.0}), "allowed: text_encoder, unet"),
        (lambda: pipe.set_adapters("clay", {"unet": {"up": {"x": 1.0}}}), "block_0"),
        (lambda: pipe.delete_adapters("mud"), "not attached"),
        (lambda: pipe.fuse_lora(["vae"]), "components"),
        (lambda: pipe.fuse_lora(lora_scale="x"), "lora_scale"),
        (lambda: pipe.fuse_lora(adapter_names=["mud"]), "not attached"),
        (lambda: pipe.load_lora_weights(3), "3"),
        (lambda: pipe.load_lora_weights({}, "a.b"), "dot"),
        (lambda: pipe.load_lora_weights({"a": 3}), "tensor"),
        (lambda: tiny.run(pipe, cross_attention_kwargs={"scale": 1e9}), "scale"),
        (lambda: tiny.run(pipe, cross_attention_kwargs={"gligen": 1}), "cross_attention_kwargs"),
        (lambda: Lora(3), "neither a name"),
        (lambda: Lora("clay", []), "empty"),
        (lambda: Lora("clay", [float("inf")]), "scale"),
        (lambda: tiny.run(pipe, controls=[Lora("mud")]), "not attached"),
        (lambda: tiny.run(pipe, controls=[Lora("clay", [1.0, 2.0, 3.0])]), "3 numbers|differs"),
    ]
    before = pipe.get_active_adapters()
    for call, message in cases:
        with pytest.raises((InputError, InputTypeError), match=message):
            call()
    assert pipe.get_active_adapters() == before
