"""Closed-form optima: the gradients of the method's own surrogates vanish there; and known numbers."""

import math

import pytest
import torch
from worlds.small import normal, randn, rng, spd

from dipp_core.method.divergences import (
    integral_kl_surrogate,
    pseudo_huber,
    score_divergence_surrogate,
    squared_l2,
)
from dipp_core.method.schedule import (
    constant_weight,
    edm,
    lognormal_sigma_time,
    normalised,
    sigma_power_weight,
    uniform_time,
    vp_continuous,
)
from dipp_core.method.scores import conditional_score
from dipp_core.worlds import gaussian_optima as optima
from dipp_core.worlds import plane
from dipp_core.worlds.gaussian import (
    Gaussian,
    exact_score,
    gaussian_kl,
    noise_levels,
    whitened_pair,
)

EDM = edm(1e-4, 1e4)
RING = edm(0.1, 3.0)
VP = vp_continuous()
C = 0.2
LAM = torch.tensor([0.09, 1.0, 2.04], dtype=torch.float64)


def lognormal_levels(median, tau, n=32):
    return noise_levels(EDM, lognormal_sigma_time(EDM, math.log(median), tau), constant_weight(), n)


def ring_levels(n=32):
    weight = normalised(sigma_power_weight(RING, 2), uniform_time())
    return noise_levels(RING, uniform_time(), weight, n)


def gradients(levels, lam, mean, variance, beta, reward, distance=None):
    """In mean and scale, (d,) each: of beta D(p || N(0, diag lam)) - E[r], IKL or with a distance, by the surrogates.

    The generator is mean + scale z. Whitened samples make IKL and l2 exact, and any distance where variance = lam.
    """
    mean, scale = mean.clone().requires_grad_(), variance.sqrt().requires_grad_()
    z, eps = whitened_pair(2 * len(lam) + 2, len(lam), generator=rng())
    t, x0 = levels.t[:, None], (mean + scale * z).expand(len(levels.t), -1, -1)
    eps = eps.expand_as(x0)
    xt = levels.schedule.perturb(x0, t, eps)
    own, ref = Gaussian(mean, scale.square().diag()).detach(), normal([0.0] * len(lam), lam.tolist())
    common = {name: exact_score(law, levels.schedule)(xt, t) for name, law in (("s_ta", own), ("s_ref", ref))}
    common |= {"t": t, "weight": lambda t: len(levels.t) * levels.w[:, None]}
    if distance is None:
        divergence = integral_kl_surrogate(xt=xt, **common)
    else:
        s_cond = conditional_score(eps, t, levels.schedule)
        divergence = score_divergence_surrogate(s_cond=s_cond, distance=distance, **common)
    return torch.stack(torch.autograd.grad((beta * divergence - reward(x0)).mean(), [mean, scale]))


@pytest.mark.parametrize(
    ("median", "spread", "collapses"),
    [(0.05, 1.0, False), (0.2, 1.0, False), (0.5, 0.0, True), (1.0, 0.0, True), (1.0, 1.0, False)],
)
def test_the_ikl_gradient_points_to_the_closed_forms_and_vanishes_there_collapsed_or_not(median, spread, collapses):
    """Direction 0 (variance 1): quadratic reward. Direction 1 (variance 0.04): linear reward."""
    beta, curvature, target, slope, lam = 0.25, 1.0, 0.8, 0.6, torch.tensor([1.0, 0.04], dtype=torch.float64)
    levels = lognormal_levels(median, spread)
    left = optima.quadratic_variance_ikl(curvature, lam[0], beta, levels)
    pulled = optima.quadratic_mean_ikl(curvature, target, lam[0], beta, levels)
    best_mean = torch.stack([pulled, optima.linear_shift_ikl(slope, lam[1], beta, levels)])

    def reward(x0):
        return slope * x0[..., 1] - curvature * (x0[..., 0] - target).square() / 2

    def at(factor):
        variance = (factor * torch.stack([left, lam[1]])).clamp(min=1e-8)
        return gradients(levels, lam, factor * best_mean, variance, beta, reward)

    assert (left == 0) == collapses
    low, best, high = (at(factor) for factor in (0.9, 1.0, 1.1))
    if collapses:  # the least variance left wants to shrink
        assert min(found[1, 0] for found in (low, best, high)) > 1e-6
        low[1, 0], best[1, 0] = -1, 0
    assert best.abs().max() <= 1e-9
    assert (low < -1e-6).all()
    assert (high > 1e-6).all()


def pull(levels, lam, delta, beta, distance):
    """The gradient at a translation by delta along one eigen-direction, reward x: the score gap is constant."""
    lam, delta = lam.reshape(1), delta.reshape(1)
    return gradients(levels, lam, delta, lam, beta, lambda x0: x0[..., 0], distance)[0, 0]


