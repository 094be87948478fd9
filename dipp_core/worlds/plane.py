"""The plane: worlds small enough to see everything in, and networks small enough to train many at once.

E networks of one shape are trained side by side as one stack: weights carry a leading run axis, data is (E, B, 2), and
a batched matrix product does the work of E separate passes.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dipp_core.method.schedule import NoiseSchedule
from dipp_core.method.scores import ScoreModel
from dipp_core.worlds.gaussian import GaussianMixture, exact_score


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


class StackedGenerator(nn.Module):
    """E one-step generators g(z, c) of their own, not made from a diffusion: x0 = spread * MLP(z, c).

    z (E, B, 2), cond (E, B, k) component weights -> (E, B, 2).
    """

    def __init__(self, runs: int, *, hidden: int, cond_size: int, spread: float, generator: torch.Generator):
        super().__init__()
        self.spread = spread
        self.body = StackedMLP(runs, [2 + cond_size, hidden, hidden, hidden, 2], generator=generator)

    def forward(self, z: Tensor, cond: Tensor) -> Tensor:
        return self.spread * self.body(torch.cat([z, _centred(cond)], dim=-1))


class StackedDenoiser(nn.Module):
    """E networks D(xt, t, c) that predict x0 with EDM's preconditioning: what is left to learn has unit size.

    With y = xt / alpha, s = sigma / alpha, and v = spread^2, the variance of the data a coordinate,

        D = v / (s^2 + v) y + s sqrt(v / (s^2 + v)) F(y / sqrt(s^2 + v), features of log s, c).

    xt (E, B, 2), t (E, B), cond (E, B, k) component weights -> (E, B, 2).
    """

    def __init__(
        self,
        runs: int,
        schedule: NoiseSchedule,
        *,
        hidden: int,
        cond_size: int,
        spread: float,
        generator: torch.Generator,
    ):
        super().__init__()
        self.schedule, self.spread = schedule, spread
        self.body = StackedMLP(runs, [2 + 2 + cond_size, hidden, hidden, hidden, 2], generator=generator)

    def forward(self, xt: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        y = xt / self.schedule.alpha(t).to(xt.dtype).unsqueeze(-1)
        log_s = (-0.5 * self.schedule.log_snr(t)).to(xt.dtype).unsqueeze(-1)
        v, variance = self.spread**2, self.spread**2 + (2 * log_s).exp()
        features = torch.cat([y * variance.rsqrt(), log_s / 2, (1.5 * log_s).sin(), _centred(cond)], dim=-1)
        return v / variance * y + log_s.exp() * (v / variance).sqrt() * self.body(features)


def _centred(cond: Tensor) -> Tensor:
    """Component weights (..., k) as network input: 0 where every component weighs the same."""
    return cond * cond.shape[-1] - 1


@dataclass(frozen=True)
class World:
    """A law in the plane whose diffused scores are known, and the prompts (n, k) that weigh its components.

    Asked for nothing, the law is the mean over the prompts, as for a diffusion trained with its prompts dropped.
    """

    law: GaussianMixture
    prompts: Tensor
    schedule: NoiseSchedule

    @property
    def ref(self) -> ScoreModel:
        """The exact reference diffusion, float32."""
        return exact_score(self.law.to(torch.float32), self.schedule)

    @property
    def null_cond(self) -> Tensor:
        """The component weights of the empty prompt, (k,)."""
        return self.law.weights.float()

    @property
    def spread(self) -> float:
        """Standard deviation of the data a coordinate, over both coordinates."""
        mean = self.law.weights @ self.law.means
        within = torch.einsum("k,kii->", self.law.weights, self.law.covs)
        between = self.law.weights @ (self.law.means - mean).square().sum(-1)
        return math.sqrt(float(within + between) / 2)

    def draw_cond(self, batch_shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Prompts drawn uniformly, (*batch_shape, k)."""
        which = torch.randint(len(self.prompts), tuple(batch_shape), generator=generator)
        return self.prompts.float()[which]

    def sample(self, prompt: int, shape: Sequence[int], *, generator: torch.Generator) -> Tensor:
        """Data of one prompt, (*shape, 2), float32."""
        return self.law.given(self.prompts[prompt]).sample(shape, generator=generator).float()


