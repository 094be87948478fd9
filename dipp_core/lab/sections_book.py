"""The schema of the sections of the book's last notebooks (see `sections`)."""

from typing import Annotated

from pydantic import Field

from dipp_core.lab.config import Section
from dipp_core.lab.section_types import Positive


class PaperAndHere(Section):
    identity: Positive
    near: Positive
    accuracy: Annotated[float, Field(ge=0, lt=1)]
    share: Annotated[float, Field(ge=0, lt=1)]
