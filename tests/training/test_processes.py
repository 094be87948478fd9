"""Two processes are one: the same weights, curves and checkpoints; and what ends one of them ends both.

All runs are made once, in float64, by `group_run.py`: by one process, by two with gloo, and by both in turn.
"""

import json
import os
import pathlib
import re
import subprocess
import sys
from types import SimpleNamespace

import accelerate
import pytest
import torch
from safetensors.torch import load_file

from dipp_core.files import InputError
from dipp_core.models import miniature
from dipp_core.training.student import Group, find_group
from dipp_core.training.watch import read_curves
from dipp_core.worlds import shapes

ROOT = pathlib.Path(__file__).resolve().parents[2]


def plan_of(models):
    """What is launched, one after another. `turns_*` are begun by one launch and ended by another."""
    full = {"world": str(models / "dit"), "method": "distar_in", "roles": "full", "batch": 4}
    lora = {"world": str(models / "unet"), "method": "dipp", "roles": "lora", "batch": 4}
    two = {
        "odd": full | {"batch": 3},
        "two_full": full,
        "turns_lora": lora | {"micro": 1, "asked": [1, 3]},  # asked of a row at a time: in the second step
        "lost": lora | {"folders": ["turns_lora", "elsewhere"]},
    }
    return [
        {"processes": 1, "jobs": {"full": full, "lora": lora, "turns_full": full | {"asked": [0, 1]}}},
        {"processes": 2, "jobs": two},
        {"processes": 1, "jobs": {"turns_lora": lora}},
        {"processes": 2, "sharded": True, "jobs": {"refused": lora, "turns_full": full}},
        {"processes": 2, "jobs": {"nan": lora | {"nan": [1, 1]}}},
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


def assert_same(one, other):
    assert one.keys() == other.keys()
    for key, value in one.items():
        torch.testing.assert_close(other[key], value, atol=1e-9, rtol=0, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("full", "two_full"),
        ("lora", "turns_lora"),  # two steps by two processes, one row at a time, one step more by one
        ("full", "turns_full"),  # two steps by one process, one more by two that share each network
    ],
)
def test_two_processes_end_with_the_weights_of_one(root, one, other):
    said_all = "\n".join(path.read_text() for path in sorted(root.glob("said*")))
    assert (root / f"{other}.safetensors").exists(), said_all
    assert_same(load_file(root / f"{one}.safetensors"), load_file(root / f"{other}.safetensors"))


def test_curves_are_those_of_the_whole_batch(root):
    one, two = (read_curves(root / name) for name in ("full", "two_full"))
    assert set(one) == set(two) >= {"reward", "divergence", "norm_reward", "ta_loss", "grad_norm", "eval_mean"}
    for key, curve in one.items():
        assert two[key].values == pytest.approx(curve.values, rel=1e-6), key


def test_where_one_is_asked_to_stop_both_do(root):
    for rank in (0, 1):
        assert "stopped after step 2 of 3 and saved" in said(root, 1, rank, "turns_lora")


def test_sharded_networks_leave_whole_checkpoints_and_are_no_adapters(root):
    one, two = (torch.load(root / name / "step_00000003.pt")["parts"] for name in ("full", "turns_full"))
    for part in ("gen", "ta"):
        assert_same(one[part], two[part])
    for number, moments in one["gen_adam"]["state"].items():
        assert_same(moments, two["gen_adam"]["state"][number])
    assert "launch without FSDP" in said(root, 3, 0, "refused")


def test_a_loss_that_is_not_finite_in_one_process_ends_both(root):
    assert "step 1: the term 'reward' is not finite" in said(root, 4, 1, "nan")
    assert "the other processes can no longer be reached" in said(root, 4, 0, "nan")


def test_what_processes_cannot_share_is_one_line(root):
    for rank in (0, 1):
        assert said(root, 1, rank, "odd") == f"ValueError: a batch of (3,) has no part {rank} of 2 equal ones"
        assert "all machines must see the same folder" in said(root, 1, rank, "lost")


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
    other = SimpleNamespace(distributed_type=accelerate.DistributedType.DEEPSPEED, is_fsdp2=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(accelerate, "Accelerator", lambda **options: other)
    with pytest.raises(InputError, match="DEEPSPEED is not known here: DDP"):
        find_group("cpu")
