"""`BlipDiffusionPipeline` beside what diffusers 0.33.1 gave, on engines and backends, and what it
has beyond that."""

import json
import os
import warnings

import numpy as np
import pytest
import torch
from engines.test_compiled import by_dynamo
from PIL import Image
from pipelines import tiny
from pipelines.blip import recorded

import underdraw
from underdraw import BlipDiffusionPipeline, DiffusionPipeline, StableDiffusionPipeline
from underdraw.engines.compiled import Regional
from underdraw.models import CLIPTextModel
from underdraw.models.wordpiece import WordPiece
from underdraw.pictures.writing import METADATA
from underdraw.pipelines.call.record import repeat
from underdraw.weights.subject import to_original

record = recorded.record
BOUND = 1e-5
TIMES = [name for name in record.CALLS if name != "one_euler"]
THREE = {**record.THREE, "neg_prompt": "blue table", "guidance_scale": 4.5}
FIXED = {**record.FIXED, "output_type": "latent"}


@pytest.fixture(scope="module")
def pipe():
    return recorded.pipeline()


def call(pipe, **changes):
    """A short call; latents."""
    given = {"reference_image": recorded.pictures(), **THREE, **FIXED, "seed": [3, 4, 5], **changes}
    return pipe(**given).images


@pytest.mark.parametrize("name", TIMES)
def test_pictures_are_diffusers(pipe, name):
    made = pipe(**recorded.arguments(name, pipe)).images
    assert made.shape == recorded.arrays()[name].shape
    assert np.abs(made - recorded.arrays()[name]).max() <= BOUND


def test_compiled():
    """On a shallow UNet: the deep one compiles for longer."""
    torch.compiler.reset()
    shallow = underdraw.UNet2DConditionModel(**{**record.UNET, **tiny.ONE_LEVEL}).eval()
    pair = []
    for engine in (None, Regional(by_dynamo([]))):
        pipe = recorded.pipeline(unet=shallow)
        pipe.engine = engine
        pair.append(pipe(**recorded.arguments("three", pipe)).images)
    assert np.abs(pair[0] - pair[1]).max() <= 1e-4


def test_equal_negative_prompts_are_read_once(pipe, monkeypatch):
    """Those of a batch, and none of them; others one by one."""
    rows, ask = [], type(pipe.parts).ask

    def counted(self, program, model, *inputs):
        if program.name == "clip.text":
            rows.append(inputs[0].shape[0])
        return ask(self, program, model, *inputs)

    monkeypatch.setattr(type(pipe.parts), "ask", counted)
    for negative in (None, ["blue"] * 3, ["blue", "red", "blue"]):
        given = recorded.arguments("three", pipe, negative_prompt=negative, output_type="latent")
        pipe(**{**given, "neg_prompt": None, "num_inference_steps": 1})
    assert rows == [4, 4, 6]


def test_the_shipped_family_has_subject_weights():
    shipped = underdraw.BlipDiffusionPipeline.from_pretrained("underdraw/scenes")
    shipped.set_progress_bar_config(disable=True)
    assert shipped.qformer.overlay.unet and set(shipped.subjects) == {"own"}
    call = {"num_inference_steps": 1, "prompt_reps": 1, "seed": 0, "output_type": "latent"}
    toys = recorded.pictures(2)
    made = shipped(["on a table", "in cool light"], toys, "cube", "cube", **call).images
    assert made.shape == (2, 4, 16, 16) and torch.isfinite(made).all()
    plain = underdraw.StableDiffusionPipeline.from_pretrained("underdraw/scenes")
    assert plain.subjects["subject"].overlay.unet.keys() == shipped.qformer.overlay.unet.keys()
    with pytest.raises(underdraw.InputError, match="another base"):
        tiny.pipeline().load_subject("underdraw/scenes")


