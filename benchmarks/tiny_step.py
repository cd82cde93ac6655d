"""A whole pipeline step of a tiny UNet: what Python costs per step, on one thread.

    python benchmarks/tiny_step.py [--json FILE]

Two levels of 32 and 64 channels, 8 x 8 latents, guidance on. `pipe(...)` is called with 20 steps
(with embeddings, latents and the same seed; without progress bar; to latents) and divided by them:
seconds of a step with all that a pipeline does around it. "network alone" is one call of the UNet.
Processor time on one thread, so that what else runs on the machine does not count. Bar for the
pipeline: 0.75 of diffusers'.
"""

from __future__ import annotations

import tempfile
from typing import Any

import diffusers
import torch
from timing import arguments, compare, report

import underdraw
from underdraw.benchmark.peers import share

STEPS = 20
UNET: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (32, 64),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 32,
    "attention_head_dim": 4,
}
VAE: dict[str, Any] = {
    "block_out_channels": (32, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}
TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 600,
    "bos_token_id": 598,
    "eos_token_id": 599,
    "pad_token_id": 599,
}
SCHEDULE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}
SOLVERS: dict[str, dict[str, Any]] = {
    "DDIMScheduler": {"clip_sample": False, "set_alpha_to_one": False},
    "PNDMScheduler": {"skip_prk_steps": True},
    "DPMSolverMultistepScheduler": {},
}


def pipelines(solver: str) -> tuple[Any, Any]:
    """Ours and diffusers' from one folder of random weights."""
    import transformers
    from full_size import vocabulary

    with tempfile.TemporaryDirectory() as folder:
        tokens = underdraw.CLIPTokenizer(*vocabulary(TEXT["vocab_size"]))
        tokens.save_pretrained(folder)
        theirs = transformers.CLIPTokenizer.from_pretrained(folder)
    ours = underdraw.StableDiffusionPipeline(
        vae=underdraw.AutoencoderKL(**VAE).eval(),
        text_encoder=underdraw.CLIPTextModel(**TEXT).eval(),
        tokenizer=tokens,
        unet=underdraw.UNet2DConditionModel(**UNET).eval(),
        scheduler=getattr(underdraw, solver)(**SCHEDULE, **SOLVERS[solver]),
    )
    peer = diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL(**VAE).eval(),
        text_encoder=transformers.CLIPTextModel(transformers.CLIPTextConfig(**TEXT)).eval(),
        tokenizer=theirs,
        unet=diffusers.UNet2DConditionModel(**UNET).eval(),
        scheduler=getattr(diffusers, solver)(**SCHEDULE, **SOLVERS[solver]),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    share(ours.unet, peer.unet)
    for pipe in (ours, peer):
        pipe.set_progress_bar_config(disable=True)
    return ours, peer


@torch.no_grad()
def main(runs: int = 20, solvers: tuple[str, ...] = tuple(SOLVERS)) -> list:
    torch.set_num_threads(1)
    results = []
    context, negative = torch.randn(1, 77, 32), torch.randn(1, 77, 32)
    for solver in solvers:
        ours, peer = pipelines(solver)
        given = {"prompt_embeds": context, "negative_prompt_embeds": negative}
        given |= {"num_inference_steps": STEPS, "output_type": "latent"}
        given |= {"latents": torch.randn(1, 4, 8, 8), "height": 16, "width": 16}

        def call(pipe: Any, given: dict = given) -> Any:
            return pipe(**given).images

        a, b = call(ours), call(peer)
        difference = ((a - b).abs().max() / b.abs().max()).item()
        print(f"{solver}: largest difference {difference:.1e} of the largest value")
        results.append(
            compare(
                f"tiny pipeline step, {solver} (s)",
                lambda pipe=ours: call(pipe),
                lambda pipe=peer: call(pipe),
                runs,
                bar=0.75,
                divide=STEPS,
            )
        )
    x, both = torch.randn(2, 4, 8, 8), torch.cat((negative, context))
    results.append(
        compare(
            "tiny network alone (s)",
            lambda: [ours.unet(x, 500, both) for _ in range(5)],
            lambda: [peer.unet(x, 500, both) for _ in range(5)],
            runs,
            divide=5,
        )
    )
    return results


if __name__ == "__main__":
    report(main(), arguments()[1])
