"""Pictures beside the prompt (IP-Adapters): in every pipeline, on every engine, beside every other
control, per image; their files, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from controls.test_grounding import EVER, RED, opened
from controls.test_structure import close, maps
from engines.test_compiled import by_dynamo
from PIL import Image
from pipelines import ip_adapters, test_gligen as gligen, tiny
from pipelines.blip import recorded as blip
from pipelines.elsewhere import Accelerator
from pipelines.ip_adapters import adapter, faces, flat, picture
from pipelines.loras import lora
from pipelines.test_beginnings import picture as still
from safetensors.torch import save_file

import underdraw
from underdraw import AttentionEdit, ImagePrompt, Layout, Lora, Region, Structure, backends, engines
from underdraw.errors import InputError, InputTypeError, NotFoundError, WeightError
from underdraw.models import IPAdapter
from underdraw.networks.ip_adapter.config import IPAdapterConfig, cross_attentions
from underdraw.networks.ip_adapter.sites import ImageAttention
from underdraw.networks.layers import transformer_block
from underdraw.networks.program import directly
from underdraw.networks.sites import Sites
from underdraw.pictures.writing import METADATA
from underdraw.pipelines.call.record import repeat

SIZE = {"height": 24, "width": 40, "num_inference_steps": 2}
JIT = engines.Compiled()
"""One for all kinds."""
PROMPTS = ["a red sphere", "a blue cube", "green"]


def loaded(kind="plain", **unet):
    pipe = ip_adapters.pipeline(unet=unet)
    pipe.load_ip_adapter(adapter(pipe.unet, kind))
    return pipe


@pytest.fixture(scope="module")
def pipe():
    """With a plain adapter; no test changes it."""
    return loaded()


@pytest.fixture(scope="module")
def plain():
    return tiny.run(tiny.pipeline(), **SIZE)


def test_taken_out_and_switched_off(plain):
    pipe = loaded()
    assert torch.equal(tiny.run(pipe, **SIZE), plain)
    acts = tiny.run(pipe, controls=[ImagePrompt(picture())], **SIZE)
    assert not close(acts, plain, 1e-2)
    assert torch.equal(tiny.run(pipe, ip_adapter_image=picture(), **SIZE), acts)
    for off in ({"scale": 0.0}, {"scale": {}}, {"strength": (0.0, 0.0, 1.0)}):
        prompt = ImagePrompt(picture(), **off)
        assert torch.equal(tiny.run(pipe, controls=[prompt], **SIZE), plain)
    parts = [ImagePrompt(picture(), end=0.5), ImagePrompt(picture(), start=0.5)]
    assert torch.equal(tiny.run(pipe, controls=parts, **SIZE), acts)
    assert not close(tiny.run(pipe, controls=parts[:1], **SIZE), acts, 1e-4)
    pipe.set_ip_adapter_scale(0.3)
    less = tiny.run(pipe, ip_adapter_image=picture(), **SIZE)
    assert torch.equal(less, tiny.run(pipe, controls=[ImagePrompt(picture(), 0.3)], **SIZE))
    pipe.unload_ip_adapter()
    assert torch.equal(tiny.run(pipe, **SIZE), plain) and not pipe.adapters["ip-adapter"]


@pytest.mark.parametrize("guidance", [5.0, 1.0])
def test_of_its_own_in_each_image(pipe, guidance):
    """Pictures, scales, windows and masks of three images in one call, in single calls, and in
    streams that share calls."""
    masks = torch.rand(3, 24, 40, generator=torch.Generator().manual_seed(1))
    each = {
        "image": [[picture(i), picture(i + 5)] for i in range(3)],
        "scale": [0.7, {"down": 1.2}, 0.4],
        "end": [1.0, 0.5, 1.0],
        "mask": masks,
    }

    def arguments(images):
        own = {name: [value[i] for i in images] for name, value in each.items()}
        own["mask"] = masks[list(images)]
        seeds = [3 + i for i in images]
        return {"controls": [ImagePrompt(**own)], "seed": seeds, "guidance_scale": guidance, **SIZE}

    whole = tiny.run(pipe, PROMPTS, **arguments((0, 1, 2)))
    single = [tiny.run(pipe, [PROMPTS[i]], **arguments((i,))) for i in range(3)]
    for i in range(3):
        assert close(whole[i], single[i][0], 1e-5)
    assert not close(whole, tiny.run(pipe, PROMPTS, seed=[3, 4, 5], **SIZE), 1e-2)
    options = {"output_type": "latent"}
    streams = [pipe.stream([PROMPTS[i]], **arguments((i,)), **options) for i in range(3)]
    runs = underdraw.batched(streams)
    for _ in runs:
        pass
    for stream, alone in zip(runs.streams, single, strict=True):
        assert close(stream.output.images, alone, 1e-5)


def pipelines():
    """Every familiar pipeline with a short call."""
    hole = np.zeros((24, 40), np.float32)
    hole[4:16, 8:32] = 1
    picked = {"image": still(24, 40), "strength": 1.0, "num_inference_steps": 2}
    edges = {"image": maps(1, height=24, width=40), **SIZE}
    both = {**edges, "control_image": edges["image"], "image": still(24, 40)}
    net = {"controlnet": tiny.controlnet()}
    return {
        "StableDiffusionPipeline": ({}, SIZE),
        "StableDiffusionImg2ImgPipeline": ({}, picked),
        "StableDiffusionControlNetInpaintPipeline": (net, {**both, "mask_image": hole}),
        "StableDiffusionAdapterPipeline": ({"adapter": tiny.adapter()}, edges),
    }


@pytest.mark.parametrize("name", pipelines())
def test_in_every_pipeline(name):
    more, call = pipelines()[name]
    pipe = getattr(underdraw, name)(**tiny.components(), **more)
    pipe.set_progress_bar_config(disable=True)
    before = tiny.run(pipe, **call)
    pipe.load_ip_adapter(adapter(pipe.unet), image_encoder=ip_adapters.tower())
    shown = tiny.run(pipe, ip_adapter_image=picture(), **call)
    assert not close(shown, before, 1e-2)
    assert torch.equal(tiny.run(pipe, controls=[ImagePrompt(picture())], **call), shown)
    pipe.unload_ip_adapter()
    assert torch.equal(tiny.run(pipe, **call), before)


def test_in_pipelines_of_boxes_subjects_and_edits():
    made = gligen.made()
    made.load_ip_adapter(adapter(made.unet))
    embeds = torch.ones(2, 1, ip_adapters.EMBEDDING)
    call = {**gligen.CALL, "seed": 1, "output_type": "latent", "num_inference_steps": 2}
    boxes = made("red", **call).images
    assert not close(made("red", ip_adapter_image_embeds=[embeds], **call).images, boxes, 1e-2)
    subject = blip.pipeline()
    name = next(iter(blip.record.CALLS))
    call = {**blip.arguments(name, subject), "output_type": "latent"}
    alone = subject(**call).images
    subject.load_ip_adapter(adapter(subject.unet))
    assert torch.equal(subject(**call).images, alone)
    assert not close(subject(ip_adapter_image_embeds=[embeds], **call).images, alone, 1e-2)
    parts = tiny.components(scheduler=underdraw.schedulers.DDIMScheduler(**tiny.SCHEDULE))
    inverse = underdraw.schedulers.DDIMInverseScheduler(**tiny.SCHEDULE)
    edit = underdraw.StableDiffusionDiffEditPipeline(**parts, inverse_scheduler=inverse)
    edit.set_progress_bar_config(disable=True)
    edit.load_ip_adapter(adapter(edit.unet))
    call = {"image": still(24, 40), "num_inference_steps": 4, "seed": 1}
    answers = [
        edit.invert(prompt="a red sphere", ip_adapter_image_embeds=given, **call).latents
        for given in (None, embeds[1:])
    ]
    assert not close(*answers, 1e-2)


class Looking(underdraw.controls.Control):
    """Notes the shapes of attention to the text."""

    def __init__(self):
        self.seen = set()

    def before_call(self, nn, carry, latents, call):
        def look(nn, place, x):
            self.seen.add(x.shape[3])
            return x

        return latents, Sites(cross_attention=(look,)), carry


def beside(name, pipe):
    """Another control, or a way to call."""
    mask = np.zeros((24, 40), np.float32)
    mask[4:16, 8:32] = 1
    return {
        "boxes": lambda: [Layout([RED], EVER)],
        "structure": lambda: [Structure(tiny.controlnet(), maps(1, height=24, width=40))],
        "features": lambda: [Structure(tiny.adapter(), maps(1, height=24, width=40))],
        "lora": lambda: [Lora("clay", 0.8)],
        "region": lambda: [Region(mask, latents=torch.ones(1, 4, 3, 5))],
        "another": lambda: [ImagePrompt(picture(9), 0.5, mask=mask)],
    }[name]()


@pytest.mark.parametrize("name", ["boxes", "structure", "features", "lora", "region", "another"])
def test_beside(name):
    """Each of two controls has its effect beside the other; on a gated UNet it meets attention to
    the text only."""
    pipe = loaded()
    if name == "boxes":
        pipe.load_grounding(opened(pipe.unet, "text"))
    if name == "lora":
        pipe.load_lora_weights(lora(pipe, 1), "clay")
        pipe.set_adapters([])
    other, mine = beside(name, pipe), [ImagePrompt(picture(), 0.7)]
    both = tiny.run(pipe, controls=[*other, *mine], **SIZE)
    for one in (other, mine):
        assert not close(tiny.run(pipe, controls=one, **SIZE), both, 1e-3)


def test_attention_edits_leave_the_tokens_of_pictures_alone(pipe):
    """Hooks on attention to the text see its tokens; an edit moves the text, with the picture in
    both images."""
    look = Looking()
    tiny.run(pipe, controls=[look, ImagePrompt(picture())], **SIZE)
    assert look.seen == {77}
    prompts = ["a red sphere", "a blue sphere"]
    call = {"seed": [3, 3], **SIZE}
    edit = AttentionEdit(positions=20)
    alone = tiny.run(pipe, prompts, controls=[edit], **call)
    both = tiny.run(pipe, prompts, controls=[edit, ImagePrompt(picture())], **call)
    source = tiny.run(pipe, prompts[:1], controls=[ImagePrompt(picture())], seed=[3], **SIZE)
    assert close(both[0], source[0], 1e-5) and not close(both[1], alone[1], 1e-2)


OTHERS = [name for name in backends.installed() if name != "torch"]


@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize("kind", ["plain", "full", "plus", "face-id"])
def test_projections_on_other_backends(backend, kind):
    pipe = tiny.pipeline(unet=tiny.ONE_LEVEL)
    pipe.load_ip_adapter(adapter(pipe.unet, kind))
    (ours,) = pipe.adapters["ip-adapter"].values()
    theirs = tiny.moved(ours, backend)
    c, random = ours.config, np.random.default_rng(0)
    shape = (2, c.feature_width) if c.pooled else (2, 5, c.feature_width)
    name = "features" if c.sees else "faces"
    x = random.standard_normal(shape if c.sees else (2, c.face_width)).astype(np.float32)

    def ask(program, model, *inputs):
        return JIT.run(engines.engine.Question(program, model, inputs, model.nn))

    mine = ours(**{name: torch.from_numpy(x)}, pictures=2)
    found = theirs(**{name: x}, pictures=2, ask=ask if backend == "jax" else directly)
    for place, pair in mine.items():
        for one, other in zip(found[place], pair, strict=True):
            assert close(torch.tensor(np.asarray(one)), other.detach(), 1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled():
    """A block with the hook is one graph; other pictures and scales are other numbers in it."""
    pipe = loaded("plain", **tiny.ONE_LEVEL)
    place = "down_blocks.0.attentions.0.transformer_blocks.0"
    (found,) = pipe.adapters["ip-adapter"].values()
    block, nn, seen = pipe.unet.get_submodule(place), pipe.unet.nn, []
    torch.compiler.reset()
    compiled = by_dynamo(seen)(transformer_block)
    x, context = torch.randn(2, 15, 16), torch.randn(2, 7, tiny.WIDTH)
    for scale in (0.7, 0.2, 1.1):
        with torch.no_grad():
            keys = found(torch.randn(2, ip_adapters.EMBEDDING))
            scales = dict.fromkeys(keys, torch.full((1, 1, 1, 1), scale))
            sites = Sites(beside_cross_attention=(ImageAttention(keys, scales),))
            arguments = (nn, block, x, context, 4, place, sites)
            one, other = compiled(*arguments), transformer_block(*arguments)
            without = transformer_block(*arguments[:-1])
        assert close(one, other, 1e-5) and not close(without, other, 1e-3)
    assert len(seen) == 1


@pytest.mark.parametrize("kind", ["face-id-plus"])
def test_networks_that_wait_in_host_memory(kind):
    pipe = loaded(kind)
    given = {"image": picture(), "face": faces() if kind != "plus" else None}
    call = {"controls": [ImagePrompt(**given, mask=np.eye(24, 40))], **SIZE}
    wanted = tiny.run(pipe, **call)
    pipe.enable_model_cpu_offload(device="meta")
    with Accelerator():
        made = tiny.run(pipe, **call).held
    torch.testing.assert_close(made, wanted, rtol=0, atol=1e-3 * float(wanted.abs().max()))
    networks = (pipe.unet, pipe.image_encoder, *pipe.adapters["ip-adapter"].values())
    assert all(str(p.device) == "cpu" for network in networks for p in network.parameters())


# -- files -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["full", "face-id-plus"])
def test_files(kind, tmp_path):
    """A pickle, safetensors, a checkpoint of training, a state dict, our folder and our file hold
    the same numbers."""
    pipe = tiny.pipeline()
    state = adapter(pipe.unet, kind, lora=2 * kind.startswith("face"))
    torch.save(state, tmp_path / "a.bin")
    save_file(flat(state), tmp_path / "a.safetensors")
    names = {"image_proj.": "image_proj_model.", "ip_adapter.": "adapter_modules."}
    trained = {"unet.conv_in.weight": torch.ones(1)}
    for name, value in flat(state).items():
        start = next(one for one in names if name.startswith(one))
        trained[names[start] + name.removeprefix(start)] = value
    torch.save(trained, tmp_path / "pytorch_model.bin")
    pipe.load_ip_adapter(state)
    for target in ("own", "own.safetensors"):
        pipe.save_adapter("ip-adapter", tmp_path / target)
    for source in ("a.bin", "a.safetensors", "pytorch_model.bin", "own", "own.safetensors"):
        pipe.load_ip_adapter(tmp_path / source)
        ((name, found),) = pipe.adapters["ip-adapter"].items()
        assert name == source.partition(".")[0] and found.config.kind == kind
        assert {n: tuple(p.shape) for n, p in found.named_parameters()} == {
            n: tuple(value.shape) for n, value in flat(state).items()
        }
        for n, value in flat(state).items():
            assert torch.equal(found.state_dict()[n], value)


def test_places_of_files(tmp_path):
    """diffusers' arguments: a subfolder, lists, and the image tower beside the file."""
    pipe = tiny.pipeline()
    (tmp_path / "models").mkdir()
    for i, name in enumerate(("a-plusv2_sd15", "b")):
        kind = "face-id-plus" if i == 0 else "plus"
        save_file(flat(adapter(pipe.unet, kind, i)), tmp_path / "models" / f"{name}.safetensors")
    ip_adapters.tower().save_pretrained(tmp_path / "models" / "image_encoder")
    files = ["a-plusv2_sd15.safetensors", "b.safetensors"]
    pipe.load_ip_adapter(tmp_path, subfolder="models", weight_name=files)
    assert list(pipe.adapters["ip-adapter"]) == ["a-plusv2_sd15", "b"]
    assert [one.config.shortcut for one in pipe.adapters["ip-adapter"].values()] == [True, False]
    plain = tiny.run(pipe, **SIZE)
    prompt = ImagePrompt(picture(), adapter="b")
    assert not close(tiny.run(pipe, controls=[prompt], **SIZE), plain, 1e-2)
    again = underdraw.StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    assert list(again.adapters["ip-adapter"]) == ["a-plusv2_sd15", "b"]
    with pytest.raises(InputError, match="adapter=None"):
        tiny.run(pipe, controls=[ImagePrompt(picture())], **SIZE)
    pipe.unload_ip_adapter()
    with pytest.raises(InputError, match="not attached"):
        tiny.run(pipe, controls=[prompt], **SIZE)
    pipe.save_pretrained(tmp_path / "pipe")
    ours = IPAdapter(IPAdapterConfig(layers=tuple(cross_attentions(pipe.unet.config)), tokens=2,
                                     token_width=32, feature_width=24))  # fmt: skip
    ours.save_pretrained(tmp_path / "pipe" / "ip_adapter" / "mine")
    own = underdraw.StableDiffusionPipeline.from_pretrained(tmp_path / "pipe")
    assert list(own.adapters["ip-adapter"]) == ["mine"]


