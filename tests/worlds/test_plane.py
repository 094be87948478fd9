"""Stacked networks are many separate ones; a world is a distribution, its prompts, and its exact diffused scores."""

import math

import pytest
import torch
from torch.nn.functional import silu
from worlds.small import normal, rng

from dipp_core.method.schedule import edm, vp_continuous
from dipp_core.method.scores import score_model
from dipp_core.worlds import plane
from dipp_core.worlds.gaussian import exact_score

VP, EDM = vp_continuous(), edm(0.1, 3.0)
WORLDS = {"ring": plane.ring, "two_moons": plane.two_moons, "checkerboard": plane.checkerboard}
SHAPE = {"hidden": 8, "cond_size": 3}


@pytest.fixture(params=WORLDS)
def world(request):
    return WORLDS[request.param](EDM)


def test_a_stack_computes_what_its_networks_compute_alone_each_from_weights_of_its_own():
    stack, x = plane.StackedMLP(3, [4, 8, 8, 2], generator=rng()), torch.randn(3, 5, 4, generator=rng(1))
    together = stack(x)
    for run in range(3):
        alone = x[run]
        for depth, (weight, bias) in enumerate(zip(stack.weights, stack.biases, strict=True)):
            alone = (silu(alone) if depth else alone) @ weight[run] + bias[run]
        torch.testing.assert_close(together[run], alone, atol=1e-6, rtol=1e-5)
    assert not torch.equal(stack.weights[0][0], stack.weights[0][1])


@pytest.mark.parametrize(
    "network",
    [
        plane.StackedNoisePredictor(2, VP, **SHAPE, generator=rng()),
        plane.StackedDenoiser(2, EDM, **SHAPE, spread=1.0, generator=rng()),
        plane.StackedGenerator(2, **SHAPE, spread=1.0, generator=rng()),
    ],
    ids=lambda network: type(network).__name__,
)
def test_the_networks_of_the_plane_answer_to_time_and_condition(network):
    x, cond = torch.randn(2, 4, 2, generator=rng()), torch.rand(2, 4, 3, generator=rng())
    given = () if isinstance(network, plane.StackedGenerator) else (torch.full((2, 4), 0.3),)
    answer = network(x, *given, cond)
    assert answer.shape == (2, 4, 2)
    assert not torch.allclose(answer, network(x, *given, cond.flip(-1)))
    assert not given or not torch.allclose(answer, network(x, given[0] + 0.3, cond))


def test_a_denoiser_with_nothing_learned_is_the_best_linear_one():
    """For data N(0, v I) the best denoiser is v / (v + s^2) of the noisy point; the network only adds to it."""
    network = plane.StackedDenoiser(2, VP, **SHAPE, spread=1.5, generator=rng())
    for parameter in network.body.parameters():
        parameter.data.zero_()
    xt, t, cond = torch.randn(2, 4, 2, generator=rng()), torch.full((2, 4), 0.3), torch.rand(2, 4, 3, generator=rng())
    exact = exact_score(normal([0.0, 0.0], [2.25, 2.25]), VP)
    torch.testing.assert_close(score_model(network, VP, "x0")(xt, t, cond), exact(xt, t), atol=1e-5, rtol=1e-4)


def test_a_world_is_its_prompts_its_spread_and_its_exact_reference(world):
    """The null prompt is the average prompt; the prompts ask for different places."""
    islands, island_prompts = plane.three_islands()
    for law, prompts in ((world.law, world.prompts), (islands, island_prompts)):
        torch.testing.assert_close(prompts.sum(-1), torch.ones(2, dtype=torch.float64))
        torch.testing.assert_close(law.weights, prompts.mean(0))
        assert (torch.linalg.eigvalsh(law.covs) > 0).all()
    torch.testing.assert_close(world.null_cond.double(), world.law.weights, atol=1e-7, rtol=0)
    assert set(map(tuple, world.draw_cond((9,), rng()).tolist())) == set(map(tuple, world.prompts.float().tolist()))
    first, second = (world.sample(prompt, (5000,), generator=rng()).mean(0) for prompt in (0, 1))
    assert (first - second).norm() > 0.5
    x = world.law.sample((200_000,), generator=rng())
    assert world.spread == pytest.approx(x.var(0).mean().sqrt().item(), rel=0.01)
    xt, t = torch.randn(40, 2, generator=rng()), torch.rand(40, generator=rng())
    exact = world.law.given(world.prompts[0]).diffused(EDM, t.double()).score(xt.double())
    torch.testing.assert_close(world.ref(xt, t, world.prompts[0].float()), exact.float(), atol=2e-4, rtol=1e-3)


@pytest.fixture
def cloud():
    return torch.randn(500, 2, generator=rng(), dtype=torch.float64)


def test_sliced_w2_of_shifted_and_scaled_clouds_in_closed_form(cloud):
    assert plane.sliced_w2(cloud, cloud.flip(0)) == 0.0
    shift, size = torch.tensor([0.3, -0.4], dtype=torch.float64), cloud.square().sum(-1).mean().sqrt().item()
    assert plane.sliced_w2(cloud, cloud + shift) == pytest.approx(0.5 / math.sqrt(2), rel=1e-12)
    assert plane.sliced_w2(cloud, 3 * cloud) == pytest.approx(2 * size / math.sqrt(2), rel=1e-12)


MODES = torch.tensor([[0.0, 0.0], [4.0, 0.0]], dtype=torch.float64)


def test_precision_counts_what_is_near_a_mode():
    samples = torch.tensor([[0.1, 0.0], [3.9, 0.0], [2.0, 0.0], [0.0, 1.1]], dtype=torch.float64)
    assert plane.precision(samples, MODES, radius=1.0).item() == 0.5
    assert plane.precision(torch.stack([samples, samples[:2].repeat(2, 1)]), MODES, radius=1.0).tolist() == [0.5, 1.0]


def test_a_mode_is_covered_when_it_has_its_share(cloud):
    samples = torch.cat([0.1 * cloud[:400], 0.1 * cloud[400:] + MODES[1]])  # a fifth at the second mode
    assert plane.coverage(samples, MODES, torch.tensor([0.5, 0.5]), radius=1.0).item() == 2
    assert plane.coverage(samples, MODES, torch.tensor([0.1, 0.9]), radius=1.0).item() == 1


def test_the_weights_of_the_modes_are_the_shares_nearest_to_them(cloud):
    samples = torch.cat([0.1 * cloud[:400], 0.1 * cloud[400:] + MODES[1]])
    torch.testing.assert_close(plane.mode_weights(samples, MODES), torch.tensor([0.8, 0.2]))
