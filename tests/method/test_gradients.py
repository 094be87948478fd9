"""The surrogates have the gradients of the divergences they stand for: exact checks in Gaussian worlds, float64."""

import numpy as np
import pytest
import torch

from dipp_core.method.divergences import (
    Distance,
    integral_kl_surrogate,
    pseudo_huber,
    sample_normaliser,
    score_divergence_surrogate,
    squared_l2,
)
from dipp_core.method.guidance import cfg_reward_surrogate
from dipp_core.method.schedule import (
    constant_weight,
    convert_prediction,
    edm,
    sigma_power_weight,
    uniform_time,
    vp_continuous,
)
from dipp_core.method.scores import conditional_score, guided_score
from dipp_core.worlds.gaussian import (
    Gaussian,
    GaussianMixture,
    cfg_reward,
    exact_score,
    integral_kl,
    noise_levels,
    score_divergence_l2,
    score_divergence_sampled,
    whitened_pair,
)

SCHEDULES = {"edm": (edm(0.05, 5.0), uniform_time()), "vp": (vp_continuous(), uniform_time(0.02, 1.0))}
WEIGHTS = {"one": lambda schedule: constant_weight(), "sigma2": lambda schedule: sigma_power_weight(schedule, 2)}
CASES = [(s, w) for s in SCHEDULES for w in WEIGHTS]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def spd(d, seed):
    a = torch.randn(d, d, generator=rng(seed), dtype=torch.float64)
    return a @ a.T / d + 0.3 * torch.eye(d, dtype=torch.float64)


class World:
    """A linear Gaussian generator x0 = mean + factor z with parameters, a Gaussian reference, and noise levels."""

    def __init__(self, d, schedule_name, weight_name, levels=64):
        self.schedule, self.pi = SCHEDULES[schedule_name]
        self.weight = WEIGHTS[weight_name](self.schedule)
        self.levels = noise_levels(self.schedule, self.pi, self.weight, levels)
        self.t = self.pi.nodes(levels)[:, None]
        self.mean = torch.randn(d, generator=rng(1), dtype=torch.float64).requires_grad_()
        self.factor = torch.linalg.cholesky(spd(d, 2)).requires_grad_()
        self.ref = Gaussian(torch.randn(d, generator=rng(3), dtype=torch.float64), spd(d, 4))

    @property
    def law(self):
        return Gaussian(self.mean, self.factor @ self.factor.T)

    def gradient(self, loss):
        parts = torch.autograd.grad(loss, [self.mean, self.factor], retain_graph=True)
        return torch.cat([part.flatten() for part in parts])

    def noised(self, z, eps):
        """x0 and xt, (K, N, d), of samples z, eps (N, d) reused at each level or (K, N, d)."""
        x0 = (self.mean + z @ self.factor.T).expand(len(self.t), -1, -1)
        eps = eps.expand_as(x0)
        return x0, self.schedule.perturb(x0, self.t, eps), eps

    def scores(self, xt):
        return exact_score(self.law.detach(), self.schedule)(xt, self.t), exact_score(self.ref, self.schedule)(
            xt, self.t
        )

    def ikl(self, z, eps):
        _, xt, _ = self.noised(z, eps)
        s_ta, s_ref = self.scores(xt.detach())
        return integral_kl_surrogate(xt=xt, t=self.t, s_ta=s_ta, s_ref=s_ref, weight=self.weight).mean()

    def score_divergence(self, z, eps, distance):
        _, xt, eps = self.noised(z, eps)
        s_ta, s_ref = self.scores(xt)
        s_cond = conditional_score(eps, self.t, self.schedule)
        return score_divergence_surrogate(
            t=self.t, s_ta=s_ta, s_ref=s_ref, s_cond=s_cond, weight=self.weight, distance=distance
        )


