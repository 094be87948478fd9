"""Pictures of runs in the plane to play with: clouds over the reference, a filmstrip, curves."""

from collections.abc import Sequence

import matplotlib
import torch
from matplotlib.figure import Figure
from torch import Tensor

from dipp_core.book import report
from dipp_core.book.report import COLORS
from dipp_core.classroom.play import METHODS, Look, Run
from dipp_core.worlds import plane

CURVES = {  # what it is called and its colour
    "norm_reward": ("reward", "reward"),
    "norm_divergence": ("divergence", "ref"),
    "norm_guidance": ("guidance", "accent"),
    "grad_norm": ("gradient, all weights", "gen"),
    "ta_loss": ("assistant's loss", "ta"),
}
EXTENT = 3.6  # of the picture, in either direction


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


def draw_row(fig, seen: Sequence[tuple[str, Run, Look]]) -> None:
    """Clouds side by side, each with its title, its mean reward and its distance; all of one world."""
    background = density(seen[0][1].world)
    for ax, (title, run, look) in zip(fig.subplots(1, len(seen), sharey=True), seen, strict=True):
        draw_cloud(ax, run, look, background)
        ax.set_title(title, fontsize=10)
        ax.set_xlabel(look.words.replace(", ", "\n"), fontsize=10)


def filmstrip(run: Run, looks: Sequence[Look]) -> Figure:
    """The clouds of some looks side by side, and below them the curves of the whole run."""
    with matplotlib.rc_context(report.STYLE):
        fig = Figure(figsize=(11, 5.4))
        above, below = fig.subfigures(2, 1, height_ratios=(1.15, 1))
        draw_row(above, [(f"step {look.step}", run, look) for look in looks])
        draw_curves(below.subplots(1, 3), run)
    return fig


def side_by_side(runs: Sequence[Run]) -> Figure:
    """Where runs of several methods are now."""
    with matplotlib.rc_context(report.STYLE):
        fig = Figure(figsize=(11, 1.4 + 11 / len(runs)))
        draw_row(fig, [(METHODS[run.choice.method].replace(" (", "\n("), run, run.looks[-1]) for run in runs])
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
