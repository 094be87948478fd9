"""Closed-form optima against gradient descent with the method's own surrogates, and against known numbers."""

import math

import pytest
import torch

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
from dipp_core.worlds.gaussian import (
    Gaussian,
    NoiseLevels,
    exact_score,
    gaussian_kl,
    noise_levels,
    whitened_pair,
)
from dipp_core.worlds.gaussian_optima import (
    cfg_variance_ikl,
    cfg_variance_sharpened,
    collapse_beta,
    huber_critical_beta,
    linear_overshoot,
    linear_shift_huber,
    linear_shift_ikl,
    linear_shift_l2,
    linear_shift_tilted,
    mean_precision,
    quadratic_mean_ikl,
    quadratic_variance_ikl,
    tilted_gaussian,
)

EDM = edm(1e-4, 1e4)
RING = edm(0.1, 3.0)
C = 0.2
LAM_HUBER = torch.tensor([0.09, 1.0, 2.04], dtype=torch.float64)


def lognormal_levels(median, tau, n=32):
    return noise_levels(EDM, lognormal_sigma_time(EDM, math.log(median), tau), constant_weight(), n)


def ring_levels(n=32):
    weight = normalised(sigma_power_weight(RING, 2), uniform_time())
    return noise_levels(RING, uniform_time(), weight, n)


def descend(parameters, loss, steps, lr, lr_end=1e-3):
    optimizer = torch.optim.Adam(parameters, lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=lr_end * lr)
    trace = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        schedule.step()
        trace.append(parameters[0].detach().clone())
    return trace


def test_ikl_descent_lands_on_the_closed_forms_in_five_weightings_collapsed_included():
    """Direction 0 (variance 1): quadratic reward. Direction 1 (variance 0.04): linear reward. All five at once."""
    cases = [(0.05, 1.0), (0.2, 1.0), (0.5, 0.0), (1.0, 0.0), (1.0, 1.0)]
    beta, curvature, target, slope, lam = 0.25, 1.0, 0.8, 0.6, torch.tensor([1.0, 0.04], dtype=torch.float64)
    levels = [lognormal_levels(*case) for case in cases]
    t = torch.stack([each.t for each in levels])[..., None]
    mean = torch.zeros(len(cases), 1, 1, 2, dtype=torch.float64).requires_grad_()
    scale = torch.full((len(cases), 1, 1, 2), 0.5, dtype=torch.float64).requires_grad_()
    z, eps = whitened_pair(6, 2, generator=torch.Generator().manual_seed(0))
    s_ref = exact_score(Gaussian(torch.zeros(2).double(), torch.diag(lam)), EDM)

    def loss():
        x0 = (mean + scale * z).expand(-1, t.shape[1], -1, -1)
        xt = EDM.perturb(x0, t, eps.expand_as(x0))
        own = Gaussian(mean.detach(), torch.diag_embed(scale.detach() ** 2))
        with torch.no_grad():
            scores = {"s_ta": exact_score(own, EDM)(xt, t), "s_ref": s_ref(xt, t)}
        divergence = integral_kl_surrogate(xt=xt, t=t, weight=constant_weight(), **scores)
        reward = slope * x0[..., 1] - curvature * (x0[..., 0] - target).square() / 2
        return (beta * divergence - reward).mean((1, 2)).sum()

    descend([mean, scale], loss, steps=1500, lr=0.02)
    mean, variance = mean.detach().reshape(-1, 2), scale.detach().reshape(-1, 2) ** 2
    collapsed = 0
    for k, each in enumerate(levels):
        v = quadratic_variance_ikl(curvature, lam[0], beta, each)
        collapsed += float(v) == 0
        assert abs(float(variance[k, 0] - v)) <= 1e-3
        assert abs(float(mean[k, 0] - quadratic_mean_ikl(curvature, target, lam[0], beta, each))) <= 1e-3
        assert abs(float(variance[k, 1] - lam[1])) <= 1e-3
        shift = linear_shift_ikl(slope, lam[1], beta, each)
        assert abs(float(mean[k, 1] - shift)) <= 1e-3
    assert collapsed == 2


