"""The optimum of Diff-Instruct++ in the plane, over all laws on a grid, with a certificate; and its rivals there.

For a law p of atoms x_i on an n x n grid over a square, p_k its density after noise at level k, and q_k the reference,

    F(p) = -alpha_rew E_p[r] + IKL(p),    IKL(p) = sum_k w_k KL(p_k || q_k),
    grad F(x) = -alpha_rew r(x) + sum_k w_k E[log p_k(x_k) / q_k(x_k) + 1],    x_k ~ N(alpha_k x, sigma_k^2 I).

F is convex in p, so any p carries its own certificate, the Frank-Wolfe duality gap,

    sum_k w_k KL(p_k || p*_k)  <=  F(p) - F(p*)  <=  <grad F(p), p> - min_x grad F(p)(x),

where p* is the best law on this grid: of laws that leave the square it says nothing. Noise is separable, so p_k is two
small matrix products, on a grid of its own with spacing 0.9 sigma_k. R problems are solved side by side, in float64.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dipp_core.method.schedule import NoiseSchedule
from dipp_core.method.scores import Cond
from dipp_core.worlds.gaussian import GaussianMixture, NoiseLevels

# (x (m, m, 2), t () or None for no noise) -> log q_t(x), (m, m), or (R, m, m) where every problem has its own
LogReference = Callable[[Tensor, Tensor | None], Tensor]
Reward = Callable[[Tensor], Tensor]
Numbers = Sequence[float] | Tensor | float

SPACING, MARGIN = 0.9, 4.5  # of a level's own grid, in units of its sigma
MOMENTUM = 5  # after this many iterations momentum is 1/2
LOOK = 10  # so often the mean of the iterates is looked at


@dataclass(frozen=True)
class PlaneGrid:
    """What does not depend on p. Atoms axis x axis and, at them, reward (n, n), log_prior = log q_0 normalised and
    log_start = log q at the least noise, (1 or R, n, n).

    A level is (kernel, log masses of q_k, w_k), and kernel p kernel^T are the masses of p_k in the cells of its grid.
    """

    axis: Tensor
    reward: Tensor
    log_prior: Tensor
    log_start: Tensor
    levels: list[tuple[Tensor, Tensor, float]]


@dataclass(frozen=True)
class GridLaws:
    """R laws on a grid, probability (R, n, n) at axis x axis, and what they are worth, (R,) each.

    kl is KL(p || q_0) with q_0 normalised on the grid; objective is F(p) for alpha_rew, duality_gap its certificate.
    """

    axis: Tensor
    probability: Tensor
    alpha_rew: Tensor
    reward: Tensor
    integral_kl: Tensor
    kl: Tensor
    objective: Tensor
    duality_gap: Tensor

    def sample(self, shape: Sequence[int], *, generator: torch.Generator) -> Tensor:
        """Draws (R, *shape, 2), spread evenly over the cell of their atom."""
        n, count = len(self.axis), math.prod(shape)
        atom = torch.multinomial(self.probability.flatten(1), count, replacement=True, generator=generator)
        jitter = (torch.rand(*atom.shape, 2, dtype=torch.float64, generator=generator) - 0.5) * self.axis.diff()[0]
        return (self.axis[torch.stack([atom // n, atom % n], dim=-1)] + jitter).reshape(len(atom), *shape, 2)

    def mean_of(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """E_p[f(x)] over the atoms, f: (n, n, 2) -> (n, n, ...); (R, ...)."""
        return torch.tensordot(self.probability, function(_points(self.axis)).double(), dims=2)


def mixture_log_reference(
    law: GaussianMixture, schedule: NoiseSchedule, cond: Cond = None, *, null_cond: Cond = None, alpha_cfg: Numbers = 0
) -> LogReference:
    """log p_t(x | c) + alpha_cfg [log p_t(x | c) - log p_t(x | null)]; with R values of alpha_cfg, one a problem.

    Guided, it is no normalised density: IKL and F are then true up to a constant.
    """
    strength = _column(alpha_cfg)

    def log_reference(x: Tensor, t: Tensor | None) -> Tensor:
        laws = (law.given(c) for c in (cond, null_cond))
        found, null = ((p if t is None else p.diffused(schedule, t)).log_prob(x) for p in laws)
        return found + strength * (found - null)

    return log_reference


@torch.no_grad()
def plane_grid(
    log_reference: LogReference, reward: Reward, levels: NoiseLevels, *, extent: float = 4.0, points: int = 81
) -> PlaneGrid:
    """A grid of points x points atoms over [-extent, extent]^2, for a reward (n, n, 2) -> (n, n)."""

    def batched(x: Tensor, t: Tensor | None) -> Tensor:
        return log_reference(x, t).double().reshape(-1, *x.shape[:2])

    axis, prepared = torch.linspace(-extent, extent, points, dtype=torch.float64), []
    for t, alpha, sigma, w in zip(levels.t, levels.alpha.tolist(), levels.sigma.tolist(), levels.w, strict=True):
        reach = alpha * extent + MARGIN * sigma
        y = torch.linspace(-reach, reach, math.ceil(2 * reach / (SPACING * sigma)) + 1, dtype=torch.float64)
        cell = float(y[1] - y[0])
        kernel = torch.exp(-0.5 * ((y[:, None] - alpha * axis) / sigma) ** 2) * cell / (sigma * math.sqrt(2 * math.pi))
        prepared.append((kernel, batched(_points(y), t) + 2 * math.log(cell), float(w)))
    atoms, first = _points(axis), levels.noise_var.argmin()
    start = batched(levels.alpha[first] * atoms, levels.t[first])
    return PlaneGrid(axis, reward(atoms).double(), _normalised(batched(atoms, None)), start, prepared)


def solve_on_grid(grid: PlaneGrid, alpha_rew: Numbers, *, steps: int = 200, tolerance: float = 2e-3) -> GridLaws:
    """The minimum of F over laws on the grid, for R values of alpha_rew side by side.

    Mirror descent, log p <- log p - grad F / sum_k w_k, cannot overshoot, since noise only lowers a KL; Nesterov's
    momentum in log p makes it fast. In far cells that hold nothing momentum swings below the optimum, and one such cell
    spoils the gap; the mean of the iterates, with weights ~ step^2, does not, so both are looked at. A problem is done
    when its gap in units of the reward (gap / alpha_rew, or the gap itself without a reward) is at most `tolerance`.
    Returned is the law of the smallest gap seen, which after `steps` may still be above it: look at it.
    """
    rate = 1 / sum(w for *_, w in grid.levels)
    log_p = _normalised(grid.log_start + rate * _column(alpha_rew) * grid.reward)
    alpha_rew = torch.as_tensor(alpha_rew, dtype=torch.float64).expand(len(log_p))
    goal = tolerance * torch.where(alpha_rew > 0, alpha_rew, 1.0)
    best, best_p, mean, move = torch.full_like(goal, torch.inf), log_p.exp(), log_p.exp(), torch.zeros_like(log_p)
    for step in range(steps):
        at = _normalised(log_p + step / (step + MOMENTUM) * move)
        p = at.exp()
        mean = mean.lerp(p, 3 / (step + 3))
        _, slope, gap, _ = _objective(grid, p, alpha_rew)
        laws = [(p, gap), (mean, _objective(grid, mean, alpha_rew)[2])] if step % LOOK == LOOK - 1 else [(p, gap)]
        for law, its_gap in laws:
            better = (its_gap < best) & (best > goal)
            best, best_p = torch.where(better, its_gap, best), torch.where(better[:, None, None], law, best_p)
        if (best <= goal).all():
            break
        log_p, last = _normalised(at - rate * slope), log_p
        move = log_p - last
    return evaluate(grid, best_p, alpha_rew)


def evaluate(grid: PlaneGrid, probability: Tensor, alpha_rew: Numbers = 0.0) -> GridLaws:
    """What any laws on the grid, (R, n, n), are worth."""
    alpha_rew = torch.as_tensor(alpha_rew, dtype=torch.float64).expand(len(probability))
    objective, _, gap, reward = _objective(grid, probability, alpha_rew)
    kl = (torch.xlogy(probability, probability) - probability * grid.log_prior).sum((-2, -1))
    divergence = objective + alpha_rew * reward
    return GridLaws(grid.axis, probability, alpha_rew, reward, divergence, kl, objective, gap)


def histogram(grid: PlaneGrid, samples: Tensor) -> Tensor:
    """Samples (R, N, 2) as laws on the grid (R, n, n): each counts at its nearest atom (an edge, from outside)."""
    n, step = len(grid.axis), grid.axis[1] - grid.axis[0]
    place = ((samples.double() - grid.axis[0]) / step).round().clamp(0, n - 1).long()
    atom = place[..., 0] * n + place[..., 1]
    counts = torch.zeros(len(samples), n * n, dtype=torch.float64)
    return counts.scatter_add_(1, atom, torch.ones_like(atom, dtype=torch.float64)).view(-1, n, n) / samples.shape[1]


def tilted_on_grid(grid: PlaneGrid, alpha_rew: Numbers) -> GridLaws:
    """RLHF's law, proportional to q_0 exp(alpha_rew r)."""
    return evaluate(grid, _normalised(grid.log_prior + _column(alpha_rew) * grid.reward).exp(), alpha_rew)


