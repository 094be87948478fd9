"""Exercises with checks that answer: `check(3, answer)` says what is wrong and where to look, `hint(3)` helps.

The texts stand in notebooks/90_exercises.ipynb, worked solutions in notebooks/93_solutions.ipynb.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from dipp_core.classroom.exercises import (
    checks_break,
    checks_build,
    checks_derive,
    checks_optima,
    checks_steps,
    checks_train,
)
from dipp_core.classroom.exercises.checks_break import scene
from dipp_core.classroom.exercises.grading import OPEN, RIGHT, WRONG, Verdict, judge
from dipp_core.classroom.exercises.hacking import hacking_world, share_kept
from dipp_core.classroom.exercises.hints import hint

__all__ = ["EXERCISES", "OPEN", "RIGHT", "WRONG", "check", "hacking_world", "hint", "scene", "score_card", "share_kept"]


@dataclass(frozen=True)
class Exercise:
    """A title, the notebook to have read, the names of the answers, and who judges them."""

    title: str
    notebook: str
    answers: tuple[str, ...]
    checker: Callable[..., str]


EXERCISES: dict[int, Exercise] = {
    1: Exercise("one prediction, four names", "01", ("convert",), checks_derive.conversions),
    2: Exercise("three spellings of guidance", "04", ("to_alpha_cfg", "guided"), checks_derive.conventions),
    3: Exercise("the gradient of the divergence", "02", ("gradient",), checks_derive.kl_gradient),
    4: Exercise("the surrogate", "02", ("surrogate",), checks_break.surrogate),
    5: Exercise("why its value means nothing", "02", ("mean_value", "blind_spot"), checks_derive.surrogate_value),
    6: Exercise("the gradient that was stopped", "05", ("found",), checks_break.suspects),
    7: Exercise("guidance as a reward", "04", ("reward_of_guidance", "strengths"), checks_break.guidance_reward),
    8: Exercise("where DI++ lands", "06", ("shifts",), checks_optima.landing),
    9: Exercise("the collapse", "06", ("threshold",), checks_optima.collapse),
    10: Exercise("the critical beta of pseudo-Huber", "06", ("critical_beta",), checks_optima.critical),
    11: Exercise("a new distance", "05", ("value", "slope", "largest_pull"), checks_build.distance),
    12: Exercise("a reward that reads the prompt", "11", ("east_or_west",), checks_build.reward),
    13: Exercise("one step, at the right time", "01", ("one_step",), checks_build.one_step),
    14: Exercise("the assistant's step", "03", ("teach",), checks_steps.teach),
    15: Exercise("a backward pass in stages", "03", ("staged",), checks_steps.staged),
    16: Exercise("the number of assistant steps", "14", ("round_matrix", "calm_steps"), checks_train.chase),
    17: Exercise("momentum in the assistant", "13", ("momentum_matrix", "critical_beta1"), checks_train.momentum),
    18: Exercise("tune against reward hacking", "13", ("rule",), checks_train.tune),
}


def check(number: int, *answers: Any) -> Verdict:
    """Judge the answers to an exercise; never raises for what they do."""
    if number not in EXERCISES:
        return Verdict(number, "unknown", WRONG, f"There are exercises 1 to {max(EXERCISES)}.")
    exercise = EXERCISES[number]
    return judge(number, exercise.title, exercise.checker, exercise.answers, answers)


def score_card(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """One row an exercise: number, title, the notebook it belongs to, and its state."""
    rows = [(v.number, v.title, EXERCISES[v.number].notebook, v.state) for v in verdicts]
    return pd.DataFrame(rows, columns=["exercise", "title", "notebook", "state"])
