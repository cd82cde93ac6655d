"""Ways to compute less beside diffusers' own UNet and solver, which compute everything and have
what the papers say laid over what they computed: diffusers has none of them for this UNet."""

import tempfile

import diffusers
import pytest
import torch
from pipelines import tiny

from underdraw.controls.acceleration.attention import AttentionCache
from underdraw.controls.acceleration.features import DeepCache, EncoderPropagation
from underdraw.controls.acceleration.guidance import (
    AdaptiveGuidance,
    GuidanceInterval,
    SparseGuidance,
)
from underdraw.controls.acceleration.tokens import TokenDownsampling

pytestmark = pytest.mark.filterwarnings("ignore")
BOUND = 5e-6
"""Of the largest number; runs of so many calls that leave nothing out differ by 7e-7."""
STEPS, SCALE = 11, 4.0


@pytest.fixture(scope="module")
def pair():
    """Ours, and diffusers' UNet and scheduler of the same numbers."""
    ours = tiny.pipeline(unet={**tiny.DEEP, "layers_per_block": 2})
    with tempfile.TemporaryDirectory() as folder:
        ours.save_pretrained(folder)
        unet = diffusers.UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
        schedule = diffusers.EulerDiscreteScheduler.from_pretrained(folder, subfolder="scheduler")
    return ours, unet, schedule


class Laid:
    """What is laid over a network: in a call that tells, values are kept; in one that takes, they
    stand in the place of what was computed."""

    def __init__(self):
        self.takes, self.kept, self.rows, self.mean = False, {}, 0, False

    def value(self, name, computed):
        if self.takes:
            return self.kept[name][-self.rows :]
        self.kept[name] = computed
        return computed

    def hidden(self, module, channels):
        """The hidden states that enter a residual block, which come before the skip."""

        def before(_, arguments):
            x, *rest = arguments
            return torch.cat([self.value("h", x[:, :channels]), x[:, channels:]], 1), *rest

        return module.register_forward_pre_hook(before)

    def encoder(self, block, number):
        """All that an up block gets from the way down."""

        def before(_, arguments, named):
            skips = named["res_hidden_states_tuple"]
            skips = tuple(self.value((number, i), skip) for i, skip in enumerate(skips))
            named = {**named, "res_hidden_states_tuple": skips}
            if number == 0:
                named["hidden_states"] = self.value("h", named["hidden_states"])
            return arguments, named

        return block.register_forward_pre_hook(before, with_kwargs=True)

    def output(self, module, name):
        """What an attention gives."""
        return module.register_forward_hook(lambda *told: self.value(name, told[-1]))


def run(unet, schedule, laid, takes, guided, predict, latents, context):
    """The loop, written out: `takes(i)` says which calls take, `guided(i)` which have both halves,
    and `predict` makes one of them."""
    schedule.set_timesteps(STEPS)
    x, half = latents * schedule.init_noise_sigma, len(latents)
    for i, t in enumerate(schedule.timesteps):
        both = guided(i)
        laid.rows, laid.takes = half * (2 if both else 1), takes(i)
        scaled = schedule.scale_model_input(x, t)
        inputs = torch.cat([scaled] * 2) if both else scaled
        with torch.no_grad():
            out = unet(inputs, t, context if both else context[half:]).sample
        if laid.mean and both:
            laid.kept = {name: (v[:half] + v[half:]) / 2 for name, v in laid.kept.items()}
        x = schedule.step(predict(i, out, both, half), t, x).prev_sample
    return x


def classifier_free(i, out, both, half):
    return out[:half] + SCALE * (out[half:] - out[:half]) if both else out


class Differences:
    """The difference of the halves, from the last call that had both."""

    def __call__(self, i, out, both, half):
        if both:
            self.kept = out[half:] - out[:half]
        return out[-half:] + (SCALE - 1) * self.kept


class UntilAlike:
    """Each image by itself: guided until the cosine of its two predictions exceeds a bound."""

    def __init__(self, bound):
        self.bound, self.over = bound, None

    def __call__(self, i, out, both, half):
        over = [False] * half if self.over is None else list(self.over)
        guided = classifier_free(i, out, both, half)
        made = [(out[-half:] if over[k] else guided)[k] for k in range(half)]
        if both:
            a, b = out[:half].flatten(1), out[half:].flatten(1)
            alike = torch.nn.functional.cosine_similarity(a, b) > self.bound
            self.over = [o or bool(now) for o, now in zip(over, alike, strict=True)]
        return torch.stack(made)


def never(i):
    return False


def always(i):
    return True


def third(i):
    return i % 3 != 0


def deep(laid, unet):
    return [laid.hidden(unet.up_blocks[2].resnets[2], 16)]


def deeper(laid, unet):
    """The last layer of a block, behind which hidden states are enlarged."""
    return [laid.hidden(unet.up_blocks[1].resnets[2], 32)]


def encoder(laid, unet):
    return [laid.encoder(block, i) for i, block in enumerate(unet.up_blocks)]


