"""Gaussians and Gaussian mixtures under any noise schedule: exact scores and closed-form divergences.

If x_0 ~ N(m, S) then x_t ~ N(alpha m, alpha^2 S + sigma^2 I), and a mixture stays a mixture. So every score is known
exactly, the integral KL and the squared-L2 score divergence of two Gaussians have closed forms, and their gradients
follow by autograd: the yardstick for every estimator of the method.

Means are (..., d) and covariances (..., d, d); leading axes broadcast. Plain laws have none, diffused laws those of t.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dipp_core.method.divergences import Distance
from dipp_core.method.schedule import NoiseSchedule, TimeSampler, Weighting, like
from dipp_core.method.scores import Cond, ScoreModel


@dataclass(frozen=True)
class Gaussian:
    """N(mean, cov): mean (..., d), cov (..., d, d)."""

    mean: Tensor
    cov: Tensor

    def diffused(self, schedule: NoiseSchedule, t: Tensor) -> "Gaussian":
        """Law of x_t: N(alpha(t) mean, alpha(t)^2 cov + sigma(t)^2 I); leading axes those of t."""
        return Gaussian(*_diffuse(self.mean, self.cov, schedule, t))

    def log_prob(self, x: Tensor) -> Tensor:
        """log N(x; mean, cov); x (..., d) -> (...)."""
        return _log_normal(x, self.mean, self.cov)

    def score(self, x: Tensor) -> Tensor:
        """grad log N(x; mean, cov) = -cov^-1 (x - mean); x (..., d) -> (..., d)."""
        return _precision_times(self.cov, self.mean - x)

    def sample(self, shape: Sequence[int], *, generator: torch.Generator) -> Tensor:
        """Draws of shape (*shape, d)."""
        return self.push(_normal((*shape, self.mean.shape[-1]), self.mean, generator))

    def push(self, z: Tensor) -> Tensor:
        """mean + L z with cov = L L^T: the linear generator whose law this is; z (..., d) -> (..., d)."""
        return self.mean + (torch.linalg.cholesky(self.cov) * z.unsqueeze(-2)).sum(-1)

    def given(self, cond: Cond) -> "Gaussian":
        """A Gaussian has no classes: the same law whatever the condition."""
        return self

    def detach(self) -> "Gaussian":
        """The same law, as a constant (it shares memory: an optimiser that moves the parameters moves it too)."""
        return Gaussian(self.mean.detach(), self.cov.detach())


@dataclass(frozen=True)
class GaussianMixture:
    """sum_k weights_k N(means_k, covs_k): weights (..., k), means (..., k, d), covs (..., k, d, d).

    A condition is a tensor of component weights, (..., k), which replaces `weights`: p(x | c) = sum_k c_k N_k(x).
    """

    weights: Tensor
    means: Tensor
    covs: Tensor

    def diffused(self, schedule: NoiseSchedule, t: Tensor) -> "GaussianMixture":
        """Law of x_t: every component diffused, weights unchanged; leading axes those of t."""
        means, covs = _diffuse(self.means, self.covs, schedule, t[..., None])
        return replace(self, means=means, covs=covs)

    def log_prob(self, x: Tensor) -> Tensor:
        """log density; x (..., d) -> (...)."""
        return self._log_joint(x).logsumexp(-1)

    def score(self, x: Tensor) -> Tensor:
        """sum_k p(k | x) grad log N_k(x); x (..., d) -> (..., d)."""
        posterior = self._log_joint(x).softmax(-1)
        scores = _precision_times(self.covs, self.means - x.unsqueeze(-2))
        return (posterior.unsqueeze(-1) * scores).sum(-2)

    def sample(self, shape: Sequence[int], *, generator: torch.Generator) -> Tensor:
        """Draws of shape (*shape, d) from a mixture without leading axes."""
        k = torch.multinomial(self.weights, math.prod(shape), replacement=True, generator=generator).reshape(*shape)
        z = _normal((*shape, self.means.shape[-1]), self.means, generator)
        return self.means[k] + (torch.linalg.cholesky(self.covs)[k] * z.unsqueeze(-2)).sum(-1)

    def given(self, cond: Cond) -> "GaussianMixture":
        """p(. | c) for component weights c (..., k); None keeps the mixture's own."""
        return self if cond is None else replace(self, weights=cond.to(self.weights))

    def to(self, dtype: torch.dtype) -> "GaussianMixture":
        """The same mixture in another precision."""
        return GaussianMixture(self.weights.to(dtype), self.means.to(dtype), self.covs.to(dtype))

    def _log_joint(self, x: Tensor) -> Tensor:
        return self.weights.log() + _log_normal(x.unsqueeze(-2), self.means, self.covs)