def wrong():
    """By name what is changed of a state dict, and what the error says."""

    def drop(part):
        return lambda state: {n: v for n, v in state.items() if part not in n}

    def put(name, value):
        return lambda state: {**state, name: value(state.get(name))}

    key = "ip_adapter.1.to_k_ip.weight"
    return {
        "nothing": (lambda state: {}, WeightError, "no tensors"),
        "half": (drop("ip_adapter"), WeightError, "half an IP-Adapter.*lacks ip_adapter"),
        "other half": (drop("image_proj"), WeightError, "lacks image_proj"),
        "no values": (drop("1.to_v_ip"), WeightError, "1 missing: ip_adapter.1.to_v_ip.weight"),
        "no norm": (drop("norm"), WeightError, "image_proj lacks norm.weight"),
        "no projection": (drop("image_proj.proj"), WeightError, "of no kind that is known"),
        "left over": (put("ip_adapter.x", lambda _: torch.ones(2)), WeightError, "left over"),
        "integers": (put(key, lambda x: x.int()), WeightError, "int32"),
        "NaN": (put(key, lambda x: x * torch.nan), WeightError, "NaN"),
        "more layers": (
            put("ip_adapter.99.to_k_ip.weight", lambda _: torch.ones(16, 32)),
            InputError,
            "made for another UNet",
        ),
        "another width": (put(key, lambda _: torch.ones(8, 32)), InputError, "another width"),
        "XL": (
            lambda state: {
                n: torch.ones(x.shape[0], 2048) if "_ip" in n else x for n, x in state.items()
            },
            InputError,
            "width 2048.*Stable Diffusion XL",
        ),
        "a LoRA": (
            lambda state: {"lora_unet_a.lora_down.weight": torch.ones(2, 2)},
            WeightError,
            "looks like a LoRA",
        ),
        "a word": (lambda state: {"emb_params": torch.ones(1, 768)}, WeightError, "textual inv"),
        "a net": (
            lambda state: {"controlnet_cond_embedding.conv_in.weight": torch.ones(2)},
            WeightError,
            "a ControlNet",
        ),
        "a UNet": (lambda state: {"conv_in.weight": torch.ones(2)}, WeightError, "a UNet"),
        "twice": (
            put(key.replace("ip_adapter", "adapter_modules"), lambda _: torch.ones(1)),
            WeightError,
            "twice",
        ),
    }


