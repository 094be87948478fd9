"""Before anything is loaded: what a run at full scale will take, part by part, against what the machine has.

    preflight.check(preflight.Task(reference="stable-diffusion-v1-5/stable-diffusion-v1-5"), PROFILES["gpu24"], machine)

prints a table and stops with one line where the run cannot fit, naming the switch that makes it fit. Networks are
counted from their descriptions, activations by `footprint`. Beside those the rule is: learning weights, their average
and Adam's state in float32; the frozen rest in the dtype of the run, rewards in float32; prompts are encoded before
training, so that the text encoder is never in memory together with the trainer; and OVERHEAD.
"""

import importlib.util
import json
import pathlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from dipp_core.book.config import nearest
from dipp_core.models import folders
from dipp_core.training import footprint

GIB = 2**30
BYTES = {"float32": 4, "bfloat16": 2}
CHOICES = {"roles": ("lora", "full"), "dtype": tuple(BYTES)}
# what the libraries take, and shares of activations and of the rest for fragments; of a CPU as `make bench-large` found
OVERHEAD = {"GPU": (0.8 * GIB, 0.10, 0.0), "CPU": (0.6 * GIB, 0.20, 0.20)}
KEPT = 5  # checkpoints at once: two of the first stage; two of the second, and the one being written


class PreflightError(RuntimeError):
    """One line that says why a run cannot fit, and which switch makes it fit."""


@dataclass(frozen=True, kw_only=True)
class Switches:
    """What decides how much memory a run takes.

    roles: "lora", adapters on one base, or "full", networks of their own that learn in float32. dtype: of all that is
    frozen. batch: of one process. micro: rows of it computed at a time, 0 is all; it costs a forward pass more.
    checkpoint_*: gradient checkpointing. tiny_vae: the reward's decoder. eight_bit_adam: needs bitsandbytes and a GPU.
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


PROFILES = {
    "gpu24": Switches(),
    "gpu80": Switches(roles="full", batch=8),
    "multi": Switches(roles="full", batch=8, processes=8),
    "cpu": Switches(dtype="float32", batch=1),
}


def switched(profile: str, changes: Mapping[str, Any]) -> Switches:
    """A profile with some switches turned otherwise."""
    found = PROFILES[profile]
    known = [field.name for field in fields(Switches)]
    for name, value in changes.items():
        if name not in known:
            raise PreflightError(f"unknown switch {name!r}: {', '.join(known)}{nearest(name, known)}")
        before, value = getattr(found, name), tuple(value) if isinstance(value, list) else value
        if type(value) is not type(before) or value not in CHOICES.get(name, (value,)):
            wanted = " or ".join(CHOICES[name]) if name in CHOICES else f"like {before!r}"
            raise PreflightError(f"the switch {name} is {wanted}, not {value!r}")
        found = replace(found, **{name: value})
    return found


# what to try where a run does not fit, the least harmful first
CURES = (
    {"checkpoint_denoiser": True},
    {"checkpoint_vae": True},
    {"checkpoint_reward": True},
    {"micro": 1},
    {"eight_bit_adam": True},
    {"dtype": "bfloat16"},
    {"roles": "lora"},
    {"tiny_vae": True},
)


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is to be run. own_start: from another model than the reference. prompt_tokens: mean number in a prompt."""

    reference: str
    rewards: tuple[str, ...] = ("image_reward",)
    star: bool = False
    guided: bool = True
    prompts: int = 1000
    prompt_tokens: float = 120.0
    own_start: bool = False
    fetch: bool = False


@dataclass(frozen=True)
class Machine:
    """What there is, in bytes: memory of one device ("GPU" or "CPU"), room on the disk."""

    kind: str
    memory: float
    disk: float


def here(folder: pathlib.Path | str, device: str) -> Machine:
    """This machine as a run on "cuda" or on "cpu" finds it, and the disk that `folder` is on."""
    import psutil

    path = pathlib.Path(folder).absolute()
    disk = shutil.disk_usage(next(place for place in (path, *path.parents) if place.exists())).free
    if device == "cuda":
        return Machine("GPU", torch.cuda.mem_get_info()[0], disk)  # what others on it have left
    return Machine("CPU", psutil.virtual_memory().available, disk)


@dataclass(frozen=True)
class Part:
    """One line of the table, in bytes. before: in memory before training only, while prompts are encoded."""

    name: str
    memory: float = 0.0
    disk: float = 0.0
    before: bool = False