def exact_score(law: Gaussian | GaussianMixture, schedule: NoiseSchedule) -> ScoreModel:
    """The score model (xt, t, cond) -> grad log p_t(xt | cond) of a law: computed in the law's dtype, out in xt's.

    With a mixture's S_k = U_k diag(lam_k) U_k^T found once, the covariance at t is U_k diag(alpha^2 lam_k + sigma^2)
    U_k^T and no matrix is inverted on the way:

        grad log p_t(x | c) = sum_k p_t(k | x, c) U_k (alpha U_k^T m_k - U_k^T x) / (alpha^2 lam_k + sigma^2).
    """
    if isinstance(law, Gaussian):

        def one(xt: Tensor, t: Tensor, cond: Cond = None) -> Tensor:
            return law.diffused(schedule, t).score(xt).to(xt.dtype)

        return one
    (k, d), (variances, axes) = law.means.shape, torch.linalg.eigh(law.covs)
    centres = (law.means.unsqueeze(-2) @ axes).squeeze(-2)
    onto_axes = axes.movedim(0, -2).reshape(d, k * d)

    def score(xt: Tensor, t: Tensor, cond: Cond = None) -> Tensor:
        alpha, sigma = (scale.to(law.means)[..., None, None] for scale in (schedule.alpha(t), schedule.sigma(t)))
        variance = alpha**2 * variances + sigma**2
        shift = alpha * centres - (xt.to(law.means) @ onto_axes).unflatten(-1, (k, d))
        pull = shift / variance
        log_joint = law.given(cond).weights.log() - 0.5 * (shift * pull + variance.log()).sum(-1)
        return ((log_joint.softmax(-1).unsqueeze(-1) * pull).flatten(-2) @ onto_axes.mT).to(xt.dtype)

    return score


@dataclass(frozen=True)
class NoiseLevels:
    """A quadrature over noise: E_pi[w(t) f(t)] is sum_k w_k f(t_k); t, w (K,)."""

    schedule: NoiseSchedule
    t: Tensor
    w: Tensor

    @property
    def alpha(self) -> Tensor:
        """alpha(t_k), (K,)."""
        return self.schedule.alpha(self.t)

    @property
    def sigma(self) -> Tensor:
        """sigma(t_k), (K,)."""
        return self.schedule.sigma(self.t)

    @property
    def noise_var(self) -> Tensor:
        """sigma^2 / alpha^2, the variance of the noise in units of the data, (K,)."""
        return torch.exp(-self.schedule.log_snr(self.t))

    def integrate(self, values: Tensor) -> Tensor:
        """sum_k w_k values_k; values (K, ...) -> (...)."""
        return torch.tensordot(self.w.to(values), values, dims=1)


def noise_levels(schedule: NoiseSchedule, time_sampler: TimeSampler, weight: Weighting, n: int = 64) -> NoiseLevels:
    """Levels t_k at the n midpoint nodes of pi(t), with w_k = w(t_k) / n."""
    t = time_sampler.nodes(n)
    return NoiseLevels(schedule, t, weight(t) / n)


def gaussian_kl(p: Gaussian, q: Gaussian) -> Tensor:
    """KL(p || q) = [tr(Q^-1 P) + |m_q - m_p|^2_(Q^-1) - d + log det Q - log det P] / 2, shape of the leading axes."""
    solve = torch.linalg.solve(q.cov, p.cov)
    shift = q.mean - p.mean
    distance = (shift * _precision_times(q.cov, shift)).sum(-1)
    trace = solve.diagonal(dim1=-2, dim2=-1).sum(-1)
    return 0.5 * (trace + distance - shift.shape[-1] + torch.logdet(q.cov) - torch.logdet(p.cov))


def integral_kl(p: Gaussian, q: Gaussian, levels: NoiseLevels) -> Tensor:
    """Integral KL: sum_k w_k KL(p_t || q_t)."""
    return levels.integrate(gaussian_kl(p.diffused(levels.schedule, levels.t), q.diffused(levels.schedule, levels.t)))