def test_each_is_shown_pictures_by_the_tower_that_it_was_trained_with():
    both, alone = tiny.pipeline(), tiny.pipeline()
    first, second = (adapter(both.unet, seed=seed) for seed in range(2))
    wide = torch.randn(len(second["image_proj"]["proj.weight"]), 32)
    second["image_proj"]["proj.weight"] = wide
    towers = ip_adapters.tower(), ip_adapters.tower(projection_dim=32)
    alone.load_ip_adapter(first, image_encoder=towers[0])
    for name, weights, tower in zip("ab", (first, second), towers, strict=True):
        both.load_adapter("ip-adapter", weights, name=name, image_encoder=tower)
    shown = tiny.run(both, controls=[ImagePrompt(picture(), adapter="a")], **SIZE)
    assert torch.equal(shown, tiny.run(alone, ip_adapter_image=picture(), **SIZE))
    both.set_ip_adapter_scale([1.0, 0.0])
    both.load_adapter("ip-adapter", second, name="b")
    assert set(both.parts.image_scales) == {"a"}  # what was said of the other "b" is not of this
    embeds = both.prepare_ip_adapter_image_embeds([picture(), picture(1)])
    assert [one.shape for one in embeds] == [(2, 1, 24), (2, 1, 32)]
    seen = tiny.run(both, ip_adapter_image=[picture(), picture(1)], **SIZE)
    assert torch.equal(tiny.run(both, ip_adapter_image_embeds=embeds, **SIZE), seen)


