"""The optimum on a grid: against closed forms, against its own certificate, and beside the tilted law and best of n."""

import dataclasses
import math

import pytest
import torch
from worlds.small import normal, rng

from dipp_core.method.schedule import (
    constant_weight,
    edm,
    normalised,
    sigma_power_weight,
    uniform_time,
    vp_continuous,
)
from dipp_core.worlds import plane
from dipp_core.worlds.gaussian import Gaussian, GaussianMixture, NoiseLevels, gaussian_kl, integral_kl, noise_levels
from dipp_core.worlds.gaussian_optima import cfg_variance_ikl, linear_shift_ikl, tilted_gaussian
from dipp_core.worlds.plane_optimum import (
    best_of_n_on_grid,
    evaluate,
    histogram,
    mixture_log_reference,
    plane_grid,
    solve_on_grid,
    tilted_on_grid,
)

EDM = edm(0.1, 3.0)
LAWS_OF_NOISE = {"edm": (EDM, uniform_time()), "vp": (vp_continuous(), uniform_time(0.05, 0.6))}
SLOPE = torch.tensor([0.6, -0.8], dtype=torch.float64)
ALPHAS = torch.tensor([0.25, 1.0, 2.0], dtype=torch.float64)


def upwards(x):
    return x[..., 1]


def along(x):
    return x @ SLOPE


def levels_of(name="edm", weight="one", n=12):
    schedule, law = LAWS_OF_NOISE[name]
    w = {"one": constant_weight(), "sigma2": sigma_power_weight(schedule)}[weight]
    return noise_levels(schedule, law, normalised(w, law), n)


def reference(law, levels):
    """A Gaussian as the reference of a grid."""
    one = GaussianMixture(torch.ones(1, dtype=torch.float64), law.mean[None], law.cov[None])
    return mixture_log_reference(one, levels.schedule)


def moments(laws):
    """Mean (R, 2) and covariance (R, 2, 2) of the atoms."""
    mean = laws.mean_of(lambda x: x)
    return mean, laws.mean_of(lambda x: x[..., None] * x[..., None, :]) - mean[..., None] * mean[..., None, :]


def ring_grid(weight, levels=24, **more):
    world = plane.ring(EDM)
    log_reference = mixture_log_reference(world.law, EDM, world.prompts[0])
    return plane_grid(log_reference, upwards, levels_of(weight=weight, n=levels), **more)


def random_laws(grid, count, seed=0):
    """Rough laws: each atom of the reference times a random factor, each spread over all orders of magnitude."""
    noise = torch.randn(count, *grid.reward.shape, generator=rng(seed), dtype=torch.float64)
    laws = (grid.log_start + 2 * noise).exp()
    return laws / laws.sum((-2, -1), keepdim=True)


@pytest.fixture(scope="module")
def small_ring():
    return ring_grid("sigma2", levels=8, points=41)


@pytest.fixture(scope="module")
def small_optimum(small_ring):
    return solve_on_grid(small_ring, ALPHAS)


@pytest.mark.parametrize("noise", LAWS_OF_NOISE)
def test_divergences_of_gaussians_on_the_grid_are_the_closed_forms(noise):
    levels, law, ref = levels_of(noise), normal([0.3, -0.5], [0.06, 0.16]), normal([-0.2, 0.1], [0.2, 0.09])
    grid = plane_grid(reference(ref, levels), upwards, levels)
    atoms = law.log_prob(torch.stack(torch.meshgrid(grid.axis, grid.axis, indexing="ij"), dim=-1)).exp()
    found = evaluate(grid, (atoms / atoms.sum())[None], 0.7)
    assert found.integral_kl.item() == pytest.approx(integral_kl(law, ref, levels).item(), rel=1e-5)
    assert found.kl.item() == pytest.approx(gaussian_kl(law, ref).item(), rel=1e-5)
    assert found.reward.item() == pytest.approx(-0.5, abs=1e-8)
    assert found.objective.item() == pytest.approx(found.integral_kl.item() + 0.7 * 0.5, rel=1e-9)


