"""Noise schedules, distributions of the time t, weightings w(t), and conversions between what networks predict.

Time runs from t = 0 (data) to t = 1 (noise) and

    x_t = alpha(t) x_0 + sigma(t) eps,        eps ~ N(0, I).

Integer timesteps and EDM's sigma are only other names for t; the helpers at the schedule translate.

**The batch-shape rule.** The axes of t are the leading axes of x (each equal, or 1 to broadcast); all that follows is
"the sample", and sums and norms run over it. So t (B,) goes with x (B, C, H, W), and t (E, B) with x (E, B, d) when
E runs are trained side by side.

Schedule arithmetic is float64; what meets data takes the dtype of the data, at least float32 on the way.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Weighting = Callable[[Tensor], Tensor]
PREDICTIONS = ("eps", "x0", "v", "score")


def like(value: Tensor | float, x: Tensor) -> Tensor:
    """Shape a value per batch element, (...), to multiply x (..., sample), in x's dtype and at least float32."""
    value = torch.as_tensor(value, dtype=torch.float64, device=x.device)
    if value.ndim > x.ndim:
        raise ValueError(f"{tuple(value.shape)} is no prefix of the shape {tuple(x.shape)}")
    return value.reshape(value.shape + (1,) * (x.ndim - value.ndim)).to(torch.promote_types(x.dtype, torch.float32))


def flat_sample(x: Tensor, t: Tensor) -> Tensor:
    """View x (*t, sample) as (*t, n), at least float32; the sample must have an axis of its own."""
    if t.ndim >= x.ndim:
        raise ValueError(f"t {tuple(t.shape)} must be a proper prefix of x {tuple(x.shape)}")
    return x.flatten(t.ndim).to(torch.promote_types(x.dtype, torch.float32))


