"""Figures, tables and metrics: one style, stable bytes, whole files."""

import errno
import itertools
import json
import os

import matplotlib
import matplotlib.colors
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from dipp_core.book import report
from dipp_core.files import write_whole


@pytest.fixture
def paper(tmp_path, monkeypatch):
    """A report that publishes into a folder of its own."""
    monkeypatch.setenv("DIPP_REPORTS", str(tmp_path))
    yield report.open_report("01_draw")
    plt.close("all")
    matplotlib.rcdefaults()


def draw():
    fig, ax = plt.subplots()
    ax.plot([0, 1, 4], label="curve")
    ax.set_title("a title with $x^2$")
    ax.legend()
    return fig


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# ----------------------------------------------------------------------------------------------------------- figures


def test_a_figure_is_saved_as_png_and_pdf(paper, tmp_path):
    paper.figure(draw(), "curve", "a curve")
    assert files(tmp_path) == ["figures/01_draw/curve.pdf", "figures/01_draw/curve.png"]


@pytest.mark.parametrize("suffix", ["png", "pdf"])
def test_a_figure_drawn_twice_has_the_same_bytes(paper, tmp_path, monkeypatch, suffix):
    path = tmp_path / f"figures/01_draw/curve.{suffix}"
    contents = set()
    for day in ("0", "86400"):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", day)  # any date in the file would differ
        paper.figure(draw(), "curve", "a curve")
        contents.add(path.read_bytes())
    assert len(contents) == 1


def test_the_readers_own_style_does_not_matter(paper, tmp_path):
    contents = set()
    for size in (12, 30):
        matplotlib.rcParams["font.size"] = size
        matplotlib.rcParams["axes.grid.axis"] = "x"
        own = report.open_report("01_draw")
        own.figure(draw(), "curve", "a curve")
        contents.add((tmp_path / "figures/01_draw/curve.png").read_bytes())
    assert len(contents) == 1


def test_a_picture_has_two_pixels_per_point_of_the_page(paper, tmp_path):
    shown = paper.figure(draw(), "curve", "a curve")
    assert plt.imread(tmp_path / "figures/01_draw/curve.png").shape[1] == 2 * shown.width


def test_a_figure_returns_its_picture_with_words_and_is_closed(paper, tmp_path):
    shown = paper.figure(draw(), "curve", "a curve")
    assert shown.data == (tmp_path / "figures/01_draw/curve.png").read_bytes()
    assert shown.alt == "a curve"
    assert plt.get_fignums() == []


@pytest.mark.parametrize("name", ["Curve", "a curve", "../curve", "curve.png", ""])
def test_a_figure_needs_a_plain_name(paper, name):
    with pytest.raises(ValueError, match="use lower-case letters, digits and underscores"):
        paper.figure(draw(), name, "a curve")


def test_a_figure_too_wide_to_read_is_refused(paper):
    with pytest.raises(ValueError, match="legible up to 11"):
        paper.figure(plt.figure(figsize=(12, 4)), "wide", "a wide one")


