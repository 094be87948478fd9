"""From named loss terms to one step: backward in stages at x0, gradient norms, and the check before anything moves.

The loss is a sum of terms, each a function of x0 = g(z, c). Every term is differentiated to a detached copy of x0 and
its graph freed before the next is built; the summed gradient then enters the generator once. By the chain rule this is
the gradient of the joint loss, but memory peaks at the largest term instead of at their sum, no parameter behind a term
(assistant, reference, reward) receives a gradient, and the size of every term at x0 is known.

Values have one entry per sample, shape (*runs, B). A loss is the sum over runs of the mean over B, so that runs trained
side by side never mix; a single run has shape (B,), and its means are 0-dimensional.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dipp_core.method.schedule import like

Backward = Callable[[Tensor, Tensor | None], None]


class NonFiniteError(RuntimeError):
    """A loss or gradient that is not finite. Raised before the parameters it concerns are touched.

    `term` names what was not finite, `step` the step it happened in, `last_record` the last completed step (or None).
    """

    def __init__(self, term: str, step: int | None = None, last_record: Any = None):
        self.term, self.step, self.last_record = term, step, last_record
        good = "none" if last_record is None else f"step {last_record.step}"
        super().__init__(
            f"step {step}: {term} is not finite; what it would have moved is untouched; last good step: {good}"
        )


class Term(NamedTuple):
    """One term of the generator's loss, scale * value(x0), with value (*runs, B) and scale a number or (*runs,)."""

    value: Callable[[Tensor], Tensor]
    scale: float | Tensor = 1.0


@dataclass(frozen=True)
class StagedGradient:
    """What the stages found; every entry has the shape of the runs (0-dimensional for one run).

    means: mean over the batch of each term's value, before its scale.
    norms: root mean square over the batch of |d(scale * value) / d x0| per sample, whatever the batch size.
    gradient: d loss / d x0, shape of x0.
    """

    means: dict[str, Tensor]
    norms: dict[str, Tensor]
    gradient: Tensor


def run_loss(values: Tensor) -> Tensor:
    """(*runs, B) -> scalar: sum over runs of the mean over the batch."""
    return values.mean(-1).sum()


def staged_gradient(x0: Tensor, terms: Mapping[str, Term]) -> StagedGradient:
    """d/dx0 of  sum over terms of scale * value(x0), one term at a time; x0 (*runs, B, sample)."""
    leaf = x0.detach().requires_grad_()
    total, means, norms = torch.zeros_like(leaf), {}, {}
    for name, term in terms.items():
        values = term.value(leaf)
        if values.ndim == 0 or values.ndim >= leaf.ndim or values.shape != leaf.shape[: values.ndim]:
            wanted = "one value per sample, without further axes"
            raise ValueError(f"the term {name!r} has shape {tuple(values.shape)} for x0 {tuple(x0.shape)}: {wanted}")
        if not values.requires_grad:
            raise ValueError(f"the term {name!r} does not depend on x0: was it detached?")
        loss = run_loss(like(term.scale, values) * values)
        check_finite(loss, f"the term {name!r}")
        (grad,) = torch.autograd.grad(loss, leaf, materialize_grads=True)
        check_finite(grad, f"the gradient of the term {name!r}")
        total += grad
        means[name] = values.detach().mean(-1)
        norms[name] = grad.flatten(values.ndim - 1).norm(dim=-1) * math.sqrt(values.shape[-1])
    return StagedGradient(means, norms, total)


def staged_backward(
    x0: Tensor, terms: Mapping[str, Term], backward: Backward = torch.autograd.backward
) -> StagedGradient:
    """Send the gradient of the sum of terms at x0 (with its graph) into the parameters behind it; `descend` then steps.

    d L / d theta = (d L / d x0)^T (d x0 / d theta), x0 (*runs, B, sample).

    Algorithm 1, line 12.
    """
    staged = staged_gradient(x0, terms)
    backward(x0, staged.gradient)
    return staged


def check_finite(value: Tensor, name: str) -> None:
    """Raise `NonFiniteError(name)` unless every entry is finite."""
    if not value.isfinite().all():
        raise NonFiniteError(name)


def parameters_of(optimizer: torch.optim.Optimizer | None) -> list[Tensor]:
    """All parameters an optimiser moves; none without an optimiser."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]] if optimizer else []


@contextmanager
def frozen(parameters: list[Tensor]) -> Iterator[None]:
    """Within the context the parameters need no gradient; gradients still pass through what they parametrise."""
    thawed = [parameter for parameter in parameters if parameter.requires_grad]
    try:
        for parameter in thawed:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in thawed:
            parameter.requires_grad_(True)


def descend(
    optimizer: torch.optim.Optimizer, name: str, *, run_ndim: int = 0, max_grad_norm: float | None = None
) -> Tensor:
    """Check, clip and take one optimiser step; returns the gradient norm before clipping, shape of the runs.

    With run_ndim = 1 the first axis of every parameter is the run, and norm and clipping are per run. A gradient that
    is not finite raises and is dropped before the parameters move.
    """
    grads = [parameter.grad for parameter in parameters_of(optimizer) if parameter.grad is not None]
    flat = [g.reshape(*g.shape[:run_ndim], -1).to(torch.promote_types(g.dtype, torch.float32)) for g in grads]
    norm = torch.stack([g.square().sum(-1) for g in flat]).sum(0).sqrt()
    try:
        check_finite(norm, f"the gradient of the {name}")
        if max_grad_norm is not None:
            scale = (max_grad_norm / norm.clamp(min=1e-12)).clamp(max=1.0)
            for grad in grads:
                grad.mul_(like(scale, grad).to(grad.dtype))
        optimizer.step()
    finally:
        optimizer.zero_grad(set_to_none=True)
    return norm
