"""Figures, tables and metrics: one style, stable bytes, whole files; and what notebooks leave for others."""

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
import torch

from dipp_core.book import report
from dipp_core.files import InputError, write_whole


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


@pytest.fixture(autouse=True)
def no_figure_of_another_test():
    plt.close("all")


def test_a_figure_is_saved_twice_returned_with_words_and_closed(paper, tmp_path):
    shown = paper.figure(draw(), "curve", "a curve")
    assert files(tmp_path) == ["figures/01_draw/curve.pdf", "figures/01_draw/curve.png"]
    path = tmp_path / "figures/01_draw/curve.png"
    assert (shown.data, shown.alt) == (path.read_bytes(), "a curve")
    assert plt.imread(path).shape[1] == 2 * shown.width  # two pixels per point of the page
    assert plt.get_fignums() == []


def test_a_figure_has_the_same_bytes_on_another_day_and_under_the_readers_own_style(paper, tmp_path, monkeypatch):
    contents = set()
    for day, size in (("0", 12), ("86400", 30)):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", day)  # any date in a file would differ
        matplotlib.rcParams["font.size"] = size
        report.open_report("01_draw").figure(draw(), "curve", "a curve")
        contents.add(tuple((tmp_path / name).read_bytes() for name in files(tmp_path)))
    assert len(contents) == 1


@pytest.mark.parametrize(
    ("name", "width", "message"),
    [("Curve", 8, "use lower-case"), ("../curve", 8, "use lower-case"), ("wide", 12, "legible up to 11")],
)
def test_a_figure_needs_a_plain_name_and_a_width_that_can_be_read(paper, name, width, message):
    with pytest.raises(ValueError, match=message):
        paper.figure(plt.figure(figsize=(width, 4)), name, "a curve")


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


# what may stand in one figure: the roles, the methods of the miniature, those of the plane
TOGETHER = [
    ["data", "ref", "gen", "ta", "reward", "exact", "accent", "light"],
    ["start", "control", "control_sim", "dipp", "distar", "reward_only"],
    ["dipp", "dipp_light", "distar", "distar_light", "reward_only"],
]


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("names", TOGETHER)
def test_every_two_colours_can_be_told_apart(names, vision, request):
    if vision == "deutan" and "control" in names:
        reason = "the control's grey and the reward's rose are 7 apart; marks and lines tell them apart as well"
        request.applymarker(pytest.mark.xfail(strict=True, reason=reason))
    for a, b in itertools.combinations((report.COLORS[name] for name in names), 2):
        assert np.linalg.norm(lab(a, vision) - lab(b, vision)) > 10, (a, b)


def test_a_table_has_six_digits_and_unix_lines(paper, tmp_path):
    frame = pd.DataFrame({"name": ["a,b", "c"], "value": [1 / 3, 1e-12]})
    assert paper.table(frame, "values") is frame
    path = tmp_path / "tables/01_draw/values.csv"
    assert path.read_bytes() == b'name,value\n"a,b",0.333333\nc,1e-12\n'


def test_metrics_are_sorted_and_have_six_digits_also_those_of_numpy_and_torch(paper, tmp_path):
    numbers = {"n": np.float32(0.5), "a": np.arange(2), "t": torch.tensor(0.25), 4: np.bool_(True)}
    paper.metrics({"b": 1 / 3, "a": 2, "c": {"d": [1.0, True, "word", None]}, "n": numbers})
    found = json.loads((tmp_path / "metrics/01_draw.json").read_text())
    assert list(found) == ["a", "b", "c", "n"]
    assert (found["a"], found["b"], found["c"]) == (2, 0.333333, {"d": [1.0, True, "word", None]})
    assert found["n"] == {"n": 0.5, "a": [0, 1], "t": 0.25, "4": True}


@pytest.mark.parametrize("value", [float("nan"), [np.float32("inf")]])
def test_metrics_must_be_finite(paper, tmp_path, value):
    with pytest.raises(ValueError, match="must be finite"):
        paper.metrics({"a": value})
    assert files(tmp_path) == []


def test_a_notebook_run_by_hand_publishes_nothing(monkeypatch, tmp_path):
    monkeypatch.delenv("DIPP_REPORTS", raising=False)
    monkeypatch.setenv("DIPP_ROOT", str(tmp_path))
    report.open_report("01_draw").metrics({"a": 1})
    assert files(tmp_path) == ["reports/scratch/metrics/01_draw.json"]


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_full_disk_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch, moment):
    write_whole(tmp_path / "a.txt", b"one")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, moment, full)
    with pytest.raises(OSError, match="No space left on device"):
        write_whole(tmp_path / "a.txt", b"two")
    assert [(name, (tmp_path / name).read_bytes()) for name in files(tmp_path)] == [("a.txt", b"one")]


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
    before = path.read_bytes()
    paper.animation(frames(4), "growth", "a line that grows", fps=5)
    assert path.read_bytes() == before
    picture = Image.open(path)
    assert (picture.n_frames, picture.info["loop"], picture.width) == (4, 0, 900)
    assert picture.info["duration"] == 200
    data, metadata = shown._repr_mimebundle_()
    assert set(data) == {"image/gif"}
    assert metadata["image/gif"]["alt"] == "a line that grows"
    assert plt.get_fignums() == []


