"""Three roles on one frozen base: the reference is the base itself, assistant and generator are adapters of it (LoRA).

    base = SharedBase(world.denoiser, targets=("attention",))
    start = Adapted(base, rank=64)                                         # computes what the base computes, exactly
    student = Student(world.generator(t_star, start), trainable_copy(start))   # their copies share the base
    merged(student.gen.network)                                            # a whole denoiser again

An adapted layer W x becomes W x + B A x, with A, B of the given rank and B = 0 at the start. The layers of the base
carry a hook that adds this for the role being computed and nothing otherwise, so that the reference is the untouched
base, bit for bit, and no role has to be switched on or off.

Libraries that switch adapters by name also switch which parameters learn. Here that stays with the caller: Algorithm 1
differentiates through an assistant whose parameters are frozen. And what gradient checkpointing computes again, it
computes in the role it was computed in first.

At the end: what else lets a large model fit, activations computed again and batches in chunks.
"""

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from dipp_core.files import InputError
from dipp_core.method.scores import Cond, map_cond
from dipp_core.models.latent import Denoiser

# Groups of layers by the last parts of their names, as diffusers has them in UNets and in transformers
TARGETS = {
    "attention": ("to_q", "to_k", "to_v", "to_out.0"),
    "ff": ("ff.net.0.proj", "ff.net.2"),
    "convs": ("conv1", "conv2", "conv_shortcut", "conv"),
}


def find_layers(network: nn.Module, targets: Sequence[str]) -> dict[str, Any]:
    """The linear and convolution layers of these groups or names, by path."""
    found: dict[str, Any] = {}
    for target in targets:
        ends = tuple(f".{end}" for end in TARGETS.get(target, (target,)))
        some = {path: layer for path, layer in network.named_modules() if f".{path}".endswith(ends)}
        if not some:
            known = ", ".join(TARGETS)
            raise InputError(f"no layer of this {type(network).__name__} is called {target!r}; groups are {known}")
        found |= some
    for path, layer in found.items():
        plain = isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.padding_mode == "zeros"
        if not (plain or isinstance(layer, nn.Linear)):
            raise InputError(f"{path} is a {type(layer).__name__}, not a plain Linear or Conv2d: it takes no adapter")
    return found


class SharedBase:
    """A frozen denoiser that any number of roles share; `active` is the role being computed, None for the base."""

    def __init__(self, denoiser: Denoiser, *, targets: Sequence[str] = ("attention",)):
        self.denoiser = denoiser.requires_grad_(False)
        self.active: Adapted | None = None
        self.layers = find_layers(denoiser.network, targets)
        added = {path: functools.partial(self._add, path) for path in self.layers}
        self.hooks = [layer.register_forward_hook(added[path]) for path, layer in self.layers.items()]

    def _add(self, path: str, _layer: nn.Module, inputs: tuple, out: Tensor) -> Tensor | None:
        return None if self.active is None else out + self.active.by_path[path](inputs[0])

    @contextlib.contextmanager
    def acting(self, role: "Adapted | None") -> Iterator[None]:
        """Within the context the base computes a role."""
        before, self.active = self.active, role
        try:
            yield
        finally:
            self.active = before

    def recompute(self) -> None:
        """Gradient checkpointing: keep no activations inside the blocks, compute them again in the backward pass."""
        self.denoiser.network.enable_gradient_checkpointing(self._checkpointed)

    def _checkpointed(self, block: nn.Module, *args: Any) -> Any:
        role = self.active

        def again(*args: Any) -> Any:
            with self.acting(role):
                return block(*args)

        return _checkpointed(again, *args)


