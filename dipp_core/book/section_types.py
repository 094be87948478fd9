"""What every section of params.yaml has, and the kinds of numbers that they use."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError


def _distinct(values: list) -> list:
    if len(set(values)) < len(values):
        raise PydanticCustomError("distinct", "a list in which nothing stands twice")
    return values


Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Number = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0, lt=1)]
Several = Annotated[int, Field(ge=2)]
Steps = Annotated[int, Field(ge=1, le=1000)]  # of a sampler
Guidance = Annotated[float, Field(ge=1, allow_inf_nan=False)]  # 1 is off
Resamples = Annotated[int, Field(ge=10)]  # of captions, prompts or seeds, for intervals
Distinct = AfterValidator(_distinct)  # of a list


class Section(BaseModel):
    """What every notebook has: the scale and the seed of the run, beside its own numbers."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    scale: Literal["smoke", "mini", "full"]
    seed: Annotated[int, Field(ge=0, lt=2**31)]


class Globals(Section):
    """The top of params.yaml; the sections follow it."""

    threads: Annotated[int, Field(ge=1, le=1024)]
