"""Stacked networks are many separate ones; the islands are a law and its prompts."""

import torch
from torch import nn

from dipp_core.method.schedule import vp_continuous
from dipp_core.worlds import plane


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
