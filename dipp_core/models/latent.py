"""Text-to-image diffusion in a latent space, in the roles of the method: SD1.5, SDXL, PixArt-alpha and the miniature.

A model is a folder in diffusers format (`folders.load`). Here its parts get one convention: the denoiser is a
network (xt, t, cond) -> prediction for `score_model` and `OneStepGenerator`, latents are scaled as in training,
pictures are in [0, 1], prompts are rows of a table (`prompts.Prompts`).
"""

import contextlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dipp_core.method.algorithm import Reward
from dipp_core.method.generator import OneStepGenerator, trainable_copy
from dipp_core.method.schedule import NoiseSchedule, convert_prediction, ddim_step
from dipp_core.method.scores import Cond, ScoreModel, guided_score, score_model
from dipp_core.models.prompts import Prompts, TextEncoder, encode_prompts


class Denoiser(nn.Module):
    """A diffusers denoiser as a network (xt, t, cond) -> prediction; xt (B, C, H, W), t (B,), cond as in `Prompts`.

    Times become integer timesteps. A UNet sees all tokens; SDXL's also sees a vector for the whole prompt, "pooled",
    and the sizes of the picture. A PixArt transformer sees the tokens that the mask leaves, and, where it was trained
    with them, resolution and aspect ratio; of its twice as many output channels the second half is a learned variance,
    which no score needs.

    latent_scale: pixels per latent pixel, in each direction. autocast: compute in bfloat16, whatever weights are in.
    """

    network: Any
    autocast = False

    def __init__(self, network: Any, schedule: NoiseSchedule, *, latent_scale: int):
        super().__init__()
        self.network, self.schedule, self.latent_scale = network, schedule, latent_scale
        self.channels = network.config.in_channels
        self.is_transformer = "Transformer" in type(network).__name__
        self.is_sdxl = getattr(network.config, "addition_embed_type", None) == "text_time"

    def picture_size(self, xt: Tensor) -> dict[str, Tensor | None]:
        """PixArt's added conditions: height and width in pixels, (B, 2), and their ratio, (B, 1)."""
        if not self.network.use_additional_conditions:
            return {"resolution": None, "aspect_ratio": None}
        height, width = (self.latent_scale * n for n in xt.shape[-2:])
        size, ratio = xt.new_tensor([height, width]), xt.new_tensor([height / width])
        return {"resolution": size.expand(len(xt), 2), "aspect_ratio": ratio.expand(len(xt), 1)}

    def time_ids(self, xt: Tensor) -> Tensor:
        """SDXL's added conditions, (B, 6): original size, crop and target size, for a whole picture of the size of xt.

        In float32: sizes in pixels have more digits than bfloat16.
        """
        height, width = (self.latent_scale * n for n in xt.shape[-2:])
        sizes = torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32, device=xt.device)
        return sizes.expand(len(xt), 6)

    def forward(self, xt: Tensor, t: Tensor, cond: Cond) -> Tensor:
        dtype = next(self.network.parameters()).dtype
        x, index = xt.to(dtype), self.schedule.index_of_time(t).expand(len(xt))
        inputs = {"timestep": index, "encoder_hidden_states": cond["tokens"].to(dtype), "return_dict": False}
        if self.is_transformer:
            inputs |= {"encoder_attention_mask": cond["mask"], "added_cond_kwargs": self.picture_size(x)}
        if self.is_sdxl:
            inputs["added_cond_kwargs"] = {"text_embeds": cond["pooled"].to(dtype), "time_ids": self.time_ids(x)}
        fast = torch.autocast(x.device.type, torch.bfloat16) if self.autocast else contextlib.nullcontext()
        with fast:
            return self.network(x, **inputs)[0][:, : self.channels].to(xt.dtype)


