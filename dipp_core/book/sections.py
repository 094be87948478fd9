"""The schema of every section of params.yaml: one class a notebook, in reading order.

No field has a default: params.yaml holds every number, this file only says which ones are allowed.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from dipp_core.book.section_types import (
    Count,
    Distinct,
    Guidance,
    Number,
    Positive,
    Rate,
    Resamples,
    Section,
    Seed,
    Several,
    Share,
    Steps,
)
from dipp_core.description import Description

Profiles = Annotated[list[Literal["gpu24", "gpu80", "multi"]], Field(min_length=1)]
Lists = Literal["own", "coco", "hpsv2", "parti"]
Judges = Literal["image_reward", "hpsv2", "hpsv2.1", "pickscore", "clipscore", "aesthetic"]
Schedulers = Literal[
    "",
    "DDIMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "LCMScheduler",
]


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
    levels: Several
    whitened: Annotated[int, Field(ge=20)]
    term_samples: Annotated[int, Field(ge=1000)]
    mc_sizes: Annotated[list[Annotated[int, Field(ge=1000)]], Field(min_length=2)]
    mc_repeats: Annotated[list[Count], Field(min_length=2)]
    descent_steps: Annotated[int, Field(ge=100)]
    lr: Positive


class AligningWithAReward(Section):
    levels: Several
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
    alphas: Annotated[list[Number], Field(min_length=2, max_length=6)]
    huber_c: Positive
    test_points: Annotated[int, Field(ge=100)]


class GuidanceIsAReward(Section):
    alpha_cfg: Positive
    levels: Several
    samples: Annotated[int, Field(ge=10)]


class ScoreDivergence(Section):
    huber_c: Positive
    alpha_cfg: Positive
    levels: Several
    repeats: Count
    draws: Annotated[int, Field(ge=10_000)]


class WhereIsTheOptimum(Section):
    levels: Several
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
    best_of: Annotated[list[Several], Field(min_length=1)]
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
    momenta: Annotated[list[Share], Field(min_length=1, max_length=2)]
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
    more_ta_steps: Annotated[list[Several], Field(min_length=1, max_length=4)]
    slower: Rate
    faster: Annotated[float, Field(gt=1, allow_inf_nan=False)]
    stale: Annotated[list[Several], Field(min_length=2, max_length=2)]
    momentum: Rate
    clip: Positive
    ema: Rate
    alpha_cfg: Annotated[list[Positive], Field(min_length=1, max_length=4)]
    levels: Several
    solver_steps: Count
    looks: Annotated[int, Field(ge=4)]
    look_points: Annotated[int, Field(ge=10)]
    test_points: Annotated[int, Field(ge=100)]
    matters: Positive
    breaks: Annotated[float, Field(gt=1, allow_inf_nan=False)]


class MiniatureWorld(Section):
    size: Literal["tiny", "mini"]
    lr: Positive
    pool: Annotated[int, Field(ge=100)]
    classifier_steps: Annotated[int, Field(ge=20)]
    classifier_batch: Annotated[int, Field(ge=8)]
    vae_steps: Annotated[int, Field(ge=20)]
    vae_batch: Annotated[int, Field(ge=4)]
    text_steps: Annotated[int, Field(ge=20)]
    text_batch: Annotated[int, Field(ge=8)]
    pairs: Annotated[int, Field(ge=100)]
    reward_steps: Annotated[int, Field(ge=20)]
    reward_batch: Annotated[int, Field(ge=8)]
    test_pictures: Annotated[int, Field(ge=60)]
    ascent_pictures: Annotated[int, Field(ge=12, multiple_of=4)]
    ascent_steps: Annotated[int, Field(ge=6)]
    pixel_step: Positive
    latent_step: Positive


class Reference(Section):
    pictures: Annotated[int, Field(ge=100)]
    batch: Several
    steps: Annotated[dict[Literal["unet", "dit"], Several], Field(min_length=2)]
    lr: Positive
    warmup: Count
    flat: Share
    clip: Positive
    drop: Rate
    ema: Share
    save_steps: Count
    watch_steps: Count
    watch_each: Count
    levels: Annotated[int, Field(ge=2, le=12)]
    level_pictures: Several
    sampler_steps: Steps
    sampler_batch: Count
    pipeline_steps: Steps
    guidance: Annotated[list[Guidance], Field(min_length=2, max_length=8)]
    each: Several
    data_each: Annotated[int, Field(ge=4)]
    usual_guidance: Guidance
    robust_each: Several
    t_star: Annotated[int, Field(ge=1, lt=1000)]
    resamples: Resamples


class Distillation(Section):
    batch: Several
    steps: Several
    sim_steps: Several
    gen_lr: Positive
    ta_lr: Positive
    flat: Share
    ema: Share
    t_star: Annotated[int, Field(ge=1, lt=1000)]
    alpha_cfg: Number
    save_steps: Count
    watch_steps: Count
    watch_each: Several
    kl_low: Annotated[float, Field(gt=0, lt=0.9)]
    kl_levels: Several
    sampler_steps: Steps
    few_steps: Annotated[list[Steps], Field(min_length=1, max_length=6)]
    other_guidance: Annotated[list[Guidance], Field(max_length=6)]
    sampler_batch: Count
    each: Several
    data_each: Annotated[int, Field(ge=4)]
    robust_each: Several
    resamples: Resamples


class Alignment(Section):
    batch: Several
    steps: Several
    gen_lr: Positive
    ta_lr: Positive
    flat: Share
    ema: Share
    alpha_dipp: Annotated[list[Positive], Field(min_length=1, max_length=8), Distinct]
    alpha_distar: Annotated[list[Positive], Field(min_length=1, max_length=8), Distinct]
    seeds: Annotated[list[Seed], Field(min_length=1, max_length=20), Distinct]
    choice_seed: Seed
    kept_seed: Seed
    watch_steps: Count
    watch_each: Several
    validation_each: Several
    each: Several
    robust_each: Several
    data_each: Annotated[int, Field(ge=4)]
    kl_pictures: Several
    kl_nodes: Several
    resamples: Resamples

    @field_validator("choice_seed", "kept_seed")
    @classmethod
    def _against_the_seeds(cls, value: int, info: ValidationInfo) -> int:
        wanted = info.field_name == "kept_seed"
        if "seeds" in info.data and (value in info.data["seeds"]) != wanted:
            raise PydanticCustomError("seed", "one of seeds" if wanted else "none of seeds")
        return value


class MiniatureResults(Section):
    sampler_steps: Steps
    guidance: Annotated[list[Guidance], Field(min_length=1, max_length=4)]
    columns: Annotated[int, Field(ge=2, le=14)]
    resamples: Resamples


class Sd15(Description, Section):
    profiles_shown: Profiles


class Pixart(Description, Section):
    profiles_shown: Profiles


class EvaluatedModel(BaseModel):
    """A row of the table of models (see `pipelines.Sampler`); `fills`: names in data/reported/reported.csv."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    source: Annotated[str, Field(min_length=1)]
    denoiser: str
    variant: Literal["", "fp16"]
    dtype: Literal["fp32", "fp16", "bf16"]
    size: Annotated[int, Field(ge=0, multiple_of=8)]
    steps: Steps
    guidance: Number
    scheduler: Schedulers
    timesteps: list[Annotated[int, Field(ge=0, lt=1000)]]
    status: Literal["verified", "neighbours", "memory", "ours"]
    fills: list[str]


