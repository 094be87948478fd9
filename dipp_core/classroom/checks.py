"""The checks of the exercises: each takes the reader's answers and returns praise, or raises `Open` or `Wrong`.

A formula returns what is right and, under what to say about it, what comes out with a mistake.
"""

import copy
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from dipp_core.classroom import hacking
from dipp_core.classroom.grading import (
    Formula,
    Judged,
    Open,
    Wrong,
    agree,
    ask,
    close,
    compare,
    missing,
    normal,
    pull,
    rng,
    settle,
    tensor,
)
from dipp_core.method.assistant import assistant_step
from dipp_core.method.divergences import integral_kl_surrogate, pseudo_huber
from dipp_core.method.guidance import cfg_reward_surrogate
from dipp_core.method.schedule import (
    constant_weight,
    edm,
    lognormal_sigma_time,
    normalised,
    sigma_power_weight,
    uniform_time,
    vp_continuous,
)
from dipp_core.method.staged import Term, staged_gradient
from dipp_core.worlds.gaussian import NoiseLevels, noise_levels


def x0_of(eps: Tensor, xt: Tensor, a: float, s: float) -> Judged:
    return (xt - s * eps) / a, {
        "x0: the division by alpha(t) is missing: xt - sigma eps is alpha x0.": xt - s * eps,
        "x0: the noise is added once more instead of being taken away.": (xt + s * eps) / a,
        "x0: eps enters without its sigma(t).": (xt - eps) / a,
    }


def v_of(eps: Tensor, xt: Tensor, a: float, s: float) -> Judged:
    x0 = (xt - s * eps) / a
    return a * eps - s * x0, {
        "v: alpha and sigma are exchanged; v = alpha eps - sigma x0.": a * x0 - s * eps,
        "v: a plus for a minus; alpha eps + sigma x0 is not v.": a * eps + s * x0,
        "v: xt stands where x0 should.": a * eps - s * xt,
    }


def score_of(eps: Tensor, xt: Tensor, a: float, s: float) -> Judged:
    return -eps / s, {
        "score: the division by sigma(t) is missing; see section 4 of notebook 01.": -eps,
        "score: one division by sigma(t) too many; xt - alpha x0 is sigma eps already.": -eps / s**2,
        "score: the sign. The score points to where the density rises, against the noise.": eps / s,
    }


def conversions(convert: Any) -> str:
    """1. convert(eps, xt, alpha, sigma) -> (x0, v, score)."""
    g = rng(1)
    points = [(*normal(2, 4, 3, generator=g), alpha, sigma) for alpha, sigma in ((0.8, 0.6), (0.5, 1.3), (0.95, 0.31))]
    settle(convert, points, {"x0": x0_of, "v": v_of, "score": score_of}, "convert")
    return "One prediction is all four once alpha and sigma are known, whether alpha^2 + sigma^2 is 1 or not."


OFF = {"s(c) + n [s(c) - s(0)]": 0, "s(0) + n [s(c) - s(0)]": 1, "n s(c) + (1 - n) s(0)": 1}  # the n that guides not


def guided_score(c: Tensor, n: Tensor, a: float) -> Judged:
    return c + a * (c - n), {
        "guided: that is the multiplicative convention, in which 1 is off; here 0 is off.": n + a * (c - n),
        "guided: the bracket is turned round: it pushes away from the prompt.": c + a * (n - c),
        "guided: it starts from s(c), but counts from s(0).": c + (1 + a) * (c - n),
    }


def additive(n: float, spelling: str) -> Judged:
    text, off = f"For `{spelling}`: ", OFF[spelling]
    return n - off, {
        text + "off by one. Which n switches guidance off in this spelling?": n - 1 + off,
        text + "the one goes the other way round.": n + off,
    }


def conventions(to_alpha_cfg: Any, guided: Any) -> str:
    """2. to_alpha_cfg(n, spelling) -> additive number; guided(s_cond, s_null, alpha_cfg) -> score."""
    g = rng(2)
    points = [(*normal(2, 3, 2, generator=g), a) for a in (0.0, 0.5, 3.5)]
    settle(guided, points, {"guided": guided_score}, "guided")
    for spelling in OFF:
        numbers = [(n, spelling) for n in (1.0, 1.75, 7.5)]
        settle(to_alpha_cfg, numbers, {f"For `{spelling}`: the number": additive}, "to_alpha_cfg")
    return "Two conventions in three spellings; whoever copies a scale from another code must ask which n is off."


def kl_by_mean(m: float, spread: float, lam: float, a: float, s: float) -> Judged:
    """d KL_t / d m."""
    ref, own = 1 / (a * a * lam + s * s), 1 / (a * a * spread**2 + s * s)
    return a * a * m * ref, {
        "by m: alpha(t) once too few: the mean of x_t is alpha m, and the chain rule gives another alpha.": a * m * ref,
        "by m: alpha(t) is missing; the generator sits under the noise, x_t = alpha x0 + sigma eps.": m * ref,
        "by m: where is the noise? The reference has the variance alpha^2 lam + sigma^2 at t.": m / lam,
        "by m: the variance in the denominator is that of the reference, not the generator's own.": a * a * m * own,
    }


