"""What callbacks see and change, against diffusers."""

import diffusers
import numpy as np
import pytest
import torch
from diffusers.callbacks import MultiPipelineCallbacks, SDCFGCutoffCallback
from pipelines.peer import oracle
from pipelines.peer.oracle import images, pair

import underdraw
from underdraw import schedulers

LIMIT = 1e-4
NAMES = ["latents", "prompt_embeds", "negative_prompt_embeds"]
CALL = {"prompt": ["a red sphere", "blue cube"], "seeds": (1, 2), "height": 40, "width": 72}
CALL |= {"num_inference_steps": 4, "output_type": "latent"}


@pytest.fixture
def use(monkeypatch):
    def set_schedulers(name, **options):
        theirs, ours = pair("sd1")
        config = dict(theirs.scheduler.config)
        monkeypatch.setattr(theirs, "scheduler", oracle.scheduler(name, config, **options))
        made = getattr(schedulers, name).from_config(ours.scheduler.config, **options)
        monkeypatch.setattr(ours, "scheduler", made)

    return set_schedulers


def both(**arguments):
    """Images of both pipelines, and what their callbacks wrote down."""
    found = []
    for pipe in pair("sd1"):
        seen = []
        made = {
            name: (lambda *a, f=value, seen=seen: f(seen, *a)) if callable(value) else value
            for name, value in arguments.items()
        }
        found.append((images(pipe, **{**CALL, **made}), seen))
    (theirs, a), (ours, b) = found
    assert np.abs(theirs - ours).max() <= LIMIT
    assert len(a) == len(b)
    return theirs, a, b


@pytest.mark.parametrize("name", ["", "Img2Img", "Inpaint"])
def test_the_names_of_the_tensors(name):
    theirs, ours = (
        getattr(library, f"StableDiffusion{name}Pipeline")._callback_tensor_inputs
        for library in (diffusers, underdraw)
    )
    assert ours == theirs


SOLVERS = ["PNDMScheduler", "HeunDiscreteScheduler", "EulerDiscreteScheduler"]


@pytest.mark.parametrize("name", SOLVERS)
def test_tensors_steps_and_times(use, name):
    use(name)

    def note(seen, pipe, step, t, tensors):
        tensors = {name: value.clone() for name, value in tensors.items()}
        seen.append((step, t, pipe.guidance_scale, pipe.num_timesteps, tensors))
        return {}

    for scale in (7.5, 1.0):
        _, theirs, ours = both(
            callback_on_step_end=note,
            callback_on_step_end_tensor_inputs=NAMES if scale > 1 else NAMES[:2],
            guidance_scale=scale,
        )
        for a, b in zip(theirs, ours, strict=True):
            assert a[0] == b[0]
            assert a[1].item() == pytest.approx(b[1].item(), rel=1e-6)
            assert a[1].is_floating_point() == b[1].is_floating_point()
            assert a[2:4] == b[2:4]
            for tensor in a[4]:
                torch.testing.assert_close(a[4][tensor], b[4][tensor], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", SOLVERS)
def test_tensors_that_are_replaced(use, name):
    use(name)

    def replace(seen, pipe, step, t, tensors):
        seen.append(tensors["negative_prompt_embeds"].sum().item())
        if step == 1:
            return {"latents": tensors["latents"].flip(3) * 0.9}
        if step == 2:
            return {"prompt_embeds": tensors["prompt_embeds"].flip(1)}
        if step == 3:
            return {"negative_prompt_embeds": tensors["negative_prompt_embeds"] * 2}
        return tensors

    plain = images(pair("sd1")[0], **CALL)
    changed, a, b = both(
        callback_on_step_end=replace,
        callback_on_step_end_tensor_inputs=NAMES,
        num_inference_steps=5,
    )
    assert np.abs(plain - changed).max() > 1e-2
    assert a == pytest.approx(b, abs=1e-3)
    assert abs(b[-1]) == pytest.approx(2 * abs(b[0]), rel=1e-3)


def test_tensors_that_are_changed_in_place():
    def scale(seen, pipe, step, t, tensors):
        if step == 1:
            tensors["latents"].mul_(0.8)
            tensors["prompt_embeds"].mul_(3.0)
        return tensors

    plain = images(pair("sd1")[0], **CALL)
    changed, _, _ = both(callback_on_step_end=scale, callback_on_step_end_tensor_inputs=NAMES[:2])
    assert np.abs(plain - changed).max() > 1e-2


@pytest.mark.parametrize("name", SOLVERS)
def test_guidance_that_changes_on_the_way(use, name):
    use(name)

    def stop(seen, pipe, step, t, tensors):
        if step == 1:
            pipe._guidance_scale = 0.0
            return {"prompt_embeds": tensors["prompt_embeds"].chunk(2)[-1]}
        return tensors

    def rise(seen, pipe, step, t, tensors):
        pipe._guidance_scale = 3.0 + step
        return {}

    plain = images(pair("sd1")[0], **CALL)
    for change in (stop, rise):
        changed, _, _ = both(
            callback_on_step_end=change, callback_on_step_end_tensor_inputs=["prompt_embeds"]
        )
        assert np.abs(plain - changed).max() > 1e-3


def test_guidance_is_that_of_the_next_call_again():
    ours = pair("sd1")[1]

    def stop(pipe, step, t, tensors):
        pipe._guidance_scale = 0.0
        return {}

    plain = images(ours, **CALL)
    changed = images(ours, callback_on_step_end=stop, **CALL)
    assert np.abs(plain - changed).max() > 1e-3
    assert (images(ours, **CALL) == plain).all()


def test_the_peers_callback_objects():
    for callback in (
        SDCFGCutoffCallback(cutoff_step_ratio=0.4),
        MultiPipelineCallbacks([SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=1)]),
    ):
        call = {"prompt": "a red sphere", "callback_on_step_end": callback}
        theirs, ours = (images(pipe, **call) for pipe in pair("sd1"))
        assert np.abs(theirs - ours).max() <= LIMIT


