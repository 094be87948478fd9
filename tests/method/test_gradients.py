"""The surrogates have the gradients of the divergences they stand for: exact checks in Gaussian worlds, float64."""

import pytest
import torch
from worlds.small import gaussian, hermite, randn, relative, rng, spd

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
    exact_score,
    integral_kl,
    noise_levels,
    score_divergence_l2,
    score_divergence_sampled,
    whitened_pair,
)

SCHEDULES = {"edm": (edm(0.05, 5.0), uniform_time()), "vp": (vp_continuous(), uniform_time(0.02, 1.0))}
WEIGHTS = {"one": lambda schedule: constant_weight(), "sigma2": lambda schedule: sigma_power_weight(schedule, 2)}
in_every_noise = pytest.mark.parametrize(("schedule", "weight"), [(s, w) for s in SCHEDULES for w in WEIGHTS])


class World:
    """A linear Gaussian generator x0 = mean + factor z with parameters, a Gaussian reference, and noise levels."""

    def __init__(self, d, schedule_name, weight_name, levels=64):
        self.schedule, pi = SCHEDULES[schedule_name]
        self.weight = WEIGHTS[weight_name](self.schedule)
        self.levels = noise_levels(self.schedule, pi, self.weight, levels)
        self.t = pi.nodes(levels)[:, None]
        self.mean = randn(d, seed=1).requires_grad_()
        self.factor = torch.linalg.cholesky(spd(d, 2)).requires_grad_()
        self.ref = gaussian(d, 3)

    @property
    def law(self):
        return Gaussian(self.mean, self.factor @ self.factor.T)

    def gradient(self, loss):
        parts = torch.autograd.grad(loss, [self.mean, self.factor], retain_graph=True)
        return torch.cat([part.flatten() for part in parts])

    def noised(self, z, eps):
        """x0, xt and eps, (K, N, d), of samples z, eps (N, d) reused at each level."""
        x0 = (self.mean + z @ self.factor.T).expand(len(self.t), -1, -1)
        eps = eps.expand_as(x0)
        return x0, self.schedule.perturb(x0, self.t, eps), eps

    def scores(self, xt):
        """s_ta and s_ref at xt, the parameters of the first frozen."""
        return tuple(exact_score(law, self.schedule)(xt, self.t) for law in (self.law.detach(), self.ref))

    def ikl(self, z, eps):
        xt = self.noised(z, eps)[1]
        s_ta, s_ref = self.scores(xt.detach())
        return integral_kl_surrogate(xt=xt, t=self.t, s_ta=s_ta, s_ref=s_ref, weight=self.weight)

    def score_divergence(self, z, eps, distance):
        _, xt, eps = self.noised(z, eps)
        s_ta, s_ref = self.scores(xt)
        s_cond = conditional_score(eps, self.t, self.schedule)
        return score_divergence_surrogate(
            t=self.t, s_ta=s_ta, s_ref=s_ref, s_cond=s_cond, weight=self.weight, distance=distance
        )


FEW = randn(5, 2, seed=8), randn(5, 2, seed=9)  # z and eps of a few samples, for identities sample by sample


@pytest.mark.parametrize("d", [2, 8])
@in_every_noise
def test_both_gradients_are_exact_and_that_of_distar_is_a_semi_gradient(d, schedule, weight):
    """Whitened samples integrate quadratics exactly. Detaching d' or s_ta in DI* is wrong by a tenth at least."""
    world, (z, eps) = World(d, schedule, weight), whitened_pair(64, d, generator=rng())
    closed_form = world.gradient(integral_kl(world.law, world.ref, world.levels))
    assert relative(world.gradient(world.ikl(z, eps).mean()), closed_form) <= 1e-10
    wanted = world.gradient(score_divergence_l2(world.law, world.ref, world.levels))
    found = world.gradient(world.score_divergence(z, eps, squared_l2()).mean())
    assert relative(found, wanted) <= 1e-10
    total = world.gradient(score_divergence_l2(world.law, world.ref, world.levels, frozen_law=False))
    assert relative(found, total) >= 0.1
    if d > 2:
        return

    _, xt, eps = world.noised(z, eps)
    target = conditional_score(eps, world.t, world.schedule)

    def error(xt, detach_slope=False, detach_ta=False):
        s_ta, s_ref = world.scores(xt)
        slope = (s_ta - s_ref).detach() if detach_slope else s_ta - s_ref
        outer = (s_ta.detach() if detach_ta else s_ta) - target
        return relative(world.gradient((world.weight(world.t) * -(slope * outer).sum(-1)).mean()), wanted)

    assert error(xt) <= 1e-10
    assert error(xt, detach_slope=True) >= 0.1
    assert error(xt, detach_ta=True) >= 0.1


@in_every_noise
def test_the_pseudo_huber_gradient_is_that_of_the_frozen_divergence(schedule, weight):
    """In one dimension (z, eps) is a plane, and Gauss-Hermite quadrature replaces sampling."""
    world, distance = World(1, schedule, weight, levels=16), pseudo_huber(1.0)
    nodes, mass = hermite(150)
    z, eps = (part.reshape(-1, 1) for part in torch.meshgrid(nodes, nodes, indexing="ij"))
    found = world.gradient((world.score_divergence(z, eps, distance) @ torch.outer(mass, mass).flatten()).mean())
    diffused = world.law.detach().diffused(world.schedule, world.t)
    points = diffused.mean + diffused.cov[..., 0].sqrt() * nodes[:, None]
    wanted = score_divergence_sampled(world.law, world.ref, world.levels, xt=points, distance=distance, mass=mass)
    assert relative(found, world.gradient(wanted)) <= 1e-6


