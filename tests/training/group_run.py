"""Processes that share runs, started as torchrun would, but forked from this one, which has imported everything.

python group_run.py FOLDER PLAN      PLAN: JSON, [{"processes": 2, "sharded": false, "jobs": {NAME: JOB}}, ..]
"""

import importlib
import json
import os
import pathlib
import signal
import socket
import sys

import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from safetensors.torch import save_file

from dipp_core.method.generator import trainable_copy
from dipp_core.models import folders
from dipp_core.models.lora import Adapted, SharedBase
from dipp_core.models.miniature import settings_for
from dipp_core.training.run import Stopped, whole
from dipp_core.training.student import Pace, Student, find_group, new_student, teach
from dipp_core.worlds import shapes


def student_of(world, roles):
    """Networks of their own, or adapters of one base that recomputes its blocks; in float64."""
    if roles == "full":
        student = new_student(world, 625)
    else:
        base = SharedBase(world.denoiser)
        base.recompute()
        start = Adapted(base, rank=2)
        student = Student(world.generator(625, start), trainable_copy(start))
    student.gen.double(), student.ta.double()
    return student


def learn(root, name, job, group):
    """Teach, and let happen what the job says, "nan" or "asked": [process, step]."""
    world, seen = folders.load(job["world"], dtype=torch.float64), []
    prompts = world.prompts(shapes.captions(shapes.split("train")[:3]))

    def happens(what):
        return [group.share[0], len(seen) - 1] == job.get(what)

    def judge(images, texts):
        seen.append(1)
        if happens("asked"):
            os.kill(os.getpid(), signal.SIGTERM)
        return images.mean((1, 2, 3)) * (float("nan") if happens("nan") else 1)

    return teach(
        root / job.get("folders", [name, name])[group.share[0]],
        student_of(world, job["roles"]),
        world,
        settings_for(world, job["method"], job["batch"], alpha_rew=1.0, alpha_cfg=0.5),
        Pace(steps=3, gen_lr=1e-3, ta_lr=1e-3, betas=(0.9, 0.99), ema=0.5),
        prompts=prompts,
        reward=world.reward(judge, prompts),
        seed=0,
        progress=False,
        save_steps=2,
        evaluate_steps=2,
        evaluate=lambda done, one: {"mean": world.paint(one.gen, prompts, 1, seed=0).mean().item()},
        group=group,
        micro=job.get("micro", 0),
        facts={"roles": job["roles"]},
        say=lambda line: None,
    )


def run_jobs(root, launch):
    """All jobs of a launch, one after another; weights go to NAME.safetensors, errors to standard output."""
    group = find_group("cpu")
    if launch.get("sharded"):  # which Accelerate offers on a CPU by its parts only
        plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")
        group.accelerator.state.fsdp_plugin, group.sharded = plugin, True
    for name, job in launch["jobs"].items():
        try:
            taught = learn(root, name, job, group)
        except (Stopped, ValueError) as error:
            print(f"{name}: {type(error).__name__}: {error}", flush=True)
            continue
        state = {key: whole(value).contiguous() for key, value in taught.state().items()}
        if group.share[0] == 0:
            save_file(state, root / f"{name}.safetensors")
    group.close()


def fork(root, number, rank, launch, port):
    """One process of a launch; its output goes into a file. Returns its id."""
    if pid := os.fork():
        return pid
    out = os.open(root / f"said_{number}_{rank}.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(out, 1)
    os.dup2(out, 2)
    ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(launch["processes"])}
    os.environ |= ranks | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        run_jobs(root, launch)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    sys.stdout.flush()
    os._exit(0)


def main(folder, plan):
    """All launches, one after another."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)  # in which Adam does not make much of rounding
    for name in ("AutoencoderKL", "UNet2DConditionModel", "PixArtTransformer2DModel", "DDPMScheduler"):
        getattr(importlib.import_module("diffusers"), name)
    for name in ("CLIPTextModel", "CLIPTokenizer"):
        getattr(importlib.import_module("transformers"), name)
    for number, launch in enumerate(json.loads(plan)):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        pids = [fork(pathlib.Path(folder), number, rank, launch, port) for rank in range(launch["processes"])]
        for pid in pids:
            os.waitpid(pid, 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
