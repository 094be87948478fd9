"""A long run around any iterator of step records, such as `align`: kept, continued exactly, watched.

    ema = EMA(gen, decay=0.999)
    parts = {"gen": gen, "ta": ta, "gen_optimizer": .., "ta_optimizer": .., "ema": ema, "noise": generator}
    records = lambda start: align(.., generator=generator, steps=10_000, start_step=start)
    run("runs/dipp", records, parts, {"alpha_rew": 10.0, "seed": 0}, steps=10_000, after_step=[ema.update])

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
import functools
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
Job = TypeVar("Job")
Result = TypeVar("Result")

SAVE_MINUTES = 10.0  # the most that a kill costs
KEPT = 2  # checkpoints, the newest
CURE = "the same settings lead there again: try smaller learning rates or alpha_rew, or clipping, in another folder"


# ------------------------------------------------------------------------------------------------------------- average


class EMA:
    """Exponential moving average of a module's trainable parameters: m <- d m + (1 - d) theta, at every `update`.

    d = decay, with warm-up min(decay, (1 + n) / (10 + n)) at update n = 1, 2, .. so that the start is soon forgotten.
    Averages are in float32 at least. (diffusers' `EMAModel` drops the start at its first update, counts n one later,
    and averages in the precision of the parameters.)
    """

    def __init__(self, module: nn.Module, decay: float):
        if not 0 <= decay < 1:
            raise InputError(f"the decay of an EMA lies in [0, 1), not at {decay}")
        self.module, self.decay, self.updates = module, decay, 0
        self.average = {
            name: parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32), copy=True)
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }

    @torch.no_grad()
    def update(self) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, average in self.average.items():
            average.lerp_(self.module.get_parameter(name).to(average), 1 - decay)

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


def in_whole(state: Any) -> Any:
    """A state with whole tensors."""
    if isinstance(state, Tensor):
        return whole(state.detach())
    if isinstance(state, Mapping):
        return {key: in_whole(value) for key, value in state.items()}
    return type(state)(map(in_whole, state)) if type(state) in (list, tuple) else state


def _state(part: Any) -> Any:
    """What a part is at the moment; of what is sharded over processes, all must ask."""
    return part.get_state() if isinstance(part, torch.Generator) else in_whole(part.state_dict())


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


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """JSON with one entry a leaf, {"align.betas": [0, 1], "rewards.0.weight": 2.0}: what changed can be named."""
    nested = isinstance(value, list) and any(isinstance(one, dict) for one in value)
    if not isinstance(value, dict) and not nested:
        return {name: value}
    inside = enumerate(value) if nested else value.items()
    return {key: one for part, inner in inside for key, one in _flat(inner, f"{name}.{part}".lstrip(".")).items()}


def _identity(parts: Parts, settings: dict) -> dict[str, Any]:
    """What makes a run this run: its settings as JSON, the kinds of its parts, and shapes as "float32 (4,)"."""
    found = _flat(json.loads(json.dumps(settings)))
    for name, part in parts.items():
        found[f"{name}.kind"] = next(cls.__name__ for cls in type(part).__mro__ if not cls.__name__.startswith("FSDP"))
        for key, value in part.state_dict().items() if isinstance(part, nn.Module) else ():
            found[f"{name}.{key}"] = f"{str(value.dtype)[6:]} {tuple(value.shape)}"
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


def _kept(folder: pathlib.Path) -> str:
    kept = max((path.name for path in folder.glob("step_*.pt")), default=None)
    return f"{kept} is kept" if kept else "there is no checkpoint yet"


def save(folder: pathlib.Path, step: int, parts: Parts, settings: dict, log_bytes: int = 0) -> None:
    """Write the checkpoint of a run that has done `step` steps and logged so many bytes; remove older ones."""
    path, partial = folder / f"step_{step:08d}.pt", folder / "partial.pt"
    content = {"step": step, "identity": _identity(parts, settings), "log_bytes": log_bytes, "random": _random_state()}
    content["parts"] = {name: _state(part) for name, part in parts.items()}
    try:
        torch.save(content, partial)
        _flush(partial)
        _open(partial)
        os.replace(partial, path)
        _flush(folder)
    except (OSError, RuntimeError, AttributeError, pickle.PickleError) as error:
        partial.unlink(missing_ok=True)
        why = getattr(error, "strerror", None) or first_line(error)
        raise InputError(f"{path} was not written ({why}); {_kept(folder)}; cure that and run the same again") from None
    for old in sorted(old for old in folder.glob("step_*.pt") if old <= path)[:-KEPT]:
        old.unlink()


def latest(folder: pathlib.Path, say: Callable[[str], None] = print) -> dict[str, Any] | None:
    """The newest intact checkpoint in a folder, None where there are none; says which damaged ones it passed over."""
    damaged: list[pathlib.Path] = []
    for path in sorted(folder.glob("step_*.pt"), reverse=True):
        try:
            with zipfile.ZipFile(path) as archive:
                intact = archive.testzip() is None  # every byte has its checksum
        except (OSError, zipfile.BadZipFile):
            intact = False
        if not intact:
            damaged.append(path)
            continue
        for other in damaged:
            say(f"{other} is damaged; using {path.name} instead")
        try:
            return _open(path)
        except pickle.UnpicklingError:
            raise InputError(f"{path} is no checkpoint of this project; use another folder") from None
    if damaged:
        raise InputError(f"{damaged[0]} is damaged, and none before it is intact; remove {folder} to start again")
    return None


def resume(
    folder: pathlib.Path, parts: Parts, settings: dict, say: Callable[[str], None] = print
) -> dict[str, Any] | None:
    """Continue from the newest intact checkpoint of the same run: its state is put into the parts; None to begin.

    One of other settings, or of parts of another kind or shape, is refused before anything changes.
    """
    here, found = _identity(parts, settings), latest(folder, say)
    if found is None:
        return None
    there = found["identity"]
    if changed := [key for key in {**there, **here} if there.get(key) != here.get(key)]:
        pairs = [f"{key} = {there.get(key)} there, {here.get(key)} here" for key in changed[:5]]
        more = f", and {len(changed) - 5} more" if changed[5:] else ""
        what = f"{folder} is of another run: {', '.join(pairs)}{more}"
        raise InputError(f"{what}; restore the settings or use another folder")
    for name, part in parts.items():
        _load(part, found["parts"][name])
    _set_random_state(found["random"])
    return found


# ------------------------------------------------------------------------------------------------------------- the run


class Stopped(KeyboardInterrupt):
    """A run that ended early, and saved, because it was asked to; commands end with the code AGAIN then."""


AGAIN = 75  # EX_TEMPFAIL of sysexits.h: start the same command again


@contextlib.contextmanager
def _asked_to_stop() -> Iterator[list[str]]:
    """Collects the names of signals that ask the process to end; a second one ends it at once."""
    asked: list[str] = []

    def note(number: int, _frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(signal.Signals(number).name)

    if threading.current_thread() is not threading.main_thread():  # signals do not come here
        yield asked
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run(
    folder: str | pathlib.Path,
    records: Callable[[int], Iterable[Record]],
    parts: Parts,
    settings: dict,
    *,
    steps: int,
    save_steps: int = 1000,
    after_step: Sequence[Callable[[], Any]] = (),
    evaluate: Callable[[int], Mapping[str, Any]] | None = None,
    evaluate_steps: int = 0,
    progress: bool | None = None,
    writes: bool = True,
    anywhere: Callable[[bool], bool] = bool,
    say: Callable[[str], None] = print,
) -> None:
    """Begin a run, or continue it from its last checkpoint in this folder; returns when all its steps are done.

    records(start): the records of steps start, start + 1, .. , asked for when the state is back in the parts. A run
    that is complete may be asked for more steps.
    parts: all that changes from step to step, by name. settings: what makes this run this run, JSON; a checkpoint of
    other settings is refused. save_steps: a checkpoint so often (0: never), every ten minutes, and at the end.
    after_step: called after every step, say `ema.update`, `decay.step`.
    evaluate(steps done): numbers, which become curves `eval_*`, and matplotlib figures; it must leave the parts alone.
    Called before the first step, every `evaluate_steps` (0: never), and at the end.
    progress: show bar and pictures; None: where somebody can see them.
    writes: True in one process only, where there are several; anywhere(flag) then tells whether it is so in any.
    """
    folder = pathlib.Path(folder)

    def failed(what: str, cure: str) -> InputError:
        return InputError(f"{folder}: {what}; {_kept(folder)}; {cure}")

    def look(done: int) -> None:
        """Log the numbers that the evaluation finds, and keep its figures, where it is due."""
        if not evaluate or not evaluate_steps or (done % evaluate_steps and done != steps):
            return
        found = evaluate(done)
        figures = {name: value for name, value in found.items() if isinstance(value, Figure)}
        values = watch.numbers({f"eval_{name}": value for name, value in found.items() if name not in figures})
        for name in watch.not_finite(values):
            say(f"{folder}: {name} is not finite after step {done}, and left out")
            del values[name]
        if log:
            log.write(done, values)
            for name, fig in figures.items():
                screen.show(name, fig, f"pictures/{name}_{done:08d}.png")

    with only_one(folder / "lock", f"the run in {folder}") if writes else contextlib.nullcontext():
        found = resume(folder, parts, settings, say) or {"step": 0, "log_bytes": 0}
        start = found["step"]
        if start > steps:
            raise InputError(f"{folder}: {start} steps are done, not {steps}; use another folder")
        if start:
            say(f"{folder}: {'complete' if start == steps else 'continued'} at step {start} of {steps}")
        log = watch.Log(folder, start, found["log_bytes"], say) if writes else None
        screen = watch.Screen(folder, live=writes and watch.is_live(progress))
        shown = screen.live or sys.stderr.isatty() if progress is None else progress
        bar = tqdm(total=steps, initial=start, desc=folder.name, unit="step", disable=not shown or start == steps)
        saved, done = time.monotonic(), start
        try:
            with bar, _asked_to_stop() as asked:
                if not start:
                    look(0)
                for done, record in enumerate(records(start) if start < steps else (), start + 1):
                    if isinstance(record, StepRecord) and record.step != done - 1:
                        what = f"the records are at step {record.step}, not {done - 1}"
                        raise InputError(f"{what}: pass start_step to align")
                    values = watch.numbers(record)
                    if bad := watch.not_finite(values):
                        raise failed(f"step {done - 1}: {', '.join(bad)} not finite", CURE)
                    for act in after_step:
                        act()
                    if log:
                        log.write(done, values)
                    look(done)
                    ends = done == steps or anywhere(bool(asked))
                    late = writes and time.monotonic() - saved > 60 * SAVE_MINUTES
                    if ends or (save_steps and done % save_steps == 0) or anywhere(late):
                        if log:
                            save(folder, done, parts, settings, log.size_on_disk())
                        else:
                            for part in parts.values():
                                _state(part)  # of what is sharded over processes, all hand over their part
                        saved = time.monotonic()
                    if log and screen.is_due():
                        screen.draw_curves()
                    bar.set_postfix({k: f"{v:.3g}" for k, v in values.items() if isinstance(v, float)}, refresh=False)
                    bar.update()
                    if done == steps:
                        break
                    if ends:
                        what = f"stopped after step {done} of {steps} and saved"
                        raise Stopped(f"{folder}: {what}; run the same to continue")
            if done < steps:
                raise failed(f"the records ended before step {steps}", "let them go on to the end")
        except NonFiniteError as error:
            raise failed(str(error), CURE) from error
        except OSError as error:
            raise failed(error.strerror or str(error), "cure that and run the same again") from error
        finally:
            for last in (log.close, screen.draw_curves, functools.partial(watch.write_csv, folder)) if log else ():
                with contextlib.suppress(
                    OSError
                ):  # a full disk: the checkpoint and the curves' own file are what counts
                    last()


def each(work: Callable[[Job], Result], jobs: Iterable[Job]) -> list[Result]:
    """work(job) of every job, in their order, as many at a time as torch has threads.

    Small networks gain more from that than from more threads. Every job runs on one thread, so what it computes does
    not depend on how many run beside it. It must share no generator or network with another. The first error ends all
    that has not begun, and is raised.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(work, jobs))
    finally:
        torch.set_num_threads(threads)
