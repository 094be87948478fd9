"""How far a generator has gone from its reference, in nats, read off their two scores.

Both laws run through the same noise, and their divergence falls with it (de Bruijn's identity, in log-SNR lam):

    KL(p_low || q_low) - KL(p_high || q_high) = 1/2 int E_{xt ~ p_t} |sigma (grad log p_t - grad log q_t)|^2 d lam .

With the assistant for p it measures what no sample can: the divergence of the papers, without their weight. It is as
good as the assistant is, and leaves out detail finer than the noise at `low`.
"""

import torch
from torch import Tensor

from dipp_core.method.schedule import NoiseSchedule, like
from dipp_core.method.scores import Cond, ScoreModel


@torch.no_grad()
def score_kl(
    p: ScoreModel,
    q: ScoreModel,
    x0: Tensor,
    cond: Cond,
    schedule: NoiseSchedule,
    *,
    low: float,
    high: float,
    nodes: int = 16,
    generator: torch.Generator,
) -> Tensor:
    """Estimates (B,) of KL at time `low` less KL at time `high`, one for each sample x0 (B, sample) of p."""
    edges = torch.linspace(low, high, nodes + 1, dtype=torch.float64)
    total = torch.zeros(len(x0), dtype=torch.float64)
    for width, middle in zip(-schedule.log_snr(edges).diff(), (edges[1:] + edges[:-1]) / 2, strict=True):
        t = middle.expand(len(x0))
        eps = torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
        xt = schedule.perturb(x0, t, eps)
        gap = like(schedule.sigma(t), x0) * (p(xt, t, cond) - q(xt, t, cond))
        total += width / 2 * gap.flatten(1).square().sum(-1).double()
    return total