@pytest.mark.parametrize(
    ("name", "every"),
    [
        *(("PNDMScheduler", every) for every in (1, 2, 3)),
        *(("HeunDiscreteScheduler", every) for every in (1, 2)),
        ("EulerDiscreteScheduler", 3),
        ("KDPM2DiscreteScheduler", 2),
        ("LCMScheduler", 1),
    ],
)
def test_the_older_callback(use, name, every):
    options = {"original_inference_steps": 50} if name == "LCMScheduler" else {}
    use(name, **options)

    def note(seen, step, t, latents):
        seen.append((step, t, latents.clone()))

    _, theirs, ours = both(callback=note, callback_steps=every)
    assert theirs
    for a, b in zip(theirs, ours, strict=True):
        assert a[0] == b[0]
        assert a[1].item() == pytest.approx(b[1].item(), rel=1e-6)
        torch.testing.assert_close(a[2], b[2], rtol=0, atol=1e-4)


def test_custom_times_and_the_older_callback(use):
    use("EulerDiscreteScheduler", steps_offset=0, timestep_spacing="linspace")

    def note(seen, step, t, latents):
        seen.append((step, t.item()))

    _, theirs, ours = both(callback=note, callback_steps=1, timesteps=[900, 500, 100])
    assert theirs == ours


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("at", [0, 2])
def test_interrupting(use, name, at):
    use(name)

    def stop(seen, pipe, step, t, tensors):
        seen.append(step)
        pipe._interrupt = step == at
        return {}

    _, _, ours = both(callback_on_step_end=stop)
    assert ours == list(range(at + 1))
    assert images(pair("sd1")[1], **CALL).shape == (2, 4, 5, 9)


def test_progress(use):
    """A bar for steps, not for model calls, as diffusers'."""
    use("HeunDiscreteScheduler")
    _, ours = pair("sd1")

    class Bar:
        def __init__(self, total):
            self.total, self.n = total, 0

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def update(self, n=1):
            self.n += n

    bars = {}
    for pipe in pair("sd1"):

        def bar(iterable=None, total=None, pipe=pipe):
            bars[pipe] = Bar(total)
            return bars[pipe]

        pipe.progress_bar = bar
        try:
            images(pipe, **CALL)
        finally:
            del pipe.progress_bar
    theirs, ours = (bars[pipe] for pipe in pair("sd1"))
    assert (theirs.total, theirs.n) == (ours.total, ours.n) == (4, 4)


def test_generators_serve_a_second_call():
    """A caller's generator goes on where the call left it."""
    for seeds in ((5,), (5, 6)):
        made = []
        for pipe in pair("sd1"):
            g = oracle.generators(*seeds)
            call = {"num_inference_steps": 1, "output_type": "latent", "generator": g}
            made.append([pipe(["a red sphere", "blue"], **call).images for _ in range(2)])
        for a, b in zip(*made, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-4)
        assert not torch.equal(made[1][0], made[1][1])
