"""Names to folders, against a small Hub on this machine."""

import json
import subprocess
import sys

import numpy as np
import pytest
from huggingface_hub import errors
from weights.fake_hub import FakeHub, commit_of

from underdraw.errors import InputError, NotFoundError
from underdraw.weights import folders, hub, locate
from underdraw.weights.save import save_tensors

D = "diffusion_pytorch_model"
INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "safety_checker": [None, None],
}


def repository(folder):
    def put(name, content=b"{}"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def weights(name, value):
        put(name)
        save_tensors(folder / name, {"x": np.full(3, value, "f4")})

    put("model_index.json", json.dumps(INDEX).encode())
    put("README.md")
    weights("v1-5-pruned.safetensors", 9)
    for part in ("unet", "vae", "text_encoder"):
        put(f"{part}/config.json")
    weights(f"unet/{D}.safetensors", 1)
    weights(f"unet/{D}.fp16.safetensors", 2)
    weights(f"unet/{D}.non_ema.safetensors", 3)
    put(f"unet/{D}.bin", b"pickle")
    put("unet/diffusion_flax_model.msgpack")
    put(f"vae/{D}.bin", b"pickle")
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for i, shard in enumerate(shards):
        save_tensors(folder / "text_encoder" / shard, {f"x{i}": np.full(3, i, "f4")})
    index = {"weight_map": {f"x{i}": shard for i, shard in enumerate(shards)}}
    put("text_encoder/model.safetensors.index.json", json.dumps(index).encode())
    put("text_encoder/pytorch_model.bin", b"pickle")
    put("text_encoder/model.onnx", b"onnx")
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        put(f"tokenizer/{name}")
    put("scheduler/scheduler_config.json")
    weights("safety_checker/model.safetensors", 4)
    return folder


TEXTS = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "tokenizer/merges.txt",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "unet/config.json",
    "vae/config.json",
]
TEXT_WEIGHTS = [
    "text_encoder/model-00001-of-00002.safetensors",
    "text_encoder/model-00002-of-00002.safetensors",
    "text_encoder/model.safetensors.index.json",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return repository(tmp_path_factory.mktemp("repository"))


@pytest.fixture
def server(folder, tmp_path_factory, monkeypatch):
    server = FakeHub()
    server.repositories["some/pipeline"] = {"main": folder, "other": folder}
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    # Read from the environment when the library was imported, perhaps by a test before.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield server
    server.close()


def tree(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_only_what_is_read_is_downloaded(server, tmp_path):
    found = hub.resolve("some/pipeline", cache_dir=tmp_path)
    expected = sorted([*TEXTS, *TEXT_WEIGHTS, f"unet/{D}.safetensors", f"vae/{D}.bin"])
    assert tree(found) == expected == server.files()
    assert found.name == commit_of("some/pipeline", "main")
    assert folders.read_model_index(found) == INDEX
    _, tensors = folders.open_component(found, "unet")
    assert tensors["x"].load().tolist() == [1, 1, 1]
    _, tensors = folders.open_component(found, "text_encoder")
    assert tensors.keys() == {"x0", "x1"}


def test_variant_with_fallback_for_components_without_it(server, tmp_path):
    found = hub.resolve("some/pipeline", cache_dir=tmp_path, variant="fp16")
    assert tree(found) == sorted(
        [*TEXTS, *TEXT_WEIGHTS, f"unet/{D}.fp16.safetensors", f"vae/{D}.bin"]
    )
    with pytest.raises(NotFoundError, match=r"variant 'bf16'.*there are: 'fp16', 'non_ema'"):
        hub.resolve("some/pipeline", cache_dir=tmp_path, variant="bf16")


def test_parts_that_the_caller_brings_are_skipped(server, tmp_path):
    skip = ("unet", "text_encoder")
    found = hub.resolve("some/pipeline", cache_dir=tmp_path, skip=skip)
    assert not [name for name in tree(found) if name.startswith(skip)]
    found = hub.resolve("some/pipeline", cache_dir=tmp_path / "b", weights=False)
    assert tree(found) == TEXTS


def test_one_component(server, tmp_path):
    found = hub.resolve("some/pipeline", subfolder="unet", cache_dir=tmp_path)
    assert tree(found) == ["unet/config.json", f"unet/{D}.safetensors"]
    with pytest.raises(NotFoundError, match="variant 'fp16'"):
        hub.resolve("some/pipeline", subfolder="text_encoder", variant="fp16", cache_dir=tmp_path)
    with pytest.raises(NotFoundError, match="nothing to load"):
        hub.resolve("some/pipeline", subfolder="gone", cache_dir=tmp_path)
    found = hub.resolve("some/pipeline", subfolder="tokenizer", cache_dir=tmp_path / "t")
    assert tree(found) == [name for name in TEXTS if name.startswith("tokenizer")]


def test_pickles_when_asked(server, tmp_path):
    found = hub.resolve(
        "some/pipeline", subfolder="unet", cache_dir=tmp_path, use_safetensors=False
    )
    assert tree(found) == ["unet/config.json", f"unet/{D}.bin"]


def test_a_repository_of_one_model(server, folder, tmp_path):
    server.repositories["some/model"] = {"main": folder / "unet"}
    found = hub.resolve("some/model", cache_dir=tmp_path)
    assert tree(found) == ["config.json", f"{D}.safetensors"]


def test_revisions(server, tmp_path):
    found = hub.resolve("some/pipeline", revision="other", cache_dir=tmp_path, weights=False)
    assert found.name == commit_of("some/pipeline", "other")
    assert (
        hub.resolve("some/pipeline", revision="other", cache_dir=tmp_path, local_files_only=True)
        == found
    )
    with pytest.raises(NotFoundError, match="no revision 'gone'"):
        hub.resolve("some/pipeline", revision="gone", cache_dir=tmp_path)
    with pytest.raises(NotFoundError, match="cache at revision 'gone'"):
        hub.resolve("some/pipeline", revision="gone", cache_dir=tmp_path, local_files_only=True)


def test_private_repositories_need_a_token(server, tmp_path):
    server.private.add("some/pipeline")
    with pytest.raises(NotFoundError, match="needs token="):
        hub.resolve("some/pipeline", cache_dir=tmp_path, token=False)
    found = hub.resolve("some/pipeline", cache_dir=tmp_path, token="secret", weights=False)
    assert tree(found) == TEXTS
    with pytest.raises(NotFoundError, match="no such repository on the Hub"):
        hub.resolve("some/nothing", cache_dir=tmp_path)


@pytest.mark.parametrize("how", ["argument", "environment", "down"])
def test_the_cache_serves_offline_calls(server, tmp_path, monkeypatch, how):
    online = hub.resolve("some/pipeline", cache_dir=tmp_path)
    server.requests.clear()
    if how == "environment":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    server.down = how == "down"
    again = hub.resolve("some/pipeline", cache_dir=tmp_path, local_files_only=how == "argument")
    assert again == online
    assert bool(server.requests) == (how == "down")


@pytest.mark.parametrize("how", ["argument", "environment", "down", "unreachable"])
def test_an_empty_cache_says_what_to_do(server, tmp_path, monkeypatch, how):
    if how == "environment":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if how == "unreachable":
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    server.down = how == "down"
    with pytest.raises(NotFoundError, match=r"some/pipeline: .*not in the cache") as caught:
        hub.resolve("some/pipeline", cache_dir=tmp_path, local_files_only=how == "argument")
    message = str(caught.value)
    assert "Run it once online" in message
    assert "underdraw/scenes" in message
    assert "\n" not in message
    assert isinstance(caught.value, OSError)


def test_a_second_call_downloads_nothing_unless_forced(server, tmp_path):
    hub.resolve("some/pipeline", cache_dir=tmp_path)
    server.requests.clear()
    hub.resolve("some/pipeline", cache_dir=tmp_path)
    assert server.files() == []
    hub.resolve("some/pipeline", cache_dir=tmp_path, force_download=True)
    assert f"unet/{D}.safetensors" in server.files()


def test_folders_are_used_as_they_are(folder, tmp_path):
    assert hub.resolve(folder) == folder
    assert hub.resolve(str(folder), variant="fp16", local_files_only=True) == folder
    with pytest.raises(NotFoundError, match="from_single_file"):
        hub.resolve(folder / "v1-5-pruned.safetensors")


@pytest.mark.parametrize("name", ["/no/such", "./no", "../no", "a/b/c", "~/x", "C:\\x", "a b"])
def test_what_is_no_repository_is_not_asked_for(server, name):
    with pytest.raises(NotFoundError, match="no such folder"):
        hub.resolve(name)
    assert not server.requests


def test_a_repository_of_a_tokenizer_alone(server, folder, tmp_path):
    server.repositories["some/clip"] = {"main": folder / "tokenizer"}
    found = hub.resolve("some/clip", cache_dir=tmp_path, weights=False)
    assert tree(found) == ["merges.txt", "tokenizer_config.json", "vocab.json"]
    assert hub.resolve("some/clip", cache_dir=tmp_path, local_files_only=True) == found


@pytest.mark.parametrize("name", ["", "  ", b"bytes"])
def test_what_is_no_name(name):
    with pytest.raises(InputError, match="name_or_path"):
        hub.resolve(name)


def test_scenes_come_with_the_package(tmp_path, monkeypatch):
    inside = tmp_path / "assets" / "scenes"
    monkeypatch.setattr(hub.resources, "files", lambda package: tmp_path)
    with pytest.raises(NotFoundError, match="not inside this installation"):
        hub.resolve("underdraw/scenes")
    inside.mkdir(parents=True)
    # A checkout has a folder of that very name below src/.
    (tmp_path / "underdraw" / "scenes").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub.resolve("underdraw/scenes") == inside
    assert hub.resolve("./underdraw/scenes").resolve() == tmp_path / "underdraw" / "scenes"


def test_local_names_import_no_hub_library(folder):
    code = (
        "import sys; from underdraw.weights import hub, folders, single_file, save;"
        "hub.resolve(sys.argv[1]);"
        "heavy = {'huggingface_hub', 'torch', 'safetensors', 'jax', 'PIL'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)


# -- errors ----------------------------------------------------------------------------------------


def raising(error):
    def download(*arguments, **options):
        raise error

    return download


def assert_one_line(error):
    """No line more in the message, and none of what the library raised above it."""
    assert "\n" not in str(error) and len(str(error)) < 500
    while error is not None:
        assert error.__cause__ is None
        assert error.__context__ is None or error.__suppress_context__
        error = None if error.__suppress_context__ else error.__context__


SERVED = {
    "a private one": ("some/private", {}, "needs token="),
    "none": ("some/nothing", {}, "no such repository on the Hub"),
    "a gated one": ("some/gated", {}, "access must be asked for"),
    "no revision": ("some/pipeline", {"revision": "gone"}, "no revision 'gone'"),
    "no such variant": ("some/pipeline", {"variant": "bf16"}, "no weights of variant 'bf16'"),
    "down": ("some/pipeline", {}, "the Hub could not be reached"),
    "a name of two hyphens": ("some/a--b", {}, "no such folder here"),
    "a name of .git": ("some/a.git", {}, "no such folder here"),
}


@pytest.mark.parametrize("case", SERVED)
def test_errors_of_the_hub_are_one_line(server, tmp_path, case):
    name, options, words = SERVED[case]
    server.repositories["some/private"] = server.repositories["some/gated"] = {"main": tmp_path}
    server.private.add("some/private")
    server.gated.add("some/gated")
    server.down = case == "down"
    with pytest.raises(NotFoundError, match=words) as caught:
        hub.resolve(name, cache_dir=tmp_path / "cache", token=False, **options)
    assert_one_line(caught.value)


LONG = "line\n" * 80
FAILURES = [
    OSError(28, "No space left on device"),
    PermissionError(13, "Permission denied"),
    errors.LocalEntryNotFoundError(LONG),
    errors.EntryNotFoundError(LONG),
    errors.FileMetadataError(LONG),
    TimeoutError(),
    *(  # of libraries that other versions of the Hub's library use
        type(name, (Exception,), {"__module__": module})(LONG)
        for module, name in (
            ("httpx", "ReadTimeout"),
            ("requests.exceptions", "ConnectionError"),
            ("huggingface_hub.errors", "XetDownloadError"),
        )
    ),
]


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
def test_downloads_that_fail_are_one_line(server, tmp_path, monkeypatch, error):
    monkeypatch.setattr("huggingface_hub.hf_hub_download", raising(error))
    with pytest.raises(NotFoundError, match=r"a download failed \(") as caught:
        hub.resolve("some/pipeline", cache_dir=tmp_path)
    assert_one_line(caught.value)
    monkeypatch.setattr(locate, "hf_hub_download", raising(error))
    with pytest.raises(NotFoundError, match=r"gives no x\.ckpt of some/pipeline \(") as caught:
        locate.find("some/pipeline/x.ckpt", cache_dir=tmp_path)
    assert_one_line(caught.value)


def test_mistakes_of_ours_are_not_hidden(server, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.hf_hub_download", raising(KeyError("a mistake")))
    with pytest.raises(KeyError):
        hub.resolve("some/pipeline", cache_dir=tmp_path)


# -- incomplete caches -----------------------------------------------------------------------------


@pytest.fixture
def cached(tmp_path):
    """A cache as `huggingface_hub` leaves it, links and all: the UNet in a sharded variant."""
    storage, commit = tmp_path / "models--some--model", "c" * 40
    snapshot, blobs = storage / "snapshots" / commit, storage / "blobs"
    for place in (snapshot / "unet", snapshot / "vae", blobs, storage / "refs"):
        place.mkdir(parents=True)
    (storage / "refs" / "main").write_text(commit)
    shards = [f"{D}.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)]
    contents = {f"unet/{shard}": {f"x{i}": np.ones(3, "f4")} for i, shard in enumerate(shards)}
    contents[f"vae/{D}.fp16.safetensors"] = {"y": np.ones(3, "f4")}
    for i, (name, tensors) in enumerate(contents.items()):
        save_tensors(blobs / str(i), tensors)
        (snapshot / name).symlink_to(blobs / str(i))
    index = {"weight_map": {f"x{i}": shard for i, shard in enumerate(shards)}}
    (snapshot / "unet" / f"{D}.safetensors.index.fp16.json").write_text(json.dumps(index))
    for name in ("unet", "vae"):
        (snapshot / name / "config.json").write_text("{}")
    listed = {name: INDEX[name] for name in ("_class_name", "unet", "vae")}
    (snapshot / "model_index.json").write_text(json.dumps(listed))
    return tmp_path, snapshot


SECOND = rf"{D}\.fp16-00002-of-00002\.safetensors"
BOTH = rf"{D}\.fp16-00001-of-00002\.safetensors, {SECOND}"
LACKING = {
    "a shard": (
        ["unet/*-00002-of*"],
        f"1 of 2 shards that .*names are missing: {SECOND}; the down",
    ),
    "a blob of a shard": (["../../blobs/1"], f"1 of 2 shards that .* missing: {SECOND}"),
    "all shards": (["unet/*-of-*"], f"2 of 2 shards that .* names are missing: {BOTH}; the down"),
    "all blobs": (["../../blobs/*"], f"2 of 2 shards that .* names are missing: {BOTH}"),
    "index and shard": (
        ["unet/*index*", "unet/*-00002-of*"],
        f"1 of 2 shards are missing: {SECOND}",
    ),
    "a shard by itself": (["unet/*index*", "../../blobs/1"], f"1 of 2 shards are .*: {SECOND}"),
    "a whole file's blob": (["../../blobs/2"], r"fp16\.safetensors: no such file any more; the do"),
    "index and shards": (["unet/*fp16*"], "no weights; expected .*, found config.json"),
    "a config": (["unet/config.json"], r"unet: no config\.json"),
    "a folder": (["unet/*"], r"unet: no config\.json"),
}


@pytest.mark.parametrize("variant", ["fp16", None])
@pytest.mark.parametrize("case", LACKING)
def test_an_incomplete_cache_says_what_is_incomplete(cached, case, variant):
    """As a pipeline asks: the variant that each component has, else plain weights."""
    (cache, snapshot), (gone, words) = cached, LACKING[case]
    if variant is None and "no " not in words[:3] and "unet: no" not in words:
        words = r"no plain weights \(no variant\); there are: 'fp16'"
    for pattern in gone:
        for path in sorted(snapshot.glob(pattern)):
            path.unlink()
    found = hub.resolve("some/model", cache_dir=cache, local_files_only=True, variant=variant)
    with pytest.raises(NotFoundError, match=words) as caught:
        chosen = folders.pick_variants(found, ["unet", "vae"], variant)
        for name in ("unet", "vae"):
            folders.open_component(found, name, chosen[name])
    assert_one_line(caught.value)


def test_a_complete_cache_is_complete(cached):
    cache, _ = cached
    found = hub.resolve("some/model", cache_dir=cache, local_files_only=True, variant="fp16")
    assert folders.pick_variants(found, ["unet", "vae"], "fp16") == {"unet": "fp16", "vae": "fp16"}
    assert folders.open_component(found, "unet", "fp16")[1].keys() == {"x0", "x1"}


def test_shards_of_two_sets_are_not_joined(tmp_path):
    for name in (f"{D}-00001-of-00001.safetensors", f"{D}-00002-of-00002.safetensors"):
        save_tensors(tmp_path / name, {name: np.ones(3, "f4")})
    with pytest.raises(NotFoundError, match="shards of several sets are there"):
        folders.open_weights(tmp_path, folders.component_files(tmp_path))
