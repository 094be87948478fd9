"""Exact laws against densities, samples and quadrature; closed-form divergences against their definitions."""

import math

import numpy as np
import pytest
import torch

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


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def spd(d, seed):
    a = torch.randn(d, d, generator=rng(seed), dtype=torch.float64)
    return a @ a.T / d + 0.3 * torch.eye(d, dtype=torch.float64)


def gaussian(d, seed):
    return Gaussian(torch.randn(d, generator=rng(seed), dtype=torch.float64), spd(d, seed + 100))


def mixture(d):
    parts = [gaussian(d, seed) for seed in (1, 2, 3)]
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    return GaussianMixture(weights, torch.stack([p.mean for p in parts]), torch.stack([p.cov for p in parts]))


def plane_points(n=60):
    """Gauss-Hermite nodes (n^2, 2) and masses (n^2,) for N(0, I) in the plane."""
    nodes, mass = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(n))
    mass = mass / mass.sum()
    return torch.stack(torch.meshgrid(nodes, nodes, indexing="ij"), -1).reshape(-1, 2), torch.outer(
        mass, mass
    ).flatten()


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("law", [gaussian(3, 1), mixture(3)], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("batch", [(4,), (2, 4)])
def test_the_score_is_the_gradient_of_the_log_density(name, law, batch):
    t = torch.rand(batch, generator=rng(), dtype=torch.float64) * 0.9 + 0.05
    xt = torch.randn(*batch, 3, generator=rng(1), dtype=torch.float64).requires_grad_()
    log_prob = law.diffused(SCHEDULES[name], t).log_prob(xt)
    assert log_prob.shape == batch
    wanted = torch.autograd.grad(log_prob.sum(), xt)[0]
    torch.testing.assert_close(exact_score(law, SCHEDULES[name])(xt, t, None), wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("law", [gaussian(2, 1), mixture(2)], ids=["gaussian", "mixture"])
def test_the_diffused_density_is_the_convolution(law):
    """p_t(x) = E over eps of p_0((x - sigma eps) / alpha) / alpha^d, by quadrature."""
    schedule, t = SCHEDULES["vp"], torch.tensor(0.3, dtype=torch.float64)
    a, s = schedule.alpha(t), schedule.sigma(t)
    nodes, mass = plane_points(80)
    for point in torch.randn(3, 2, generator=rng(), dtype=torch.float64):
        wanted = (law.log_prob((point - s * nodes) / a).exp() * mass).sum() / a**2
        torch.testing.assert_close(law.diffused(schedule, t).log_prob(point).exp(), wanted, rtol=1e-4, atol=0)


def test_log_density_is_that_of_torch():
    law, x = gaussian(3, 1), torch.randn(5, 3, generator=rng(), dtype=torch.float64)
    theirs = torch.distributions.MultivariateNormal(law.mean, law.cov)
    torch.testing.assert_close(law.log_prob(x), theirs.log_prob(x))
    components = torch.distributions.MultivariateNormal(mixture(3).means, mixture(3).covs)
    theirs = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(mixture(3).weights), components)
    torch.testing.assert_close(mixture(3).log_prob(x), theirs.log_prob(x))


def test_samples_have_the_moments_of_their_law():
    law = gaussian(2, 1)
    x = law.sample((40000,), generator=rng())
    torch.testing.assert_close(x.mean(0), law.mean, rtol=0, atol=0.03)
    torch.testing.assert_close(x.T.cov(), law.cov, rtol=0, atol=0.05)
    mix = mixture(2)
    x = mix.sample((200, 200), generator=rng())
    assert x.shape == (200, 200, 2)
    torch.testing.assert_close(x.mean((0, 1)), mix.weights @ mix.means, rtol=0, atol=0.03)
    second = mix.covs + mix.means[:, :, None] * mix.means[:, None, :]
    found = x.reshape(-1, 2).T @ x.reshape(-1, 2) / 40000
    torch.testing.assert_close(found, (mix.weights[:, None, None] * second).sum(0), rtol=0, atol=0.08)


def test_a_condition_is_a_row_of_component_weights():
    law, schedule = mixture(2), SCHEDULES["vp"]
    t = torch.full((3,), 0.4, dtype=torch.float64)
    xt = torch.randn(3, 2, generator=rng(), dtype=torch.float64)
    score = exact_score(law, schedule)
    only = [exact_score(Gaussian(m, c), schedule)(xt, t) for m, c in zip(law.means, law.covs, strict=True)]
    one_hot = score(xt, t, torch.eye(3))
    torch.testing.assert_close(one_hot, torch.stack([only[k][k] for k in range(3)]))
    torch.testing.assert_close(score(xt, t, law.weights), score(xt, t, None))
    assert score(xt.float(), t, None).dtype == torch.float32
    torch.testing.assert_close(exact_score(gaussian(2, 1), schedule)(xt, t, torch.eye(3)), only[0])


def test_kl_is_that_of_torch():
    p, q = gaussian(3, 1), gaussian(3, 2)
    theirs = [torch.distributions.MultivariateNormal(law.mean, law.cov) for law in (p, q)]
    torch.testing.assert_close(gaussian_kl(p, q), torch.distributions.kl_divergence(*theirs))
    assert abs(float(gaussian_kl(p, p))) < 1e-12


def test_the_one_dimensional_integral_kl_written_out():
    """KL_t = [(v + m^2 + s^2) / (1 + s^2) - 1 - log((v + s^2) / (1 + s^2))] / 2 for N(m, v) against N(0, 1), EDM."""
    schedule = SCHEDULES["edm"]
    levels = noise_levels(schedule, uniform_time(), sigma_power_weight(schedule, 2), 32)
    m, v, s2 = 0.7, 0.4, schedule.sigma(levels.t) ** 2
    kl = 0.5 * ((v + m * m + s2) / (1 + s2) - 1 - torch.log((v + s2) / (1 + s2)))
    one = Gaussian(torch.tensor([m]).double(), torch.tensor([[v]]).double())
    unit = Gaussian(torch.zeros(1).double(), torch.eye(1).double())
    torch.testing.assert_close(integral_kl(one, unit, levels), (s2 * kl).mean(), rtol=1e-7, atol=0)


@pytest.mark.parametrize("name", SCHEDULES)
def test_closed_forms_are_the_expectations_they_stand_for(name):
    schedule = SCHEDULES[name]
    p, q, r = (gaussian(2, seed) for seed in (1, 2, 3))
    levels = noise_levels(schedule, uniform_time(0.1, 1.0), constant_weight(), 7)
    points, mass = plane_points(20)
    xt = p.diffused(schedule, levels.t[:, None]).push(points)
    sampled = score_divergence_sampled(p, q, levels, xt=xt, distance=squared_l2(), mass=mass)
    torch.testing.assert_close(sampled, score_divergence_l2(p, q, levels))
    log = [law.diffused(schedule, levels.t[:, None]).log_prob(xt) for law in (p, q, r)]
    torch.testing.assert_close(levels.integrate((log[0] - log[1]) @ mass), integral_kl(p, q, levels))
    torch.testing.assert_close(levels.integrate((log[1] - log[2]) @ mass), cfg_reward(p, q, r, levels))
    assert float(score_divergence_l2(p, p, levels)) < 1e-20
    frozen, total = (score_divergence_l2(p, q, levels, frozen_law=frozen) for frozen in (True, False))
    torch.testing.assert_close(frozen, total)


def test_noise_levels():
    schedule = SCHEDULES["vp"]
    levels = noise_levels(schedule, uniform_time(0.2, 0.8), sigma_power_weight(schedule, 1), 2000)
    torch.testing.assert_close(levels.noise_var, (levels.sigma / levels.alpha) ** 2)
    nodes = torch.linspace(0.2, 0.8, 200001, dtype=torch.float64)
    wanted = torch.trapezoid(schedule.sigma(nodes) * nodes, nodes) / 0.6
    torch.testing.assert_close(levels.integrate(levels.t), wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("d", [1, 2, 8])
def test_whitened_samples_have_exact_joint_moments(d):
    z, eps = whitened_pair(64, d, generator=rng())
    joint = torch.cat([z, eps], -1)
    torch.testing.assert_close(joint.mean(0), torch.zeros(2 * d).double(), rtol=0, atol=1e-14)
    torch.testing.assert_close(joint.T @ joint / 64, torch.eye(2 * d).double(), rtol=0, atol=1e-13)
    assert not math.isclose(float(z[0, 0]), float(whitened_pair(64, d, generator=rng(1))[0][0, 0]))


def law(mean, spread):
    return Gaussian(torch.tensor(mean, dtype=torch.float64), torch.diag(torch.tensor(spread, dtype=torch.float64)))


@pytest.mark.parametrize(("low", "high"), [(0.02, 0.98), (0.1, 0.5)])
def test_score_kl_is_the_divergence_at_the_low_end_less_that_at_the_high_end(low, high):
    noise, p, q = vp_continuous(), law([1.0, -0.5], [0.6, 0.2]), law([0.0, 0.0], [1.0, 0.5])
    x0 = p.sample((20_000,), generator=torch.Generator().manual_seed(0))
    given = {"low": low, "high": high, "nodes": 64, "generator": torch.Generator().manual_seed(1)}
    found = score_kl(exact_score(p, noise), exact_score(q, noise), x0, None, noise, **given)
    at = [gaussian_kl(p.diffused(noise, t), q.diffused(noise, t)) for t in torch.tensor([low, high]).double()]
    assert found.shape == (20_000,)
    assert abs(found.mean() / (at[0] - at[1]) - 1) < 0.02
    assert (at[0] - at[1]) > 0.1


def test_score_kl_is_zero_between_a_law_and_itself():
    noise, p = vp_continuous(), law([1.0, -0.5], [0.6, 0.2])
    x0 = p.sample((10,), generator=torch.Generator().manual_seed(0))
    score, generator = exact_score(p, noise), torch.Generator().manual_seed(1)
    assert score_kl(score, score, x0, None, noise, low=0.02, high=0.9, generator=generator).abs().max() == 0