def test_methods_of_diffusers(pipe):
    pixels = torch.from_numpy(recorded.arrays()["pixels"])
    tokens = pipe.get_query_embeddings(pixels, THREE["source_subject_category"])
    assert np.abs(tokens.numpy() - recorded.arrays()["queries"]).max() <= BOUND
    prompts = pipe._build_prompt(THREE["prompt"], THREE["target_subject_category"])
    context = pipe.encode_prompt(tokens, prompts, "cpu")
    assert np.abs(context.numpy() - recorded.arrays()["context"]).max() <= BOUND
    same = pipe.encode_prompt(tokens[:1], prompts[0])
    assert torch.allclose(same, context[:1], atol=1e-6)
    generator = torch.Generator().manual_seed(3)
    pipe.scheduler = recorded.scheduler("EulerDiscreteScheduler")
    noise = pipe.prepare_latents(2, 4, 5, 7, torch.float32, "cpu", generator)
    drawn = torch.randn(2, 4, 5, 7, generator=torch.Generator().manual_seed(3))
    assert torch.equal(noise, drawn * pipe.scheduler.init_noise_sigma)
    assert torch.equal(
        pipe.prepare_latents(2, 4, 5, 7, None, None, None, drawn),
        drawn * pipe.scheduler.init_noise_sigma,
    )
    pipe.scheduler = recorded.scheduler(None)


# -- beyond diffusers ------------------------------------------------------------------------------
def test_a_batch_equals_single_calls(pipe):
    together = call(pipe, guidance_scale=[4.5, 1.0, 7.0])
    for i in range(3):
        one = {name: [value[i]] for name, value in record.THREE.items()}
        alone = call(
            pipe,
            **one,
            reference_image=recorded.pictures()[i],
            seed=3 + i,
            guidance_scale=[4.5, 1.0, 7.0][i],
        )
        assert (together[i] - alone[0]).abs().max() <= BOUND * together.abs().max()


def test_several_images_per_prompt(pipe):
    both = call(pipe, num_images_per_prompt=2, seed=[3, 9, 4, 9, 5, 9])
    assert (both[::2] - call(pipe)).abs().max() <= BOUND * both.abs().max()


def test_streams_share_calls(pipe):
    names = record.THREE
    streams = [
        pipe.stream(
            **{name: value[i] for name, value in names.items()},
            **FIXED,
            reference_image=recorded.pictures()[i],
            seed=3 + i,
            neg_prompt="blue table",
            guidance_scale=4.5,
        )
        for i in range(2)
    ]
    for _ in (runs := underdraw.batched(streams)):
        pass
    alone = call(pipe)
    for i, stream in enumerate(runs.streams):
        assert (stream.output.images[0] - alone[i]).abs().max() <= BOUND * alone.abs().max()


@pytest.mark.parametrize(
    ("changes", "equal"),
    [
        ({"negative_prompt": "blue table", "neg_prompt": ""}, True),
        ({"neg_prompt": ["blue table"] * 3}, True),
        ({"neg_prompt": ["blue table", "red", "a"]}, False),
        ({"prompt_reps": 21}, True),  # the window is full
        ({"prompt_reps": 1}, False),
        ({"controls": []}, True),
        ({"clip_skip": 1}, False),
        ({"reference_image": [[p] for p in recorded.pictures()]}, True),
        ({"reference_image": [[p, p] for p in recorded.pictures()]}, True),
        ({"reference_image": recorded.pictures()[:1]}, False),
        ({"reference_image": np.stack([np.asarray(p) for p in recorded.pictures()])}, True),
        ({"target_subject_category": "sphere"}, False),
    ],
)
def test_arguments(pipe, changes, equal):
    usual, other = call(pipe), call(pipe, **changes)
    near = (usual - other).abs().max() <= BOUND * usual.abs().max()
    assert bool(near) is equal


def test_several_pictures_of_one_subject(pipe):
    """Their embeddings are averaged."""
    one = {name: value[0] for name, value in record.THREE.items()}
    two = call(pipe, **one, reference_image=recorded.pictures()[:2], seed=3)
    firsts = [call(pipe, **one, reference_image=p, seed=3) for p in recorded.pictures()[:2]]
    assert all((two - other).abs().max() > 1e-3 for other in firsts)


def test_a_word_may_weigh_more(pipe):
    heavy = [f"(blue:1.5) {prompt}" for prompt in THREE["prompt"]]
    plain = [f"blue {prompt}" for prompt in THREE["prompt"]]
    assert (call(pipe, prompt=heavy) - call(pipe, prompt=plain)).abs().max() > 1e-3


