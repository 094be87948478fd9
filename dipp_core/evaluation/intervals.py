"""95% intervals by Student's t: over seeds, over seeds and captions together, and of what a new run will show."""

import math

from scipy.special import stdtrit
from torch import Tensor

from dipp_core.files import InputError

Interval = tuple[float, float, float]  # value, low and high end


def student(freedom: float, below: float = 0.975) -> float:
    """The quantile of Student's t with so many degrees of freedom; below: the share under it."""
    return float(stdtrit(freedom, below))


def over_seeds(values: Tensor) -> Interval:
    """The mean of a number over its seeds (n,) or of its paired differences, and +- t_(n-1) s / sqrt(n)."""
    if len(values) < 2:
        raise InputError("an interval over seeds needs at least two of them")
    mean, half = values.mean().item(), student(len(values) - 1) * values.std().item() / math.sqrt(len(values))
    return mean, mean - half, mean + half


def ratio_over_seeds(above: Tensor, below: Tensor) -> Interval:
    """How many times as large one positive number is as another, paired by seed (n,): the interval of log ratios."""
    low, mid, high = (math.exp(end) for end in sorted(over_seeds(above.double().log() - below.double().log())))
    return mid, low, high


def over_seeds_and_captions(by_seed: Tensor, drawn: Tensor, captions: int) -> Interval:
    """The mean over seeds of a number whose captions are shared by all seeds.

    by_seed (n,) has the number of every seed on all captions, drawn (resamples,) its mean over seeds for captions drawn
    again. The two variances add, v = s_seeds^2 / n + s_captions^2, with Satterthwaite's degrees of freedom

        v^2 / [(s_seeds^2 / n)^2 / (n - 1) + s_captions^4 / (captions - 1)] .

    What a seed and a caption do together is counted in both, which is on the safe side. Of one seed, captions alone.
    """
    parts = [(by_seed.double().var().item() / len(by_seed), len(by_seed) - 1)] if len(by_seed) > 1 else []
    parts += [(drawn.double().var().item(), captions - 1)] if captions > 1 else []
    mean, total = by_seed.double().mean().item(), sum(variance for variance, _ in parts)
    if total == 0:
        return mean, mean, mean
    half = student(total**2 / sum(variance**2 / freedom for variance, freedom in parts)) * math.sqrt(total)
    return mean, mean - half, mean + half


def bar(values: Tensor, *, seeds: int, alarm: float) -> float:
    """The bound that the mean of so many new seeds passes by chance with probability `alarm`.

    values (n,), positive: the number for other seeds, log-normal. With m new ones it is Student's one-sided prediction
    bound in logs, exp(mean + t_(n-1) s sqrt(1/n + 1/m)).
    """
    logs, n = values.double().log(), len(values)
    half = student(n - 1, 1 - alarm) * logs.std().item() * math.sqrt(1 / seeds + 1 / n)
    return math.exp(logs.mean().item() + half)
