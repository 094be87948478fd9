"""Switches that save memory and leave every number as it is, but for the tiny decoder, which is another network."""

import pathlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dipp_core.method.scores import Cond, map_cond
from dipp_core.models.latent import Denoiser, LatentDiffusion
from dipp_core.models.latent_files import ModelError, check_weights, read_json


def recompute_denoiser(denoiser: Denoiser) -> Denoiser:
    """Gradient checkpointing of a whole denoiser and of the copies made of it; of adapters: `SharedBase.recompute`."""
    denoiser.network.enable_gradient_checkpointing(_checkpointed)
    return denoiser


def _checkpointed(block: nn.Module, *args: Any) -> Any:
    return checkpoint(block, *args, use_reentrant=False, preserve_rng_state=False)


def recompute_vae(vae: nn.Module) -> nn.Module:
    """Decode picture by picture and keep what enters the decoder's blocks alone; of the rest, one block at a time.

    For a 512 x 512 picture in float32, 5.7 GiB become 0.8 for every picture and 2.3 for the one in work.
    """
    vae.enable_slicing()
    vae.enable_gradient_checkpointing(_checkpointed)
    return vae


class InChunks(nn.Module):
    """A call on a batch, made on `rows` rows at a time; its parameters are those of what is called.

    Of every chunk only what goes in is kept; the backward pass computes it again, one chunk after another. So memory is
    that of one chunk, and the gradient that of the whole batch, since rows do not look at each other. It costs one
    forward pass more of what is called, of those passes that have a gradient.
    """

    def __init__(self, call: Callable[..., Tensor], rows: int):
        super().__init__()
        self.call, self.rows = call, rows

    def forward(self, first: Tensor, *others: Cond) -> Tensor:
        if len(first) <= self.rows:
            return self.call(first, *others)
        call = partial(checkpoint, self.call, use_reentrant=False, preserve_rng_state=False)
        call = call if torch.is_grad_enabled() else self.call
        starts = range(0, len(first), self.rows)
        chunks = [map_cond(lambda leaf, i=i: leaf[i : i + self.rows], (first, *others)) for i in starts]
        return torch.cat([call(*chunk) for chunk in chunks])


def in_chunks(call: Callable[..., Tensor] | None, rows: int) -> Callable[..., Tensor] | None:
    """A generator, a score's network or a reward, (tensor, ..) -> tensor, in chunks of rows; 0: as it is.

    All arguments and the result have the batch as their first axis.
    """
    return InChunks(call, rows) if rows and call is not None else call


def tiny_decoder(folder: pathlib.Path | str, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> nn.Module:
    """An AutoencoderTiny (TAESD and its kin) from a folder: a small stand-in for the decoder, for rewards alone."""
    from diffusers import AutoencoderTiny

    folder = pathlib.Path(folder)
    named = read_json(folder / "config.json", "it describes the tiny decoder").get("_class_name")
    if named != "AutoencoderTiny":
        raise ModelError(f"{folder} holds a {named}, not an AutoencoderTiny; `{TINY_COMMAND}` fetches one")
    check_weights(folder)
    try:
        network = AutoencoderTiny.from_pretrained(
            folder, torch_dtype=dtype, local_files_only=True, use_safetensors=True
        )
    except Exception as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ModelError(f"{folder} does not fit AutoencoderTiny: {why}; fetch it again") from None
    return network.to(device).eval().requires_grad_(False)


# the tiny decoder of the latents of SD1.5 and PixArt-alpha, 10 MB, MIT licence
TINY_ID, TINY_REVISION = "madebyollin/taesd", "614f76814bbe30edbe2e627ace1c2234c81a2c0e"
TINY_COMMAND = (
    f'huggingface-cli download {TINY_ID} --revision {TINY_REVISION} --include "*.json" "*.safetensors" '
    "--local-dir models/taesd"
)


def seen_through(world: LatentDiffusion, decoder: nn.Module) -> LatentDiffusion:
    """The same diffusion with another decoder, for `world.reward`; pictures to be shown keep the true one."""
    return replace(world, vae=decoder)
