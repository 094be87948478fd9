"""The list of training prompts, from a directory that stands in for the hub's repository."""

import pandas as pd
import pytest

from dipp_core.training import prompt_source
from dipp_core.training.full import read_prompts


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """What the hub would hand out: the same folder and column; asked for at the pinned commit."""
    path = tmp_path / "repository" / prompt_source.FILE
    path.parent.mkdir(parents=True)
    texts = ["a red fox", "a  boat\nat sea", "a red fox", " ", "ein Schloß\u2028im Nebel"]
    pd.DataFrame({prompt_source.COLUMN: texts}).to_parquet(path)

    def hand_out(name, *, repo_type, revision, allow_patterns, **_):
        assert (name, repo_type, revision) == (prompt_source.NAME, "dataset", prompt_source.COMMIT)
        assert allow_patterns == [prompt_source.FILE]
        return str(tmp_path / "repository")

    monkeypatch.setattr("huggingface_hub.snapshot_download", hand_out)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path


def test_the_command_writes_what_training_reads(repository, capsys):
    out = repository / "models" / "prompts.txt"
    assert prompt_source.main(["--out", str(out)]) == 0
    assert "3 prompts" in capsys.readouterr().out
    assert read_prompts(str(out)) == ["a red fox", "a boat at sea", "ein Schloß im Nebel"]
    assert prompt_source.main(["--out", str(out), "--most", "1"]) == 0
    assert read_prompts(str(out)) == ["a red fox"]


def test_without_a_network_it_is_one_line_at_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert prompt_source.main(["--out", str(tmp_path / "prompts.txt")]) == 2
    told = capsys.readouterr().err
    assert "cannot be fetched" in told
    assert len(told.splitlines()) == 1
