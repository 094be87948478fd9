"""The playground: choose, start, watch and stop a run in the plane, by mouse or by keyboard.

A run trains in slices of a tenth of a second on the event loop of the notebook's own kernel, and gives way after each:
buttons and other cells are never kept waiting for longer than a slice or a picture. One run trains at a time.
"""

import asyncio
import html
import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from dipp_core.book import report
from dipp_core.classroom import play, play_pictures
from dipp_core.classroom.play import Choice, Look, Run
from dipp_core.method.staged import NonFiniteError
from dipp_core.training import watch
from dipp_core.worlds.plane_runs import Stack

SLICE = 0.1  # seconds of training between two chances for everything else
FRAME = 0.5  # seconds from one picture to the next, at least; and three times as long as it took to draw
DISTILLED, FRESH, LAST = "a distilled generator", "nothing learned", "where the last run ended"
TURN: list[object] = []  # the one run that may train, or none


def moving_picture(run: Run) -> Callable[[Look], bytes]:
    """A picture that is drawn once and then only moved, since it is drawn often: a look -> PNG."""
    with matplotlib.rc_context(report.STYLE | {"figure.constrained_layout.use": False}):
        fig = Figure(figsize=(10.5, 3.5), dpi=80)
        cloud, left, right = fig.subplots(1, 3)
        fig.subplots_adjust(left=0.05, right=0.99, top=0.88, bottom=0.17, wspace=0.2)
        dots = play_pictures.draw_cloud(cloud, run, run.looks[-1], play_pictures.density(run.world))
        colors = {"reward": "reward", "nats": "ref"}
        where = {name: left.plot([], [], color=report.COLORS[color])[0] for name, color in colors.items()}
        curves = {
            name: right.plot([], [], color=report.COLORS[color], linewidth=1.5, label=label)[0]
            for name, (label, color) in play_pictures.CURVES.items()
        }
        left.legend(where.values(), ["mean reward", "integral KL, nats"], fontsize=9)
        left.set(title="where it is", xlabel="steps", xlim=(0, run.steps))
        right.set(title="gradients and losses", xlabel="steps", xlim=(0, run.steps), yscale="log")
        right.set_ylim(0.01, 3)
        right.legend(fontsize=8, ncols=2, loc="lower left")

    def frame(look: Look) -> bytes:
        for artist, points in zip(dots, look.clouds, strict=True):
            artist.set_offsets(points)
        for name, line in where.items():
            line.set_data([one.step for one in run.looks], [getattr(one, name) for one in run.looks])
        for name, values in run.curves.items():
            curves[name].set_data(*play_pictures.windows(values))
        left.relim()
        left.autoscale_view(scalex=False)
        cloud.set_title(f"step {look.step} of {run.steps}", fontsize=11)
        buffer = io.BytesIO()
        with watch.DRAWING:
            fig.savefig(buffer, format="png")
        return buffer.getvalue()

    return frame


@dataclass
class Controls:
    """The widgets: five choices, where to start from, two buttons, the picture and what is said."""

    world: Any
    method: Any
    reward: Any
    beta: Any
    alpha_cfg: Any
    origin: Any
    start: Any
    stop: Any
    canvas: Any
    status: Any

    def choice(self) -> Choice:
        names = ("world", "method", "reward", "beta", "alpha_cfg")
        return Choice(**{name: getattr(self, name).value for name in names})

    def widget(self) -> Any:
        import ipywidgets as widgets

        rows = [[self.world, self.method, self.reward], [self.beta, self.alpha_cfg, self.origin]]
        boxes = [widgets.HBox(row, layout={"flex_flow": "row wrap"}) for row in rows]
        return widgets.VBox([*boxes, widgets.HBox([self.start, self.stop]), self.status, self.canvas])


def new_controls(choice: Choice, betas: Sequence[float], strengths: Sequence[float]) -> Controls:
    """The controls at this choice; the sliders offer betas and strengths of guidance, and the choice's own."""
    import ipywidgets as widgets

    def drop(name: str, options: Sequence) -> Any:
        return widgets.Dropdown(options=options, value=getattr(choice, name), description=name)

    def slide(name: str, values: Sequence[float]) -> Any:
        values = sorted({*values, getattr(choice, name)})
        options = [(f"{value:g}", value) for value in values]
        return widgets.SelectionSlider(options=options, value=getattr(choice, name), description=name)

    methods = [(label, name) for name, label in play.METHODS.items()]
    return Controls(
        drop("world", list(play.WORLDS)),
        drop("method", methods),
        drop("reward", list(play.REWARDS)),
        slide("beta", betas),
        slide("alpha_cfg", strengths),
        widgets.Dropdown(options=[FRESH], description="start from"),
        widgets.Button(description="start", tooltip="train from the beginning with these choices"),
        widgets.Button(description="stop", tooltip="end the run after the step it is at", disabled=True),
        widgets.Image(format="png", layout={"max_width": "100%"}),
        widgets.HTML(),
    )


