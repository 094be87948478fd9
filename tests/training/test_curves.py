"""The log of a run: exact, cut back to its checkpoint, readable while it grows and after a kill."""

import csv

import numpy as np
import pytest
import torch

from dipp_core.method.algorithm import StepRecord
from dipp_core.training import curves


def log(folder, rows, size=0):
    with curves.open_log(folder, size) as handle:
        for step, values in rows:
            curves.append(handle, step, values)
        return curves.size_on_disk(handle)


def test_a_record_is_its_numbers():
    record = StepRecord(3, {"reward": torch.tensor(0.5)}, {"reward": torch.tensor([1.0, 2.0])}, torch.tensor(3), None)
    assert curves.numbers(record) == {"reward": 0.5, "norm_reward": [1.0, 2.0], "grad_norm": 3}
    record = StepRecord(3, {}, {}, torch.tensor(3.0), torch.tensor(0.25), torch.zeros(2))
    assert curves.numbers(record) == {"grad_norm": 3.0, "ta_loss": 0.25}
    assert curves.numbers({"loss": np.float64(2), "one": 1}) == {"loss": 2.0, "one": 1}


def test_what_is_not_finite_is_named():
    assert curves.not_finite({"a": 1.0, "b": [0.0, float("nan")], "c": float("inf")}) == ["b", "c"]


def test_values_come_back_exactly(tmp_path):
    third = float(torch.tensor(1 / 3))
    log(tmp_path, [(1, {"a": third, "b": [1.0, 2.0]}), (2, {"a": 1e-40, "b": [3.0, 4.0]}), (2, {"eval_c": 7})])
    found = curves.read(tmp_path)
    assert found["a"].values.tolist() == [third, 1e-40]
    assert found["b"].values.shape == (2, 2)
    assert (found["eval_c"].step.tolist(), found["eval_c"].values.tolist()) == ([2], [7])


def test_it_is_cut_back_to_the_checkpoint_it_continues(tmp_path):
    size = log(tmp_path, [(1, {"a": 1.0}), (2, {"a": 2.0})])
    with open(tmp_path / curves.NAME, "ab") as handle:
        handle.write(b'{"step": 3, "a": 3.0}\n{"step": 4, "a"')
    assert curves.read(tmp_path)["a"].step.tolist() == [1, 2, 3]
    log(tmp_path, [(3, {"a": 5.0})], size)
    assert curves.read(tmp_path)["a"].values.tolist() == [1.0, 2.0, 5.0]


def test_a_log_that_was_lost_is_said(tmp_path):
    said = []
    curves.open_log(tmp_path, 100, said.append).close()
    assert said == [f"{tmp_path}/curves.jsonl is shorter than at the checkpoint: the curves have a gap"]
    assert curves.read(tmp_path) == {}


def test_what_is_not_finite_never_enters(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        log(tmp_path, [(1, {"a": float("nan")})])


def test_the_table_has_one_line_a_step(tmp_path):
    log(
        tmp_path,
        [(0, {"eval_g": 0.5}), (1, {"a": 1.0, "b": [1.0, 2.0]}), (2, {"a": 2.0, "b": [3.0, 4.0]}), (2, {"eval_g": 1})],
    )
    curves.write_csv(tmp_path)
    with open(tmp_path / "curves.csv") as handle:
        rows = list(csv.DictReader(handle))
    assert list(rows[0]) == ["step", "eval_g", "a", "b[0]", "b[1]"]
    assert [list(row.values()) for row in rows] == [
        ["0", "0.5", "", "", ""],
        ["1", "", "1.0", "1.0", "2.0"],
        ["2", "1", "2.0", "3.0", "4.0"],
    ]
