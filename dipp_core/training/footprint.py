"""How much memory a step of Algorithm 1 takes, found without taking it: the step is made with shapes alone.

Every pass of a step runs on torch's meta device, where tensors have shapes and no content, and the bytes of all
storages alive at once are counted. So activations are no rule of thumb: what torch keeps for the backward pass, what
checkpointing drops and computes again, what a dtype costs, all is counted by running the same code. Weights are not
among them; gradients of parameters are, since they live beside the activations.

Two things are not run. Attention counts as one fused operation that keeps queries, keys, values and result, as on CPUs
and GPUs alike. And a reward counts by a formula, 16 values of its width for every layer and token, calibrated on
ImageReward (447 M, 0.5 GiB a picture beside its weights) and HPSv2 (986 M, 0.7 GiB) in float32.
"""

import contextlib
import copy
import functools
import json
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from dipp_core.method.generator import trainable_copy
from dipp_core.method.staged import frozen
from dipp_core.models import folders, lora
from dipp_core.models.latent import Denoiser, LatentDiffusion
from dipp_core.models.lora import Adapted, SharedBase

TOKENS = {"UNet2DConditionModel": 77}  # tokens a prompt has; a transformer of PixArt's has 120


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages made within it that are alive (`now`), and the most there were (`most`)."""

    def __init__(self):
        super().__init__()
        self.alive: dict[int, tuple[int, Any]] = {}
        self.now = self.most = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        for tensor in _tensors((*args, *(kwargs or {}).values())):
            self._note(tensor.untyped_storage(), made=False)
        found = operation(*args, **(kwargs or {}))
        for tensor in _tensors((found,)):
            self._note(tensor.untyped_storage(), made=True)
        return found

    def _note(self, storage: torch.UntypedStorage, *, made: bool) -> None:
        key = storage._cdata
        if key in self.alive:
            return
        size = storage.nbytes() if made else 0  # one that comes as an input first was made elsewhere
        self.alive[key] = size, weakref.ref(storage, lambda _: self._gone(key))
        self.now += size
        self.most = max(self.most, self.now)

    def _gone(self, key: int) -> None:
        self.now -= self.alive.pop(key)[0]


def _tensors(values: Sequence[Any]) -> Iterator[Tensor]:
    """The tensors among arguments or results of an operation: themselves, or in lists."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


