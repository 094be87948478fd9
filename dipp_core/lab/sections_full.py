"""The schema of the sections of the notebooks at full scale (see `sections`)."""

from typing import Annotated, Literal

from pydantic import Field

from dipp_core.lab.full_schema import TwoStages

Profiles = Annotated[list[Literal["gpu24", "gpu80", "multi"]], Field(min_length=1)]


class Sd15(TwoStages):
    profiles_shown: Profiles


class Pixart(TwoStages):
    profiles_shown: Profiles
