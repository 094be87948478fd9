"""The checks of the exercises: each takes the reader's answers and returns praise, or raises `Open` or `Wrong`.

The tables hold, for each thing asked for, what to say and the formula of somebody who made that mistake.
"""

import copy
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dipp_core.classroom import hacking
from dipp_core.classroom.grading import Open, Wrong, ask, close, compare, missing, normal, pull, rng, settle, tensor
from dipp_core.method.assistant import assistant_step
from dipp_core.method.divergences import integral_kl_surrogate, pseudo_huber
from dipp_core.method.guidance import cfg_reward_surrogate
from dipp_core.method.schedule import (
    NoiseSchedule,
    Weighting,
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

# ----------------------------------------------------------------------------------------------------- 1. conversions


def _x0(eps: Tensor, xt: Tensor, a: float, s: float) -> Tensor:
    return (xt - s * eps) / a


def _v(eps: Tensor, xt: Tensor, a: float, s: float) -> Tensor:
    return a * eps - s * _x0(eps, xt, a, s)


def _score(eps: Tensor, xt: Tensor, a: float, s: float) -> Tensor:
    return -eps / s


X0_MISTAKES = {
    "x0: the division by alpha(t) is missing: xt - sigma eps is alpha x0.": lambda e, x, a, s: x - s * e,
    "x0: the noise is added once more instead of being taken away.": lambda e, x, a, s: (x + s * e) / a,
    "x0: eps enters without its sigma(t).": lambda e, x, a, s: (x - e) / a,
}
V_MISTAKES = {
    "v: alpha and sigma are exchanged; v = alpha eps - sigma x0.": lambda e, x, a, s: a * _x0(e, x, a, s) - s * e,
    "v: a plus for a minus; alpha eps + sigma x0 is not v.": lambda e, x, a, s: a * e + s * _x0(e, x, a, s),
    "v: xt stands where x0 should.": lambda e, x, a, s: a * e - s * x,
}
SCORE_MISTAKES = {
    "score: the division by sigma(t) is missing; see section 4 of notebook 01.": lambda e, x, a, s: -e,
    "score: one division by sigma(t) too many; xt - alpha x0 is sigma eps already.": lambda e, x, a, s: -e / s**2,
    "score: the sign. The score points to where the density rises, against the noise.": lambda e, x, a, s: e / s,
}


def conversions(convert: Any) -> str:
    """convert(eps, xt, alpha, sigma) -> (x0, v, score)."""
    g = rng(1)
    points = [(*normal(2, 4, 3, generator=g), alpha, sigma) for alpha, sigma in ((0.8, 0.6), (0.5, 1.3), (0.95, 0.31))]
    outputs = {"x0": (_x0, X0_MISTAKES), "v": (_v, V_MISTAKES), "score": (_score, SCORE_MISTAKES)}
    settle(convert, points, outputs, "convert")
    return "One prediction is all four once alpha and sigma are known, whether alpha^2 + sigma^2 is 1 or not."


# ----------------------------------------------------------------------------------------------------- 2. conventions

SPELLINGS = ("s(c) + n [s(c) - s(0)]", "s(0) + n [s(c) - s(0)]", "n s(c) + (1 - n) s(0)")
GUIDED_MISTAKES = {
    "guided: that is the multiplicative convention, in which 1 is off; here 0 is off.": lambda c, n, a: n + a * (c - n),
    "guided: the bracket is turned round: it pushes away from the prompt.": lambda c, n, a: c + a * (n - c),
    "guided: it starts from s(c), but counts from s(0).": lambda c, n, a: c + (1 + a) * (c - n),
}


def conventions(to_alpha_cfg: Any, guided: Any) -> str:
    """to_alpha_cfg(n, spelling) -> additive number; guided(s_cond, s_null, alpha_cfg) -> score."""
    g = rng(2)
    points = [(*normal(2, 3, 2, generator=g), a) for a in (0.0, 0.5, 3.5)]
    settle(guided, points, {"guided": (lambda c, n, a: c + a * (c - n), GUIDED_MISTAKES)}, "guided")
    for spelling in SPELLINGS:
        shift = 0.0 if spelling == SPELLINGS[0] else 1.0
        numbers = [(n, spelling) for n in (1.0, 1.75, 7.5)]
        text = f"For `{spelling}`: "
        errors = {
            text + "off by one. Which n switches guidance off in this spelling?": lambda n, s, k=shift: n - 1 + k,
            text + "the one goes the other way round.": lambda n, s, k=shift: n + k,
        }
        settle(to_alpha_cfg, numbers, {text + "the number": (lambda n, s, k=shift: n - k, errors)}, "to_alpha_cfg")
    return "Two conventions in three spellings; whoever copies a scale from another code must ask which n is off."


# ------------------------------------------------------------------------------------------- 3. the gradient of the KL


def _precisions(spread: float, lam: float, a: float, s: float) -> tuple[float, float]:
    """Of the reference and of the generator, at t."""
    return 1 / (a * a * lam + s * s), 1 / (a * a * spread**2 + s * s)


def kl_by_mean(m: float, spread: float, lam: float, a: float, s: float) -> float:
    """d KL_t / d m."""
    return a * a * m * _precisions(spread, lam, a, s)[0]


def kl_by_spread(m: float, spread: float, lam: float, a: float, s: float) -> float:
    """d KL_t / d spread."""
    ref, own = _precisions(spread, lam, a, s)
    return a * a * spread * (ref - own)


MEAN_MISTAKES = {
    "by m: alpha(t) once too few: the mean of x_t is alpha m, and the chain rule gives another alpha.": (
        lambda m, k, lam, a, s: kl_by_mean(m, k, lam, a, s) / a
    ),
    "by m: alpha(t) is missing; the generator sits under the noise, x_t = alpha x0 + sigma eps.": (
        lambda m, k, lam, a, s: kl_by_mean(m, k, lam, a, s) / a**2
    ),
    "by m: where is the noise? The reference has the variance alpha^2 lam + sigma^2 at t.": (
        lambda m, k, lam, a, s: m / lam
    ),
    "by m: the variance in the denominator is that of the reference, not the generator's own.": (
        lambda m, k, lam, a, s: a * a * m * _precisions(k, lam, a, s)[1]
    ),
}
SPREAD_MISTAKES = {
    "by spread: that is the derivative with respect to the variance; multiply by d(spread^2)/d spread.": (
        lambda m, k, lam, a, s: kl_by_spread(m, k, lam, a, s) / (2 * k)
    ),
    "by spread: the term of log det is missing: without it nothing keeps the generator from collapsing.": (
        lambda m, k, lam, a, s: a * a * k * _precisions(k, lam, a, s)[0]
    ),
    "by spread: where is the noise? Both laws are those at t.": lambda m, k, lam, a, s: k / lam - 1 / k,
}


def kl_gradient(gradient: Any) -> str:
    """gradient(m, spread, lam, alpha, sigma) -> both derivatives of KL(N(m, spread^2) || N(0, lam)) at t."""
    points = [
        (0.7, 0.5, 1.0, 1.0, 0.5),
        (-1.2, 1.4, 0.6, 0.8, 0.6),
        (0.4, 0.9, 2.0, 0.3, 0.95),
        (2.0, 0.2, 0.25, 0.7, 1.1),
    ]
    outputs = {"by m": (kl_by_mean, MEAN_MISTAKES), "by spread": (kl_by_spread, SPREAD_MISTAKES)}
    settle(gradient, points, outputs, "gradient")
    return "It is E (s_theta - s_ref) d x_t / d theta, the formula of notebook 02, done by hand."


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
    batches = list(_batches(seed))

    def gradient(loss: Callable) -> Tensor:
        return torch.cat([torch.autograd.grad(loss(*b).sum(), x0, retain_graph=True)[0] for x0, *b in batches])

    found = torch.cat([pull(function, *batch) for batch in batches])
    compare("The gradient", found, gradient(right), {text: gradient(loss) for text, loss in mistakes.items()})


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


# --------------------------------------------------------------------------------------------- 5. the surrogate's value


def surrogate_mean(m: float, v: float, lam: float, a: float, s: float) -> float:
    """E [s_theta(x) - s_ref(x)] x at t, for the generator N(m, v) and the reference N(0, lam)."""
    return (a * a * (m * m + v) + s * s) / (a * a * lam + s * s) - 1


def kl(m: float, v: float, lam: float, a: float, s: float) -> float:
    """KL(N(m, v) || N(0, lam)) at t."""
    return 0.5 * (surrogate_mean(m, v, lam, a, s) + math.log((a * a * lam + s * s) / (a * a * v + s * s)))


VALUE_MISTAKES = {
    "mean_value: the part of the generator's own score is missing: E s_theta(x) x = -1, whatever the law.": (
        lambda m, v, lam, a, s: surrogate_mean(m, v, lam, a, s) + 1
    ),
    "mean_value: E x^2 is the variance plus the squared mean.": (
        lambda m, v, lam, a, s: surrogate_mean(0.0, v, lam, a, s)
    ),
    "mean_value: where is the noise? Both laws are those of x_t.": lambda m, v, lam, a, s: (m * m + v) / lam - 1,
    "mean_value: that is the KL itself; the surrogate is another number, see section 4 of notebook 02.": kl,
}


def surrogate_value(mean_value: Any, blind_spot: Any) -> str:
    """mean_value(m, v, lam, alpha, sigma) -> E of the surrogate (w = 1); blind_spot(lam) -> (m, v)."""
    points = [(0.5, 0.8, 1.0, 1.0, 0.7), (-1.0, 0.3, 0.5, 0.8, 0.6), (0.2, 2.0, 1.5, 0.4, 1.2)]
    settle(mean_value, points, {"mean_value": (surrogate_mean, VALUE_MISTAKES)}, "mean_value")
    for lam in (0.5, 1.0, 3.0):
        m, v = tensor(ask(blind_spot, lam), (2,), "blind_spot").tolist()
        if v <= 0:
            raise Wrong(f"blind_spot: a variance of {v:g} is no law; v must be positive.")
        for a, s in ((1.0, 0.5), (0.6, 0.8)):
            if abs(value := surrogate_mean(m, v, lam, a, s)) > 1e-4:
                raise Wrong(f"blind_spot({lam:g}): the surrogate's mean is not 0 there but {value:.3g}.")
            if kl(m, v, lam, a, s) < 1e-3:
                raise Wrong(f"blind_spot({lam:g}): that is the reference, where the KL is 0 as well. Find another one.")
    return "A loss of 0 at a generator that is far off: whoever watches the surrogate sees nothing."


# ------------------------------------------------------------------------------------- 6. which gradient was stopped?

CUTS = ("nothing", "slope", "s_ta", "s_ref", "xt")


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


# ------------------------------------------------------------------------------------------------ 8. where DI++ lands


def _grids() -> list[NoiseLevels]:
    """Two choices of noise, weights that sum to 1."""
    one, two = edm(0.05, 5.0), vp_continuous()
    pi = lognormal_sigma_time(one, -0.5, 0.8)
    weight = normalised(sigma_power_weight(one, 1.0), pi, 8)
    return [noise_levels(one, pi, weight, 8), noise_levels(two, uniform_time(0.05, 0.9), constant_weight(), 6)]


def _mean(values: Tensor, w: Tensor) -> Tensor:
    return (w * values).sum()


def ikl_shift(a: float, lam: float, beta: float, s2: Tensor, w: Tensor) -> Tensor:
    """Where DI++ lands under the reward a x: the forces of all levels balance a / beta."""
    return a / beta / _mean(1 / (lam + s2), w)


SHIFT_MISTAKES = {
    "DI++: the average of lam + s^2 is not the inverse of the average of 1 / (lam + s^2); forces are averaged.": (
        lambda a, lam, beta, s2, w: a / beta * _mean(lam + s2, w)
    ),
    "DI++: that is the shift of the tilted law.": lambda a, lam, beta, s2, w: lam * a / beta,
    "DI++: beta multiplies the divergence, so it divides the shift.": (
        lambda a, lam, beta, s2, w: a * beta / _mean(1 / (lam + s2), w)
    ),
    "DI++: noise_var is s^2 already.": lambda a, lam, beta, s2, w: a / beta / _mean(1 / (lam + s2**2), w),
    "DI++: the weights w are missing: a mean over levels is the sum of w_k times each.": (
        lambda a, lam, beta, s2, w: a / beta / (1 / (lam + s2)).mean()
    ),
    "DI++: the mean of 1 / (lam + s^2) divides; yours multiplies.": (
        lambda a, lam, beta, s2, w: a / beta * _mean(1 / (lam + s2), w)
    ),
}
TILTED_MISTAKES = {
    "tilted: lam is missing. Complete the square in -x^2 / (2 lam) + a x / beta.": lambda a, lam, b, s2, w: a / b,
    "tilted: lam divides where it multiplies: a wide direction gives way more.": lambda a, lam, b, s2, w: a / b / lam,
    "tilted: beta multiplies where it divides.": lambda a, lam, b, s2, w: lam * a * b,
}


def landing(shifts: Any) -> str:
    """shifts(a, lam, beta, noise_var, w) -> (shift of DI++, shift of the tilted law)."""
    points = [(*n, grid.noise_var, grid.w) for grid in _grids() for n in ((1.0, 0.25, 2.0), (-0.6, 2.0, 0.5))]
    tilted = (lambda a, lam, beta, s2, w: lam * a / beta, TILTED_MISTAKES)
    settle(shifts, points, {"DI++": (ikl_shift, SHIFT_MISTAKES), "tilted": tilted}, "shifts")
    return "Noise hides a thin direction from the leash, so the shift is never smaller than the tilted law's."


# ---------------------------------------------------------------------------------------------------- 9. the collapse


def collapse_beta(q: float, lam: float, s2: Tensor, w: Tensor) -> Tensor:
    """Where the spread of DI++ under the reward -q (x - b)^2 / 2 reaches 0."""
    return q / _mean(1 / s2 - 1 / (lam + s2), w)


COLLAPSE_MISTAKES = {
    "The reference's own precision is missing: it is E 1/s^2 - E 1/(lam + s^2), not the first alone.": (
        lambda q, lam, s2, w: q / _mean(1 / s2, w)
    ),
    "You solved for 1 / beta: the threshold is the inverse.": lambda q, lam, s2, w: 1 / collapse_beta(q, lam, s2, w),
    "The sign: the difference of precisions is E 1/s^2 - E 1/(lam + s^2), positive.": (
        lambda q, lam, s2, w: -collapse_beta(q, lam, s2, w)
    ),
    "The mean of a ratio is not the ratio of means: average over the levels first, then divide.": (
        lambda q, lam, s2, w: _mean(q / (1 / s2 - 1 / (lam + s2)), w)
    ),
    "The weights w are missing.": lambda q, lam, s2, w: q / (1 / s2 - 1 / (lam + s2)).mean(),
    "noise_var is s^2 already.": lambda q, lam, s2, w: q / _mean(1 / s2**2 - 1 / (lam + s2**2), w),
    "lam is missing on top: 1/s^2 - 1/(lam + s^2) = lam / (s^2 (lam + s^2)).": (
        lambda q, lam, s2, w: q / _mean(1 / (s2 * (lam + s2)), w)
    ),
}


def collapse(threshold: Any) -> str:
    """threshold(q, lam, noise_var, w) -> the largest beta at which the spread is gone."""
    points = [(*n, grid.noise_var, grid.w) for grid in _grids() for n in ((1.0, 1.0), (0.4, 0.1), (2.0, 4.0))]
    settle(threshold, points, {"The threshold": (collapse_beta, COLLAPSE_MISTAKES)}, "threshold")
    return "At any beta above 0 the tilted law keeps some spread; DI++ has none left from here on down."


# ---------------------------------------------------------------------------------------------- 10. the critical beta


def _force(lam: float, alpha: Tensor, sigma: Tensor) -> Tensor:
    return alpha / (alpha**2 * lam + sigma**2)


def huber_beta(a: float, lam: float, alpha: Tensor, sigma: Tensor, w: Tensor) -> Tensor:
    """Where the largest force of pseudo-Huber, beta E k, equals that of the reward a x."""
    return abs(a) / _mean(_force(lam, alpha, sigma), w)


CRITICAL_MISTAKES = {
    "A threshold is positive: for a negative slope it is |a| that counts.": (
        lambda a, lam, al, s, w: a / _mean(_force(lam, al, s), w)
    ),
    "alpha(t) is missing on top: a shift of x0 by delta moves x_t by alpha delta.": (
        lambda a, lam, al, s, w: abs(a) / _mean(_force(lam, al, s) / al, w)
    ),
    "One alpha(t) too many: k = alpha / (alpha^2 lam + sigma^2) holds the only one.": (
        lambda a, lam, al, s, w: abs(a) / _mean(_force(lam, al, s) * al, w)
    ),
    "k enters once: |d'| tends to 1 and k multiplies it. With k^2 it is squared l2, which has no threshold.": (
        lambda a, lam, al, s, w: abs(a) / _mean(_force(lam, al, s).square(), w)
    ),
    "The forces are averaged, so it is |a| / E k, not |a| E 1/k.": (
        lambda a, lam, al, s, w: abs(a) * _mean(1 / _force(lam, al, s), w)
    ),
    "You solved for 1 / beta: divide |a| by the largest force.": (
        lambda a, lam, al, s, w: _mean(_force(lam, al, s), w) / abs(a)
    ),
    "The weights w are missing.": lambda a, lam, al, s, w: abs(a) / _force(lam, al, s).mean(),
}


def critical(critical_beta: Any) -> str:
    """critical_beta(a, lam, alpha, sigma, w) -> the beta at and below which DI* with pseudo-Huber has no optimum."""
    numbers = ((1.0, 1.0), (-0.4, 0.1), (2.0, 4.0))
    points = [(*n, grid.alpha, grid.sigma, grid.w) for grid in _grids() for n in numbers]
    settle(critical_beta, points, {"The critical beta": (huber_beta, CRITICAL_MISTAKES)}, "critical_beta")
    return "It does not depend on c: the constant says where the force bends, not how large it can become."


# --------------------------------------------------------------------------------------------------- 11. a new distance


def distance(value: Any, slope: Any, largest_pull: Any) -> str:
    """value(y, c) -> (...), slope(y, c) -> (..., n), largest_pull(c): the distance of Cauchy."""
    y = 2 * normal(2, 3, 4, generator=rng(11))
    points = [(part, c) for part in y for c in (0.5, 2.0)]

    def right(y, c):
        return 0.5 * c * c * (1 + y.square().sum(-1) / c**2).log()

    def gradient(y, c):
        return y / (1 + y.square().sum(-1, keepdim=True) / c**2)

    per_coordinate = "{}: |y|^2 is the norm over the whole sample, one number; yours bends every coordinate by itself."
    mistakes = {
        per_coordinate.format("value"): lambda y, c: 0.5 * c * c * (1 + y.square() / c**2).log().sum(-1),
        "value: the factor c^2 in front is missing.": lambda y, c: right(y, c) / c**2,
        "value: |y|^2 is meant, and there is |y|.": lambda y, c: 0.5 * c * c * (1 + y.norm(dim=-1) / c**2).log(),
    }
    settle(value, points, {"value": (right, mistakes)}, "value")
    mistakes = {
        per_coordinate.format("slope"): lambda y, c: y / (1 + y.square() / c**2),
        "slope: that is the slope of pseudo-Huber.": lambda y, c: y / (y.square().sum(-1, keepdim=True) + c * c).sqrt(),
        "slope: the inner derivative of |y|^2 / c^2 brings 1 / c^2, which takes away the c^2 in front.": lambda y, c: (
            gradient(y, c) / c**2
        ),
    }
    settle(slope, points, {"slope": (gradient, mistakes)}, "slope")
    _flows(slope)
    pulls: dict[str, Callable] = {
        "largest_pull: that is the limit for large |y|. The force of this distance falls again: look for its maximum.":
            lambda c: 0.0,
        "largest_pull: that is where the pull is largest, |y| = c. How large is it there?": lambda c: c,
        "largest_pull: that is pseudo-Huber's.": lambda c: 1.0,
    }  # fmt: skip
    settle(largest_pull, [(0.5,), (2.0,), (3.0,)], {"largest_pull": (lambda c: c / 2, pulls)}, "largest_pull")
    return "A distance whose force falls: what has gone far is let go. For an alignment, is that good news?"


def _flows(slope: Any) -> None:
    """Gradient must flow on through the slope, and be finite where the gap is zero."""
    y = torch.cat([normal(3, 4, generator=rng(111)), torch.zeros(1, 4, dtype=torch.float64)]).requires_grad_()
    found = ask(slope, y, 1.0)
    if not isinstance(found, Tensor) or not found.requires_grad:
        raise Wrong("slope: it carries no gradient. In Diff-Instruct* the gradient flows through d', so do not detach.")
    (back,) = torch.autograd.grad(found.sum(), y, allow_unused=True)
    if back is None or not back.isfinite().all():
        raise Wrong("slope: its own gradient is not finite at y = 0, where training ends. Square, without the norm.")


# ----------------------------------------------------------------------------------- 12. a reward that reads the prompt


def reward(function: Any) -> str:
    """function(x0, cond) -> one value a sample in [-1, 1]; prompt 0 wants x_1 large, prompt 1 wants it small."""
    g = rng(12)
    x0 = 2 * normal(3, 8, 2, generator=g)
    which = torch.arange(24).reshape(3, 8) % 2
    cond = torch.nn.functional.one_hot(which, 2).double()
    values = _values(function, x0, cond)
    if close(values, _values(function, x0, 1 - cond)):
        raise Wrong("It does not look at the prompt: with both prompts exchanged the values stay the same.")
    if values.abs().max() > 1 + 1e-6:
        raise Wrong(f"It is not bounded by 1: |r| reaches {float(values.detach().abs().max()):.3g}.")
    part = _values(function, x0[:1, :3], cond[:1, :3])
    if not close(part, values[:1, :3]):
        raise Wrong("The value of a sample changes with its neighbours in the batch: it may depend on itself alone.")
    leaf = x0.clone().requires_grad_()
    made = ask(function, leaf, cond)
    if not isinstance(made, Tensor) or not made.requires_grad:
        raise Wrong("No gradient reaches x0: stay in torch, without item(), numpy, detach or comparisons.")
    (gradient,) = torch.autograd.grad(made.sum(), leaf)
    if not gradient.isfinite().all():
        raise Wrong("The gradient is not finite at some samples.")
    signs = gradient[..., 0] * (1 - 2 * which.double())
    if (gradient[..., 0] == 0).all():
        raise Wrong("It has steps: its gradient is zero everywhere, and says nothing to a generator. Make it smooth.")
    if (gradient[..., 0] == 0).any():
        raise Wrong("Flat at some samples within |x_1| < 6: clamp has no gradient beyond its bounds. Bend smoothly.")
    if (signs < 0).all():
        raise Wrong("The prompts are exchanged, or the sign: prompt 0 is to like x_1 large, prompt 1 to like it small.")
    if (signs < 0).any():
        raise Wrong("It must rise with x_1 for prompt 0 and fall for prompt 1, everywhere; somewhere it does not.")
    single = ask(function, x0.float(), cond.float())
    if isinstance(single, Tensor) and single.dtype != torch.float32:
        raise Wrong(f"float32 samples give {single.dtype} values: make constants of x0.new_tensor(..) or numbers.")
    return "Smooth, bounded, per sample, and it reads the prompt: `align` takes it as it is."


def _values(function: Any, x0: Tensor, cond: Tensor) -> Tensor:
    return tensor(ask(function, x0, cond), x0.shape[:-1], "The reward")


# --------------------------------------------------------------------------------------------------------- 13. one step


def one_step(generate: Any) -> str:
    """generate(network, z, k, alphas_cumprod) -> x0, network(xt, t) predicting eps, t = (k + 1) / T."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    table = (1 - betas).cumprod(0)
    asked: list[tuple[Tensor, float]] = []
    found, used = [], []

    def network(xt: Tensor, t: Any) -> Tensor:
        asked.append((torch.as_tensor(xt).detach().double(), float(torch.as_tensor(t).double().mean())))
        return 0.3 * torch.as_tensor(xt) + 0.1

    for k in (399, 624, 998):
        z = normal(4, 2, generator=rng(13 + k))
        made = tensor(ask(generate, network, z, k, table), z.shape, "x0")
        if not asked:
            raise Wrong("The network was never asked.")
        _asked_rightly(asked[-1], z, k, table)
        found.append(made)
        used.append((z, k, 0.3 * z + 0.1))

    def x0(shift: int = 0) -> Tensor:
        return torch.cat(
            [(z - (1 - table[k + shift]).sqrt() * eps) / table[k + shift].sqrt() for z, k, eps in used],
        )

    scaled = torch.cat([z - (1 - table[k]).sqrt() * eps for z, k, eps in used])
    roots = torch.cat([(z - (1 - table[k]) * eps) / table[k] for z, k, eps in used])
    errors = {
        "The division by alpha(t*) is missing: x0 = (z - sigma eps) / alpha.": scaled,
        "The table holds alpha^2: take roots, alpha = sqrt(table[k]), sigma = sqrt(1 - table[k]).": roots,
        "Off by one: step k of the table is entry k, counted from 0.": x0(1),
        "Off by one, downward: step k of the table is entry k, counted from 0.": x0(-1),
        "That is the network's eps, not the picture.": torch.cat([eps for _, _, eps in used]),
    }
    compare("x0", torch.cat(found), x0(), errors)
    return "Public one-step models start at k = 399, 400, 625 or 999; a wrong t* gives pictures, only worse ones."


def _asked_rightly(asked: tuple[Tensor, float], z: Tensor, k: int, table: Tensor) -> None:
    """What the network was shown, and at which time."""
    shown, t = asked
    sigma = (1 - table[k]).sqrt()
    if abs(t - k) < 1e-6 or abs(t - k - 1) < 1e-6:
        raise Wrong(f"The network was asked at t = {t:g}: the integer timestep. Here time is in (0, 1].")
    if abs(t - k / 1000) < 1e-7:
        raise Wrong("The network was asked at t = k / T. Step k is t = (k + 1) / T: t = 0 is left for clean data.")
    if abs(t - (k + 1) / 1000) > 1e-7:
        raise Wrong(f"The network was asked at t = {t:.4g} for k = {k}; wanted is (k + 1) / T = {(k + 1) / 1000:g}.")
    if shown.shape == z.shape and not close(shown, z) and close(shown, sigma * z):
        raise Wrong("z was scaled by sigma(t*). In this convention z ~ N(0, I) is fed as it is, as if it were x_t*.")
    if shown.shape != z.shape or not close(shown, z):
        raise Wrong("The network is to see z itself as x_t*.")


# --------------------------------------------------------------------------------------------- 14. the assistant's step


class _Assistant(nn.Module):
    """A score model with six numbers."""

    def __init__(self) -> None:
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


# ---------------------------------------------------------------------------------------- 15. a backward pass in stages


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
    unscaled = torch.stack([each[n] / scale for n, (_, scale) in terms.items()]).sum(0)
    errors = {
        "Only the last term arrived: add the gradients up, do not overwrite.": each["guidance"],
        "Only the first term arrived.": each["reward"],
        "The scales of the terms are missing.": unscaled,
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


# --------------------------------------------------------------------------------------- 16. how many assistant steps?


def _chase(gen_lr: float, ta_lr: float, ta_steps: float) -> Tensor:
    """One round on (m, u): the assistant learns ta_steps times, then the generator steps."""
    keep = (1 - ta_lr) ** ta_steps
    return _generator(gen_lr) @ torch.tensor([[1.0, 0.0], [1 - keep, keep]], dtype=torch.float64)


def _generator(gen_lr: float) -> Tensor:
    return torch.tensor([[1.0, -gen_lr], [0.0, 1.0]], dtype=torch.float64)


CHASE_MISTAKES = {
    "The generator uses the assistant of the round before: line 6 comes before line 10.": (
        lambda e, t, k: _chase(0.0, t, k) + torch.tensor([[0.0, -e], [0.0, 0.0]]).double()
    ),
    "The generator moves first; in Algorithm 1 the assistant learns first.": (
        lambda e, t, k: _chase(0.0, t, k) @ _generator(e)
    ),
    "K_TA is ignored: after K steps u has kept (1 - ta_lr)^K of its distance to m.": lambda e, t, k: _chase(e, t, 1),
    "K_TA steps of a rate ta_lr are not one of K_TA ta_lr.": lambda e, t, k: _chase(e, k * t, 1),
    "Rows and columns are exchanged: the new (m, u) is the matrix times the old.": lambda e, t, k: _chase(e, t, k).T,
}


def chase(round_matrix: Any, calm_steps: Any) -> str:
    """round_matrix(gen_lr, ta_lr, ta_steps) -> (2, 2) on (m, u); calm_steps(gen_lr, ta_lr) -> smallest K_TA."""
    points = [(0.3, 0.2, 1), (0.1, 0.4, 3), (0.5, 0.05, 10)]
    settle(round_matrix, points, {"The matrix": (_chase, CHASE_MISTAKES)}, "round_matrix")
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


# --------------------------------------------------------------------------------------- 17. momentum in the assistant


def _momentum(
    gen_lr: float, ta_lr: float, beta1: float, *, share: float | None = None, old_h: bool = False, old_u: bool = False
) -> Tensor:
    """One round on (m, u, h), and its variants."""
    share, before = 1 - beta1 if share is None else share, torch.eye(3, dtype=torch.float64)
    h = torch.tensor([-share, share, beta1], dtype=torch.float64)
    u = before[1] - ta_lr * (before[2] if old_h else h)
    return torch.stack([before[0] - gen_lr * (before[1] if old_u else u), u, h])


MOMENTUM_MISTAKES = {
    "Adam's momentum is a mean, beta1 h + (1 - beta1) gradient; the factor 1 - beta1 is missing.": (
        lambda e, t, b: _momentum(e, t, b, share=1.0)
    ),
    "The assistant moves by the old h; the step uses the new one.": lambda e, t, b: _momentum(e, t, b, old_h=True),
    "The generator uses the old u: line 6 comes before line 10.": lambda e, t, b: _momentum(e, t, b, old_u=True),
    "Sign in h: the gradient of |u - m|^2 / 2 for u is u - m.": lambda e, t, b: _momentum(e, t, b, share=b - 1),
    "Rows and columns are exchanged.": lambda e, t, b: _momentum(e, t, b).T,
}


def momentum(round_matrix: Any, critical_beta1: Any) -> str:
    """round_matrix(gen_lr, ta_lr, beta1) -> (3, 3) on (m, u, h); critical_beta1(gen_lr, ta_lr)."""
    points = [(0.3, 0.2, 0.5), (0.1, 0.4, 0.9), (0.5, 0.05, 0.25)]
    settle(round_matrix, points, {"The matrix": (_momentum, MOMENTUM_MISTAKES)}, "round_matrix")
    for eta, tau in ((0.3, 0.2), (0.1, 0.4), (0.05, 0.1)):
        found = float(tensor(ask(critical_beta1, eta, tau), (), "critical_beta1"))
        where = f"critical_beta1({eta:g}, {tau:g})"
        if not 0 < found < 1:
            raise Wrong(f"{where} is {found:.4g}: a momentum lies in (0, 1).")
        if abs(found - 1 / (1 + eta)) > 5e-3:
            radius = float(torch.linalg.eigvals(_momentum(eta, tau, found)).abs().max())
            side = "smaller" if radius > 1 else "larger"
            raise Wrong(f"{where}: at {found:.4g} the largest eigenvalue has modulus {radius:.4g}; go {side}.")
    return "1 / (1 + gen_lr), whatever the assistant's own rate: momentum in the assistant limits the generator."


# ------------------------------------------------------------------------------------- 18. tune against reward hacking

KEPT_WANTED = 0.7
WORLDS = 60


@functools.cache
def _worlds() -> tuple[hacking.HackingWorld, ...]:
    return tuple(hacking.hacking_world(seed) for seed in range(WORLDS))


def tune(rule: Any) -> str:
    """rule(table) -> the beta to train with, from what a user can see."""
    worlds, rows, kept = _worlds(), [], []
    for world in worlds:
        beta = float(tensor(ask(rule, world.table.copy()), (), "The rule's answer"))
        match = [row for row, value in enumerate(world.table["beta"]) if abs(value - beta) < 1e-9]
        if not match:
            raise Wrong(f"The rule gave {beta:g}: it must choose one of the betas in the table (not a row number).")
        rows.append(match[0])
        kept.append(hacking.share_kept(world, match[0]))
    mean = sum(kept) / len(kept)
    said = f"Over {len(worlds)} worlds it keeps {100 * mean:.0f}% of what the oracle could have gained"
    if mean >= KEPT_WANTED:
        return f"{said}; the worst world has {100 * min(kept):.0f}%. The oracle was never asked."
    greedy = [int(world.table["learned"].idxmax()) for world in worlds]
    five = [int(world.table["five"].idxmax()) for world in worlds]
    if rows == greedy:
        advice = "This is the highest learned reward: the reward that was maximised is no witness."
    elif rows == five:
        advice = "A mean of five rewards is no witness either: where there are no data, all of them go on rising."
    elif len(set(rows)) == 1:
        advice = "The same beta everywhere: the rewards of these worlds come in different units."
    elif mean > 0 and min(kept) >= 0:
        advice = "It never does harm, but it gives too much away: be bolder."
    else:
        advice = "In some worlds it still runs away: look at the disagreement, compared with that on data."
    raise Wrong(f"{said}; wanted are {100 * KEPT_WANTED:.0f}%. {advice}")
