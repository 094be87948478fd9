"""Sweeps in the plane: many runs of Algorithm 1 side by side, through the one loop `align`.

A *stack* is E generators with their E assistants. Runs are independent: they share code and time, not numbers. So a
sweep over beta with five seeds is one call of `train` on a stack of 5 len(beta) runs.
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from dipp_core.method.algorithm import DrawCond, Generate, Reward, Settings, StepRecord, align, preset
from dipp_core.method.schedule import (
    NoiseSchedule,
    Weighting,
    constant_weight,
    edm,
    normalised,
    sigma_power_weight,
    uniform_time,
)
from dipp_core.method.scores import ScoreModel, score_model
from dipp_core.worlds.gaussian import NoiseLevels, noise_levels
from dipp_core.worlds.plane import StackedDenoiser, StackedGenerator, World
from dipp_core.worlds.plane_optimum import PlaneGrid, evaluate, histogram, mixture_log_reference, plane_grid

WEIGHTS: dict[str, Callable[[NoiseSchedule], Weighting]] = {
    "one": lambda schedule: constant_weight(),
    "sigma": lambda schedule: sigma_power_weight(schedule, 1.0),
    "sigma2": lambda schedule: sigma_power_weight(schedule, 2.0),
}


def plane_schedule() -> NoiseSchedule:
    """The noise of the plane: EDM, sigma from a third of a mode's width to the width of the world."""
    return edm(0.1, 3.0)


@dataclass(frozen=True)
class Stack:
    """E generators and their assistants, networks of one shape."""

    gen: StackedGenerator
    ta: StackedDenoiser

    @property
    def runs(self) -> int:
        return self.gen.body.biases[0].shape[0]

    @property
    def s_ta(self) -> ScoreModel:
        """The assistants as a score model."""
        return score_model(self.ta, self.ta.schedule, "x0")

    def pick(self, runs: Iterable[int]) -> "Stack":
        """A new stack of copies of these runs, a run as often as it is named."""
        index = torch.as_tensor(list(runs))
        picked = copy.deepcopy(self)
        for module in (picked.gen, picked.ta):
            for parameter in module.parameters():
                parameter.data = parameter.data[index].clone()
        return picked

    def repeat(self, times: int) -> "Stack":
        """Every run `times` times in a row: runs 0 0 0 1 1 1 ..."""
        return self.pick(torch.arange(self.runs).repeat_interleave(times).tolist())

    def state(self) -> dict[str, Tensor]:
        """All parameters by name, to be saved."""
        nets = {"gen": self.gen, "ta": self.ta}
        return {f"{role}.{name}": value for role, net in nets.items() for name, value in net.state_dict().items()}

    def load(self, state: dict[str, Tensor]) -> "Stack":
        """Take over saved parameters."""
        for role, net in (("gen", self.gen), ("ta", self.ta)):
            own = {name.removeprefix(f"{role}."): value for name, value in state.items() if name.startswith(f"{role}.")}
            net.load_state_dict(own)
        return self


def new_stack(world: World, runs: int, hidden: int, *, generator: torch.Generator) -> Stack:
    """Networks before any training."""
    size, spread = world.prompts.shape[1], world.spread
    gen = StackedGenerator(runs, hidden=hidden, cond_size=size, spread=spread, generator=generator)
    ta = StackedDenoiser(runs, world.schedule, hidden=hidden, cond_size=size, spread=spread, generator=generator)
    return Stack(gen, ta)


def settings_for(world: World, name: str, runs: int, batch: int, *, weight: str = "sigma2", **numbers: Any) -> Settings:
    """A member of the family (`algorithm.PRESETS`) for E runs in the plane; w is normalised to E[w] = 1."""
    law = numbers.setdefault("time_sampler", uniform_time())
    numbers.setdefault("ta_weight", sigma_power_weight(world.schedule))
    w = normalised(WEIGHTS[weight](world.schedule), law)
    return preset(name, batch_shape=(runs, batch), z_shape=(2,), weight=w, **numbers)


@dataclass(frozen=True)
class Curves:
    """What `align` recorded, a tensor (steps, E) a curve: terms, `norm_*` at x0, `grad_norm`, `ta_loss`."""

    step: Tensor
    values: dict[str, Tensor]

    def smooth(self, name: str, window: int) -> tuple[Tensor, Tensor]:
        """Means over windows of records: steps (n,), values (n, E)."""
        steps, values = (curve.unfold(0, window, window).mean(-1) for curve in (self.step.float(), self.values[name]))
        return steps, values


