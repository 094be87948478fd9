"""Exercises with checks that answer: `check(3, answer)` says what is wrong and where to look, `hint(3)` helps.

The texts stand in notebooks/90_exercises.ipynb, worked solutions in notebooks/93_solutions.ipynb.
"""

import functools
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

from dipp_core.classroom import checks
from dipp_core.classroom.checks import scene
from dipp_core.classroom.grading import Open, Wrong
from dipp_core.classroom.hacking import hacking_world, share_kept

__all__ = ["EXERCISES", "OPEN", "RIGHT", "WRONG", "check", "hacking_world", "hint", "scene", "score_card", "share_kept"]


OPEN, WRONG, RIGHT = "not answered yet", "not yet", "right"


@dataclass(frozen=True, repr=False)
class Verdict:
    """What a check says: state is OPEN, WRONG or RIGHT."""

    number: int
    title: str
    state: str
    message: str

    def __repr__(self) -> str:
        text = f"Exercise {self.number}, {self.title}: {self.state}. {self.message}"
        return textwrap.fill(text, 92, break_long_words=False, break_on_hyphens=False)


@dataclass(frozen=True)
class Exercise:
    """A title, the notebook to have read, the names of the answers, and who judges them."""

    title: str
    notebook: str
    answers: tuple[str, ...]
    checker: Callable[..., str]


EXERCISES: dict[int, Exercise] = {
    1: Exercise("one prediction, four names", "01", ("convert",), checks.conversions),
    2: Exercise("three spellings of guidance", "04", ("to_alpha_cfg", "guided"), checks.conventions),
    3: Exercise("the gradient of the divergence", "02", ("gradient",), checks.kl_gradient),
    4: Exercise("the surrogate", "02", ("surrogate",), checks.surrogate),
    5: Exercise("why its value means nothing", "02", ("mean_value", "blind_spot"), checks.surrogate_value),
    6: Exercise("the gradient that was stopped", "05", ("found",), checks.suspects),
    7: Exercise("guidance as a reward", "04", ("reward_of_guidance", "strengths"), checks.guidance_reward),
    8: Exercise("where DI++ lands", "06", ("shifts",), checks.landing),
    9: Exercise("the collapse", "06", ("threshold",), checks.collapse),
    10: Exercise("the critical beta of pseudo-Huber", "06", ("critical_beta",), checks.critical),
    11: Exercise("a new distance", "05", ("value", "slope", "largest_pull"), checks.distance),
    12: Exercise("a reward that reads the prompt", "11", ("east_or_west",), checks.reward),
    13: Exercise("one step, at the right time", "01", ("one_step",), checks.one_step),
    14: Exercise("the assistant's step", "03", ("teach",), checks.teach),
    15: Exercise("a backward pass in stages", "03", ("staged",), checks.staged),
    16: Exercise("the number of assistant steps", "14", ("round_matrix", "calm_steps"), checks.chase),
    17: Exercise("momentum in the assistant", "13", ("momentum_matrix", "critical_beta1"), checks.momentum),
    18: Exercise("tune against reward hacking", "13", ("rule",), checks.tune),
}


def check(number: int, *answers: Any) -> Verdict:
    """Judge the answers to an exercise; never raises for what they do."""
    if number not in EXERCISES:
        return Verdict(number, "unknown", WRONG, f"There are exercises 1 to {max(EXERCISES)}.")
    exercise = EXERCISES[number]
    verdict = functools.partial(Verdict, number, exercise.title)
    if len(answers) != len(exercise.answers):
        return verdict(WRONG, f"This check takes check({number}, {', '.join(exercise.answers)}).")
    try:
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            return verdict(RIGHT, exercise.checker(*answers))
    except Open:
        return verdict(OPEN, f"hint({number}) gives a first hint, hint({number}, 2) a second one.")
    except Wrong as error:
        return verdict(WRONG, str(error))