def relative(found, wanted):
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("d", [2, 8])
@pytest.mark.parametrize(("schedule", "weight"), CASES)
def test_ikl_gradient_is_exact(d, schedule, weight):
    world = World(d, schedule, weight)
    found = world.gradient(world.ikl(*whitened_pair(64, d, generator=rng())))
    assert relative(found, world.gradient(integral_kl(world.law, world.ref, world.levels))) <= 1e-10


@pytest.mark.parametrize("d", [2, 8])
@pytest.mark.parametrize(("schedule", "weight"), CASES)
def test_l2_score_divergence_gradient_is_exact_and_a_semi_gradient(d, schedule, weight):
    world = World(d, schedule, weight)
    found = world.gradient(world.score_divergence(*whitened_pair(64, d, generator=rng()), squared_l2()).mean())
    assert relative(found, world.gradient(score_divergence_l2(world.law, world.ref, world.levels))) <= 1e-10
    total = world.gradient(score_divergence_l2(world.law, world.ref, world.levels, frozen_law=False))
    assert relative(found, total) >= 0.1


@pytest.mark.parametrize(("schedule", "weight"), CASES)
def test_pseudo_huber_gradient_by_quadrature(schedule, weight):
    """In one dimension (z, eps) is a plane, and Gauss-Hermite quadrature replaces sampling."""
    world = World(1, schedule, weight, levels=16)
    nodes, mass = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(150))
    z, eps = (part.reshape(-1, 1) for part in torch.meshgrid(nodes, nodes, indexing="ij"))
    mass = mass / mass.sum()
    distance = pseudo_huber(1.0)
    values = world.score_divergence(z, eps, distance)
    found = world.gradient((values @ torch.outer(mass, mass).flatten()).mean())
    diffused = world.law.detach().diffused(world.schedule, world.t)
    points = diffused.mean + diffused.cov[..., 0].sqrt() * nodes[:, None]
    wanted = score_divergence_sampled(world.law, world.ref, world.levels, xt=points, distance=distance, mass=mass)
    assert relative(found, world.gradient(wanted)) <= 1e-6


@pytest.mark.parametrize(("schedule", "weight"), CASES)
def test_each_wrong_stop_gradient_is_wrong(schedule, weight):
    world = World(2, schedule, weight)
    z, eps = whitened_pair(64, 2, generator=rng())
    wanted = world.gradient(score_divergence_l2(world.law, world.ref, world.levels))
    x0, xt, _ = world.noised(z, eps)
    alpha, sigma = (f(world.t)[..., None] for f in (world.schedule.alpha, world.schedule.sigma))

    def error(xt, detach_slope=False, detach_ta=False):
        s_ta, s_ref = world.scores(xt)
        slope, outer = s_ta - s_ref, s_ta - (alpha * x0 - xt) / sigma**2
        slope = slope.detach() if detach_slope else slope
        outer = s_ta.detach() - (alpha * x0 - xt) / sigma**2 if detach_ta else outer
        values = world.weight(world.t) * -(slope * outer).sum(-1)
        return relative(world.gradient(values.mean()), wanted)

    assert error(xt) <= 1e-10
    assert error(xt, detach_slope=True) >= 0.1
    assert error(xt, detach_ta=True) >= 0.1
    assert error(xt.detach()) >= 0.1


def test_monte_carlo_error_of_both_estimators_at_a_million_draws():
    """64 levels of 15625 independent draws each; l2 and Huber against the frozen-law divergence."""
    for schedule, weight in CASES:
        world = World(2, schedule, weight)
        shape, generator = (64, 15625, 2), rng(10)
        z, eps = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
        wanted = world.gradient(integral_kl(world.law, world.ref, world.levels))
        assert relative(world.gradient(world.ikl(z, eps)), wanted) <= 0.02
        if weight == "one":
            continue
        wanted = world.gradient(huber_reference(world))
        assert relative(world.gradient(world.score_divergence(z, eps, pseudo_huber(1.0)).mean()), wanted) <= 0.02


