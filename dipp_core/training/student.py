"""A one-step generator that learns: what `align` needs beside the reference, and a whole run of it that can be resumed.

The miniature and full scale learn here, with the same code and other numbers.
"""

import copy
import functools
import pathlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from dipp_core.method.algorithm import Reward, Settings, align
from dipp_core.method.generator import OneStepGenerator, trainable_copy
from dipp_core.models.latent import LatentDiffusion
from dipp_core.models.lora import in_chunks
from dipp_core.models.prompts import Prompts
from dipp_core.training import train
from dipp_core.training.ema import EMA
from dipp_core.training.processes import ALONE, Group

Adam = Callable[..., torch.optim.Optimizer]  # (parameters, lr, betas) -> optimiser


@dataclass
class Student:
    """A one-step generator, and the assistant that tracks its score: a network like the reference's denoiser."""

    gen: OneStepGenerator
    ta: nn.Module

    def copy(self) -> "Student":
        return copy.deepcopy(self)

    def state(self) -> dict[str, Tensor]:
        """All weights by name, to be saved."""
        roles = {"gen": self.gen, "ta": self.ta}
        return {f"{role}.{name}": value for role, net in roles.items() for name, value in net.state_dict().items()}

    def load(self, state: dict[str, Tensor]) -> "Student":
        """Take over saved weights."""
        for role, net in (("gen", self.gen), ("ta", self.ta)):
            net.load_state_dict({k.removeprefix(f"{role}."): v for k, v in state.items() if k.startswith(f"{role}.")})
        return self


def new_student(world: LatentDiffusion, t_star: int) -> Student:
    """Generator and assistant as Algorithm 1 starts them: both copies of the reference."""
    return Student(world.generator(t_star), trainable_copy(world.denoiser))


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How long and how fast a student learns.

    Adam with `betas` for both networks; rates are constant and fall linearly to 0 from the share `flat` of the steps
    on. ema: decay of the averaged generator, which is what is kept.
    """

    steps: int
    gen_lr: float
    ta_lr: float
    betas: tuple[float, float] = (0.0, 0.99)
    flat: float = 0.5
    ema: float = 0.99


def described(settings: Settings) -> dict[str, Any]:
    """What tells one member of the family from another, as JSON; weights are functions, and not among it."""
    plain = "divergence guidance batch_shape z_shape ta_steps share_samples per_sample_normaliser max_grad_norm"
    found = {name: getattr(settings, name) for name in plain.split()}
    found |= {name: torch.as_tensor(getattr(settings, name)).tolist() for name in ("alpha_rew", "alpha_cfg")}
    return found | {"time_sampler": settings.time_sampler.name, "distance": settings.distance.name}


def _parts(student: Student, roles: tuple[str, ...], pace: Pace, seed: int, adam: Adam, group: Group) -> dict:
    """All that changes while a student learns, by name: networks, optimisers, their rates, average, generator."""
    for role in roles:
        group.spread(getattr(student, role))

    def rate(step: int) -> float:
        return min(1.0, (1 - step / pace.steps) / (1 - pace.flat))

    parts = {"ema": EMA(student.gen, pace.ema), "draws": torch.Generator().manual_seed(seed)}
    for role, lr in zip(roles, (pace.gen_lr, pace.ta_lr), strict=False):
        network = getattr(student, role)
        optimizer = adam((weight for weight in network.parameters() if weight.requires_grad), lr, pace.betas)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        parts |= {role: network, f"{role}_adam": optimizer, f"{role}_rate": schedule}
    return parts


def _arguments(
    student: Student,
    world: LatentDiffusion,
    prompts: Prompts,
    reward: Reward | None,
    parts: dict,
    settings: Settings,
    group: Group,
    micro: int,
) -> dict:
    """What `align` is given in every step."""
    gen, ta, ref = (in_chunks(network, micro) for network in (student.gen, student.ta, world.denoiser))
    given = {"gen": group.joined(gen), "ref": world.score(ref), "reward": in_chunks(reward, micro)}
    given |= {"ta": world.score(group.joined(ta)) if "ta" in parts else None, "schedule": world.schedule}
    given |= {f"{role}_optimizer": parts.get(f"{role}_adam") for role in ("gen", "ta")}
    given |= {"settings": replace(settings, share=group.share), "backward": group.backward}
    return given | {"generator": parts["draws"], "draw_cond": prompts.draw, "null_cond": prompts.null_cond}


def _averaged(evaluate: Callable[[int, Student], dict], student: Student, ema: EMA) -> Callable[[int], dict]:
    """An evaluation of the averaged generator."""

    def of_average(step: int) -> dict:
        with ema.averaged():
            return evaluate(step, student)

    return of_average


def teach(
    folder: str | pathlib.Path,
    student: Student,
    world: LatentDiffusion,
    settings: Settings,
    pace: Pace,
    *,
    prompts: Prompts,
    reward: Reward | None = None,
    seed: int,
    plan: dict | None = None,
    evaluate: Callable[[int, Student], dict] | None = None,
    group: Group = ALONE,
    micro: int = 0,
    adam: Adam = torch.optim.Adam,
    facts: dict | None = None,
    say: Callable[[str], None] = print,
) -> Student:
    """Let a student learn, in place, and return it with the averaged generator; resumed if the folder has begun it.

    reward(x0, cond): see `LatentDiffusion.reward`. plan: fields of `train.Plan`. evaluate(step, student): see
    `train.run`, with the averaged generator. micro: see `in_chunks`. facts: JSON that tells this run from others.
    """
    roles = ("gen", "ta") if settings.ta_steps else ("gen",)
    parts = _parts(student, roles, pace, seed, adam, group)
    given = _arguments(student, world, prompts, reward, parts, settings, group, micro)
    learn = functools.partial(
        train.run,
        folder,
        lambda start: group.records(start, align(**given, steps=pace.steps, start_step=start)),
        parts,
        train.Plan(steps=pace.steps, **(plan or {})),
        {"pace": asdict(pace), "seed": seed, "settings": described(settings)} | (facts or {}),
        after_step=[*(parts[f"{role}_rate"].step for role in roles), parts["ema"].update],
        evaluate=evaluate and _averaged(evaluate, student, parts["ema"]),
    )
    with group.together():
        learn(writes=group.share[0] == 0, anywhere=group.anywhere, say=say)
        with parts["ema"].averaged():
            return Student(group.copied(student.gen), student.ta)
