"""Small worlds for the exercise on reward hacking: five learned rewards, a dial beta, and an oracle that nobody shows.

In one dimension, the reference is N(0, 1), and the generator N(m, 1). The oracle likes x near a point at the rim of the
data. Each of five rewards is piecewise linear, fitted to the oracle's noisy judgement of some draws of the reference,
and therefore goes on in a straight line where there are no draws. The generator maximises  E r_1 - beta m^2 / 2  over
m. Every number is exact, up to the grid of m.
"""

import math
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

BETAS = (16.0, 8.0, 4.0, 2.0, 1.4, 1.0, 0.7, 0.5, 0.35, 0.25, 0.18, 0.12, 0.06, 0.03, 0.015)
KNOTS = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
DRAWS, NOISE = 60, 0.7  # judged draws a reward is fitted to, and the noise of the judgement


@dataclass(frozen=True)
class HackingWorld:
    """table: what a user sees, one row a beta; oracle: what only the check sees, aligned with it; start: at m = 0."""

    table: pd.DataFrame
    oracle: Tensor
    start: float


def hacking_world(seed: int) -> HackingWorld:
    """One world. Columns of the table: beta, learned (what was maximised), five (mean of all five), disagreement
    (their standard deviation), disagreement_on_data (the same at the start), kl (the price paid, in nats)."""
    rng = torch.Generator().manual_seed(seed)
    u, v = torch.rand(2, generator=rng, dtype=torch.float64)
    favourite, unit = 1.0 + 1.2 * u, torch.exp(2.8 * v - 1.4)  # rewards come in units of their own
    x = torch.randn(5, DRAWS, generator=rng, dtype=torch.float64)
    judged = unit * (_oracle(x, favourite) + NOISE * torch.randn(5, DRAWS, generator=rng, dtype=torch.float64))
    parts = torch.cat([torch.ones_like(x)[..., None], x[..., None], (x[..., None] - KNOTS).clamp(min=0)], dim=-1)
    ridge = 0.5 * torch.eye(parts.shape[-1], dtype=torch.float64)
    rewards = torch.linalg.solve(parts.mT @ parts + ridge, (parts.mT @ judged.unsqueeze(-1)).squeeze(-1))
    m = torch.linspace(-20, 20, 1601, dtype=torch.float64)
    means = torch.cat([torch.ones_like(m)[:, None], m[:, None], _mean_above(m[:, None] - KNOTS)], dim=-1) @ rewards.T
    betas = torch.tensor(BETAS, dtype=torch.float64)
    best = (means[:, :1] - betas * m[:, None].square() / 2).argmax(0)
    spread = means.std(-1)
    table = {
        "beta": betas,
        "learned": means[best, 0],
        "five": means[best].mean(-1),
        "disagreement": spread[best],
        "disagreement_on_data": spread[len(m) // 2].expand(len(betas)),
        "kl": m[best].square() / 2,
    }
    z = torch.linspace(-4, 4, 161, dtype=torch.float64)
    oracle = unit * _oracle(m[:, None] + z, favourite) @ (-0.5 * z.square()).softmax(-1)
    frame = pd.DataFrame({name: values.tolist() for name, values in table.items()})
    return HackingWorld(frame, oracle[best], oracle[len(m) // 2].item())


def _oracle(x: Tensor, favourite: Tensor) -> Tensor:
    return 3 * (-0.5 * (x - favourite).square()).exp()


def _mean_above(shift: Tensor) -> Tensor:
    """E max(x, 0) for x ~ N(shift, 1)."""
    density = (-0.5 * shift.square()).exp() / math.sqrt(2 * math.pi)
    return shift * torch.special.ndtr(shift) + density


def share_kept(world: HackingWorld, row: int) -> float:
    """What a choice gains for the oracle over the start, in units of what the best row gains; at least -1."""
    gain = (world.oracle[row] - world.start) / (world.oracle.max() - world.start).clamp(min=1e-9)
    return max(-1.0, float(gain))