def best_of_n_on_grid(grid: PlaneGrid, numbers: Sequence[int]) -> GridLaws:
    """The law of the best of n draws from q_0, for R values of n: with the mass P(r) = q_0(reward <= r),

        p(x) = q_0(x) / q_0(reward = r(x)) [P(r(x))^n - P(r(x)-)^n],

    where draws of equal reward win evenly. Its objective and gap are those of alpha_rew = 0.
    """
    prior = grid.log_prior.exp()
    values, rank = grid.reward.unique(return_inverse=True)
    mass = torch.zeros(len(prior), len(values)).to(prior).index_add(1, rank.flatten(), prior.flatten(1))
    up_to = (mass.cumsum(-1) / mass.sum(-1, keepdim=True)) ** torch.as_tensor(numbers)[:, None]
    won = up_to.diff(dim=-1, prepend=torch.zeros_like(up_to[:, :1]))
    return evaluate(grid, (won / mass.clamp(min=1e-300))[:, rank] * prior)


def _objective(grid: PlaneGrid, p: Tensor, alpha_rew: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """F (R,), its gradient (R, n, n), duality gap (R,) and reward (R,)."""
    reward = (p * grid.reward).sum((-2, -1))
    value, slope = -alpha_rew * reward, -_column(alpha_rew) * grid.reward
    for kernel, log_reference, w in grid.levels:
        diffused = kernel @ p @ kernel.mT
        log_ratio = diffused.clamp(min=1e-300).log() - log_reference
        value = value + w * (diffused * log_ratio).sum((-2, -1))
        slope = slope + kernel.mT @ (w * (log_ratio + 1)) @ kernel
    return value, slope, (slope * p).sum((-2, -1)) - slope.amin((-2, -1)), reward


def _points(axis: Tensor) -> Tensor:
    return torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1)


def _normalised(log_p: Tensor) -> Tensor:
    return log_p - log_p.logsumexp((-2, -1), keepdim=True)


def _column(value: Numbers) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64)[..., None, None]