def kl_by_spread(m: float, spread: float, lam: float, a: float, s: float) -> Judged:
    """d KL_t / d spread."""
    ref, own = 1 / (a * a * lam + s * s), 1 / (a * a * spread**2 + s * s)
    return a * a * spread * (ref - own), {
        "by spread: that is the derivative with respect to the variance; multiply by d(spread^2)/d spread.":
            a * a * (ref - own) / 2,
        "by spread: the term of log det is missing: without it nothing keeps the generator from collapsing.":
            a * a * spread * ref,
        "by spread: where is the noise? Both distributions are those at t.": spread / lam - 1 / spread,
    }  # fmt: skip


def kl_gradient(gradient: Any) -> str:
    """3. gradient(m, spread, lam, alpha, sigma) -> both derivatives of KL(N(m, spread^2) || N(0, lam)) at t."""
    points = [
        (0.7, 0.5, 1.0, 1.0, 0.5),
        (-1.2, 1.4, 0.6, 0.8, 0.6),
        (0.4, 0.9, 2.0, 0.3, 0.95),
        (2.0, 0.2, 0.25, 0.7, 1.1),
    ]
    settle(gradient, points, {"by m": kl_by_mean, "by spread": kl_by_spread}, "gradient")
    return "It is E (s_theta - s_ref) d x_t / d theta, the formula of notebook 02, done by hand."


