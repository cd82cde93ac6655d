"""The moments of a control, each proven by one that is written here, outside of the package: a
network of its own asked during a call, token embeddings replaced, a low-rank difference for each
image; on PyTorch and JAX, under offload, and in a batch beside plain runs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from pipelines import tiny
from pipelines.elsewhere import DEVICE, Accelerator

import underdraw
from underdraw import backends
from underdraw.backends import hardware
from underdraw.backends.deltas import LowRank
from underdraw.backends.shapes import Shape, trace
from underdraw.controls import Control
from underdraw.engines.compiled import Compiled
from underdraw.errors import ControlError, InputError
from underdraw.models.base import Model
from underdraw.networks.config import Config
from underdraw.networks.program import Program
from underdraw.networks.sites import Sites
from underdraw.pipelines.components import adapters
from underdraw.pipelines.components.adapters import AdapterKind

BACKENDS = [name for name in ("torch", "jax") if name in backends.installed()]
PROMPTS = ["a red sphere", "blue cube on the table"]
CALL = {"height": 40, "width": 72, "num_inference_steps": 3, "output_type": "latent", "seed": 3}
BOUND = 1e-4


# -- a network of a control's own, as ControlNet's -------------------------------------------------
@dataclass(frozen=True)
class HintConfig(Config):
    """Of the network below."""

    width: int = 32
    context: int = tiny.WIDTH


def hints(nn, p, config, sample, context, hint):
    """What a map adds after the middle block, `(rows, width, 1, 1)`."""
    h = nn.silu(nn.conv2d(p.first, nn.concat((sample, hint), 1), config.width, 3))
    words = nn.linear(p.words, nn.mean(context, (1,)), config.width)
    return nn.mean(h, (2, 3)) * 3 + nn.permute(words, (0, 2, 1))[..., None] * 0.5


HINTS = Program("test.hints", hints)


class Hints(Model):
    """A small network from outside."""

    config_class = HintConfig
    network = "unet"

    @classmethod
    def layout(cls, config):
        return _layout(config)


@cache
def _layout(config):
    inputs = Shape(1, 4, 2, 2), Shape(1, 3, config.context), Shape(1, 1, 2, 2)
    return trace(lambda nn, p: hints(nn, p, config, *inputs))


@dataclass(frozen=True, eq=False)
class Structure(Control):
    """Steers by a map, through a network of its own that it asks in each call."""

    network: Any
    maps: np.ndarray
    """`(images, 1, height, width)` of the latents' size."""
    scale: float = 1.0

    def prepare(self, run):
        device = getattr(run.latents, "device", None)
        return run.framework.array(self.maps.astype(np.float32), device=device)

    def during_call(self, nn, carry, asked, call):
        rows = nn.concat((carry,) * (asked.sample.shape[0] // carry.shape[0]), 0)
        rows = nn.expand(rows, (asked.sample.shape[0], *rows.shape[1:]))
        added = asked.ask(HINTS, self.network, asked.sample, asked.context, rows)
        return Sites(mid_residual=added * self.scale), carry


@dataclass(frozen=True, eq=False)
class Attached(Structure):
    """The same with the network that is attached to the pipeline under a name."""

    def prepare(self, run):
        found = run.components.adapters(HINT_KIND.name)
        if self.network not in found:
            raise InputError(f"hints={self.network!r} are not attached; attached: {sorted(found)}")
        return super().prepare(run), found[self.network]

    def during_call(self, nn, carry, asked, call):
        maps, network = carry
        acting = Structure(network, self.maps, self.scale)
        return acting.during_call(nn, maps, asked, call)[0], carry


def read_hints(components, source, name="hints"):
    where = {"backend": components.unet.nn.name, "dtype": components.unet.dtype}
    return name, source if isinstance(source, Hints) else Hints.from_pretrained(source, **where)


HINT_KIND = AdapterKind("hints", "hints", read_hints, Hints.save_pretrained)


# -- another embedding for a word, as textual inversion --------------------------------------------
@dataclass(frozen=True, eq=False)
class Word(Control):
    """Puts a vector in the place of a word's token, wherever it stands."""

    word: str
    vector: np.ndarray

    def words(self, nn, words):
        (token,) = words.tokenizer(self.word, add_special_tokens=False).input_ids
        framework = words.text_encoder._framework
        device = getattr(words.embeddings, "device", None)
        there = (words.ids == token).reshape(-1, words.ids.shape[-1], 1)
        there = framework.array(there.astype(np.float32), device=device)
        vector = framework.array(self.vector.astype(np.float32), device=device)[None, None]
        changed = words.embeddings * (1 - there) + nn.cast(vector, words.embeddings) * there
        return replace(words, embeddings=changed)


# -- another difference for each image, as LoRA in a batch -----------------------------------------
UNET_LAYERS = (
    "conv_in",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "mid_block.resnets.0.time_emb_proj",
    "up_blocks.1.resnets.0.conv2",
)
TEXT_LAYERS = ("text_model.encoder.layers.1.self_attn.v_proj",)


@dataclass(frozen=True, eq=False)
class Lora(Control):
    """Low-rank differences in the UNet, more or less of them in each image, and in the texts."""

    amounts: tuple[float, ...]
    sizes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def words(self, nn, words):
        layout = type(words.text_encoder).layout(words.text_encoder.config)
        framework, rows = words.text_encoder._framework, len(words.texts)
        each = rows // len(self.amounts)
        amounts = self.amounts * each  # prompts, then as many negative ones
        deltas = differences(framework, layout, TEXT_LAYERS, amounts, words.embeddings)
        return replace(words, leaves=deltas)

    def prepare(self, run):
        layout = type(run.model).layout(run.model.config)
        return {
            guided: differences(
                run.framework, layout, UNET_LAYERS, self.amounts * (2 if guided else 1), run.latents
            )
            for guided in (False, True)
        }

    def before_call(self, nn, carry, latents, call):
        return latents, Sites(leaves=carry[call.guided]), carry


def numbers(path, shape, rank=3):
    """`down` and `up` of a layer, always the same."""
    random = np.random.default_rng(len(path))
    ones = (1, 1) if len(shape) == 4 else ()
    down, up = (
        random.standard_normal((rank, *shape[1:])),
        random.standard_normal((shape[0], rank, *ones)),
    )
    return down.astype(np.float32) * 0.2, up.astype(np.float32) * 0.2


def differences(framework, layout, paths, amounts, like):
    def array(x):
        return framework.array(np.asarray(x, np.float32), device=getattr(like, "device", None))

    deltas = {}
    for path in paths:
        down, up = numbers(path, layout.leaves[path].shape)
        deltas[path] = LowRank(array(down), array(up), array(amounts))
    return deltas


def merged(pipe, amount):
    """The pipeline with the differences in its weights."""
    parts = dict(pipe.components)
    for name, paths in (("unet", UNET_LAYERS), ("text_encoder", TEXT_LAYERS)):
        network = parts[name]
        tensors = network.stored_tensors()
        for path in paths:
            key = f"{path}.weight"
            down, up = numbers(path, tensors[key].shape)
            delta = (up.reshape(len(up), -1) @ down.reshape(len(down), -1)) * amount
            tensors[key] = tensors[key].derive(
                tensors[key].shape, lambda a, d=delta: a + d.reshape(a.shape).astype(a.dtype)
            )
        cls = vars(type(network))["_written"]
        parts[name] = cls.from_tensors(network.config.to_dict(), tensors)
    return type(pipe).from_pipe(pipe, **parts)


# -- what is tried with each -----------------------------------------------------------------------
def pipeline(backend="torch"):
    pipe = underdraw.StableDiffusionPipeline(**tiny.on(backend, tiny.components()))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@cache
def hint_network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return tiny.shake(Hints())


MAPS = np.random.default_rng(2).uniform(-1, 1, (2, 1, 5, 9))
VECTOR = np.random.default_rng(3).standard_normal(tiny.WIDTH)
CONTROLS = {
    "structure": lambda backend: Structure(tiny.moved(hint_network(), backend), MAPS),
    "word": lambda backend: Word("sphere", VECTOR),
    "lora": lambda backend: Lora((0.5, 1.5)),
}
EVERY = pytest.mark.parametrize("name", CONTROLS)
JIT = Compiled()
"""Whole programs are compiled sooner than each operation by itself; the towers once for all."""


def run(pipe, *controls, **changes):
    made = pipe(PROMPTS, **{**CALL, **changes}, controls=list(controls)).images
    return backends.get(pipe.unet.nn.name).to_numpy(made)


def apart(a, b):
    return np.abs(a - b).max() / np.abs(b).max()


@pytest.fixture(scope="module")
def pipe():
    return pipeline()


@EVERY
def test_it_acts_and_leaves_no_trace(pipe, name):
    before = run(pipe)
    control = CONTROLS[name]("torch")
    acted = run(pipe, control)
    assert apart(acted, before) > 1e-3
    assert np.array_equal(run(pipe, control), acted)
    assert np.array_equal(run(pipe), before)


@EVERY
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_an_image_is_the_same_alone(pipe, name, guidance):
    """Each row of a batch has its own map, word, or amount of the difference."""
    both = run(pipe, CONTROLS[name]("torch"), guidance_scale=guidance)
    for i in range(2):
        one = CONTROLS[name]("torch")
        if name == "structure":
            one = replace(one, maps=one.maps[i : i + 1])
        elif name == "lora":
            one = replace(one, amounts=one.amounts[i : i + 1])
        call = {**CALL, "seed": 3 + i, "guidance_scale": guidance}
        alone = pipe(PROMPTS[i], **call, controls=[one]).images.numpy()
        assert apart(both[i : i + 1], alone) <= 1e-5


def test_a_low_rank_difference_is_that_of_merged_weights(pipe):
    """In the UNet, its keys and values, its times, and in the text encoder."""
    for i, amount in enumerate((0.5, 1.5)):
        call = {**CALL, "seed": 3 + i}
        expected = merged(pipe, amount)(PROMPTS[i], **call).images.numpy()
        made = pipe(PROMPTS[i], **call, controls=[Lora((amount,))]).images.numpy()
        assert apart(made, expected) <= 1e-5
        assert apart(made, pipe(PROMPTS[i], **call).images.numpy()) > 1e-2


def test_a_word_is_as_if_its_row_of_the_embeddings_were_another(pipe):
    other = tiny.components()
    (token,) = pipe.tokenizer("sphere", add_special_tokens=False).input_ids
    table = other["text_encoder"].get_input_embeddings().weight
    table.data[token] = torch.from_numpy(VECTOR.astype(np.float32))
    changed = underdraw.StableDiffusionPipeline(**other)
    changed.set_progress_bar_config(disable=True)
    assert np.array_equal(run(changed), run(pipe, CONTROLS["word"]("torch")))


@EVERY
@pytest.mark.skipif("jax" not in BACKENDS, reason="needs JAX")
def test_the_same_on_jax(pipe, name):
    expected = run(pipe, CONTROLS[name]("torch"))
    other = pipeline("jax")
    other.engine = JIT
    made = run(other, CONTROLS[name]("jax"))
    assert apart(made, expected) <= BOUND


@EVERY
def test_under_offload(pipe, name, monkeypatch):
    """Networks wait in host memory, a control's own, too; each is on the device while used."""
    expected = run(pipe, CONTROLS[name]("torch"), num_inference_steps=2)
    monkeypatch.setattr(hardware, "_count", lambda kind: 1)
    offloaded = pipeline()
    with Accelerator():
        offloaded.enable_model_cpu_offload(device=str(DEVICE))
        control = CONTROLS[name]("torch")
        call = {**CALL, "num_inference_steps": 2}
        made = offloaded(PROMPTS, **call, controls=[control]).images
        assert made.device == DEVICE
        made = made.to("cpu")
    for network in (*offloaded.components.values(), getattr(control, "network", None)):
        if isinstance(network, Model):
            assert network.device.type == "cpu"
    assert apart(made.numpy(), expected) <= 1e-5


@EVERY
def test_in_a_batch_beside_plain_runs(pipe, name):
    control = CONTROLS[name]("torch")
    arguments = [
        {"prompt": "green", "seed": 1},
        {"prompt": PROMPTS, "seed": 3, "controls": [control]},
        {"prompt": "a cube", "seed": 9, "guidance_scale": 1.0, "num_inference_steps": 5},
    ]
    call = {key: value for key, value in CALL.items() if key != "seed"}
    streams = [pipe.stream(**{**call, **each}) for each in arguments]
    steps = [which for which, _ in underdraw.batched(streams)]
    assert [steps.count(which) for which in range(3)] == [3, 3, 5]
    for stream, each in zip(streams, arguments, strict=True):
        alone = pipe(**{**call, **each}).images.numpy()
        assert apart(stream.output.images.numpy(), alone) <= 1e-5


def test_all_of_them_at_once(pipe):
    every = [make("torch") for make in CONTROLS.values()]
    made = run(pipe, *every)
    for left_out in range(3):
        rest = [control for i, control in enumerate(every) if i != left_out]
        assert apart(run(pipe, *rest), made) > 1e-3


@pytest.fixture
def hint_kind(monkeypatch):
    """A kind of adapters from outside, known while a test runs."""
    monkeypatch.setattr(adapters, "KINDS", dict(adapters.KINDS))
    return adapters.register_adapter(HINT_KIND)


def test_a_control_brings_its_weights_as_an_adapter(hint_kind, tmp_path):
    """Loaded by `load_adapter`, found in the pipeline's own folder, saved, shared and removed."""
    pipe = pipeline()
    control = Attached("hints", MAPS)
    with pytest.raises(InputError, match=r"hints='hints' are not attached; attached: \[\]"):
        run(pipe, control)
    expected, plain = run(pipe, CONTROLS["structure"]("torch")), run(pipe)
    hint_network().save_pretrained(tmp_path / "alone")
    pipe.load_adapter("hints", tmp_path / "alone")
    assert {"grounding", "hints"} <= set(pipe.adapters)
    assert list(pipe.adapters["hints"]) == ["hints"]
    assert np.array_equal(run(pipe, control), expected)
    other = underdraw.StableDiffusionPipeline.from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    assert other.adapters["hints"]["hints"] is pipe.adapters["hints"]["hints"]
    pipe.load_adapter("hints", hint_network(), name="second")
    assert np.array_equal(run(pipe, replace(control, network="second")), expected)
    with pytest.raises(
        InputError, match=r"kind=None; allowed: kinds of the hints weights, 'hints'"
    ):
        pipe.save_adapter("hints", tmp_path / "one")
    pipe.unload_adapter("hints")
    assert list(other.adapters["hints"]) == ["hints"] and not pipe.adapters["hints"]
    assert np.array_equal(run(pipe), plain)
    # In the folder of a pipeline it is found without a word.
    pipe.save_pretrained(tmp_path / "pipe")
    other.save_adapter("hints", tmp_path / "pipe" / "hints")
    loaded = underdraw.StableDiffusionPipeline.from_pretrained(tmp_path / "pipe")
    loaded.set_progress_bar_config(disable=True)
    assert np.array_equal(run(loaded, control), expected)
    with pytest.raises(InputError, match="kind='other' of adapters is not known; allowed: 'ground"):
        pipe.load_adapter("other", tmp_path)
    with pytest.raises(InputError, match="kind='first' is not attached; attached: none"):
        pipe.unload_adapter("hints", "first")
    with pytest.raises(InputError, match="kind='hints' of adapters is there already"):
        adapters.register_adapter(AdapterKind("hints", "other", read_hints, Hints.save_pretrained))


def test_an_attached_network_travels_under_offload(hint_kind, monkeypatch):
    monkeypatch.setattr(hardware, "_count", lambda kind: 1)
    pipe = pipeline()
    expected = run(pipe, CONTROLS["structure"]("torch"), num_inference_steps=2)
    with Accelerator():
        pipe.enable_model_cpu_offload(device=str(DEVICE))
        pipe.load_adapter("hints", tiny.shake(Hints()))
        pipe.load_adapter("hints", hint_network())
        call = {**CALL, "num_inference_steps": 2}
        made = pipe(PROMPTS, **call, controls=[Attached("hints", MAPS)]).images.to("cpu")
    assert pipe.adapters["hints"]["hints"].device.type == "cpu"
    assert apart(made.numpy(), expected) <= 1e-5


WRONG = {
    "during_call": (
        lambda nn, carry, asked, call: Sites(),
        "'during_call' returned Sites; a tuple",
    ),
    "words": (lambda nn, words: words.ids, "'words' returned ndarray; needed: Words"),
    "more tokens": (
        lambda nn, words: replace(words, ids=words.ids[..., :-1]),
        r"'words' returned ids, weights and embeddings of .*\(4, 1, 76\)",
    ),
    "no such layer": (
        lambda nn, words: replace(words, leaves={"text_model.conv": LowRank(0.0, 0.0)}),
        "'text_model.conv': the network has no such layer; near it are",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_broken_contract_is_named(pipe, name):
    do, message = WRONG[name]
    moment = "words" if name in ("more tokens", "no such layer") else name
    broken = type("Broken", (Control,), {moment: lambda self, *args: do(*args)})()
    with pytest.raises(ControlError, match=message):
        run(pipe, broken)


def test_a_difference_that_does_not_fit_is_told_before_the_first_call(pipe):
    calls = tiny.counted(pipe)

    class Wrong(Control):
        def before_call(self, nn, carry, latents, call):
            return (
                latents,
                Sites(leaves={"conv_in": LowRank(torch.ones(2, 3), torch.ones(8, 2))}),
                0,
            )

    with pytest.raises(ControlError, match=r"'conv_in'.*\(2, 3\).*\(16, 4, 3, 3\)"):
        run(pipe, Wrong())
    assert not calls