@in_every_noise
def test_guidance_is_a_reward_sample_by_sample(schedule, weight):
    """Guided IKL = IKL(cond) - alpha r = IKL(null) - (1 + alpha) r, mixture null, on the very same few samples.

    It fails with another factor and with a per-sample normaliser.
    """
    world, alpha_cfg = World(2, schedule, weight), 4.5
    means = torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.0, 2.0]], dtype=torch.float64)
    mixture = GaussianMixture(torch.full((3,), 1 / 3).double(), means, torch.stack([spd(2, s) for s in (5, 6, 7)]))
    score, null = exact_score(mixture, world.schedule), mixture.weights
    x0, xt, _ = world.noised(*FEW)
    s_ta, _ = world.scores(xt.detach())
    cond = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64).expand(*xt.shape[:2], 3)
    s_cond, s_null = score(xt.detach(), world.t, cond), score(xt.detach(), world.t, null)
    guided = guided_score(score, xt.detach(), world.t, cond, null, alpha_cfg)
    common = {"xt": xt, "t": world.t, "weight": world.weight}

    def ikl(s_ref, normaliser=None):
        values = integral_kl_surrogate(s_ta=s_ta, s_ref=s_ref, normaliser=normaliser, **common)
        return world.gradient(values.mean())

    reward = world.gradient(cfg_reward_surrogate(s_cond=s_cond, s_null=s_null, **common).mean())
    assert relative(ikl(s_cond) - alpha_cfg * reward, ikl(guided)) <= 1e-10
    assert relative(ikl(s_null) - (1 + alpha_cfg) * reward, ikl(guided)) <= 1e-10
    assert relative(ikl(s_null) - alpha_cfg * reward, ikl(guided)) >= 0.1
    asked, unasked = (law.diffused(world.schedule, world.t).log_prob(xt) for law in (mixture.given(cond), mixture))
    log_ratio = world.weight(world.t) * (asked - unasked)
    assert relative(world.gradient(log_ratio.mean()), reward) <= 1e-10
    scales = [sample_normaliser(x0=x0, xt=xt, t=world.t, s_ref=s, schedule=world.schedule) for s in (s_cond, guided)]
    assert not scales[0].requires_grad
    assert relative(ikl(s_cond, scales[0]) - alpha_cfg * reward, ikl(guided, scales[1])) >= 0.1


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_squared_l2_is_the_alpha_one_line_of_sid_in_x0_form(schedule):
    """-y . (s_ta - s_cond) is (D_ref - D_ta) . (D_ta - x0) alpha^2 / sigma^4, in value and in gradient, per sample."""
    world = World(2, schedule, "one")
    ours, (x0, xt, _) = world.score_divergence(*FEW, squared_l2()), world.noised(*FEW)
    to_x0 = {"xt": xt, "t": world.t, "schedule": world.schedule, "source": "score", "target": "x0"}
    d_ta, d_ref = (convert_prediction(s, **to_x0) for s in world.scores(xt))
    scale = world.schedule.alpha(world.t) ** 2 / world.schedule.sigma(world.t) ** 4
    theirs = ((d_ref - d_ta) * (d_ta - x0)).sum(-1) * scale
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)
    assert relative(world.gradient(ours.mean()), world.gradient(theirs.mean())) <= 1e-10


@pytest.mark.parametrize("distance", [squared_l2(), pseudo_huber(0.3)])
def test_a_users_distance_needs_no_gradient(distance):
    world, bare, y = World(2, "vp", "one"), Distance("bare", distance.value), randn(4, 3)
    torch.testing.assert_close(bare.gradient(y), distance.gradient(y), rtol=1e-12, atol=1e-14)
    found, wanted = (world.gradient(world.score_divergence(*FEW, each).mean()) for each in (bare, distance))
    assert relative(found, wanted) <= 1e-12


def test_pseudo_huber_is_taken_over_the_whole_sample_and_tends_to_l2():
    """sqrt(|y|^2 + c^2) - c with a Pythagorean triple, and c d(y) -> |y|^2 / 2 for large c."""
    y, world = torch.tensor([2.0, 2.0, 1.0]).double(), World(2, "vp", "sigma2")
    torch.testing.assert_close(pseudo_huber(4.0).value(y), torch.tensor(1.0).double())
    torch.testing.assert_close(pseudo_huber(4.0).gradient(y), y / 5)
    wide, l2 = (world.gradient(world.score_divergence(*FEW, d).mean()) for d in (pseudo_huber(1e6), squared_l2()))
    assert relative(1e6 * wide, l2) <= 1e-6


def test_surrogates_keep_scores_constant_and_sum_in_float32():
    """A score that drags its own graph along changes nothing in IKL and in the reward of guidance."""
    x = randn(3, 2).requires_grad_()
    common = {"xt": x, "t": torch.full((3,), 0.5).double(), "weight": constant_weight()}
    for values in (
        integral_kl_surrogate(s_ta=x**2, s_ref=x**3, **common),
        cfg_reward_surrogate(s_cond=x**2, s_null=x**3, **common),
    ):
        torch.testing.assert_close(torch.autograd.grad(values.sum(), x)[0], (x**2 - x**3).detach())
    half = torch.full((3, 4096), 10.0, dtype=torch.float16)
    values = integral_kl_surrogate(s_ta=half, s_ref=0 * half, **common | {"xt": half})
    assert values.dtype == torch.float32
    assert values.tolist() == [409600.0] * 3
