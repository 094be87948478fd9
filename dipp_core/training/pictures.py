"""Pictures of a long run: its curves, grids of samples, and where they are shown while it runs."""

import io
import math
import os
import pathlib
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import matplotlib
import torch
from matplotlib.figure import Figure

from dipp_core.book import report
from dipp_core.files import write_whole
from dipp_core.training import curves

DRAWING = threading.Lock()  # matplotlib draws for one thread at a time


def _windows(curve: curves.Curve, points: int) -> curves.Curve:
    """Means over equal windows, at most so many of them."""
    width = math.ceil(len(curve.step) / points)
    whole = len(curve.step) // width * width
    step, values = (part[:whole].reshape(-1, width, *part.shape[1:]).mean(1) for part in (curve.step, curve.values))
    return curves.Curve(step, values)


def figure(found: Mapping[str, curves.Curve], columns: int = 3) -> Figure:
    """One panel a curve: means over windows, and for several runs their mean and range."""
    rows = max(1, math.ceil(len(found) / columns))
    with matplotlib.rc_context(report.STYLE):
        fig = Figure(figsize=(11, 2.4 * rows))
        axes = fig.subplots(rows, columns, squeeze=False).flat
        for (name, curve), ax in zip(found.items(), axes, strict=False):
            fine, coarse = _windows(curve, 1000), _windows(curve, 60)
            step, mean = coarse.step, coarse.values.reshape(len(coarse.step), -1).mean(1)
            if curve.values.ndim > 1:
                low, high = coarse.values.min(1), coarse.values.max(1)
                ax.fill_between(step, low, high, color=report.COLORS["light"], alpha=0.4)
            else:
                ax.plot(fine.step, fine.values, color=report.COLORS["data"], linewidth=0.8)
            ax.plot(step, mean, color=report.COLORS["ref"], marker="o" if len(step) < 20 else None)
            ax.set(title=name, xlabel="steps")
        for ax in axes:
            ax.set_visible(False)
    return fig


def picture_grid(images: torch.Tensor, columns: int, labels: list[str] | None = None) -> Figure:
    """Images (n, 3, H, W) in [0, 1], row by row, with a label above each if there are any."""
    rows = math.ceil(len(images) / columns)
    size = min(2.0, 11 / columns)
    with matplotlib.rc_context(report.STYLE):
        fig = Figure(figsize=(size * columns, (size + 0.25 * bool(labels)) * rows))
        for number, ax in enumerate(fig.subplots(rows, columns, squeeze=False).flat):
            ax.axis("off")
            if number < len(images):
                ax.imshow(images[number].detach().float().clamp(0, 1).permute(1, 2, 0).cpu().numpy())
                ax.set_title(labels[number] if labels else "", fontsize=8, loc="center")
    return fig


def png(fig: Figure) -> bytes:
    """A figure as it is shown while a run goes on."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(report.STYLE):
        fig.savefig(buffer, format="png", dpi=report.STYLE["figure.dpi"], metadata={"Software": None})
    return buffer.getvalue()


def is_live(wanted: bool | None = None) -> bool:
    """Whether pictures go into a notebook: where somebody watches it, or asked for them; never without a notebook.

    Nobody watches the pipeline, papermill or nbconvert: JupyterLab and VS Code alone say that they are there.
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if wanted is False or type(shell).__name__ != "ZMQInteractiveShell":
        return False
    watched = bool({"JPY_SESSION_NAME", "VSCODE_PID"} & os.environ.keys()) and "DIPP_REPORTS" not in os.environ
    return watched or bool(wanted)


@dataclass
class Screen:
    """Where the pictures of a run go: into files of its folder, and, live, into the notebook."""

    folder: pathlib.Path
    live: bool
    displays: dict = field(default_factory=dict)
    drawn: float = field(default_factory=time.monotonic)
    pause: float = 10.0

    def show(self, name: str, fig: Figure, file: str) -> None:
        """Write a picture, and show it in the place of the one of this name that was shown before."""
        with DRAWING:
            content = png(fig)
        write_whole(self.folder / file, content)
        if not self.live:
            return
        from IPython.display import Image, display

        image = Image(data=content, format="png", width=900)
        if name in self.displays:
            self.displays[name].update(image)
        else:
            self.displays[name] = display(image, display_id=True)

    def draw_curves(self) -> None:
        """curves.png of all curves so far; it may take a fiftieth of the time."""
        begun = time.monotonic()
        if found := curves.read(self.folder):
            with DRAWING:
                fig = figure(found)
            self.show("curves", fig, "curves.png")
        self.drawn = time.monotonic()
        self.pause = max(10.0 if self.live else 60.0, 50 * (self.drawn - begun))

    def is_due(self) -> bool:
        return time.monotonic() - self.drawn > self.pause
