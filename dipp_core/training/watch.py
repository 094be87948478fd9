"""What a long run shows: its curves, live and afterwards, and pictures of what it draws.

    folder/curves.jsonl   {"step": 12, "reward": 0.4, "ta_loss": 1.7}   one line a record, values as exact as they were
    folder/curves.csv     the same as a table, and as a picture in curves.png
    folder/tensorboard/   the same for `tensorboard --logdir FOLDER`, while the run goes on, where that is installed

`step` counts the steps done when the values were measured. Runs side by side (see `StepRecord`) log a list a curve.
"""

import importlib.util
import io
import json
import math
import os
import pathlib
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from dipp_core.files import write_whole
from dipp_core.method.algorithm import StepRecord

DRAWING = threading.Lock()  # matplotlib draws for one thread at a time
Numbers = dict[str, float | list]


@dataclass(frozen=True)
class Curve:
    """Values (n,), or (n, E) for E runs side by side, measured after `step` (n,) steps."""

    step: np.ndarray
    values: np.ndarray


# -------------------------------------------------------------------------------------------------------------- curves


def numbers(record: StepRecord | Mapping[str, Any]) -> Numbers:
    """What a record says in numbers: terms, their gradient norms `norm_*` at x0, `grad_norm`, `ta_loss`."""
    if isinstance(record, StepRecord):
        norms = {f"norm_{name}": value for name, value in record.x0_grad_norms.items()}
        losses = {} if record.ta_loss is None else {"ta_loss": record.ta_loss}
        record = {**record.terms, **norms, "grad_norm": record.grad_norm, **losses}
    return {name: torch.as_tensor(value).tolist() for name, value in record.items()}


def not_finite(values: Mapping[str, Any]) -> list[str]:
    """Names of the values that are not finite."""
    return [name for name, value in values.items() if not np.isfinite(np.asarray(value, dtype=float)).all()]


def _flat(values: Numbers) -> Numbers:
    """One number a name: `reward[3]` for the fourth of several runs."""
    flat: Numbers = {}
    for name, value in values.items():
        flat |= {f"{name}[{k}]": one for k, one in enumerate(value)} if isinstance(value, list) else {name: value}
    return flat


class Log:
    """The curves of a run that goes on after `start` steps, cut back to the `size` bytes they had then."""

    def __init__(self, folder: pathlib.Path, start: int = 0, size: int = 0, say: Callable[[str], None] = print):
        path = folder / "curves.jsonl"
        self.file = open(path, "ab")  # noqa: SIM115, the run closes it
        if (found := path.stat().st_size) < size:
            say(f"{path} is shorter than at the checkpoint: the curves have a gap")
        self.file.truncate(min(size, found))
        self.folder, self.start = folder, start
        self.board: Any = None

    def write(self, step: int, values: Numbers) -> None:
        """One line, handed to the system at once: it survives the death of the process."""
        self.file.write(json.dumps({"step": step, **values}, allow_nan=False).encode() + b"\n")
        self.file.flush()
        if self.board is None and importlib.util.find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            again = self.start + 1 if self.start else None  # what was logged after the checkpoint is cut off here, too
            self.board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=again)
        if self.board:
            for name, value in _flat(values).items():
                self.board.add_scalar(name, value, step)

    def size_on_disk(self) -> int:
        """Wait until the log is on the disk; returns its size."""
        os.fsync(self.file.fileno())
        return os.fstat(self.file.fileno()).st_size

    def close(self) -> None:
        self.file.close()
        if self.board:
            self.board.close()


def _rows(folder: pathlib.Path) -> list[dict]:
    lines = (folder / "curves.jsonl").read_bytes().split(b"\n")
    return [json.loads(line) for line in lines[:-1]]  # what follows the last line break is half a line, or nothing


def read_curves(folder: str | pathlib.Path) -> dict[str, Curve]:
    """All curves of a run by name, also while it runs."""
    points: dict[str, list[tuple[int, Any]]] = {}
    for row in _rows(pathlib.Path(folder)):
        step = row.pop("step")
        for name, value in row.items():
            points.setdefault(name, []).append((step, value))
    return {name: Curve(*map(np.array, zip(*found, strict=True))) for name, found in points.items()}


