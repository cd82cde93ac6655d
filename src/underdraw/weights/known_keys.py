"""The written list: names that checkpoints carry and no network here wants, and why.

A checkpoint is matched strictly in both directions. A name that is neither wanted nor listed here
is an error, so each line below is a decision.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Known:
    """Names that match `pattern` (a regular expression, from start to end) may be left over."""

    pattern: str
    why: str


@dataclass(frozen=True)
class Rename:
    """Another spelling of the same name: `pattern` replaced by `by` gives the one wanted here."""

    pattern: str
    by: str
    why: str


@dataclass(frozen=True)
class Rules:
    """What is known about the names of one network's checkpoints."""

    ignored: tuple[Known, ...] = ()
    renames: tuple[Rename, ...] = ()

    def reason(self, name: str) -> str | None:
        """Why `name` may be left over, or None."""
        return reason(self.ignored, name)


def reason(known: tuple[Known, ...], name: str) -> str | None:
    """Why `name` may be left over according to `known`, or None."""
    return next((k.why for k in known if re.fullmatch(k.pattern, name)), None)


POSITION_IDS = Known(
    r"(.*\.)?position_ids", "the numbers 0, 1, 2, ..., a buffer older transformers saved"
)
LOGIT_SCALE = Known(
    r"(.*\.)?logit_scale", "temperature of CLIP's training loss; no encoder reads it"
)
TEXT_TOWER = Known(r"text_model\..*", "the other half of a whole CLIP checkpoint")
VISION_TOWER = Known(r"vision_model\..*", "the other half of a whole CLIP checkpoint")
TEXT_PROJECTION = Known(
    r"text_projection(\.weight)?",
    "from the last token to CLIP's common space; image generation reads all tokens before it",
)
VISUAL_PROJECTION = Known(r"visual_projection\.weight", "the other half of a whole CLIP checkpoint")

SCHEDULE = Known(
    r"(?:[\w.]+\.)?(?:betas|alphas_cumprod(?:_prev|_next)?"
    r"|sqrt_(?:one_minus_|recip_|recipm1_)?alphas_cumprod|log_one_minus_alphas_cumprod"
    r"|posterior_(?:variance|log_variance_clipped|mean_coef[12])|lvlb_weights|logvar|scale_factor"
    r"|(?:log_)?sigmas|sigma_(?:data|min|max)|ddim_\w+)"
    r"|(?:model\.)?model_sampling\..*|denoiser\.\w+",
    "the noise schedule in tables, as samplers keep it; it is computed from its config",
)

FOLDERS: dict[str, Rules] = {
    "unet": Rules(ignored=(SCHEDULE,)),
    "vae": Rules(
        ignored=(
            Known(r"loss\..*", "discriminator and perceptual loss of the autoencoder's training"),
            Known(r"model_ema\..*", "averaged copy of a training run; the plain weights are there"),
        ),
        renames=tuple(
            Rename(rf"(.*\.attentions\.\d+)\.{old}\.(.*)", rf"\1.{new}.\2", "name before 2023")
            for old, new in (
                ("query", "to_q"),
                ("key", "to_k"),
                ("value", "to_v"),
                ("proj_attn", r"to_out.0"),
            )
        ),
    ),
    "text_encoder": Rules(
        ignored=(POSITION_IDS, LOGIT_SCALE, TEXT_PROJECTION, VISION_TOWER, VISUAL_PROJECTION),
        renames=(
            Rename(r"(.*)", r"text_model.\1", "transformers 5 writes no prefix"),
            Rename(r"text_model\.(.*)", r"\1", "transformers before 5 writes a prefix"),
        ),
    ),
    "image_encoder": Rules(
        ignored=(POSITION_IDS, LOGIT_SCALE, TEXT_PROJECTION, TEXT_TOWER, VISUAL_PROJECTION),
        renames=(
            Rename(r"(.*)", r"vision_model.\1", "transformers 5 writes no prefix"),
            Rename(r"vision_model\.(.*)", r"\1", "transformers before 5 writes a prefix"),
        ),
    ),
    "qformer": Rules(ignored=(POSITION_IDS,)),
    "safety_checker": Rules(
        ignored=(POSITION_IDS, LOGIT_SCALE, TEXT_PROJECTION),
        renames=(
            Rename(
                r"vision_model\.(.*)", r"vision_model.vision_model.\1", "transformers 5: one level"
            ),
            Rename(
                r"vision_model\.vision_model\.(.*)", r"vision_model.\1", "published: two levels"
            ),
        ),
    ),
}