def translation_descent(beta, steps, distance, levels=None, lr_end=1e-3):
    """Translations x0 = delta + sqrt(lam) z of three references, reward x: the score gap is constant, so exact."""
    levels = levels or ring_levels()
    t = levels.t.expand(3, -1)[..., None]
    delta = torch.zeros(3, 1, 1, 1, dtype=torch.float64).requires_grad_()
    z, eps = whitened_pair(4, 1, generator=torch.Generator().manual_seed(0))
    cov = LAM_HUBER.reshape(3, 1, 1, 1, 1)
    s_ref = exact_score(Gaussian(torch.zeros(1).double(), cov), levels.schedule)

    def loss():
        x0 = (delta + cov[..., 0].sqrt() * z).expand(-1, t.shape[1], -1, -1)
        noise = eps.expand_as(x0)
        xt = levels.schedule.perturb(x0, t, noise)
        own = exact_score(Gaussian(delta.detach(), cov), levels.schedule)
        divergence = score_divergence_surrogate(
            t=t,
            s_ta=own(xt, t),
            s_ref=s_ref(xt, t),
            s_cond=conditional_score(noise, t, levels.schedule),
            weight=lambda t: len(levels.t) * levels.w.expand(3, -1)[..., None],
            distance=distance,
        )
        return (beta.reshape(3, 1, 1) * divergence - x0[..., 0]).mean((1, 2)).sum()

    return [value.flatten() for value in descend([delta], loss, steps, 0.1, lr_end)]


def test_below_the_critical_beta_pseudo_huber_runs_away():
    beta = 0.9 * huber_critical_beta(1.0, LAM_HUBER, ring_levels())
    assert linear_shift_huber(1.0, LAM_HUBER, beta, ring_levels(), C).isinf().all()
    trace = translation_descent(beta, 600, pseudo_huber(C), lr_end=1.0)
    above = linear_shift_huber(1.0, LAM_HUBER, beta * 1.1 / 0.9, ring_levels(), C)
    assert (trace[-1] > 5 * above).all()
    assert ((trace[599] - trace[399]) / (trace[399] - trace[199]) > 0.9).all()


def test_above_the_critical_beta_pseudo_huber_lands_on_the_closed_form():
    beta = 1.1 * huber_critical_beta(1.0, LAM_HUBER, ring_levels())
    wanted = linear_shift_huber(1.0, LAM_HUBER, beta, ring_levels(), C)
    assert wanted.isfinite().all()
    assert (translation_descent(beta, 1500, pseudo_huber(C))[-1] - wanted).abs().max() <= 1e-3


def test_l2_descent_lands_on_its_closed_form_under_vp():
    vp = vp_continuous()
    levels = noise_levels(vp, uniform_time(0.1, 0.9), constant_weight(), 16)
    beta = torch.tensor([20.0, 20.0, 20.0], dtype=torch.float64)
    wanted = linear_shift_l2(1.0, LAM_HUBER, beta, levels)
    assert (translation_descent(beta, 800, squared_l2(), levels)[-1] - wanted).abs().max() <= 1e-3


def test_the_critical_beta_of_the_ring_world():
    """|a| Z / E[s^2 / (lam + s^2)], log-uniform s in 0.1 .. 3, w = s^2 / Z: 1.99, 3.92, 5.33."""
    found = huber_critical_beta(1.0, LAM_HUBER, ring_levels(512))
    torch.testing.assert_close(found, torch.tensor([1.99, 3.92, 5.33]).double(), rtol=2e-3, atol=0)
    assert linear_shift_huber(-1.0, 1.0, 8.0, ring_levels(), 1.0) == -linear_shift_huber(
        1.0, 1.0, 8.0, ring_levels(), 1.0
    )


def test_pseudo_huber_with_a_wide_bowl_is_l2():
    levels, c = ring_levels(), 1e4
    huber = linear_shift_huber(1.0, LAM_HUBER, 5.0 * c, levels, c)
    torch.testing.assert_close(huber, linear_shift_l2(1.0, LAM_HUBER, 5.0, levels), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("sigma", "wanted"), [(0.05, 0.0025), (0.2, 0.0416), (0.5, 0.3125), (1.0, 2.0), (2.0, 20.0)])
def test_collapse_at_one_noise_level(sigma, wanted):
    """lam = q = 1: beta_c = s^2 (1 + s^2). Just above it a variance is left, at it and below none."""
    levels = lognormal_levels(sigma, 0.0, 1)
    beta = collapse_beta(1.0, 1.0, levels)
    assert float(beta) == pytest.approx(sigma**2 * (1 + sigma**2), rel=1e-9)
    assert float(beta) == pytest.approx(wanted, rel=2e-2)
    assert float(quadratic_variance_ikl(1.0, 1.0, 0.999 * float(beta), levels)) == 0
    left = quadratic_variance_ikl(1.0, 1.0, 1.01 * float(beta), levels)
    assert 0 < float(left) < 0.1
    precision = 1 / (1.01 * float(beta)) + mean_precision(1.0, levels) - mean_precision(left, levels)
    assert abs(float(precision)) < 1e-8
    reference = Gaussian(torch.zeros(1).double(), torch.eye(1).double())
    curvature = torch.eye(1).double()
    tilted = tilted_gaussian(reference, float(beta), torch.zeros(1).double(), curvature)
    assert float(tilted.cov) == pytest.approx(1 / (1 + 1 / float(beta)))


