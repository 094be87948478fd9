"""The assistant (TA): a diffusion that keeps learning the score of what the generator makes now.

By denoising score matching the minimiser over s_psi of

    E lambda(t) | s_psi(x_t | t, c) - grad log p(x_t | x_0) |^2,        grad log p(x_t | x_0) = -eps / sigma(t),

is the marginal score of the generator's diffused samples, the one quantity in both papers' gradients that no one has.
"""

import torch
from torch import Tensor

from dipp_core.method.schedule import NoiseSchedule, Weighting, flat_sample, like
from dipp_core.method.scores import Cond, ScoreModel, conditional_score
from dipp_core.method.staged import Backward, check_finite, descend, run_loss


def assistant_loss(*, s_ta: Tensor, eps: Tensor, t: Tensor, schedule: NoiseSchedule, ta_weight: Weighting) -> Tensor:
    """Denoising score matching, lambda(t) |s_ta + eps / sigma(t)|^2; s_ta, eps (*t, sample) -> shape of t."""
    error = flat_sample(s_ta - conditional_score(eps, t, schedule), t)
    return like(ta_weight(t), error[..., 0]) * error.square().sum(-1)


def assistant_step(
    ta: ScoreModel,
    optimizer: torch.optim.Optimizer,
    *,
    x0: Tensor,
    t: Tensor,
    eps: Tensor,
    cond: Cond,
    schedule: NoiseSchedule,
    ta_weight: Weighting,
    max_grad_norm: float | None = None,
    backward: Backward = torch.autograd.backward,
) -> Tensor:
    """One step on psi at generated samples x0 (*t, sample), taken without gradient; returns the mean loss per run.

    Loss: mean over the batch of lambda(t) |s_psi(xt | t, c) - grad log p(xt | x0)|^2, summed over runs.

    Algorithm 1, line 6.
    """
    xt = schedule.perturb(x0.detach(), t, eps)
    losses = assistant_loss(s_ta=ta(xt, t, cond), eps=eps, t=t, schedule=schedule, ta_weight=ta_weight)
    loss = run_loss(losses)
    check_finite(loss, "the assistant's loss")
    backward(loss, None)
    descend(optimizer, "assistant", run_ndim=t.ndim - 1, max_grad_norm=max_grad_norm)
    return losses.detach().mean(-1)
