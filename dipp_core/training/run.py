"""A long run around any iterator of step records, such as `align`: kept, continued exactly, watched.

    ema = EMA(gen, decay=0.999)
    parts = {"gen": gen, "ta": ta, "gen_optimizer": .., "ta_optimizer": .., "ema": ema, "noise": generator}
    run("runs/dipp", lambda start: align(.., generator=generator, steps=10_000, start_step=start),
        parts, Plan(steps=10_000), settings={"alpha_rew": 10.0, "seed": 0}, after_step=[ema.update])

Killed at any moment and started again, it ends with the weights, the EMA and the curves of a run that never stopped, on
a CPU bit for bit. For that all that lasts from step to step must be among the *parts*: modules, optimisers, learning
rates, an EMA, anything else with `state_dict` and `load_state_dict`, and `torch.Generator`s, each under a name. The
global random states are always kept.

A checkpoint, folder/step_00001200.pt, is written under another name, flushed to the disk and renamed: under its own
name it is whole. One that was damaged all the same, by a copy or a broken disk, is named, and the one before it used.
It is opened as weights only: no code in it is ever run. (Accelerate's `save_state` writes in place, keeps random states
for every process apart, and goes on without them where they cannot be read.)
"""

import contextlib
import json
import os
import pathlib
import pickle
import random
import signal
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm.auto import tqdm

from dipp_core.files import InputError, first_line, only_one
from dipp_core.method.algorithm import StepRecord
from dipp_core.method.staged import NonFiniteError
from dipp_core.training import watch

Parts = Mapping[str, Any]
Record = StepRecord | Mapping[str, Any]
Evaluate = Callable[[int], Mapping[str, Any]]
Say = Callable[[str], None]
Job = TypeVar("Job")
Result = TypeVar("Result")

CURE = "the same settings lead there again: try smaller learning rates or alpha_rew, or clipping, in another folder"


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


# ------------------------------------------------------------------------------------------------------------- average


class EMA:
    """Exponential moving average of a module's trainable parameters: m <- d m + (1 - d) theta, at every `update`.

    d = decay, with warm-up min(decay, (1 + n) / (10 + n)) at update n = 1, 2, .. so that the start is soon forgotten.
    Averages are in float32 at least. (diffusers' `EMAModel` drops the start at its first update, counts n one later,
    and averages in the precision of the parameters.)
    """

    def __init__(self, module: nn.Module, decay: float, *, warmup: bool = True):
        if not 0 <= decay < 1:
            raise InputError(f"the decay of an EMA lies in [0, 1), not at {decay}")
        self.module, self.decay, self.warmup, self.updates = module, decay, warmup, 0
        self.average = {
            name: parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32), copy=True)
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }

    @torch.no_grad()
    def update(self) -> None:
        self.updates += 1
        ramp = (1 + self.updates) / (10 + self.updates) if self.warmup else self.decay
        for name, average in self.average.items():
            average.lerp_(self.module.get_parameter(name).to(average), 1 - min(self.decay, ramp))

    @contextlib.contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """Within the context the module has the averaged parameters: to evaluate or to export it."""
        own = {name: self.module.get_parameter(name).detach().clone() for name in self.average}
        try:
            self._put(self.average)
            yield self.module
        finally:
            self._put(own)

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self.module.get_parameter(name).copy_(value)

    def state_dict(self) -> dict:
        return {"updates": self.updates, "average": self.average}

    def load_state_dict(self, state: dict) -> None:
        self.updates = state["updates"]
        for name, average in self.average.items():
            average.copy_(_sharded_like(state["average"][name], average))


# --------------------------------------------------------------------------------------------------------- checkpoints