def score_card(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """One row an exercise: number, title, the notebook it belongs to, and its state."""
    rows = [(v.number, v.title, EXERCISES[v.number].notebook, v.state) for v in verdicts]
    return pd.DataFrame(rows, columns=["exercise", "title", "notebook", "state"])


def hint(number: int, level: int = 1) -> None:
    """Print a hint to an exercise: the first says where to look, the second (level 2) how to begin."""
    if number not in HINTS or level not in (1, 2):
        print(f"There are hints to exercises 1 to {max(HINTS)}, two each: hint(3), hint(3, 2).")
        return
    print(textwrap.fill(HINTS[number][level - 1], 92))


HINTS: dict[int, tuple[str, str]] = {
    1: ("Solve x_t = alpha x0 + sigma eps for x0. The score of N(alpha x0, sigma^2) at x_t is minus a distance over "
        "a variance.",
        "score = -(x_t - alpha x0) / sigma^2, and x_t - alpha x0 is sigma eps. v = alpha eps - sigma x0, with the "
        "x0 just found."),
    2: ("For each spelling, find the n that gives s(c) alone. That n is 'off', and alpha_cfg counts from it.",
        "Write the second spelling as s(c) + (..) [s(c) - s(0)] by adding and subtracting s(c)."),
    3: ("At t both are Gaussian: N(alpha m, alpha^2 l^2 + sigma^2) and N(0, alpha^2 lam + sigma^2). Write their KL.",
        "KL = [P / Q + (alpha m)^2 / Q - 1 + log Q - log P] / 2, P = alpha^2 l^2 + sigma^2. Then dP / dl = 2 "
        "alpha^2 l."),
    4: ("Which of the three tensors may carry gradient? The others are numbers that happen to be computed from it.",
        "The gradient of <constant, xt> is constant^T d xt / d theta. Sum over the last axis, one number a sample."),
    5: ("In one dimension E s(x) x = -1 for the score of x's own law. What is E s_ref(x) x for a linear s_ref?",
        "s_ref(x) = -x / Q, so E s_ref x = -E x^2 / Q, and E x^2 = alpha^2 (m^2 + v) + sigma^2. For a zero, trade "
        "mean for variance."),
    6: ("Write the loss out once, with an argument that says what to detach, and compare its gradient with each "
        "suspect.",
        "s_cond has to be (alpha x0 - xt) / sigma^2 and not -eps / sigma: only then does 'xt' detached leave "
        "something."),
    7: ("r_cfg has the gradient w (s_cond - s_null)^T d xt / d theta. Which surrogate have you seen with such a "
        "gradient?",
        "alpha_cfg = guidance_scale - 1. From s(0): s(c) + a [..] = s(0) + (1 + a) [..]."),
    8: ("At the optimum the pull of the reward, a, equals beta times the mean over levels of the leash's force.",
        "With mean delta, KL_t has the gradient delta / (lam + s^2) in units of the data. Tilted: complete the "
        "square."),
    9: ("The spread v of the optimum solves q / beta + E_w[1 / (lam + s^2) - 1 / (v + s^2)] = 0. When does v reach "
        "0?",
        "Put v = 0 and solve for beta."),
    10: ("With a shift delta the score gap at t is k delta, k = alpha / (alpha^2 lam + sigma^2). What is k d'(k "
         "delta) at most?",
         "d' is below 1, so the whole leash pulls with less than beta E_w k. An optimum needs |a| below that."),
    11: ("The slope is the gradient of the value: the inner derivative of |y|^2 / c^2 is 2 y / c^2. Keep the last "
         "axis.",
         "slope = y / (1 + |y|^2 / c^2), with y.square().sum(-1, keepdim=True). Its size u / (1 + u^2 / c^2) peaks "
         "at u = c."),
    12: ("A smooth bounded function that rises everywhere: tanh, or 2 sigmoid - 1. cond[..., 0] - cond[..., 1] is "
         "+1 or -1.",
         "(cond[..., 0] - cond[..., 1]) * (x0[..., 0] / 2).tanh() has all that is asked."),
    13: ("The network predicts eps at time t* = (k + 1) / T, and is fed z as if it were x_t*.",
         "x0 = (z - sigma eps) / alpha with alpha = sqrt(alphas_cumprod[k])."),
    14: ("Six lines: detach x0, perturb, ask the assistant, squared distance to -eps / sigma, weigh, mean; zero, "
         "backward, step.",
         "schedule.perturb(x0.detach(), t, eps), and schedule.sigma(t)[:, None] to divide a (B, 2) tensor by a (B,) "
         "one."),
    15: ("Make a leaf, x0.detach().requires_grad_(). For each term ask torch.autograd.grad for the gradient at the "
         "leaf only.",
         "total = total + grad; at the end x0.backward(total). A sample's pull is its row of grad times the batch "
         "size."),
    16: ("One assistant step is u <- (1 - ta_lr) u + ta_lr m. What is left of u - m after K of them?",
         "With rho = (1 - ta_lr)^K: det = rho, trace = 1 + rho - gen_lr (1 - rho). Real eigenvalues: trace^2 >= 4 "
         "det."),
    17: ("Write h', u', m' one after the other in terms of the old (m, u, h); their coefficients are the rows.",
         "Search with torch.linalg.eigvals(..).abs().max() by bisection on beta1, or use the determinant condition "
         "of a cubic."),
    18: ("The reward that was maximised always rises. Which column tells you that you have left the data?",
         "Take the smallest beta whose disagreement is at most some multiple of disagreement_on_data; try "
         "multiples."),
}  # fmt: skip