@pytest.mark.parametrize(
    ("sigma", "lam", "ratio"), [(0.5, 4.0, 1.0625), (0.5, 1.0, 1.25), (0.5, 0.04, 7.25), (1.0, 0.04, 26)]
)
def test_thin_directions_overshoot(sigma, lam, ratio):
    levels = lognormal_levels(sigma, 0.0, 1)
    assert float(linear_overshoot(lam, levels)) == pytest.approx(ratio)
    found = linear_shift_ikl(0.7, lam, 0.5, levels) / linear_shift_tilted(0.7, lam, 0.5)
    assert float(found) == pytest.approx(ratio)


def test_the_quadratic_reward_under_edms_law_of_noise():
    """w = s^2, log s ~ N(-1.2, 1.2^2), r = -x^2 / 2: E_w[1 / (1 + s^2)] = 0.20944, collapse from alpha_rew = 0.79."""
    schedule = edm(1e-4, 1e4)
    levels = noise_levels(schedule, lognormal_sigma_time(schedule, -1.2, 1.2), sigma_power_weight(schedule, 2), 4000)
    assert float(mean_precision(1.0, levels)) == pytest.approx(0.20944, abs=2e-5)
    beta = 1 / torch.tensor([0.05, 0.1, 0.5, 0.8], dtype=torch.float64)
    found = quadratic_variance_ikl(1.0, 1.0, beta, levels)
    torch.testing.assert_close(found, torch.tensor([0.6145, 0.3961, 0.0177, 0.0]).double(), rtol=0, atol=1e-4)
    assert 1 / float(collapse_beta(1.0, 1.0, levels)) == pytest.approx(1 - 0.20944, abs=1e-3)


def test_the_tilted_law_is_the_reference_times_exp_reward():
    ref = Gaussian(torch.tensor([1.0, -1.0]).double(), torch.tensor([[1.0, 0.3], [0.3, 0.5]]).double())
    slope, curvature, beta = torch.tensor([0.4, 1.0]).double(), torch.tensor([[1.0, 0.2], [0.2, 2.0]]).double(), 0.7
    tilted = tilted_gaussian(ref, beta, slope, curvature)
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    reward = x @ slope - ((x @ curvature) * x).sum(-1) / 2
    gap = tilted.log_prob(x) - ref.log_prob(x) - reward / beta
    torch.testing.assert_close(gap, gap[0].expand(6))
    plain = tilted_gaussian(ref, beta, slope)
    torch.testing.assert_close(plain.mean, ref.mean + ref.cov @ slope / beta)
    assert float(gaussian_kl(plain, ref)) == pytest.approx(float(slope @ ref.cov @ slope) / (2 * beta**2))


def test_guidance_overshoots_the_sharpened_law_and_collapses():
    """lc = 0.25, l0 = 1: alpha_cfg = 3 gives 0.077 at s = 0.02 and 0 at s = 0.5; alpha_cfg = 1 gives 0 at s = 1."""
    assert float(cfg_variance_ikl(0.25, 1.0, 3.0, 0.02**2)) == pytest.approx(0.077, abs=1e-3)
    assert float(cfg_variance_ikl(0.25, 1.0, 3.0, 0.5**2)) == 0
    assert float(cfg_variance_ikl(0.25, 1.0, 1.0, 1.0)) == 0
    assert float(cfg_variance_sharpened(0.25, 1.0, 3.0)) == pytest.approx(0.0769, abs=1e-4)
    assert float(cfg_variance_sharpened(0.25, 1.0, 1.0)) == pytest.approx(0.143, abs=1e-3)
    torch.testing.assert_close(cfg_variance_ikl(0.25, 1.0, 1.0, 1e-8), cfg_variance_sharpened(0.25, 1.0, 1.0))
    assert cfg_variance_ikl(1.0, 0.25, 3.0, 0.01).isinf()


def test_single_levels_may_be_given_by_hand():
    levels = NoiseLevels(EDM, EDM.time_of_noise_ratio(torch.tensor([0.5])), torch.ones(1, dtype=torch.float64))
    torch.testing.assert_close(levels.noise_var, torch.tensor([0.25], dtype=torch.float64))
