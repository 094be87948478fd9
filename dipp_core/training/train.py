"""A long run around any iterator of step records, such as `align`: kept, continued exactly, watched.

    ema = EMA(gen, decay=0.999)
    parts = {"gen": gen, "ta": ta, "gen_optimizer": .., "ta_optimizer": .., "ema": ema, "noise": generator}
    run("runs/dipp", lambda start: align(.., generator=generator, steps=10_000, start_step=start),
        parts, Plan(steps=10_000), settings={"alpha_rew": 10.0, "seed": 0}, after_step=[ema.update])

Killed at any moment and started again, it ends with the weights, the EMA and the curves of a run that never stopped, on
a CPU bit for bit. For that all that lasts from step to step must be among the parts, and everything random come from a
`torch.Generator` among them or from the global random states, which are always kept.
"""

import contextlib
import pathlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from matplotlib.figure import Figure
from tqdm.auto import tqdm

from dipp_core.method.algorithm import StepRecord
from dipp_core.method.staged import NonFiniteError
from dipp_core.training import checkpoint, curves
from dipp_core.training.parts import Parts, state_of
from dipp_core.training.pictures import Screen, is_live

Record = StepRecord | Mapping[str, Any]
Records = Callable[[int], Iterable[Record]]
Evaluate = Callable[[int], Mapping[str, Any]]
Say = Callable[[str], None]

CURE = "the same settings lead there again: try smaller learning rates or alpha_rew, or clipping, in another folder"


class TrainError(RuntimeError):
    """One line that says why a run cannot go on, and what to do."""


class Stopped(KeyboardInterrupt):
    """A run that ended early, and saved, because it was asked to."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long a run is, and what is kept of it when.

    A checkpoint every `save_steps` steps (0: never) and every `save_minutes` minutes, whichever comes first; the last
    `keep_last` stay, and those of steps divisible by `keep_every`. Evaluation before the first step, every
    `evaluate_steps` (0: never), and at the end. `progress`: show bar and pictures; None: where somebody can see them.
    """

    steps: int
    save_steps: int = 1000
    save_minutes: float = 10.0
    keep_last: int = 2
    keep_every: int = 0
    log_steps: int = 1
    evaluate_steps: int = 0
    progress: bool | None = None


@dataclass(frozen=True)
class Outcome:
    """A finished run: steps done, seconds over all its starts, the step it was last resumed at."""

    steps: int
    seconds: float
    resumed_at: int


