"""Two processes are one: the same weights, curves and checkpoints; and whatever ends one of them ends both.

All runs are made once, in float64, by `group_run.py`: by one process, by two with gloo, and by both in turn.
"""

import json
import os
import pathlib
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from dipp_core.files import InputError
from dipp_core.models import miniature
from dipp_core.training.student import ALONE, Group, find_group
from dipp_core.training.watch import read_curves
from dipp_core.worlds import shapes

ROOT = pathlib.Path(__file__).resolve().parents[2]
KINDS = {"dipp": "unet", "distar_in": "dit"}
WHOLE = ["dipp_full", "dipp_lora", "distar_in_full", "distar_in_lora"]


def job(models, name, **more):
    method, _, roles = name.rpartition("_")
    return {"world": str(models / KINDS[method]), "method": method, "roles": roles, "batch": 4, "steps": 4} | more


def plan_of(models):
    """What is launched, one after another: processes, folder, jobs."""
    dipp, star, stars = (job(models, name) for name in ("dipp_full", "distar_in_lora", "distar_in_full"))
    whole = {name: job(models, name) for name in WHOLE}
    split = whole | {"distar_in_lora": star | {"micro": 1}}
    troubles = {"odd": dipp | {"batch": 3}}
    sharded = {"processes": 2, "place": "shards", "sharded": True}
    return [
        {"processes": 1, "place": "one", "jobs": whole | {"one_two": star | {"asked": [0, 1]}}},
        {"processes": 2, "place": "two", "jobs": troubles | split | {"two_one": dipp | {"asked": [1, 1]}}},
        {"processes": 2, "place": "two", "jobs": {"lost": dipp | {"folders": ["two_one", "elsewhere"]}}},
        {"processes": 1, "place": "two", "jobs": {"two_one": dipp}},
        {"processes": 2, "place": "one", "jobs": {"one_two": star}},
        sharded | {"jobs": {"lora": star, "turns": stars | {"asked": [0, 1]}}},
        sharded | {"jobs": {"turns": stars | {"asked": [1, 0]}}},
        {"processes": 1, "place": "shards", "jobs": {"turns": stars}},
        {"processes": 2, "place": "killed", "jobs": {"killed": dipp | {"killed": [1, 1]}}},
        {"processes": 2, "place": "killed", "jobs": {"nan": dipp | {"nan": [1, 1]}}},
    ]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The folder of all runs."""
    root = tmp_path_factory.mktemp("runs")
    for kind in miniature.KINDS:
        miniature.build(root / "models" / kind, kind, words=shapes.vocabulary(), size="tiny")
    command = [sys.executable, ROOT / "tests/training/group_run.py", root, json.dumps(plan_of(root / "models"))]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([str(part) for part in command], env=env, check=True, timeout=600)
    return root


def said(root, launch, rank, name):
    """What a process said of a job, one line at most."""
    text = (root / f"said_{launch}_{rank}.txt").read_text()
    assert "Traceback" not in text, text
    return "".join(re.findall(rf"^{name}: (.*)$", text, re.M))


def weights(root, name):
    file = root / f"{name}.safetensors"
    assert file.exists(), "\n".join(path.read_text() for path in sorted(root.glob("said*")))
    return load_file(file)


def assert_same(one, other):
    assert one.keys() == other.keys()
    for key, value in one.items():
        torch.testing.assert_close(other[key], value, atol=1e-9, rtol=0, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("name", WHOLE)
def test_two_processes_end_with_the_weights_of_one(root, name):
    """One of these runs also computes one row at a time."""
    one = weights(root, f"one/{name}")
    assert_same(one, weights(root, f"two/{name}"))


@pytest.mark.parametrize("name", WHOLE)
def test_curves_are_those_of_the_whole_batch(root, name):
    one, two = (read_curves(root / place / name) for place in ("one", "two"))
    assert set(one) == set(two) >= {"reward", "divergence", "norm_reward", "ta_loss", "grad_norm", "eval_mean"}
    for key, curve in one.items():
        assert two[key].values == pytest.approx(curve.values, rel=1e-6), key


def test_a_run_goes_on_with_another_number_of_processes(root):
    for rank in (0, 1):  # one of the two was asked to stop
        assert "stopped after step 2 of 4 and saved" in said(root, 1, rank, "two_one")
    assert_same(weights(root, "one/dipp_full"), weights(root, "two/two_one"))
    assert "stopped after step 2 of 4 and saved" in said(root, 0, 0, "one_two")
    assert_same(weights(root, "one/distar_in_lora"), weights(root, "one/one_two"))


def test_sharded_networks_learn_the_same_and_their_checkpoints_are_whole(root):
    """Two sharded steps, one more after loading, and the last one by one process with whole networks."""
    for launch, steps in ((5, 2), (6, 3)):
        assert f"stopped after step {steps} of 4 and saved" in said(root, launch, 1, "turns")
    assert_same(weights(root, "one/distar_in_full"), weights(root, "shards/turns"))
    assert "launch without FSDP" in said(root, 5, 0, "lora")


def test_a_loss_that_is_not_finite_in_one_process_ends_both(root):
    assert "step 1: the term 'reward' is not finite" in said(root, 9, 1, "nan")
    assert "the other processes can no longer be reached" in said(root, 9, 0, "nan")


def test_a_process_that_is_killed_ends_the_other(root):
    assert "InputError: the other processes can no longer be reached" in said(root, 8, 0, "killed")


def test_processes_that_see_different_folders_are_refused(root):
    found = [said(root, 2, rank, "lost") for rank in (0, 1)]
    assert all("InputError" in line for line in found)
    assert any("all machines must see the same folder" in line for line in found)


def test_a_batch_that_does_not_divide_is_one_line(root):
    for rank in (0, 1):
        assert said(root, 1, rank, "odd") == f"ValueError: a batch of (3,) has no part {rank} of 2 equal ones"


def test_nobody_else_means_alone(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert find_group("cpu") is ALONE


def test_a_frozen_network_is_called_bare():
    """A wrapper that waits for gradients is used only where they come."""
    bare = torch.nn.Linear(1, 1)
    accelerator = SimpleNamespace(process_index=0, num_processes=2, free_memory=list)
    accelerator.prepare_model = lambda network: lambda x: "wrapped"
    call, x = Group(accelerator).joined(bare), torch.ones(1, requires_grad=True)
    assert call(x) == "wrapped"
    with torch.no_grad():
        assert call(x) != "wrapped"
    bare.requires_grad_(False)
    assert call(x).requires_grad


def test_what_accelerate_is_not_asked_for_is_refused(monkeypatch):
    import accelerate

    class Other:
        distributed_type, is_fsdp2 = accelerate.DistributedType.DEEPSPEED, False

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(accelerate, "Accelerator", lambda **options: Other())
    with pytest.raises(InputError, match="DEEPSPEED is not known here: DDP"):
        find_group("cpu")
