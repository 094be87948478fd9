"""Checks of the exercises with pencil and paper: conversions, conventions, the gradient of the KL, its surrogate.

The tables hold, for each number asked for, what to say and the formula that somebody had who made the mistake.
"""

import math
from typing import Any

from torch import Tensor

from dipp_core.classroom.exercises.grading import Wrong, ask, normal, rng, settle, tensor

SPELLINGS = ("s(c) + n [s(c) - s(0)]", "s(0) + n [s(c) - s(0)]", "n s(c) + (1 - n) s(0)")


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
