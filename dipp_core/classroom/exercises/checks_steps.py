"""Checks of the exercises in which a step of training is written: the assistant's, and a backward pass in stages."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from dipp_core.classroom.exercises.grading import Open, Wrong, ask, close, compare, normal, rng, tensor
from dipp_core.method.assistant import assistant_step
from dipp_core.method.schedule import NoiseSchedule, Weighting, sigma_power_weight, vp_continuous
from dipp_core.method.staged import Term, staged_gradient


class _Assistant(nn.Module):
    """A score model with six numbers."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(2, 2).double()
        with torch.no_grad():
            self.body.weight.copy_(torch.tensor([[-0.8, 0.1], [0.2, -0.5]]))
            self.body.bias.copy_(torch.tensor([0.1, -0.3]))
        self.seen: list[Tensor] = []

    def forward(self, xt: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        self.seen.append(xt.detach())
        return self.body(xt)


def teach(step: Any) -> str:
    """step(ta, optimizer, x0, t, eps, schedule, ta_weight) -> loss: lines 4 to 6 of Algorithm 1, one update."""
    schedule, g, lr = vp_continuous(), rng(14), 0.05
    weight, mine, theirs = sigma_power_weight(schedule), _Assistant(), _Assistant()
    optimizers = [torch.optim.SGD(ta.parameters(), lr=lr) for ta in (mine, theirs)]
    for first in (True, False):
        x0, eps = normal(2, 8, 2, generator=g)
        x0, t = (2 * x0 + 1).requires_grad_(), 0.2 + 0.6 * torch.rand(8, generator=g).double()
        before = copy.deepcopy(theirs)
        try:
            ask(step, mine, optimizers[0], x0, t, eps, schedule, weight)
        except Open:
            if not mine.seen:  # else it works and merely returns nothing
                raise
        assistant_step(theirs, optimizers[1], x0=x0, t=t, eps=eps, cond=None, schedule=schedule, ta_weight=weight)
        if x0.grad is not None:
            raise Wrong("Gradient reached x0: the assistant learns on sg[x0]. Detach x0, or the generator learns too.")
        if not mine.seen or not close(mine.seen[-1], schedule.perturb(x0.detach(), t, eps)):
            raise Wrong("The assistant is to be asked at xt = alpha(t) x0 + sigma(t) eps; it saw something else.")
        if first:
            errors = _wrong_updates(before, lr, x0.detach(), t, eps, schedule, weight)
            compare("The update", _flat(mine) - _flat(before), _flat(theirs) - _flat(before), errors)
    if not close(_flat(mine), _flat(theirs)):
        raise Wrong("The first step is right, the second is not: gradients of the first are still there. Zero them.")
    return "Denoising score matching on samples of the generator: so the assistant follows wherever it goes."


def _flat(module: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()]).clone()


def _wrong_updates(
    ta: nn.Module, lr: float, x0: Tensor, t: Tensor, eps: Tensor, schedule: NoiseSchedule, weight: Weighting
) -> dict[str, Tensor]:
    """The first update under the usual mistakes."""
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    xt, w = schedule.perturb(x0, t, eps), weight(t)

    def squares(target: Tensor) -> Tensor:
        return (ta(xt, t) - target).square()

    right = squares(-eps / sigma)
    losses = {
        "The sign of the target: grad log p(xt | x0) is -eps / sigma.": w * squares(eps / sigma).sum(-1),
        "The weight lambda(t) is missing.": right.sum(-1),
        "The target is eps; this assistant predicts a score, -eps / sigma.": w * squares(eps).sum(-1),
        "The target is -eps; the division by sigma(t) is missing.": w * squares(-eps).sum(-1),
        "Sum over the batch instead of mean: the step grows with the batch.": len(t) * w * right.sum(-1),
        "Mean over the coordinates: |..|^2 is a sum over the sample; the mean is over the batch.": w * right.mean(-1),
        "The target is the x0 prediction; this assistant is a score model.": (
            w * squares((xt - sigma * eps) / alpha).sum(-1)
        ),
    }
    updates = {"The assistant did not move: backward, then optimizer.step().": torch.zeros_like(_flat(ta))}
    for text, values in losses.items():
        gradients = torch.autograd.grad(values.mean(), list(ta.parameters()), retain_graph=True)
        updates[text] = -lr * torch.cat([gradient.flatten() for gradient in gradients])
    return updates


def staged(backward: Any) -> str:
    """backward(x0, terms) -> {name: norm}: the gradient of the mean of scale * value, one term at a time."""
    z, weights = normal(12, 3, generator=rng(15)), normal(3, 3, generator=rng(16))
    behind = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)  # a parameter of the assistant, say
    terms = {
        "reward": (lambda x: behind * x.sin().sum(-1), -0.8),
        "divergence": (lambda x: 0.5 * behind * (x.detach().cos() * x).sum(-1), 1.0),
        "guidance": (lambda x: behind * x.square().sum(-1), -0.3),
    }
    factor, passes = weights.clone().requires_grad_(), []
    x0 = z @ factor
    x0.register_hook(lambda gradient: passes.append(gradient.shape))
    try:
        norms = ask(backward, x0, terms)
    except Open:
        if not passes:
            raise
        norms = None
    if behind.grad is not None:
        raise Wrong("Gradient reached a parameter behind a term: ask torch.autograd.grad for the gradient at the leaf.")
    if len(passes) > 1:
        raise Wrong(f"You went back through the generator {len(passes)} times: collect at the leaf, then go once.")
    if factor.grad is None:
        raise Wrong("No gradient reached the generator: end with x0.backward(collected).")
    right = staged_gradient(z @ weights, {name: Term(*term) for name, term in terms.items()})
    each = {n: z.T @ staged_gradient(z @ weights, {n: Term(*term)}).gradient for n, term in terms.items()}
    errors = {
        "Only the last term arrived: add the gradients up, do not overwrite.": each["guidance"],
        "Only the first term arrived.": each["reward"],
        "The scales of the terms are missing.": sum(each[n] / scale for n, (_, scale) in terms.items()),
        "Sum over the batch instead of the mean.": z.T @ right.gradient * len(z),
    }
    compare("The generator's gradient", factor.grad, z.T @ right.gradient, errors)
    _norms_agree(norms, right.norms, torch.tensor([abs(scale) for _, scale in terms.values()]).double(), len(z))
    return "Same gradient, peak memory of the largest term, and the norms by which alpha_rew is chosen come free."


def _norms_agree(norms: Any, right: dict[str, Tensor], scales: Tensor, batch: int) -> None:
    """The norm of every term, root mean square over the samples."""
    if not isinstance(norms, dict) or set(norms) != set(right):
        raise Wrong(f"Return a dict with a norm for each of {', '.join(right)}.")
    found = torch.stack([tensor(norms[name], (), f"the norm of {name}") for name in right])
    wanted = torch.stack(list(right.values()))
    errors = {
        "The norms shrink with the batch: d loss / d x0 holds 1 / B, and a sample's pull is B times that.": wanted
        / batch,
        "The norms are over the whole batch: wanted is the root mean square over samples.": wanted * batch**0.5,
        "The norms shrink with the batch: a row of d loss / d x0 holds 1 / B.": wanted / batch**0.5,
        "The norms are without their scales.": wanted / scales,
    }
    compare("The norm of a term", found, wanted, errors)