# Original one-file checkpoints (CompVis, Stability, merges of them); names as in the file.
SINGLE_FILE: tuple[Known, ...] = (
    SCHEDULE,
    Known(r"model_ema\..*", "averaged copy of the UNet, read instead of it with extract_ema"),
    Known(
        r"(optimizer|optimizer_states|lr_schedulers|callbacks|loops|scaler|amp|opt)\..*",
        "state of the training run",
    ),
    Known(r"first_stage_model\.(loss|model_ema)\..*", "training of the autoencoder"),
    Known(r"loss\..*", "training of the autoencoder"),
    Known(r"cond_stage_model\..*position_ids", POSITION_IDS.why),
    Known(r"cond_stage_model\.(.*\.)?logit_scale", LOGIT_SCALE.why),
    Known(r"cond_stage_model\.(.*\.)?text_projection(\.weight)?", TEXT_PROJECTION.why),
    Known(r"cond_stage_model\.(.*\.)?attn_mask", "the causal mask, a constant"),
    Known(
        r"cond_stage_model\.model\.visual\..*|cond_stage_model\.transformer\.vision_model\..*"
        r"|cond_stage_model\.transformer\.visual_projection\..*",
        "the image half of CLIP",
    ),
    Known(r"depth_model\..*", "the MiDaS network that makes the depth input, a model of its own"),
    Known(r"embedding_manager\..*", "an empty textual-inversion slot of old training code"),
    Known(
        r"(cond_stage_model|first_stage_model|model|model\.diffusion_model)\.(_)?extra_state|"
        r"v_pred|ztsnr|edm_mean|edm_std",
        "flags without numbers; `v_pred` and `ztsnr` are read as the prediction type",
    ),
    Known(r"global_step|epoch|(.*\.)?num_batches_tracked|model\.num_updates", "a counter"),
)

# Beside a grounding part: what GLIGEN's files hold that is not wanted of them.
GROUNDING_FILE: tuple[Known, ...] = (
    Known(
        r"(down_blocks|mid_block|up_blocks|time_embedding|conv_in|conv_norm_out|conv_out)\..*",
        "the UNet which the grounding part was trained beside",
    ),
    Known(r"(autoencoder|text_encoder)\..*", "the frozen networks of the training run"),
    Known(r"diffusion\..*", SCHEDULE.why),
    Known(r"(ema|model_ema)\..*", "averaged copy of a training run; the plain weights are there"),
    Known(r"(opt|scheduler|config_dict)(\..*)?|iters|step", "state of the training run"),
    Known(
        r"(first_stage_model|cond_stage_model|model_ema)\..*", "the rest of a one-file checkpoint"
    ),
    *SINGLE_FILE,
)

# Of BLIP-Diffusion's original files; names without the prefix `blip.`.
SUBJECT_FILE: tuple[Known, ...] = (
    POSITION_IDS,
    Known(r"Qformer\.cls\..*", "the head with which BLIP-2 learned to write"),
    Known(r"(vision_proj|text_proj|itm_head)\..*|temp", "heads of BLIP-2's training"),
    Known(r"visual_encoder\.(ln_post\..*|proj)", "CLIP's way into the space shared with texts"),
    Known(r"ctx_embeddings_cache", "the embedding of one subject, of a fine-tuned model"),
    Known(r"(unet|vae|text_encoder|controlnet)\..*", "the other networks of the whole model"),
)

# Beside an IP-Adapter in the checkpoints of the original's training.
IP_ADAPTER_FILE: tuple[Known, ...] = (Known(r"unet\..*", "the frozen UNet of the training run"),)