def estimate(task: Task, switches: Switches, kind: str) -> list[Part]:
    """All parts of a run on a device of this kind."""
    found, size = folders.describe(task.reference, fetch=task.fetch), BYTES[switches.dtype]
    roles = _ghosts(found, switches)
    base, tuned = footprint.count(roles.world.denoiser), footprint.count(roles.gen)
    counts = {name: footprint.count(folders.on_meta(found[name])) for name in found if name != "denoiser"}
    vae, text = counts.pop("vae"), sum(counts.values())
    judges = sum(footprint.TOWERS[name].parameters for name in task.rewards if name in footprint.TOWERS)
    adam = 2 * tuned * (2 if switches.eight_bit_adam else 8)
    stage, encoded = _activations(found, roles, task, switches), roles.prompt_values(task.prompt_tokens) * size + 32
    flat, of_stage, of_rest = OVERHEAD[kind]
    judged = judges * 4 if kind == "CPU" else 0  # rewards wait in main memory while prompts are encoded
    own = base if task.own_start else 0
    parts = [
        Part("reference, frozen", base * size, base * 4),
        *([Part("start of the generator", own * size * (switches.roles == "lora"), own * 4)] if own else []),
        Part("generator and assistant", 2 * tuned * 4),
        Part("averaged generator", tuned * 4),
        Part("Adam's state", adam),
        *([Part("gradients in exchange", 2 * tuned * 4)] if switches.processes > 1 else []),
        Part("VAE", vae * size, vae * 4),
        Part("rewards", judges * 4, judges * 4),
        Part(f"{task.prompts:,} prompts, encoded", disk=task.prompts * encoded),
    ]
    return [
        *parts,
        Part(f"activations and gradients ({stage[0]})", stage[1]),
        Part("libraries, workspaces", flat + of_stage * stage[1] + of_rest * sum(part.memory for part in parts)),
        Part("text encoder, before training", text * size + flat + judged, text * 4, before=True),
        Part(f"{KEPT} checkpoints", disk=KEPT * (3 * tuned * 4 + adam)),
        Part("exported pipeline, twice", disk=2 * (base + vae + text) * 4),
    ]


def _ghosts(found: dict[str, dict], switches: Switches) -> footprint.Ghosts:
    return footprint.ghosts(
        json.dumps(found["denoiser"]),
        roles=switches.roles,
        rank=switches.rank,
        targets=switches.targets,
        dtype=switches.dtype,
        checkpointing=switches.checkpoint_denoiser,
    )


def _activations(found: dict, roles: footprint.Ghosts, task: Task, switches: Switches) -> tuple[str, float]:
    """The stage of a step that takes most beside the weights, and what it takes."""
    whole, batch = switches.batch, min(switches.micro or switches.batch, switches.batch)
    kept, most = footprint.learning_pass(roles, batch)
    kept = kept if batch == whole else 0  # in chunks, what is between the passes is latents alone
    divergence = footprint.divergence_pass(roles, batch, star=task.star, guided=task.guided)
    stages = {"learning": most, "divergence": kept + divergence}
    stages["Adam's step"] = 8 * footprint.count(roles.gen)  # gradients, and as much again while it divides
    if task.rewards:
        vae = json.dumps({"_class_name": "AutoencoderTiny"} if switches.tiny_vae else found["vae"])
        how = {"dtype": switches.dtype, "checkpointing": switches.checkpoint_vae}
        held, peak = footprint.picture_pass(vae, (batch, *roles.world.z_shape), **how)
        towers = [footprint.TOWERS[name] for name in task.rewards if name in footprint.TOWERS]
        judged = sum(tower.activations(batch, checkpointing=switches.checkpoint_reward) for tower in towers)
        stages["reward"] = kept + max(held + judged, peak)
    return max(stages.items(), key=lambda item: item[1])


def needed(parts: list[Part]) -> tuple[float, float]:
    """(memory, disk) of a run: the larger of before and during training, and all that lies on the disk."""
    phases = [sum(part.memory for part in parts if part.before is before) for before in (False, True)]
    return max(phases), sum(part.disk for part in parts)


def table(parts: list[Part]) -> list[dict[str, Any]]:
    """The parts in GiB, for a reader, with their sum."""
    memory, disk = needed(parts)
    rows = [(part.name, part.memory, part.disk) for part in parts] + [("all, at its peak", memory, disk)]
    return [{"part": name, "memory, GiB": round(m / GIB, 2), "disk, GiB": round(d / GIB, 2)} for name, m, d in rows]


def check(task: Task, switches: Switches, machine: Machine, say: Callable[[str], None] = print) -> list[Part]:
    """Print the table, and stop where the run cannot fit."""
    parts = estimate(task, switches, machine.kind)
    rows = table(parts)
    wide = max(len(row["part"]) for row in rows)
    say(f"{'':{wide}}  memory    disk  GiB")
    for row in rows:
        say(f"{row['part']:{wide}}  {row['memory, GiB']:6.2f}  {row['disk, GiB']:6.2f}")
    say(f"{'this machine has (' + machine.kind + ')':{wide}}  {machine.memory / GIB:6.2f}  {machine.disk / GIB:6.2f}")
    memory, disk = needed(parts)
    if memory > machine.memory:
        lacks = (
            f"{task.reference}: needs {memory / GIB:.1f} GiB, this {machine.kind} has {machine.memory / GIB:.1f} GiB"
        )
        raise PreflightError(f"{lacks}; {cure(task, switches, machine)}")
    if disk > machine.disk:
        lacks = f"needs {disk / GIB:.1f} GiB of disk, {machine.disk / GIB:.1f} GiB are free"
        raise PreflightError(f"{task.reference}: {lacks}; free some, or give a folder on another disk")
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
