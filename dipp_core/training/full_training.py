"""A whole training at full scale: two stages, as in the papers, distil and then align, each a run that can be resumed.

    training = begin(run, folder)            # run: a section of `full_schema.TwoStages`; checks, estimates, loads
    learn(training, "distil")                # Diff-Instruct or SIM, from the reference or from a one-step model
    learn(training, "align")                 # Diff-Instruct++ or Diff-Instruct*, from where the first stage ended
    export(training)                         # the averaged generator as an ordinary pipeline, folder/pipeline

`train` does all four, and is a command too, of one process or of many, where STAGE is a notebook, say 30_sd15:

    python -m dipp_core.training.full_training STAGE --set scale=full
    accelerate launch --multi_gpu --num_processes 8 -m dipp_core.training.full_training STAGE \\
        --set scale=full --set profile=multi

Killed at any moment and started again, it goes on from the last checkpoint; also with another number of processes, if
switches.processes and switches.batch are set so that their product stays. What only saves memory may change as well.
"""

import argparse
import hashlib
import os
import pathlib
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from dipp_core.book import config
from dipp_core.book.full_schema import FullScale, Sources, Stage, TwoStages
from dipp_core.files import InputError
from dipp_core.method.algorithm import Settings
from dipp_core.models.prompts import guessed_tokens
from dipp_core.training import full_scale, preflight
from dipp_core.training.run import Stopped
from dipp_core.training.student import ALONE, Group, Pace, Student, find_group, teach
from dipp_core.training.watch import picture_grid

STAGES = ("distil", "align")
# what of the switches decides the result; the others decide memory and time, and may change between two starts
DECISIVE = ("roles", "rank", "targets", "dtype", "tiny_vae", "eight_bit_adam")

# what is wrong in a way that a reader can cure, in one line; anything else is a mistake of this code, and shown whole
KNOWN = (
    full_scale.FullScaleError,
    preflight.PreflightError,
    Stopped,
    InputError,
)


@dataclass
class Training:
    """A training under way; `student` is what the last stage left."""

    run: TwoStages
    folder: pathlib.Path
    loaded: full_scale.Loaded
    student: Student
    group: Group
    say: Callable[[str], None]


def described(run: TwoStages, name: str) -> FullScale:
    """One stage as `full_scale` knows a run."""
    stage = getattr(run, name).model_dump(include=set(FullScale.model_fields) - set(Sources.model_fields))
    return FullScale(**run.model_dump(include=set(Sources.model_fields)), **stage)


def begin(
    run: TwoStages, folder: pathlib.Path | str, *, group: Group = ALONE, say: Callable[[str], None] = print
) -> Training:
    """Check and estimate a training, then load what it needs."""
    switches, here = preflight.switched(run.profile, run.switches), group.share[1]
    if switches.processes != here:
        what = f"{switches.processes} processes of batch {switches.batch} are described, {here} run"
        raise full_scale.FullScaleError(
            f"{what}: set switches.processes = {here}, and switches.batch so that the whole batch is what it should be"
        )
    texts = full_scale.read_prompts(run.prompts)
    stages = [described(run, name) for name in STAGES if getattr(run, name).steps] or [described(run, "align")]
    judged = [stage for stage in stages if full_scale.wants_reward(stage)]
    for stage in stages:  # one may take more than the other
        task = full_scale.task_of(stage, len(texts), guessed_tokens(texts))
        machine = preflight.here(folder, full_scale.device_of(stage))
        preflight.check(task, switches, machine, say=lambda line: None)
    loaded = full_scale.load((judged or stages)[-1], folder=folder, say=say)
    return Training(run, pathlib.Path(folder), loaded, Student(loaded.gen, loaded.ta), group, say)


def settings_of(training: Training, name: str) -> Settings:
    """The settings of a stage, for the batch of all processes together."""
    stage, switches = getattr(training.run, name), training.loaded.switches
    found = full_scale.settings_of(described(training.run, name), switches, training.loaded.world)
    batch = switches.batch * switches.processes
    return replace(found, batch_shape=(batch,), max_grad_norm=stage.max_grad_norm or None)


def facts_of(training: Training, name: str) -> dict[str, Any]:
    """What tells a stage from others, beside its settings: models, prompts, rewards, and the stages before it."""
    run, switches = training.run, training.loaded.switches
    own = run.model_dump(
        include=set(Sources.model_fields) - {"scale", "seed", "profile", "switches", "fetch", "device"}
    )
    before = {other: getattr(run, other).model_dump() for other in STAGES[: STAGES.index(name)]}
    texts = "\n".join(training.loaded.prompts.texts)
    own["prompts_sha256"] = hashlib.sha256(texts.encode()).hexdigest()[:16]
    return own | before | {switch: getattr(switches, switch) for switch in DECISIVE}


def pace_of(stage: Stage) -> Pace:
    """How long and how fast a stage learns."""
    numbers = {name: getattr(stage, name) for name in ("steps", "gen_lr", "ta_lr", "flat", "ema")}
    return Pace(**numbers, betas=tuple(stage.betas))