def whole(tensor: Tensor) -> Tensor:
    """A tensor that FSDP sharded, gathered from all processes, which must all ask; any other as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _sharded_like(tensor: Tensor, other: Any) -> Tensor:
    """A whole tensor sharded as another one is; as it is where the other one is whole too."""
    if not hasattr(other, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements)


def _whole(state: Any) -> Any:
    """A state with whole tensors."""
    if isinstance(state, Tensor):
        return whole(state.detach())
    if isinstance(state, Mapping):
        return {key: _whole(value) for key, value in state.items()}
    return type(state)(map(_whole, state)) if type(state) in (list, tuple) else state


def _state(part: Any) -> Any:
    """What a part is at the moment; of what is sharded over processes, all must ask."""
    return part.get_state() if isinstance(part, torch.Generator) else _whole(part.state_dict())


def _load(part: Any, state: Any) -> None:
    """Put a state back into a part."""
    if isinstance(part, torch.Generator):
        part.set_state(state)
        return
    if isinstance(part, nn.Module):
        live = part.state_dict()  # knows the versions of its layers, which a plain dict does not
        live.update({name: _sharded_like(value, live.get(name)) for name, value in state.items()})
        state = live
    elif isinstance(part, torch.optim.Optimizer):
        weights = [weight for group in part.param_groups for weight in group["params"]]
        for number, own in state["state"].items():
            for key, value in own.items():
                if getattr(value, "shape", None) == weights[number].shape:
                    own[key] = _sharded_like(value, weights[number])
    part.load_state_dict(state)


def _random_state() -> dict[str, Any]:
    """The random states that belong to the process: Python, numpy, torch on the CPU and on every GPU in use."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002, libraries draw from it
    numpy = [str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest]
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {"python": random.getstate(), "numpy": numpy, "torch": torch.get_rng_state(), "cuda": cuda}


def _set_random_state(state: dict[str, Any]) -> None:
    kind, keys, *rest = state["numpy"]
    random.setstate(state["python"])
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    for device, one in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(one, device)


def _identity(parts: Parts, settings: dict) -> dict[str, Any]:
    """What makes a run this run: its settings as JSON, the kinds of its parts, and shapes as "float32 (4,)"."""
    try:
        found = json.loads(json.dumps(settings, default=lambda value: value.tolist()))
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"settings hold numbers, text, lists and tensors: {first_line(error)}") from None
    for name, part in parts.items():
        found[f"{name}.kind"] = next(cls.__name__ for cls in type(part).__mro__ if not cls.__name__.startswith("FSDP"))
        tensors: Mapping[str, Tensor] = {}
        if isinstance(part, torch.optim.Optimizer):  # which has no tensors of its own before its first step
            groups = enumerate(group["params"] for group in part.param_groups)
            tensors = {f"{g}.{i}": weight for g, group in groups for i, weight in enumerate(group)}
        elif isinstance(part, (nn.Module, EMA)):
            tensors = part.state_dict() if isinstance(part, nn.Module) else part.average
        found |= {f"{name}.{key}": f"{str(value.dtype)[6:]} {tuple(value.shape)}" for key, value in tensors.items()}
    return found


