"""What a training step costs, as a ratio to the passes through networks that it cannot do without.

    python -m dipp_core.training.bench

Both networks of the miniature, with random weights, learn by every method. Step and passes are timed by turns in one
run, so that a busy machine disturbs both alike; only ratios mean something.
"""

import ctypes
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from dipp_core.book import config
from dipp_core.method.algorithm import Reward, align
from dipp_core.method.generator import OneStepGenerator, trainable_copy
from dipp_core.method.staged import frozen
from dipp_core.models import folders, miniature
from dipp_core.models.latent import LatentDiffusion
from dipp_core.models.miniature import settings_for
from dipp_core.models.prompts import Prompts
from dipp_core.rewards.shapes import PreferenceReward
from dipp_core.worlds import shapes

SIZE, BATCH, ROUNDS, WARM_UP = "mini", 32, 5, 1
T_STAR, ALPHA_CFG = 625, 0.5
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h


class Pass(NamedTuple):
    """One thing that a step has to do.

    role: gen, ta or ref, which are denoisers, or judge, the VAE's decoder and the learned reward behind it.
    work: "forward" without any gradient; forward and backward for the gradient of "parameters" or of "input"; or
    "update", Adam's step on all parameters. pair: both halves of guidance in one batch, which is then twice as large.
    """

    role: str
    work: str = "forward"
    pair: bool = False

    def __str__(self) -> str:
        return f"{self.role} {self.work}{', two batches in one' if self.pair else ''}"


# Algorithm 1: lines 4 to 6, lines 7 and 12, the scores of lines 10a and 10b, and line 11
FOLLOW = (Pass("gen"), Pass("ta", "parameters"), Pass("ta", "update"))
MOVE = (Pass("gen", "parameters"), Pass("gen", "update"))
INTEGRAL_KL = (Pass("ta"), Pass("ref", pair=True))
SCORE_DIVERGENCE = (Pass("ta", "input"), Pass("ref", "input", pair=True))
REWARD = (Pass("judge", "input"),)
NEEDED = {
    "diff_instruct": FOLLOW + MOVE + INTEGRAL_KL,
    "dipp": FOLLOW + MOVE + INTEGRAL_KL + REWARD,
    "sim": FOLLOW + MOVE + SCORE_DIVERGENCE,
    "distar_in": FOLLOW + MOVE + SCORE_DIVERGENCE + REWARD,
    "reward_only": MOVE + REWARD,
}
ONE_CALL, HALF = Pass("ref", pair=True), Pass("ref")  # guidance in one batch, and one of two calls
STEP = "step"
Times = dict[Pass | str, float]  # seconds


class Roles(NamedTuple):
    """All that a step works with."""

    world: LatentDiffusion
    gen: OneStepGenerator
    ta: nn.Module
    judge: nn.Module
    prompts: Prompts

    def networks(self) -> dict[str, nn.Module]:
        return {"gen": self.gen.network, "ta": self.ta, "ref": self.world.denoiser, "judge": self.judge}

    def reward(self) -> Reward:
        return self.world.reward(self.judge, self.prompts)


def new_roles(kind: str, size: str) -> Roles:
    """The miniature of a kind, "unet" or "dit", through a folder as a trained one would come."""
    words = shapes.vocabulary()
    with tempfile.TemporaryDirectory() as place:
        world = folders.load(miniature.build(pathlib.Path(place) / kind, kind, words=words, size=size))
    judge = PreferenceReward(words).eval().requires_grad_(False)
    prompts = world.prompts(shapes.captions(shapes.split("train")))
    return Roles(world, world.generator(T_STAR), trainable_copy(world.denoiser), judge, prompts)


def one_pass(roles: Roles, one: Pass, batch: int) -> Callable[[], None]:
    """A pass alone, on data of the shape that it has in a step."""
    network, schedule, reward = roles.networks()[one.role], roles.world.schedule, roles.reward()
    parameters, rng = list(network.parameters()), torch.Generator().manual_seed(0)
    if one.work == "update":
        return _update(parameters)
    rows = 2 * batch if one.pair else batch
    device = next(roles.world.denoiser.parameters()).device
    x = torch.randn(rows, *roles.world.z_shape, generator=rng).to(device).requires_grad_(one.work == "input")
    t = schedule.time_of_index(torch.randint(20, 980, (rows,), generator=rng)).to(device)
    cond = roles.prompts.draw((rows,), rng)
    wanted = {"forward": [], "parameters": parameters, "input": [x]}[one.work]

    def run() -> None:
        with torch.set_grad_enabled(bool(wanted)), frozen(parameters if one.work == "input" else []):
            value = reward(x, cond) if one.role == "judge" else network(x, t, cond)
            if wanted:
                torch.autograd.grad(value, wanted, torch.ones_like(value))

    return run