def _batches(seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
    """x0 (6, 3), xt, two scores at xt that carry its graph, w (6,); at two noise levels."""
    g = rng(seed)
    for alpha, sigma in ((0.8, 0.6), (0.5, 1.1)):
        x0, eps = normal(6, 3, generator=g).requires_grad_(), normal(6, 3, generator=g)
        xt, w = alpha * x0 + sigma * eps, 0.5 + torch.rand(6, generator=g).double()
        yield x0, xt, -(xt - 0.4) / 1.7, 0.3 - xt / torch.tensor([0.5, 1.0, 2.0]).double(), w


def _gradients_agree(function: Any, seed: int, losses: Formula) -> None:
    """Compare gradients at x0 with that of losses(xt, first, second, w), and with those of its mistakes."""

    def gradient(loss: Tensor, x0: Tensor) -> Tensor:
        return torch.autograd.grad(loss.sum(), x0, retain_graph=True)[0]

    found, wanted = [], []
    for x0, *batch in _batches(seed):
        found.append(pull(function, x0, *batch))
        right, mistakes = losses(*batch)
        wanted.append((gradient(right, x0), {text: gradient(loss, x0) for text, loss in mistakes.items()}))
    agree("The gradient", found, wanted)


def surrogate_losses(xt: Tensor, ta: Tensor, ref: Tensor, w: Tensor) -> Judged:
    gap = (ta - ref).detach()
    return integral_kl_surrogate(xt=xt, t=w, s_ta=ta, s_ref=ref, weight=lambda t: w), {
        "The scores carry gradient: they are sg[..] here, constants. Detach their difference.":
            w * ((ta - ref) * xt).sum(-1),
        "w(t) is missing.": (gap * xt).sum(-1),
        "The sum runs over the whole batch; sum over the last axis alone.": w * (gap * xt).sum(),
        "That is the gradient of a squared gap of scores, another divergence. The IKL multiplies the gap by xt.":
            w * (ta - ref).square().sum(-1) / 2,
        "The sign: it is s_ta - s_ref, and the loss goes down. Yours drives the generator away.":
            w * (-gap * xt).sum(-1),
    }  # fmt: skip


def surrogate(loss: Any) -> str:
    """4. loss(xt, s_ta, s_ref, w) -> (B,), of gradient w (s_ta - s_ref)^T d xt / d theta."""
    _gradients_agree(loss, 4, surrogate_losses)
    return "Its gradient is right at every sample, and its value is nothing to plot."


def cfg_reward_losses(xt: Tensor, c: Tensor, n: Tensor, w: Tensor) -> Judged:
    gap = (c - n).detach()
    return cfg_reward_surrogate(xt=xt, t=w, s_cond=c, s_null=n, weight=lambda t: w), {
        "The weight w(t) is missing; with another weight than the divergence's, guidance is no reward.":
            (gap * xt).sum(-1),
        "The scores carry gradient; they are constants, sg[..], of the frozen reference.": w * ((c - n) * xt).sum(-1),
        "Turned round. A reward is maximised, and this one falls where the prompt is met.": w * (-gap * xt).sum(-1),
    }  # fmt: skip


def over_cond(scale: float) -> Judged:
    return scale - 1, {"over s(c): guidance_scale counts 1 as off; alpha_cfg is one less.": scale}


def over_null(scale: float) -> Judged:
    return scale, {
        "over s(0): one too many: alpha_cfg is one less than guidance_scale already.": scale + 1,
        "over s(0): from the empty prompt the way is longer by one bracket s(c) - s(0).": scale - 1,
    }


def guidance_reward(reward: Any, strengths: Any) -> str:
    """7. reward(xt, s_cond, s_null, w) -> (B,); strengths(guidance_scale) -> (over s(c), over s(0))."""
    _gradients_agree(reward, 7, cfg_reward_losses)
    settle(strengths, [(1.0,), (2.5,), (7.5,)], {"over s(c)": over_cond, "over s(0)": over_null}, "strengths")
    return (
        "Seen from the empty prompt, even guidance that is off (scale 1) is a reward: it is what makes prompts count."
    )


def _mean_and_kl(m: float, v: float, lam: float, a: float, s: float) -> tuple[float, float]:
    """E [s_theta(x) - s_ref(x)] x at t and KL_t, for the generator N(m, v) and the reference N(0, lam)."""
    ref = a * a * lam + s * s
    mean = (a * a * (m * m + v) + s * s) / ref - 1
    return mean, 0.5 * (mean + math.log(ref / (a * a * v + s * s)))


def surrogate_mean(m: float, v: float, lam: float, a: float, s: float) -> Judged:
    mean, kl = _mean_and_kl(m, v, lam, a, s)
    return mean, {
        "mean_value: the part of the generator's own score is missing: E s_theta(x) x = -1, whatever the law.":
            mean + 1,
        "mean_value: E x^2 is the variance plus the squared mean.": _mean_and_kl(0.0, v, lam, a, s)[0],
        "mean_value: where is the noise? Both distributions are those of x_t.": (m * m + v) / lam - 1,
        "mean_value: that is the KL itself; the surrogate is another number, see section 4 of notebook 02.": kl,
    }  # fmt: skip


def surrogate_value(mean_value: Any, blind_spot: Any) -> str:
    """5. mean_value(m, v, lam, alpha, sigma) -> E of the surrogate (w = 1); blind_spot(lam) -> (m, v)."""
    points = [(0.5, 0.8, 1.0, 1.0, 0.7), (-1.0, 0.3, 0.5, 0.8, 0.6), (0.2, 2.0, 1.5, 0.4, 1.2)]
    settle(mean_value, points, {"mean_value": surrogate_mean}, "mean_value")
    for lam in (0.5, 1.0, 3.0):
        m, v = tensor(ask(blind_spot, lam), (2,), "blind_spot").tolist()
        if v <= 0:
            raise Wrong(f"blind_spot: a variance of {v:g} is no distribution; v must be positive.")
        for a, s in ((1.0, 0.5), (0.6, 0.8)):
            mean, kl = _mean_and_kl(m, v, lam, a, s)
            if abs(mean) > 1e-4:
                raise Wrong(f"blind_spot({lam:g}): the surrogate's mean is not 0 there but {mean:.3g}.")
            if kl < 1e-3:
                raise Wrong(f"blind_spot({lam:g}): that is the reference, where the KL is 0 as well. Find another one.")
    return "A loss of 0 at a generator that is far off: whoever watches the surrogate sees nothing."


CUTS = {  # what was detached, and a tip
    "nothing": "with nothing detached the gradient flows through xt everywhere",
    "slope": "with the slope detached only the second brace is differentiated",
    "s_ta": "with s_ta detached in the second brace only the slope is differentiated",
    "s_ref": "with s_ref detached the slope still changes with s_ta(xt)",
    "xt": "with xt detached in both braces only x0 in s_cond = (alpha x0 - xt) / sigma^2 is left",
}


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
    cuts, order = list(CUTS), torch.randperm(len(CUTS), generator=rng(66)).tolist()
    suspects = {letter: _without(laid, cuts[which]) for letter, which in zip("ABCDE", order, strict=True)}
    return dataclasses.replace(laid, suspects=suspects)


def _without(laid: Scene, cut: str) -> Tensor:
    """The gradient at x0 of the loss with one thing detached."""

    def stop(name: str, value: Tensor) -> Tensor:
        return value.detach() if name == cut else value

    x0 = laid.x0.clone().requires_grad_()
    xt = stop("xt", laid.alpha * x0 + laid.sigma * laid.eps)
    s_ta, s_ref, s_cond = laid.s_ta(xt), laid.s_ref(xt), (laid.alpha * x0 - xt) / laid.sigma**2
    slope = stop("slope", laid.slope(s_ta - stop("s_ref", s_ref)))
    return torch.autograd.grad(-(slope * (stop("s_ta", s_ta) - s_cond)).sum(), x0)[0]


def suspects(found: Any) -> str:
    """6. found: letter -> what was detached."""
    if missing(found):
        raise Open
    if not isinstance(found, dict) or set(found) != set("ABCDE"):
        raise Wrong("The answer is a dict with the letters A to E as keys.")
    if unknown := sorted({str(value) for value in found.values()} - set(CUTS)):
        raise Wrong(f"{', '.join(unknown)}: no such place; there are {', '.join(CUTS)}.")
    if len(set(found.values())) < len(CUTS):
        raise Wrong("Two letters have the same answer; every place occurs once.")
    laid = scene()
    wrong = [x for x in "ABCDE" if not torch.allclose(laid.suspects[x], _without(laid, found[x]))]
    if wrong:
        tips = "; ".join(CUTS[found[letter]] for letter in wrong)
        raise Wrong(f"Not right: {', '.join(wrong)}. Remember: {tips}. Write that out and compare gradients.")
    return "None of the four culprits raises an error; only the gradient tells. Notebook 05 measures the price."


def noise_grids() -> list[NoiseLevels]:
    """Two choices of noise, weights that sum to 1."""
    one, two = edm(0.05, 5.0), vp_continuous()
    pi = lognormal_sigma_time(one, -0.5, 0.8)
    weight = normalised(sigma_power_weight(one, 1.0), pi, 8)
    return [noise_levels(one, pi, weight, 8), noise_levels(two, uniform_time(0.05, 0.9), constant_weight(), 6)]


def ikl_shift(a: float, lam: float, beta: float, s2: Tensor, w: Tensor) -> Judged:
    """Where DI++ lands under the reward a x: the forces of all levels balance a / beta."""
    force = 1 / (lam + s2)
    return a / beta / (w @ force), {
        "DI++: the average of lam + s^2 is not the inverse of the average of 1 / (lam + s^2); forces are averaged.":
            a / beta * (w @ (lam + s2)),
        "DI++: that is the shift of the tilted law.": lam * a / beta,
        "DI++: beta multiplies the divergence, so it divides the shift.": a * beta / (w @ force),
        "DI++: noise_var is s^2 already.": a / beta / (w @ (1 / (lam + s2**2))),
        "DI++: the weights w are missing: a mean over levels is the sum of w_k times each.": a / beta / force.mean(),
        "DI++: the mean of 1 / (lam + s^2) divides; yours multiplies.": a / beta * (w @ force),
    }  # fmt: skip


def tilted_shift(a: float, lam: float, beta: float, s2: Tensor, w: Tensor) -> Judged:
    return lam * a / beta, {
        "tilted: lam is missing. Complete the square in -x^2 / (2 lam) + a x / beta.": a / beta,
        "tilted: lam divides where it multiplies: a wide direction gives way more.": a / beta / lam,
        "tilted: beta multiplies where it divides.": lam * a * beta,
    }


def landing(shifts: Any) -> str:
    """8. shifts(a, lam, beta, noise_var, w) -> (shift of DI++, shift of the tilted law)."""
    numbers = ((1.0, 0.25, 2.0), (-0.6, 2.0, 0.5))
    points = [(*n, grid.noise_var, grid.w) for grid in noise_grids() for n in numbers]
    settle(shifts, points, {"DI++": ikl_shift, "tilted": tilted_shift}, "shifts")
    return "Noise hides thin directions, so the shift is never smaller than that of the tilted distribution."


def collapse_beta(q: float, lam: float, s2: Tensor, w: Tensor) -> Judged:
    """Where the spread of DI++ under the reward -q (x - b)^2 / 2 reaches 0."""
    gap = 1 / s2 - 1 / (lam + s2)
    return q / (w @ gap), {
        "The reference's own precision is missing: it is E 1/s^2 - E 1/(lam + s^2), not the first alone.":
            q / (w @ (1 / s2)),
        "You solved for 1 / beta: the threshold is the inverse.": (w @ gap) / q,
        "The sign: the difference of precisions is E 1/s^2 - E 1/(lam + s^2), positive.": -q / (w @ gap),
        "The mean of a ratio is not the ratio of means: average over the levels first, then divide.": w @ (q / gap),
        "The weights w are missing.": q / gap.mean(),
        "noise_var is s^2 already.": q / (w @ (1 / s2**2 - 1 / (lam + s2**2))),
        "lam is missing on top: 1/s^2 - 1/(lam + s^2) = lam / (s^2 (lam + s^2)).": q / (w @ (1 / (s2 * (lam + s2)))),
    }  # fmt: skip


def collapse(threshold: Any) -> str:
    """9. threshold(q, lam, noise_var, w) -> the largest beta at which the spread is gone."""
    points = [(*n, grid.noise_var, grid.w) for grid in noise_grids() for n in ((1.0, 1.0), (0.4, 0.1), (2.0, 4.0))]
    settle(threshold, points, {"The threshold": collapse_beta}, "threshold")
    return "At any beta above 0 the tilted distribution keeps some spread; DI++ has none left from here on down."


def huber_beta(a: float, lam: float, alpha: Tensor, sigma: Tensor, w: Tensor) -> Judged:
    """Where the largest force of pseudo-Huber, beta E k, equals that of the reward a x."""
    k = alpha / (alpha**2 * lam + sigma**2)
    return abs(a) / (w @ k), {
        "A threshold is positive: for a negative slope it is |a| that counts.": a / (w @ k),
        "alpha(t) is missing on top: a shift of x0 by delta moves x_t by alpha delta.": abs(a) / (w @ (k / alpha)),
        "One alpha(t) too many: k = alpha / (alpha^2 lam + sigma^2) holds the only one.": abs(a) / (w @ (k * alpha)),
        "k enters once: |d'| tends to 1 and k multiplies it. With k^2 it is squared l2, which has no threshold.":
            abs(a) / (w @ k**2),
        "The forces are averaged, so it is |a| / E k, not |a| E 1/k.": abs(a) * (w @ (1 / k)),
        "You solved for 1 / beta: divide |a| by the largest force.": (w @ k) / abs(a),
        "The weights w are missing.": abs(a) / k.mean(),
    }  # fmt: skip


def critical(critical_beta: Any) -> str:
    """10. critical_beta(a, lam, alpha, sigma, w) -> the largest beta at which DI* with pseudo-Huber has no optimum."""
    numbers = ((1.0, 1.0), (-0.4, 0.1), (2.0, 4.0))
    points = [(*n, grid.alpha, grid.sigma, grid.w) for grid in noise_grids() for n in numbers]
    settle(critical_beta, points, {"The critical beta": huber_beta}, "critical_beta")
    return "It does not depend on c: the constant says where the force bends, not how large it can become."


BENDS = "|y|^2 is the norm over the whole sample, one number; yours bends every coordinate by itself."


def cauchy_value(y: Tensor, c: float) -> Judged:
    half = 0.5 * c * c
    right = half * (1 + y.square().sum(-1) / c**2).log()
    return right, {
        "value: " + BENDS: half * (1 + y.square() / c**2).log().sum(-1),
        "value: the factor c^2 in front is missing.": right / c**2,
        "value: |y|^2 is meant, and there is |y|.": half * (1 + y.norm(dim=-1) / c**2).log(),
    }


def cauchy_slope(y: Tensor, c: float) -> Judged:
    squares = y.square().sum(-1, keepdim=True)
    right = y / (1 + squares / c**2)
    return right, {
        "slope: " + BENDS: y / (1 + y.square() / c**2),
        "slope: that is the slope of pseudo-Huber.": y / (squares + c * c).sqrt(),
        "slope: the inner derivative of |y|^2 / c^2 brings 1 / c^2, which takes away the c^2 in front.": right / c**2,
    }


def cauchy_pull(c: float) -> Judged:
    return c / 2, {
        "largest_pull: that is the limit for large |y|. The force of this distance falls again: look for its maximum.":
            0.0,
        "largest_pull: that is where the pull is largest, |y| = c. How large is it there?": c,
        "largest_pull: that is pseudo-Huber's.": 1.0,
    }  # fmt: skip


def distance(value: Any, slope: Any, largest_pull: Any) -> str:
    """11. value(y, c) -> (...), slope(y, c) -> (..., n), largest_pull(c): the distance of Cauchy."""
    points = [(y, c) for y in 2 * normal(2, 3, 4, generator=rng(11)) for c in (0.5, 2.0)]
    settle(value, points, {"value": cauchy_value}, "value")
    settle(slope, points, {"slope": cauchy_slope}, "slope")
    y = torch.cat([normal(3, 4, generator=rng(111)), torch.zeros(1, 4, dtype=torch.float64)]).requires_grad_()
    found = ask(slope, y, 1.0)
    if not isinstance(found, Tensor) or not found.requires_grad:
        raise Wrong("slope: it carries no gradient. In Diff-Instruct* the gradient flows through d', so do not detach.")
    (back,) = torch.autograd.grad(found.sum(), y, allow_unused=True)
    if back is None or not back.isfinite().all():
        raise Wrong("slope: its own gradient is not finite at y = 0, where training ends. Square, without the norm.")
    settle(largest_pull, [(0.5,), (2.0,), (3.0,)], {"largest_pull": cauchy_pull}, "largest_pull")
    return "A distance whose force falls: what has gone far is let go. For an alignment, is that good news?"


def reward(function: Any) -> str:
    """12. function(x0, cond) -> one value a sample in [-1, 1]; prompt 0 wants x_1 large, prompt 1 wants it small."""
    x0 = 2 * normal(3, 8, 2, generator=rng(12))
    which = torch.arange(24).reshape(3, 8) % 2
    cond = nn.functional.one_hot(which, 2).double()

    def values(x0: Tensor, cond: Tensor) -> Tensor:
        return tensor(ask(function, x0, cond), x0.shape[:-1], "The reward")

    found = values(x0, cond)
    if close(found, values(x0, 1 - cond)):
        raise Wrong("It does not look at the prompt: with both prompts exchanged the values stay the same.")
    if found.abs().max() > 1 + 1e-6:
        raise Wrong(f"It is not bounded by 1: |r| reaches {float(found.abs().max()):.3g}.")
    if not close(values(x0[:1, :3], cond[:1, :3]), found[:1, :3]):
        raise Wrong("The value of a sample changes with its neighbours in the batch: it may depend on itself alone.")
    leaf = x0.clone().requires_grad_()
    made = ask(function, leaf, cond)
    if not isinstance(made, Tensor) or not made.requires_grad:
        raise Wrong("No gradient reaches x0: stay in torch, without item(), numpy, detach or comparisons.")
    (gradient,) = torch.autograd.grad(made.sum(), leaf)
    if not gradient.isfinite().all():
        raise Wrong("The gradient is not finite at some samples.")
    signs = gradient[..., 0] * (1 - 2 * which.double())
    if (signs == 0).all():
        raise Wrong("It has steps: its gradient is zero everywhere, and says nothing to a generator. Make it smooth.")
    if (signs == 0).any():
        raise Wrong("Flat at some samples within |x_1| < 6: clamp has no gradient beyond its bounds. Bend smoothly.")
    if (signs < 0).all():
        raise Wrong("The prompts are exchanged, or the sign: prompt 0 is to like x_1 large, prompt 1 to like it small.")
    if (signs < 0).any():
        raise Wrong("It must rise with x_1 for prompt 0 and fall for prompt 1, everywhere; somewhere it does not.")
    single = ask(function, x0.float(), cond.float())
    if isinstance(single, Tensor) and single.dtype != torch.float32:
        raise Wrong(f"float32 samples give {single.dtype} values: make constants of x0.new_tensor(..) or numbers.")
    return "Smooth, bounded, per sample, and it reads the prompt: `align` takes it as it is."


def one_step(generate: Any) -> str:
    """13. generate(network, z, k, alphas_cumprod) -> x0, network(xt, t) predicting eps, t = (k + 1) / T."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    table = (1 - betas).cumprod(0)
    asked: list[tuple[Tensor, float]] = []
    found, wanted = [], []

    def network(xt: Any, t: Any) -> Tensor:
        asked.append((torch.as_tensor(xt).detach().double(), float(torch.as_tensor(t).double().mean())))
        return 0.3 * torch.as_tensor(xt) + 0.1

    def x0(z: Tensor, eps: Tensor, variance: Tensor) -> Tensor:
        return (z - (1 - variance).sqrt() * eps) / variance.sqrt()

    for k in (399, 624, 998):
        z = normal(4, 2, generator=rng(13 + k))
        found.append(tensor(ask(generate, network, z, k, table), z.shape, "x0"))
        if not asked:
            raise Wrong("The network was never asked.")
        _asked_rightly(*asked[-1], z, k, (1 - table[k]).sqrt())
        eps = 0.3 * z + 0.1
        mistakes = {
            "The division by alpha(t*) is missing: x0 = (z - sigma eps) / alpha.": z - (1 - table[k]).sqrt() * eps,
            "The table holds alpha^2: take roots, alpha = sqrt(table[k]), sigma = sqrt(1 - table[k]).":
                (z - (1 - table[k]) * eps) / table[k],
            "Off by one: step k of the table is entry k, counted from 0.": x0(z, eps, table[k + 1]),
            "Off by one, downward: step k of the table is entry k, counted from 0.": x0(z, eps, table[k - 1]),
            "That is the network's eps, not the picture.": eps,
        }  # fmt: skip
        wanted.append((x0(z, eps, table[k]), mistakes))
    agree("x0", found, wanted)
    return "Public one-step models start at k = 399, 400, 625 or 999; a wrong t* gives pictures, only worse ones."


def _asked_rightly(shown: Tensor, t: float, z: Tensor, k: int, sigma: Tensor) -> None:
    """What the network was shown, and at which time."""
    if abs(t - k) < 1e-6 or abs(t - k - 1) < 1e-6:
        raise Wrong(f"The network was asked at t = {t:g}: the integer timestep. Here time is in (0, 1].")
    if abs(t - k / 1000) < 1e-7:
        raise Wrong("The network was asked at t = k / T. Step k is t = (k + 1) / T: t = 0 is left for clean data.")
    if abs(t - (k + 1) / 1000) > 1e-7:
        raise Wrong(f"The network was asked at t = {t:.4g} for k = {k}; wanted is (k + 1) / T = {(k + 1) / 1000:g}.")
    if shown.shape == z.shape and close(shown, sigma * z):
        raise Wrong("z was scaled by sigma(t*). In this convention z ~ N(0, I) is fed as it is, as if it were x_t*.")
    if shown.shape != z.shape or not close(shown, z):
        raise Wrong("The network is to see z itself as x_t*.")


class _Assistant(nn.Module):
    """A score model with six numbers, which remembers what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.tensor([[-0.8, 0.2], [0.1, -0.5]], dtype=torch.float64))
        self.shift = nn.Parameter(torch.tensor([0.1, -0.3], dtype=torch.float64))
        self.seen: list[Tensor] = []

    def forward(self, xt: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        self.seen.append(xt.detach())
        return xt @ self.matrix + self.shift

    def numbers(self) -> Tensor:
        return parameters_to_vector(self.parameters()).detach()


def teach(step: Any) -> str:
    """14. step(ta, optimizer, x0, t, eps, schedule, ta_weight) -> loss: lines 4 to 6 of Algorithm 1, one update."""
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
        xt = schedule.perturb(x0.detach(), t, eps)
        if not mine.seen or not close(mine.seen[-1], xt):
            raise Wrong("The assistant is to be asked at xt = alpha(t) x0 + sigma(t) eps; it saw something else.")
        if first:
            errors = _wrong_updates(before, lr, xt, t, eps, weight(t), schedule.alpha(t), schedule.sigma(t))
            compare("The update", mine.numbers() - before.numbers(), theirs.numbers() - before.numbers(), errors)
    if not close(mine.numbers(), theirs.numbers()):
        raise Wrong("The first step is right, the second is not: gradients of the first are still there. Zero them.")
    return "Denoising score matching on samples of the generator: so the assistant follows wherever it goes."


def _wrong_updates(
    ta: _Assistant, lr: float, xt: Tensor, t: Tensor, eps: Tensor, w: Tensor, alpha: Tensor, sigma: Tensor
) -> dict[str, Tensor]:
    """The first update under the usual mistakes; xt, eps (B, 2), the others (B,)."""
    alpha, sigma, score = alpha[:, None], sigma[:, None], ta(xt, t)
    right = (score + eps / sigma).square()
    losses = {
        "The sign of the target: grad log p(xt | x0) is -eps / sigma.": w * (score - eps / sigma).square().sum(-1),
        "The weight lambda(t) is missing.": right.sum(-1),
        "The target is eps; this assistant predicts a score, -eps / sigma.": w * (score - eps).square().sum(-1),
        "The target is -eps; the division by sigma(t) is missing.": w * (score + eps).square().sum(-1),
        "Sum over the batch instead of mean: the step grows with the batch.": len(w) * w * right.sum(-1),
        "Mean over the coordinates: |..|^2 is a sum over the sample; the mean is over the batch.": w * right.mean(-1),
        "The target is the x0 prediction; this assistant is a score model.":
            w * (score - (xt - sigma * eps) / alpha).square().sum(-1),
    }  # fmt: skip
    updates = {"The assistant did not move: backward, then optimizer.step().": torch.zeros_like(ta.numbers())}
    for text, values in losses.items():
        gradients = torch.autograd.grad(values.mean(), list(ta.parameters()), retain_graph=True)
        updates[text] = -lr * parameters_to_vector(gradients)
    return updates


def staged(backward: Any) -> str:
    """15. backward(x0, terms) -> {name: norm}: the gradient of the mean of scale * value, one term at a time."""
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
    batch, scales = len(z), {name: scale for name, (_, scale) in terms.items()}
    right = staged_gradient(z @ weights, {name: Term(*term) for name, term in terms.items()})
    each = {n: z.T @ staged_gradient(z @ weights, {n: Term(*term)}).gradient for n, term in terms.items()}
    errors = {
        "Only the last term arrived: add the gradients up, do not overwrite.": each["guidance"],
        "Only the first term arrived.": each["reward"],
        "The scales of the terms are missing.": torch.stack([each[n] / scales[n] for n in terms]).sum(0),
        "Sum over the batch instead of the mean.": z.T @ right.gradient * batch,
    }
    compare("The generator's gradient", factor.grad, z.T @ right.gradient, errors)
    if not isinstance(norms, dict) or set(norms) != set(terms):
        raise Wrong(f"Return a dict with a norm for each of {', '.join(terms)}.")
    found = torch.stack([tensor(norms[name], (), f"the norm of {name}") for name in terms])
    wanted = torch.stack([right.norms[name] for name in terms])
    errors = {
        "The norms shrink with the batch: d loss / d x0 holds 1 / B, and a sample's pull is B times that.":
            wanted / batch,
        "The norms are over the whole batch: wanted is the root mean square over samples.": wanted * batch**0.5,
        "The norms shrink with the batch: a row of d loss / d x0 holds 1 / B.": wanted / batch**0.5,
        "The norms are without their scales.": wanted / torch.tensor(list(scales.values())).double().abs(),
    }  # fmt: skip
    compare("The norm of a term", found, wanted, errors)
    return "Same gradient, peak memory of the largest term, and the norms by which alpha_rew is chosen come free."


def chase_matrix(gen_lr: float, ta_lr: float, ta_steps: int) -> Judged:
    """One round on (m, u): the assistant learns ta_steps times, then the generator steps."""

    def follow(rate: float, steps: int) -> Tensor:
        keep = (1 - rate) ** steps
        return torch.tensor([[1.0, 0.0], [1 - keep, keep]], dtype=torch.float64)

    move = torch.tensor([[1.0, -gen_lr], [0.0, 1.0]], dtype=torch.float64)
    learn = follow(ta_lr, ta_steps)
    return move @ learn, {
        "The generator uses the assistant of the round before: line 6 comes before line 10.": learn
        + move
        - torch.eye(2),
        "The generator moves first; in Algorithm 1 the assistant learns first.": learn @ move,
        "K_TA is ignored: after K steps u has kept (1 - ta_lr)^K of its distance to m.": move @ follow(ta_lr, 1),
        "K_TA steps of a rate ta_lr are not one of K_TA ta_lr.": move @ follow(ta_steps * ta_lr, 1),
        "Rows and columns are exchanged: the new (m, u) is the matrix times the old.": (move @ learn).T,
    }


def chase(round_matrix: Any, calm_steps: Any) -> str:
    """16. round_matrix(gen_lr, ta_lr, ta_steps) -> (2, 2) on (m, u); calm_steps(gen_lr, ta_lr) -> smallest K_TA."""
    settle(round_matrix, [(0.3, 0.2, 1), (0.1, 0.4, 3), (0.5, 0.05, 10)], {"The matrix": chase_matrix}, "round_matrix")
    for eta, tau in ((0.3, 0.2), (0.1, 0.1), (0.5, 0.05), (0.05, 0.6)):
        exact = 2 * math.log((1 - eta) / (1 + eta)) / math.log(1 - tau)
        wanted, found = max(1, math.ceil(exact)), float(tensor(ask(calm_steps, eta, tau), (), "calm_steps"))
        where = f"calm_steps({eta:g}, {tau:g})"
        if found == wanted:
            continue
        if abs(found - exact) < 1e-3:
            raise Wrong(f"{where}: steps are whole, and at least one; round up.")
        if abs(found - wanted) == 1:
            raise Wrong(f"{where} is off by one: it is the smallest K_TA at which both eigenvalues are real.")
        raise Wrong(f"{where} is {found:g}; the eigenvalues turn real at another K_TA. Compare trace^2 with 4 det.")
    return "An assistant that learns enough between two steps of the generator does not chase it in circles."


def momentum_matrix(gen_lr: float, ta_lr: float, beta1: float) -> Judged:
    """One round on (m, u, h): h takes in the gradient u - m, the assistant moves by h, then the generator by u."""
    m, u, h = torch.eye(3, dtype=torch.float64)

    def after(share: float, *, old_h: bool = False, old_u: bool = False) -> Tensor:
        new_h = beta1 * h + share * (u - m)
        new_u = u - ta_lr * (h if old_h else new_h)
        return torch.stack([m - gen_lr * (u if old_u else new_u), new_u, new_h])

    right = after(1 - beta1)
    return right, {
        "Adam's momentum is a mean, beta1 h + (1 - beta1) gradient; the factor 1 - beta1 is missing.": after(1.0),
        "The assistant moves by the old h; the step uses the new one.": after(1 - beta1, old_h=True),
        "The generator uses the old u: line 6 comes before line 10.": after(1 - beta1, old_u=True),
        "Sign in h: the gradient of |u - m|^2 / 2 for u is u - m.": after(beta1 - 1),
        "Rows and columns are exchanged.": right.T,
    }


def momentum(round_matrix: Any, critical_beta1: Any) -> str:
    """17. round_matrix(gen_lr, ta_lr, beta1) -> (3, 3) on (m, u, h); critical_beta1(gen_lr, ta_lr)."""
    points = [(0.3, 0.2, 0.5), (0.1, 0.4, 0.9), (0.5, 0.05, 0.25)]
    settle(round_matrix, points, {"The matrix": momentum_matrix}, "round_matrix")
    for eta, tau in ((0.3, 0.2), (0.1, 0.4), (0.05, 0.1)):
        found = float(tensor(ask(critical_beta1, eta, tau), (), "critical_beta1"))
        where = f"critical_beta1({eta:g}, {tau:g})"
        if not 0 < found < 1:
            raise Wrong(f"{where} is {found:.4g}: a momentum lies in (0, 1).")
        if abs(found - 1 / (1 + eta)) > 5e-3:
            radius = float(torch.linalg.eigvals(momentum_matrix(eta, tau, found)[0]).abs().max())
            side = "smaller" if radius > 1 else "larger"
            raise Wrong(f"{where}: at {found:.4g} the largest eigenvalue has modulus {radius:.4g}; go {side}.")
    return "1 / (1 + gen_lr), whatever the assistant's own rate: momentum in the assistant limits the generator."


KEPT_WANTED = 0.7


@functools.cache
def _worlds() -> tuple[hacking.HackingWorld, ...]:
    return tuple(map(hacking.hacking_world, range(60)))


def tune(rule: Any) -> str:
    """18. rule(table) -> the beta to train with, from what a user can see."""
    worlds, rows, kept = _worlds(), [], []
    for world in worlds:
        beta = float(tensor(ask(rule, world.table.copy()), (), "The rule's answer"))
        row = int((world.table["beta"] - beta).abs().idxmin())
        if abs(world.table["beta"][row] - beta) > 1e-9:
            raise Wrong(f"The rule gave {beta:g}: it must choose one of the betas in the table (not a row number).")
        rows.append(row)
        kept.append(hacking.share_kept(world, row))
    mean = sum(kept) / len(kept)
    said = f"Over {len(worlds)} worlds it keeps {100 * mean:.0f}% of what the oracle could have gained"
    if mean >= KEPT_WANTED:
        return f"{said}; the worst world has {100 * min(kept):.0f}%. The oracle was never asked."
    if rows == [world.table["learned"].idxmax() for world in worlds]:
        advice = "This is the highest learned reward: the reward that was maximised is no witness."
    elif rows == [world.table["five"].idxmax() for world in worlds]:
        advice = "A mean of five rewards is no witness either: where there are no data, all of them go on rising."
    elif len(set(rows)) == 1:
        advice = "The same beta everywhere: the rewards of these worlds come in different units."
    elif mean > 0 and min(kept) >= 0:
        advice = "It never does harm, but it gives too much away: be bolder."
    else:
        advice = "In some worlds it still runs away: look at the disagreement, compared with that on data."
    raise Wrong(f"{said}; wanted are {100 * KEPT_WANTED:.0f}%. {advice}")
