"""One run in the plane to play with: it can be watched at any step, stopped, and gone on with under other settings.

Nothing here knows of widgets; `playground` puts controls on it, and a page without a kernel shows its filmstrip.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dipp_core.method.algorithm import PRESETS, Reward, StepRecord, align
from dipp_core.method.divergences import pseudo_huber
from dipp_core.rewards import plane as rewards
from dipp_core.worlds import plane, plane_runs
from dipp_core.worlds.plane_runs import Stack

WORLDS: dict[str, Callable] = {
    "ring": plane.ring,
    "two moons": plane.two_moons,
    "checkerboard": plane.checkerboard,
    "three islands": lambda schedule: plane.World(*plane.three_islands(), schedule),
}
REWARDS: dict[str, Callable[[], Reward]] = {
    "north": lambda: rewards.linear((0.0, 1.0)),
    "east": lambda: rewards.linear((1.0, 0.0)),
    "a hill at (0, 2)": rewards.bump,
}
METHODS = {
    "dipp": "DI++",
    "distar_in": "DI* (guidance in)",
    "distar_out": "DI* (guidance out)",
    "diff_instruct": "Diff-Instruct (no reward)",
    "sim": "SIM (no reward)",
    "reward_only": "reward only (no leash)",
}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What the reader chooses. beta: weight of the divergence, 1 / alpha_rew; alpha_cfg: guidance, 0 is off."""

    world: str
    method: str
    reward: str
    beta: float
    alpha_cfg: float

    def __post_init__(self):
        for name, known in (("world", WORLDS), ("method", PRESETS), ("reward", REWARDS)):
            if getattr(self, name) not in known:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}: one of {', '.join(known)}")

    def used(self) -> set[str]:
        """Those of the choices that the method looks at."""
        unused = {"diff_instruct": {"reward", "beta"}, "sim": {"reward", "beta"}, "reward_only": {"alpha_cfg"}}
        return {"world", "method", "reward", "beta", "alpha_cfg"} - unused.get(self.method, set())

    def numbers(self) -> dict[str, float]:
        """Those among the settings of the method that the choice decides."""
        found = {"alpha_cfg": self.alpha_cfg} if "alpha_cfg" in self.used() else {}
        return found | ({"alpha_rew": 1 / self.beta} if "beta" in self.used() else {})


@dataclass
class Run:
    """A run that goes on step by step. looks: what was seen of it, one a look; curves: of every step, by name."""

    choice: Choice
    world: plane.World
    stack: Stack
    records: Iterator[StepRecord]
    grid: dict
    steps: int
    points: int
    done: int = 0
    looks: list["Look"] = field(default_factory=list)
    curves: dict[str, list[float]] = field(default_factory=dict)

    def step(self) -> bool:
        """One step; False where none is left."""
        record = next(self.records, None)
        if record is None:
            return False
        self.done += 1
        found = {f"norm_{name}": norm for name, norm in record.x0_grad_norms.items()} | {"grad_norm": record.grad_norm}
        found |= {} if record.ta_loss is None else {"ta_loss": record.ta_loss}
        for name, value in found.items():
            self.curves.setdefault(name, []).append(float(value))
        return True

    def look(self) -> "Look":
        """See where the run is now; the same noise at every look, so that points can be followed."""
        draw = torch.Generator().manual_seed(1)
        clouds = torch.cat(
            [plane_runs.generate(self.stack, self.world, k, self.points, generator=draw) for k in (0, 1)]
        )
        worth = REWARDS[self.choice.reward]()(clouds, None).mean()
        nats = plane_runs.divergences(self.grid, clouds[:1])["ikl_sigma2"]
        self.looks.append(Look(self.done, clouds, float(worth), float(nats)))
        return self.looks[-1]


@dataclass(frozen=True)
class Look:
    """Clouds (2, N, 2) of both prompts, their mean reward, and the integral KL of prompt 0 from the reference."""

    step: int
    clouds: Tensor
    reward: float
    nats: float

    @property
    def words(self) -> str:
        """Reward and distance as they are said."""
        return f"reward {self.reward:.{'2f' if abs(self.reward) < 1000 else '1e'}}, {self.nats:.3f} nats"


def new_world(name: str) -> plane.World:
    return WORLDS[name](plane_runs.plane_schedule())


def begin(
    choice: Choice,
    *,
    start: Stack | None = None,
    hidden: int,
    batch: int,
    steps: int,
    gen_lr: float,
    ta_lr: float,
    huber_c: float,
    points: int,
    seed: int,
) -> Run:
    """A run at its first step, from a copy of `start`, or from networks that have learned nothing.

    Learning rates are constant for the first half and fall linearly to 0 in the second, as in `plane_runs.train`.
    """
    world, noise = new_world(choice.world), torch.Generator().manual_seed(seed)
    stack = start.pick([0]) if start else plane_runs.new_stack(world, 1, hidden, generator=noise)
    numbers = choice.numbers() | {"distance": pseudo_huber(huber_c)}
    settings = plane_runs.settings_for(world, choice.method, 1, batch, **numbers)
    gen, ta = (
        torch.optim.Adam(net.parameters(), lr=lr, betas=(0.0, 0.99), foreach=True)
        for net, lr in ((stack.gen, gen_lr), (stack.ta, ta_lr))
    )
    roles = {"gen": stack.gen, "ta": stack.s_ta, "ref": world.ref, "schedule": world.schedule}
    roles |= {"gen_optimizer": gen, "ta_optimizer": ta, "draw_cond": world.draw_cond, "null_cond": world.null_cond}
    given = {"settings": settings, "reward": REWARDS[choice.reward](), "generator": noise, "steps": steps}
    records = _slowing(align(**roles, **given), ((gen, gen_lr), (ta, ta_lr)), steps)
    grid = plane_runs.grids_for(world, 0, given["reward"], points=49)
    return Run(choice, world, stack, records, grid, steps, points)


def _slowing(records: Iterator[StepRecord], rates: Sequence, steps: int) -> Iterator[StepRecord]:
    """The records, with the learning rates set for the step after each."""
    for done, record in enumerate(records, start=1):
        for optimizer, rate in rates:
            optimizer.param_groups[0]["lr"] = rate * min(1.0, 2 * (1 - done / steps))
        yield record


def at_steps(run: Run, looks: Sequence[int]) -> list[Look]:
    """Let a run go on to the last of these steps, and look after each of them."""
    found = [run.look()] if 0 in looks else []
    while run.done < max(looks) and run.step():
        if run.done in looks:
            found.append(run.look())
    return found
