"""What a run at full scale lacks here, and its rehearsal: the same course on small folders with random weights.

    lacking = missing(p)                                       # a line each: what, and how to get it
    run = rehearsed(p, "unet", folder) if lacking else p       # the same description, of small models

A rehearsal goes through all the code of the true run and proves nothing else: its pictures and numbers mean nothing.
"""

import pathlib
from typing import TypeVar

import torch

from dipp_core.book.full_schema import TwoStages
from dipp_core.files import InputError
from dipp_core.models import folders, miniature
from dipp_core.rewards import public as rewards
from dipp_core.rewards import tiny
from dipp_core.training import full_scale
from dipp_core.worlds import shapes

Run = TypeVar("Run", bound=TwoStages)
SAYS = "RANDOM WEIGHTS: a rehearsal of the course. Its pictures and numbers are no result."


def missing(run: TwoStages) -> list[str]:
    """What keeps the true run from being made here, a line each with its cure; empty where nothing does.

    Models are fetched only where `fetch` says so, and only by a machine that lacks nothing else.
    """
    found = []
    if run.profile != "cpu" and not torch.cuda.is_available():
        found.append(f"no GPU that torch can use: the profile {run.profile} is for one")
    for look, given in [(full_scale.read_prompts, run.prompts), *((_judge, term) for term in run.rewards)]:
        try:
            look(given)
        except (InputError, full_scale.FullScaleError) as error:
            found.append(str(error))
    for source, locate in ((run.reference, folders.locate), (run.start, folders.locate_start)):
        try:
            if source != full_scale.THE_REFERENCE:
                locate(source, fetch=run.fetch and not found)
        except InputError as error:
            found.append(str(error))
    return found


def _judge(term: dict) -> None:
    """A reward whose files are there in a folder is believed; whatever is wrong with them shows when it is loaded."""
    if not pathlib.Path(str(term.get("source"))).expanduser().is_dir():
        rewards.load([term])


def rehearsed(run: Run, kind: str, folder: pathlib.Path) -> Run:
    """The run on small models that are made in `folder`; kind: "unet", as SD1.5 is, or "dit", as PixArt-alpha is.

    Methods, strengths and lengths stay as they are described; rates are larger, so that a few steps show.
    """
    words, texts = shapes.vocabulary(), shapes.captions(shapes.split("train")[:8])
    model = miniature.build(folder / "model", kind, words=words, size="tiny")
    (folder / "prompts.txt").write_text("\n".join(texts) + "\n")
    judge = tiny.write_clip(folder / "clip")
    changes = {
        "reference": str(model),
        "start": full_scale.THE_REFERENCE,
        "prediction": "as its folder says",
        "profile": "cpu",
        "switches": {"rank": 2, "batch": 4},
        "rewards": [{"reward": "clipscore", "source": str(judge), "weight": 1.0}],
        "prompts": str(folder / "prompts.txt"),
        "tiny_vae": "",
        "fetch": False,
        "device": "cpu",
    }
    rates = {"gen_lr": 1e-3, "ta_lr": 1e-3}
    stages = {name: getattr(run, name).model_copy(update=rates) for name in ("distil", "align")}
    return run.model_copy(update=changes | stages)
