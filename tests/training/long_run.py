"""A small run that depends on everything a run can depend on, made to be killed in a process of its own."""

import os
import pathlib
import random
import signal
import tempfile

import numpy as np
import torch
from torch import nn

from dipp_core.method.algorithm import align, preset
from dipp_core.method.schedule import sigma_power_weight, uniform_time, vp_continuous
from dipp_core.training import run as module
from dipp_core.training import watch
from dipp_core.training.run import EMA, run

SCHEDULE = vp_continuous()


class Convolutions(nn.Module):
    """Small, with buffers that training moves (batch norm) and draws from the global random state (dropout)."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(5, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.SiLU(),
            nn.Dropout(0.1),
            nn.Conv2d(8, 3, 3, padding=1),
        )

    def forward(self, xt, t, cond):
        more = torch.stack([t.to(xt.dtype), cond], 1)[..., None, None].expand(-1, -1, *xt.shape[2:])
        return self.body(torch.cat([xt, more], 1)) - xt


def draw_cond(shape, generator):
    """From three sources of randomness: the run's own generator, Python's and numpy's."""
    more = random.random() + np.random.rand()  # noqa: NPY002, the global state is what is meant
    return torch.rand(shape, generator=generator) + more


def long_run(folder, steps, die_at=None):
    """Train two small networks with Algorithm 1; die_at: kill the process at its nth call that makes something last."""
    module.SAVE_MINUTES = 0.0015
    torch.set_num_threads(1)
    if die_at:
        be_killed_at(die_at)
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    gen, ta, ref = Convolutions(), Convolutions(), Convolutions().requires_grad_(False)
    gen_optimizer = torch.optim.AdamW(gen.parameters(), lr=1e-3, betas=(0.0, 0.99))
    ta_optimizer = torch.optim.SGD(ta.parameters(), lr=1e-3, momentum=0.9)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(gen_optimizer, steps)
    warm = torch.optim.lr_scheduler.LambdaLR(ta_optimizer, lambda step: min(1, step / 50))
    ema, noise = EMA(gen, 0.99), torch.Generator().manual_seed(0)
    weight = sigma_power_weight(SCHEDULE, 2)
    settings = preset(
        "dipp",
        batch_shape=(4,),
        z_shape=(3, 8, 8),
        alpha_rew=2.0,
        time_sampler=uniform_time(0.05, 0.95),
        weight=weight,
        ta_weight=weight,
        ta_steps=2,
        max_grad_norm=1.0,
    )

    def records(start):
        return align(
            gen=lambda z, cond: gen(z, torch.ones(len(z)), cond),
            ta=ta,
            ref=ref,
            reward=lambda x0, cond: x0.mean((1, 2, 3)) - x0.square().mean((1, 2, 3)),
            schedule=SCHEDULE,
            settings=settings,
            gen_optimizer=gen_optimizer,
            ta_optimizer=ta_optimizer,
            draw_cond=draw_cond,
            null_cond=torch.tensor(0.0),
            generator=noise,
            steps=steps,
            start_step=start,
        )

    def evaluate(_done):
        with ema.averaged():
            return {"weight": gen.body[0].weight.mean(), "draw": torch.rand(())}

    networks = {"gen": gen, "ta": ta, "gen_optimizer": gen_optimizer, "ta_optimizer": ta_optimizer}
    run(
        folder,
        records,
        networks | {"decay": decay, "warm": warm, "ema": ema, "noise": noise},
        {"seed": 0},
        steps=steps,
        save_steps=4,
        after_step=(decay.step, warm.step, ema.update),
        evaluate=evaluate,
        evaluate_steps=20,
        say=lambda line: None,
    )


def be_killed_at(number):
    """Kill this process at its nth call of fsync, replace or unlink, before it is made."""
    calls = iter(range(number, 0, -1))

    def deadly(call):
        def counted(*arguments, **options):
            if next(calls) == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        return counted

    for name in ("fsync", "replace", "unlink"):
        setattr(os, name, deadly(getattr(os, name)))


# what the first run of a process would wait seconds for
torch.optim.SGD([torch.zeros(1, requires_grad=True)])
with tempfile.TemporaryDirectory() as place:
    log = watch.Log(pathlib.Path(place))
    log.write(0, {"nothing": 0.0})
    log.close()
    watch.Screen(pathlib.Path(place), live=False).draw_curves()
