"""The schema of every section of params.yaml, in reading order: every name with what it may be.

No name has a default: params.yaml holds every number, this file only says which ones are allowed.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, create_model
from pydantic_core import PydanticCustomError

from dipp_core.book.section_types import Section
from dipp_core.description import Description


def whole(least: int, most: int | None = None, **how: Any) -> Any:
    """A whole number from `least` to `most`."""
    return Annotated[int, Field(ge=least, le=most, **how)]


def several(kind: Any, least: int, most: int | None = None, *, distinct: bool = False) -> Any:
    """A list of `least` to `most` values of one kind, in which nothing stands twice if they are to be distinct."""

    def checked(values: list) -> list:
        if distinct and len(set(values)) < len(values):
            raise PydanticCustomError("distinct", "a list in which nothing stands twice")
        return values

    return Annotated[list[kind], Field(min_length=least, max_length=most), AfterValidator(checked)]


def real(least: float, most: float) -> Any:
    """A number from `least` to `most`."""
    return Annotated[float, Field(ge=least, le=most)]


def _among_the_seeds(value: int, info: ValidationInfo) -> int:
    """In the alignment, the seed that is kept is one of those that are run for both architectures."""
    if not all(value in seeds for seeds in info.data.get("seeds", {}).values()):
        raise PydanticCustomError("seed", "one of the seeds of both architectures")
    return value


Count, Steps, Resamples = whole(1), whole(1, 1000), whole(10)
Several = Annotated[int, Field(ge=2)]
Seed = Annotated[int, Field(ge=0)]
KeptSeed = Annotated[Seed, AfterValidator(_among_the_seeds)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Number = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Guidance = Annotated[float, Field(ge=1, allow_inf_nan=False)]  # a scale: 1 is off
AboveOne = Annotated[float, Field(gt=1, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0, lt=1)]
Seeds: Any = several(Seed, 2, 20, distinct=True)
Lists = Literal["own", "coco", "hpsv2", "parti"]
Judges = Literal["image_reward", "hpsv2", "hpsv2.1", "pickscore", "clipscore", "aesthetic"]
Sweeps = Literal[
    "dipp_one",
    "dipp_sigma2",
    "distar_one",
    "distar_sigma2",
    "exact_tilt",
    "best_of_n",
    "reinforce_kl",
    "reward_only",
]
Methods = Literal["dipp", "distar_in", "distar_out", "diff_instruct", "sim", "reward_only"]
Starts = Literal["diff_instruct", "sim", "reference"]
Worlds = Literal["ring", "two moons", "checkerboard", "three islands"]
Profiles = Literal["gpu24", "gpu80", "multi"]


class EvaluatedModel(BaseModel):
    """A row of the table of models (see `draw.Sampler`); `fills`: names in data/reported/reported.csv."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    source: Annotated[str, Field(min_length=1)]
    denoiser: str
    variant: Literal["", "fp16"]
    dtype: Literal["fp32", "fp16", "bf16"]
    size: Annotated[int, Field(ge=0, multiple_of=8)]
    steps: Annotated[int, Field(ge=1, le=1000)]
    guidance: Number
    scheduler: Literal[
        "",
        "DDIMScheduler",
        "DPMSolverMultistepScheduler",
        "EulerDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
        "LCMScheduler",
    ]
    timesteps: list[Annotated[int, Field(ge=0, lt=1000)]]
    status: Literal["verified", "neighbours", "memory", "ours"]
    fills: list[str]