class _FusedAttention(torch.autograd.Function):
    """What fused attention keeps."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, out)
        return out

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


@contextlib.contextmanager
def fused_attention() -> Iterator[None]:
    """On the meta device torch would spell attention out, with its square matrices, which no real device keeps."""

    def attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        return _FusedAttention.apply(query, key, value)

    with mock.patch.object(functional, "scaled_dot_product_attention", attention):
        yield


@dataclass(frozen=True)
class Tower:
    """A reward's network as far as memory goes: parameters; width, layers and tokens of what looks at a picture."""

    parameters: int
    width: int
    layers: int
    tokens: int

    def activations(self, batch: int, *, checkpointing: bool, value_bytes: int = 4) -> int:
        """Bytes kept for the backward pass of a batch; with checkpointing the inputs of layers and one layer."""
        layer = 16 * self.width * self.tokens * value_bytes
        return batch * (layer + self.layers * layer // 16 if checkpointing else self.layers * layer)


_VIT_L, _VIT_H = Tower(428_000_000, 1024, 24, 257), Tower(986_000_000, 1280, 32, 257)
TOWERS = {
    "image_reward": Tower(447_000_000, 1024, 24, 197),
    "hpsv2": _VIT_H,
    "hpsv2.1": _VIT_H,
    "pickscore": _VIT_H,
    "clipscore": _VIT_L,
    "aesthetic": Tower(304_000_000, 1024, 24, 257),
}


@dataclass(frozen=True, eq=False)
class Ghosts:
    """Reference, generator and assistant on the meta device."""

    world: LatentDiffusion
    gen: nn.Module
    ta: nn.Module
    cond_shape: dict[str, tuple[int, ...]]

    def inputs(self, rows: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """A batch (xt, t, cond)."""
        cond = {name: _new(rows, *shape) for name, shape in self.cond_shape.items()}
        return _new(rows, *self.world.z_shape), _new(rows), cond

    def prompt_values(self, tokens: float) -> float:
        """Numbers kept of a prompt of so many tokens: of these where a mask hides the padding, else of all."""
        (length, width), (pooled,) = self.cond_shape["tokens"], self.cond_shape.get("pooled", (0,))
        return (min(length, tokens) if "mask" in self.cond_shape else length) * width + pooled


def _new(*shape: int) -> Tensor:
    return torch.empty(*shape, device="meta")


def count(network: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


@functools.lru_cache(maxsize=8)
def ghosts(
    description: str, *, roles: str, rank: int, targets: tuple[str, ...], dtype: str, checkpointing: bool
) -> Ghosts:
    """The roles of a run; description: of the denoiser, JSON. roles: "lora", or "full", which learns in float32."""
    network = folders.on_meta(json.loads(description), getattr(torch, dtype))
    denoiser = Denoiser(network, SimpleNamespace(index_of_time=lambda t: t), latent_scale=8)
    if roles == "lora":
        base = SharedBase(denoiser, targets=targets)
        if checkpointing:
            base.recompute()
        gen = Adapted(base, rank=rank)
        ta = copy.deepcopy(gen)
    else:
        if checkpointing:
            lora.recompute_denoiser(denoiser)
        gen, ta = (trainable_copy(denoiser).float() for _ in range(2))
    return Ghosts(LatentDiffusion(denoiser, "eps"), gen, ta, cond_shape(denoiser))


def cond_shape(denoiser: Denoiser) -> dict[str, tuple[int, ...]]:
    """Shapes of one prompt's leaves."""
    config, masked = denoiser.network.config, denoiser.is_transformer
    length = TOKENS.get(type(denoiser.network).__name__, 120)
    width = config.caption_channels if masked else config.cross_attention_dim
    shapes = {"tokens": (length, width)} | ({"mask": (length,)} if masked else {})
    if denoiser.is_sdxl:
        shapes["pooled"] = (config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim,)
    return shapes


# ----------------------------------------------------------------------------------------------------- passes of a step


@functools.lru_cache(maxsize=64)
def learning_pass(found: Ghosts, batch: int) -> tuple[int, int]:
    """(kept between the passes, most) of a role that learns: forward and backward to its parameters."""
    with LiveBytes() as live, fused_attention():
        out = found.gen(*found.inputs(batch))
        kept = live.now
        out.sum().backward()
    found.gen.zero_grad(set_to_none=True)
    return kept, live.most


@functools.lru_cache(maxsize=64)
def divergence_pass(found: Ghosts, batch: int, *, star: bool, guided: bool) -> int:
    """Most of comparing assistant and reference: without gradient in DI++, with one to xt in DI* (`star`)."""
    with LiveBytes() as live, fused_attention(), frozen(list(found.ta.parameters())), torch.set_grad_enabled(star):
        xt, t, cond = found.inputs(batch)
        xt.requires_grad_(star)
        times = 2 if guided else 1
        _, both_t, both_cond = found.inputs(times * batch)
        value = found.ta(xt, t, cond).sum() + found.world.denoiser(torch.cat([xt] * times), both_t, both_cond).sum()
        if star:
            torch.autograd.grad(value, xt)
    return live.most


@functools.lru_cache(maxsize=64)
def picture_pass(description: str, latents: tuple[int, ...], *, dtype: str, checkpointing: bool) -> tuple[int, int]:
    """(kept between the passes, most) of decoding latents (B, C, h, w) and going back to them."""
    vae = folders.on_meta(json.loads(description), getattr(torch, dtype))
    if checkpointing:
        lora.recompute_vae(vae)
    with LiveBytes() as live, fused_attention():
        images = LatentDiffusion(None, "eps", vae=vae).decode(_new(*latents).requires_grad_())
        kept = live.now
        images.sum().backward()
    return kept, live.most
