"""Checks of the exercises in which a part is built: a distance, a reward, a one-step generator."""

from typing import Any

import torch
from torch import Tensor

from dipp_core.classroom.exercises.grading import Wrong, ask, close, compare, normal, rng, settle, tensor


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
    mistakes = {
        "largest_pull: that is the limit for large |y|. The force of this distance falls again: look for its maximum.":
            lambda c: 0.0,
        "largest_pull: that is where the pull is largest, |y| = c. How large is it there?": lambda c: c,
        "largest_pull: that is pseudo-Huber's.": lambda c: 1.0,
    }  # fmt: skip
    settle(largest_pull, [(0.5,), (2.0,), (3.0,)], {"largest_pull": (lambda c: c / 2, mistakes)}, "largest_pull")
    return "A distance whose force falls: what has gone far is let go. For an alignment, is that good news?"


def _flows(slope: Any) -> None:
    """Gradient must flow on through the slope, and be finite where the gap is zero."""
    y = torch.cat([normal(3, 4, generator=rng(111)), torch.zeros(1, 4, dtype=torch.float64)]).requires_grad_()
    found = ask(slope, y, 1.0)
    if not isinstance(found, Tensor) or not found.requires_grad:
        raise Wrong("slope: it carries no gradient. In Diff-Instruct* the gradient flows through d', so do not detach.")
    (back,) = torch.autograd.grad(found.sum(), y, allow_unused=True)
    if back is None or not back.isfinite().all():
        raise Wrong(
            "slope: its own gradient is not finite at y = 0, where training ends. Avoid the norm; square instead."
        )


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
        raise Wrong(
            "The value of a sample changes with its neighbours in the batch: it must depend on the sample alone."
        )
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
        raise Wrong(
            "Flat at some samples within |x_1| < 6: clamp has no gradient beyond its bounds. Use a smooth bound."
        )
    if (signs < 0).all():
        raise Wrong("The prompts are exchanged, or the sign: prompt 0 is to like x_1 large, prompt 1 to like it small.")
    if (signs < 0).any():
        raise Wrong("It must rise with x_1 for prompt 0 and fall for prompt 1, everywhere; somewhere it does not.")
    single = ask(function, x0.float(), cond.float())
    if isinstance(single, Tensor) and single.dtype != torch.float32:
        raise Wrong(
            f"float32 samples give {single.dtype} values: make constants with x0.new_tensor(..) or plain numbers."
        )
    return "Smooth, bounded, per sample, and it reads the prompt: `align` takes it as it is."


def _values(function: Any, x0: Tensor, cond: Tensor) -> Tensor:
    return tensor(ask(function, x0, cond), x0.shape[:-1], "The reward")


def one_step(generate: Any) -> str:
    """generate(network, z, k, alphas_cumprod) -> x0, network(xt, t) predicting eps, t = (k + 1) / T."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    table, asked = (1 - betas).cumprod(0), []
    found, wanted, z_used, errors = [], [], [], {}

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
        z_used.append((z, k))
    eps = [0.3 * z + 0.1 for z, _ in z_used]

    def x0(row: Tensor, shift: int = 0) -> list[Tensor]:
        return [
            (z - (1 - row[k + shift]).sqrt() * e) / row[k + shift].sqrt() for (z, k), e in zip(z_used, eps, strict=True)
        ]

    wanted = torch.cat(x0(table))
    scaled = [row * table[k].sqrt() for row, (_, k) in zip(x0(table), z_used, strict=True)]
    roots = [(z - (1 - table[k]) * e) / table[k] for (z, k), e in zip(z_used, eps, strict=True)]
    errors = {
        "The division by alpha(t*) is missing: x0 = (z - sigma eps) / alpha.": torch.cat(scaled),
        "The table holds alpha^2: take roots, alpha = sqrt(table[k]), sigma = sqrt(1 - table[k]).": torch.cat(roots),
        "Off by one: step k of the table is entry k, counted from 0.": torch.cat(x0(table, 1)),
        "Off by one, downward: step k of the table is entry k, counted from 0.": torch.cat(x0(table, -1)),
        "That is the network's eps, not the picture.": torch.cat(eps),
    }
    compare("x0", torch.cat(found), wanted, errors)
    return "Public one-step models start at k = 399, 400, 625 or 999; a wrong t* gives pictures, only worse ones."


def _asked_rightly(asked: tuple[Tensor, float], z: Tensor, k: int, table: Tensor) -> None:
    """What the network was shown, and at which time."""
    shown, t = asked
    sigma = (1 - table[k]).sqrt()
    if abs(t - k) < 1e-6 or abs(t - k - 1) < 1e-6:
        raise Wrong(f"The network was asked at t = {t:g}: the integer timestep. Here time is in (0, 1].")
    if abs(t - k / 1000) < 1e-7:
        raise Wrong(
            "The network was asked at t = k / T. Step k is t = (k + 1) / T, so that t = 0 is left for clean data."
        )
    if abs(t - (k + 1) / 1000) > 1e-7:
        raise Wrong(f"The network was asked at t = {t:.4g} for k = {k}; wanted is (k + 1) / T = {(k + 1) / 1000:g}.")
    if shown.shape == z.shape and not close(shown, z) and close(shown, sigma * z):
        raise Wrong("z was scaled by sigma(t*). In this convention z ~ N(0, I) is fed as it is, as if it were x_t*.")
    if shown.shape != z.shape or not close(shown, z):
        raise Wrong("The network is to see z itself as x_t*.")
