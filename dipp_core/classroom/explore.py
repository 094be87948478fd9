"""Look around among saved runs: sliders over method, leash and guidance redraw from what was saved and train nothing.

`Runs` and `draw` know nothing of widgets. `explorer` adds the sliders, and `LiveOrStill` shows them in JupyterLab and a
picture wherever no kernel listens.
"""

import functools
import io
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from torch import Tensor

from dipp_core.book.report import COLORS
from dipp_core.files import InputError


@dataclass(frozen=True)
class Method:
    """How a method is called, what its knob is called, and how it is drawn."""

    label: str
    knob: str
    color: str
    marker: str


METHODS = {
    "dipp_one": Method("DI++, $w = 1$", "beta", "dipp_light", "s"),
    "dipp_sigma2": Method(r"DI++, $w \propto \sigma^2$", "beta", "dipp", "o"),
    "distar_one": Method("DI*, $w = 1$", "beta", "distar_light", "D"),
    "distar_sigma2": Method(r"DI*, $w \propto \sigma^2$", "beta", "distar", "D"),
    "exact_tilt": Method("exact tilt", "beta", "exact", "^"),
    "best_of_n": Method("best of n", "n", "accent", "P"),
    "reinforce_kl": Method("REINFORCE with KL", "kl_weight", "light", "v"),
    "reward_only": Method("reward only", "steps", "reward_only", "X"),
}


@dataclass(frozen=True)
class Runs:
    """Saved runs. rows: one a run, with method, knob, alpha_cfg, seed, reward and divergences; samples (rows, N, 2)."""

    rows: pd.DataFrame
    samples: Tensor

    def methods(self) -> list[str]:
        """The methods that were saved, in the order of `METHODS`."""
        return [name for name in METHODS if (self.rows["method"] == name).any()]

    def strengths(self, method: str) -> list[float]:
        """The strengths of guidance that a method was run with."""
        return sorted(set(self.rows.loc[self.rows["method"] == method, "alpha_cfg"]))

    def knobs(self, method: str, alpha_cfg: float) -> list[float]:
        """The settings of a method's knob at one strength of guidance."""
        chosen = (self.rows["method"] == method) & (self.rows["alpha_cfg"] == alpha_cfg)
        return sorted(set(self.rows.loc[chosen, "knob"]))

    def at(self, method: str, knob: float, alpha_cfg: float) -> pd.DataFrame:
        """The rows (one a seed) of the saved setting nearest to the one asked for."""
        if method not in self.methods():
            raise InputError(f"no saved runs of {method!r}: there are {', '.join(self.methods())}")
        alpha_cfg = min(self.strengths(method), key=lambda value: abs(value - alpha_cfg))
        knob = min(self.knobs(method, alpha_cfg), key=lambda value: abs(value - knob))
        key = {"method": method, "knob": knob, "alpha_cfg": alpha_cfg}
        return self.rows[(self.rows[list(key)] == pd.Series(key)).all(axis=1)]


def draw(runs: Runs, background: tuple[Tensor, Tensor], method: str, knob: float, alpha_cfg: float) -> Any:
    """A figure of one setting: its samples (first seed) over the reference, and where it lies among all the others.

    background: an axis (n,) and the reference's density (n, n) at axis x axis, first index along x_1.
    """
    chosen, (axis, density) = runs.at(method, knob, alpha_cfg), background
    fig, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4.2), width_ratios=(1, 1.35))
    left.contourf(axis, axis, density.T, levels=9, cmap="Greys", zorder=0)
    look = METHODS[method]
    cloud = runs.samples[chosen.index[0]].float()
    left.scatter(*cloud.T, s=3, color=COLORS[look.color], linewidths=0, rasterized=True)
    left.set(aspect="equal", xlim=(-3.5, 3.5), ylim=(-3.2, 4), xlabel="$x_1$", ylabel="$x_2$")
    left.grid(False)
    first = chosen.iloc[0]
    left.set_title(f"{look.label}, {look.knob} = {first['knob']:g}, alpha_cfg = {first['alpha_cfg']:g}", fontsize=10)
    for name in runs.methods():
        means = runs.rows[runs.rows["method"] == name].groupby(["alpha_cfg", "knob"]).mean(numeric_only=True)
        its = METHODS[name]
        for number, (_, line) in enumerate(means.groupby(level="alpha_cfg")):
            style = {
                "color": COLORS[its.color],
                "alpha": 1 if name == method else 0.35,
                "markersize": 4,
                "linewidth": 1,
            }
            label = its.label if number == 0 else None
            right.plot(line["ikl_one"], line["reward"], its.marker + "-", label=label, **style)
    right.plot(chosen["ikl_one"], chosen["reward"], "o", markersize=11, markerfacecolor="none", color=COLORS["exact"])
    words = f"reward {chosen['reward'].mean():.2f}, divergence {chosen['ikl_one'].mean():.3g}"
    right.set(xscale="log", ylabel="mean reward", title=words, ylim=(-0.3, 4))
    right.set_xlabel(r"integral KL, $w = 1$, in nats")
    right.legend(fontsize=8)
    return fig


def explorer(runs: Runs, background: tuple[Tensor, Tensor]) -> Any:
    """A widget with one choice of method and a slider each for its knob and its guidance."""
    import ipywidgets as widgets

    names = [(METHODS[name].label.replace("$", ""), name) for name in runs.methods()]
    method = widgets.Dropdown(options=names, description="method")
    alpha_cfg = widgets.SelectionSlider(options=[0.0], description="alpha_cfg")
    knob = widgets.SelectionSlider(options=[0.0], description="beta")
    canvas = widgets.Image(format="png", layout={"max_width": "900px"})
    moving = False

    @functools.cache
    def picture(*setting: Any) -> bytes:
        fig, buffer = draw(runs, background, *setting), io.BytesIO()
        fig.savefig(buffer, format="png", dpi=90)
        plt.close(fig)
        return buffer.getvalue()

    def offer(slider: Any, values: list[float]) -> None:
        """New options, at the one nearest to where the slider stands."""
        nearest = min(values, key=lambda value: abs(value - slider.value))
        slider.options = [(f"{value:g}", value) for value in values]
        slider.value = nearest

    def update(_: Any = None) -> None:
        nonlocal moving
        if moving:  # a slider that this function itself is moving
            return
        moving = True
        knob.description = METHODS[method.value].knob
        offer(alpha_cfg, runs.strengths(method.value))
        offer(knob, runs.knobs(method.value, alpha_cfg.value))
        moving = False
        canvas.value = picture(method.value, knob.value, alpha_cfg.value)

    for control in (method, knob, alpha_cfg):
        control.observe(update, names="value")
    update()
    return widgets.VBox([widgets.HBox([method, knob, alpha_cfg]), canvas])


@dataclass(frozen=True)
class LiveOrStill:
    """One output that JupyterLab shows as the widget, and a page without a kernel as the picture (an IPython Image)."""

    widget: Any
    still: Any

    def _repr_mimebundle_(self, include=None, exclude=None):
        picture, about = self.still._repr_mimebundle_()
        return picture | self.widget._repr_mimebundle_(), about