@dataclass
class _Keeper:
    """What keeps a run on the disk and on the screen; without a log, as in all processes but one, it only evaluates."""

    parts: Parts
    plan: Plan
    settings: dict
    evaluate: Evaluate | None
    say: Say
    log: BinaryIO | None
    anywhere: Callable[[bool], bool]
    screen: Screen
    begun: checkpoint.Checkpoint
    saved: float = field(default_factory=time.monotonic)

    def __post_init__(self):
        self.seconds, self.last = self.begun.facts.get("seconds", 0.0), self.begun.path

    @property
    def folder(self) -> pathlib.Path:
        return self.screen.folder

    def evaluated(self, done: int) -> None:
        """Log the numbers that the evaluation finds, and keep its figures, where it is due."""
        every = self.plan.evaluate_steps
        if not self.evaluate or not every or (done % every and done != self.plan.steps):
            return
        found = self.evaluate(done)
        figures = {name: value for name, value in found.items() if isinstance(value, Figure)}
        values = curves.numbers({f"eval_{name}": value for name, value in found.items() if name not in figures})
        for name in curves.not_finite(values):
            self.say(f"{self.folder}: {name} is not finite after step {done}, and left out")
            del values[name]
        if self.log:
            curves.append(self.log, done, values)
            for name, fig in figures.items():
                self.screen.show(name, fig, f"pictures/{name}_{done:08d}.png")

    def keep(self, done: int, last: bool) -> None:
        """Save and draw what is due after a step; the last step is always saved."""
        plan, late = self.plan, bool(self.log) and time.monotonic() - self.saved > 60 * self.plan.save_minutes
        due = last or (plan.save_steps and done % plan.save_steps == 0) or self.anywhere(late)
        if due and not self.log:
            for part in self.parts.values():
                state_of(part)  # of what is sharded over processes, all hand over their part
        elif due:
            self.seconds += time.monotonic() - self.saved
            self.saved = time.monotonic()
            facts = {"seconds": self.seconds, "log_bytes": curves.size_on_disk(self.log)}
            often = {"keep_last": plan.keep_last, "keep_every": plan.keep_every}
            self.last = checkpoint.save(self.folder, done, self.parts, self.settings, facts=facts, **often)
        if self.log and self.screen.is_due():
            self.screen.draw_curves()

    def publish(self) -> None:
        """Leave the curves as a picture and as a table."""
        if self.log:
            self.screen.draw_curves()
            curves.write_csv(self.folder)

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Whatever ends the run early, the curves are left to look at; what is known becomes one line."""
        try:
            yield
        except BaseException as error:
            with contextlib.suppress(OSError):
                self.publish()
            if isinstance(error, NonFiniteError):
                raise self.failed(str(error), CURE) from error
            if isinstance(error, OSError):
                raise self.failed(error.strerror or str(error), "cure that and run the same again") from error
            raise

    def failed(self, what: str, cure: str) -> TrainError:
        kept = f"{self.last.name} is kept" if self.last else "there is no checkpoint yet"
        return TrainError(f"{self.folder}: {what}; {kept}; {cure}")


@contextlib.contextmanager
def _asked_to_stop() -> Iterator[list[str]]:
    """Collects the names of signals that ask the process to end; a second one ends it at once."""
    asked: list[str] = []

    def note(number: int, _frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(signal.Signals(number).name)

    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _checked(record: Record, done: int, keeper: _Keeper) -> dict[str, float | list]:
    """The numbers of a record, all finite, of the step that is due."""
    if isinstance(record, StepRecord) and record.step != done - 1:
        raise TrainError(f"the records are at step {record.step}, not {done - 1}: pass start_step on to align")
    values = curves.numbers(record)
    if bad := curves.not_finite(values):
        raise keeper.failed(f"step {done - 1}: {', '.join(bad)} not finite", CURE)
    return values


def _steps(records: Iterable[Record], start: int, keeper: _Keeper, after_step: Sequence[Callable[[], Any]]) -> None:
    """The steps that are left."""
    folder, steps, done, wanted = keeper.folder, keeper.plan.steps, start, keeper.plan.progress
    shown = keeper.screen.live or sys.stderr.isatty() if wanted is None else wanted
    form = {"total": steps, "initial": start, "desc": folder.name, "unit": "step", "disable": not shown}
    with tqdm(**form) as bar, _asked_to_stop() as asked:
        for done, record in enumerate(records, start + 1):
            values = _checked(record, done, keeper)
            for act in after_step:
                act()
            if keeper.log and (done % keeper.plan.log_steps == 0 or done == steps):
                curves.append(keeper.log, done, values)
            keeper.evaluated(done)
            last = done == steps or keeper.anywhere(bool(asked))
            keeper.keep(done, last)
            bar.set_postfix({k: f"{v:.3g}" for k, v in values.items() if isinstance(v, float)}, refresh=False)
            bar.update()
            if done == steps:
                return
            if last:
                raise Stopped(f"{folder}: stopped after step {done} of {steps} and saved; run the same to continue")
    raise keeper.failed(f"the records ended after step {done} of {steps}", "let them go on to the end")


def run(
    folder: str | pathlib.Path,
    records: Records,
    parts: Parts,
    plan: Plan,
    settings: dict,
    *,
    after_step: Sequence[Callable[[], Any]] = (),
    evaluate: Evaluate | None = None,
    writes: bool = True,
    anywhere: Callable[[bool], bool] = bool,
    say: Say = print,
) -> Outcome:
    """Begin a run, or continue it from its last checkpoint in this folder; returns when all its steps are done.

    records(start): the records of steps start, start + 1, .. , asked for when the state is back in the parts.
    parts: all that changes from step to step, by name (see `parts`). settings: what makes this run this run, JSON; a
    checkpoint of other settings is refused. after_step: called after every step, say `ema.update`, `decay.step`.
    evaluate(steps done): numbers, which become curves `eval_*`, and matplotlib figures; it must leave the parts alone.
    writes: True in one process only, where there are several; anywhere(flag) then tells whether it is so in any.
    """
    folder = pathlib.Path(folder)
    with contextlib.ExitStack() as stack:
        stack.enter_context(checkpoint.locked(folder) if writes else contextlib.nullcontext())
        found = checkpoint.resume(folder, parts, settings, say) or checkpoint.Checkpoint(None, 0, settings, {}, {})
        start = found.step
        if start > plan.steps:
            raise TrainError(f"{folder}: {start} steps are done, the plan has {plan.steps}; use another folder")
        if start:
            say(f"{folder}: {'complete' if start == plan.steps else 'continued'} at step {start} of {plan.steps}")
        log = stack.enter_context(curves.open_log(folder, found.facts.get("log_bytes", 0), say)) if writes else None
        screen = Screen(folder, live=writes and is_live(plan.progress))
        keeper = _Keeper(parts, plan, settings, evaluate, say, log, anywhere, screen, found)
        if start < plan.steps:
            with keeper.guarded():
                if not start:
                    keeper.evaluated(0)
                _steps(records(start), start, keeper, after_step)
        keeper.publish()
        return Outcome(plan.steps, keeper.seconds, start)
