"""Checks of the exercises on the dynamics of training: K_TA, momentum, and the choice of beta against hacking."""

import functools
import math
from typing import Any

import torch
from torch import Tensor

from dipp_core.classroom.exercises import hacking
from dipp_core.classroom.exercises.grading import Wrong, ask, settle, tensor

KEPT_WANTED = 0.7
WORLDS = 60


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