def test_a_long_prompt_keeps_its_window_and_a_long_negative_prompt_is_whole(pipe):
    long = [f"{'table ' * 60}{prompt}" for prompt in THREE["prompt"]]
    assert call(pipe, prompt=long).shape == (3, 4, 6, 9)
    other = call(pipe, neg_prompt="table " * 60 + "red")
    assert (other - call(pipe, neg_prompt="table " * 60 + "blue")).abs().max() > 1e-4


def test_callbacks(pipe):
    seen = []

    def callback(pipe, step, timestep, tensors):
        seen.append((step, tensors["latents"].shape, pipe.guidance_scale))
        return {}

    call(pipe, callback_on_step_end=callback)
    assert seen == [(i, (3, 4, 6, 9), 4.5) for i in range(4)]


def test_a_picture_is_made_again_from_its_record(pipe):
    one = {name: value[0] for name, value in record.THREE.items()}
    given = {**one, **record.FIXED, "output_type": "pil", "seed": 3}
    image = pipe(reference_image=recorded.pictures()[0], **given).images[0]
    told = json.loads(image.info[METADATA])
    assert told["call"]["prompt"] == one["prompt"]
    assert told["call"]["source_subject_category"] == one["source_subject_category"]
    assert told["missing"] == ["reference_image"]
    again = repeat(pipe, image.info[METADATA], reference_image=recorded.pictures()[0])
    assert np.array_equal(np.asarray(image), np.asarray(again))


# -- folders ---------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("blip")
    recorded.pipeline().save_pretrained(place)
    return place


def index(folder):
    return json.loads((folder / "model_index.json").read_text())


def loaded(folder, kind=BlipDiffusionPipeline, **options):
    made = kind.from_pretrained(folder, **options)
    made.set_progress_bar_config(disable=True)
    return made


def test_folder_as_published(pipe, folder):
    said = index(folder)
    assert said["_class_name"] == "BlipDiffusionPipeline"
    assert said["qformer"] == ["blip_diffusion", "Blip2QFormerModel"]
    assert said["text_encoder"] == ["blip_diffusion", "ContextCLIPTextModel"]
    assert said["image_processor"] == ["blip_diffusion", "BlipImageProcessor"]
    assert (said["ctx_begin_pos"], said["mean"]) == (2, list(record.MEAN))
    for kind in (BlipDiffusionPipeline, DiffusionPipeline):
        again = loaded(folder, kind)
        assert (again.ctx_begin_pos, again.mean, again.std) == (2, record.MEAN, record.STD)
        assert torch.equal(call(again), call(pipe))


def test_other_pipelines_find_the_subject_weights_in_their_folder(pipe, folder):
    from underdraw import Subject

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the recorded scheduler has no offset
        plain = loaded(folder, StableDiffusionPipeline)
    assert list(plain.subjects) == ["subject"]
    plain.scheduler = recorded.scheduler(None)
    prompts = pipe._build_prompt(THREE["prompt"][:1], THREE["target_subject_category"][:1], 1, 2)
    subject = Subject(recorded.pictures()[0], "red ball", word="sphere", at=2)
    sizes = {"height": 24, "width": 36, "num_inference_steps": 3, "output_type": "latent"}
    ours = plain(prompts, controls=[subject], seed=3, **sizes).images
    theirs = pipe(
        THREE["prompt"][0], recorded.pictures()[0], "red ball", "sphere",
        prompt_reps=2, seed=3, **sizes,
    ).images  # fmt: skip
    assert (ours - theirs).abs().max() <= BOUND * ours.abs().max()


@pytest.mark.parametrize("module", ["blip_diffusion", "pipeline_blip_diffusion", "diffusers"])
def test_modules_by_their_old_names(folder, tmp_path, module):
    said = index(folder)
    for name in ("qformer", "text_encoder", "image_processor"):
        said[name][0] = module
    copy_with(folder, tmp_path, said)
    assert loaded(tmp_path).ctx_begin_pos == 2