def huber_reference(world):
    """The frozen-law pseudo-Huber divergence in two dimensions by Gauss-Hermite quadrature."""
    nodes, mass = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(48))
    points = torch.stack(torch.meshgrid(nodes, nodes, indexing="ij"), -1).reshape(-1, 2)
    mass = torch.outer(mass, mass).flatten() / mass.sum() ** 2
    xt = world.law.detach().diffused(world.schedule, world.t).push(points)
    return score_divergence_sampled(world.law, world.ref, world.levels, xt=xt, distance=pseudo_huber(1.0), mass=mass)


@pytest.mark.parametrize(("schedule", "weight"), CASES)
def test_guidance_is_a_reward_sample_by_sample(schedule, weight):
    """Guided IKL = IKL(cond) - alpha r = IKL(null) - (1 + alpha) r, mixture null, on the very same few samples."""
    world, alpha_cfg = World(2, schedule, weight), 4.5
    means = torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.0, 2.0]], dtype=torch.float64)
    mixture = GaussianMixture(torch.full((3,), 1 / 3).double(), means, torch.stack([spd(2, s) for s in (5, 6, 7)]))
    score = exact_score(mixture, world.schedule)
    z, eps = (torch.randn(7, 2, generator=rng(s), dtype=torch.float64) for s in (8, 9))
    x0, xt, _ = world.noised(z, eps)
    s_ta, _ = world.scores(xt.detach())
    cond = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64).expand(*xt.shape[:2], 3)
    null = mixture.weights
    s_cond, s_null = score(xt.detach(), world.t, cond), score(xt.detach(), world.t, null)
    guided = guided_score(score, xt.detach(), world.t, cond, null, alpha_cfg)
    common = {"xt": xt, "t": world.t, "weight": world.weight}

    def ikl(s_ref, **more):
        return world.gradient(integral_kl_surrogate(s_ta=s_ta, s_ref=s_ref, **common, **more).mean())

    reward = world.gradient(cfg_reward_surrogate(s_cond=s_cond, s_null=s_null, **common).mean())
    assert relative(ikl(s_cond) - alpha_cfg * reward, ikl(guided)) <= 1e-10
    assert relative(ikl(s_null) - (1 + alpha_cfg) * reward, ikl(guided)) <= 1e-10
    assert relative(ikl(s_null) - alpha_cfg * reward, ikl(guided)) >= 0.1
    log_ratio = mixture.given(cond).diffused(world.schedule, world.t).log_prob(xt)
    log_ratio = log_ratio - mixture.diffused(world.schedule, world.t).log_prob(xt)
    assert relative(world.gradient((world.weight(world.t) * log_ratio).mean()), reward) <= 1e-10
    scales = {
        name: sample_normaliser(x0=x0, xt=xt, t=world.t, s_ref=s, schedule=world.schedule)
        for name, s in (("cond", s_cond), ("guided", guided))
    }
    wrong = ikl(s_cond, normaliser=scales["cond"]) - alpha_cfg * reward
    assert relative(wrong, ikl(guided, normaliser=scales["guided"])) >= 0.1


def test_guidance_reward_in_closed_form():
    world = World(2, "edm", "sigma2")
    cond, null = Gaussian(world.ref.mean, world.ref.cov), Gaussian(torch.zeros(2).double(), spd(2, 5) + torch.eye(2))
    _, xt, _ = world.noised(*whitened_pair(64, 2, generator=rng()))
    s_cond, s_null = (exact_score(law, world.schedule)(xt.detach(), world.t) for law in (cond, null))
    values = cfg_reward_surrogate(xt=xt, t=world.t, s_cond=s_cond, s_null=s_null, weight=world.weight)
    wanted = world.gradient(cfg_reward(world.law, cond, null, world.levels))
    assert relative(world.gradient(values.mean()), wanted) <= 1e-10


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_squared_l2_is_the_alpha_one_line_of_sid_in_x0_form(schedule):
    """-y . (s_ta - s_cond) is (D_ref - D_ta) . (D_ta - x0) alpha^2 / sigma^4, in value and in gradient, per sample."""
    world = World(2, schedule, "one")
    z, eps = (torch.randn(5, 2, generator=rng(s), dtype=torch.float64) for s in (8, 9))
    ours = world.score_divergence(z, eps, squared_l2())
    x0, xt, _ = world.noised(z, eps)
    to_x0 = {"xt": xt, "t": world.t, "schedule": world.schedule, "source": "score", "target": "x0"}
    d_ta, d_ref = (convert_prediction(s, **to_x0) for s in world.scores(xt))
    scale = world.schedule.alpha(world.t) ** 2 / world.schedule.sigma(world.t) ** 4
    theirs = ((d_ref - d_ta) * (d_ta - x0)).sum(-1) * scale
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)
    assert relative(world.gradient(ours.mean()), world.gradient(theirs.mean())) <= 1e-10


