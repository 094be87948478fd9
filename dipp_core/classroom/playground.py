"""A playground in the plane: choose, start, watch and stop a run, by mouse or by keyboard; or look at it step by step.

`begin` and `at_steps` run without any widget. `Player` puts controls on them: a run trains in slices of a tenth of a
second on the event loop of the notebook's own kernel, and gives way after each, so that buttons and other cells are
never kept waiting for longer than a slice or a picture. One run trains at a time.
"""

import asyncio
import dataclasses
import html
import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import matplotlib
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from dipp_core.book import report
from dipp_core.book.report import COLORS
from dipp_core.method.algorithm import StepRecord, align
from dipp_core.method.divergences import pseudo_huber
from dipp_core.method.staged import NonFiniteError
from dipp_core.rewards import plane as rewards
from dipp_core.training import watch
from dipp_core.worlds import plane, plane_runs
from dipp_core.worlds.plane_runs import Stack

WORLDS: dict[str, Callable] = {
    "ring": plane.ring,
    "two moons": plane.two_moons,
    "checkerboard": plane.checkerboard,
    "three islands": lambda schedule: plane.World(*plane.three_islands(), schedule),
}
REWARDS: dict[str, Callable[[], Callable[..., Tensor]]] = {
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
UNUSED = {"diff_instruct": {"reward", "beta"}, "sim": {"reward", "beta"}, "reward_only": {"alpha_cfg"}}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What the reader chooses. beta: weight of the divergence, 1 / alpha_rew; alpha_cfg: guidance, 0 is off."""

    world: str
    method: str
    reward: str
    beta: float
    alpha_cfg: float

    def uses(self, name: str) -> bool:
        """Whether the method looks at this one of the choices."""
        return name not in UNUSED.get(self.method, set())


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """What a run needs besides: width of new networks, samples a step, steps, rates, points of a look, seed."""

    hidden: int
    batch: int
    steps: int
    gen_lr: float
    ta_lr: float
    huber_c: float
    points: int
    seed: int


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


@dataclass(eq=False)
class Run:
    """A run that goes on step by step. looks: what was seen of it, one a look; curves: of every step, by name."""

    choice: Choice
    numbers: Numbers
    world: plane.World
    stack: Stack
    grid: dict
    records: Iterator[StepRecord]
    rates: list[LambdaLR]
    done: int = 0
    looks: list[Look] = field(default_factory=list)
    curves: dict[str, list[float]] = field(default_factory=dict)

    def step(self) -> bool:
        """One step; False where none is left."""
        record = next(self.records, None)
        if record is None:
            return False
        self.done += 1
        for rate in self.rates:
            rate.step()
        seen = {f"norm_{name}": norm for name, norm in record.x0_grad_norms.items()}
        for name, value in (seen | {"grad_norm": record.grad_norm, "ta_loss": record.ta_loss}).items():
            if value is not None:
                self.curves.setdefault(name, []).append(float(value))
        return True

    def look(self) -> Look:
        """See where the run is now; the same noise at every look, so that points can be followed."""
        g = torch.Generator().manual_seed(1)
        points = self.numbers.points
        clouds = torch.cat([plane_runs.generate(self.stack, self.world, k, points, generator=g) for k in (0, 1)])
        worth = REWARDS[self.choice.reward]()(clouds, None).mean()
        nats = plane_runs.divergences(self.grid, clouds[:1])["ikl_sigma2"]
        self.looks.append(Look(self.done, clouds, float(worth), float(nats)))
        return self.looks[-1]


def new_world(name: str) -> plane.World:
    """One of `WORLDS`, with the noise of all sweeps in the plane."""
    return WORLDS[name](plane_runs.plane_schedule())


def begin(choice: Choice, numbers: Numbers, *, start: Stack | None = None) -> Run:
    """A run at its first step, from a copy of `start`, or from networks that have learned nothing."""
    world, noise = new_world(choice.world), torch.Generator().manual_seed(numbers.seed)
    stack = start.pick([0]) if start else plane_runs.new_stack(world, 1, numbers.hidden, generator=noise)
    chosen: dict[str, Any] = {"distance": pseudo_huber(numbers.huber_c)}
    if choice.uses("beta"):
        chosen["alpha_rew"] = 1 / choice.beta
    if choice.uses("alpha_cfg"):
        chosen["alpha_cfg"] = choice.alpha_cfg
    pairs = ((stack.gen, numbers.gen_lr), (stack.ta, numbers.ta_lr))
    gen, ta = (torch.optim.Adam(net.parameters(), lr=lr, betas=(0.0, 0.99), foreach=True) for net, lr in pairs)

    def slowing(step: int) -> float:
        """Learning rates, constant for the first half, fall linearly to 0 in the second, as in `plane_runs.train`."""
        return min(1.0, 2 * (1 - step / numbers.steps))

    reward = REWARDS[choice.reward]()
    settings = plane_runs.settings_for(world, choice.method, 1, numbers.batch, **chosen)
    records = align(
        gen=stack.gen,
        ta=stack.s_ta,
        ref=world.ref,
        schedule=world.schedule,
        gen_optimizer=gen,
        ta_optimizer=ta,
        draw_cond=world.draw_cond,
        null_cond=world.null_cond,
        settings=settings,
        reward=reward,
        generator=noise,
        steps=numbers.steps,
    )
    rates = [LambdaLR(optimizer, slowing) for optimizer in ((gen, ta) if settings.ta_steps else (gen,))]
    grid = plane_runs.grids_for(world, 0, reward, points=49)
    return Run(choice, numbers, world, stack, grid, records, rates)


def at_steps(run: Run, looks: Sequence[int]) -> list[Look]:
    """Let a run go on to the last of these steps, and look after each of them."""
    found = [run.look()] if 0 in looks else []
    while run.done < max(looks) and run.step():
        if run.done in looks:
            found.append(run.look())
    return found


CURVES = {  # what it is called and its colour
    "norm_reward": ("reward", "reward"),
    "norm_divergence": ("divergence", "ref"),
    "norm_guidance": ("guidance", "accent"),
    "grad_norm": ("gradient, all weights", "gen"),
    "ta_loss": ("assistant's loss", "ta"),
}
EXTENT = 3.6  # of the picture, in either direction


def density(world: plane.World) -> tuple[Tensor, Tensor]:
    """An axis (97,) and the reference's density over axis x axis, of both prompts together."""
    axis = torch.linspace(-EXTENT, EXTENT, 97, dtype=torch.float64)
    atoms = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1)
    return axis, world.law.log_prob(atoms).exp()


