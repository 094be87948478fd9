"""The staged gradient is the joint gradient; what is not finite stops before anything moves."""

import pytest
import torch
from torch import nn

from dipp_core.method.staged import (
    NonFiniteError,
    Term,
    descend,
    frozen,
    run_loss,
    staged_backward,
    staged_gradient,
)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def network(seed, n_in=3, n_out=3):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(n_in, 16), nn.Tanh(), nn.Linear(16, n_out)).double()


def terms_on(judge):
    """A nonlinear reward behind a network, a divergence-like and a linear term, with weights."""
    return {
        "reward": Term(lambda x0: judge(x0)[..., 0], -2.5),
        "divergence": Term(lambda x0: (x0 * judge(x0).detach()).sum(-1)),
        "guidance": Term(lambda x0: x0.sin().sum(-1), -0.3),
    }


def test_staged_gradient_equals_the_joint_gradient():
    gen, judge, z = network(0), network(1), torch.randn(32, 3, generator=rng(), dtype=torch.float64)
    x0 = gen(z)
    joint = sum(run_loss(term.scale * term.value(x0)) for term in terms_on(judge).values())
    wanted = torch.autograd.grad(joint, list(gen.parameters()))
    staged = staged_backward(gen(z), terms_on(judge))
    for parameter, gradient in zip(gen.parameters(), wanted, strict=True):
        assert float((parameter.grad - gradient).norm() / gradient.norm()) <= 1e-12
    assert all(parameter.grad is None for parameter in judge.parameters())
    assert set(staged.means) == {"reward", "divergence", "guidance"}
    torch.testing.assert_close(staged.means["reward"], judge(x0)[..., 0].mean().detach())


def test_norms_are_per_sample_and_do_not_depend_on_the_batch_size():
    x0 = torch.randn(4, 3, generator=rng(), dtype=torch.float64)
    terms = {"a": Term(lambda x0: 2 * x0.sum(-1), -1.0)}
    for batch in (x0, x0.repeat(5, 1)):
        torch.testing.assert_close(staged_gradient(batch, terms).norms["a"], torch.tensor(2 * 3**0.5).double())


def test_runs_side_by_side_do_not_mix():
    """(E, B, d): each run has the gradient, mean and norm that it has alone, with its own scale."""
    x0 = torch.randn(2, 5, 3, generator=rng(), dtype=torch.float64)
    scale = torch.tensor([1.0, 7.0], dtype=torch.float64)
    both = staged_gradient(x0, {"a": Term(lambda x0: x0.pow(3).sum(-1), scale)})
    for run in range(2):
        alone = staged_gradient(x0[run], {"a": Term(lambda x0: x0.pow(3).sum(-1), float(scale[run]))})
        torch.testing.assert_close(both.gradient[run], alone.gradient)
        torch.testing.assert_close(both.means["a"][run], alone.means["a"])
        torch.testing.assert_close(both.norms["a"][run], alone.norms["a"])


def test_a_term_that_ignores_x0_is_allowed():
    x0 = torch.ones(2, 3).requires_grad_()
    constant = torch.ones(2, requires_grad=True)
    staged = staged_gradient(x0, {"flat": Term(lambda x0: constant), "sum": Term(lambda x0: x0.sum(-1))})
    assert float(staged.norms["flat"]) == 0
    torch.testing.assert_close(staged.gradient, torch.full((2, 3), 0.5))


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (lambda x0: x0.sum(-1) / 0, "the term 'bad'"),
        (lambda x0: (0 * x0.sum(-1)).sqrt(), "the gradient of the term 'bad'"),
    ],
)
def test_a_term_that_is_not_finite_is_named(value, name):
    with pytest.raises(NonFiniteError) as caught:
        staged_gradient(torch.ones(2, 3), {"good": Term(lambda x0: x0.sum(-1)), "bad": Term(value)})
    assert caught.value.term == name


def test_descend_clips_per_run():
    weight = nn.Parameter(torch.zeros(2, 3))
    bias = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([weight, bias], lr=1.0)
    weight.grad, bias.grad = torch.tensor([[0.0, 3.0, 0.0], [0.3, 0.0, 0.0]]), torch.tensor([4.0, 0.4])
    norm = descend(optimizer, "generator", run_ndim=1, max_grad_norm=1.0)
    torch.testing.assert_close(norm, torch.tensor([5.0, 0.5]))
    torch.testing.assert_close(weight.data, -torch.tensor([[0.0, 0.6, 0.0], [0.3, 0.0, 0.0]]))
    torch.testing.assert_close(bias.data, -torch.tensor([0.8, 0.4]))
    assert weight.grad is None


def test_descend_refuses_a_gradient_that_is_not_finite():
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([weight])
    weight.grad = torch.tensor([1.0, float("nan")])
    with pytest.raises(NonFiniteError, match="the gradient of the generator"):
        descend(optimizer, "generator")
    assert torch.equal(weight.data, torch.ones(2))
    assert weight.grad is None
    assert not optimizer.state


def test_frozen_restores_what_it_found():
    first, second = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1), requires_grad=False)
    with frozen([first, second]):
        assert not first.requires_grad
    assert first.requires_grad
    with pytest.raises(ZeroDivisionError), frozen([first, second]):
        _ = 1 / 0
    assert first.requires_grad
    assert not second.requires_grad


@pytest.mark.parametrize("value", [lambda x0: x0[:, :1], lambda x0: x0.sum(), lambda x0: x0, lambda x0: x0[:2, 0]])
def test_a_term_that_is_not_one_value_per_sample_is_refused(value):
    with pytest.raises(ValueError, match=r"the term 'reward' has shape .* one value per sample"):
        staged_gradient(torch.zeros(4, 3), {"reward": Term(value)})


def test_a_detached_term_is_refused_by_name():
    with pytest.raises(ValueError, match="the term 'reward' does not depend on x0"):
        staged_gradient(torch.zeros(4, 3), {"reward": Term(lambda x0: x0.detach().sum(-1))})
