"""Saved runs: where they are found, and one line for what is missing, broken, or of another scale."""

import pytest
import torch

from dipp_core.book import report, saved

STAGE, NETS = "10_first", {"weight": torch.arange(6.0).reshape(2, 3).T, "bias": torch.ones(2, dtype=torch.float16)}


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout in which notebooks are run by hand."""
    monkeypatch.setenv("DIPP_ROOT", str(tmp_path))
    for name in ("DIPP_REPORTS", "DIPP_RESULTS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def save(root, value=1.0, **facts):
    report.Report(STAGE, root).save({"x": torch.tensor([value])}, "nets", **{"scale": "mini"} | facts)
    return root / "runs" / STAGE / "nets.safetensors"


def test_what_was_saved_comes_back(checkout):
    report.Report(STAGE, checkout / "reports").save(NETS, "nets", scale="mini", seeds=5, table=[{"beta": 0.5}])
    tensors, facts = saved.load(STAGE, "nets", scale="mini")
    assert facts == {"scale": "mini", "seeds": 5, "table": [{"beta": 0.5}]}
    assert all(torch.equal(tensors[name], value) for name, value in NETS.items())
    assert tensors["bias"].dtype == torch.float16


def test_the_same_tensors_are_the_same_bytes(tmp_path):
    paths = [tmp_path / name for name in ("one", "two")]
    for path, order in zip(paths, (1, -1), strict=True):
        report.Report(STAGE, path).save(dict(list(NETS.items())[::order]), "nets", scale="mini", seeds=5)
    one, two = (path / f"runs/{STAGE}/nets.safetensors" for path in paths)
    assert one.read_bytes() == two.read_bytes()


def test_by_hand_the_readers_own_run_wins_and_is_named(checkout, capsys):
    published = save(checkout / "reports", 1.0)
    assert saved.load(STAGE, "nets", scale="mini")[0]["x"] == 1
    assert str(published) in capsys.readouterr().out
    own = save(checkout / "reports/scratch", 2.0)
    assert saved.load(STAGE, "nets", scale="mini")[0]["x"] == 2
    assert str(own) in capsys.readouterr().out


def test_the_pipeline_never_looks_into_scratch(checkout, monkeypatch):
    monkeypatch.setenv("DIPP_REPORTS", str(checkout / ".work/11/reports"))
    monkeypatch.setenv("DIPP_RESULTS", str(checkout / "reports"))
    save(checkout / "reports/scratch", 2.0)
    with pytest.raises(saved.SavedRunError, match="is missing"):
        saved.load(STAGE, "nets", scale="mini")
    save(checkout / "reports", 1.0)
    assert saved.load(STAGE, "nets", scale="mini")[0]["x"] == 1


def test_a_run_with_results_elsewhere_finds_earlier_ones_there(checkout, monkeypatch, tmp_path):
    monkeypatch.setenv("DIPP_RESULTS", str(tmp_path / "elsewhere"))
    save(checkout / "reports", 1.0)
    save(tmp_path / "elsewhere", 3.0)
    assert saved.load(STAGE, "nets", scale="mini")[0]["x"] == 3


def one_line(checkout, scale="mini"):
    with pytest.raises(saved.SavedRunError) as caught:
        saved.load(STAGE, "nets", scale=scale)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_run_names_its_stage_and_the_command(checkout):
    line = one_line(checkout)
    assert f"reports/runs/{STAGE}/nets.safetensors is missing" in line
    assert f"dvc repro {STAGE}" in line


@pytest.mark.parametrize("kept", [0, 7, 60, -1])
def test_a_truncated_run_is_one_line(checkout, kept):
    path = save(checkout / "reports")
    path.write_bytes(path.read_bytes()[:kept])
    assert "cannot be read" in one_line(checkout)


def test_a_file_of_somebody_else_is_one_line(checkout):
    from safetensors.torch import save_file

    path = save(checkout / "reports")
    save_file({"x": torch.ones(1)}, path)
    assert "cannot be read" in one_line(checkout)


def test_runs_of_another_scale_are_refused(checkout):
    save(checkout / "reports", scale="smoke")
    line = one_line(checkout)
    assert "'smoke'" in line
    assert "'mini'" in line