def _flush(path: pathlib.Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _open(path: pathlib.Path) -> dict[str, Any]:
    """The content of a checkpoint, tensors from the disk when they are used. `weights_only`: no code is ever run."""
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def save(
    folder: pathlib.Path, step: int, parts: Parts, settings: dict, plan: Plan, facts: dict[str, Any]
) -> pathlib.Path:
    """Write the checkpoint of a run that has done `step` steps, then remove those that the plan does not keep."""
    path, partial = folder / f"step_{step:08d}.pt", folder / "partial.pt"
    older = [old for old in sorted(folder.glob("step_*.pt")) if old.name < path.name]
    content = {"step": step, "identity": _identity(parts, settings), "facts": facts, "random": _random_state()}
    content["parts"] = {name: _state(part) for name, part in parts.items()}
    try:
        torch.save(content, partial)
        _flush(partial)
        _open(partial)
        os.replace(partial, path)
        _flush(folder)
    except (pickle.PickleError, AttributeError) as error:
        raise InputError(f"parts hold tensors, numbers, text, lists and dicts: {first_line(error)}") from None
    except (OSError, RuntimeError) as error:
        partial.unlink(missing_ok=True)
        why = getattr(error, "strerror", None) or first_line(error)
        kept = f"{older[-1].name} is kept" if older else "there is none before it"
        raise InputError(f"{path} was not written ({why}); {kept}; cure that and run the same again") from None
    for old in older[: max(0, len(older) + 1 - plan.keep_last)]:
        if not plan.keep_every or int(old.stem[5:]) % plan.keep_every:
            old.unlink()
    return path


def latest(folder: pathlib.Path, say: Say = print) -> tuple[pathlib.Path, dict[str, Any]] | None:
    """The newest intact checkpoint in a folder, None where there are none; says which damaged ones it passed over."""
    damaged: list[pathlib.Path] = []
    for path in sorted(folder.glob("step_*.pt"), reverse=True):
        try:
            with zipfile.ZipFile(path) as archive:
                intact = archive.testzip() is None  # every byte has its checksum
        except (OSError, zipfile.BadZipFile):
            intact = False
        if intact:
            for other in damaged:
                say(f"{other} is damaged; using {path.name} instead")
            try:
                return path, _open(path)
            except pickle.UnpicklingError:
                raise InputError(f"{path} is no checkpoint of this project; use another folder") from None
        damaged.append(path)
    if damaged:
        raise InputError(f"{damaged[0]} is damaged, and none before it is intact; remove {folder} to start again")
    return None


def resume(
    folder: pathlib.Path, parts: Parts, settings: dict, say: Say = print
) -> tuple[pathlib.Path, dict[str, Any]] | None:
    """Continue from the newest intact checkpoint of the same run: its state is put into the parts; None to begin.

    One of other settings, or of parts of another kind or shape, is refused before anything changes.
    """
    here, found = _identity(parts, settings), latest(folder, say)
    if found is None:
        return None
    path, content = found
    there = content["identity"]
    if changed := [key for key in {**there, **here} if there.get(key) != here.get(key)]:
        pairs = [f"{key} = {there.get(key)} there, {here.get(key)} here" for key in changed[:5]]
        more = f", and {len(changed) - 5} more" if changed[5:] else ""
        what = f"{path} is of another run: {', '.join(pairs)}{more}"
        raise InputError(f"{what}; restore the settings or use another folder")
    for name, part in parts.items():
        _load(part, content["parts"][name])
    _set_random_state(content["random"])
    return found


# ------------------------------------------------------------------------------------------------------------- the run


class Stopped(KeyboardInterrupt):
    """A run that ended early, and saved, because it was asked to."""


@dataclass(frozen=True)
class Outcome:
    """A finished run: steps done, seconds over all its starts, the step it was last resumed at."""

    steps: int
    seconds: float
    resumed_at: int


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


def run(
    folder: str | pathlib.Path,
    records: Callable[[int], Iterable[Record]],
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
    parts: all that changes from step to step, by name. settings: what makes this run this run, JSON; a checkpoint of
    other settings is refused. after_step: called after every step, say `ema.update`, `decay.step`.
    evaluate(steps done): numbers, which become curves `eval_*`, and matplotlib figures; it must leave the parts alone.
    writes: True in one process only, where there are several; anywhere(flag) then tells whether it is so in any.
    """
    folder = pathlib.Path(folder)
    with only_one(folder / "lock", f"the run in {folder}") if writes else contextlib.nullcontext():
        found = resume(folder, parts, settings, say)
        start = found[1]["step"] if found else 0
        facts: dict[str, Any] = found[1]["facts"] if found else {"seconds": 0.0, "log_bytes": 0}
        if start > plan.steps:
            raise InputError(f"{folder}: {start} steps are done, the plan has {plan.steps}; use another folder")
        if start:
            say(f"{folder}: {'complete' if start == plan.steps else 'continued'} at step {start} of {plan.steps}")
        log = watch.Log(folder, start, facts["log_bytes"], say) if writes else None
        screen = watch.Screen(folder, live=writes and watch.is_live(plan.progress))
        last = found[0] if found else None
        going = _Run(folder, plan, parts, settings, evaluate, anywhere, say, log, screen, facts["seconds"], last)
        try:
            if start < plan.steps:
                going.steps(records, start, after_step)
        except NonFiniteError as error:
            raise going.failed(str(error), CURE) from error
        except OSError as error:
            raise going.failed(error.strerror or str(error), "cure that and run the same again") from error
        finally:
            with contextlib.suppress(OSError):
                going.publish()
        return Outcome(plan.steps, going.seconds, start)


@dataclass
class _Run:
    """A run under way; without a log, as in all processes but one, it only computes."""

    folder: pathlib.Path
    plan: Plan
    parts: Parts
    settings: dict
    evaluate: Evaluate | None
    anywhere: Callable[[bool], bool]
    say: Say
    log: watch.Log | None
    screen: watch.Screen
    seconds: float  # over all its starts, at the last checkpoint
    last: pathlib.Path | None  # the last checkpoint
    saved: float = field(default_factory=time.monotonic)

    def steps(
        self, records: Callable[[int], Iterable[Record]], start: int, after_step: Sequence[Callable[[], Any]]
    ) -> None:
        """The steps that are left."""
        plan, shown = self.plan, self.plan.progress
        shown = self.screen.live or sys.stderr.isatty() if shown is None else shown
        bar = tqdm(total=plan.steps, initial=start, desc=self.folder.name, unit="step", disable=not shown)
        with bar, _asked_to_stop() as asked:
            if not start:
                self.look(0)
            for done, record in enumerate(records(start), start + 1):
                if isinstance(record, StepRecord) and record.step != done - 1:
                    raise InputError(f"the records are at step {record.step}, not {done - 1}: pass start_step to align")
                values = watch.numbers(record)
                if bad := watch.not_finite(values):
                    raise self.failed(f"step {done - 1}: {', '.join(bad)} not finite", CURE)
                for act in after_step:
                    act()
                if self.log and (done % plan.log_steps == 0 or done == plan.steps):
                    self.log.write(done, values)
                self.look(done)
                ends = done == plan.steps or self.anywhere(bool(asked))
                self.keep(done, ends)
                bar.set_postfix({k: f"{v:.3g}" for k, v in values.items() if isinstance(v, float)}, refresh=False)
                bar.update()
                if done == plan.steps:
                    return
                if ends:
                    what = f"stopped after step {done} of {plan.steps} and saved"
                    raise Stopped(f"{self.folder}: {what}; run the same to continue")
        raise self.failed(f"the records ended before step {plan.steps}", "let them go on to the end")

    def look(self, done: int) -> None:
        """Log the numbers that the evaluation finds, and keep its figures, where it is due."""
        every = self.plan.evaluate_steps
        if not self.evaluate or not every or (done % every and done != self.plan.steps):
            return
        found = self.evaluate(done)
        figures = {name: value for name, value in found.items() if isinstance(value, Figure)}
        values = watch.numbers({f"eval_{name}": value for name, value in found.items() if name not in figures})
        for name in watch.not_finite(values):
            self.say(f"{self.folder}: {name} is not finite after step {done}, and left out")
            del values[name]
        if self.log:
            self.log.write(done, values)
            for name, fig in figures.items():
                self.screen.show(name, fig, f"pictures/{name}_{done:08d}.png")

    def keep(self, done: int, ends: bool) -> None:
        """Save and draw what is due after a step; the last step is always saved."""
        plan, late = self.plan, bool(self.log) and time.monotonic() - self.saved > 60 * self.plan.save_minutes
        if ends or (plan.save_steps and done % plan.save_steps == 0) or self.anywhere(late):
            if self.log:
                self.seconds += time.monotonic() - self.saved
                self.saved = time.monotonic()
                facts = {"seconds": self.seconds, "log_bytes": self.log.size_on_disk()}
                self.last = save(self.folder, done, self.parts, self.settings, plan, facts)
            else:
                for part in self.parts.values():
                    _state(part)  # of what is sharded over processes, all hand over their part
        if self.log and self.screen.is_due():
            self.screen.draw_curves()

    def publish(self) -> None:
        """Leave the curves as a picture and as a table."""
        if self.log:
            self.log.close()
            self.screen.draw_curves()
            watch.write_csv(self.folder)

    def failed(self, what: str, cure: str) -> InputError:
        kept = f"{self.last.name} is kept" if self.last else "there is no checkpoint yet"
        return InputError(f"{self.folder}: {what}; {kept}; {cure}")


def each(work: Callable[[Job], Result], jobs: Iterable[Job], *, workers: int | None = None) -> list[Result]:
    """work(job) of every job, in their order; `workers` at a time, by default as many as torch has threads.

    Small networks gain more from that than from more threads. Every job runs on one thread, so what it computes does
    not depend on how many run beside it. It must share no generator or network with another. The first error ends all
    that has not begun, and is raised.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(workers or threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        return [future.result() for future in [pool.submit(work, job) for job in jobs]]
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