STAGE, NETS = "10_first", {"weight": torch.arange(6.0).reshape(2, 3).T, "bias": torch.ones(2, dtype=torch.float16)}


@pytest.fixture
def by_hand(tmp_path, monkeypatch):
    """A checkout in which notebooks are run by hand."""
    monkeypatch.setenv("DIPP_ROOT", str(tmp_path))
    for name in ("DIPP_REPORTS", "DIPP_RESULTS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def save(root, value=1.0, scale="mini"):
    """Tensors and a folder of one stage, under a folder of reports."""
    own = report.Report(STAGE, root)
    own.save({"x": torch.tensor([value])}, "nets", scale=scale)
    own.new_folder("model", scale=scale, value=value)
    return own


def value() -> tuple[float, float]:
    tensors, _ = report.load_tensors(STAGE, "nets", scale="mini")
    return tensors["x"].item(), report.find_folder(STAGE, "model", scale="mini")[1]["value"]


def test_what_was_saved_comes_back_and_the_same_tensors_are_the_same_bytes(by_hand):
    own, other = (report.Report(STAGE, by_hand / place) for place in ("reports", "other"))
    own.save(NETS, "nets", scale="mini", seeds=5, table=[{"beta": 0.5}])
    other.save(dict(reversed(NETS.items())), "nets", scale="mini", seeds=5, table=[{"beta": 0.5}])
    tensors, facts = report.load_tensors(STAGE, "nets", scale="mini")
    assert facts == {"scale": "mini", "seeds": 5, "table": [{"beta": 0.5}]}
    assert all(torch.equal(tensors[name], value) for name, value in NETS.items())
    assert tensors["bias"].dtype == torch.float16
    one, two = (place.root / f"runs/{STAGE}/nets.safetensors" for place in (own, other))
    assert one.read_bytes() == two.read_bytes()


def test_by_hand_the_readers_own_run_wins_and_is_named(by_hand, capsys):
    save(by_hand / "reports", 1.0)
    assert value() == (1, 1)
    save(by_hand / "reports/scratch", 2.0)
    assert value() == (2, 2)
    assert f"reports/scratch/runs/{STAGE}/nets.safetensors" in capsys.readouterr().out


def test_the_pipeline_looks_at_its_results_then_at_the_published_and_never_into_scratch(by_hand, monkeypatch):
    monkeypatch.setenv("DIPP_RESULTS", str(by_hand / "elsewhere"))
    save(by_hand / "reports/scratch", 2.0)
    with pytest.raises(InputError, match=rf"nets.safetensors is missing: run `make repro STAGE={STAGE}`"):
        value()
    save(by_hand / "reports", 1.0)
    assert value() == (1, 1)
    save(by_hand / "elsewhere", 3.0)
    assert value() == (3, 3)


@pytest.mark.parametrize("kept", [0, 60])
def test_a_damaged_run_is_one_line(by_hand, kept):
    folder = save(by_hand / "reports").root / "runs" / STAGE
    for path in (folder / "nets.safetensors", folder / "model/facts.json"):
        path.write_bytes(path.read_bytes()[:kept])
    (folder / "model/facts.json").write_text("[]" if kept else "")
    for find, name in ((report.load_tensors, "nets"), (report.find_folder, "model")):
        with pytest.raises(InputError, match=r"cannot be read.*; remove .* and run `make repro"):
            find(STAGE, name, scale="mini")


def test_in_a_notebook_what_is_missing_is_a_box_with_a_whole_command(by_hand):
    with pytest.raises(InputError) as caught:
        report.load_tensors(STAGE, "nets", scale="mini")
    top, *lines, bottom = caught.value._render_traceback_()
    assert (top, set(top)) == (bottom, {"═"})
    assert any(f"`make repro STAGE={STAGE}`" in line for line in lines)


def test_runs_of_another_scale_are_refused(by_hand):
    save(by_hand / "reports", scale="smoke")
    for find, name in ((report.load_tensors, "nets"), (report.find_folder, "model")):
        with pytest.raises(InputError, match="made at scale 'smoke', this notebook runs at 'mini'"):
            find(STAGE, name, scale="mini")
