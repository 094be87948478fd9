"""What a score model is, and guidance in one batch.

A score model is any callable `score(xt, t, cond)` that returns grad log p_t(xt | cond), of the shape of xt. `cond` is a
tensor whose leading axes are those of t, a tuple or dict of such (nested as one likes), or None.

Guidance is additive here: alpha_cfg = 0 is off. The other common number is guidance_scale = 1 + alpha_cfg, for which 1
is off; both describe one and the same score,

    s(c) + alpha_cfg (s(c) - s(null))  =  s(null) + guidance_scale (s(c) - s(null)).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dipp_core.method.schedule import NoiseSchedule, convert_prediction, like

Cond = Any
ScoreModel = Callable[[Tensor, Tensor, Cond], Tensor]


def score_model(network: ScoreModel, schedule: NoiseSchedule, prediction_type: str) -> ScoreModel:
    """The score model of a network `(xt, t, cond) -> prediction` that predicts eps, x0, v or the score."""

    def score(xt: Tensor, t: Tensor, cond: Cond) -> Tensor:
        value = network(xt, t, cond)
        return convert_prediction(value, xt=xt, t=t, schedule=schedule, source=prediction_type, target="score")

    return score


def conditional_score(eps: Tensor, t: Tensor, schedule: NoiseSchedule) -> Tensor:
    """grad over xt of log p(xt | x0) = -(xt - alpha x0) / sigma^2 = -eps / sigma. eps (*t, sample), same out."""
    return -eps / like(schedule.sigma(t), eps)


def map_cond(function: Callable[..., Tensor], *conds: Cond) -> Cond:
    """Apply a function leaf by leaf to conditions of one structure; None stays None."""
    first = conds[0]
    if first is None:
        return None
    if isinstance(first, dict):
        return {key: map_cond(function, *(cond[key] for cond in conds)) for key in first}
    if isinstance(first, tuple | list):
        return tuple(map_cond(function, *parts) for parts in zip(*conds, strict=True))
    return function(*conds)


def score_pair(score: ScoreModel, xt: Tensor, t: Tensor, cond: Cond, null_cond: Cond) -> tuple[Tensor, Tensor]:
    """(s(xt | c), s(xt | null)) in one pass over a doubled batch; xt (*t, sample), both results too.

    The batch is doubled along the last axis of t. A leaf of null_cond may lack the batch axes or have size 1 there.
    """
    if cond is None or null_cond is None:
        raise ValueError("guidance compares two conditions: give both cond and null_cond")
    axis = t.ndim - 1
    t = t.expand(xt.shape[: t.ndim])
    both = map_cond(lambda c, null: torch.cat([c, null.to(c).expand_as(c)], dim=axis), cond, null_cond)
    s_cond, s_null = score(torch.cat([xt, xt], dim=axis), torch.cat([t, t], dim=axis), both).chunk(2, dim=axis)
    return s_cond, s_null


def guided_score(
    score: ScoreModel, xt: Tensor, t: Tensor, cond: Cond, null_cond: Cond = None, alpha_cfg: float | Tensor = 0.0
) -> Tensor:
    """Guided score  s(xt|c) + alpha_cfg [s(xt|c) - s(xt|null)]; xt (*t, sample) -> (*t, sample).

    With alpha_cfg = 0 only the conditional pass is made. A tensor alpha_cfg, (E,), sets each of E runs its own.

    Algorithm 1, line 9.
    """
    if is_zero(alpha_cfg):
        return score(xt, t, cond)
    s_cond, s_null = score_pair(score, xt, t, cond, null_cond)
    return s_cond + like(alpha_cfg, s_cond) * (s_cond - s_null)


def is_zero(scale: float | Tensor) -> bool:
    """Whether a scale, or every entry of a per-run scale, is 0."""
    return bool((torch.as_tensor(scale) == 0).all())


def guidance_scale(alpha_cfg: float) -> float:
    """The multiplicative convention (1 is off) of an additive alpha_cfg (0 is off)."""
    return 1.0 + alpha_cfg


def alpha_cfg_of(guidance_scale: float) -> float:
    """The additive alpha_cfg (0 is off) of a multiplicative guidance scale (1 is off)."""
    return guidance_scale - 1.0
