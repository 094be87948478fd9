"""A tiny SDXL with random weights: the format and the classes of the large one, in a second and 2 MB.

Stable Diffusion XL differs from the others in what its denoiser is told. Two text encoders read a prompt, each with its
own tokenizer; their last hidden states but one lie side by side as the tokens, (B, L, d1 + d2). The second one also
gives one vector for the whole prompt, "pooled", (B, d'). And six numbers say how large the picture was, where it was
cropped and how large it is. `folders` loads such folders as it loads all others, `Denoiser` passes it all on.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

from torch import nn

from dipp_core.models import folders, miniature
from dipp_core.models.miniature import seeded

WIDTHS = (16, 24)  # of the two text encoders
POOLED = 20
TIME_WIDTH = 8


def new_denoiser(*, seed: int) -> nn.Module:
    """A UNet2DConditionModel of 8 x 8 latents with SDXL's added conditions, and its linear projections."""
    from diffusers import UNet2DConditionModel

    return seeded(
        UNet2DConditionModel,
        seed,
        sample_size=8,
        block_out_channels=(16, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        transformer_layers_per_block=(1, 2),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        cross_attention_dim=sum(WIDTHS),
        norm_num_groups=8,
        addition_embed_type="text_time",
        addition_time_embed_dim=TIME_WIDTH,
        projection_class_embeddings_input_dim=POOLED + 6 * TIME_WIDTH,
    )


def new_texts(words: Sequence[str], *, seed: int) -> dict[str, Any]:
    """Both tokenizers and encoders by the names of their folders; the second pads with "!", as SDXL's does."""
    from transformers import CLIPTextModelWithProjection

    tokenizer, second = (miniature.clip_tokenizer(words) for _ in WIDTHS)
    first = miniature.clip_encoder(tokenizer, width=WIDTHS[0], layers=2, seed=seed)
    config = miniature.clip_encoder(second, width=WIDTHS[1], layers=2, seed=seed).config
    config.projection_dim = POOLED
    second.pad_token = "!"
    projecting = seeded(CLIPTextModelWithProjection, seed + 1, config).eval()
    return {"tokenizer": tokenizer, "text_encoder": first, "tokenizer_2": second, "text_encoder_2": projecting}


def build(folder: pathlib.Path | str, *, words: Sequence[str], zero_null: bool = True, seed: int = 0) -> pathlib.Path:
    """A whole folder; returns its path. zero_null: the empty prompt is zeros, as in SDXL as published."""
    return folders.write(
        folder,
        denoiser=new_denoiser(seed=seed),
        vae=miniature.new_vae("tiny", seed=seed + 1),
        scheduler=miniature.new_scheduler(),
        force_zeros_for_empty_prompt=zero_null,
        **new_texts(words, seed=seed + 2),
    )
