"""Classifier-free guidance as an implicit reward.

For weights w(t), times pi(t) and noising shared with the divergence,

    r_cfg(x0, c) = E_{t, xt | x0}  w(t) [log p_ref,t(xt | c) - log p_ref,t(xt | null)],

has the per-sample gradient w(t) (s_ref(xt|c) - s_ref(xt|null))^T d xt / d theta. So, in gradient and sample by sample,

    IKL to the guided reference  =  IKL(ref | c) - alpha_cfg r_cfg  =  IKL(ref | null) - (1 + alpha_cfg) r_cfg.

It fails with another w(t) in one of the two places, with xt detached, with a log ratio of clean data instead of the
integral over noise, and with a per-sample normaliser.
"""

from torch import Tensor

from dipp_core.method.schedule import Weighting, flat_sample, like


def cfg_reward_surrogate(*, xt: Tensor, t: Tensor, s_cond: Tensor, s_null: Tensor, weight: Weighting) -> Tensor:
    """w(t) sg[s_ref(xt|c) - s_ref(xt|null)] . xt, of the gradient of r_cfg; to be maximised. All (*t, sample) -> (*t).

    xt carries gradient, the scores are constants of the frozen reference.

    Algorithm 1, line 10c.
    """
    gap = flat_sample((s_cond - s_null).detach(), t)
    values = (gap * flat_sample(xt, t)).sum(-1)
    return like(weight(t), values) * values