@dataclass
class LatentDiffusion:
    """A text-to-image diffusion: the reference of the method, with what turns prompts and pictures into its terms.

    denoiser: frozen; its `trainable_copy` starts assistant and generator. prediction_type: what it predicts.
    vae, text: None where they were not loaded. noise: the settings that a diffusers scheduler of this noise takes.
    """

    denoiser: Denoiser
    prediction_type: str
    vae: Any = None
    text: TextEncoder | None = None
    noise: dict[str, Any] = field(default_factory=dict)
    source: str = "memory"

    @property
    def schedule(self) -> NoiseSchedule:
        return self.denoiser.schedule

    @property
    def steps(self) -> int:
        """Number of timesteps of the noise."""
        return self.schedule.steps or 0

    @property
    def z_shape(self) -> tuple[int, int, int]:
        """Shape of one latent at the size the model was made for."""
        size = self.denoiser.network.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return (self.denoiser.channels, height, width)

    def score(self, network: nn.Module | None = None) -> ScoreModel:
        """The score model of the reference, or of a trained copy of its denoiser."""
        return score_model(network or self.denoiser, self.schedule, self.prediction_type)

    def generator(self, t_star: int, network: nn.Module | None = None) -> OneStepGenerator:
        """A one-step generator that starts as a copy of the reference, asked at timestep t_star (0 .. steps - 1)."""
        if not 0 <= t_star < self.steps:
            raise ValueError(f"t_star is a timestep from 0 to {self.steps - 1}, not {t_star}")
        return OneStepGenerator(
            trainable_copy(network or self.denoiser),
            self.schedule,
            t_star=float(self.schedule.time_of_index(t_star)),
            prediction_type=self.prediction_type,
        )

    def reward(self, judge: Callable[[Tensor, Sequence[str]], Tensor], prompts: Prompts) -> Reward:
        """A reward on latents, as `align` wants it, from one on pictures and texts."""
        return lambda x0, cond: judge(self.decode(x0), prompts.texts_of(cond))

    @torch.no_grad()
    def sample(
        self,
        z: Tensor,
        cond: Cond,
        *,
        steps: int,
        alpha_cfg: float = 0.0,
        null_cond: Cond = None,
        network: nn.Module | None = None,
    ) -> Tensor:
        """Latents by deterministic DDIM in `steps` even steps, from z ~ N(0, I) at the last timestep to the data.

        Of the reference, or of a trained copy of its denoiser.
        """
        score, schedule = self.score(network), self.schedule
        times = schedule.time_of_index(torch.linspace(self.steps, 0, steps + 1).round().long() - 1).to(z.device)
        for here, there in itertools.pairwise(times):
            t, t_next = here.expand(len(z)), there.expand(len(z))
            value = guided_score(score, z, t, cond, null_cond, alpha_cfg)
            eps = convert_prediction(value, xt=z, t=t, schedule=schedule, source="score", target="eps")
            z = ddim_step(eps, xt=z, t=t, t_next=t_next, schedule=schedule)
        return z

    @torch.no_grad()
    def paint(
        self, draw: Callable[[Tensor, Cond], Tensor], prompts: Prompts, each: int, *, seed: int, batch: int = 96
    ) -> Tensor:
        """`each` pictures of every prompt, (n, each, 3, H, W); draw(z, cond) gives latents: a generator, or `sample`.

        The same seed gives the same noise to whatever draws.
        """
        rows = torch.arange(len(prompts)).repeat_interleave(each)
        z = torch.randn(len(rows), *self.z_shape, generator=torch.Generator().manual_seed(seed))
        device = next(self.denoiser.parameters()).device
        parts = torch.arange(len(rows)).split(batch)
        images = [self.decode(draw(z[part].to(device), prompts.rows(rows[part]))).cpu() for part in parts]
        return torch.cat(images).unflatten(0, (len(prompts), each))

    def prompts(self, texts: Sequence[str]) -> Prompts:
        """The table of these prompts, on the denoiser's device; a prompt met before is not encoded again."""
        if self.text is None:
            raise ValueError(f"the text encoder of {self.source} was not loaded; load it with the part 'text'")
        return encode_prompts(self.text, texts).to(next(self.denoiser.parameters()).device)

    @torch.no_grad()
    def encode(self, images: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Latents of pictures (B, 3, H, W) in [0, 1]: drawn from the VAE's posterior, or its mean without generator."""
        posterior = self._vae().encode(2 * images.to(self.vae.dtype) - 1).latent_dist
        latents = posterior.mean if generator is None else posterior.sample(generator)
        return latents * self.vae.config.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures in [0, 1] of latents (B, C, h, w), differentiable but where a pixel is cut off."""
        scaled = (latents / self._vae().config.scaling_factor).to(self.vae.dtype)
        pixels = self.vae.decode(scaled, return_dict=False)[0]
        return (pixels / 2 + 0.5).to(latents.dtype).clamp(0, 1)

    def _vae(self) -> Any:
        if self.vae is None:
            raise ValueError(f"the VAE of {self.source} was not loaded; load it with the part 'vae'")
        return self.vae
