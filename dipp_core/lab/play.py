"""One run in the plane to play with: it can be watched at any step, stopped, and gone on with under other settings.

Nothing here knows of widgets; `playground` puts controls on it, and a page without a kernel shows its filmstrip.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import matplotlib
import torch
from matplotlib.figure import Figure
from torch import Tensor

from dipp_core.lab import report
from dipp_core.lab.report import COLORS
from dipp_core.method.algorithm import PRESETS, Reward, StepRecord, align
from dipp_core.method.divergences import pseudo_huber
from dipp_core.rewards import plane as rewards
from dipp_core.worlds import plane, plane_measure, plane_runs
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
    "distar_in": "DI*, guidance in",
    "distar_out": "DI*, guidance out",
    "diff_instruct": "Diff-Instruct (no reward)",
    "sim": "SIM (no reward)",
    "reward_only": "reward only (no leash)",
}
CURVES = {  # what it is called and its colour
    "norm_reward": ("reward", "reward"),
    "norm_divergence": ("divergence", "ref"),
    "norm_guidance": ("guidance", "accent"),
    "grad_norm": ("gradient, all weights", "gen"),
    "ta_loss": ("assistant's loss", "ta"),
}
EXTENT = 3.6  # of the picture, in either direction


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
        nats = plane_measure.divergences(self.grid, clouds[:1])["ikl_sigma2"]
        self.looks.append(Look(self.done, clouds, float(worth), float(nats)))
        return self.looks[-1]


@dataclass(frozen=True)
class Look:
    """Clouds (2, N, 2) of both prompts, their mean reward, and the integral KL of prompt 0 from the reference."""

    step: int
    clouds: Tensor
    reward: float
    nats: float


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
    grid = plane_measure.grids_for(world, 0, given["reward"], points=49)
    return Run(choice, world, stack, records, grid, steps, points)


def _slowing(records: Iterator[StepRecord], rates: Sequence, steps: int) -> Iterator[StepRecord]:
    """The records, with the learning rates set for the step after each."""
    for done, record in enumerate(records, start=1):
        for optimizer, rate in rates:
            optimizer.param_groups[0]["lr"] = rate * min(1.0, 2 * (1 - done / steps))
        yield record


def at_steps(run: Run, looks: Sequence[int]) -> list[Look]:
    """Let a run go to its end, and look after so many steps each."""
    found = [run.look()] if 0 in looks else []
    while run.step():
        if run.done in looks:
            found.append(run.look())
    return found


# ----------------------------------------------------------------------------------------------------------- pictures


def density(world: plane.World, points: int = 97) -> tuple[Tensor, Tensor]:
    """An axis (points,) and the reference's density over axis x axis, of both prompts together."""
    axis = torch.linspace(-EXTENT, EXTENT, points, dtype=torch.float64)
    atoms = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1)
    return axis, world.law.log_prob(atoms).exp()


def draw_cloud(ax, run: Run, look: Look, background: tuple[Tensor, Tensor]) -> list:
    """Both prompts' samples over the reference; returns the artists that move."""
    axis, values = background
    ax.contourf(axis, axis, values.T, levels=8, cmap="Greys", zorder=0)
    clouds = [
        ax.scatter(*cloud.T, s=4, color=COLORS[color], linewidths=0, alpha=0.7, label=f"prompt {k}")
        for k, (cloud, color) in enumerate(zip(look.clouds, ("gen", "light"), strict=True))
    ]
    ax.set(aspect="equal", xlim=(-EXTENT, EXTENT), ylim=(-EXTENT, EXTENT), xticks=(-2, 0, 2), yticks=(-2, 0, 2))
    ax.grid(False)
    return clouds


def filmstrip(run: Run, looks: Sequence[Look]) -> Figure:
    """The clouds of some looks side by side, and below them the curves of the whole run."""
    with matplotlib.rc_context(report.STYLE):
        fig = Figure(figsize=(11, 5.4))
        above, below = fig.subfigures(2, 1, height_ratios=(1.15, 1))
        background = density(run.world)
        for ax, look in zip(above.subplots(1, len(looks), sharey=True), looks, strict=True):
            draw_cloud(ax, run, look, background)
            ax.set_title(f"step {look.step}", fontsize=11)
            ax.set_xlabel(f"reward {look.reward:.2f}\n{look.nats:.3f} nats", fontsize=10)
        draw_curves(below.subplots(1, 3), run)
    return fig


def draw_curves(axes, run: Run) -> None:
    """Mean reward and integral KL at every look; size of the terms' gradients; the assistant's loss and grad norm."""
    steps = [look.step for look in run.looks]
    left, middle, right = axes
    left.plot(steps, [look.reward for look in run.looks], "o-", markersize=3, color=COLORS["reward"], label="reward")
    left.plot(
        steps, [look.nats for look in run.looks], "s-", markersize=3, color=COLORS["ref"], label="integral KL, nats"
    )
    for name, values in run.curves.items():
        ax = middle if name.startswith("norm_") else right
        label, color = CURVES[name]
        ax.plot(*windows(values), color=COLORS[color], linewidth=1.5, label=label)
    left.set(xlabel="steps")
    middle.set(xlabel="steps", ylim=(0, None))
    right.set(xlabel="steps", yscale="log")
    for ax, title in zip(axes, ("where it is", "gradients at the samples, rms", "how it learns"), strict=True):
        ax.set_xlim(0, run.steps)
        ax.set_title(title, fontsize=11)
        if ax.lines:
            ax.legend(fontsize=9)


def windows(values: Sequence[float], most: int = 60) -> tuple[list[float], list[float]]:
    """Steps and means over equal windows of a curve, at most so many, the last one whole."""
    width = -(-len(values) // most) or 1
    whole = range(0, len(values) - width + 1, width)
    return [start + width / 2 for start in whole], [sum(values[k : k + width]) / width for k in whole]
