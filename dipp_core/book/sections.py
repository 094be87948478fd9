"""The schema of every section of params.yaml: one class a notebook, in reading order.

No field has a default: params.yaml holds every number, this file only says which ones are allowed.
"""

from typing import Annotated, Literal

from pydantic import Field

from dipp_core.book.config import Section
from dipp_core.book.section_types import Count, Positive
from dipp_core.book.sections_book import Exercises, PaperAndHere, Playground, Solutions, YourOwnPreferences
from dipp_core.book.sections_full import Evaluation, Pixart, Sd15
from dipp_core.book.sections_miniature import Alignment, Distillation, MiniatureResults, MiniatureWorld, Reference


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


class Alignment2d(Section):
    beta: Annotated[list[Positive], Field(min_length=1)]
    beta_one: Annotated[list[Positive], Field(min_length=1)]
    batch: Count
    batch_one: Count
    batch_small: Count
    batch_threshold: Count
    steps: Count
    steps_one: Count
    gen_lr: Positive
    ta_lr: Positive
    tilt_beta: Annotated[list[Positive], Field(min_length=1)]
    alpha_cfg: Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=1)]
    threshold_ratios: Annotated[list[Positive], Field(min_length=2)]
    threshold_c: Positive
    threshold_steps: Count
    huber_c: Positive
    star_beta: Positive
    star_alpha_cfg: Annotated[float, Field(ge=0)]
    star_steps: Count
    test_points: Annotated[int, Field(ge=500)]
    kept_points: Count


class Pareto2d(Section):
    methods: Annotated[
        list[Literal["dipp_one", "dipp_sigma2", "distar", "exact_tilt", "best_of_n", "reinforce_kl", "reward_only"]],
        Field(min_length=1),
    ]
    frontier_points: Annotated[int, Field(ge=3)]
    batch: Count
    steps: Count
    gen_lr: Positive
    ta_lr: Positive
    star_beta: Annotated[list[Positive], Field(min_length=1)]
    huber_c: Positive
    kl_weight: Annotated[list[Positive], Field(min_length=1)]
    policy_std: Positive
    policy_steps: Count
    stops: Annotated[list[Count], Field(min_length=1)]
    best_of: Annotated[list[Annotated[int, Field(ge=2)]], Field(min_length=1)]
    guided_beta: Annotated[list[Positive], Field(min_length=1)]
    alpha_cfg: Annotated[list[Positive], Field(min_length=1)]
    guided_seeds: Count
    test_points: Annotated[int, Field(ge=500)]
    kept_points: Count


class RewardHacking2d(Section):
    favourite: Annotated[list[Annotated[float, Field(allow_inf_nan=False)]], Field(min_length=2, max_length=2)]
    reward_hidden: Count
    pairs: Count
    reward_steps: Count
    beta_one: Annotated[list[Positive], Field(min_length=3)]
    beta_sigma2: Annotated[list[Positive], Field(min_length=3)]
    batch: Count
    steps: Annotated[int, Field(ge=10)]
    gen_lr: Positive
    ta_lr: Positive
    watch_every: Count
    only_steps: Annotated[int, Field(ge=4)]
    extent: Annotated[float, Field(ge=4, le=20)]
    test_points: Annotated[int, Field(ge=100)]
    plate_steps: Annotated[int, Field(ge=10)]
    plate_beta: Positive
    slow_ta_lr: Positive
    momenta: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=1, max_length=2)]
    high_gen_lr: Positive
    low_huber_beta: Positive
    huber_c: Positive


class Ablations2d(Section):
    beta: Positive
    batch: Annotated[int, Field(ge=4)]
    steps: Annotated[int, Field(ge=12)]
    gen_lr: Positive
    ta_lr: Positive
    workers: Annotated[int, Field(ge=1, le=64)]
    more_ta_steps: Annotated[list[Annotated[int, Field(ge=2)]], Field(min_length=1, max_length=4)]
    slower: Annotated[float, Field(gt=0, lt=1)]
    faster: Annotated[float, Field(gt=1, allow_inf_nan=False)]
    stale: Annotated[list[Annotated[int, Field(ge=2)]], Field(min_length=2, max_length=2)]
    momentum: Annotated[float, Field(gt=0, lt=1)]
    clip: Positive
    ema: Annotated[float, Field(gt=0, lt=1)]
    alpha_cfg: Annotated[list[Positive], Field(min_length=1, max_length=4)]
    levels: Annotated[int, Field(ge=2)]
    solver_steps: Count
    looks: Annotated[int, Field(ge=4)]
    look_points: Annotated[int, Field(ge=10)]
    test_points: Annotated[int, Field(ge=100)]
    matters: Positive
    breaks: Annotated[float, Field(gt=1, allow_inf_nan=False)]


SECTIONS: dict[str, type[Section]] = {
    "start_here": StartHere,
    "scores_and_one_step_generators": ScoresAndOneStepGenerators,
    "integral_kl": IntegralKl,
    "aligning_with_a_reward": AligningWithAReward,
    "guidance_is_a_reward": GuidanceIsAReward,
    "score_divergence": ScoreDivergence,
    "where_is_the_optimum": WhereIsTheOptimum,
    "distillation_2d": Distillation2d,
    "alignment_2d": Alignment2d,
    "pareto_2d": Pareto2d,
    "reward_hacking_2d": RewardHacking2d,
    "ablations_2d": Ablations2d,
    "miniature_world": MiniatureWorld,
    "reference": Reference,
    "distillation": Distillation,
    "alignment": Alignment,
    "miniature_results": MiniatureResults,
    "sd15": Sd15,
    "pixart": Pixart,
    "evaluation": Evaluation,
    "paper_and_here": PaperAndHere,
    "exercises": Exercises,
    "playground": Playground,
    "your_own_preferences": YourOwnPreferences,
    "solutions": Solutions,
}
