"""What the description of a run at full scale may say. No field has a default; nothing heavy is imported.

Which fields mean what is told by `full_scale`, which loads one description, and `full_training`, which trains two.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from dipp_core.book.section_types import Count, Positive, Section

METHODS = ("diff_instruct", "sim", "dipp", "distar_in", "distar_out", "reward_only")  # the keys of `PRESETS`
Number = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]
Timestep = Annotated[int, Field(ge=0, le=999)]
Timesteps = Annotated[list[Timestep], Field(min_length=2, max_length=2)]


class Sources(Section):
    """What a run is made of.

    reference, start: a folder, or a hub id (OWNER/NAME, or OWNER/NAME@COMMIT where it is not a known one); start may be
    "the reference", or any one-step model of the same latents and prompts, with its own t_star and prediction: also the
    folder of its denoiser alone, or one .safetensors file. `models.folders` has the public ones.
    profile: name of `preflight.PROFILES`; switches: what of it is to be otherwise. rewards: terms of a weighted sum,
    {"reward": .., "source": .., "weight": ..}. prompts: a file of one prompt a line. tiny_vae: folder of one.
    """

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


class FullScale(Sources):
    """A run at full scale: what it is made of, and the member of the family that it is."""

    method: Literal[METHODS]
    alpha_rew: Number
    alpha_cfg: Number
    huber_c: Positive
    ta_steps: Annotated[int, Field(ge=0)]
    timesteps: Timesteps


class Stage(BaseModel):
    """One stage of a training: a member of the family, how long and how fast it learns (see `student.Pace`).

    steps = 0 leaves the stage out. max_grad_norm = 0 does not clip.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    method: Literal[METHODS]
    alpha_rew: Number
    alpha_cfg: Number
    huber_c: Positive
    ta_steps: Annotated[int, Field(ge=0)]
    timesteps: Timesteps
    max_grad_norm: Number
    steps: Annotated[int, Field(ge=0)]
    gen_lr: Positive
    ta_lr: Positive
    betas: Annotated[list[Share], Field(min_length=2, max_length=2)]
    flat: Share
    ema: Share


class TwoStages(Sources):
    """A whole training at full scale, as in the papers: distil, then align.

    A checkpoint every save_steps steps. Every watch_steps, and before and after, the averaged generator draws
    watch_each pictures of each of the first watch_prompts prompts.
    """

    distil: Stage
    align: Stage
    save_steps: Count
    watch_steps: Count
    watch_prompts: Count
    watch_each: Count
