"""Checks of the exercises on where gradient flows: the surrogate, stop-gradients in the wrong place, guidance."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dipp_core.classroom.exercises.grading import Open, Wrong, compare, missing, normal, pull, rng, settle
from dipp_core.method.divergences import integral_kl_surrogate, pseudo_huber
from dipp_core.method.guidance import cfg_reward_surrogate

CUTS = ("nothing", "slope", "s_ta", "s_ref", "xt")


# ------------------------------------------------------------------------------ 4. the surrogate, 7. guidance's reward


def _batches(seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
    """x0 (6, 3), xt, two scores at xt that carry its graph, w (6,); at two noise levels."""
    g = rng(seed)
    for alpha, sigma in ((0.8, 0.6), (0.5, 1.1)):
        x0, eps = normal(6, 3, generator=g).requires_grad_(), normal(6, 3, generator=g)
        xt, w = alpha * x0 + sigma * eps, 0.5 + torch.rand(6, generator=g).double()
        yield x0, xt, -(xt - 0.4) / 1.7, 0.3 - xt / torch.tensor([0.5, 1.0, 2.0]).double(), w


def _gradients_agree(function: Any, seed: int, right: Callable, mistakes: dict[str, Callable]) -> None:
    """Compare gradients at x0 with that of right(xt, first, second, w), and with those of the mistakes."""
    found, wanted, errors = [], [], {}
    for x0, *arguments in _batches(seed):
        found.append(pull(function, x0, *arguments))
        for text, loss in {"": right, **mistakes}.items():
            (gradient,) = torch.autograd.grad(loss(*arguments).sum(), x0, retain_graph=True)
            (errors.setdefault(text, []) if text else wanted).append(gradient)
    compare("The gradient", torch.cat(found), torch.cat(wanted), {k: torch.cat(v) for k, v in errors.items()})


def _right_surrogate(xt: Tensor, s_ta: Tensor, s_ref: Tensor, w: Tensor) -> Tensor:
    return integral_kl_surrogate(xt=xt, t=w.detach(), s_ta=s_ta, s_ref=s_ref, weight=lambda t: w)


SURROGATE_MISTAKES = {
    "The scores carry gradient: they are sg[..] here, constants. Detach their difference.": (
        lambda xt, ta, ref, w: w * ((ta - ref) * xt).sum(-1)
    ),
    "w(t) is missing.": lambda xt, ta, ref, w: ((ta - ref).detach() * xt).sum(-1),
    "The sum runs over the whole batch; sum over the last axis alone.": (
        lambda xt, ta, ref, w: w * ((ta - ref).detach() * xt).sum()
    ),
    "That is the gradient of a squared gap of scores, another divergence. The IKL multiplies the gap by xt.": (
        lambda xt, ta, ref, w: w * (ta - ref).square().sum(-1) / 2
    ),
    "The sign: it is s_ta - s_ref, and the loss goes down. Yours drives the generator away.": (
        lambda xt, ta, ref, w: w * ((ref - ta).detach() * xt).sum(-1)
    ),
}


def surrogate(loss: Any) -> str:
    """loss(xt, s_ta, s_ref, w) -> (B,), of gradient w (s_ta - s_ref)^T d xt / d theta."""
    _gradients_agree(loss, 4, _right_surrogate, SURROGATE_MISTAKES)
    return "Its gradient is right at every sample, and its value is nothing to plot."


def _right_reward(xt: Tensor, s_cond: Tensor, s_null: Tensor, w: Tensor) -> Tensor:
    return cfg_reward_surrogate(xt=xt, t=w.detach(), s_cond=s_cond, s_null=s_null, weight=lambda t: w)


REWARD_MISTAKES = {
    "The weight w(t) is missing; with another weight than the divergence's, guidance is no reward.": (
        lambda xt, c, n, w: ((c - n).detach() * xt).sum(-1)
    ),
    "The scores carry gradient; they are constants, sg[..], of the frozen reference.": (
        lambda xt, c, n, w: w * ((c - n) * xt).sum(-1)
    ),
    "Turned round. A reward is maximised, and this one falls where the prompt is met.": (
        lambda xt, c, n, w: w * ((n - c).detach() * xt).sum(-1)
    ),
}
COND_MISTAKES = {"over s(c): guidance_scale counts 1 as off; alpha_cfg is one less.": lambda scale: scale}
NULL_MISTAKES = {
    "over s(0): one too many: alpha_cfg is one less than guidance_scale already.": lambda scale: scale + 1,
    "over s(0): from the empty prompt the way is longer by one bracket s(c) - s(0).": lambda scale: scale - 1,
}


def guidance_reward(reward: Any, strengths: Any) -> str:
    """reward(xt, s_cond, s_null, w) -> (B,); strengths(guidance_scale) -> (over s(c), over s(0))."""
    _gradients_agree(reward, 7, _right_reward, REWARD_MISTAKES)
    outputs = {"over s(c)": (lambda scale: scale - 1, COND_MISTAKES), "over s(0)": (lambda scale: scale, NULL_MISTAKES)}
    settle(strengths, [(1.0,), (2.5,), (7.5,)], outputs, "strengths")
    return (
        "Seen from the empty prompt, even guidance that is off (scale 1) is a reward: it is what makes prompts count."
    )


# ------------------------------------------------------------------------------------- 6. which gradient was stopped?


@dataclass(frozen=True)
class Scene:
    """One batch of Diff-Instruct* at one noise level. x0, eps (B, 2); s_ta, s_ref take xt; slope is d' of pseudo-Huber.

    suspects: gradients at x0, (B, 2), of the loss with one stop-gradient each, under letters.
    """

    x0: Tensor
    eps: Tensor
    alpha: float
    sigma: float
    s_ta: Callable[[Tensor], Tensor]
    s_ref: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    suspects: dict[str, Tensor]


def scene() -> Scene:
    """The scene of exercise 6, always the same."""
    x0, eps = normal(2, 16, 2, generator=rng(6))
    precision = torch.tensor([[1.4, 0.3], [0.3, 0.7]], dtype=torch.float64)
    s_ta, s_ref = (lambda xt: -(xt - 0.5) @ precision), (lambda xt: -xt + 0.4 * xt.sin())
    laid = Scene(x0, eps, 0.8, 0.6, s_ta, s_ref, pseudo_huber(1.0).gradient, {})
    order = torch.randperm(len(CUTS), generator=rng(66)).tolist()
    laid.suspects.update({letter: _cut(laid, CUTS[which]) for letter, which in zip("ABCDE", order, strict=True)})
    return laid


def _cut(laid: Scene, cut: str) -> Tensor:
    """The gradient at x0 of the loss with one thing detached."""
    x0 = laid.x0.clone().requires_grad_()
    xt = laid.alpha * x0 + laid.sigma * laid.eps
    xt = xt.detach() if cut == "xt" else xt
    s_ta, s_ref = laid.s_ta(xt), laid.s_ref(xt)
    s_cond = (laid.alpha * x0 - xt) / laid.sigma**2
    slope = laid.slope(s_ta - (s_ref.detach() if cut == "s_ref" else s_ref))
    slope = slope.detach() if cut == "slope" else slope
    s_ta = s_ta.detach() if cut == "s_ta" else s_ta
    return torch.autograd.grad(-(slope * (s_ta - s_cond)).sum(), x0)[0]


TIPS = {
    "nothing": "with nothing detached the gradient flows through xt everywhere",
    "slope": "with the slope detached only the second brace is differentiated",
    "s_ta": "with s_ta detached in the second brace only the slope is differentiated",
    "s_ref": "with s_ref detached the slope still changes with s_ta(xt)",
    "xt": "with xt detached in both braces only x0 in s_cond = (alpha x0 - xt) / sigma^2 is left",
}


def suspects(found: Any) -> str:
    """found: letter -> what was detached."""
    if missing(found):
        raise Open
    if not isinstance(found, dict) or set(found) != set("ABCDE"):
        raise Wrong("The answer is a dict with the letters A to E as keys.")
    if unknown := sorted({str(value) for value in found.values()} - set(CUTS)):
        raise Wrong(f"{', '.join(unknown)}: no such place; there are {', '.join(CUTS)}.")
    if len(set(found.values())) < len(CUTS):
        raise Wrong("Two letters have the same answer; every place occurs once.")
    laid = scene()
    wrong = [x for x in "ABCDE" if not torch.allclose(laid.suspects[x], _cut(laid, found[x]))]
    if wrong:
        tips = "; ".join(dict.fromkeys(TIPS[found[letter]] for letter in wrong))
        raise Wrong(f"Not right: {', '.join(wrong)}. Remember: {tips}. Write that out and compare gradients.")
    return "None of the four culprits raises an error; only the gradient tells. Notebook 05 measures the price."
