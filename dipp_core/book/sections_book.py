"""The schema of the sections of the book's last notebooks, 41 and from 90 on (see `sections`)."""

from typing import Annotated, Literal

from pydantic import Field

from dipp_core.book.config import Section
from dipp_core.book.section_types import Count, Positive, Seed

Rate = Annotated[float, Field(gt=0, lt=1)]


class PaperAndHere(Section):
    identity: Positive
    near: Positive
    accuracy: Annotated[float, Field(ge=0, lt=1)]
    share: Annotated[float, Field(ge=0, lt=1)]


class Exercises(Section):
    world: Seed


class Playground(Section):
    world: Literal["ring", "two moons", "checkerboard", "three islands"]
    method: Literal["dipp", "distar_in", "distar_out", "diff_instruct", "sim", "reward_only"]
    reward: Literal["north", "east", "a hill at (0, 2)"]
    beta: Positive
    alpha_cfg: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    betas: Annotated[list[Positive], Field(min_length=1)]
    strengths: Annotated[list[Annotated[float, Field(ge=0, allow_inf_nan=False)]], Field(min_length=1)]
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
    least: Annotated[int, Field(ge=2)]
    second_pairs: Annotated[int, Field(ge=2, le=1000)]
    likes: Literal["warm", "vivid", "bright"]
    sharpness: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    tie: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    ridge: Positive
    curve_pairs: Annotated[int, Field(ge=8)]
    curve_votes: Annotated[list[Annotated[int, Field(ge=2)]], Field(min_length=1)]
    curve_repeats: Count
    batch: Annotated[int, Field(ge=2)]
    steps: Annotated[int, Field(ge=2)]
    alpha_rew: Positive
    gen_lr: Positive
    ta_lr: Positive
    flat: Annotated[float, Field(ge=0, lt=1)]
    ema: Annotated[float, Field(ge=0, lt=1)]
    each: Annotated[int, Field(ge=2)]
    columns: Annotated[int, Field(ge=2, le=14)]


class Solutions(Section):
    gen_lr: Rate
    ta_lr: Rate
    rounds: Annotated[int, Field(ge=2, le=1000)]
    around: Annotated[float, Field(gt=0, lt=0.5)]
    limits: Annotated[list[Positive], Field(min_length=1, max_length=4)]
    nats: Annotated[list[Positive], Field(min_length=1, max_length=4)]
    worlds: Annotated[int, Field(ge=10, le=1000)]
