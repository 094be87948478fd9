"""What the miniature's parts are trained on: losses, and the times at which its diffusion learns.

The diffusion itself needs no loss of its own: the assistant's denoising score matching, on pictures instead of on
generated samples, is a diffusion's training (`method.assistant`).
"""

from typing import Any

import torch
from torch import Tensor, nn

from dipp_core.method.algorithm import Settings, preset
from dipp_core.method.schedule import NoiseSchedule, TimeSampler, normalised, sigma_power_weight, uniform_index_time
from dipp_core.models.latent import LatentDiffusion


def vae_loss(vae: nn.Module, images: Tensor, *, kl_weight: float = 1e-4, generator: torch.Generator) -> Tensor:
    """Mean absolute and squared error of the round trip, and kl_weight KL(q(latent | picture) | N(0, I)) per pixel."""
    pixels = 2 * images - 1
    posterior = vae.encode(pixels).latent_dist
    error = vae.decode(posterior.sample(generator)).sample - pixels
    return error.abs().mean() + error.square().mean() + kl_weight * posterior.kl().mean() / pixels[0].numel()


@torch.no_grad()
def fit_scaling(vae: nn.Module, images: Tensor) -> float:
    """Set the VAE's scaling factor so that the latents of these pictures have unit variance; returns the factor."""
    factor = 1 / vae.encode(2 * images - 1).latent_dist.mean.std().item()
    vae.register_to_config(scaling_factor=factor)
    return factor


def contrastive_loss(text: Tensor, images: Tensor, same: Tensor, temperature: float = 0.1) -> Tensor:
    """CLIP's loss on features (B, d) of texts and pictures; same (B, B) bool: which texts fit which pictures.

    Several pictures of a batch may fit one caption: the target is spread evenly over all that do.
    """
    logits = nn.functional.normalize(text, dim=-1) @ nn.functional.normalize(images, dim=-1).T / temperature
    target = same.to(logits)
    to_images = nn.functional.cross_entropy(logits, target / target.sum(-1, keepdim=True))
    to_texts = nn.functional.cross_entropy(logits.T, target.T / target.T.sum(-1, keepdim=True))
    return (to_images + to_texts) / 2


def late_index_time(schedule: NoiseSchedule) -> TimeSampler:
    """Integer timesteps of density proportional to t: backgrounds are decided in much noise and are learned last."""
    return TimeSampler("late_index", lambda u: schedule.time_of_index((schedule.steps * u.sqrt()).floor()))


def settings_for(world: LatentDiffusion, name: str, batch: int, **numbers: Any) -> Settings:
    """A member of the family (`algorithm.PRESETS`) in the miniature: w = sigma^2 on scores, normalised to E[w] = 1.

    Times are the whole timesteps from 20 to 979: below, details finer than the autoencoder's; above, nothing but noise.
    """
    law = uniform_index_time(world.schedule, 20, 980)
    weight = sigma_power_weight(world.schedule)
    shapes = {"batch_shape": (batch,), "z_shape": world.z_shape}
    return preset(
        name, time_sampler=law, weight=normalised(weight, law), ta_weight=weight, max_grad_norm=5.0, **shapes, **numbers
    )
