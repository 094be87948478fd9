"""The parts of the miniature, untrained: a small text-to-image diffusion in the format and classes of the large ones.

`build` writes them as an ordinary diffusers folder: Stable Diffusion's pipeline around a UNet, PixArt-alpha's around a
transformer. So what trains, loads and samples the miniature is what trains, loads and samples SD1.5 and PixArt-alpha.
The tokenizer is made from the words of the captions; nothing is fetched.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

from torch import nn

from dipp_core.models import latent_files, miniature_text
from dipp_core.models.miniature_text import seeded

KINDS = ("unet", "dit")
SIZES = {
    "mini": {"vae": (16, 32, 32), "unet": (48, 96), "heads": 4, "head": 24, "layers": 4, "text": 64, "text_layers": 2},
    "tiny": {"vae": (8, 8, 8), "unet": (16, 16), "heads": 2, "head": 12, "layers": 1, "text": 16, "text_layers": 1},
}
# Stable Diffusion's noise; steps spread so that the first is the noisiest one and the last ends at the data
SCHEDULER = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "steps_offset": 1,
    "timestep_spacing": "trailing",
}


# ------------------------------------------------------------------------------------------------------------- parts


def new_vae(size: str = "mini", *, seed: int) -> nn.Module:
    """An AutoencoderKL that takes 32 x 32 pictures to 8 x 8 latents of 4 channels."""
    from diffusers import AutoencoderKL

    widths = SIZES[size]["vae"]
    return seeded(
        AutoencoderKL,
        seed,
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=32,
        scaling_factor=1.0,
    )


def new_text(words: Sequence[str], size: str = "mini", *, encoder: str = "clip", seed: int) -> tuple[Any, nn.Module]:
    """A tokenizer of these words and an encoder for it: "clip", or "t5" as PixArt-alpha has it."""
    if encoder not in ("clip", "t5"):
        raise ValueError(f"unknown text encoder {encoder!r}: clip or t5")
    tokenizer = getattr(miniature_text, f"{encoder}_tokenizer")(words)
    shape = {"width": SIZES[size]["text"], "layers": SIZES[size]["text_layers"], "seed": seed}
    return tokenizer, getattr(miniature_text, f"{encoder}_encoder")(tokenizer, **shape)


def new_denoiser(kind: str, size: str = "mini", *, seed: int) -> nn.Module:
    """The denoiser of 8 x 8 latents: a UNet2DConditionModel ("unet") or a PixArtTransformer2DModel ("dit").

    The transformer has PixArt's eight output channels, four of noise and four of a variance that is not used.
    """
    from diffusers import PixArtTransformer2DModel, UNet2DConditionModel

    numbers = SIZES[size]
    text_width = numbers["text"]
    if kind == "unet":
        return seeded(
            UNet2DConditionModel,
            seed,
            sample_size=8,
            block_out_channels=numbers["unet"],
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            attention_head_dim=numbers["heads"],
            cross_attention_dim=text_width,
            norm_num_groups=8,
        )
    if kind == "dit":
        return seeded(
            PixArtTransformer2DModel,
            seed,
            sample_size=8,
            patch_size=1,
            num_attention_heads=numbers["heads"],
            attention_head_dim=numbers["head"],
            cross_attention_dim=numbers["heads"] * numbers["head"],
            num_layers=numbers["layers"],
            in_channels=4,
            out_channels=8,
            caption_channels=text_width,
        )
    raise ValueError(f"unknown kind {kind!r}: one of {', '.join(KINDS)}")


def new_scheduler() -> Any:
    """The noise of the miniature, as the scheduler that an ordinary pipeline samples it with."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(**SCHEDULER)


# ----------------------------------------------------------------------------------------------------------- folders


def build(
    folder: pathlib.Path | str,
    kind: str,
    *,
    words: Sequence[str],
    size: str = "mini",
    encoder: str = "clip",
    seed: int = 0,
) -> pathlib.Path:
    """A whole folder with random weights; returns its path. `kind` is "unet" or "dit"."""
    tokenizer, text_encoder = new_text(words, size, encoder=encoder, seed=seed + 2)
    return latent_files.write(
        folder,
        denoiser=new_denoiser(kind, size, seed=seed),
        vae=new_vae(size, seed=seed + 1),
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        scheduler=new_scheduler(),
    )
