"""Train at full scale, in one process or in many; STAGE is a notebook whose section of params.yaml describes the run:

    .venv/bin/python -m dipp_core.train 30_sd15 --set scale=full
    .venv/bin/accelerate launch --multi_gpu --num_processes 8 -m dipp_core.train 30_sd15 \\
        --set scale=full --set profile=multi

Killed at any moment and started again, it goes on from the last checkpoint. The exit code is 0 where all is done, 2
where something is wrong, and 75 where SIGTERM or Ctrl-C ended it after a checkpoint was saved: start the same command
again, as `scontrol requeue` does in a job of Slurm's. (A launcher of several processes has an exit code of its own.)
"""

import argparse
import os
import sys
from typing import Any

import torch

from dipp_core.book import config
from dipp_core.description import Description
from dipp_core.files import InputError, root
from dipp_core.training import full, memory
from dipp_core.training.run import AGAIN, Stopped
from dipp_core.training.student import find_group


def section_of(stage: str, pairs: list[str]) -> Description:
    """The section of a notebook; pairs "key=value" win over it, and reach into it as "align.steps=10"."""
    changes = config.read_pairs(pairs)
    plain = {key: value for key, value in changes.items() if "." not in key}
    whole: dict[str, Any] = config.section(stage, plain).model_dump()
    for key in changes.keys() - plain.keys():
        outer, _, inner = key.partition(".")
        if not isinstance(whole.get(outer), dict):
            raise InputError(f"--set {key}: there is nothing inside {outer}")
        whole[outer] |= {inner: changes[key]}
    described = config.section(stage, whole)
    if not isinstance(described, Description):
        raise InputError(f"{stage} is no training at full scale")
    return described


def launch(processes: int, arguments: list[str]) -> None:
    """Become torchrun where `accelerate launch --cpu --num_processes N` began: on CPUs it starts one process alone."""
    if processes > 1 and "WORLD_SIZE" not in os.environ and os.environ.get("ACCELERATE_USE_CPU") == "True":
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        os.execv(sys.executable, [sys.executable, *torchrun, "-m", "dipp_core.train", *arguments])


def main(arguments: list[str] | None = None) -> int:
    """The command; whatever is wrong is one line, and the exit code 2."""
    parser = argparse.ArgumentParser(prog=".venv/bin/python -m dipp_core.train", description="Distil, then align.")
    parser.add_argument("stage", help="the notebook whose section describes the run, say 30_sd15")
    parser.add_argument("--set", action="append", default=[], metavar="key=value", help="change a value of the section")
    parser.add_argument("--folder", help="where checkpoints, curves and the pipeline go; default: .work/full/STAGE/run")
    parser.add_argument("--distilled", metavar="FOLDER", help="align what was distilled in the folder of another run")
    given = parser.parse_args(arguments)
    try:
        described = section_of(given.stage, given.set)
        processes = memory.switched(described.profile, described.switches).processes
        launch(processes, sys.argv[1:] if arguments is None else arguments)
        group = find_group(full.find_device(described.device))
        say = print if group.share[0] == 0 else lambda line: None
        folder = given.folder or root() / ".work" / "full" / given.stage / "run"
        say(f"{full.train(described, folder, distilled=given.distilled, group=group, say=say)}: the pipeline")
    except (InputError, Stopped) as error:  # anything else is a mistake of this code, and shown whole
        print(error, file=sys.stderr)
        return AGAIN if isinstance(error, Stopped) else 2
    except torch.OutOfMemoryError:
        cure = "set switches.micro = 1 and start again, which goes on from the last checkpoint"
        print(f"the GPU's memory is full, more than was estimated: {cure}", file=sys.stderr)
        return 2
    group.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
