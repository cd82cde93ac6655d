"""What a LoRA costs at the size of Stable Diffusion 1.5: a step with it, and loading it.

    python benchmarks/lora_step.py [--quick] [--json FILE]

Random weights in float32, one copy in memory; rank 16 on every linear layer of the transformers, as
kohya's trainer makes them (sd-scripts' modules, without the text encoder). `pipe(...)` is called
with embeddings, guidance on, to latents.

- a step with a LoRA merged (`fuse_lora`), and with an active one, against our own plain step. Bars
  1.05 and 1.15; an active one of diffusers (with `peft`) stands beside, against its own plain step.
- two images with two mixes in one call (`controls=[Lora(name, [...])]`), against two plain ones.
  Bar 1.15; diffusers has no such thing.
- loading a file into the pipeline and taking it out again, against diffusers. Bar 0.5.

The largest difference between the latents of both is printed before the figures.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import save_file
from timing import arguments, compare, report
from tiny_step import SCHEDULE, VAE

import underdraw
from underdraw import Lora
from underdraw.benchmark.peers import share
from underdraw.benchmark.random_weights import SD15_UNET, random_network

RANK = 16
NAME = "clay"


def pipelines(config: dict[str, Any]) -> tuple[Any, Any]:
    """Ours and diffusers' on the same UNet; embeddings are given, so nothing reads texts."""
    rest = {"text_encoder": None, "tokenizer": None, "safety_checker": None}
    unet = random_network(underdraw.UNet2DConditionModel, config)
    with torch.device("meta"):
        peer_unet = diffusers.UNet2DConditionModel(**config)
    share(unet, peer_unet)
    ours = underdraw.StableDiffusionPipeline(
        unet=unet,
        vae=underdraw.AutoencoderKL(**VAE).eval(),
        scheduler=underdraw.DDIMScheduler(**SCHEDULE),
        **rest,
    )
    peer = diffusers.StableDiffusionPipeline(
        unet=peer_unet.eval(),
        vae=diffusers.AutoencoderKL(**VAE).eval(),
        scheduler=diffusers.DDIMScheduler(**SCHEDULE),
        feature_extractor=None,
        requires_safety_checker=False,
        **rest,
    )
    for pipe in (ours, peer):
        pipe.set_progress_bar_config(disable=True)
    return ours, peer


def lora(unet: Any) -> dict[str, torch.Tensor]:
    """Random differences to every linear layer of the transformers, under PEFT's names."""
    made = {}
    for path, leaf in type(unet).layout(unet.config).leaves.items():
        if leaf.kind != "linear" or "transformer_blocks" not in path:
            continue
        out, width = leaf.shape
        made[f"unet.{path}.lora_A.weight"] = torch.randn(RANK, width) * 0.02
        made[f"unet.{path}.lora_B.weight"] = torch.randn(out, RANK) * 0.02
    return made


@torch.no_grad()
def main(
    sizes: tuple[int, ...] = (32, 64),
    runs: int = 5,
    steps: int = 2,
    config: dict[str, Any] | None = None,
) -> list:
    """`sizes` are those of the latents."""
    results = []
    ours, peer = pipelines(config or SD15_UNET)
    width, factor = ours.unet.config.cross_attention_dim, ours.vae.config.factor
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{NAME}.safetensors"
        save_file(lora(ours.unet), file)
        results.append(
            compare(
                f"loading a LoRA of rank {RANK}",
                partial(loaded_and_gone, ours, file),
                partial(loaded_and_gone, peer, file),
                runs,
                bar=0.5,
            )
        )
        for pipe in (ours, peer):
            pipe.load_lora_weights(file, adapter_name=NAME)
    for size in sizes:

        def given(images: int, size: int = size) -> dict[str, Any]:
            context = torch.randn(images, 77, width, generator=torch.manual_seed(0))
            return {
                "prompt_embeds": context,
                "negative_prompt_embeds": torch.zeros_like(context),
                "latents": torch.randn(images, 4, size, size, generator=torch.manual_seed(1)),
                "num_inference_steps": steps,
                "output_type": "latent",
                "height": factor * size,
                "width": factor * size,
            }

        one, two, where = given(1), given(2), f"{8 * size} px"
        a, b = ours(**one).images, peer(**one).images
        difference = ((a - b).abs().max() / b.abs().max()).item()
        print(f"{where}: largest difference {difference:.1e} of the largest value")
        fused = underdraw.StableDiffusionPipeline.from_pipe(ours)
        fused.set_progress_bar_config(disable=True)
        fused.fuse_lora()
        mixes = [Lora(NAME, [0.7, -0.2])]
        for name, act, plain, bar in (
            ("a LoRA merged", partial(fused, **one), partial(without, ours, one), 1.05),
            ("a LoRA active", partial(ours, **one), partial(without, ours, one), 1.15),
            (
                "two images, two mixes",
                partial(without, ours, {**two, "controls": mixes}),
                partial(without, ours, two),
                1.15,
            ),
            ("diffusers, a LoRA active", partial(peer, **one), partial(without, peer, one), None),
        ):
            label = f"{name}, by a plain step, {where}"
            results.append(compare(label, act, plain, runs, bar=bar, divide=steps))
        del fused
    return results


def loaded_and_gone(pipe: Any, file: Path) -> None:
    pipe.load_lora_weights(file, adapter_name=NAME)
    pipe.unload_lora_weights()


def without(pipe: Any, given: dict[str, Any]) -> Any:
    """A call in which no LoRA is active by itself."""
    pipe.disable_lora()
    made = pipe(**given)
    pipe.enable_lora()
    return made


if __name__ == "__main__":
    flags, path = arguments("--quick")
    report(main(sizes=(32,) if flags else (32, 64)), path)