def _update(parameters: list[nn.Parameter]) -> Callable[[], None]:
    adam, gradients = torch.optim.Adam(parameters, lr=0.0), [torch.ones_like(value) for value in parameters]

    def run() -> None:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        adam.step()
        adam.zero_grad(set_to_none=True)

    return run


def one_step(roles: Roles, method: str, batch: int) -> Callable[[], None]:
    """A step of `align` as the miniature takes it; with a learning rate of 0, so that all steps are alike."""
    guided = {} if method == "reward_only" else {"alpha_cfg": ALPHA_CFG}
    steps = align(
        gen=roles.gen,
        ta=roles.world.score(roles.ta),
        ref=roles.world.score(),
        reward=roles.reward(),
        schedule=roles.world.schedule,
        settings=settings_for(roles.world, method, batch, **guided),
        gen_optimizer=torch.optim.Adam(roles.gen.parameters(), lr=0.0),
        ta_optimizer=torch.optim.Adam(roles.ta.parameters(), lr=0.0),
        draw_cond=roles.prompts.draw,
        null_cond=roles.prompts.null_cond,
        generator=torch.Generator().manual_seed(0),
        steps=10**9,
    )
    return lambda: next(steps)


def seconds(function: Callable[[], None]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure(roles: Roles, *, batch: int, rounds: int) -> dict[str, list[Times]]:
    """By method, a round each: a step, and right after it each of its passes. "guidance": one call, and half of two."""
    passes = {one: one_pass(roles, one, batch) for needed in NEEDED.values() for one in needed}
    work = {name: {STEP: one_step(roles, name, batch)} | {p: passes[p] for p in NEEDED[name]} for name in NEEDED}
    work["guidance"] = {ONE_CALL: passes[ONE_CALL], HALF: one_pass(roles, HALF, batch)}
    found = {name: [] for name in work}
    for _ in range(WARM_UP + rounds):
        for name, group in work.items():
            found[name].append({what: seconds(function) for what, function in group.items()})
    return {name: turns[WARM_UP:] for name, turns in found.items()}


def step_over_passes(turns: list[Times]) -> float:
    """Time of a step over the sum of what it needs; median over the rounds."""
    return statistics.median(turn[STEP] / sum(turn[what] for what in turn if what != STEP) for turn in turns)


def one_call_over_two(turns: list[Times]) -> float:
    """Time of guidance in one batch over that of two calls; median over the rounds."""
    return statistics.median(turn[ONE_CALL] / (2 * turn[HALF]) for turn in turns)


def milliseconds(turns: list[Times], what: Pass | str) -> float:
    """Median over the rounds that have it."""
    return 1000 * statistics.median(turn[what] for turn in turns if what in turn)


def keep_memory() -> None:
    """Let the C library keep what is freed, where it is glibc.

    It hands large blocks back to the system, which hands them out anew page by page: that costs a step, whose graphs
    are larger than those of any pass alone, up to a fifth of its time, and is no work of the method.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(M_MMAP_THRESHOLD, 32 * 2**20)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def main() -> None:
    torch.set_num_threads(config.read()["threads"])
    keep_memory()
    print(f"batch {BATCH}, {ROUNDS} rounds, {torch.get_num_threads()} threads of {os.cpu_count()} cores; medians")
    for kind in miniature.KINDS:
        found = measure(new_roles(kind, SIZE), batch=BATCH, rounds=ROUNDS)
        turns = [turn for group in found.values() for turn in group]
        print(f"\n{kind:30} {'alone, ms':>10}")
        for what in dict.fromkeys(what for turn in turns for what in turn if what != STEP):
            print(f"{what!s:30} {milliseconds(turns, what):10.1f}")
        print(f"guidance in one call over two calls: {one_call_over_two(found['guidance']):.2f}")
        print(f"\n{kind:30} {'a step, ms':>10} {'over its passes':>16}")
        for method in NEEDED:
            print(f"{method:30} {milliseconds(found[method], STEP):10.1f} {step_over_passes(found[method]):16.2f}")


if __name__ == "__main__":
    main()
