"""The schema of the sections of the full-scale notebooks (see `sections`)."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from dipp_core.book.config import Section
from dipp_core.book.full_schema import TwoStages
from dipp_core.book.section_types import Count, Distinct

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


class Sd15(TwoStages):
    profiles_shown: Profiles


class Pixart(TwoStages):
    profiles_shown: Profiles


class EvaluatedModel(BaseModel):
    """A row of the table of models (see `pipelines.Sampler`); `fills`: names in data/reported/reported.csv."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    source: Annotated[str, Field(min_length=1)]
    denoiser: str
    variant: Literal["", "fp16"]
    dtype: Literal["fp32", "fp16", "bf16"]
    size: Annotated[int, Field(ge=0, multiple_of=8)]
    steps: Annotated[int, Field(ge=1, le=1000)]
    guidance: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    scheduler: Schedulers
    timesteps: list[Annotated[int, Field(ge=0, lt=1000)]]
    status: Literal["verified", "neighbours", "memory", "ours"]
    fills: list[str]


class Evaluation(Section):
    lists: Annotated[list[Lists], Field(min_length=1), Distinct]
    per_group: Annotated[int, Field(ge=0)]
    each: Annotated[int, Field(ge=2)]
    batch: Count
    device: Literal["auto", "cpu", "cuda", "mps"]
    on_cpu: bool
    judges: Annotated[dict[Judges, str], Field(min_length=1)]
    models: Annotated[dict[str, EvaluatedModel], Field(min_length=1)]
    fid_list: Lists
    fid_reference: str
    resamples: Annotated[int, Field(ge=10)]
