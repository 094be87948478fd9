"""What a run at full scale takes of memory and disk, part by part, told before anything is loaded.

    check(Task(reference="PixArt-alpha/PixArt-XL-2-512x512"), PROFILES["gpu24"], here(".", "cuda"))

prints a table and stops with one line where the run cannot fit, naming the switch that makes it fit. Networks are
counted from their descriptions. Activations are counted by running every pass of a step on torch's meta device, where
tensors have shapes and no content, and adding up the storages alive at once: what is kept for the backward pass, what
checkpointing drops and computes again, what a dtype costs. Attention counts as one fused operation that keeps queries,
keys, values and result, as on CPUs and GPUs alike; a reward by a formula, 16 values of its width for every layer and
token, calibrated on ImageReward (447 M, 0.5 GiB a picture beside its weights) and HPSv2 (986 M, 0.7 GiB) in float32.

Beside those the rule is: learning weights, their average and Adam's state in float32; the frozen rest in the dtype of
the run, rewards in float32; prompts are encoded before training, so that the text encoder is never in memory together
with the trainer; and OVERHEAD.
"""

import contextlib
import copy
import difflib
import functools
import importlib.util
import itertools
import json
import math
import os
import pathlib
import shutil
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from types import SimpleNamespace
from typing import Any

import pandas as pd
import psutil
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dipp_core.files import InputError
from dipp_core.method.generator import trainable_copy
from dipp_core.method.staged import frozen
from dipp_core.models import folders, lora
from dipp_core.models.latent import Denoiser, LatentDiffusion
from dipp_core.models.lora import Adapted, SharedBase
from dipp_core.models.prompts import PIXART_TOKENS

GIB = 2**30
BYTES = {"float32": 4, "bfloat16": 2}
CHOICES = {"roles": ("lora", "full"), "dtype": tuple(BYTES), "encode": ("before", "during")}
# what the libraries take, and shares of activations and of the rest for fragments; of a CPU as `make bench-large` found
OVERHEAD = {"GPU": (0.8 * GIB, 0.10, 0.0), "CPU": (0.6 * GIB, 0.20, 0.20)}
HOST = 3 * GIB  # main memory of Python and its libraries beside a GPU
KEPT = 5  # checkpoints at once: two of the first stage; two of the second, and the one being written
COUNTED = 8  # rows up to which activations are counted; those of larger batches lie on a line


# ------------------------------------------------------------------------------------------------------------ switches


@dataclass(frozen=True, kw_only=True)
class Switches:
    """What decides how much memory a run takes.

    roles: "lora", adapters on one base, or "full", networks of their own that learn in float32. dtype: of all that is
    frozen. batch: of one process. micro: rows of it computed at a time, 0 is all; it costs a forward pass more.
    checkpoint_*: gradient checkpointing. tiny_vae: the reward's decoder. eight_bit_adam: needs bitsandbytes and a GPU.
    autocast: what learns in float32 computes in bfloat16. compile: denoisers by torch.compile, whose first step takes
    minutes. encode: prompts "before" training, kept on the disk, or "during" it, with the text encoder in memory.
    """

    roles: str = "lora"
    rank: int = 64
    targets: tuple[str, ...] = ("attention",)
    dtype: str = "bfloat16"
    batch: int = 4
    micro: int = 0
    checkpoint_denoiser: bool = True
    checkpoint_vae: bool = True
    checkpoint_reward: bool = True
    tiny_vae: bool = False
    eight_bit_adam: bool = False
    processes: int = 1
    autocast: bool = False
    compile: bool = False
    encode: str = "before"


PROFILES = {
    "gpu24": Switches(),
    "gpu80": Switches(roles="full", batch=8, autocast=True),
    "multi": Switches(roles="full", batch=8, autocast=True, processes=8),
    "cpu": Switches(dtype="float32", batch=1),
}
# what to try where a run does not fit, the least harmful first
CURES: tuple[dict[str, Any], ...] = (
    *({name: True} for name in ("checkpoint_denoiser", "checkpoint_vae", "checkpoint_reward")),
    {"micro": 1},
    {"eight_bit_adam": True},
    {"dtype": "bfloat16"},
    {"roles": "lora"},
    {"tiny_vae": True},
)