@pytest.mark.parametrize("lam", LAM)
def test_distar_points_to_its_closed_forms_and_below_the_critical_beta_to_infinity(lam):
    ring, vp = ring_levels(), noise_levels(VP, uniform_time(0.1, 0.9), constant_weight(), 16)
    critical = optima.huber_critical_beta(1.0, lam, ring)
    for levels, beta, wanted, distance in (
        (ring, 1.1 * critical, optima.linear_shift_huber(1.0, lam, 1.1 * critical, ring, C), pseudo_huber(C)),
        (vp, 20.0, optima.linear_shift_l2(1.0, lam, 20.0, vp), squared_l2()),
    ):
        low, best, high = (pull(levels, lam, factor * wanted, beta, distance) for factor in (0.99, 1.0, 1.01))
        assert abs(best) <= 1e-9
        assert low < -1e-5 < 1e-5 < high
    assert optima.linear_shift_huber(1.0, lam, 0.9 * critical, ring, C).isinf()
    for delta in torch.tensor([0.1, 1.0, 10.0, 1e3, 1e6], dtype=torch.float64):
        assert pull(ring, lam, delta, 0.9 * critical, pseudo_huber(C)) < -0.09


def test_the_critical_beta_of_the_ring_world_and_the_limits_of_pseudo_huber():
    """|a| Z / E[s^2 / (lam + s^2)], log-uniform s in 0.1 .. 3, w = s^2 / Z: 1.99, 3.92, 5.33; a wide bowl is l2."""
    found = optima.huber_critical_beta(1.0, LAM, ring_levels(512))
    torch.testing.assert_close(found, torch.tensor([1.99, 3.92, 5.33]).double(), rtol=2e-3, atol=0)
    there, back = (optima.linear_shift_huber(slope, 1.0, 8.0, ring_levels(), 1.0) for slope in (1.0, -1.0))
    assert there == -back
    wide = optima.linear_shift_huber(1.0, LAM, 5.0 * 1e4, ring_levels(), 1e4)
    torch.testing.assert_close(wide, optima.linear_shift_l2(1.0, LAM, 5.0, ring_levels()), rtol=1e-6, atol=0)


def ring_of(radius):
    world = plane.ring(RING, radius=radius)
    return world.law.given(world.prompts[0]), radius**2 / 2 + 0.3**2


NORTH = torch.tensor([0.0, 2.0], dtype=torch.float64)


def test_for_a_gaussian_the_fisher_information_gives_the_critical_beta_and_the_force_at_every_shift():
    levels, shifts = ring_levels(12), torch.tensor([0.1, 1.0, 30.0])
    law = Gaussian(torch.zeros(2).double(), torch.diag(LAM[[2, 1]]))
    wanted = optima.huber_critical_beta(2.0, LAM[1], levels)
    torch.testing.assert_close(optima.fisher_critical_beta(NORTH, law, levels), wanted)
    k = 1 / (LAM[1] + levels.noise_var)
    balance = torch.stack([levels.integrate(k**2 * d / (k**2 * d**2 + C**2).sqrt()) for d in shifts])
    torch.testing.assert_close(optima.rigid_force(shifts, NORTH, law, levels, C), balance)


@pytest.mark.parametrize("radius", [1.0, 2.0, 3.0])
def test_a_ring_is_held_by_more_than_a_gaussian_of_its_variance_and_far_out_by_its_fisher_information(radius):
    """By Cramer and Rao; and the quadrature agrees with draws from the law."""
    levels, (law, variance) = ring_levels(12), ring_of(radius)
    found = optima.fisher_critical_beta(NORTH, law, levels)
    assert found < optima.huber_critical_beta(2.0, variance, levels)
    far = optima.rigid_force(torch.tensor([1e4]), NORTH, law, levels, C)
    torch.testing.assert_close(2.0 / far[0], found, rtol=1e-3, atol=0)
    t = levels.t[:, None].expand(-1, 20000)
    x0 = law.sample((len(levels.t), 20000), generator=torch.Generator().manual_seed(0))
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    along = exact_score(law, RING)(RING.perturb(x0, t, noise), t)[..., 1]
    torch.testing.assert_close(2.0 / levels.integrate(along.square().mean(-1)), found, rtol=0.02, atol=0)


def test_the_method_feels_the_force_on_a_rigid_copy():
    """The surrogate's gradient for the shift of a copy of the ring, by Monte Carlo, against the quadrature."""
    levels, (law, _), shift = ring_levels(12), ring_of(2.0), 1.5
    delta = torch.tensor(shift, dtype=torch.float64, requires_grad=True)
    unit, ref = torch.tensor([0.0, 1.0], dtype=torch.float64), exact_score(law, RING)
    t = levels.t[:, None].expand(-1, 40000)
    x0 = law.sample(t.shape, generator=torch.Generator().manual_seed(2)) + delta * unit
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    xt = RING.perturb(x0, t, noise)
    value = score_divergence_surrogate(
        t=t,
        s_ta=ref(xt - shift * unit, t),
        s_ref=ref(xt, t),
        s_cond=conditional_score(noise, t, RING),
        weight=normalised(sigma_power_weight(RING), uniform_time(), 12),
        distance=pseudo_huber(C),
    )
    (pull,) = torch.autograd.grad(value.mean(), delta)
    wanted = optima.rigid_force(torch.tensor([shift]), unit, law, levels, C)[0]
    torch.testing.assert_close(pull, wanted, rtol=0.03, atol=0)