# What people with a colour vision deficiency see (Machado, Oliveira and Fernandes 2009, severity 1), in linear RGB
VISION = {
    "normal": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def lab(color, vision):
    """CIE L*a*b* of a colour as it is seen, where a distance of 2.3 is just noticeable."""
    rgb = np.array(matplotlib.colors.to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    seen = np.clip(np.array(VISION[vision]) @ linear, 0, 1)
    x, y, z = np.cbrt(np.maximum(to_xyz @ seen / np.array([0.9505, 1.0, 1.089]), 0.008856))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("vision", VISION)
def test_every_two_colours_can_be_told_apart(vision):
    pairs = itertools.combinations(report.COLORS.values(), 2)
    distances = {(a, b): float(np.linalg.norm(lab(a, vision) - lab(b, vision))) for a, b in pairs}
    closest = min(distances, key=distances.get)
    assert distances[closest] > 10, (closest, distances[closest])


def test_colours_have_one_meaning_each():
    assert len(set(report.COLORS.values())) == len(report.COLORS)


def test_text_stays_legible_at_half_size():
    """At half size on screen, letters must keep 5 points."""
    sizes = [value for name, value in report.STYLE.items() if name.endswith(("font.size", "labelsize", "fontsize"))]
    assert min(sizes) / 2 >= 5


# ------------------------------------------------------------------------------------------------- tables and metrics


def test_a_table_has_six_digits_and_unix_lines(paper, tmp_path):
    frame = pd.DataFrame({"name": ["a,b", "c"], "value": [1 / 3, 1e-12]})
    assert paper.table(frame, "values") is frame
    path = tmp_path / "tables/01_draw/values.csv"
    assert path.read_bytes() == b'name,value\n"a,b",0.333333\nc,1e-12\n'


def test_metrics_are_sorted_and_have_six_digits(paper, tmp_path):
    paper.metrics({"b": 1 / 3, "a": 2, "c": {"d": [1.0, True, "word", None]}})
    path = tmp_path / "metrics/01_draw.json"
    assert json.loads(path.read_text()) == {"a": 2, "b": 0.333333, "c": {"d": [1.0, True, "word", None]}}
    assert list(json.loads(path.read_text())) == ["a", "b", "c"]


def test_metrics_take_numbers_of_numpy_and_torch():
    import torch

    values = {"n": np.float32(0.5), "a": np.arange(2), "t": torch.tensor(0.25), "i": np.int64(3), 4: np.bool_(True)}
    assert report.plain(values) == {"n": 0.5, "a": [0, 1], "t": 0.25, "i": 3, "4": True}
    json.dumps(report.plain(values))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float32("nan"), [1.0, float("-inf")]])
def test_metrics_must_be_finite(paper, tmp_path, value):
    with pytest.raises(ValueError, match="must be finite"):
        paper.metrics({"a": value})
    assert files(tmp_path) == []


def test_a_notebook_run_by_hand_publishes_nothing(monkeypatch, tmp_path):
    monkeypatch.delenv("DIPP_REPORTS", raising=False)
    monkeypatch.setenv("DIPP_ROOT", str(tmp_path))
    report.open_report("01_draw").metrics({"a": 1})
    assert files(tmp_path) == ["reports/scratch/metrics/01_draw.json"]


# ------------------------------------------------------------------------------------------------------- whole files


def test_a_file_is_replaced_as_a_whole(tmp_path):
    write_whole(tmp_path / "new/a.txt", b"one")
    write_whole(tmp_path / "new/a.txt", b"two")
    assert [(tmp_path / name).read_bytes() for name in files(tmp_path)] == [b"two"]


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_full_disk_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch, moment):
    write_whole(tmp_path / "a.txt", b"one")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, moment, full)
    with pytest.raises(OSError, match="No space left on device"):
        write_whole(tmp_path / "a.txt", b"two")
    assert [(name, (tmp_path / name).read_bytes()) for name in files(tmp_path)] == [("a.txt", b"one")]


# --------------------------------------------------------------------------------------------------------- animations


def frames(count):
    for number in range(count):
        fig, ax = plt.subplots(figsize=(10.5, 3))
        ax.plot([0, number])
        ax.set_ylim(0, 10)
        yield fig


def test_an_animation_is_one_looped_gif_with_words(paper, tmp_path):
    from PIL import Image

    shown = paper.animation(frames(4), "growth", "a line that grows", fps=5)
    path = tmp_path / "figures/01_draw/growth.gif"
    picture = Image.open(path)
    assert (picture.n_frames, picture.info["loop"], picture.width) == (4, 0, 900)
    assert picture.info["duration"] == 200
    data, metadata = shown._repr_mimebundle_()
    assert set(data) == {"image/gif"}
    assert metadata["image/gif"]["alt"] == "a line that grows"
    assert plt.get_fignums() == []


def test_an_animation_drawn_twice_has_the_same_bytes(paper, tmp_path):
    path, contents = tmp_path / "figures/01_draw/growth.gif", set()
    for _ in range(2):
        paper.animation(frames(3), "growth", "a line that grows")
        contents.add(path.read_bytes())
    assert len(contents) == 1
