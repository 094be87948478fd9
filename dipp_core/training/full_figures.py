"""Figures of the notebooks at full scale: memory by part, the course of a stage, pictures of the same noise."""

import pathlib
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from dipp_core.book.report import COLORS
from dipp_core.training import rehearsal
from dipp_core.training.preflight import GIB, Part
from dipp_core.training.watch import read_curves

# what the bars of memory are made of: beginnings of the names of parts, colour
GROUPS = {
    "frozen weights": (("reference", "start", "VAE", "rewards"), "ref"),
    "weights that learn, their average": (("generator", "averaged"), "gen"),
    "Adam and gradients": (("Adam", "gradients"), "accent"),
    "activations": (("activations",), "reward"),
    "libraries, workspaces": (("libraries",), "light"),
}
CURVES = {
    "ta_loss": "assistant's loss",
    "norm_divergence": "divergence's gradient at $x_0$",
    "norm_reward": "reward's gradient at $x_0$",
    "eval_reward": "mean reward",
}


def memory(profiles: Mapping[str, Sequence[Part]], cards: Sequence[int] = (24, 80)) -> Figure:
    """A bar a profile, of the parts of its estimated memory while it trains, and lines for cards, in GB."""
    fig, ax = plt.subplots(figsize=(10, 1.8 + 0.6 * len(profiles)))
    for number, parts in enumerate(profiles.values()):
        left = 0.0
        for label, (beginnings, color) in GROUPS.items():
            size = sum(one.memory for one in parts if one.name.startswith(beginnings) and not one.before) / GIB
            named = label if number == 0 else None
            ax.barh(number, size, left=left, color=COLORS[color], label=named, edgecolor="white", height=0.6)
            left += size
    for size in cards:
        ax.axvline(size, color=COLORS["exact"], linestyle=":", linewidth=1.2)
        ax.text(size, 1.01, f"{size} GB card", transform=ax.get_xaxis_transform(), ha="center", fontsize=10)
    ax.set(yticks=range(len(profiles)), yticklabels=list(profiles), ylim=(len(profiles) - 0.5, -0.5))
    ax.set(xlabel="estimated memory of one GPU [GiB]", xlim=(0, max(cards) * 1.05))
    fig.legend(loc="outside lower center", ncols=3)
    return fig


def course(folder: pathlib.Path) -> Figure:
    """The curves of a stage, a panel each."""
    found = read_curves(folder)
    keys = [key for key in CURVES if key in found]
    fig, axes = plt.subplots(1, len(keys), figsize=(min(11, 3.6 * len(keys)), 3.2), squeeze=False)
    for ax, key in zip(axes[0], keys, strict=True):
        marker = "o" if len(found[key].step) < 30 else None
        ax.plot(found[key].step, found[key].values, color=COLORS["gen"], marker=marker, markersize=3)
        ax.set_title(CURVES[key], fontsize=10)
        ax.set_xlabel("updates")
        ax.locator_params(axis="x", integer=True, nbins=5)
        ax.ticklabel_format(axis="y", useOffset=False)
        ax.locator_params(axis="y", nbins=5)
    return fig


def grid(fig: Figure, *, true_run: bool) -> Figure:
    """A grid of pictures, which says so where it is one of random weights."""
    if not true_run:
        fig.suptitle(rehearsal.SAYS.partition(".")[0], fontsize=10, color=COLORS["gen"])
    return fig