class Evaluation(Section):
    lists: Annotated[list[Lists], Field(min_length=1), Distinct]
    per_group: Annotated[int, Field(ge=0)]
    each: Several
    batch: Count
    device: Literal["auto", "cpu", "cuda", "mps"]
    on_cpu: bool
    judges: Annotated[dict[Judges, str], Field(min_length=1)]
    models: Annotated[dict[str, EvaluatedModel], Field(min_length=1)]
    fid_list: Lists
    fid_reference: str
    resamples: Resamples


class PaperAndHere(Section):
    identity: Positive
    near: Positive
    accuracy: Share
    share: Share


class Exercises(Section):
    world: Seed


class Playground(Section):
    world: Literal["ring", "two moons", "checkerboard", "three islands"]
    method: Literal["dipp", "distar_in", "distar_out", "diff_instruct", "sim", "reward_only"]
    reward: Literal["north", "east", "a hill at (0, 2)"]
    beta: Positive
    alpha_cfg: Number
    betas: Annotated[list[Positive], Field(min_length=1)]
    strengths: Annotated[list[Number], Field(min_length=1)]
    batch: Count
    steps: Annotated[int, Field(ge=10)]
    gen_lr: Positive
    ta_lr: Positive
    huber_c: Positive
    looks: Annotated[int, Field(ge=2, le=7)]
    family_steps: Count
    points: Annotated[int, Field(ge=10, le=20_000)]


class YourOwnPreferences(Section):
    voter: Literal["you", "simulated"]
    kind: Literal["unet", "dit"]
    pairs: Annotated[int, Field(ge=4, le=1000)]
    least: Several
    second_pairs: Annotated[int, Field(ge=2, le=1000)]
    likes: Literal["warm", "vivid", "bright"]
    sharpness: Number
    tie: Number
    ridge: Positive
    curve_pairs: Annotated[int, Field(ge=8)]
    curve_votes: Annotated[list[Several], Field(min_length=1)]
    curve_repeats: Count
    batch: Several
    steps: Several
    alpha_rew: Positive
    gen_lr: Positive
    ta_lr: Positive
    flat: Share
    ema: Share
    each: Several
    columns: Annotated[int, Field(ge=2, le=14)]


class Solutions(Section):
    gen_lr: Rate
    ta_lr: Rate
    rounds: Annotated[int, Field(ge=2, le=1000)]
    around: Annotated[float, Field(gt=0, lt=0.5)]
    limits: Annotated[list[Positive], Field(min_length=1, max_length=4)]
    nats: Annotated[list[Positive], Field(min_length=1, max_length=4)]
    worlds: Annotated[int, Field(ge=10, le=1000)]


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