def write_csv(folder: pathlib.Path) -> None:
    """curves.csv: one line a step, one column a curve."""
    if rows := [_flat(row) for row in _rows(folder)]:
        write_whole(folder / "curves.csv", pd.DataFrame(rows).groupby("step").first().to_csv())


# ------------------------------------------------------------------------------------------------------------ pictures


def _windows(curve: Curve, points: int) -> Curve:
    """Means over equal windows, at most so many of them."""
    width = math.ceil(len(curve.step) / points)
    whole = len(curve.step) // width * width
    step, values = (part[:whole].reshape(-1, width, *part.shape[1:]).mean(1) for part in (curve.step, curve.values))
    return Curve(step, values)


def curves_figure(found: Mapping[str, Curve]) -> Figure:
    """One panel a curve: means over windows, and for several runs their mean and range."""
    rows = math.ceil(len(found) / 3)
    fig = Figure(figsize=(11, 2.4 * rows), layout="constrained")
    axes = fig.subplots(rows, 3, squeeze=False).flat
    for (name, curve), ax in zip(found.items(), axes, strict=False):
        fine, coarse = _windows(curve, 1000), _windows(curve, 60)
        mean = coarse.values.reshape(len(coarse.step), -1).mean(1)
        if curve.values.ndim > 1:
            ax.fill_between(coarse.step, coarse.values.min(1), coarse.values.max(1), color="#56B4E9", alpha=0.4)
        else:
            ax.plot(fine.step, fine.values, color="#B3B3B3", linewidth=0.8)
        ax.plot(coarse.step, mean, color="#0072B2", marker="o" if len(mean) < 20 else None)
        ax.set_title(name, loc="left")
        ax.set_xlabel("steps")
    for ax in axes[len(found) :]:
        ax.set_visible(False)
    return fig


def picture_grid(images: torch.Tensor, columns: int, labels: list[str] | None = None) -> Figure:
    """Images (n, 3, H, W) in [0, 1], row by row, with a label above each if there are any."""
    rows = math.ceil(len(images) / columns)
    size = min(2.0, 11 / columns)
    fig = Figure(figsize=(size * columns, (size + 0.25 * bool(labels)) * rows), layout="constrained")
    for number, ax in enumerate(fig.subplots(rows, columns, squeeze=False).flat):
        ax.axis("off")
        if number < len(images):
            ax.imshow(images[number].detach().float().clamp(0, 1).permute(1, 2, 0).cpu().numpy())
            ax.set_title(labels[number] if labels else "", fontsize=8, loc="center")
    return fig


def is_live(wanted: bool | None = None) -> bool:
    """Whether pictures go into a notebook: where somebody watches it, or asked for them; never without a notebook.

    Nobody watches the pipeline, papermill or nbconvert: JupyterLab and VS Code alone say that they are there.
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if wanted is False or type(shell).__name__ != "ZMQInteractiveShell":
        return False
    watched = bool({"JPY_SESSION_NAME", "VSCODE_PID"} & os.environ.keys()) and "DIPP_REPORTS" not in os.environ
    return watched or bool(wanted)


class Screen:
    """Where the pictures of a run go: into files of its folder, and, live, into the notebook."""

    def __init__(self, folder: pathlib.Path, *, live: bool):
        self.folder, self.live = folder, live
        self.displays: dict[str, Any] = {}
        self.due = time.monotonic() + 10.0

    def show(self, name: str, fig: Figure, file: str) -> None:
        """Write a picture, and show it in the place of the one of this name that was shown before."""
        buffer = io.BytesIO()
        with DRAWING:
            fig.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
        write_whole(self.folder / file, buffer.getvalue())
        if not self.live:
            return
        from IPython.display import Image, display

        image = Image(data=buffer.getvalue(), format="png", width=900)
        if name in self.displays:
            self.displays[name].update(image)
        else:
            self.displays[name] = display(image, display_id=True)

    def draw_curves(self) -> None:
        """curves.png of all curves so far; it may take a fiftieth of the time."""
        begun = time.monotonic()
        if found := read_curves(self.folder):
            with DRAWING:
                fig = curves_figure(found)
            self.show("curves", fig, "curves.png")
        now = time.monotonic()
        self.due = now + max(10.0 if self.live else 60.0, 50 * (now - begun))

    def is_due(self) -> bool:
        return time.monotonic() > self.due