def switched(profile: str, changes: Mapping[str, Any]) -> Switches:
    """A profile with some switches turned otherwise."""
    profiled: Any = PROFILES[profile]
    known, turned = [field.name for field in fields(Switches)], {}
    for name, given in changes.items():
        if name not in known:
            close = "".join(f"; did you mean '{one}'?" for one in difflib.get_close_matches(name, known, n=1))
            raise InputError(f"unknown switch {name!r}: {', '.join(known)}{close}")
        before, value = getattr(profiled, name), tuple(given) if isinstance(given, list) else given
        least = 0 if name == "micro" else 1
        if type(value) is not type(before) or value not in CHOICES.get(name, (value,)):
            wanted = " or ".join(CHOICES[name]) if name in CHOICES else f"like {before!r}"
            raise InputError(f"the switch {name} is {wanted}, not {value!r}")
        if type(value) is int and value < least:
            raise InputError(f"the switch {name} is at least {least}, not {value}")
        if name == "targets" and not (value and all(isinstance(one, str) for one in value)):
            raise InputError(f"the switch targets is a list of names of layers, not {list(value)!r}")
        turned[name] = value
    return replace(profiled, **turned)


# ------------------------------------------------------------------------------------------------- counting activations


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages made within it that are alive (`now`), and the most there were (`most`)."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[int, Any]] = {}
        self.now = self.most = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self._note((args, kwargs), made=False)
        found = operation(*args, **(kwargs or {}))
        self._note(found, made=True)
        return found

    def _note(self, values: Any, *, made: bool) -> None:
        for tensor in tree_leaves(values):
            if not isinstance(tensor, Tensor) or (key := tensor.untyped_storage()._cdata) in self.alive:
                continue
            storage = tensor.untyped_storage()
            size = storage.nbytes() if made else 0  # one that comes as an input first was made elsewhere
            self.alive[key] = size, weakref.ref(storage, functools.partial(self._gone, key))
            self.now += size
            self.most = max(self.most, self.now)

    def _gone(self, key: int, _: Any) -> None:
        self.now -= self.alive.pop(key)[0]