def draw_cloud(ax: Any, look: Look, background: tuple[Tensor, Tensor]) -> None:
    """Both prompts' samples over the reference."""
    axis, values = background
    ax.contourf(axis, axis, values.T, levels=8, cmap="Greys", zorder=0)
    for cloud, color in zip(look.clouds, ("gen", "light"), strict=True):
        ax.scatter(cloud[:, 0], cloud[:, 1], s=4, color=COLORS[color], linewidths=0, alpha=0.7)
    ax.set(aspect="equal", xlim=(-EXTENT, EXTENT), ylim=(-EXTENT, EXTENT), xticks=(-2, 0, 2), yticks=(-2, 0, 2))
    ax.grid(False)


def draw_row(fig: Any, world: plane.World, seen: Sequence[tuple[str, Look]]) -> None:
    """Clouds side by side, each with its title, its mean reward and its distance; all of one world."""
    background = density(world)
    for ax, (title, look) in zip(fig.subplots(1, len(seen), sharey=True), seen, strict=True):
        draw_cloud(ax, look, background)
        ax.set_title(title, fontsize=10)
        ax.set_xlabel(look.words.replace(", ", "\n"), fontsize=10)


def filmstrip(run: Run, looks: Sequence[Look]) -> Figure:
    """The clouds of some looks side by side, and below them the curves of the whole run."""
    with matplotlib.rc_context(report.STYLE):
        fig = Figure(figsize=(11, 5.4))
        rows: Any = fig.subfigures(2, 1, height_ratios=(1.15, 1))
        above, below = rows
        draw_row(above, run.world, [(f"step {look.step}", look) for look in looks])
        draw_curves(below.subplots(1, 3), run)
    return fig


def side_by_side(runs: Sequence[Run]) -> Figure:
    """Where runs of several methods, in one world, are now."""
    with matplotlib.rc_context(report.STYLE):
        fig = Figure(figsize=(11, 1.4 + 11 / len(runs)))
        seen = [(METHODS[run.choice.method].replace(" (", "\n("), run.looks[-1]) for run in runs]
        draw_row(fig, runs[0].world, seen)
    return fig