@pytest.mark.parametrize(("weight", "accuracy"), [("one", 3e-3), ("sigma2", 2e-2)])
@pytest.mark.parametrize("noise", LAWS_OF_NOISE)
def test_for_a_gaussian_and_a_linear_reward_the_law_shifts_as_the_closed_form_says(noise, weight, accuracy):
    """With w = sigma^2 the certificate says less about fine detail, so the moments are less sharp than F."""
    levels, ref, alphas = levels_of(noise, weight), normal([0.2, -0.3], [0.25, 0.1]), ALPHAS / 2
    found = solve_on_grid(plane_grid(reference(ref, levels), along, levels, points=61), alphas, tolerance=1e-3)
    assert (found.duality_gap <= 2e-3 * alphas).all()
    shift = torch.stack([linear_shift_ikl(SLOPE, ref.cov.diagonal(), float(1 / alpha), levels) for alpha in alphas])
    mean, cov = moments(found)
    torch.testing.assert_close(mean - ref.mean, shift, atol=accuracy, rtol=0)
    torch.testing.assert_close(cov, ref.cov.expand(3, 2, 2), atol=accuracy, rtol=0)
    for i, alpha in enumerate(alphas):
        best = Gaussian(ref.mean + shift[i], ref.cov)
        value = integral_kl(best, ref, levels) - alpha * SLOPE @ best.mean
        assert -1e-6 <= (found.objective[i] - value).item() <= found.duality_gap[i].item()


def test_only_the_ratio_of_reward_and_weights_matters():
    """Weights w that do not sum to 1, and a reward scaled with them: the same law."""
    levels, ref = levels_of("vp"), normal([0.2, -0.3], [0.25, 0.1])
    scaled = dataclasses.replace(levels, w=5 * levels.w)
    once, five = (plane_grid(reference(ref, which), along, which, points=41) for which in (levels, scaled))
    found, again = solve_on_grid(once, ALPHAS / 2), solve_on_grid(five, 5 * ALPHAS / 2)
    torch.testing.assert_close(again.probability, found.probability)
    torch.testing.assert_close(again.integral_kl, 5 * found.integral_kl)


