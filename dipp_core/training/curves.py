"""The curves of a long run: logged line by line, cut back on resuming, and read.

    folder/curves.jsonl   {"step": 12, "reward": 0.4, "ta_loss": 1.7}   one line a record, values as exact as they were

`step` counts the steps done when the values were measured. Runs side by side (see `StepRecord`) log a list a curve.
"""

import csv
import io
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import torch

from dipp_core.files import write_whole
from dipp_core.method.algorithm import StepRecord

NAME = "curves.jsonl"


@dataclass(frozen=True)
class Curve:
    """Values (n,), or (n, E) for E runs side by side, measured after `step` (n,) steps."""

    step: np.ndarray
    values: np.ndarray


def numbers(record: StepRecord | Mapping[str, Any]) -> dict[str, float | list]:
    """What a record says in numbers: terms, their gradient norms `norm_*` at x0, `grad_norm`, `ta_loss`."""
    if isinstance(record, StepRecord):
        norms = {f"norm_{name}": value for name, value in record.x0_grad_norms.items()}
        losses = {} if record.ta_loss is None else {"ta_loss": record.ta_loss}
        record = {**record.terms, **norms, "grad_norm": record.grad_norm, **losses}
    return {name: torch.as_tensor(value).tolist() for name, value in record.items()}


def not_finite(values: Mapping[str, Any]) -> list[str]:
    """Names of the values that are not finite."""
    return [name for name, value in values.items() if not np.isfinite(np.asarray(value, dtype=float)).all()]


def open_log(folder: pathlib.Path, size: int, say: Callable[[str], None] = print) -> BinaryIO:
    """The log, cut back to the `size` bytes it had at the checkpoint that is continued."""
    path = folder / NAME
    handle = open(path, "r+b" if path.exists() else "w+b")  # noqa: SIM115, the run closes it
    if (found := handle.seek(0, os.SEEK_END)) < size:
        say(f"{path} is shorter than at the checkpoint: the curves have a gap")
    handle.truncate(min(size, found))
    handle.seek(0, os.SEEK_END)
    return handle


def append(log: BinaryIO, step: int, values: Mapping[str, Any]) -> None:
    """One line, handed to the system at once: it survives the death of the process."""
    log.write(json.dumps({"step": step, **values}, allow_nan=False).encode() + b"\n")
    log.flush()


def size_on_disk(log: BinaryIO) -> int:
    """Wait until the log is on the disk; returns its size."""
    os.fsync(log.fileno())
    return log.tell()


def _rows(folder: pathlib.Path) -> list[dict]:
    lines = (folder / NAME).read_bytes().split(b"\n")
    return [json.loads(line) for line in lines[:-1]]  # what follows the last line break is half a line, or nothing


def read(folder: pathlib.Path) -> dict[str, Curve]:
    """All curves of a run by name, also while it runs."""
    columns = {}
    for row in _rows(pathlib.Path(folder)):
        for name, value in row.items():
            if name != "step":
                columns.setdefault(name, ([], []))
                columns[name][0].append(row["step"])
                columns[name][1].append(value)
    return {name: Curve(np.array(step), np.array(values)) for name, (step, values) in columns.items()}


def write_csv(folder: pathlib.Path) -> None:
    """curves.csv: one line a step, one column a curve, `reward[3]` for the fourth of several runs."""
    table = {}
    for row in _rows(folder):
        cells = table.setdefault(row.pop("step"), {})
        for name, value in row.items():
            pairs = ((f"{name}[{run}]", one) for run, one in enumerate(value)) if isinstance(value, list) else ()
            cells.update(pairs or {name: value})
    columns = ["step", *dict.fromkeys(name for cells in table.values() for name in cells)]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({"step": step, **cells} for step, cells in sorted(table.items()))
    write_whole(folder / "curves.csv", text.getvalue().encode())