@dataclass
class Player:
    """A playground: `widget` shows it; `start` and `stop` are what its buttons do.

    numbers: see `play.begin`. starts: distilled generators by world.
    """

    controls: Controls
    numbers: Mapping[str, Any]
    starts: Mapping[str, Stack]
    run: Run | None = None
    task: asyncio.Task | None = None
    mine: object = field(default_factory=object)

    @property
    def widget(self) -> Any:
        return self.controls.widget()

    @property
    def running(self) -> bool:
        return self.mine in TURN

    def start(self, _: Any = None) -> None:
        """Begin a run with the choices as they stand; one under way, here or in another playground, ends first."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.say("training goes on beside the notebook, and here is no notebook: use play.begin in a script")
            return
        choice, self.mine = self.controls.choice(), object()
        TURN[:] = [self.mine]  # whoever has trained so far sees this at the end of its slice
        origins = {DISTILLED: self.starts.get(choice.world), LAST: self.run and self.run.stack}
        self.run = play.begin(choice, start=origins.get(self.controls.origin.value), **self.numbers)
        self.task = loop.create_task(self._train(self.run, self.mine))
        self.controls.stop.disabled = False
        self.update()

    def stop(self, _: Any = None) -> None:
        """End the run after the step it is at; what it has learned stays."""
        if self.running:
            TURN.clear()

    def say(self, words: str) -> None:
        self.controls.status.value = f'<span role="status" aria-live="polite">{html.escape(words)}</span>'

    def update(self, _: Any = None) -> None:
        """Offer what the choices allow: controls that the method looks at, places to start from."""
        controls, choice = self.controls, self.controls.choice()
        for name in ("reward", "beta", "alpha_cfg"):
            getattr(controls, name).disabled = name not in choice.used()
        options = [DISTILLED] if choice.world in self.starts else []
        options += [FRESH, *([LAST] if self.run and self.run.choice.world == choice.world else [])]
        if list(controls.origin.options) != options:
            before = controls.origin.value
            controls.origin.options = options
            controls.origin.value = before if before in options else options[0]

    async def _train(self, run: Run, mine: object) -> None:
        """Train in slices while it is this run's turn; say at the end how it ended."""
        ended = "all steps are done"
        try:
            frame, due, going = None, 0.0, True
            while going and mine in TURN:
                if (begun := time.monotonic()) > due:
                    frame = await self._show(run, frame)
                    due = time.monotonic() + max(FRAME, 3 * (time.monotonic() - begun))
                end = time.monotonic() + SLICE
                while going and mine in TURN and time.monotonic() < end:
                    going = run.step()
                await asyncio.sleep(0.01)
            ended = "stopped" if going else ended
            if self.mine is mine:
                await self._show(run, frame)
        except NonFiniteError as error:
            ended = f"torn off ({error}): try a larger beta, or less guidance"
        except Exception as error:
            ended = f"failed ({' '.join(f'{type(error).__name__}: {error}'.split())})"
        finally:
            if mine in TURN:
                TURN.clear()
            if self.mine is mine:
                self.controls.stop.disabled = True
                self.say(f"{ended} at step {run.done}" + (f": {run.looks[-1].words}" if run.looks else ""))

    async def _show(self, run: Run, frame: Callable[[Look], bytes] | None) -> Callable[[Look], bytes]:
        """Look, draw and say where the run is, giving way in between."""
        look = run.look()
        await asyncio.sleep(0.01)
        frame = frame or moving_picture(run)
        await asyncio.sleep(0.01)
        if self.run is run:
            self.controls.canvas.value = frame(look)
            self.say(f"training, step {run.done} of {run.steps}: {look.words}")
            await asyncio.sleep(0.01)
        return frame


def new_player(
    choice: Choice,
    numbers: Mapping[str, Any],
    *,
    betas: Sequence[float],
    strengths: Sequence[float],
    starts: Mapping[str, Stack],
) -> Player:
    """A playground at this choice, with the first picture drawn and nothing running."""
    player = Player(new_controls(choice, betas, strengths), numbers, starts)
    controls = player.controls
    controls.start.on_click(player.start)
    controls.stop.on_click(player.stop)
    for control in (controls.world, controls.method):
        control.observe(player.update, names="value")
    player.update()
    first = play.begin(choice, start=starts.get(choice.world), **numbers)
    look = first.look()
    controls.canvas.value = moving_picture(first)(look)
    player.say(f"ready: {look.words}; press start")
    return player
