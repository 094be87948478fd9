"""What the description of a training at full scale may say. No field has a default; nothing heavy is imported."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError


def _rising(values: list[int]) -> list[int]:
    if values[0] >= values[1]:
        raise PydanticCustomError("rising", "two timesteps, drawn from the first to before the last; these leave none")
    return values


Method = Literal["diff_instruct", "sim", "dipp", "distar_in", "distar_out", "reward_only"]  # the keys of `PRESETS`
Count = Annotated[int, Field(ge=1)]
Steps = Annotated[int, Field(ge=0)]
Number = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]
Timestep = Annotated[int, Field(ge=0, le=999)]
Timesteps = Annotated[list[Timestep], Field(min_length=2, max_length=2), AfterValidator(_rising)]
CHECKED = ConfigDict(extra="forbid", strict=True, frozen=True)


class Stage(BaseModel):
    """One stage: a member of the family, how long and how fast it learns (see `student.Pace`).

    steps = 0 leaves the stage out. max_grad_norm = 0 does not clip.
    """

    model_config = CHECKED
    method: Method
    alpha_rew: Number
    alpha_cfg: Number
    huber_c: Positive
    ta_steps: Count
    timesteps: Timesteps
    max_grad_norm: Number
    steps: Steps
    gen_lr: Positive
    ta_lr: Positive
    betas: Annotated[list[Share], Field(min_length=2, max_length=2)]
    flat: Share
    ema: Share


class Description(BaseModel):
    """A whole training, as in the papers: distil, then align.

    reference, start: a folder, or a hub id (OWNER/NAME, or OWNER/NAME@COMMIT where it is not a known one); start may be
    "the reference", or any one-step model of the same latents and prompts, with its own t_star and prediction: also the
    folder of its denoiser alone, or one .safetensors file. `models.folders` has the public ones.
    profile: name of `memory.PROFILES`; switches: what of it is to be otherwise. rewards: terms of a weighted sum,
    {"reward": .., "source": .., "weight": ..}. prompts: a file of one prompt a line. tiny_vae: folder of one.
    A checkpoint every save_steps steps. Every watch_steps, and before and after, the averaged generator draws
    watch_each pictures of each of the first watch_prompts prompts.
    """

    model_config = CHECKED
    seed: Annotated[int, Field(ge=0, lt=2**31)]
    reference: str
    start: str
    t_star: Timestep
    prediction: Literal["as its folder says", "eps", "x0", "v"]
    profile: Literal["gpu24", "gpu80", "multi", "cpu"]
    switches: dict[str, bool | int | str | list[str]]
    rewards: list[dict[str, str | float]]
    prompts: str
    tiny_vae: str
    fetch: bool
    device: Literal["auto", "cpu", "cuda"]
    distil: Stage
    align: Stage
    save_steps: Count
    watch_steps: Count
    watch_prompts: Count
    watch_each: Count

    @property
    def stages(self) -> dict[str, Stage]:
        return {"distil": self.distil, "align": self.align}
