"""Sliders over saved runs: the nearest setting, the picture, and what a page without a kernel shows."""

import pandas as pd
import pytest
import torch
from IPython.display import Image

from dipp_core.classroom import explore
from dipp_core.files import InputError


@pytest.fixture
def runs():
    settings = [("dipp_one", beta, alpha) for alpha in (0.0, 2.0) for beta in (1.0, 4.0)]
    settings += [("best_of_n", 2.0, 0.0), ("best_of_n", 64.0, 0.0)]
    rows = [(*setting, seed, 1 / setting[1] + seed, 0.1 / setting[1]) for setting in settings for seed in (0, 1)]
    frame = pd.DataFrame(rows, columns=["method", "knob", "alpha_cfg", "seed", "reward", "ikl_one"])
    return explore.Runs(frame, torch.zeros(len(rows), 5, 2).half())


@pytest.fixture
def background():
    axis = torch.linspace(-4, 4, 9)
    return axis, torch.exp(-(axis[:, None] ** 2) - axis**2)


def test_the_nearest_saved_setting_is_found_with_all_its_seeds(runs):
    found = runs.at("dipp_one", 3.0, 1.9)
    assert found[["knob", "alpha_cfg", "seed"]].to_numpy().tolist() == [[4.0, 2.0, 0], [4.0, 2.0, 1]]
    with pytest.raises(InputError, match=r"no saved runs of 'distar': there are dipp_one, best_of_n"):
        runs.at("distar", 1.0, 0.0)


def test_a_figure_names_its_setting_and_its_reward(runs, background):
    fig = explore.draw(runs, background, "best_of_n", 64.0, 0.0)
    left, right = fig.axes
    assert "n = 64" in left.get_title()
    assert right.get_title() == f"reward {1 / 64 + 0.5:.2f}, divergence {0.1 / 64:.3g}"


def test_the_sliders_offer_what_was_saved_and_redraw(runs, background):
    controls, canvas = explore.explorer(runs, background).children
    method, knob, alpha_cfg = controls.children
    assert [value for _, value in knob.options] == [1.0, 4.0]
    first = bytes(canvas.value)
    assert first.startswith(b"\x89PNG")
    knob.value = 4.0
    second = bytes(canvas.value)
    assert second != first
    knob.value = 1.0
    assert bytes(canvas.value) == first  # drawn once, shown again
    alpha_cfg.value = 2.0
    assert bytes(canvas.value) != first
    method.value = "best_of_n"
    assert knob.description == "n"
    assert [value for _, value in knob.options] == [2.0, 64.0]
    assert [value for _, value in alpha_cfg.options] == [0.0]
    assert bytes(canvas.value) not in (first, second)


def test_a_page_without_a_kernel_shows_the_picture(runs, background):
    still = Image(data=b"\x89PNG", format="png", alt="words")
    data, about = explore.LiveOrStill(explore.explorer(runs, background), still)._repr_mimebundle_()
    assert {"image/png", "application/vnd.jupyter.widget-view+json"} <= data.keys()
    assert about["image/png"]["alt"] == "words"