@dataclass(frozen=True)
class NoiseSchedule:
    """alpha(t) and sigma(t) of x_t = alpha(t) x_0 + sigma(t) eps, given by their logarithms.

    `steps` is the number of integer timesteps of a discrete schedule, None for a continuous one.
    """

    name: str
    log_alpha: Callable[[Tensor], Tensor]
    log_sigma: Callable[[Tensor], Tensor]
    steps: int | None = None

    def alpha(self, t: Tensor) -> Tensor:
        """Signal scale alpha(t), float64, shape of t."""
        return self.log_alpha(t.double()).exp()

    def sigma(self, t: Tensor) -> Tensor:
        """Noise scale sigma(t), float64, shape of t."""
        return self.log_sigma(t.double()).exp()

    def log_snr(self, t: Tensor) -> Tensor:
        """log of alpha(t)^2 / sigma(t)^2, float64, decreasing in t."""
        return 2 * (self.log_alpha(t.double()) - self.log_sigma(t.double()))

    def perturb(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_t = alpha(t) x_0 + sigma(t) eps. x0, eps (*t, sample) -> xt, same shape and dtype as x0."""
        if eps.shape != x0.shape:
            raise ValueError(f"eps {tuple(eps.shape)} must have the shape of x0 {tuple(x0.shape)}")
        return (like(self.alpha(t), x0) * x0 + like(self.sigma(t), eps) * eps).to(x0.dtype)

    def time_of_index(self, index: Tensor | int) -> Tensor:
        """Integer timestep k in 0 .. T-1 -> t = (k + 1) / T, so that t = 0 is left for clean data."""
        return (torch.as_tensor(index, dtype=torch.float64) + 1) / self._steps()

    def index_of_time(self, t: Tensor) -> Tensor:
        """t -> nearest integer timestep, the inverse of `time_of_index` on the grid (int64)."""
        return ((t.double() * self._steps()).round().long() - 1).clamp(0, self._steps() - 1)

    def time_of_noise_ratio(self, ratio: Tensor | float) -> Tensor:
        """sigma / alpha -> t in [0, 1] by bisection to float64 accuracy (clamped at both ends)."""
        target = -2 * torch.as_tensor(ratio, dtype=torch.float64).log()
        low, high = torch.zeros_like(target), torch.ones_like(target)
        for _ in range(54):
            middle = (low + high) / 2
            noisier = self.log_snr(middle) < target
            low, high = torch.where(noisier, low, middle), torch.where(noisier, middle, high)
        return (low + high) / 2

    def _steps(self) -> int:
        if self.steps is None:
            raise ValueError(f"the schedule {self.name!r} has no integer timesteps")
        return self.steps


def _variance_preserving(name: str, log_alpha: Callable[[Tensor], Tensor], steps: int | None = None) -> NoiseSchedule:
    """sigma^2 = 1 - alpha^2, by expm1 so that it is exact near t = 0."""
    return NoiseSchedule(name, log_alpha, lambda t: 0.5 * torch.log(-torch.expm1(2 * log_alpha(t))), steps)


def vp_discrete(alphas_cumprod: Tensor | Sequence[float], name: str = "vp_discrete") -> NoiseSchedule:
    """The schedule of a diffusers scheduler, `vp_discrete(scheduler.alphas_cumprod)`, made continuous in t.

    alpha(t)^2 equals the table entry k at t = (k + 1) / T and 1 at t = 0. Between, log alpha^2 follows the monotone
    cubic Hermite spline through those points (slope at a knot: harmonic mean of its two secants).
    """
    table = torch.as_tensor(alphas_cumprod).detach().cpu().double()
    knots = torch.cat([torch.zeros(1, dtype=torch.float64), table.log()])
    secants = knots.diff()
    if not (knots.isfinite().all() and (secants < 0).all()):
        raise ValueError("alphas_cumprod must fall strictly from below 1 and stay above 0 (no zero terminal SNR)")
    inner = 2 * secants[:-1] * secants[1:] / (secants[:-1] + secants[1:])
    slopes = torch.cat([secants[:1], inner, secants[-1:]])
    steps = len(table)

    def log_alpha(t: Tensor) -> Tensor:
        place = (t * steps).clamp(0, steps)
        k = place.floor().long().clamp(max=steps - 1)
        u = place - k
        value, slope, gap = knots.to(t.device), slopes.to(t.device), secants.to(t.device)
        bend = (slope[k] - gap[k]) * (1 - u) - (slope[k + 1] - gap[k]) * u
        return 0.5 * (value[k] + u * gap[k] + u * (1 - u) * bend)

    return _variance_preserving(name, log_alpha, steps)


def vp_continuous(beta_min: float = 0.1, beta_max: float = 20.0) -> NoiseSchedule:
    """Variance preserving with beta(t) linear: log alpha = -t^2 (beta_max - beta_min) / 4 - t beta_min / 2."""
    return _variance_preserving("vp", lambda t: -0.25 * t**2 * (beta_max - beta_min) - 0.5 * t * beta_min)


def edm(sigma_min: float = 0.002, sigma_max: float = 80.0) -> NoiseSchedule:
    """alpha = 1 and sigma(t) = sigma_min (sigma_max / sigma_min)^t: uniform t is log-uniform sigma."""
    low, span = math.log(sigma_min), math.log(sigma_max / sigma_min)
    return NoiseSchedule("edm", torch.zeros_like, lambda t: low + span * t)


@dataclass(frozen=True)
class TimeSampler:
    """A distribution pi(t) on [0, 1], given by its quantile function u -> t (float64).

    Calling it draws t; `nodes(n)` is the midpoint rule in u, t_i = quantile((i + 1/2) / n), each of mass 1 / n, with
    which expectations under pi are computed without randomness.
    """

    name: str
    quantile: Callable[[Tensor], Tensor]

    def __call__(
        self, shape: Sequence[int], *, generator: torch.Generator, device: torch.device | str | None = None
    ) -> Tensor:
        u = torch.rand(tuple(shape), generator=generator, device=generator.device, dtype=torch.float64)
        return self.quantile(u).to(generator.device if device is None else device)

    def nodes(self, n: int) -> Tensor:
        """Deterministic nodes, (n,)."""
        return self.quantile((torch.arange(n, dtype=torch.float64) + 0.5) / n)


def uniform_time(low: float = 0.0, high: float = 1.0) -> TimeSampler:
    """t uniform in [low, high); low = high gives one fixed noise level."""
    return TimeSampler(f"uniform({low}, {high})", lambda u: low + (high - low) * u)


def uniform_index_time(schedule: NoiseSchedule, low: int, high: int) -> TimeSampler:
    """Integer timesteps uniform in low .. high - 1, for networks that know only those."""
    return TimeSampler(
        f"uniform_index({low}, {high})", lambda u: schedule.time_of_index((low + (high - low) * u).floor())
    )


def lognormal_sigma_time(schedule: NoiseSchedule, p_mean: float = -1.2, p_std: float = 1.2) -> TimeSampler:
    """EDM's distribution: log(sigma / alpha) ~ N(p_mean, p_std^2), clamped to the schedule's range."""

    def quantile(u: Tensor) -> Tensor:
        return schedule.time_of_noise_ratio((p_mean + p_std * torch.special.ndtri(u)).exp())

    return TimeSampler(f"lognormal_sigma({p_mean}, {p_std})", quantile)


def constant_weight() -> Weighting:
    """w(t) = 1."""
    return lambda t: torch.ones_like(t, dtype=torch.float64)


def sigma_power_weight(schedule: NoiseSchedule, power: float = 2.0) -> Weighting:
    """w(t) = sigma(t)^power; power 2 makes the score loss an eps loss."""
    return lambda t: schedule.sigma(t) ** power


def x0_gap_weight(schedule: NoiseSchedule) -> Weighting:
    """w(t) = sigma^2 / alpha^2: what weight 1 on the x0-prediction gap contracted with x0 amounts to.

    (D_ta - D_ref) . dx0 = (sigma^2 / alpha)(s_ta - s_ref) . dx0 = (sigma^2 / alpha^2)(s_ta - s_ref) . dx_t.
    """
    return lambda t: torch.exp(-schedule.log_snr(t))


def normalised(weight: Weighting, time_sampler: TimeSampler, n: int = 4096) -> Weighting:
    """w / E_pi[w], so that beta compares between weightings; E_pi by the midpoint rule on n nodes of pi."""
    mean = float(weight(time_sampler.nodes(n)).mean())
    return lambda t: weight(t) / mean


def convert_prediction(
    value: Tensor, *, xt: Tensor, t: Tensor, schedule: NoiseSchedule, source: str, target: str
) -> Tensor:
    """Turn one prediction of a diffusion network into another; value, xt (*t, sample) -> (*t, sample).

    With x_t = alpha x0 + sigma eps:  score = -eps / sigma,  v = alpha eps - sigma x0.
    """
    for kind in (source, target):
        if kind not in PREDICTIONS:
            raise ValueError(f"unknown prediction {kind!r}: one of {', '.join(PREDICTIONS)}")
    if source == target:
        return value
    a, s = like(schedule.alpha(t), xt), like(schedule.sigma(t), xt)
    if source == "x0":
        x0, eps = value, (xt - a * value) / s
    elif source == "v":
        x0, eps = (part / (a**2 + s**2) for part in (a * xt - s * value, s * xt + a * value))
    else:
        eps = value if source == "eps" else -s * value
        x0 = (xt - s * eps) / a
    return {"eps": lambda: eps, "x0": lambda: x0, "v": lambda: a * eps - s * x0, "score": lambda: -eps / s}[target]()


def ddim_step(eps: Tensor, *, xt: Tensor, t: Tensor, t_next: Tensor, schedule: NoiseSchedule) -> Tensor:
    """Deterministic DDIM: x_t' = alpha(t') x0 + sigma(t') eps with x0 = (xt - sigma eps) / alpha. All (*t, sample)."""
    x0 = convert_prediction(eps, xt=xt, t=t, schedule=schedule, source="eps", target="x0")
    return schedule.perturb(x0, t_next, eps).to(xt.dtype)
