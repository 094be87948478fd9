"""The schema of the sections of the miniature's notebooks (see `sections`)."""

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from dipp_core.book.config import Section
from dipp_core.book.section_types import Count, Distinct, Positive, Seed


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
    batch: Annotated[int, Field(ge=2)]
    steps: Annotated[dict[Literal["unet", "dit"], Annotated[int, Field(ge=2)]], Field(min_length=2)]
    lr: Positive
    warmup: Count
    flat: Annotated[float, Field(ge=0, lt=1)]
    clip: Positive
    drop: Annotated[float, Field(gt=0, lt=1)]
    ema: Annotated[float, Field(ge=0, lt=1)]
    save_steps: Count
    watch_steps: Count
    watch_each: Count
    levels: Annotated[int, Field(ge=2, le=12)]
    level_pictures: Annotated[int, Field(ge=2)]
    sampler_steps: Annotated[int, Field(ge=1, le=1000)]
    sampler_batch: Count
    pipeline_steps: Annotated[int, Field(ge=1, le=1000)]
    guidance: Annotated[list[Annotated[float, Field(ge=1, allow_inf_nan=False)]], Field(min_length=2, max_length=8)]
    each: Annotated[int, Field(ge=2)]
    data_each: Annotated[int, Field(ge=4)]
    usual_guidance: Annotated[float, Field(ge=1, allow_inf_nan=False)]
    robust_each: Annotated[int, Field(ge=2)]
    t_star: Annotated[int, Field(ge=1, lt=1000)]
    resamples: Annotated[int, Field(ge=10)]


class Distillation(Section):
    batch: Annotated[int, Field(ge=2)]
    steps: Annotated[int, Field(ge=2)]
    sim_steps: Annotated[int, Field(ge=2)]
    gen_lr: Positive
    ta_lr: Positive
    flat: Annotated[float, Field(ge=0, lt=1)]
    ema: Annotated[float, Field(ge=0, lt=1)]
    t_star: Annotated[int, Field(ge=1, lt=1000)]
    alpha_cfg: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    save_steps: Count
    watch_steps: Count
    watch_each: Annotated[int, Field(ge=2)]
    kl_low: Annotated[float, Field(gt=0, lt=0.9)]
    kl_levels: Annotated[int, Field(ge=2)]
    sampler_steps: Annotated[int, Field(ge=1, le=1000)]
    few_steps: Annotated[list[Annotated[int, Field(ge=1, le=1000)]], Field(min_length=1, max_length=6)]
    other_guidance: Annotated[list[Annotated[float, Field(ge=1, allow_inf_nan=False)]], Field(max_length=6)]
    sampler_batch: Count
    each: Annotated[int, Field(ge=2)]
    data_each: Annotated[int, Field(ge=4)]
    robust_each: Annotated[int, Field(ge=2)]
    resamples: Annotated[int, Field(ge=10)]


class Alignment(Section):
    batch: Annotated[int, Field(ge=2)]
    steps: Annotated[int, Field(ge=2)]
    gen_lr: Positive
    ta_lr: Positive
    flat: Annotated[float, Field(ge=0, lt=1)]
    ema: Annotated[float, Field(ge=0, lt=1)]
    alpha_dipp: Annotated[list[Positive], Field(min_length=1, max_length=8), Distinct]
    alpha_distar: Annotated[list[Positive], Field(min_length=1, max_length=8), Distinct]
    seeds: Annotated[list[Seed], Field(min_length=1, max_length=20), Distinct]
    choice_seed: Seed
    kept_seed: Seed
    watch_steps: Count
    watch_each: Annotated[int, Field(ge=2)]
    validation_each: Annotated[int, Field(ge=2)]
    each: Annotated[int, Field(ge=2)]
    robust_each: Annotated[int, Field(ge=2)]
    data_each: Annotated[int, Field(ge=4)]
    kl_pictures: Annotated[int, Field(ge=2)]
    kl_nodes: Annotated[int, Field(ge=2)]
    resamples: Annotated[int, Field(ge=10)]

    @field_validator("choice_seed", "kept_seed")
    @classmethod
    def _against_the_seeds(cls, value: int, info: ValidationInfo) -> int:
        wanted = info.field_name == "kept_seed"
        if "seeds" in info.data and (value in info.data["seeds"]) != wanted:
            raise PydanticCustomError("seed", "one of seeds" if wanted else "none of seeds")
        return value


class MiniatureResults(Section):
    sampler_steps: Annotated[int, Field(ge=1, le=1000)]
    guidance: Annotated[list[Annotated[float, Field(ge=1, allow_inf_nan=False)]], Field(min_length=1, max_length=4)]
    columns: Annotated[int, Field(ge=2, le=14)]
    resamples: Annotated[int, Field(ge=10)]