def test_pseudo_huber_is_the_line_of_sim_and_tends_to_l2():
    """SIM's loss written out, -y / sqrt(|y|^2 + c^2) . (s_ta - s_cond); and c d(y) -> |y|^2 / 2 for large c."""
    world, c = World(2, "vp", "sigma2"), 0.7
    z, eps = (torch.randn(5, 2, generator=rng(s), dtype=torch.float64) for s in (8, 9))
    _, xt, noise = world.noised(z, eps)
    s_ta, s_ref = world.scores(xt)
    y, sigma = s_ta - s_ref, world.schedule.sigma(world.t)
    sim = -(y * (s_ta + noise / sigma[..., None])).sum(-1) / ((y**2).sum(-1) + c**2).sqrt() * sigma**2
    ours = world.score_divergence(z, eps, pseudo_huber(c))
    assert relative(world.gradient(ours.mean()), world.gradient(sim.mean())) <= 1e-10
    large = 1e6 * world.gradient(world.score_divergence(z, eps, pseudo_huber(1e6)).mean())
    assert relative(large, world.gradient(world.score_divergence(z, eps, squared_l2()).mean())) <= 1e-6


@pytest.mark.parametrize("distance", [squared_l2(), pseudo_huber(0.3)])
def test_a_users_distance_needs_no_gradient(distance):
    world = World(2, "vp", "one")
    z, eps = (torch.randn(5, 2, generator=rng(s), dtype=torch.float64) for s in (8, 9))
    bare = Distance("bare", distance.value)
    y = torch.randn(4, 3, generator=rng(), dtype=torch.float64)
    torch.testing.assert_close(bare.gradient(y), distance.gradient(y), rtol=1e-12, atol=1e-14)
    found, wanted = (world.gradient(world.score_divergence(z, eps, each).mean()) for each in (bare, distance))
    assert relative(found, wanted) <= 1e-12


def test_surrogates_keep_scores_constant_where_they_should():
    """A score that drags its own graph along changes nothing in IKL and in the reward of guidance."""
    t, x = torch.full((3,), 0.5).double(), torch.randn(3, 2, generator=rng(), dtype=torch.float64).requires_grad_()
    common = {"xt": x, "t": t, "weight": constant_weight()}
    ikl = integral_kl_surrogate(s_ta=x**2, s_ref=x**3, **common).sum()
    torch.testing.assert_close(torch.autograd.grad(ikl, x)[0], (x**2 - x**3).detach())
    reward = cfg_reward_surrogate(s_cond=x**2, s_null=x**3, **common).sum()
    torch.testing.assert_close(torch.autograd.grad(reward, x)[0], (x**2 - x**3).detach())


def test_half_precision_terms_are_computed_in_float32():
    t, x = torch.full((2,), 0.5).double(), torch.full((2, 4096), 10.0, dtype=torch.float16)
    values = integral_kl_surrogate(xt=x, t=t, s_ta=x, s_ref=0 * x, weight=constant_weight())
    assert values.dtype == torch.float32
    assert values.tolist() == [409600.0, 409600.0]
