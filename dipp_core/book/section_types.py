"""What every section of params.yaml has."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """What every notebook has: the scale and the seed of the run, beside its own numbers."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    scale: Literal["smoke", "mini", "long", "full"]
    seed: Annotated[int, Field(ge=0, lt=2**31)]


class Globals(Section):
    """The top of params.yaml; the sections follow it."""

    threads: Annotated[int, Field(ge=1, le=1024)]
