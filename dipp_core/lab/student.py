"""A one-step generator that learns: what `align` needs beside the reference, and a whole run of it that can be resumed.

The miniature and full scale learn here, with the same code and other numbers.
"""

import copy
import pathlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dipp_core.lab import train
from dipp_core.lab.ema import EMA
from dipp_core.method.algorithm import Settings, align
from dipp_core.method.generator import OneStepGenerator, trainable_copy
from dipp_core.worlds.latent import LatentDiffusion
from dipp_core.worlds.prompts import Prompts

Judge = Callable[[Tensor, Sequence[str]], Tensor]


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


def _parts(student: Student, roles: tuple[str, ...], pace: Pace, seed: int) -> dict[str, Any]:
    """All that changes while a student learns, by name: networks, optimisers, their rates, average, generator."""

    def rate(step: int) -> float:
        return min(1.0, (1 - step / pace.steps) / (1 - pace.flat))

    parts = {"ema": EMA(student.gen, pace.ema), "draws": torch.Generator().manual_seed(seed)}
    for role, lr in zip(roles, (pace.gen_lr, pace.ta_lr), strict=False):
        network = getattr(student, role)
        adam = torch.optim.Adam(network.parameters(), lr, pace.betas)
        parts |= {role: network, f"{role}_adam": adam, f"{role}_rate": torch.optim.lr_scheduler.LambdaLR(adam, rate)}
    return parts


def _arguments(student: Student, world: LatentDiffusion, parts: dict, judge: Judge | None, prompts: Prompts) -> dict:
    """What `align` is given in every step."""
    given = {"gen": student.gen, "ref": world.score(), "ta": world.score(student.ta) if "ta" in parts else None}
    given |= {"reward": judge and world.reward(judge, prompts), "schedule": world.schedule, "generator": parts["draws"]}
    given |= {f"{role}_optimizer": parts.get(f"{role}_adam") for role in ("gen", "ta")}
    return given | {"draw_cond": prompts.draw, "null_cond": prompts.null_cond}


def teach(
    folder: str | pathlib.Path,
    student: Student,
    world: LatentDiffusion,
    settings: Settings,
    pace: Pace,
    *,
    prompts: Prompts,
    judge: Judge | None = None,
    seed: int,
    plan: dict | None = None,
    evaluate: Callable[[int, Student], dict] | None = None,
    say: Callable[[str], None] = print,
) -> Student:
    """Let a student learn, in place, and return it with the averaged generator; resumed if the folder has begun it.

    judge(pictures, texts): the reward. plan: fields of `train.Plan`. evaluate(step, student): see `train.run`; it gets
    the averaged generator.
    """
    roles = ("gen", "ta") if settings.ta_steps else ("gen",)
    parts = _parts(student, roles, pace, seed)
    given = _arguments(student, world, parts, judge, prompts)

    def averaged(step: int) -> dict:
        with parts["ema"].averaged():
            return evaluate(step, student)

    train.run(
        folder,
        lambda start: align(**given, settings=settings, steps=pace.steps, start_step=start),
        parts,
        train.Plan(steps=pace.steps, **(plan or {})),
        {"pace": asdict(pace), "seed": seed},
        after_step=[*(parts[f"{role}_rate"].step for role in roles), parts["ema"].update],
        evaluate=evaluate and averaged,
        say=say,
    )
    with parts["ema"].averaged():
        return Student(copy.deepcopy(student.gen), student.ta)
