"""The two divergences between the generator's distribution and the reference, as losses with the right gradient.

Neither divergence can be evaluated, but both gradients can, given s_ta, the score of the generator's diffused samples.
A `*_surrogate` is a loss whose *gradient* is the one wanted; its value means nothing and is no objective.

Both functions take scores already evaluated at xt = alpha(t) g(z, c) + sigma(t) eps. What carries gradient there is
part of the definition and is stated with each. Parameters of assistant and reference are constants in both.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dipp_core.method.schedule import NoiseSchedule, Weighting, convert_prediction, flat_sample, like


@dataclass(frozen=True)
class Distance:
    """d(y) on score gaps y (..., n) -> (...), and its gradient d'(y) (..., n), itself differentiable.

    Without `gradient_of`, d' comes from autograd: `Distance("l1", lambda y: y.abs().sum(-1))` is a complete distance.
    """

    name: str
    value: Callable[[Tensor], Tensor]
    gradient_of: Callable[[Tensor], Tensor] | None = None

    def gradient(self, y: Tensor) -> Tensor:
        """d'(y), shape of y; gradient flows on into y where y carries it."""
        if self.gradient_of is not None:
            return self.gradient_of(y)
        with torch.enable_grad():
            point = y if y.requires_grad else y.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.value(point).sum(), point, create_graph=y.requires_grad)
        return gradient


def squared_l2() -> Distance:
    """d(y) = |y|^2 / 2, d'(y) = y. With the half, so that SiD's alpha = 1 line comes out without a factor."""
    return Distance("squared_l2", lambda y: 0.5 * y.square().sum(-1), lambda y: y)


def pseudo_huber(c: float = 1.0) -> Distance:
    """d(y) = sqrt(|y|^2 + c^2) - c, d'(y) = y / sqrt(|y|^2 + c^2), norms over the whole sample; |d'| < 1 always."""

    def root(y: Tensor) -> Tensor:
        return (y.square().sum(-1) + c * c).sqrt()

    return Distance(f"pseudo_huber({c:g})", lambda y: root(y) - c, lambda y: y / root(y).unsqueeze(-1))


def integral_kl_surrogate(
    *, xt: Tensor, t: Tensor, s_ta: Tensor, s_ref: Tensor, weight: Weighting, normaliser: Tensor | None = None
) -> Tensor:
    """DI++: w(t) sg[s_ta(xt) - s_ref(xt)] . xt, of gradient w(t) (s_ta - s_ref)^T d xt / d theta.

    This is the gradient of IKL = integral of w(t) KL(p_t || p_ref,t) dt: the path through the score of p_t averages to
    zero, what is left acts on the samples. xt carries gradient, both scores are constants. All (*t, sample) -> (*t).

    Algorithm 1, line 10a.
    """
    score_gap = flat_sample((s_ta - s_ref).detach(), t)
    return _weigh((score_gap * flat_sample(xt, t)).sum(-1), t, weight, normaliser)


def score_divergence_surrogate(
    *,
    t: Tensor,
    s_ta: Tensor,
    s_ref: Tensor,
    s_cond: Tensor,
    weight: Weighting,
    distance: Distance,
    normaliser: Tensor | None = None,
) -> Tensor:
    """DI*: w(t) {-d'(y)}^T {s_ta(xt) - grad log p(xt | x0)},  y = s_ta(xt) - s_ref(xt),  xt with gradient throughout.

    In expectation its gradient is that of  integral of w(t) E_{xt ~ sg[p_t]} d(s_theta(xt) - s_ref(xt)) dt, the
    distribution of xt held fixed. The gradient enters through xt *inside* d', *inside* s_ta and *inside* s_ref, so s_ta
    and s_ref must come with their graphs (through xt only); s_cond is `conditional_score`. All (*t, sample) -> (*t).

    Algorithm 1, line 10b.
    """
    score_gap = flat_sample(s_ta - s_ref, t)
    return _weigh(-(distance.gradient(score_gap) * flat_sample(s_ta - s_cond, t)).sum(-1), t, weight, normaliser)


def sample_normaliser(*, x0: Tensor, xt: Tensor, t: Tensor, s_ref: Tensor, schedule: NoiseSchedule) -> Tensor:
    """The per-sample scale 1 / mean|x0 - D_ref(xt)| used by distribution matching distillation; constant, (*t).

    It depends on xt, so it is no weighting w(t): guidance then no longer equals a reward (the identity in
    `guidance.py` fails), and the restoring force far from the reference is bounded.
    """
    denoised = convert_prediction(s_ref, xt=xt, t=t, schedule=schedule, source="score", target="x0")
    return 1 / flat_sample((x0 - denoised).detach(), t).abs().mean(-1).clamp(min=1e-5)


def _weigh(values: Tensor, t: Tensor, weight: Weighting, normaliser: Tensor | None) -> Tensor:
    weighted = like(weight(t), values) * values
    return weighted if normaliser is None else weighted * normaliser
