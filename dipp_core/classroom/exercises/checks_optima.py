"""Checks of the exercises on where the methods land: shift, collapse, and the critical strength of pseudo-Huber.

Formulas take what the reader's functions take, numbers and tensors of levels; `_library` puts the levels together again
for the functions of the library. The tables hold what to say and the formula of the mistake.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from dipp_core.classroom.exercises.grading import settle
from dipp_core.method import schedule
from dipp_core.worlds import gaussian_optima as optima
from dipp_core.worlds.gaussian import NoiseLevels, noise_levels


def _grids() -> list[NoiseLevels]:
    """Two choices of noise, weights that sum to 1."""
    one, two = schedule.edm(0.05, 5.0), schedule.vp_continuous()
    pi = schedule.lognormal_sigma_time(one, -0.5, 0.8)
    weight = schedule.normalised(schedule.sigma_power_weight(one, 1.0), pi, 8)
    late = schedule.uniform_time(0.05, 0.9)
    return [noise_levels(one, pi, weight, 8), noise_levels(two, late, schedule.constant_weight(), 6)]


def _library(function: Callable, levels: Tensor) -> Callable[..., Tensor]:
    """`function(*numbers, levels)` of the library for the grid whose noise_var or sigma these levels are."""
    grid = next(g for g in _grids() if any(levels.equal(part) for part in (g.noise_var, g.sigma)))
    return lambda *numbers: function(*numbers, grid)


def _mean(values: Tensor, w: Tensor) -> Tensor:
    return (w * values).sum()


# ---------------------------------------------------------------------------------------------- 8. where DI++ lands


def _ikl_shift(a: float, lam: float, beta: float, s2: Tensor, w: Tensor) -> Tensor:
    return _library(optima.linear_shift_ikl, s2)(a, lam, beta)


def _tilted_shift(a: float, lam: float, beta: float, s2: Tensor, w: Tensor) -> Tensor:
    return optima.linear_shift_tilted(a, lam, beta)


SHIFT_MISTAKES = {
    "DI++: the average of lam + s^2 is not the inverse of the average of 1 / (lam + s^2); forces are averaged.": (
        lambda a, lam, beta, s2, w: a / beta * _mean(lam + s2, w)
    ),
    "DI++: that is the shift of the tilted law.": _tilted_shift,
    "DI++: beta multiplies the divergence, so it divides the shift.": (
        lambda a, lam, beta, s2, w: beta**2 * _ikl_shift(a, lam, beta, s2, w)
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
    numbers = ((1.0, 0.25, 2.0), (-0.6, 2.0, 0.5))
    points = [(*n, grid.noise_var, grid.w) for grid in _grids() for n in numbers]
    outputs = {"DI++": (_ikl_shift, SHIFT_MISTAKES), "tilted": (_tilted_shift, TILTED_MISTAKES)}
    settle(shifts, points, outputs, "shifts")
    return "Noise hides a thin direction from the leash, so the shift is never smaller than the tilted law's."


# ---------------------------------------------------------------------------------------------------- 9. the collapse


def _collapse(q: float, lam: float, s2: Tensor, w: Tensor) -> Tensor:
    return _library(optima.collapse_beta, s2)(q, lam)


COLLAPSE_MISTAKES = {
    "The reference's own precision is missing: it is E 1/s^2 - E 1/(lam + s^2), not the first alone.": (
        lambda q, lam, s2, w: q / _mean(1 / s2, w)
    ),
    "You solved for 1 / beta: the threshold is the inverse.": lambda q, lam, s2, w: 1 / _collapse(q, lam, s2, w),
    "The sign: the difference of precisions is E 1/s^2 - E 1/(lam + s^2), positive.": (
        lambda q, lam, s2, w: -_collapse(q, lam, s2, w)
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
    numbers = ((1.0, 1.0), (0.4, 0.1), (2.0, 4.0))
    points = [(*n, grid.noise_var, grid.w) for grid in _grids() for n in numbers]
    settle(threshold, points, {"The threshold": (_collapse, COLLAPSE_MISTAKES)}, "threshold")
    return "At any beta above 0 the tilted law keeps some spread; DI++ has none left from here on down."


# ---------------------------------------------------------------------------------------------- 10. the critical beta


def _critical(a: float, lam: float, alpha: Tensor, sigma: Tensor, w: Tensor) -> Tensor:
    return _library(optima.huber_critical_beta, sigma)(a, lam)


def _force(lam: float, alpha: Tensor, sigma: Tensor) -> Tensor:
    return alpha / (alpha**2 * lam + sigma**2)


CRITICAL_MISTAKES = {
    "A threshold is positive: for a negative slope it is |a| that counts.": (
        lambda a, lam, al, s, w: a / abs(a) * _critical(a, lam, al, s, w)
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
        lambda a, lam, al, s, w: 1 / _critical(a, lam, al, s, w)
    ),
    "The weights w are missing.": lambda a, lam, al, s, w: abs(a) / _force(lam, al, s).mean(),
}


def critical(critical_beta: Any) -> str:
    """critical_beta(a, lam, alpha, sigma, w) -> the beta at and below which DI* with pseudo-Huber has no optimum."""
    numbers = ((1.0, 1.0), (-0.4, 0.1), (2.0, 4.0))
    points = [(*n, grid.alpha, grid.sigma, grid.w) for grid in _grids() for n in numbers]
    settle(critical_beta, points, {"The critical beta": (_critical, CRITICAL_MISTAKES)}, "critical_beta")
    return "It does not depend on c: the constant says where the force bends, not how large it can become."