def watch(training: Training) -> Callable[[int, Student], dict]:
    """What is looked at while a stage learns: pictures of some prompts, always of the same noise, and their reward."""
    run, loaded = training.run, training.loaded
    index = torch.arange(min(run.watch_prompts, len(loaded.prompts))).repeat_interleave(run.watch_each)
    z = torch.randn(len(index), *loaded.world.z_shape, generator=torch.Generator().manual_seed(run.seed))
    device = next(loaded.world.denoiser.parameters()).device

    @torch.no_grad()
    def evaluate(_done: int, student: Student) -> dict:
        images, found, texts = [], [], []
        for part in torch.arange(len(index)).split(loaded.switches.micro or loaded.switches.batch):
            cond = loaded.prompts.rows(index[part])
            x0 = student.gen(z[part].to(device), cond)
            texts += [text if len(text) < 24 else f"{text[:21]}..." for text in loaded.prompts.texts_of(cond)]
            images.append(loaded.world.decode(x0).float().cpu())
            found += [] if loaded.reward is None else loaded.reward(x0, cond).tolist()
        grid = picture_grid(torch.cat(images), min(len(index), 8), texts)
        return {"samples": grid} | ({"reward": sum(found) / len(found)} if found else {})

    return evaluate


def learn(training: Training, name: str, *, progress: bool | None = None) -> Student:
    """One stage, "distil" or "align": begun, resumed, or read where it is complete; the training's student moves on."""
    run, loaded, stage = training.run, training.loaded, getattr(training.run, name)
    if stage.steps == 0:
        return training.student
    training.student = teach(
        training.folder / name,
        training.student,
        loaded.world,
        settings_of(training, name),
        pace_of(stage),
        prompts=loaded.prompts,
        reward=loaded.reward,
        seed=run.seed + STAGES.index(name),
        save_steps=run.save_steps,
        evaluate_steps=run.watch_steps,
        evaluate=watch(training),
        progress=progress,
        group=training.group,
        micro=loaded.switches.micro,
        adam=loaded.adam,
        facts=facts_of(training, name),
        say=training.say,
    )
    loaded.gen = training.student.gen  # the one it began with is not needed any more
    return training.student


def export(training: Training, name: str = "pipeline") -> pathlib.Path:
    """Write the averaged generator as an ordinary pipeline, whole or not at all; one process does."""
    folder = training.folder / name
    if training.group.share[0] == 0:
        partial = full_scale.export(folder.with_name(f".partial_{name}"), training.loaded, training.student.gen)
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(partial, folder)
    return folder


def train(
    run: TwoStages, folder: pathlib.Path | str, *, group: Group = ALONE, say: Callable[[str], None] = print
) -> pathlib.Path:
    """Both stages and the export; returns the folder of the pipeline."""
    training = begin(run, folder, group=group, say=say)
    for name in STAGES:
        learn(training, name)
    return export(training)


# ------------------------------------------------------------------------------------------------------------- command


def section_of(stage: str, pairs: list[str]) -> TwoStages:
    """The section of a notebook; pairs "key=value" win over it, and reach into it as "align.steps=10"."""
    changes = config.read_pairs(pairs)
    plain = {key: value for key, value in changes.items() if "." not in key}
    whole = config.section(stage, plain).model_dump()
    for key in changes.keys() - plain.keys():
        outer, _, inner = key.partition(".")
        if not isinstance(whole.get(outer), dict):
            raise InputError(f"--set {key}: there is nothing inside {outer}")
        whole[outer] |= {inner: changes[key]}
    run = config.section(stage, whole)
    if not isinstance(run, TwoStages):
        raise InputError(f"{stage} is no training at full scale")
    return run


def main(arguments: list[str] | None = None) -> int:
    """The command; whatever is wrong is one line, and the exit code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m dipp_core.training.full_training", description="Distil, then align."
    )
    parser.add_argument("stage", help="the notebook whose section describes the run, say 30_sd15")
    parser.add_argument("--set", action="append", default=[], metavar="key=value", help="change a value of the section")
    parser.add_argument("--folder", help="where checkpoints, curves and the pipeline go; default: .work/full/STAGE/run")
    given = parser.parse_args(arguments)
    try:
        run = section_of(given.stage, given.set)
        group = find_group(full_scale.device_of(described(run, "align")))
        say = print if group.share[0] == 0 else lambda line: None
        folder = train(
            run, given.folder or config.root() / ".work" / "full" / given.stage / "run", group=group, say=say
        )
    except KNOWN as error:
        print(error, file=sys.stderr)
        return 2
    except torch.OutOfMemoryError:
        cure = "set switches.micro = 1 and start again, which goes on from the last checkpoint"
        print(f"the GPU's memory is full, more than was estimated: {cure}", file=sys.stderr)
        return 2
    say(f"{folder}: the pipeline")
    group.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