def test_files_of_another_kind_change_nothing(tmp_path):
    """Read from a state dict, and from a file that is named."""
    pipe = loaded()
    call = {"ip_adapter_image": picture(), **SIZE}
    before, state = tiny.run(pipe, **call), flat(adapter(pipe.unet))
    for name, (change, kind, message) in wrong().items():
        changed = change(state)
        with pytest.raises(kind, match=message):
            pipe.load_ip_adapter(changed)
        place = tmp_path / f"{name}.safetensors"
        save_file(changed, place)
        with pytest.raises(kind, match=name):
            pipe.load_ip_adapter([flat(adapter(pipe.unet)), place])
    (tmp_path / "cut.safetensors").write_bytes(place.read_bytes()[:-1])
    (tmp_path / "empty.bin").write_bytes(b"")
    for source, kind in (("cut.safetensors", WeightError), ("empty.bin", WeightError)):
        with pytest.raises(kind, match=source):
            pipe.load_ip_adapter(tmp_path / source)
    for source in (tmp_path / "none", tmp_path):
        with pytest.raises(NotFoundError):
            pipe.load_ip_adapter(source, weight_name="x.bin")
    assert torch.equal(tiny.run(pipe, **call), before)


def test_a_picture_tells_and_is_made_again(pipe):
    call = {**SIZE, "seed": 3, "ip_adapter_image": picture()}
    image = pipe("a red sphere", **call).images[0]
    with pytest.raises(InputError, match="lacks ip_adapter_image"):
        repeat(pipe, image.info[METADATA])
    again = repeat(pipe, image.info[METADATA], ip_adapter_image=picture())
    assert np.array_equal(np.asarray(image), np.asarray(again))