class Adapter(nn.Module):
    """B A x, of the shape of one layer's output: what the layer's weight is to be changed by, at low rank.

    A has the geometry of the layer, B mixes its `rank` outputs. They are kept in float32, as Adam needs it, and applied
    in the dtype of x. Their names are those of diffusers' LoRA files.
    """

    lora_A: Any
    lora_B: Any

    def __init__(self, layer: Any, rank: int, generator: torch.Generator):
        super().__init__()
        wide, narrow, *kernel = layer.weight.shape
        self.geometry = {name: getattr(layer, name) for name in ("stride", "padding", "dilation")} if kernel else None
        self.lora_A, self.lora_B = nn.Module(), nn.Module()
        down, up = torch.empty(rank, narrow, *kernel), torch.zeros(wide, rank, *(1 for _ in kernel))
        bound = down[0].numel() ** -0.5
        down.uniform_(-bound, bound, generator=generator)
        self.lora_A.weight = nn.Parameter(down.to(layer.weight.device))
        self.lora_B.weight = nn.Parameter(up.to(layer.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        down, up = self.lora_A.weight.to(x.dtype), self.lora_B.weight.to(x.dtype)
        if self.geometry is None:
            return functional.linear(functional.linear(x, down), up)
        return functional.conv2d(functional.conv2d(x, down, **self.geometry), up)

    def product(self) -> Tensor:
        """B A as one weight, of the shape of the layer's."""
        return torch.einsum("or...,ri...->oi...", self.lora_B.weight, self.lora_A.weight)


class Adapted(nn.Module):
    """A denoiser (xt, t, cond) -> prediction: the shared base with adapters of its own, which are all its parameters.

    Copying it copies the adapters and shares the base.
    """

    def __init__(self, base: SharedBase, *, rank: int):
        if rank < 1:
            raise ValueError(f"the rank of an adapter is at least 1, not {rank}")
        super().__init__()
        self.base, self.rank = base, rank
        generator = torch.Generator().manual_seed(0)
        self.by_path = {path: Adapter(layer, rank, generator) for path, layer in base.layers.items()}
        self.adapters = nn.Module()
        for path, adapter in self.by_path.items():
            _put(self.adapters, path, adapter)

    def forward(self, xt: Tensor, t: Tensor, cond: Cond) -> Tensor:
        with self.base.acting(self):
            return self.base.denoiser(xt, t, cond)

    def __deepcopy__(self, memo: dict) -> "Adapted":
        twin = memo[id(self)] = Adapted(self.base, rank=self.rank)
        for own, other in zip(self.parameters(), twin.parameters(), strict=True):
            other.data = own.detach().clone()
            other.requires_grad_(own.requires_grad)
        return twin


def _put(root: nn.Module, path: str, module: nn.Module) -> None:
    """Register a module under a dotted path, so that its parameters have the names of the layer it belongs to."""
    *parents, last = path.split(".")
    for name in parents:
        if not hasattr(root, name):
            root.add_module(name, nn.Module())
        root = root.get_submodule(name)
    root.add_module(last, module)


@torch.no_grad()
def merged(role: Adapted) -> Denoiser:
    """A whole denoiser of its own that computes what the role does, W + B A in every adapted layer.

    In the base's dtype: in bfloat16 a small change is lost in the rounding of W, in float32 it is not.
    """
    with role.base.acting(None):
        whole = copy.deepcopy(role.base)
    for hook in whole.hooks:
        hook.remove()
    whole.denoiser.network.disable_gradient_checkpointing()
    for path, layer in whole.layers.items():
        change = role.by_path[path].product()
        layer.weight.copy_(layer.weight.to(change.dtype) + change.to(layer.weight.device))
    return whole.denoiser


# ------------------------------------------------------------------------------------------------- the price of memory
# What follows saves memory and leaves every number as it is.


def recompute_denoiser(denoiser: Denoiser) -> None:
    """Gradient checkpointing of a whole denoiser and of the copies made of it; of adapters: `SharedBase.recompute`."""
    denoiser.network.enable_gradient_checkpointing(_checkpointed)


def recompute_vae(vae: Any) -> None:
    """Decode picture by picture and keep what enters the decoder's blocks alone; of the rest, one block at a time.

    For a 512 x 512 picture in float32, 5.7 GiB become 0.8 for every picture and 2.3 for the one in work.
    """
    vae.enable_slicing()
    vae.enable_gradient_checkpointing(_checkpointed)


def _checkpointed(block: Callable[..., Any], *args: Any) -> Any:
    return checkpoint(block, *args, use_reentrant=False, preserve_rng_state=False)


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
        parts = []
        for start in range(0, len(first), self.rows):
            chunk = map_cond(lambda leaf, start=start: leaf[start : start + self.rows], (first, *others))
            parts.append(_checkpointed(self.call, *chunk) if torch.is_grad_enabled() else self.call(*chunk))
        return torch.cat(parts)


def in_chunks(call: Callable[..., Tensor] | None, rows: int) -> Callable[..., Tensor] | None:
    """A generator, a score's network or a reward, (tensor, ..) -> tensor, in chunks of rows; 0: as it is.

    All arguments and the result have the batch as their first axis.
    """
    return InChunks(call, rows) if rows and call is not None else call
