"""Pictures of a run: drawn from any curves, shown where somebody watches and nowhere else."""

import sys
import types

import numpy as np
import pytest
import torch

from dipp_core.training import curves, pictures

FOUND = {
    "reward": curves.Curve(np.arange(1, 5001), np.linspace(0, 1, 5000)),
    "stack": curves.Curve(np.arange(1, 101), np.random.default_rng(0).random((100, 7))),
    "eval_gold": curves.Curve(np.array([0, 100]), np.array([0.5, 0.7])),
    "once": curves.Curve(np.array([0]), np.array([2])),
}


def test_every_curve_has_its_panel_and_long_ones_are_thinned():
    fig = pictures.figure(FOUND)
    shown = [ax for ax in fig.axes if ax.get_visible()]
    assert [ax.get_title(loc="left") for ax in shown] == list(FOUND)
    assert max(len(line.get_xdata()) for ax in shown for line in ax.lines) <= 1000
    assert shown[0].lines[1].get_ydata()[0] < 0.02
    assert len(fig.axes) == 6
    assert fig.get_figwidth() <= 11


@pytest.mark.parametrize("length", [1, 59, 60, 61, 1000, 12345])
def test_windows_keep_the_mean(length):
    curve = pictures._windows(curves.Curve(np.arange(length), np.arange(length) * 2.0), 60)
    assert 30 <= len(curve.step) <= 60 or len(curve.step) == length
    np.testing.assert_allclose(curve.values, curve.step * 2)


def test_a_grid_shows_all_images():
    fig = pictures.picture_grid(torch.rand(5, 3, 8, 8), 3, list("abcde"))
    assert [len(ax.images) for ax in fig.axes] == [1, 1, 1, 1, 1, 0]
    assert fig.axes[4].get_title() == "e"
    assert pictures.png(fig).startswith(b"\x89PNG")


class ZMQInteractiveShell:
    """What IPython calls a shell in a notebook."""


@pytest.fixture
def notebook(monkeypatch):
    """IPython as it is in a notebook's process, and what was displayed there."""
    shown = []

    class Handle:
        def update(self, image):
            shown.append(("update", image))

    def display(image, display_id):
        shown.append(("display", image))
        return Handle()

    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=ZMQInteractiveShell))
    fake = types.SimpleNamespace(Image=lambda **facts: facts, display=display)
    monkeypatch.setitem(sys.modules, "IPython.display", fake)
    for name in ("JPY_SESSION_NAME", "VSCODE_PID", "DIPP_REPORTS"):
        monkeypatch.delenv(name, raising=False)
    return shown


def test_pictures_are_live_where_somebody_watches(notebook, monkeypatch):
    assert not pictures.is_live()  # papermill, nbconvert
    assert pictures.is_live(True)
    monkeypatch.setenv("JPY_SESSION_NAME", "a.ipynb")
    assert pictures.is_live()
    assert not pictures.is_live(False)
    monkeypatch.setenv("DIPP_REPORTS", "reports")
    assert not pictures.is_live()


def test_without_a_notebook_nothing_is_live():
    assert not pictures.is_live(True)


def test_a_picture_takes_the_place_of_the_one_before(notebook, tmp_path):
    screen = pictures.Screen(tmp_path, live=True)
    for _ in range(2):
        screen.show("grid", pictures.picture_grid(torch.rand(1, 3, 4, 4), 1), "pictures/grid.png")
    screen.show("other", pictures.picture_grid(torch.rand(1, 3, 4, 4), 1), "other.png")
    assert [kind for kind, _ in notebook] == ["display", "update", "display"]
    assert notebook[1][1]["data"] == (tmp_path / "pictures/grid.png").read_bytes()


def test_curves_are_drawn_now_and_then(tmp_path):
    screen = pictures.Screen(tmp_path, live=False)
    assert not screen.is_due()
    screen.drawn -= 11
    assert screen.is_due()
    with curves.open_log(tmp_path, 0) as log:
        curves.append(log, 1, {"a": 1.0})
    screen.draw_curves()
    assert (tmp_path / "curves.png").stat().st_size > 1000
    assert not screen.is_due()
    assert screen.pause >= 60
