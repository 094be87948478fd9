"""The staged gradient is the joint gradient; what is not finite stops before anything moves."""

import pytest
import torch
from torch import nn
from worlds.small import randn, relative

from dipp_core.method.staged import NonFiniteError, Term, descend, staged_backward, staged_gradient


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 3)).double()


def test_staged_gradient_equals_the_joint_gradient():
    """A nonlinear reward behind a network, a divergence-like and a flat term, with weights."""
    gen, judge, z, flat = network(0), network(1), randn(32, 3), torch.ones(32, requires_grad=True)
    terms = {
        "reward": Term(lambda x0: judge(x0)[..., 0], -2.5),
        "divergence": Term(lambda x0: (x0 * judge(x0).detach()).sum(-1)),
        "guidance": Term(lambda x0: x0.sin().sum(-1), -0.3),
        "flat": Term(lambda x0: flat),  # ignores x0, which is allowed
    }
    x0 = gen(z)
    joint = sum(term.scale * term.value(x0).mean() for term in terms.values())
    wanted = torch.autograd.grad(joint, list(gen.parameters()))
    staged = staged_backward(gen(z), terms)
    for parameter, gradient in zip(gen.parameters(), wanted, strict=True):
        assert relative(parameter.grad, gradient) <= 1e-12
    assert all(parameter.grad is None for parameter in judge.parameters())
    for name, term in terms.items():
        torch.testing.assert_close(staged.means[name], term.value(x0).mean().detach().to(staged.means[name]))
    assert float(staged.norms["flat"]) == 0


def test_each_of_several_runs_has_the_gradient_mean_and_norm_that_it_has_alone():
    x0, scale = randn(2, 5, 3), torch.tensor([1.0, 7.0], dtype=torch.float64)
    both = staged_gradient(x0, {"a": Term(lambda x0: x0.pow(3).sum(-1), scale)})
    for run in range(2):
        alone = staged_gradient(x0[run], {"a": Term(lambda x0: x0.pow(3).sum(-1), float(scale[run]))})
        torch.testing.assert_close(both.gradient[run], alone.gradient)
        torch.testing.assert_close(both.means["a"][run], alone.means["a"])
        torch.testing.assert_close(both.norms["a"][run], alone.norms["a"])
        per_sample = (scale[run] * 3 * x0[run].square()).norm(dim=-1)  # whatever the batch size
        torch.testing.assert_close(both.norms["a"][run], per_sample.square().mean().sqrt())


@pytest.mark.parametrize(
    ("value", "error", "line"),
    [
        (lambda x0: x0.sum(-1) / 0, NonFiniteError, "the term 'bad' is not finite"),
        (lambda x0: (0 * x0.sum(-1)).sqrt(), NonFiniteError, "the gradient of the term 'bad' is not finite"),
        (lambda x0: x0[:, :1], ValueError, r"the term 'bad' has shape .* one value per sample"),
        (lambda x0: x0.sum(), ValueError, r"the term 'bad' has shape .* one value per sample"),
        (lambda x0: x0[:2, 0], ValueError, r"the term 'bad' has shape .* one value per sample"),
        (lambda x0: x0.detach().sum(-1), ValueError, "the term 'bad' does not depend on x0"),
    ],
)
def test_a_term_that_is_no_finite_value_per_sample_is_named(value, error, line):
    with pytest.raises(error, match=line):
        staged_gradient(torch.ones(4, 3), {"good": Term(lambda x0: x0.sum(-1)), "bad": Term(value)})


def test_descend_clips_per_run():
    weight, bias = nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([weight, bias], lr=1.0)
    weight.grad, bias.grad = torch.tensor([[0.0, 3.0, 0.0], [0.3, 0.0, 0.0]]), torch.tensor([4.0, 0.4])
    norm = descend(optimizer, "generator", run_ndim=1, max_grad_norm=1.0)
    torch.testing.assert_close(norm, torch.tensor([5.0, 0.5]))
    torch.testing.assert_close(weight.data, -torch.tensor([[0.0, 0.6, 0.0], [0.3, 0.0, 0.0]]))
    torch.testing.assert_close(bias.data, -torch.tensor([0.8, 0.4]))
    assert weight.grad is None