def copy_with(folder, target, said):
    for name in os.listdir(folder):
        if name != "model_index.json":
            os.symlink(folder / name, target / name)
    (target / "model_index.json").write_text(json.dumps(said))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": record.STD, "std": [0.48145466, 0.4578275]}, "std=.*a list of 3"),
        (
            {
                "mean": [0.26862954, 0.26130258, 0.27577711],
                "std": [0.48145466, 0.4578275, 0.40821073],
            },
            "have changed places",
        ),
        ({"std": [0.5, 0.5, 0]}, "std=0 is not supported"),
        ({"ctx_begin_pos": 0}, "ctx_begin_pos=0 is too small"),
        ({"ctx_begin_pos": "2"}, "ctx_begin_pos='2' is not a whole number"),
        ({"qformer": ["transformers", "BertModel"]}, "qformer 'BertModel'.* is not known"),
        ({"text_encoder": ["blip_diffusion", "T5Model"]}, "text_encoder 'T5Model'"),
        ({"qformer": [None, None]}, "has no qformer, which BlipDiffusionPipeline needs"),
    ],
)
def test_bad_folders(folder, tmp_path, changes, message):
    copy_with(folder, tmp_path, {**index(folder), **changes})
    with pytest.raises((underdraw.InputError, underdraw.InputTypeError), match=message):
        loaded(tmp_path)


