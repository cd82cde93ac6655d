"""Configs as diffusers and transformers write them, whole and with every key, are all accepted."""

import copy
import inspect
import json

import diffusers
import numpy as np
import pytest
import torch
import transformers
from networks.configs import CLIP_L, CLIP_L_VISION, PUBLISHED_UNETS, SD_VAE

from underdraw import models, schedulers
from underdraw.networks.config import read

NAMES = [name for name in schedulers.__all__ if hasattr(getattr(schedulers, name), "Config")]


def in_other_numbers(value, kind):
    """The numbers and lists of a config as another library has them."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, int | float):
        if kind == "whole floats":
            return float(value)
        return np.array(value)[()] if kind == "numpy" else torch.tensor(value, dtype=torch.float64)
    if isinstance(value, list | tuple):
        numbers = value and all(isinstance(v, int | float) for v in value)
        if numbers and kind != "whole floats" and not isinstance(value[0], bool):
            return np.array(value) if kind == "numpy" else torch.tensor(value)
        return [in_other_numbers(v, kind) for v in value]
    return value


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of numpy, in diffusers
@pytest.mark.parametrize("name", NAMES)
def test_schedulers_with_all_their_defaults(name, tmp_path):
    theirs = getattr(diffusers, name)()
    ours = getattr(schedulers, name)
    config = {**theirs.config}
    config.pop("_use_default_values", None)  # so that every value is read
    made = ours.from_config(config)
    for field, value in config.items():
        if field in made.config and not field.startswith("_"):
            assert made.config[field] == value, field
    theirs.save_pretrained(tmp_path)
    again = ours.from_pretrained(tmp_path)
    assert again.config["num_train_timesteps"] == theirs.config["num_train_timesteps"]
    for kind in ("whole floats", "numpy", "torch"):
        other = {key: in_other_numbers(value, kind) for key, value in config.items()}
        assert ours.from_config(other).settings == made.settings


def test_betas_of_any_kind():
    betas = np.linspace(0.01, 0.1, 20, dtype=np.float32)
    for given in (betas, betas.tolist(), tuple(betas), torch.from_numpy(betas)):
        made = schedulers.DDIMScheduler(num_train_timesteps=20, trained_betas=given)
        theirs = diffusers.DDIMScheduler(num_train_timesteps=20, trained_betas=betas)
        assert torch.equal(made.alphas_cumprod, theirs.alphas_cumprod)


def written(cls):
    """What diffusers writes for a class, at its defaults."""
    arguments = list(inspect.signature(cls.__init__).parameters.values())[1:]
    return {
        "_class_name": cls.__name__,
        "_diffusers_version": diffusers.__version__,
        **{each.name: each.default for each in arguments},
    }


def configs():
    """Class of ours -> published configs with every key that their classes write."""
    unet, vae = written(diffusers.UNet2DConditionModel), written(diffusers.AutoencoderKL)
    unets = [unet, *({**unet, **fields} for fields in PUBLISHED_UNETS.values())]
    unets += [{**unet, "upcast_attention": None, "transformer_layers_per_block": [0, 1, 2, 4]}]
    vaes = [vae, {**vae, **SD_VAE}, {**vae, **SD_VAE, "latents_mean": [0.0] * 4}]
    text = transformers.CLIPTextConfig
    vision = transformers.CLIPVisionConfig
    whole = transformers.CLIPConfig(text_config=CLIP_L, vision_config=CLIP_L_VISION).to_dict()
    texts = [text().to_dict(), text(**CLIP_L).to_dict(), text(pad_token_id=None).to_dict(), whole]
    pictures = [vision().to_dict(), vision(**CLIP_L_VISION).to_dict(), whole]
    return {
        models.UNet2DConditionModel: unets,
        models.AutoencoderKL: vaes,
        models.CLIPTextModel: texts,
        models.CLIPVisionModelWithProjection: pictures,
        models.StableDiffusionSafetyChecker: pictures,
        models.CLIPImageProjection: [{"hidden_size": 768, "_diffusers_version": "0.21.0"}],
    }


def test_networks_with_all_their_keys():
    for cls, every in configs().items():
        for raw in every:
            plain = cls.read_config(json.loads(json.dumps(raw, default=str)))
            assert plain == cls.read_config(raw)
            for kind in ("whole floats", "numpy", "torch"):
                inner = cls.adapt_config(copy.deepcopy(raw))
                other = {key: in_other_numbers(value, kind) for key, value in inner.items()}
                assert read(cls.config_class, other) == plain


def test_image_processors():
    theirs = transformers.models.clip.image_processing_pil_clip.CLIPImageProcessorPil()
    ours = models.CLIPImageProcessor.from_config(theirs.to_dict())
    assert ours == models.CLIPImageProcessor()