def train(
    stack: Stack,
    world: World,
    settings: Settings,
    *,
    reward: Reward | None = None,
    ref: ScoreModel | None = None,
    ta: ScoreModel | None = None,
    gen: Generate | None = None,
    draw_cond: DrawCond | None = None,
    steps: int,
    gen_lr: float,
    ta_lr: float,
    falling: bool = True,
    betas: tuple[float, float] = (0.0, 0.99),
    ta_betas: tuple[float, float] | None = None,
    generator: torch.Generator,
    watch: Callable[[StepRecord], None] | None = None,
) -> Curves:
    """Run `align` on a stack; learning rates are constant for the first half, and fall linearly to 0 in the second.

    Not `falling`: they stay, and what happens by some step does not depend on how many steps follow.

    `ref`, `ta`, `gen` and `draw_cond` replace those of the world and the stack; `watch` sees every record.
    """
    gen_optimizer = torch.optim.Adam(stack.gen.parameters(), lr=gen_lr, betas=betas)
    ta_optimizer = torch.optim.Adam(stack.ta.parameters(), lr=ta_lr, betas=ta_betas or betas)
    optimizers = [gen_optimizer, ta_optimizer] if settings.ta_steps else [gen_optimizer]
    rate = (lambda step: min(1.0, 2 * (1 - step / steps))) if falling else (lambda step: 1.0)
    decay = [LambdaLR(optimizer, rate) for optimizer in optimizers]
    records = align(
        gen=stack.gen if gen is None else gen,
        ta=stack.s_ta if ta is None else ta,
        ref=world.ref if ref is None else ref,
        reward=reward,
        schedule=world.schedule,
        settings=settings,
        gen_optimizer=gen_optimizer,
        ta_optimizer=ta_optimizer,
        draw_cond=world.draw_cond if draw_cond is None else draw_cond,
        null_cond=world.null_cond,
        generator=generator,
        steps=steps,
    )
    rows = []
    for record in records:
        for scheduler in decay:
            scheduler.step()
        if watch:
            watch(record)
        rows.append(_row(record))
    values = {name: torch.stack([row[name] for row in rows]) for name in rows[0]} if rows else {}
    return Curves(torch.arange(len(rows)), values)


def _row(record: StepRecord) -> dict[str, Tensor]:
    row = dict(record.terms) | {f"norm_{name}": value for name, value in record.x0_grad_norms.items()}
    row["grad_norm"] = record.grad_norm
    return row if record.ta_loss is None else row | {"ta_loss": record.ta_loss}


def distilled(world: World, seeds: int, p: Any, *, generator: torch.Generator) -> Stack:
    """A stack to start from, by Diff-Instruct from scratch; p: hidden, distil_batch, distil_steps and the rates."""
    stack = new_stack(world, seeds, p.hidden, generator=generator)
    settings = settings_for(world, "diff_instruct", seeds, p.distil_batch)
    rates = {"gen_lr": p.distil_gen_lr, "ta_lr": p.ta_lr, "generator": generator}
    train(stack, world, settings, steps=p.distil_steps, **rates)
    return stack


@torch.no_grad()
def generate(stack: Stack, world: World, prompt: int, count: int, *, generator: torch.Generator) -> Tensor:
    """Samples of every run for one prompt, (E, count, 2), from the same z for all of them."""
    z = torch.randn(1, count, 2, generator=generator).expand(stack.runs, -1, -1)
    cond = world.prompts[prompt].float().expand(stack.runs, count, -1)
    return stack.gen(z, cond)


# What samples are worth: how far their distribution is from the reference

DIVERGENCES = {"ikl_one": "one", "ikl_sigma2": "sigma2", "kl": "least"}  # a divergence, and the grid that measures it


def levels_for(world: World, weight: str, n: int = 24) -> NoiseLevels:
    """The noise levels of a sweep with this weighting (`settings_for`), as a quadrature."""
    law = uniform_time()
    return noise_levels(world.schedule, law, normalised(WEIGHTS[weight](world.schedule), law), n)


def grids_for(world: World, prompt: int, reward: Callable[[Tensor], Tensor], **numbers) -> dict[str, PlaneGrid]:
    """The grid of one prompt, for the integral KL with w = one and w = sigma2, and for the KL after the least noise."""
    reference = mixture_log_reference(world.law, world.schedule, world.prompts[prompt])
    least = NoiseLevels(world.schedule, torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    levels = {weight: levels_for(world, weight) for weight in ("one", "sigma2")} | {"least": least}
    return {name: plane_grid(reference, reward, chosen, **numbers) for name, chosen in levels.items()}


def divergences(grids: dict[str, PlaneGrid], samples: Tensor) -> dict[str, Tensor]:
    """IKL with w = 1, IKL with w = sigma^2, and the KL after the least noise, of samples (R, N, 2); (R,) each.

    From histograms, so with a bias of about (cells that matter) / 2N; `ikl_sigma2` has next to none.
    """
    law = histogram(grids["one"], samples)
    return {name: evaluate(grids[key], law).integral_kl for name, key in DIVERGENCES.items()}


def both_prompts(draw: Callable[[int], Tensor]) -> Tensor:
    """Samples of prompt 0 and, mirrored, of prompt 1; on the ring these are the same law."""
    return torch.cat([draw(0), draw(1) * torch.tensor([-1.0, 1.0])], dim=-2)
