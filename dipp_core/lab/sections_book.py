"""The schema of the sections of params.yaml that belong to the book's own notebooks, 90 and later."""

from typing import Annotated

from pydantic import Field

from dipp_core.lab.config import Section
from dipp_core.lab.section_types import Positive, Seed

Rate = Annotated[float, Field(gt=0, lt=1)]


class Exercises(Section):
    world: Seed


class Solutions(Section):
    gen_lr: Rate
    ta_lr: Rate
    rounds: Annotated[int, Field(ge=2, le=1000)]
    around: Annotated[float, Field(gt=0, lt=0.5)]
    limits: Annotated[list[Positive], Field(min_length=1, max_length=4)]
    nats: Annotated[list[Positive], Field(min_length=1, max_length=4)]
    worlds: Annotated[int, Field(ge=10, le=1000)]
