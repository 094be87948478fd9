"""Stacked networks are many separate ones; a world is a law, its prompts, and its exact diffused scores."""

import pytest
import torch
from torch import nn

from dipp_core.method import scores
from dipp_core.method.schedule import edm, vp_continuous
from dipp_core.worlds import gaussian, plane


def separate(stack: plane.StackedMLP, run: int) -> nn.Sequential:
    """One run of a stack as an ordinary PyTorch network."""
    layers = []
    for weight, bias in zip(stack.weights, stack.biases, strict=True):
        linear = nn.Linear(weight.shape[1], weight.shape[2])
        linear.weight.data, linear.bias.data = weight.data[run].T.clone(), bias.data[run, 0].clone()
        layers += [linear, nn.SiLU()]
    return nn.Sequential(*layers[:-1])


def test_a_stack_computes_what_its_networks_compute_alone():
    rng = torch.Generator().manual_seed(0)
    stack, x = plane.StackedMLP(3, [4, 8, 8, 2], generator=rng), torch.randn(3, 5, 4, generator=rng)
    together = stack(x)
    for run in range(3):
        torch.testing.assert_close(together[run], separate(stack, run)(x[run]), atol=1e-6, rtol=1e-5)


def test_a_run_receives_no_gradient_from_another():
    rng = torch.Generator().manual_seed(0)
    stack = plane.StackedMLP(2, [2, 8, 2], generator=rng)
    stack(torch.randn(2, 5, 2, generator=rng))[0].square().sum().backward()
    assert all(parameter.grad[0].abs().sum() > 0 for parameter in stack.parameters())
    assert all(parameter.grad[1].abs().sum() == 0 for parameter in stack.parameters())


def test_runs_start_from_different_weights():
    stack = plane.StackedMLP(2, [2, 8, 2], generator=torch.Generator().manual_seed(0))
    assert not torch.equal(stack.weights[0][0], stack.weights[0][1])


def test_the_noise_predictor_answers_per_run_sample_and_condition():
    rng, noise = torch.Generator().manual_seed(0), vp_continuous()
    network = plane.StackedNoisePredictor(2, noise, hidden=8, cond_size=3, generator=rng)
    xt, t, cond = torch.randn(2, 4, 2, generator=rng), torch.full((2, 4), 0.3), torch.rand(2, 4, 3, generator=rng)
    answer = network(xt, t, cond)
    assert answer.shape == (2, 4, 2)
    assert not torch.allclose(answer, network(xt, t + 0.3, cond))
    assert not torch.allclose(answer, network(xt, t, cond.flip(-1)))


def test_the_null_prompt_of_the_islands_is_the_average_prompt():
    law, prompts = plane.three_islands()
    torch.testing.assert_close(prompts.sum(-1), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(law.weights, prompts.mean(0))
    assert (torch.linalg.eigvalsh(law.covs) > 0).all()


WORLDS = {"ring": plane.ring, "two_moons": plane.two_moons, "checkerboard": plane.checkerboard}


@pytest.fixture(params=WORLDS)
def world(request):
    return WORLDS[request.param](edm(0.1, 3.0))


def test_the_null_prompt_of_a_world_is_the_average_prompt(world):
    torch.testing.assert_close(world.prompts.sum(-1), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(world.law.weights, world.prompts.mean(0))
    torch.testing.assert_close(world.null_cond.double(), world.law.weights, atol=1e-7, rtol=0)


def test_the_spread_of_a_world_is_that_of_its_samples(world):
    x = world.law.sample((200_000,), generator=torch.Generator().manual_seed(0))
    assert world.spread == pytest.approx(x.var(0).mean().sqrt().item(), rel=0.01)


def test_the_prompts_of_a_world_ask_for_different_places(world):
    rng = torch.Generator().manual_seed(0)
    first, second = (world.sample(prompt, (5000,), generator=rng).mean(0) for prompt in (0, 1))
    assert (first - second).norm() > 0.5


def test_the_reference_of_a_world_is_the_gradient_of_its_log_density(world):
    rng = torch.Generator().manual_seed(0)
    x, t = 3 * torch.randn(40, 2, generator=rng, dtype=torch.float64), torch.rand(40, generator=rng).double()
    cond = world.draw_cond((40,), rng).double()
    x.requires_grad_()
    density = world.law.given(cond).diffused(world.schedule, t).log_prob(x)
    (wanted,) = torch.autograd.grad(density.sum(), x)
    torch.testing.assert_close(world.ref(x.detach().float(), t, cond.float()).double(), wanted, atol=2e-4, rtol=1e-3)


def test_eight_modes_lie_on_a_circle():
    world = plane.ring(edm(0.1, 3.0), radius=2.0, std=0.3)
    torch.testing.assert_close(world.law.means.norm(dim=-1), torch.full((8,), 2.0, dtype=torch.float64))
    torch.testing.assert_close(world.prompts[0] + world.prompts[1], torch.full((8,), 0.25, dtype=torch.float64))


def test_a_denoiser_with_nothing_learned_is_the_best_linear_one():
    """For data N(0, v I) the best denoiser is v / (v + s^2) of the noisy point; the network only adds to it."""
    rng, noise = torch.Generator().manual_seed(0), vp_continuous()
    network = plane.StackedDenoiser(2, noise, hidden=8, cond_size=3, spread=1.5, generator=rng)
    for parameter in network.body.parameters():
        parameter.data.zero_()
    xt, t, cond = torch.randn(2, 4, 2, generator=rng), torch.full((2, 4), 0.3), torch.rand(2, 4, 3, generator=rng)
    exact = gaussian.exact_score(gaussian.Gaussian(torch.zeros(2), 2.25 * torch.eye(2)), noise)
    score = scores.score_model(network, noise, "x0")
    torch.testing.assert_close(score(xt, t, cond), exact(xt, t), atol=1e-5, rtol=1e-4)


def test_generator_and_denoiser_answer_to_the_condition():
    rng, noise = torch.Generator().manual_seed(0), edm(0.1, 3.0)
    shape = {"hidden": 8, "cond_size": 3, "spread": 1.0, "generator": rng}
    gen, ta = plane.StackedGenerator(2, **shape), plane.StackedDenoiser(2, noise, **shape)
    x, t, cond = torch.randn(2, 4, 2, generator=rng), torch.full((2, 4), 0.3), torch.rand(2, 4, 3, generator=rng)
    assert gen(x, cond).shape == ta(x, t, cond).shape == (2, 4, 2)
    assert not torch.allclose(gen(x, cond), gen(x, cond.flip(-1)))
    assert not torch.allclose(ta(x, t, cond), ta(x, t, cond.flip(-1)))