def ring(schedule: NoiseSchedule, *, modes: int = 8, radius: float = 2.0, std: float = 0.3, tilt: float = 0.8) -> World:
    """Gaussians on a ring and two soft classes: prompts 0 and 1 weigh mode k by (1 +- tilt cos theta_k) / modes."""
    angle = torch.arange(modes, dtype=torch.float64) * (2 * math.pi / modes)
    prompts = torch.stack([(1 + tilt * angle.cos()) / modes, (1 - tilt * angle.cos()) / modes])
    means = radius * torch.stack([angle.cos(), angle.sin()], dim=-1)
    return _world(means, std, prompts, schedule)


def one_gaussian(schedule: NoiseSchedule, *, std: float) -> World:
    """A single round Gaussian at the origin; its two prompts ask for the same."""
    return _world(torch.zeros(1, 2, dtype=torch.float64), std, torch.ones(2, 1, dtype=torch.float64), schedule)


def two_moons(schedule: NoiseSchedule, *, beads: int = 9, std: float = 0.22) -> World:
    """Two interleaved half circles of Gaussian beads; prompt 0 asks for the upper moon, prompt 1 for the lower one."""
    angle = torch.linspace(0, math.pi, beads, dtype=torch.float64)
    arc = 1.8 * torch.stack([angle.cos(), angle.sin()], dim=-1)
    offset = torch.tensor([0.9, 0.45], dtype=torch.float64)
    means = torch.cat([arc - offset, offset - arc])
    upper = torch.arange(2 * beads) < beads
    return _world(means, std, _soft_classes(upper), schedule)


def checkerboard(schedule: NoiseSchedule, *, std: float = 0.2) -> World:
    """The black fields of a 4 x 4 board, four Gaussians a field; prompt 0: left half, prompt 1: right half."""
    fields = [(i - 1.5, j - 1.5) for i in range(4) for j in range(4) if (i + j) % 2 == 0]
    centres = 1.2 * torch.tensor(fields, dtype=torch.float64)
    corners = 0.3 * torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]], dtype=torch.float64)
    means = (centres[:, None] + corners).flatten(0, 1)
    return _world(means, std, _soft_classes(means[:, 0] < 0), schedule)


def _soft_classes(first: Tensor, share: float = 0.9) -> Tensor:
    """Two prompts, (2, k): each gives `share` of its mass to its own half of the components, evenly."""
    prompts = torch.stack([torch.where(first, share, 1 - share), torch.where(first, 1 - share, share)]).double()
    return prompts / prompts.sum(-1, keepdim=True)


def _world(means: Tensor, std: float, prompts: Tensor, schedule: NoiseSchedule) -> World:
    covs = std**2 * torch.eye(2, dtype=torch.float64).expand(len(means), 2, 2)
    return World(GaussianMixture(prompts.mean(0), means, covs), prompts, schedule)


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


# Samples against the distribution that they should have


def sliced_w2(x: Tensor, y: Tensor, projections: int = 48) -> float:
    """Sliced 2-Wasserstein distance of two clouds in the plane, (N, 2) each, over equally spaced angles.

    On a line the optimal transport between clouds of equal size pairs sorted points.
    """
    angles = torch.arange(projections, dtype=x.dtype, device=x.device) * (math.pi / projections)
    directions = torch.stack([angles.cos(), angles.sin()])
    gap = (x @ directions).sort(dim=0).values - (y @ directions).sort(dim=0).values
    return gap.square().mean().sqrt().item()


def coverage(samples: Tensor, means: Tensor, target: Tensor, radius: float, share: float = 0.25) -> Tensor:
    """How many modes are covered: those with more than `share` of their target weight within `radius`.

    samples (..., N, 2), means (k, 2), target weights (k,) -> (...), whole numbers.
    """
    near = (samples.unsqueeze(-2) - means).norm(dim=-1) < radius
    return (near.float().mean(-2) > share * target).sum(-1)


def precision(samples: Tensor, means: Tensor, radius: float) -> Tensor:
    """The share of samples within `radius` of some mode; samples (..., N, 2), means (k, 2) -> (...)."""
    near = (samples.unsqueeze(-2) - means).norm(dim=-1) < radius
    return near.any(-1).float().mean(-1)


def mode_weights(samples: Tensor, means: Tensor) -> Tensor:
    """The share of samples whose nearest mode is k; samples (..., N, 2), means (k, 2) -> (..., k)."""
    nearest = (samples.unsqueeze(-2) - means).norm(dim=-1).argmin(-1)
    return torch.nn.functional.one_hot(nearest, len(means)).float().mean(-2)
