"""Rewards in the plane: known ones, one learned from preferences, and one that may be asked but not differentiated.

A reward is a function (x0 (..., B, 2), cond) -> (..., B), as `align` wants it; none of those here looks at the prompt.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dipp_core.method.algorithm import Generate, Reward
from dipp_core.method.schedule import like
from dipp_core.method.scores import Cond


def linear(direction: tuple[float, float] = (0.0, 1.0)) -> Reward:
    """r(x) = direction . x, without a maximum: whatever stops the generator, it is not the reward."""

    def reward(x0: Tensor, cond: Cond = None) -> Tensor:
        return x0 @ x0.new_tensor(direction)

    return reward


def bump(centre: tuple[float, float] = (0.0, 2.0), width: float = 1.0, height: float = 3.0) -> Reward:
    """r(x) = height exp(-|x - centre|^2 / (2 width^2)), bounded, with one best point."""

    def reward(x0: Tensor, cond: Cond = None) -> Tensor:
        return height * (-0.5 * (x0 - x0.new_tensor(centre)).square().sum(-1) / width**2).exp()

    return reward


def preference_pairs(oracle: Reward, a: Tensor, b: Tensor, *, generator: torch.Generator) -> Tensor:
    """Judgements of pairs by Bradley and Terry's law, P(a wins) = sigmoid(r(a) - r(b)): True where a won, (..., B)."""
    chance = torch.sigmoid(oracle(a, None) - oracle(b, None))
    return torch.rand(chance.shape, generator=generator) < chance


def learn_preferences(
    oracle: Reward,
    draw: Callable[[tuple[int, ...], torch.Generator], Tensor],
    network: nn.Module,
    *,
    runs: int,
    pairs: int,
    steps: int,
    batch: int = 256,
    lr: float = 3e-3,
    generator: torch.Generator,
) -> tuple[Reward, Tensor]:
    """E rewards learned from judged pairs, each run from pairs of its own; returns (reward, loss curve (steps, E)).

    `network` is a stack of E networks, (E, B, 2) -> (E, B, 1), say `plane.StackedMLP(E, [2, 64, 64, 1], generator=..)`.
    Minimises -log sigmoid(+-(r(a) - r(b))) over pairs of draws `draw(shape, generator) -> (*shape, 2)`. What the
    judge thinks far from those draws, the learned reward cannot know. Its mean over the draws is 0, since pairs do not
    fix the zero point.
    """
    a, b = draw((runs, pairs), generator), draw((runs, pairs), generator)
    sign = 2.0 * preference_pairs(oracle, a, b, generator=generator) - 1
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses, row = [], torch.arange(runs)[:, None]
    for _ in range(steps):
        index = torch.randint(pairs, (runs, batch), generator=generator)
        margin = sign[row, index] * (network(a[row, index]) - network(b[row, index])).squeeze(-1)
        loss = -torch.nn.functional.logsigmoid(margin).mean(-1)
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
        decay.step()
        losses.append(loss.detach())
    network.requires_grad_(False)
    level = network(a).mean(-2)
    return lambda x0, cond=None: network(x0).squeeze(-1) - level, torch.stack(losses)


def values_only(
    reward: Reward, *, std: float, kl_weight: Tensor | float, start: Generate, generator: torch.Generator
) -> Reward:
    """REINFORCE with a KL leash, as a surrogate to be maximised by `align` with the preset "reward_only".

    The policy is x ~ N(x0, std^2 I) with x0 = g(z, c); its reward is only asked for, never differentiated:

        gradient  E[(r(x) - mean r) grad log N(x; x0, std^2 I)] - kl_weight grad |x0 - start(z, c)|^2 / (2 std^2),

    the last being KL(policy | start policy) for every z by itself. The condition is {"z": .., "cond": ..}, so that the
    reward sees the noise that the sample was made of; see `with_noise`.
    """

    def surrogate(x0: Tensor, noted: Cond) -> Tensor:
        with torch.no_grad():
            x = x0 + std * torch.randn(x0.shape, generator=generator)
            value = reward(x, noted["cond"])
            advantage = value - value.mean(-1, keepdim=True)
            home = start(noted["z"], noted["cond"])
        log_chance = -(x - x0).square().sum(-1) / (2 * std**2)
        leash = (x0 - home).square().sum(-1) / (2 * std**2)
        return advantage * log_chance - like(kl_weight, leash) * leash

    return surrogate


def with_noise(gen: Generate, draw_cond: Callable) -> tuple[Generate, Callable]:
    """A generator and a source of prompts whose condition carries the noise z along, for `values_only`."""

    def draw(batch_shape: tuple[int, ...], generator: torch.Generator) -> Cond:
        return {"z": torch.randn(*batch_shape, 2, generator=generator), "cond": draw_cond(batch_shape, generator)}

    return lambda z, noted: gen(noted["z"], noted["cond"]), draw
