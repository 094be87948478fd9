"""Where the optima are: closed forms for Gaussian references, one eigen-direction at a time.

Objective: E[-r] + beta D(p || p_ref), beta = 1 / alpha_rew, generator Gaussian, reference variance lam in the direction
looked at. E_w is the sum over noise levels with their weights w_k, and s^2 = sigma^2 / alpha^2. Everything is float64
and elementwise in its numbers, which broadcast; weights that sum to 1 make beta comparable between choices of levels.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from dipp_core.worlds.gaussian import Gaussian, GaussianMixture, NoiseLevels, exact_score

Number = Tensor | float


def linear_shift_ikl(slope: Number, lam: Number, beta: Number, levels: NoiseLevels) -> Tensor:
    """IKL, r = slope . x: the mean moves by (slope / beta) / E_w[1 / (lam + s^2)]; the covariance stays."""
    return _number(slope) / beta / mean_precision(lam, levels)


def linear_shift_tilted(slope: Number, lam: Number, beta: Number) -> Tensor:
    """Tilted law p_ref exp(r / beta), r = slope . x: the mean moves by lam slope / beta."""
    return _number(lam) * _number(slope) / beta


def linear_overshoot(lam: Number, levels: NoiseLevels) -> Tensor:
    """IKL shift over tilted shift, 1 / (lam E_w[1 / (lam + s^2)]); at least 1 if the weights sum to 1."""
    return 1 / (_number(lam) * mean_precision(lam, levels))


def linear_shift_l2(slope: Number, lam: Number, beta: Number, levels: NoiseLevels) -> Tensor:
    """DI* with d = |y|^2 / 2, r = slope . x: shift (slope / beta) / E_w[alpha^2 / (alpha^2 lam + sigma^2)^2]."""
    return _number(slope) / beta / levels.integrate(_force(lam, levels).square())


def linear_shift_huber(slope: Number, lam: Number, beta: Number, levels: NoiseLevels, c: float) -> Tensor:
    """DI* with pseudo-Huber, r = slope . x along one eigen-direction: the shift delta of the sign of slope that solves

    |slope| / beta = E_w[k y / sqrt(y^2 + c^2)],   y = k |delta|,   k = alpha / (alpha^2 lam + sigma^2).

    The right side is bounded: for beta at or below `huber_critical_beta` there is no optimum, and delta is infinite.
    """
    a, eigenvalue = torch.broadcast_tensors(_number(slope), _number(lam))
    force = _force(eigenvalue, levels)

    def excess(delta: Tensor) -> Tensor:
        y = force * delta
        return levels.integrate(force * y / (y.square() + c * c).sqrt()) - a.abs() / beta

    high = torch.ones_like(eigenvalue)
    exists = beta > huber_critical_beta(a, eigenvalue, levels)
    while (exists & (excess(high) < 0)).any():
        high = torch.where(excess(high) < 0, 2 * high, high)
    return torch.where(exists, a.sign() * _root(excess, torch.zeros_like(high), high), a.sign() * torch.inf)


def huber_critical_beta(slope: Number, lam: Number, levels: NoiseLevels) -> Tensor:
    """DI* with pseudo-Huber, Gaussian reference, r = slope . x without a maximum: an optimum exists only for

        beta > |slope| / E_w[alpha / (alpha^2 lam + sigma^2)],

    since |d'| < 1 bounds the restoring force. With alpha = 1 and w = s^2 / Z: |slope| Z / E[s^2 / (lam + s^2)].
    """
    return _number(slope).abs() / levels.integrate(_force(lam, levels))


def fisher_critical_beta(push: Tensor, law: Gaussian | GaussianMixture, levels: NoiseLevels) -> Tensor:
    """The same for any reference, r = push . x: below it no rigid copy of the reference, however far, is held.

    Far out d' is the unit vector u along push (d,), and the force on a copy is the Fisher information for location,

        beta_c = |push| / E_w[alpha E_p_t (u . grad log p_t)^2],

    which for a Gaussian is `huber_critical_beta`. At equal variance it is smaller for any other law (Cramer and Rao).
    """
    points, mass = _quadrature(law, levels)
    scores = exact_score(law, levels.schedule)(points, levels.t[:, None].expand(points.shape[:2]), None)
    along = scores @ (push / push.norm()).double()
    return push.norm() / levels.integrate(levels.alpha * (along.square() @ mass))


def rigid_force(
    shifts: Tensor, direction: Tensor, law: Gaussian | GaussianMixture, levels: NoiseLevels, c: float
) -> Tensor:
    """DI* with pseudo-Huber: the force that pulls back a rigid copy of the reference, for every shift delta along u,

        E_w[-alpha E_(x ~ p_t) d'(y) . grad s_t(x) u],    y = s_t(x) - s_t(x + alpha delta u).

    For delta to infinity it is |push| / `fisher_critical_beta`; a run is held where it exceeds |push| / beta.
    """
    points, mass = _quadrature(law, levels)
    t, unit = levels.t[:, None].expand(points.shape[:2]), (direction / direction.norm()).double()

    def score(x: Tensor) -> Tensor:
        return exact_score(law, levels.schedule)(x, t, None)

    here, bend = torch.func.jvp(score, (points,), (unit.expand_as(points),))[:2]
    found = []
    for shift in shifts.tolist():
        gap = here - score(points + levels.alpha[:, None, None] * shift * unit)
        pull = -(gap * bend).sum(-1) / (gap.square().sum(-1) + c * c).sqrt()
        found.append(levels.integrate(levels.alpha * (pull @ mass)))
    return torch.stack(found)


def quadratic_variance_ikl(curvature: Number, lam: Number, beta: Number, levels: NoiseLevels) -> Tensor:
    """IKL, r = -curvature (x - b)^2 / 2: variance v of  curvature / beta + E_w[1 / (lam + s^2) - 1 / (v + s^2)] = 0.

    It is 0, a full collapse, for beta <= `collapse_beta`.
    """
    lam = _number(lam)

    def excess(variance: Tensor) -> Tensor:
        return curvature / beta + mean_precision(lam, levels) - mean_precision(variance, levels)

    return torch.where(beta <= collapse_beta(curvature, lam, levels), 0.0, _root(excess, torch.zeros_like(lam), lam))


def collapse_beta(curvature: Number, lam: Number, levels: NoiseLevels) -> Tensor:
    """Largest beta at which the IKL optimum has variance 0: curvature / E_w[lam / (s^2 (lam + s^2))]."""
    lam = _number(lam)
    return curvature / (mean_precision(torch.zeros_like(lam), levels) - mean_precision(lam, levels))


def quadratic_mean_ikl(
    curvature: Number, target: Number, lam: Number, beta: Number, levels: NoiseLevels, mean_ref: float = 0.0
) -> Tensor:
    """IKL, r = -q (x - b)^2 / 2: mean (q b + beta E m_ref) / (q + beta E), E = E_w[1 / (lam + s^2)].

    q is `curvature`, b is `target`.
    """
    pull = beta * mean_precision(lam, levels)
    return (curvature * target + pull * mean_ref) / (curvature + pull)


def tilted_gaussian(ref: Gaussian, beta: Number, slope: Tensor, curvature: Tensor | None = None) -> Gaussian:
    """p_ref exp(r / beta) for r = slope . x - x^T curvature x / 2; slope (d,), curvature (d, d) or None.

    Precision S^-1 + curvature / beta, mean cov (S^-1 m + slope / beta). It never collapses.
    """
    precision = torch.linalg.inv(ref.cov)
    cov = ref.cov if curvature is None else torch.linalg.inv(precision + curvature / beta)
    return Gaussian(cov @ (precision @ ref.mean + slope / beta), cov)


def cfg_variance_ikl(lam_cond: Number, lam_null: Number, alpha_cfg: Number, noise_var: Number) -> Tensor:
    """Optimum of IKL to the guided reference at one noise level s^2: 1 / (g / (lc + s^2) + (1 - g) / (l0 + s^2)) - s^2.

    g = 1 + alpha_cfg; lc, l0 the variances with and without the condition. 0 (collapse) where this is not positive,
    infinite where the guided precision is not.
    """
    noise = _number(noise_var)
    with_cond, without = 1 / (_number(lam_cond) + noise), 1 / (_number(lam_null) + noise)
    precision = with_cond + alpha_cfg * (with_cond - without)
    return torch.where(precision > 0, (1 / precision - noise).clamp(min=0), torch.inf)


def cfg_variance_sharpened(lam_cond: Number, lam_null: Number, alpha_cfg: Number) -> Tensor:
    """Variance of p(x | c)^(1 + alpha_cfg) p(x)^(-alpha_cfg), the law guidance is meant to give: the limit s -> 0.

    Infinite where that product is no law at all.
    """
    precision = (1 + alpha_cfg) / _number(lam_cond) - alpha_cfg / _number(lam_null)
    return torch.where(precision > 0, 1 / precision, torch.inf)


def _quadrature(law: Gaussian | GaussianMixture, levels: NoiseLevels, nodes: int = 24) -> tuple[Tensor, Tensor]:
    """Points (levels, P, d) and masses (P,) of Gauss and Hermite's quadrature of p_t at every level."""
    if isinstance(law, Gaussian):
        law = GaussianMixture(torch.ones(1, dtype=torch.float64), law.mean[None], law.cov[None])
    one, weight = (torch.from_numpy(array) for array in np.polynomial.hermite_e.hermegauss(nodes))
    d = law.means.shape[-1]
    z, mass = (torch.cartesian_prod(*[axis] * d).reshape(-1, d) for axis in (one, weight / weight.sum()))
    at = law.diffused(levels.schedule, levels.t)
    points = at.means[..., None, :] + (torch.linalg.cholesky(at.covs)[..., None, :, :] @ z[..., None]).squeeze(-1)
    return points.flatten(1, 2), (law.weights[:, None] * mass.prod(-1)).flatten()


def mean_precision(variance: Number, levels: NoiseLevels) -> Tensor:
    """E_w[1 / (variance + s^2)] = E_w[alpha^2 / (alpha^2 variance + sigma^2)], elementwise in variance."""
    variance = _number(variance)
    return levels.integrate(1 / (variance + _level_axis(levels.noise_var, variance)))


def _force(lam: Number, levels: NoiseLevels) -> Tensor:
    lam = _number(lam)
    alpha, sigma = _level_axis(levels.alpha, lam), _level_axis(levels.sigma, lam)
    return alpha / (alpha**2 * lam + sigma**2)


def _level_axis(values: Tensor, other: Tensor) -> Tensor:
    return values.reshape(-1, *(1,) * other.ndim)


def _number(value: Number) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64)


def _root(increasing: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
    for _ in range(200):
        middle = (low + high) / 2
        below = increasing(middle) < 0
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2