def score_divergence_l2(p: Gaussian, q: Gaussian, levels: NoiseLevels, *, frozen_law: bool = True) -> Tensor:
    """sum_k w_k E_{x ~ p_t} |s_p(x) - s_q(x)|^2 / 2 in closed form.

    The gap of two linear scores is A x + b, and E|Ax + b|^2 = tr(A C A^T) + |A m + b|^2 for x ~ N(m, C). With
    frozen_law (the method's divergence) the law of x is a constant: the gradient is Diff-Instruct*'s semi-gradient.
    """
    p_t, q_t = p.diffused(levels.schedule, levels.t), q.diffused(levels.schedule, levels.t)
    law = p_t.detach() if frozen_law else p_t
    slope = torch.linalg.inv(q_t.cov) - torch.linalg.inv(p_t.cov)
    gap_at_mean = p_t.score(law.mean) - q_t.score(law.mean)
    spread = ((slope @ law.cov) * slope).sum((-2, -1))
    return levels.integrate(0.5 * (spread + gap_at_mean.square().sum(-1)))


def score_divergence_sampled(
    p: Gaussian, q: Gaussian, levels: NoiseLevels, *, xt: Tensor, distance: Distance, mass: Tensor | None = None
) -> Tensor:
    """sum_k w_k E_n d(s_p(x_kn) - s_q(x_kn)) for any distance, at points xt (K, N, d) ~ p_t that are held constant.

    E_n is the mean, or the sum with masses (N,) when the points are those of a quadrature.
    """
    p_t, q_t = (law.diffused(levels.schedule, levels.t[:, None]) for law in (p, q))
    values = distance.value(p_t.score(xt.detach()) - q_t.score(xt.detach()))
    return levels.integrate(values.mean(-1) if mass is None else values @ mass)


def cfg_reward(p: Gaussian, cond: Gaussian, null: Gaussian, levels: NoiseLevels) -> Tensor:
    """The implicit reward of guidance, sum_k w_k E_{x ~ p_t}[log cond_t(x) - log null_t(x)] = IKL(null) - IKL(cond)."""
    return integral_kl(p, null, levels) - integral_kl(p, cond, levels)


def whitened_pair(n: int, d: int, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """n samples of z and eps, (n, d) each, float64, whose joint mean is exactly 0 and joint covariance exactly I.

    Any average of a quadratic function of (z, eps) over them is then its exact expectation; needs n > 2 d.
    """
    joint = torch.randn(n, 2 * d, generator=generator, device=generator.device, dtype=torch.float64)
    joint = joint - joint.mean(0)
    factor = torch.linalg.cholesky(joint.T @ joint / n)
    z, eps = torch.linalg.solve_triangular(factor, joint.T, upper=False).T.chunk(2, dim=-1)
    return z, eps


def _diffuse(mean: Tensor, cov: Tensor, schedule: NoiseSchedule, t: Tensor) -> tuple[Tensor, Tensor]:
    alpha, sigma = schedule.alpha(t).to(mean)[..., None], schedule.sigma(t).to(mean)[..., None]
    eye = torch.eye(mean.shape[-1], dtype=mean.dtype, device=mean.device)
    return alpha * mean, alpha[..., None] ** 2 * cov + sigma[..., None] ** 2 * eye


def _precision_times(cov: Tensor, x: Tensor) -> Tensor:
    return torch.einsum("...ij,...j->...i", torch.linalg.inv(cov), x)


def _log_normal(x: Tensor, mean: Tensor, cov: Tensor) -> Tensor:
    shift = x - mean
    square = (shift * _precision_times(cov, shift)).sum(-1)
    return -0.5 * (square + torch.logdet(cov) + shift.shape[-1] * math.log(2 * math.pi))


def _normal(shape: Sequence[int], like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(tuple(shape), generator=generator, device=generator.device, dtype=like.dtype).to(like.device)


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
    """Estimates (B,) of KL at time `low` less KL at time `high`, one for each sample x0 (B, sample) of p.

    Both distributions run through the same noise, and their divergence falls with it (de Bruijn, in log-SNR lam):

        KL(p_low || q_low) - KL(p_high || q_high) = 1/2 int E_{xt ~ p_t} |sigma (grad log p_t - grad log q_t)|^2 d lam .

    With the assistant for p it measures what no sample can: the divergence of the papers, without their weight. It is
    as good as the assistant is, and leaves out detail finer than the noise at `low`.
    """
    edges = torch.linspace(low, high, nodes + 1, dtype=torch.float64)
    total = torch.zeros(len(x0), dtype=torch.float64)
    for width, middle in zip(-schedule.log_snr(edges).diff(), (edges[1:] + edges[:-1]) / 2, strict=True):
        t = middle.expand(len(x0))
        eps = torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
        xt = schedule.perturb(x0, t, eps)
        gap = like(schedule.sigma(t), x0) * (p(xt, t, cond) - q(xt, t, cond))
        total += width / 2 * gap.flatten(1).square().sum(-1).double()
    return total