@pytest.mark.parametrize("sigma", [0.05, 0.5, 2.0])
def test_collapse_at_one_noise_level(sigma):
    """lam = q = 1: beta_c = s^2 (1 + s^2). Just above it a variance is left, at it and below none."""
    levels = lognormal_levels(sigma, 0.0, 1)
    beta = optima.collapse_beta(1.0, 1.0, levels)
    assert float(beta) == pytest.approx(sigma**2 * (1 + sigma**2), rel=1e-9)
    assert float(optima.quadratic_variance_ikl(1.0, 1.0, 0.999 * float(beta), levels)) == 0
    left = optima.quadratic_variance_ikl(1.0, 1.0, 1.01 * float(beta), levels)
    assert 0 < float(left) < 0.1
    precision = 1 / (1.01 * float(beta)) + optima.mean_precision(1.0, levels) - optima.mean_precision(left, levels)
    assert abs(float(precision)) < 1e-8
    tilted = optima.tilted_gaussian(normal([0.0], [1.0]), float(beta), torch.zeros(1).double(), torch.eye(1).double())
    assert float(tilted.cov) == pytest.approx(1 / (1 + 1 / float(beta)))


@pytest.mark.parametrize(
    ("sigma", "lam", "ratio"), [(0.5, 4.0, 1.0625), (0.5, 1.0, 1.25), (0.5, 0.04, 7.25), (1.0, 0.04, 26)]
)
def test_thin_directions_overshoot(sigma, lam, ratio):
    levels = lognormal_levels(sigma, 0.0, 1)
    assert float(optima.linear_overshoot(lam, levels)) == pytest.approx(ratio)
    found = optima.linear_shift_ikl(0.7, lam, 0.5, levels) / optima.linear_shift_tilted(0.7, lam, 0.5)
    assert float(found) == pytest.approx(ratio)


def test_the_quadratic_reward_under_edms_law_of_noise():
    """w = s^2, log s ~ N(-1.2, 1.2^2), r = -x^2 / 2: E_w[1 / (1 + s^2)] = 0.20944, collapse from alpha_rew = 0.79."""
    schedule = edm(1e-4, 1e4)
    levels = noise_levels(schedule, lognormal_sigma_time(schedule, -1.2, 1.2), sigma_power_weight(schedule, 2), 4000)
    assert float(optima.mean_precision(1.0, levels)) == pytest.approx(0.20944, abs=2e-5)
    beta = 1 / torch.tensor([0.05, 0.1, 0.5, 0.8], dtype=torch.float64)
    found = optima.quadratic_variance_ikl(1.0, 1.0, beta, levels)
    torch.testing.assert_close(found, torch.tensor([0.6145, 0.3961, 0.0177, 0.0]).double(), rtol=0, atol=1e-4)
    assert 1 / float(optima.collapse_beta(1.0, 1.0, levels)) == pytest.approx(1 - 0.20944, abs=1e-3)


def test_the_tilted_law_is_the_reference_times_exp_reward():
    ref, slope, curvature, beta = Gaussian(randn(2, seed=1), spd(2, 2)), randn(2, seed=3), spd(2, 4), 0.7
    tilted = optima.tilted_gaussian(ref, beta, slope, curvature)
    x = randn(6, 2)
    reward = x @ slope - ((x @ curvature) * x).sum(-1) / 2
    gap = tilted.log_prob(x) - ref.log_prob(x) - reward / beta
    torch.testing.assert_close(gap, gap[0].expand(6))
    plain = optima.tilted_gaussian(ref, beta, slope)
    torch.testing.assert_close(plain.mean, ref.mean + ref.cov @ slope / beta)
    assert float(gaussian_kl(plain, ref)) == pytest.approx(float(slope @ ref.cov @ slope) / (2 * beta**2))


def test_guidance_overshoots_the_sharpened_law_and_collapses():
    """lc = 0.25, l0 = 1: alpha_cfg = 3 gives 0.077 at s = 0.02 and 0 at s = 0.5; alpha_cfg = 1 gives 0 at s = 1."""
    assert float(optima.cfg_variance_ikl(0.25, 1.0, 3.0, 0.02**2)) == pytest.approx(0.077, abs=1e-3)
    assert float(optima.cfg_variance_ikl(0.25, 1.0, 3.0, 0.5**2)) == 0
    assert float(optima.cfg_variance_ikl(0.25, 1.0, 1.0, 1.0)) == 0
    assert float(optima.cfg_variance_sharpened(0.25, 1.0, 3.0)) == pytest.approx(0.0769, abs=1e-4)
    torch.testing.assert_close(
        optima.cfg_variance_ikl(0.25, 1.0, 1.0, 1e-8), optima.cfg_variance_sharpened(0.25, 1.0, 1.0)
    )
    assert optima.cfg_variance_ikl(1.0, 0.25, 3.0, 0.01).isinf()
