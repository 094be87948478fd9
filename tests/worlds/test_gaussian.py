"""Exact distributions against densities, samples and quadrature; closed-form divergences against their definitions."""

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal, kl_divergence
from worlds.small import gaussian, normal, plane_points, randn, rng

from dipp_core.method.divergences import squared_l2
from dipp_core.method.schedule import constant_weight, edm, sigma_power_weight, uniform_time, vp_continuous
from dipp_core.worlds.gaussian import (
    Gaussian,
    GaussianMixture,
    cfg_reward,
    exact_score,
    gaussian_kl,
    integral_kl,
    noise_levels,
    score_divergence_l2,
    score_divergence_sampled,
    score_kl,
    whitened_pair,
)

SCHEDULES = {"vp": vp_continuous(), "edm": edm(0.05, 5.0)}
VP, EDM = SCHEDULES.values()


def mixture(d):
    parts = [gaussian(d, seed) for seed in (1, 2, 3)]
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    return GaussianMixture(weights, torch.stack([p.mean for p in parts]), torch.stack([p.cov for p in parts]))


@pytest.mark.parametrize("make", [lambda d: gaussian(d, 1), mixture], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_diffused_density_is_the_convolution_and_the_score_its_gradient(name, make):
    """p_t(x) = E over eps of p_0((x - sigma eps) / alpha) / alpha^d, by quadrature."""
    for batch in ((4,), (2, 4)):
        t = torch.rand(batch, generator=rng(), dtype=torch.float64) * 0.9 + 0.05
        law, xt, cond = make(3), randn(*batch, 3, seed=1).requires_grad_(), randn(*batch, 3, seed=2).softmax(-1)
        log_prob = law.given(cond).diffused(SCHEDULES[name], t).log_prob(xt)
        assert log_prob.shape == batch
        (wanted,) = torch.autograd.grad(log_prob.sum(), xt)
        torch.testing.assert_close(exact_score(law, SCHEDULES[name])(xt, t, cond), wanted, rtol=1e-10, atol=1e-12)
    t, law, (nodes, mass) = torch.tensor(0.3, dtype=torch.float64), make(2), plane_points(80)
    a, s = SCHEDULES[name].alpha(t), SCHEDULES[name].sigma(t)
    for point in randn(3, 2):
        wanted = (law.log_prob((point - s * nodes) / a).exp() * mass).sum() / a**2
        found = law.diffused(SCHEDULES[name], t).log_prob(point).exp()
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=0)


def test_densities_and_kl_are_those_of_torch():
    x, mix, laws = randn(5, 3), mixture(3), [gaussian(3, 1), gaussian(3, 2)]
    theirs = [MultivariateNormal(law.mean, law.cov) for law in laws]
    torch.testing.assert_close(laws[0].log_prob(x), theirs[0].log_prob(x))
    of_torch = MixtureSameFamily(Categorical(mix.weights), MultivariateNormal(mix.means, mix.covs))
    torch.testing.assert_close(mix.log_prob(x), of_torch.log_prob(x))
    torch.testing.assert_close(gaussian_kl(*laws), kl_divergence(*theirs))


def test_samples_have_the_moments_of_their_distribution():
    law, mix = gaussian(2, 1), mixture(2)
    x = law.sample((40000,), generator=rng())
    torch.testing.assert_close(x.mean(0), law.mean, rtol=0, atol=0.03)
    torch.testing.assert_close(x.T.cov(), law.cov, rtol=0, atol=0.05)
    x = mix.sample((200, 200), generator=rng())
    torch.testing.assert_close(x.mean((0, 1)), mix.weights @ mix.means, rtol=0, atol=0.03)
    second = mix.covs + mix.means[:, :, None] * mix.means[:, None, :]
    found = x.reshape(-1, 2).T @ x.reshape(-1, 2) / 40000
    torch.testing.assert_close(found, (mix.weights[:, None, None] * second).sum(0), rtol=0, atol=0.08)


def test_a_condition_is_a_row_of_component_weights():
    law, t, xt = mixture(2), torch.full((3,), 0.4, dtype=torch.float64), randn(3, 2)
    score = exact_score(law, VP)
    only = [exact_score(Gaussian(m, c), VP)(xt, t) for m, c in zip(law.means, law.covs, strict=True)]
    torch.testing.assert_close(score(xt, t, torch.eye(3)), torch.stack([only[k][k] for k in range(3)]))
    torch.testing.assert_close(score(xt, t, law.weights), score(xt, t, None))
    assert score(xt.float(), t, None).dtype == torch.float32


@pytest.mark.parametrize("name", SCHEDULES)
def test_closed_forms_are_the_expectations_they_stand_for(name):
    p, q, r = (gaussian(2, seed) for seed in (1, 2, 3))
    levels, (points, mass) = (
        noise_levels(SCHEDULES[name], uniform_time(0.1, 1.0), constant_weight(), 7),
        plane_points(20),
    )
    p_t, q_t, r_t = (law.diffused(SCHEDULES[name], levels.t[:, None]) for law in (p, q, r))
    xt = p_t.push(points)
    sampled = score_divergence_sampled(p, q, levels, xt=xt, distance=squared_l2(), mass=mass)
    for frozen in (True, False):
        torch.testing.assert_close(score_divergence_l2(p, q, levels, frozen_law=frozen), sampled)
    log_p, log_q, log_r = (law.log_prob(xt) @ mass for law in (p_t, q_t, r_t))
    torch.testing.assert_close(levels.integrate(log_p - log_q), integral_kl(p, q, levels))
    torch.testing.assert_close(levels.integrate(log_q - log_r), cfg_reward(p, q, r, levels))


def test_noise_levels_are_a_quadrature_of_weight_and_time():
    levels = noise_levels(VP, uniform_time(0.2, 0.8), sigma_power_weight(VP, 1), 2000)
    torch.testing.assert_close(levels.noise_var, (levels.sigma / levels.alpha) ** 2)
    nodes = torch.linspace(0.2, 0.8, 200001, dtype=torch.float64)
    wanted = torch.trapezoid(VP.sigma(nodes) * nodes, nodes) / 0.6
    torch.testing.assert_close(levels.integrate(levels.t), wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("d", [1, 8])
def test_whitened_samples_have_exact_joint_moments(d):
    joint = torch.cat(whitened_pair(64, d, generator=rng()), -1)
    torch.testing.assert_close(joint.mean(0), torch.zeros(2 * d).double(), rtol=0, atol=1e-14)
    torch.testing.assert_close(joint.T @ joint / 64, torch.eye(2 * d).double(), rtol=0, atol=1e-13)


@pytest.mark.parametrize(("low", "high"), [(0.02, 0.98), (0.1, 0.5)])
def test_score_kl_is_the_divergence_at_the_low_end_less_that_at_the_high_end(low, high):
    p, q = normal([1.0, -0.5], [0.6, 0.2]), normal([0.0, 0.0], [1.0, 0.5])
    x0, given = p.sample((20_000,), generator=rng()), {"low": low, "high": high, "nodes": 64, "generator": rng(1)}
    found = score_kl(exact_score(p, VP), exact_score(q, VP), x0, None, VP, **given)
    at = [gaussian_kl(p.diffused(VP, t), q.diffused(VP, t)) for t in torch.tensor([low, high]).double()]
    assert found.shape == (20_000,)
    assert abs(found.mean() / (at[0] - at[1]) - 1) < 0.02
    assert (at[0] - at[1]) > 0.1