def draw_curves(axes: Any, run: Run) -> None:
    """Mean reward and integral KL at every look; size of the terms' gradients; the assistant's loss and grad norm."""
    steps = [look.step for look in run.looks]
    left, middle, right = axes
    worth, nats = [look.reward for look in run.looks], [look.nats for look in run.looks]
    left.plot(steps, worth, "o-", markersize=3, color=COLORS["reward"], label="reward")
    left.plot(steps, nats, "s-", markersize=3, color=COLORS["ref"], label="integral KL, nats")
    for name, values in run.curves.items():
        ax = middle if name.startswith("norm_") else right
        label, color = CURVES[name]
        ax.plot(*window_means(values), color=COLORS[color], linewidth=1.5, label=label)
    left.set(xlabel="steps")
    middle.set(xlabel="steps", ylim=(0, None))
    right.set(xlabel="steps", yscale="log")
    for ax, title in zip(axes, ("where it is", "gradients at the samples, rms", "how it learns"), strict=True):
        ax.set_xlim(0, run.numbers.steps)
        ax.set_title(title, fontsize=11)
        if ax.lines:
            ax.legend(fontsize=9)


def window_means(values: Sequence[float], most: int = 60) -> tuple[list[float], list[float]]:
    """Steps and means over equal windows of a curve, at most so many, the last one whole."""
    width = -(-len(values) // most) or 1
    whole = range(0, len(values) - width + 1, width)
    return [start + width / 2 for start in whole], [sum(values[k : k + width]) / width for k in whole]


def live_picture(run: Run) -> bytes:
    """Where a run under way is, and its curves so far, as PNG."""
    with matplotlib.rc_context(report.STYLE | {"figure.constrained_layout.use": False}), watch.DRAWING:
        fig, buffer = Figure(figsize=(13, 3.4)), io.BytesIO()
        cloud, *axes = fig.subplots(1, 4)
        fig.subplots_adjust(left=0.03, right=0.98, top=0.88, bottom=0.17, wspace=0.24)
        draw_cloud(cloud, run.looks[-1], density(run.world))
        cloud.set_title(f"{run.choice.world}, step {run.done} of {run.numbers.steps}", fontsize=11)
        draw_curves(axes, run)
        fig.savefig(buffer, format="png", dpi=80)
    return buffer.getvalue()


SLICE = 0.1  # seconds of training between two chances for everything else
FRAME = 0.5  # seconds from one picture to the next, at least; and three times as long as it took to draw
DISTILLED, FRESH, LAST = "a distilled generator", "nothing learned", "where the last run ended"


class Player:
    """A playground: `widget` shows it; `begin` and `stop` are what its buttons do.

    The sliders offer betas and strengths of guidance, and the choice's own. starts: distilled generators by world.
    Before a run, the picture shows where it would start from; `run` is the last one begun.
    """

    training: ClassVar[Run | None] = None  # the one run, of whatever playground, that may train

    def __init__(
        self,
        choice: Choice,
        numbers: Numbers,
        *,
        betas: Sequence[float],
        strengths: Sequence[float],
        starts: Mapping[str, Stack],
    ):
        import ipywidgets as widgets

        def slider(name: str, values: Sequence[float], value: float) -> Any:
            options = [(f"{one:g}", one) for one in sorted({*values, value})]
            return widgets.SelectionSlider(options=options, value=value, description=name)

        methods = [(label, name) for name, label in METHODS.items()]
        self.numbers, self.starts = numbers, starts
        self.run: Run | None = None
        self.task: asyncio.Task | None = None
        self.world = widgets.Dropdown(options=list(WORLDS), value=choice.world, description="world")
        self.method = widgets.Dropdown(options=methods, value=choice.method, description="method")
        self.reward = widgets.Dropdown(options=list(REWARDS), value=choice.reward, description="reward")
        self.beta = slider("beta", betas, choice.beta)
        self.alpha_cfg = slider("alpha_cfg", strengths, choice.alpha_cfg)
        self.origin = widgets.Dropdown(options=self._origins(), description="start from")
        self.start = widgets.Button(description="start", tooltip="train from the beginning with these choices")
        self.halt = widgets.Button(description="stop", tooltip="end the run after the step it is at", disabled=True)
        self.status, self.canvas = widgets.HTML(), widgets.Image(format="png", layout={"max_width": "100%"})
        rows = [[self.world, self.method, self.reward], [self.beta, self.alpha_cfg, self.origin]]
        boxes = [widgets.HBox(row, layout={"flex_flow": "row wrap"}) for row in rows]
        self.widget = widgets.VBox([*boxes, widgets.HBox([self.start, self.halt]), self.status, self.canvas])
        self.start.on_click(self.begin)
        self.halt.on_click(self.stop)
        for control in (self.world, self.method):
            control.observe(self._offer, names="value")
        for control in (self.world, self.origin):
            control.observe(self._preview, names="value")
        self._offer()
        self._preview()

    @property
    def choice(self) -> Choice:
        """The choices as they stand."""
        return Choice(**{one.name: getattr(self, one.name).value for one in dataclasses.fields(Choice)})

    @property
    def running(self) -> bool:
        return self.run is not None and Player.training is self.run

    def begin(self, _: Any = None) -> None:
        """Begin a run with the choices as they stand; one under way, here or in another playground, ends first."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._say("training goes on beside the notebook, and here is no notebook: use begin() in a script")
            return
        run = self._at_start()
        self.run = Player.training = run  # whoever has trained so far sees this at the end of its slice
        self.task = loop.create_task(self._train(run))
        self.halt.disabled = False
        self._offer()

    def stop(self, _: Any = None) -> None:
        """End the run after the step it is at; what it has learned stays."""
        if self.running:
            Player.training = None

    def _at_start(self) -> Run:
        stacks = {DISTILLED: self.starts.get(self.world.value), LAST: self.run.stack if self.run else None}
        return begin(self.choice, self.numbers, start=stacks.get(self.origin.value))

    def _say(self, words: str) -> None:
        self.status.value = f'<span role="status" aria-live="polite">{html.escape(words)}</span>'

    def _origins(self) -> list[str]:
        """Where a run in this world can start from."""
        distilled = [DISTILLED] if self.world.value in self.starts else []
        last = [LAST] if self.run and self.run.choice.world == self.world.value else []
        return [*distilled, FRESH, *last]

    def _offer(self, _: Any = None) -> None:
        """Offer what the choices allow: controls that the method looks at, places to start from."""
        for name in ("reward", "beta", "alpha_cfg"):
            getattr(self, name).disabled = not self.choice.uses(name)
        options, before = self._origins(), self.origin.value
        if list(self.origin.options) != options:
            self.origin.unobserve(self._preview, names="value")
            self.origin.options = options
            self.origin.value = before if before in options else options[0]
            self.origin.observe(self._preview, names="value")

    def _preview(self, _: Any = None) -> None:
        """Show where a run would start; one under way keeps the picture."""
        if not self.running:
            run = self._at_start()
            look = run.look()
            self.canvas.value = live_picture(run)
            self._say(f"ready: {look.words}; press start")

    async def _train(self, run: Run) -> None:
        """Train in slices while it is this run's turn; say at the end how it ended."""
        ended = "all steps are done"
        try:
            due, going = 0.0, True
            while going and Player.training is run:
                if (begun := time.monotonic()) > due:
                    await self._show(run)
                    due = time.monotonic() + max(FRAME, 3 * (time.monotonic() - begun))
                end = time.monotonic() + SLICE
                while going and Player.training is run and time.monotonic() < end:
                    going = run.step()
                await asyncio.sleep(0.01)
            ended = "stopped" if going else ended
            if self.run is run:
                await self._show(run)
        except NonFiniteError as error:
            ended = f"torn off ({error}): try a larger beta, or less guidance"
        except Exception as error:
            ended = f"failed ({' '.join(f'{type(error).__name__}: {error}'.split())})"
        finally:
            if Player.training is run:
                Player.training = None
            if self.run is run:
                self.halt.disabled = True
                self._say(f"{ended} at step {run.done}" + (f": {run.looks[-1].words}" if run.looks else ""))

    async def _show(self, run: Run) -> None:
        """Look, draw and say where the run is, giving way in between."""
        look = run.look()
        await asyncio.sleep(0.01)
        if self.run is run:
            self.canvas.value = live_picture(run)
            self._say(f"training, step {run.done} of {run.numbers.steps}: {look.words}")
            await asyncio.sleep(0.01)