@pytest.mark.parametrize("sigma", [0.2, 0.5])
def test_with_guidance_the_variance_is_that_of_the_closed_form(sigma):
    """One noise level, one Gaussian a condition: narrow with it, wide without."""
    levels = NoiseLevels(EDM, EDM.time_of_noise_ratio(torch.tensor([sigma])), torch.ones(1, dtype=torch.float64))
    means, eye = torch.zeros(2, 2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    law = GaussianMixture(torch.tensor([0.5, 0.5], dtype=torch.float64), means, torch.stack([0.2 * eye, 0.4 * eye]))
    alpha_cfg, only = [0.0, 0.3, 0.6], torch.eye(2, dtype=torch.float64)
    log_reference = mixture_log_reference(law, EDM, only[0], null_cond=only[1], alpha_cfg=alpha_cfg)
    grid = plane_grid(log_reference, upwards, levels, extent=2.5, points=51)
    found = solve_on_grid(grid, 0.0, tolerance=2e-4)
    assert (found.duality_gap <= 4e-4).all()
    sharpened = tilted_on_grid(grid, 0.0)
    assert (sharpened.objective > found.objective)[1:].all()
    for i, alpha in enumerate(alpha_cfg):
        for laws, wanted in ((found, cfg_variance_ikl(0.2, 0.4, alpha, sigma**2)), (sharpened, 1 / (5 + 2.5 * alpha))):
            torch.testing.assert_close(moments(laws)[1][i], float(wanted) * eye, atol=5e-4, rtol=0)


def test_no_law_is_better_than_the_gap_allows(small_ring, small_optimum):
    """F(q) >= F(p) - gap(p) for any two laws, and the optimum is below all of them."""
    tilted = tilted_on_grid(small_ring, ALPHAS).probability
    for alpha, best in zip(ALPHAS, small_optimum.objective, strict=True):
        rivals = [random_laws(small_ring, 4), tilted, small_optimum.probability]
        worth = evaluate(small_ring, torch.cat(rivals), alpha)
        assert (worth.objective - worth.duality_gap).max() <= worth.objective.min() + 1e-9
        assert best <= worth.objective.min() + 2e-3 * alpha
        assert worth.objective[:4].min() > best + 0.01


def test_the_gap_is_the_steepest_descent_towards_an_atom(small_ring):
    """-dF/de at p + e (atom - p), by finite differences at the steepest atom; no atom is steeper."""
    e, alpha = 1e-6, 0.7
    p = (random_laws(small_ring, 1) + 1 / 41**2) / 2
    start = evaluate(small_ring, p, alpha)
    atoms = torch.eye(p[0].numel(), dtype=torch.float64).reshape(-1, *p.shape[1:])
    steepest = torch.cat([evaluate(small_ring, (1 - e) * p + e * part, alpha).objective for part in atoms.split(300)])
    assert ((start.objective - steepest) / e).max().item() == pytest.approx(start.duality_gap.item(), rel=1e-2)


def test_the_gap_bounds_the_divergence_from_the_optimum(small_ring, small_optimum):
    """sum_k w_k KL(p_k || p*_k) <= F(p) - F*, here of the tilted law."""
    tilted = tilted_on_grid(small_ring, ALPHAS)
    best = small_optimum.probability
    around = [(kernel, (kernel @ best @ kernel.mT).log(), w) for kernel, _, w in small_ring.levels]
    distance = evaluate(dataclasses.replace(small_ring, levels=around), tilted.probability).integral_kl
    above = tilted.objective - small_optimum.objective
    assert (distance > 0.001).all()
    assert (distance <= above + small_optimum.duality_gap).all()
    assert (above <= tilted.duality_gap).all()


def test_problems_side_by_side_are_those_solved_alone(small_ring, small_optimum):
    """Three scales of the reward, and three strengths of guidance at one scale."""
    for i, alpha in enumerate(ALPHAS):
        alone = solve_on_grid(small_ring, [float(alpha)])
        torch.testing.assert_close(small_optimum.probability[i], alone.probability[0], atol=1e-10, rtol=1e-6)
    world, levels, strengths = plane.ring(EDM), levels_of(n=6), [0.0, 1.5, 4.5]

    def solved(alpha_cfg):
        guidance = {"null_cond": world.law.weights, "alpha_cfg": alpha_cfg}
        log_reference = mixture_log_reference(world.law, EDM, world.prompts[0], **guidance)
        return solve_on_grid(plane_grid(log_reference, upwards, levels, points=31), 0.5, steps=40)

    together, each = solved(strengths), [solved(strength) for strength in strengths]
    assert len({round(law.reward.item(), 2) for law in each}) == 3
    for i, law in enumerate(each):
        torch.testing.assert_close(together.probability[i], law.probability[0], atol=1e-10, rtol=1e-6)
        assert together.objective[i].item() == pytest.approx(law.objective.item(), rel=1e-9)


@pytest.mark.parametrize(
    ("weight", "beta", "reward", "rel"),
    [
        ("one", [0.25, 0.5, 1, 2, 4, 8], [3.006, 2.332, 1.796, 1.179, 0.653, 0.336], 2e-3),
        ("sigma2", [1, 2, 4, 8, 16, 32], [3.526, 2.195, 1.241, 0.646, 0.327, 0.164], 1e-2),
    ],
)
def test_the_ring_is_solved_and_certified(weight, beta, reward, rel):
    """The rewards are those of another solver, by plain momentum with levels and weights of its own."""
    alpha_rew = 1 / torch.tensor(beta, dtype=torch.float64)
    found = solve_on_grid(ring_grid(weight), alpha_rew)
    assert found.reward.tolist() == pytest.approx(reward, rel=rel)
    assert (found.duality_gap <= 2e-3 * alpha_rew).all()
    torch.testing.assert_close(found.objective, found.integral_kl - alpha_rew * found.reward)
    assert found.probability.min() >= 0
    torch.testing.assert_close(found.probability.sum((-2, -1)), torch.ones(6, dtype=torch.float64))


def test_the_tilted_law_of_a_gaussian_is_the_closed_form():
    levels, ref = levels_of(n=4), normal([0.2, -0.3], [0.25, 0.1])
    tilted = tilted_on_grid(plane_grid(reference(ref, levels), along, levels), ALPHAS)
    mean, cov = moments(tilted)
    for i, alpha in enumerate(ALPHAS):
        law = tilted_gaussian(ref, float(1 / alpha), SLOPE)
        torch.testing.assert_close(mean[i], law.mean, atol=1e-8, rtol=0)
        torch.testing.assert_close(cov[i], law.cov, atol=1e-8, rtol=0)
        assert tilted.kl[i].item() == pytest.approx(gaussian_kl(law, ref).item(), rel=1e-6)


def test_best_of_n_has_the_divergence_and_the_reward_that_theory_gives():
    """KL = log n - (n - 1) / n; two normals have their largest 1 / sqrt(pi) above the mean."""
    levels, ref, numbers = levels_of(n=2), normal([0.2, -0.3], [0.25, 0.16]), [1, 2, 4, 8]
    grid = plane_grid(reference(ref, levels), along, levels)
    found = best_of_n_on_grid(grid, numbers)
    spread = math.sqrt(0.25 * 0.36 + 0.16 * 0.64)
    above = [0.0, 1 / math.sqrt(math.pi), 1.02938, 1.42360]
    assert ((found.reward - ref.mean @ SLOPE) / spread).tolist() == pytest.approx(above, abs=1e-3)
    assert found.kl.tolist() == pytest.approx([math.log(n) - (n - 1) / n for n in numbers], abs=2e-3)
    assert found.integral_kl.diff().min() > 0


def test_best_of_two_is_what_all_pairs_of_atoms_give():
    """With ties: five rewards, five atoms each; equally good draws win alike."""
    levels = levels_of(n=2)
    grid = plane_grid(reference(normal([0.0, 0.5], [1.0, 2.0]), levels), upwards, levels, extent=2.0, points=5)
    prior, reward = grid.log_prior[0].exp().flatten(), grid.reward.flatten()
    share = (reward[:, None] > reward).double() + 0.5 * (reward[:, None] == reward)  # of the first atom in each pair
    wanted = 2 * prior * (share @ prior)
    torch.testing.assert_close(best_of_n_on_grid(grid, [2]).probability.flatten(), wanted)


def test_samples_have_the_moments_of_their_law(small_optimum):
    samples = small_optimum.sample((200, 200), generator=rng())
    assert samples.shape == (3, 200, 200, 2)
    mean, cov = moments(small_optimum)
    cell = (small_optimum.axis[1] - small_optimum.axis[0]).item()
    torch.testing.assert_close(samples.mean((1, 2)), mean, atol=0.05, rtol=0)
    torch.testing.assert_close(mean[:, 1], small_optimum.reward)
    for found, wanted in zip(samples.flatten(1, 2), cov, strict=True):
        torch.testing.assert_close(found.T.cov(), wanted + cell**2 / 12 * torch.eye(2), atol=0.05, rtol=0)
    off_centre = (samples[..., None] - small_optimum.axis).abs().amin(-1)
    assert 0.99 * cell / 2 < off_centre.max() <= cell / 2 + 1e-12


def test_a_histogram_counts_at_the_nearest_atom():
    grid = ring_grid("one")
    n = len(grid.axis)
    step = (grid.axis[1] - grid.axis[0]).item()
    atoms = torch.stack([grid.axis[[3, 3, 10, 0]], grid.axis[[5, 5, 20, n - 1]]], dim=-1)
    samples = atoms + 0.4 * step * torch.tensor([[1, -1], [-1, 1], [1, 1], [-100, 100]])
    law = histogram(grid, samples[None])[0]
    assert (law[3, 5], law[10, 20], law[0, n - 1], law.sum()) == (0.5, 0.25, 0.25, 1)
