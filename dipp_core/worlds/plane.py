"""The plane: worlds small enough to see everything in, and networks small enough to train many at once.

E networks of one shape are trained side by side as one stack: weights carry a leading run axis, data is (E, B, 2), and
a batched matrix product does the work of E separate passes.
"""

import itertools
import math

import torch
from torch import Tensor, nn

from dipp_core.method.schedule import NoiseSchedule
from dipp_core.worlds.gaussian import GaussianMixture


class StackedMLP(nn.Module):
    """E independent MLPs with SiLU between the layers; x (E, B, sizes[0]) -> (E, B, sizes[-1])."""

    def __init__(self, runs: int, sizes: list[int], *, generator: torch.Generator):
        super().__init__()
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for fan_in, fan_out in itertools.pairwise(sizes):
            bound = 1 / math.sqrt(fan_in)
            draw = torch.rand(runs, fan_in + 1, fan_out, generator=generator) * 2 * bound - bound
            self.weights.append(nn.Parameter(draw[:, :-1].clone()))
            self.biases.append(nn.Parameter(draw[:, -1:].clone()))

    def forward(self, x: Tensor) -> Tensor:
        for depth, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, nn.functional.silu(x) if depth else x, weight)
        return x


class StackedNoisePredictor(nn.Module):
    """E networks eps(xt, t, c): an MLP on xt, four features of the log signal-to-noise ratio, and the condition.

    xt (E, B, 2), t (E, B), cond (E, B, k) -> (E, B, 2).
    """

    def __init__(self, runs: int, schedule: NoiseSchedule, *, hidden: int, cond_size: int, generator: torch.Generator):
        super().__init__()
        self.schedule = schedule
        self.body = StackedMLP(runs, [2 + 4 + cond_size, hidden, hidden, hidden, 2], generator=generator)

    def forward(self, xt: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        level = (self.schedule.log_snr(t) / 4).to(xt.dtype).unsqueeze(-1)
        features = torch.cat([level, level.sin(), level.cos(), (2 * level).sin()], dim=-1)
        return self.body(torch.cat([xt, features, cond], dim=-1))


def three_islands() -> tuple[GaussianMixture, Tensor]:
    """Three Gaussian islands and two prompts; returns the law and the prompts (2, 3) as island weights.

    Prompt 0 asks for the two islands in the west, prompt 1 for the eastern one; asked for nothing, all three appear.
    """
    means = torch.tensor([[-1.5, 1.0], [-1.2, -1.2], [1.6, 0.2]], dtype=torch.float64)
    covs = torch.tensor(
        [[[0.10, 0.05], [0.05, 0.12]], [[0.20, -0.06], [-0.06, 0.06]], [[0.06, 0.0], [0.0, 0.30]]], dtype=torch.float64
    )
    prompts = torch.tensor([[0.46, 0.46, 0.08], [0.08, 0.08, 0.84]], dtype=torch.float64)
    return GaussianMixture(prompts.mean(0), means, covs), prompts