def test_a_published_folder_lacks_the_vocabulary(pipe, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    copy_with(folder, tmp_path, index(folder))
    (tmp_path / "qformer").unlink()
    (tmp_path / "qformer").mkdir()
    for name in ("config.json", "model.safetensors"):
        os.symlink(folder / "qformer" / name, tmp_path / "qformer" / name)
    made = loaded(tmp_path)
    with pytest.raises(underdraw.InputError, match="of 'bert-base-uncased'"):
        call(made)
    made.qformer.tokenizer = WordPiece(record.PIECES)
    assert torch.equal(call(made), call(pipe))


def test_the_originals_folder(pipe, folder, tmp_path, monkeypatch):
    """LAVIS': weights alone; configs and CLIP's vocabulary come from another folder."""
    named = to_original(pipe.qformer.stored_tensors())
    parts = {"blip_model/blip_weight.pt": "blip.", "proj_layer/proj_weight.pt": "proj_layer."}
    for file, prefix in parts.items():
        (tmp_path / file).parent.mkdir()
        kept = {
            name.removeprefix(prefix): torch.tensor(tensor.load())
            for name, tensor in named.items()
            if name.startswith(prefix)
        }
        torch.save(kept, tmp_path / file)
    for part, file in (
        ("unet", "diffusion_pytorch_model.bin"),
        ("text_encoder", "pytorch_model.bin"),
    ):
        (tmp_path / part).mkdir()
        torch.save(getattr(pipe, part).state_dict(), tmp_path / part / file)
    (tmp_path / "vocab.txt").write_text("\n".join(record.PIECES) + "\n")
    # No shape tells the heads of these: published ones are 64 wide.
    monkeypatch.setattr("underdraw.weights.subject.HEAD", 4)
    made = BlipDiffusionPipeline.from_original(tmp_path, folder, mean=record.MEAN, std=record.STD)
    made.set_progress_bar_config(disable=True)
    assert made.qformer.config.vision_config.num_attention_heads == 5
    latents = call(made)
    assert latents.shape == (3, 4, 6, 9)
    assert torch.equal(made.unet.conv_in.weight, pipe.unet.conv_in.weight)
    made.qformer = pipe.qformer
    assert torch.equal(call(made), call(pipe))
    with pytest.raises(underdraw.InputError, match="unpack the archive first"):
        BlipDiffusionPipeline.from_original(tmp_path / "blip.tar.gz", folder)
    with pytest.raises(underdraw.InputTypeError, match="has no components"):
        BlipDiffusionPipeline.from_original(tmp_path, folder, colour=1)


def test_pipelines_of_others(pipe):
    """`from_pipe` both ways, on shared parameters; a plain text encoder serves as well."""
    parts = recorded.components()
    tower = parts["text_encoder"]
    plain = CLIPTextModel.sharing(tower.config, tower)
    made = recorded.pipeline(text_encoder=plain)
    assert torch.equal(call(made), call(pipe))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the recorded scheduler has no offset
        other = StableDiffusionPipeline.from_pipe(pipe)
    back = BlipDiffusionPipeline.from_pipe(
        other,
        qformer=pipe.qformer,
        image_processor=pipe.image_processor,
        scheduler=recorded.scheduler(None),
        mean=record.MEAN,
        std=record.STD,
    )
    back.set_progress_bar_config(disable=True)
    assert torch.equal(call(back), call(pipe))


def test_a_subject_encoder_of_another_base():
    with pytest.raises(underdraw.InputError, match="tokens of width 24, the text encoder takes 48"):
        tower = recorded.network("text_encoder").config.to_dict()
        wide = {**tower, "hidden_size": 48, "num_attention_heads": 4}
        unet = {**record.UNET, "cross_attention_dim": 48}
        recorded.pipeline(
            text_encoder=CLIPTextModel(**wide), unet=underdraw.UNet2DConditionModel(**unet)
        )


# -- bad arguments ---------------------------------------------------------------------------------
BAD = {
    "no picture": ({"reference_image": None}, "reference_image=None; give a picture"),
    "no pictures": ({"reference_image": []}, "reference_image is an empty list"),
    "an empty list": ({"reference_image": [[], [], []]}, "reference_image holds an empty list"),
    "too few": ({"reference_image": recorded.pictures()[:2]}, "reference_image has 2 entries"),
    "deep": ({"reference_image": [[[1]]] * 3}, "reference_image holds lists in lists"),
    "text": ({"reference_image": "dog.png"}, "reference_image=str; allowed: a PIL image"),
    "empty": ({"reference_image": Image.new("RGB", (0, 4))}, "is 0 x 4 pixels, so empty"),
    "NaN": ({"reference_image": np.full((4, 4, 3), np.nan)}, r"values outside \[0, 1\]"),
    "no source": ({"source_subject_category": None}, "source_subject_category=None; give what"),
    "empty source": ({"source_subject_category": " "}, "source_subject_category=' ' is empty"),
    "few sources": ({"source_subject_category": ["a", "b"]}, "has 2 entries; there are 3 prompts"),
    "source number": ({"source_subject_category": 3}, "source_subject_category=3 is not a string"),
    "long source": ({"source_subject_category": "b " * 30}, "has 30 tokens; allowed: at most 15"),
    "no target": ({"target_subject_category": None}, "target_subject_category=None; give what"),
    "few targets": ({"target_subject_category": ["a", "b"]}, "target_subject_category has 2"),
    "strength": ({"prompt_strength": -1}, "prompt_strength=-1.* is out of range"),
    "strength NaN": ({"prompt_strength": float("nan")}, "prompt_strength=nan is out of range"),
    "no repetition": ({"prompt_strength": 0.01}, "leaves none; allowed: 0.05 or more"),
    "repetitions": ({"prompt_reps": 0}, "prompt_reps=0 is too small"),
    "half": ({"prompt_reps": 1.5}, "prompt_reps=1.5 is not a whole number"),
    "many": ({"prompt_reps": 10**6}, "prompt_reps=1000000 is too large"),
    "both negatives": ({"negative_prompt": "a"}, "neg_prompt and negative_prompt are both given"),
    "negative number": ({"neg_prompt": 3}, "neg_prompt=3 is not a string"),
    "negatives": ({"neg_prompt": ["a", "b"]}, "negative_prompt has 2 entries"),
    "no prompt": ({"prompt": None}, "prompt=None is not a string"),
    "height": ({"height": 26}, "height=26 is not a multiple of 4"),
    "latents": ({"latents": torch.zeros(3, 4, 6, 8)}, r"latents has shape \(3, 4, 6, 8\)"),
    "guidance": ({"guidance_scale": float("inf")}, "guidance_scale=inf is out of range"),
    "output": ({"output_type": "jpg"}, "output_type='jpg' is not known"),
    "control": ({"controls": [3]}, "controls holds 3, which is not a Control"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_calls(pipe, name):
    changes, message = BAD[name]
    asked = []
    pipe.unet.conv_in.register_forward_pre_hook(lambda *_: asked.append(1))
    with pytest.raises((underdraw.InputError, underdraw.InputTypeError), match=message):
        call(pipe, **changes)
    assert not asked