class _Attention(torch.autograd.Function):
    """What fused attention keeps."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, out)
        return out

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> Any:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


@contextlib.contextmanager
def fused_attention() -> Iterator[None]:
    """On the meta device torch would spell attention out, with its square matrices, which no real device keeps."""

    def attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        return _Attention.apply(query, key, value)

    with torch.library._scoped_library("aten", "IMPL") as library:  # for tensors on the meta device alone
        library.impl("scaled_dot_product_attention", attention, "AutogradMeta")
        yield


@dataclass(frozen=True, eq=False)
class Shapes:
    """Reference, generator and assistant on the meta device, and the shapes of one prompt's leaves."""

    world: LatentDiffusion
    gen: nn.Module
    ta: nn.Module
    cond: dict[str, tuple[int, ...]]

    def inputs(self, rows: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """A batch (xt, t, cond)."""
        cond = {name: _new(rows, *shape) for name, shape in self.cond.items()}
        return _new(rows, *self.world.z_shape), _new(rows), cond

    def prompt_values(self, tokens: float) -> float:
        """Numbers kept of a prompt of so many tokens: of these where a mask hides the padding, else of all."""
        (length, width), pooled = self.cond["tokens"], sum(self.cond.get("pooled", (0,)))
        return (min(length, tokens) if "mask" in self.cond else length) * width + pooled


def _new(*shape: int) -> Tensor:
    return torch.empty(*shape, device="meta")


def count(network: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def cond_shapes(denoiser: Denoiser) -> dict[str, tuple[int, ...]]:
    """Shapes of one prompt's leaves: CLIP's 77 tokens or T5's 120, their mask, SDXL's vector of the whole prompt."""
    config: Any = denoiser.network.config
    if denoiser.is_transformer:
        return {"tokens": (PIXART_TOKENS, config.caption_channels), "mask": (PIXART_TOKENS,)}
    shapes: dict[str, tuple[int, ...]] = {"tokens": (77, config.cross_attention_dim)}
    if denoiser.is_sdxl:
        shapes["pooled"] = (config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim,)
    return shapes


def shapes_of(description: Mapping[str, Any], switches: Switches) -> Shapes:
    """The roles of a run with these switches; description: of the denoiser."""
    kept = ("roles", "rank", "targets", "dtype", "autocast", "checkpoint_denoiser")
    return _shapes(json.dumps(description), Switches(**{name: getattr(switches, name) for name in kept}))


@functools.lru_cache(maxsize=8)
def _shapes(description: str, switches: Switches) -> Shapes:
    schedule: Any = SimpleNamespace(index_of_time=lambda t: t)
    network = folders.on_meta(json.loads(description), getattr(torch, switches.dtype))
    denoiser = Denoiser(network, schedule, latent_scale=8)
    gen: nn.Module
    if switches.roles == "lora":
        base = SharedBase(denoiser, targets=switches.targets)
        if switches.checkpoint_denoiser:
            base.recompute()
        gen = Adapted(base, rank=switches.rank)
    else:
        if switches.checkpoint_denoiser:
            lora.recompute_denoiser(denoiser)
        gen = trainable_copy(denoiser).to(torch.bfloat16 if switches.autocast else torch.float32)
    return Shapes(LatentDiffusion(denoiser, "eps"), gen, copy.deepcopy(gen), cond_shapes(denoiser))


@functools.lru_cache(maxsize=64)
def learning_pass(shapes: Shapes, batch: int) -> tuple[int, int]:
    """(kept between the passes, most) of a role that learns: forward and backward to its parameters."""
    with LiveBytes() as live, fused_attention():
        out = shapes.gen(*shapes.inputs(batch))
        kept = live.now
        out.sum().backward()
    shapes.gen.zero_grad(set_to_none=True)
    return kept, live.most


@functools.lru_cache(maxsize=64)
def divergence_pass(shapes: Shapes, batch: int, *, star: bool, guided: bool) -> tuple[int]:
    """Most of comparing assistant and reference: without gradient in DI++, with one to xt in DI* (`star`)."""
    with LiveBytes() as live, fused_attention(), frozen(list(shapes.ta.parameters())), torch.set_grad_enabled(star):
        xt, t, cond = shapes.inputs(batch)
        xt.requires_grad_(star)
        times = 2 if guided else 1
        _, both_t, both_cond = shapes.inputs(times * batch)
        value = shapes.ta(xt, t, cond).sum() + shapes.world.denoiser(torch.cat([xt] * times), both_t, both_cond).sum()
        if star:
            torch.autograd.grad(value, xt)
    return (live.most,)


@functools.lru_cache(maxsize=64)
def picture_pass(
    description: str, batch: int, z_shape: tuple[int, ...], dtype: torch.dtype, recompute: bool
) -> tuple[int, int]:
    """(kept between the passes, most) of decoding latents and going back to them; description: JSON."""
    vae = folders.on_meta(json.loads(description), dtype)
    if recompute:
        lora.recompute_vae(vae)
    with LiveBytes() as live, fused_attention():
        nothing: Any = None
        images = LatentDiffusion(nothing, "eps", vae=vae).decode(_new(batch, *z_shape).requires_grad_())
        kept = live.now
        images.sum().backward()
    return kept, live.most


def by_batch(counted: Callable[[int], tuple[int, ...]], batch: int) -> tuple[int, ...]:
    """What is counted of a batch; beyond COUNTED rows on a line, so that no batch takes long to count."""
    if batch <= COUNTED:
        return counted(batch)
    pairs, beyond = zip(counted(COUNTED // 2), counted(COUNTED), strict=True), batch - COUNTED
    return tuple(whole + (whole - half) * beyond // (COUNTED - COUNTED // 2) for half, whole in pairs)


@dataclass(frozen=True)
class Tower:
    """A reward's network as far as memory goes: parameters; width, layers and tokens of what looks at a picture."""

    parameters: int
    width: int
    layers: int
    tokens: int

    def activations(self, batch: int, *, checkpointing: bool) -> int:
        """Bytes kept for the backward pass, in float32; with checkpointing the inputs of layers and one layer."""
        layer = 16 * self.width * self.tokens * 4
        return batch * (layer + self.layers * layer // 16 if checkpointing else self.layers * layer)


_VIT_H = Tower(986_000_000, 1280, 32, 257)
TOWERS = {
    "image_reward": Tower(447_000_000, 1024, 24, 197),
    "hpsv2": _VIT_H,
    "hpsv2.1": _VIT_H,
    "pickscore": _VIT_H,
    "clipscore": Tower(428_000_000, 1024, 24, 257),
    "aesthetic": Tower(304_000_000, 1024, 24, 257),
}


# ------------------------------------------------------------------------------------------------------- the whole run


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is to be run. own_start: from another model than the reference. prompt_tokens: mean number in a prompt.

    absent: the published files are still to be fetched.
    """

    reference: str
    rewards: tuple[str, ...] = ("image_reward",)
    star: bool = False
    guided: bool = True
    prompts: int = 1000
    prompt_tokens: float = 120.0
    own_start: bool = False
    fetch: bool = False
    absent: bool = False


@dataclass(frozen=True)
class Machine:
    """What there is, in bytes: memory of one device ("GPU" or "CPU"), room on the disk, memory of a GPU's host."""

    kind: str
    memory: float
    disk: float
    host: float = math.inf


def here(folders: Iterable[pathlib.Path], device: str) -> Machine:
    """This machine as a run on "cuda" or on "cpu" finds it; what its folders hold already is room that it has."""
    paths = {folder.absolute() for folder in folders}
    path = next(iter(paths))
    disk = shutil.disk_usage(next(one for one in (path, *path.parents) if one.exists())).free
    for place, _, names in itertools.chain(*(os.walk(path) for path in paths)):
        for name in names:
            with contextlib.suppress(OSError):  # a file that is gone meanwhile
                disk += os.stat(os.path.join(place, name)).st_size
    host = psutil.virtual_memory().available
    if device == "cuda":
        return Machine("GPU", torch.cuda.mem_get_info()[0], disk, host)  # what others on it have left
    return Machine("CPU", host, disk)


@dataclass(frozen=True)
class Part:
    """One line of the table, in bytes. before: in memory before training only, while prompts are encoded.

    host: of the main memory beside a GPU. published: files of others, which need no room where they are already.
    """

    name: str
    memory: float = 0.0
    disk: float = 0.0
    before: bool = False
    host: float = 0.0
    published: bool = False


def estimate(task: Task, switches: Switches, kind: str) -> list[Part]:
    """All parts of a run on a device of this kind."""
    found, size = folders.describe(task.reference, fetch=task.fetch), BYTES[switches.dtype]
    shapes = shapes_of(found["denoiser"], switches)
    base, tuned = count(shapes.world.denoiser), count(shapes.gen)
    counts = {name: count(folders.on_meta(found[name])) for name in found if name != "denoiser"}
    vae, text = counts.pop("vae"), sum(counts.values())
    judges = sum(TOWERS[name].parameters for name in task.rewards if name in TOWERS)
    adam = 2 * tuned * (2 if switches.eight_bit_adam else 8)
    lora_start = size if switches.roles == "lora" else 0  # where all weights learn, they are the start
    name, most = _activations(found["vae"], shapes, task, switches)
    encoded = shapes.prompt_values(task.prompt_tokens) * size + 32
    waiting = judges * 4 if kind == "CPU" else 0  # rewards wait in main memory while prompts are encoded
    stored = switches.encode == "before"
    parts = [
        Part("reference, frozen", base * size, base * 4, published=True),
        *([Part("start of the generator", base * lora_start, base * 4, published=True)] if task.own_start else []),
        Part("generator and assistant", 2 * tuned * 4),
        Part("averaged generator", tuned * 4),
        Part("Adam's state", adam),
        *([Part("gradients in exchange", 2 * tuned * 4)] if switches.processes > 1 else []),
        Part("VAE", vae * size, vae * 4, published=True),
        Part("rewards", judges * 4, judges * 4, published=True),
        Part(f"{task.prompts:,} prompts, encoded", disk=task.prompts * encoded * stored),
    ]
    loading, exporting = judges * 4 + text * size, (2 + task.own_start) * base * 4
    flat, of_stage, of_rest = OVERHEAD[kind]
    around = flat + of_stage * most + of_rest * sum(part.memory for part in parts)
    return [
        *parts,
        Part(f"activations and gradients ({name})", most),
        Part("libraries, workspaces", around),
        Part(
            "text encoder, before training" if stored else "text encoder",
            text * size + (flat + waiting) * stored,
            text * 4,
            before=stored,
            published=True,
        ),
        Part(f"{KEPT} checkpoints", disk=KEPT * (3 * tuned * 4 + adam)),
        Part("exported pipeline, twice", disk=2 * (base + vae + text) * 4),
        # what passes through it to the GPU, or the networks that the export is made of
        *([Part("main memory of the host", host=max(loading, exporting) + HOST)] if kind == "GPU" else []),
    ]


def _activations(vae: Mapping[str, Any], shapes: Shapes, task: Task, switches: Switches) -> tuple[str, int]:
    """The stage of a step that takes most beside the weights, and what it takes."""
    batch = min(switches.micro or switches.batch, switches.batch)
    kept, learning = by_batch(functools.partial(learning_pass, shapes), batch)
    comparing = functools.partial(divergence_pass, shapes, star=task.star, guided=task.guided)
    between = kept if batch == switches.batch else 0  # in chunks, what is between the passes is latents alone
    if switches.autocast and switches.roles == "full":  # gradients in float32, and weights cast for one pass
        kept, learning = kept + 2 * count(shapes.gen), learning + 4 * count(shapes.gen)
    stages = {
        "learning": learning,
        "divergence": between + by_batch(comparing, batch)[0],
        "Adam's step": 8 * count(shapes.gen),  # gradients, and as much again while it divides
    }
    if task.rewards:
        seen = json.dumps({"_class_name": "AutoencoderTiny"} if switches.tiny_vae else vae)
        how = (shapes.world.z_shape, getattr(torch, switches.dtype), switches.checkpoint_vae)
        held, most = by_batch(lambda rows: picture_pass(seen, rows, *how), batch)
        towers = [TOWERS[name] for name in task.rewards if name in TOWERS]
        judged = sum(tower.activations(batch, checkpointing=switches.checkpoint_reward) for tower in towers)
        stages["reward"] = between + max(held + judged, most)
    return max(stages.items(), key=lambda item: item[1])


def needed(parts: Sequence[Part]) -> tuple[float, float]:
    """(memory, disk) of a run: the larger of before and during training, and all that lies on the disk."""
    phases = [sum(part.memory for part in parts if part.before is before) for before in (False, True)]
    return max(phases), sum(part.disk for part in parts)


def table(parts: Sequence[Part]) -> list[dict[str, Any]]:
    """The parts in GiB, for a reader, with their sum."""
    memory, disk = needed(parts)
    rows = [(part.name, part.memory, part.disk, part.host) for part in parts]
    rows.append(("all, at its peak", memory, disk, sum(part.host for part in parts)))
    heads = ("memory, GiB", "disk, GiB", "host, GiB")
    return [{"part": name} | {h: round(v / GIB, 2) for h, v in zip(heads, row, strict=True)} for name, *row in rows]


def check(task: Task, switches: Switches, machine: Machine, say: Callable[[str], None] = print) -> list[Part]:
    """Print the table, and stop where the run cannot fit."""
    parts = estimate(task, switches, machine.kind)
    say(pd.DataFrame(table(parts)).to_string(index=False))
    say(f"this machine has {machine.memory / GIB:.2f} GiB ({machine.kind}) and {machine.disk / GIB:.2f} GiB of disk")
    memory, disk = needed(parts)
    if memory > machine.memory:
        lacks = f"needs {memory / GIB:.1f} GiB, this {machine.kind} has {machine.memory / GIB:.1f} GiB"
        raise InputError(f"{task.reference}: {lacks}; {cure(task, switches, machine)}")
    if (host := sum(part.host for part in parts)) > machine.host:
        lacks = f"needs {host / GIB:.1f} GiB of main memory beside the GPU, {machine.host / GIB:.1f} GiB are free"
        raise InputError(f"{task.reference}: {lacks}; end what else runs there")
    if not task.absent:
        disk -= sum(part.disk for part in parts if part.published)
    if disk > machine.disk:
        lacks = f"needs {disk / GIB:.1f} GiB of disk, {machine.disk / GIB:.1f} GiB are free"
        saved = sum(part.disk for part in parts if part.name.endswith("encoded"))
        encode = f", or set switches.encode = during ({saved / GIB:.1f} GiB less)" if saved else ""
        raise InputError(f"{task.reference}: {lacks}; free some, give a folder on another disk{encode}")
    return parts


def cure(task: Task, switches: Switches, machine: Machine) -> str:
    """The first switch that makes a run fit, else the first few together, in words."""
    left = [one for one in CURES if replace(switches, **one) != switches and one != {"micro": switches.batch}]
    if machine.kind == "CPU" or importlib.util.find_spec("bitsandbytes") is None:
        left = [one for one in left if "eight_bit_adam" not in one]
    together = [{key: value for one in left[: n + 1] for key, value in one.items()} for n in range(1, len(left))]
    for change in [*left, *together]:
        parts = estimate(task, replace(switches, **change), machine.kind)
        if (memory := needed(parts)[0]) <= machine.memory:
            named = " with ".join(f"{key} = {str(value).lower()}" for key, value in change.items())
            return f"{named} fits ({memory / GIB:.1f} GiB)"
    parts = estimate(task, replace(switches, **(together or left or [{}])[-1]), machine.kind)
    most = max(parts, key=lambda part: part.memory)
    return f"no switch makes it fit: with all of them it is {needed(parts)[0] / GIB:.1f} GiB, most of it {most.name}"
