"""Devices and dtypes a network or pipeline is told to go to: checked before anything moves."""

import pytest
import torch
from pipelines import tiny

from underdraw import StableDiffusionPipeline, UNet2DConditionModel
from underdraw.backends import hardware
from underdraw.errors import InputError, InputTypeError

ABSENT = ("cuda", "cuda:0", "cuda:7", torch.device("cuda", 1), 0, 3, "mps", "xpu", "cpu:1")
UNKNOWN = ("gpu", "nonsense", "", "cuda:x", "float17")
NO_PLACE = (3.5, [], {}, object(), b"cpu", ("cpu",))
NO_DTYPES = (torch.int8, torch.bool)


@pytest.fixture(scope="module")
def pipe():
    return tiny.pipeline()


@pytest.fixture(autouse=True)
def no_accelerator(monkeypatch):
    monkeypatch.setattr(hardware, "_count", lambda kind: int(kind == "cpu"))


@pytest.mark.parametrize("how", ["position", "keyword", "network"])
@pytest.mark.parametrize(
    ("place", "kind"),
    [
        *((place, InputError) for place in (*ABSENT, *UNKNOWN)),
        *((place, InputTypeError) for place in NO_PLACE),
    ],
)
def test_where_nothing_can_go(pipe, how, place, kind):
    before = {name: value.data_ptr() for name, value in pipe.unet.named_parameters()}
    said = r"allowed: cpu" if kind is InputError else "is not a device"
    with pytest.raises(kind, match=said) as error:
        if how == "position":
            pipe.to(place)
        elif how == "keyword":
            pipe.to(device=place)
        else:
            pipe.unet.to(place)
    assert len(str(error.value).splitlines()) == 1
    assert {n: v.data_ptr() for n, v in pipe.unet.named_parameters()} == before


@pytest.mark.parametrize("place", (*ABSENT, *UNKNOWN))
def test_loading_says_so_before_it_reads(monkeypatch, place):
    from underdraw.backends import torch_weights

    monkeypatch.setattr(torch_weights, "build_root", None)
    with pytest.raises(InputError, match="allowed: cpu"):
        UNet2DConditionModel.from_pretrained("underdraw/scenes", subfolder="unet", device=place)


def test_dtypes(pipe):
    for dtype in ("float16", "fp16", "torch.bfloat16", torch.float32):
        assert pipe.to(dtype) is pipe
        assert pipe.to("cpu", dtype).to(dtype=dtype).unet.to(dtype) is pipe.unet
    for dtype in NO_DTYPES:
        with pytest.raises(InputError, match=r"dtype=.*allowed: float32"):
            pipe.to(dtype)
    for dtype in ("float17", 3, "cuda"):
        with pytest.raises((InputError, InputTypeError), match="dtype="):
            pipe.to(dtype=dtype)
    for args in ((torch.float16, "cpu"), ("cpu", "cpu")):
        with pytest.raises(InputTypeError, match="in this order"):
            pipe.to(*args)
    assert pipe.to(torch.float32, non_blocking=True).to(None).dtype == torch.float32


def test_the_reason_is_told_where_pytorch_lacks_cuda(pipe):
    if torch.version.cuda is None and torch.version.hip is None:
        with pytest.raises(InputError, match=r"this PyTorch, .*, was built without CUDA"):
            pipe.to("cuda")


def test_on_jax():
    pytest.importorskip("jax")
    pipe = StableDiffusionPipeline(**tiny.on("jax", tiny.components()))
    for place in ("cuda", "gpu", "tpu", "nonsense", "cpu:9", 9):
        with pytest.raises(InputError, match="is not on this machine; allowed: cpu:0"):
            pipe.to(place)
    for place in ("cpu", "cpu:0", 0):
        assert pipe.to(place) is pipe
