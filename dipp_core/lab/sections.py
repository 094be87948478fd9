"""The schema of every section of params.yaml: one class a notebook, in reading order.

No field has a default: params.yaml holds every number, this file only says which ones are allowed.
"""

from typing import Annotated, Literal

from pydantic import Field

from dipp_core.lab.config import Section

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class StartHere(Section):
    sigma: Positive
    samples: Annotated[int, Field(ge=10, le=100_000)]


class ScoresAndOneStepGenerators(Section):
    schedules_shown: Annotated[list[Literal["vp_continuous", "sd15", "pixart", "edm"]], Field(min_length=1)]
    hidden: Count
    seeds: Annotated[int, Field(ge=2, le=64)]
    batch: Count
    steps: Count
    lr: Positive
    test_points: Annotated[int, Field(ge=100)]


class IntegralKl(Section):
    levels: Annotated[int, Field(ge=2)]
    whitened: Annotated[int, Field(ge=20)]
    term_samples: Annotated[int, Field(ge=1000)]
    mc_sizes: Annotated[list[Annotated[int, Field(ge=1000)]], Field(min_length=2)]
    mc_repeats: Annotated[list[Count], Field(min_length=2)]
    descent_steps: Annotated[int, Field(ge=100)]
    lr: Positive


class AligningWithAReward(Section):
    levels: Annotated[int, Field(ge=2)]
    whitened: Annotated[int, Field(ge=8)]
    descent_steps: Count
    hidden: Count
    batch: Count
    gen_lr: Positive
    ta_lr: Positive
    pretrain_steps: Count
    distil_steps: Count
    align_steps: Annotated[int, Field(ge=20)]
    align_batch: Count
    family_steps: Count
    alphas: Annotated[list[Annotated[float, Field(ge=0, allow_inf_nan=False)]], Field(min_length=2, max_length=6)]
    huber_c: Positive
    test_points: Annotated[int, Field(ge=100)]


class GuidanceIsAReward(Section):
    alpha_cfg: Positive
    levels: Annotated[int, Field(ge=2)]
    samples: Annotated[int, Field(ge=10)]


class ScoreDivergence(Section):
    huber_c: Positive
    alpha_cfg: Positive
    levels: Annotated[int, Field(ge=2)]
    repeats: Count
    draws: Annotated[int, Field(ge=10_000)]


class WhereIsTheOptimum(Section):
    levels: Annotated[int, Field(ge=2)]
    beta: Annotated[list[Positive], Field(min_length=1)]
    descent_steps: Annotated[int, Field(ge=10)]
    huber_c: Positive
    huber_steps: Annotated[int, Field(ge=10)]


class Distillation2d(Section):
    hidden: Count
    seeds: Annotated[int, Field(ge=2, le=64)]
    batch: Count
    steps: Annotated[int, Field(ge=20)]
    gen_lr: Positive
    ta_lr: Positive
    huber_c: Positive
    sigma_shown: Annotated[float, Field(ge=0.1, le=3)]
    frames: Annotated[int, Field(ge=4, le=100)]
    other_steps: Count
    test_points: Annotated[int, Field(ge=1000)]


SECTIONS: dict[str, type[Section]] = {
    "start_here": StartHere,
    "scores_and_one_step_generators": ScoresAndOneStepGenerators,
    "integral_kl": IntegralKl,
    "aligning_with_a_reward": AligningWithAReward,
    "guidance_is_a_reward": GuidanceIsAReward,
    "score_divergence": ScoreDivergence,
    "where_is_the_optimum": WhereIsTheOptimum,
    "distillation_2d": Distillation2d,
}
