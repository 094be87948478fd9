"""What a run shows: curves, exact and cut back to their checkpoint; pictures where somebody watches, nowhere else."""

import csv
import sys
import types

import numpy as np
import pytest
import torch

from dipp_core.method.algorithm import StepRecord
from dipp_core.training import watch
from dipp_core.training.watch import Curve


def logged(folder, rows, size=0):
    log = watch.Log(folder, size=size)
    for step, values in rows:
        log.write(step, values)
    size = log.size_on_disk()
    log.close()
    return size


def test_a_record_is_its_numbers():
    record = StepRecord(3, {"reward": torch.tensor(0.5)}, {"reward": torch.tensor([1.0, 2.0])}, torch.tensor(3), None)
    assert watch.numbers(record) == {"reward": 0.5, "norm_reward": [1.0, 2.0], "grad_norm": 3}
    assert watch.numbers({"loss": np.float64(2), "one": 1}) == {"loss": 2.0, "one": 1}
    assert watch.not_finite({"a": 1.0, "b": [0.0, float("nan")], "c": float("inf")}) == ["b", "c"]


def test_values_come_back_exactly_in_curves_and_in_a_table_and_what_is_not_finite_never_enters(tmp_path):
    third = float(torch.tensor(1 / 3))
    logged(tmp_path, [(0, {"eval_g": 0.5}), (1, {"a": third, "b": [1.0, 2.0]}), (2, {"a": 1e-40, "b": [3.0, 4.0]})])
    size = logged(tmp_path, [(2, {"eval_g": 1})], (tmp_path / "curves.jsonl").stat().st_size)
    found = watch.read_curves(tmp_path)
    assert found["a"].values.tolist() == [third, 1e-40]
    assert found["b"].values.shape == (2, 2)
    assert (found["eval_g"].step.tolist(), found["eval_g"].values.tolist()) == ([0, 2], [0.5, 1])
    watch.write_csv(tmp_path)
    with open(tmp_path / "curves.csv") as handle:
        assert list(csv.reader(handle)) == [
            ["step", "eval_g", "a", "b[0]", "b[1]"],
            ["0", "0.5", "", "", ""],
            ["1", "", str(third), "1.0", "2.0"],
            ["2", "1.0", "1e-40", "3.0", "4.0"],
        ]
    with pytest.raises(ValueError, match="JSON"):
        logged(tmp_path, [(3, {"a": float("nan")})], size)


def test_the_log_is_cut_back_to_the_checkpoint_it_continues(tmp_path):
    size = logged(tmp_path, [(1, {"a": 1.0}), (2, {"a": 2.0})])
    with open(tmp_path / "curves.jsonl", "ab") as handle:
        handle.write(b'{"step": 3, "a": 3.0}\n{"step": 4, "a"')
    assert watch.read_curves(tmp_path)["a"].step.tolist() == [1, 2, 3]
    logged(tmp_path, [(3, {"a": 5.0})], size)
    assert watch.read_curves(tmp_path)["a"].values.tolist() == [1.0, 2.0, 5.0]
    said = []
    watch.Log(tmp_path, size=1000, say=said.append).close()
    assert said == [f"{tmp_path}/curves.jsonl is shorter than at the checkpoint: the curves have a gap"]


def test_every_curve_is_in_tensorboard_and_once_only_after_resuming(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for start, rows in ((0, [(0, {"eval_g": 0.5}), (1, {"a": 1.0}), (2, {"a": 2.0})]), (1, [(2, {"a": 5.0})])):
        log = watch.Log(tmp_path, start)
        for step, values in rows:
            log.write(step, values | {"runs": [1.0, 2.0]})
        log.close()
    found = events.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(found.Tags()["scalars"]) == {"eval_g", "a", "runs[0]", "runs[1]"}
    assert [(point.step, point.value) for point in found.Scalars("a")] == [(1, 1.0), (2, 5.0)]


def test_every_curve_has_its_panel_and_long_ones_are_thinned():
    found = {
        "reward": Curve(np.arange(1, 5001), np.linspace(0, 1, 5000)),
        "stack": Curve(np.arange(1, 101), np.random.default_rng(0).random((100, 7))),
        "once": Curve(np.array([0]), np.array([2])),
        "eval_gold": Curve(np.array([0, 100]), np.array([0.5, 0.7])),
    }
    fig = watch.curves_figure(found)
    shown = [ax for ax in fig.axes if ax.get_visible()]
    assert [ax.get_title(loc="left") for ax in shown] == list(found)
    assert max(len(line.get_xdata()) for ax in shown for line in ax.lines) <= 1000
    assert shown[0].lines[1].get_ydata()[0] < 0.02


def test_a_grid_shows_all_images():
    fig = watch.picture_grid(torch.rand(5, 3, 8, 8), 3, list("abcde"))
    assert [len(ax.images) for ax in fig.axes] == [1, 1, 1, 1, 1, 0]
    assert fig.axes[4].get_title() == "e"


class ZMQInteractiveShell:
    """What IPython calls a shell in a notebook."""


@pytest.fixture
def notebook(monkeypatch):
    """IPython as it is in a notebook's process, and what was displayed there."""
    shown = []

    def display(image, display_id):
        shown.append(("display", image))
        return types.SimpleNamespace(update=lambda image: shown.append(("update", image)))

    monkeypatch.setitem(
        sys.modules, "IPython", types.SimpleNamespace(get_ipython=ZMQInteractiveShell, version_info=(9, 0))
    )
    fake = types.SimpleNamespace(Image=lambda **facts: facts, display=display)
    monkeypatch.setitem(sys.modules, "IPython.display", fake)
    for name in ("JPY_SESSION_NAME", "VSCODE_PID", "DIPP_REPORTS"):
        monkeypatch.delenv(name, raising=False)
    return shown


def test_pictures_are_live_where_somebody_watches(notebook, monkeypatch):
    assert not watch.is_live()  # papermill, nbconvert
    assert watch.is_live(True)
    monkeypatch.setenv("JPY_SESSION_NAME", "a.ipynb")
    assert watch.is_live()
    assert not watch.is_live(False)
    monkeypatch.setenv("DIPP_REPORTS", "reports")
    assert not watch.is_live()


def test_a_picture_takes_the_place_of_the_one_before(notebook, tmp_path):
    screen = watch.Screen(tmp_path, live=True)
    for name in ("grid", "grid", "other"):
        screen.show(name, watch.picture_grid(torch.rand(1, 3, 4, 4), 1), f"pictures/{name}.png")
    assert [kind for kind, _ in notebook] == ["display", "update", "display"]
    assert notebook[1][1]["data"] == (tmp_path / "pictures/grid.png").read_bytes()


def test_curves_are_drawn_now_and_then(tmp_path, monkeypatch):
    now = 0.0
    monkeypatch.setattr(watch, "time", types.SimpleNamespace(monotonic=lambda: now))
    screen = watch.Screen(tmp_path, live=False)
    assert not screen.is_due()
    now = 11.0
    assert screen.is_due()
    logged(tmp_path, [(1, {"a": 1.0})])
    screen.draw_curves()
    assert (tmp_path / "curves.png").stat().st_size > 1000
    now += 59.0
    assert not screen.is_due()