def attention(laid, unet):
    laid.mean = True
    named = unet.named_modules()
    return [laid.output(module, name) for name, module in named if name.endswith("attn2")]


def tokens(laid, unet):
    """Keys and values of the 5 x 9 positions of the highest resolution from every second one."""

    def before(_, arguments, named):
        x = arguments[0]
        if x.shape[1] == 45:
            image = x.mT.unflatten(2, (5, 9))
            fewer = torch.nn.functional.interpolate(image, (2, 4), mode="nearest")
            named = {**named, "encoder_hidden_states": fewer.flatten(2).mT}
        return arguments, named

    found = [module for name, module in unet.named_modules() if name.endswith("attn1")]
    return [module.register_forward_pre_hook(before, with_kwargs=True) for module in found]


def nothing(laid, unet):
    return []


def inside(i):
    """Of the noise levels of 11 steps (14.6, 8.3, 5.1, 3.3, ..., 0.83, 0.57, 0.34, 0.03) those in
    (0.5, 5]."""
    return 3 <= i <= 8


WAYS = {
    "deep": ([DeepCache()], deep, third, always, classifier_free),
    "deeper": ([DeepCache(3, branch=3)], deeper, third, always, classifier_free),
    "encoder": (
        [EncoderPropagation(every=4)],
        encoder,
        lambda i: i >= 3 and i % 4 != 0,
        always,
        classifier_free,
    ),
    "att": (
        [AttentionCache()],
        attention,
        lambda i: i >= 5,  # 0.4 of 11 is in the fifth call
        lambda i: i < 5,
        classifier_free,
    ),
    "tokens": ([TokenDownsampling(2, 8)], tokens, never, always, classifier_free),
    "interval": ([GuidanceInterval(0.5, 5.0)], nothing, never, inside, classifier_free),
    "sparse": ([SparseGuidance(3)], nothing, never, lambda i: i % 3 == 0, Differences),
    "deep, sparse": (
        [DeepCache(3), SparseGuidance(3)],
        deep,
        third,
        lambda i: not third(i),
        Differences,
    ),
}


def begun(seed=3):
    """Latents of 5 x 9, and embeddings of 7 tokens in place of texts, for two images."""
    random = torch.Generator().manual_seed(seed)
    text, negative = torch.randn(2, 2, 7, tiny.WIDTH, generator=random) * 3
    return torch.randn(2, 4, 5, 9, generator=random), text, negative


def accelerated(ours, methods, latents, text, negative):
    call = {"height": 40, "width": 72, "num_inference_steps": STEPS, "guidance_scale": SCALE}
    call |= {"prompt_embeds": text, "negative_prompt_embeds": negative, "output_type": "latent"}
    if methods:
        ours.enable_acceleration(*methods)
    try:
        return ours(latents=latents, **call).images
    finally:
        ours.disable_acceleration()


@pytest.mark.parametrize("way", WAYS)
def test_what_is_left_out(pair, way):
    ours, unet, schedule = pair
    methods, lay, takes, guided, predict = WAYS[way]
    latents, text, negative = begun()
    made = accelerated(ours, methods, latents, text, negative)
    exact = accelerated(ours, (), latents, text, negative)
    laid = Laid()
    hooks = lay(laid, unet)
    try:
        predict = predict() if isinstance(predict, type) else predict
        context = torch.cat([negative, text])
        wanted = run(unet, schedule, laid, takes, guided, predict, latents, context)
    finally:
        for hook in hooks:
            hook.remove()
    scale = float(wanted.abs().max())
    assert float((made - wanted).abs().max()) <= BOUND * scale
    assert float((exact - wanted).abs().max()) > 100 * BOUND * scale


def test_guidance_of_each_image_ends_by_itself(pair):
    """One image's predictions are alike sooner; unconditional halves end with the later one."""
    ours, unet, schedule = pair
    latents, text, negative = begun()
    context, seen = torch.cat([negative, text]), []

    def cosines(i, out, both, half):
        a, b = out[:half].flatten(1), out[half:].flatten(1)
        seen.append(torch.nn.functional.cosine_similarity(a, b))
        return classifier_free(i, out, both, half)

    run(unet, schedule, Laid(), never, always, cosines, latents, context)
    first = torch.stack(seen)[0]
    bound = float(first.mean())  # which one of them exceeds
    over, rows = UntilAlike(bound), []

    def guided(i):
        return not (over.over and all(over.over))

    wanted = run(unet, schedule, Laid(), never, guided, over, latents, context)
    hook = ours.unet.conv_in.register_forward_pre_hook(lambda _, x: rows.append(len(x[0])))
    try:
        made = accelerated(ours, (AdaptiveGuidance(bound),), latents, text, negative)
    finally:
        hook.remove()
    assert rows == [4, 4, *[2] * 9]
    assert float((made - wanted).abs().max()) <= BOUND * float(wanted.abs().max())