def test_arguments_that_cannot_work(pipe, plain):
    deep, face = loaded("plus"), loaded("face-id")
    embeds, photo = torch.ones(1, ip_adapters.EMBEDDING), picture()
    unet = {**tiny.UNET, "cross_attention_dim": 16}
    other = loaded()
    other.parts.named["unet"] = underdraw.UNet2DConditionModel(**unet)
    blind = tiny.pipeline()
    blind.load_ip_adapter(adapter(blind.unet))
    wide = tiny.pipeline()
    wide.image_encoder = ip_adapters.tower(projection_dim=8)
    wide.load_ip_adapter(adapter(wide.unet))

    def run(pipe, *controls, **arguments):
        return tiny.run(pipe, controls=list(controls), **{**SIZE, **arguments})

    cases = [
        (lambda: ImagePrompt(), "give image, embedding or face"),
        (lambda: ImagePrompt(photo, embedding=embeds), "both given"),
        (lambda: ImagePrompt([]), "empty"),
        (lambda: ImagePrompt([photo, [photo]]), "mixes"),
        (lambda: ImagePrompt([[photo], [photo] * 2]), "lists of"),
        (lambda: ImagePrompt("a.png"), "image"),
        (lambda: ImagePrompt(photo, float("nan")), "scale"),
        (lambda: ImagePrompt(photo, []), "scale"),
        (lambda: ImagePrompt(photo, {"sideways": 1.0}), "allowed: down, mid, up"),
        (lambda: ImagePrompt(photo, start=0.5, end=0.5), "start before end"),
        (lambda: ImagePrompt(photo, strength=3), "strength"),
        (lambda: ImagePrompt(photo, adapter=3), "adapter=3"),
        (lambda: ImagePrompt(embedding=embeds * torch.inf), "NaN or infinity"),
        (lambda: ImagePrompt(embedding=[1.0]), "embedding"),
        (lambda: run(pipe, ImagePrompt(photo, adapter="x")), "not attached; attached: 'default_0'"),
        (lambda: run(pipe, ImagePrompt(photo, [1.0, 2.0])), "scale. has 2 entries"),
        (lambda: run(pipe, ImagePrompt(photo, {"up": {"block_7": 1.0}})), "names no block of this"),
        (lambda: run(pipe, ImagePrompt([[photo]] * 2)), "image. has 2 entries"),
        (lambda: run(pipe, ImagePrompt(photo, mask=np.ones((2, 4, 4)))), "mask. has 2 entries"),
        (lambda: run(pipe, ImagePrompt(photo, mask=np.full((4, 4), 2.0))), "values from 2 to 2"),
        (lambda: run(pipe, ImagePrompt(photo, mask="x")), "mask"),
        (lambda: run(pipe, ImagePrompt(embedding=embeds[:, 1:])), "needed is .pictures, 24"),
        (lambda: run(pipe, ImagePrompt(photo, face=embeds)), "reads no faces"),
        (lambda: run(pipe, ImagePrompt(face=embeds)), "reads pictures"),
        (lambda: run(pipe, ImagePrompt(photo, negative=embeds.repeat(2, 1))), "as many"),
        (lambda: run(deep, ImagePrompt(embedding=embeds)), "tokens, 48"),
        (lambda: run(deep, ImagePrompt(photo, negative=torch.ones(1, 3, 48))), "tokens of"),
        (lambda: run(face, ImagePrompt(photo)), "faces alone"),
        (lambda: run(face, ImagePrompt(face=faces()[:, 1:])), "face"),
        (lambda: run(blind, ImagePrompt(photo)), "image_encoder=None"),
        (lambda: run(wide, ImagePrompt(photo)), "features of width 8, the IP-Adapter takes 24"),
        (lambda: other.unet.config and run(other, ImagePrompt(photo)), "another UNet"),
        (lambda: run(pipe, ip_adapter_image=[photo] * 2), "there are 1 IP-Adapters"),
        (lambda: run(pipe, ip_adapter_image_embeds=[embeds]), "ip_adapter_image_embeds"),
        (lambda: run(pipe, ip_adapter_image="x"), "image"),
        (
            lambda: run(pipe, ip_adapter_image=photo, ip_adapter_image_embeds=[embeds[None]]),
            "both given",
        ),
        (lambda: run(pipe, ip_adapter_image=torch.ones(1, 3, 9, 9)), "takes .3, 28, 28"),
        (
            lambda: run(pipe, cross_attention_kwargs={"ip_adapter_masks": [torch.ones(1)]}),
            "without ip_adapter_image",
        ),
        (
            lambda: run(
                pipe,
                ip_adapter_image=photo,
                cross_attention_kwargs={"ip_adapter_masks": [torch.ones(1, 2, 8, 8)]},
            ),
            "2 masks",
        ),
        (lambda: pipe.set_ip_adapter_scale([1.0, 2.0]), "2 entries"),
        (lambda: pipe.set_ip_adapter_scale("x"), "scale"),
        (lambda: tiny.pipeline().set_ip_adapter_scale(1.0), "no IP-Adapter"),
        (lambda: tiny.pipeline().encode_image(photo), "image_encoder=None"),
        (lambda: pipe.encode_image("x"), "image"),
        (lambda: pipe.load_ip_adapter(3), "3"),
        (lambda: pipe.load_ip_adapter({"image_proj": 3, "ip_adapter": {}}), "no state dict"),
        (lambda: pipe.load_ip_adapter([{}, {}], weight_name=["a", "b", "c"]), "entries"),
    ]
    for call, message in cases:
        with pytest.raises((InputError, InputTypeError), match=message):
            call()
    assert torch.equal(tiny.run(pipe, **SIZE), plain)
    assert isinstance(photo, Image.Image)