# fmt: off
NUMBERS: dict[str, dict[str, Any]] = {
    "start_here": dict(sigma=Positive, samples=whole(10, 100_000)),
    "scores_and_one_step_generators": dict(
        schedules_shown=several(Literal["vp_continuous", "sd15", "pixart", "edm"], 1), hidden=Count,
        seeds=whole(2, 64), batch=Count, steps=Count, lr=Positive, test_points=whole(100)),
    "integral_kl": dict(
        levels=Several, whitened=whole(20), term_samples=whole(1000), mc_sizes=several(whole(1000), 2),
        mc_repeats=several(Count, 2), descent_steps=whole(100), lr=Positive),
    "aligning_with_a_reward": dict(
        levels=Several, whitened=whole(8), descent_steps=Count, hidden=Count, batch=Count, gen_lr=Positive,
        ta_lr=Positive, pretrain_steps=Count, distil_steps=Count, align_steps=whole(20), align_batch=Count,
        family_steps=Count, alphas=several(Number, 2, 6), huber_c=Positive, test_points=whole(100)),
    "guidance_is_a_reward": dict(alpha_cfg=Positive, levels=Several, samples=whole(10)),
    "score_divergence": dict(huber_c=Positive, alpha_cfg=Positive, levels=Several, repeats=Count, draws=whole(10_000)),
    "where_is_the_optimum": dict(
        levels=Several, beta=several(Positive, 1), descent_steps=whole(10), huber_c=Positive,
        huber_steps=whole(10)),
    "distillation_2d": dict(
        hidden=Count, seeds=whole(2, 64), batch=Count, steps=whole(20), gen_lr=Positive, ta_lr=Positive,
        huber_c=Positive, sigma_shown=real(0.1, 3), frames=whole(4, 100), other_steps=Count,
        test_points=whole(1000)),
    "alignment_2d": dict(
        beta=several(Positive, 1), beta_one=several(Positive, 1), batch=Count, batch_one=Count, batch_small=Count,
        batch_threshold=Count, steps=Count, steps_one=Count, gen_lr=Positive, ta_lr=Positive,
        tilt_beta=several(Positive, 1), alpha_cfg=several(Number, 1),
        threshold_radii=several(Positive, 1, 3, distinct=True), threshold_points=whole(3), threshold_seeds=Several,
        threshold_looks=several(Count, 1), threshold_c=Positive, hidden=Count, distil_batch=Count, distil_steps=Count,
        distil_gen_lr=Positive, huber_c=Positive, star_beta=Positive, star_alpha_cfg=Number, star_steps=Count,
        test_points=whole(500), kept_points=Count),
    "pareto_2d": dict(
        methods=several(Sweeps, 1), seeds=Several, hidden=Count, distil_batch=Count, distil_steps=Count,
        distil_gen_lr=Positive, frontier_points=whole(3), batch=Count, steps=Count, gen_lr=Positive, ta_lr=Positive,
        dipp_one=several(Positive, 2), dipp_sigma2=several(Positive, 2), distar_one=several(Positive, 2),
        distar_sigma2=several(Positive, 2), huber_c=Positive, kl_weight=several(Positive, 1), policy_std=Positive,
        policy_steps=Count, stops=several(Count, 1), best_of=several(Several, 1), guided_beta=several(Positive, 1),
        alpha_cfg=several(Positive, 1), guided_seeds=Count, test_points=whole(500), kept_points=Count),
    "reward_hacking_2d": dict(
        favourite=several(Finite, 2, 2), reward_hidden=Count, pairs=Count, reward_steps=Count,
        beta_one=several(Positive, 3), beta_sigma2=several(Positive, 3), batch=Count, steps=whole(10),
        gen_lr=Positive, ta_lr=Positive, watch_every=Count, only_steps=whole(4), extent=real(4, 20),
        test_points=whole(100), plate_steps=whole(10), plate_beta=Positive, slow_ta_lr=Positive,
        momenta=several(Share, 1, 2), high_gen_lr=Positive, low_huber_beta=Positive, huber_c=Positive),
    "ablations_2d": dict(
        beta=Positive, batch=whole(4), steps=whole(12), gen_lr=Positive, ta_lr=Positive, workers=whole(1, 64),
        more_ta_steps=several(Several, 1, 4), slower=Rate, faster=AboveOne, stale=several(Several, 2, 2),
        momentum=Rate, clip=Positive, ema=Rate, alpha_cfg=several(Positive, 1, 4), levels=Several,
        solver_steps=Count, looks=whole(4), look_points=whole(10), test_points=whole(100), matters=Positive,
        breaks=AboveOne),
    "miniature_world": dict(
        size=Literal["tiny", "mini"], lr=Positive, pool=whole(100), classifier_steps=whole(20),
        classifier_batch=whole(8), vae_steps=whole(20), vae_batch=whole(4), text_steps=whole(20),
        text_batch=whole(8), pairs=whole(100), reward_steps=whole(20), reward_batch=whole(8),
        test_pictures=whole(60), ascent_pictures=whole(12, multiple_of=4), ascent_steps=whole(6),
        pixel_step=Positive, latent_step=Positive),
    "reference": dict(
        pictures=whole(100), batch=Several,
        steps=Annotated[dict[Literal["unet", "dit"], Several], Field(min_length=2)], lr=Positive,
        muon_lr=Annotated[dict[Literal["unet", "dit"], Number], Field(min_length=2)], warmup=Count,
        flat=Share, clip=Positive, drop=Rate, ema=Share, save_steps=Count, watch_steps=Count, watch_each=Count,
        levels=whole(2, 12), level_pictures=Several, sampler_steps=Steps, sampler_batch=Count, pipeline_steps=Steps,
        guidance=several(Guidance, 2, 8), each=Several, data_each=whole(4), usual_guidance=Guidance,
        robust_each=Several, t_star=whole(1, 999), resamples=Resamples),
    "distillation": dict(
        pairs=whole(8), regression_batch=Several, regression_steps=whole(6), regression_lr=Positive, batch=Several,
        steps=Several, sim_steps=Several, ta_steps=Count, gen_lr=Positive, ta_lr=Positive, flat=Share, ema=Share,
        t_star=whole(1, 999), alpha_cfg=Number, save_steps=Count, watch_steps=Count, watch_each=Several,
        kl_low=Annotated[float, Field(gt=0, lt=0.9)], kl_levels=Several, sampler_steps=Steps,
        few_steps=several(Steps, 1, 6), other_guidance=several(Guidance, 0, 6), sampler_batch=Count, each=Several,
        data_each=whole(4), robust_each=Several, resamples=Resamples),
    "alignment": dict(
        batch=Several, steps=Several, gen_lr=Positive, ta_lr=Positive, flat=Share, ema=Share,
        pull=Positive, probe_steps=Count,
        seeds=Annotated[dict[Literal["unet", "dit"], Seeds], Field(min_length=2)],
        other_starts=several(Starts, 0, distinct=True), kept_seed=KeptSeed, watch_steps=Count,
        watch_each=Several, columns=whole(2, 14), each=Several, robust_each=Several, data_each=whole(4),
        kl_pictures=Several, kl_nodes=Several, resamples=Resamples),
    "miniature_results": dict(
        sampler_steps=Steps, guidance=several(Guidance, 0, 4, distinct=True),
        few_steps=several(Steps, 0, 4, distinct=True), columns=whole(2, 14), resamples=Resamples),
    "sd15": dict(profiles_shown=several(Profiles, 1)),
    "pixart": dict(profiles_shown=several(Profiles, 1)),
    "evaluation": dict(
        lists=several(Lists, 1, distinct=True), per_group=whole(0), each=Several, batch=Count,
        device=Literal["auto", "cpu", "cuda", "mps"], on_cpu=bool,
        judges=Annotated[dict[Judges, str], Field(min_length=1)],
        models=Annotated[dict[str, EvaluatedModel], Field(min_length=1)], fid_list=Lists, fid_reference=str,
        resamples=Resamples),
    "paper_and_here": dict(identity=Positive, near=Positive, accuracy=Share, share=Share, settled=Positive),
    "exercises": dict(world=Seed),
    "playground": dict(
        world=Worlds, method=Methods, reward=Literal["north", "east", "a hill at (0, 2)"], beta=Positive,
        alpha_cfg=Number, betas=several(Positive, 1), strengths=several(Number, 1), batch=Count, steps=whole(10),
        gen_lr=Positive, ta_lr=Positive, huber_c=Positive, looks=whole(2, 7), family_steps=Count,
        points=whole(10, 20_000)),
    "your_own_preferences": dict(
        voter=Literal["you", "simulated"], kind=Literal["unet", "dit"], pairs=whole(4, 1000), least=Several,
        second_pairs=whole(2, 1000), likes=Literal["warm", "vivid", "bright"], sharpness=Number, tie=Number,
        studies=Count, ridge=Positive, curve_pairs=whole(8), curve_votes=several(Several, 1), curve_repeats=Count,
        batch=Several, steps=Several, alpha_rew=Positive, gen_lr=Positive, ta_lr=Positive, flat=Share, ema=Share,
        each=Several, columns=whole(2, 14)),
    "solutions": dict(
        gen_lr=Rate, ta_lr=Rate, rounds=whole(2, 1000), around=Annotated[float, Field(gt=0, lt=0.5)],
        limits=several(Positive, 1, 4), nats=several(Positive, 1, 4), worlds=whole(10, 1000)),
}
# fmt: on


def _schema(name: str, fields: dict[str, Any]) -> type[Section]:
    """'integral_kl' -> the class IntegralKl, which is how a notebook prints its section."""
    bases: Any = (Description, Section) if name in ("sd15", "pixart") else Section
    title = "".join(part.capitalize() for part in name.split("_"))
    required: Any = {key: (kind, ...) for key, kind in fields.items()}
    return create_model(title, __base__=bases, **required)


SECTIONS: dict[str, type[Section]] = {name: _schema(name, fields) for name, fields in NUMBERS.items()}
