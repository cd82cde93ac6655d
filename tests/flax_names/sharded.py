"""What `test_flax_devices` runs in a process of its own, on eight devices: prints how far pictures
of sharded calls are from those of one device.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python tests/flax_names/sharded.py
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import numpy as np
from flax_names.recorded import all_params, pipeline, record, recorded
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from pipelines import tiny

from underdraw import StableDiffusionPipeline, flax
from underdraw.errors import InputError


def far(one, other):
    return float(np.abs(one - other).max())


def main():
    pipe, params, told = pipeline(), all_params(), recorded()
    found = {"devices": len(jax.devices())}
    # Two of them, as the original's `pmap`; stacked on the host, where no shape needs a program.
    two = jax.tree_util.tree_map(lambda x: np.stack([x, x]), params)
    given = {
        "num_inference_steps": record.STEPS,
        "height": record.SIDES[0],
        "width": record.SIDES[1],
        "guidance_scale": record.GUIDANCE,
    }
    ids, against = (pipe.prepare_inputs(texts[:2]) for texts in (record.THREE, record.AGAINST))
    sharded = pipe(
        ids[:, None], two, told["keys"], neg_prompt_ids=against[:, None], jit=True, **given
    ).images
    found["original"] = far(sharded, told["sharded"])
    found["shape"] = sharded.shape
    # A mesh: images over one axis, heads over the other. Nothing but places differs.
    mesh = Mesh(np.array(jax.devices()[:6]).reshape(3, 2), ("data", "model"))
    placed = flax.spread({n: p for n, p in params.items() if n != "scheduler"}, mesh)
    query = placed["unet"]["mid_block"]["attentions_0"]["transformer_blocks_0"]["attn1"]["to_q"]
    found["divided"] = query["kernel"].addressable_shards[0].data.shape
    by_image = NamedSharding(mesh, PartitionSpec("data"))
    latents = jax.device_put(record.latents(), by_image)
    given["guidance_scale"] = record.CALLS["ddim_latents"]["guidance"]
    three, key = pipe.prepare_inputs(record.THREE), jax.random.PRNGKey(0)
    against = pipe.prepare_inputs(record.AGAINST)
    made = pipe(three, placed, key, latents=latents, neg_prompt_ids=against, **given).images
    found["mesh"] = far(made, told["ddim_latents"])
    found["shards"] = flax.shard(np.zeros((16, 3))).shape
    same = flax.unreplicate(flax.replicate({"a": np.arange(3)}))
    found["unreplicated"] = np.asarray(same["a"]).tolist()
    try:
        flax.shard(np.zeros((9, 2)))
    except InputError as error:
        found["refused"] = str(error)
    found |= ordinary()
    print(json.dumps(found))


def ordinary():
    """An ordinary pipeline over a mesh: images divided, numbers those of PyTorch."""
    parts, where = tiny.components(unet=tiny.ONE_LEVEL), []
    call = {"height": 40, "width": 72, "num_inference_steps": 3, "seed": 3}

    def look(pipe, step, timestep, tensors):
        where.append(str(getattr(tensors["latents"].sharding, "spec", "")))
        return {}

    random = np.random.default_rng(0)
    texts = random.standard_normal((2, 4, 7, tiny.WIDTH), np.float32)
    made = []
    for backend in ("torch", "jax"):
        pipe = StableDiffusionPipeline(**tiny.on(backend, parts))
        pipe.set_progress_bar_config(disable=True)
        given = dict(call)
        if backend == "jax":
            pipe.engine = "jit"
            pipe.to(Mesh(np.array(jax.devices()[:4]), ("data",)))
            given["callback_on_step_end"] = look
        context, negative = map(pipe.parts.framework.array, texts)
        given |= {"prompt_embeds": context, "negative_prompt_embeds": negative}
        made.append(np.asarray(pipe(**given, output_type="latent").images))
    compiled = [whole._compiled._cache_size() for whole in pipe.engine._programs.values()]
    apart = far(*made) / float(np.abs(made[0]).max())
    return {"ordinary": apart, "rows": sorted(set(where)), "compiled": compiled}


main()
