"""Two processes are one: the same weights, curves and checkpoints; and whatever ends one of them ends both."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from dipp_core.lab import curves
from dipp_core.lab.processes import ALONE, find_group
from dipp_core.worlds import miniature, shapes

ROOT = pathlib.Path(__file__).resolve().parents[2]
CLOSE = {"atol": 1e-5, "rtol": 0}
KINDS = {"dipp": ("unet", "full"), "distar_in": ("dit", "full")}
KINDS = {f"{method}_{roles}": (method, roles) for method in ("dipp", "distar_in") for roles in ("full", "lora")}


def launch(folder, jobs, processes):
    """Run jobs in so many processes; returns what each of them said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(processes):
        env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "MASTER_ADDR": "127.0.0.1"}
        env |= {"MASTER_PORT": str(port), "WORLD_SIZE": str(processes), "RANK": str(rank), "LOCAL_RANK": str(rank)}
        env |= {"ACCELERATE_USE_CPU": "true"} if processes > 1 else {}
        command = [sys.executable, ROOT / "tests/lab/group_run.py", folder, folder, json.dumps(jobs)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen([str(part) for part in command], env=env, **pipes))
    return [process.communicate(timeout=300) for process in started]


def weights(folder, name):
    return load_file(folder / f"{name}.safetensors")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of one process, of two, and of both in turn."""
    root = tmp_path_factory.mktemp("runs")
    worlds = {}
    for kind in miniature.KINDS:
        worlds[kind] = str(miniature.build(root / kind, kind, words=shapes.vocabulary(), size="tiny"))
    kind = {"dipp": "unet", "distar_in": "dit"}
    jobs = {
        name: {"world": worlds[kind[method]], "method": method, "roles": roles, "batch": 4, "steps": 4}
        for name, (method, roles) in KINDS.items()
    }
    one, two = root / "one", root / "two"
    for folder in (one, two):
        folder.mkdir()
    said = {folder.name: launch(folder, jobs, n) for n, folder in ((1, one), (2, two))}
    return root, jobs, said


@pytest.mark.parametrize("name", KINDS)
def test_two_processes_end_with_the_weights_of_one(runs, name):
    root, _, said = runs
    assert (root / "two" / f"{name}.safetensors").exists(), said["two"]
    one, two = (weights(root / folder, name) for folder in ("one", "two"))
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, **CLOSE, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("name", KINDS)
def test_curves_are_those_of_the_whole_batch(runs, name):
    root, *_ = runs
    one, two = (curves.read(root / folder / name) for folder in ("one", "two"))
    assert set(one) == set(two) >= {"reward", "divergence", "norm_reward", "ta_loss", "grad_norm", "eval_mean"}
    for key, curve in one.items():
        assert two[key].values == pytest.approx(curve.values, rel=1e-3, abs=1e-5), key


def test_nobody_else_means_alone(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert find_group("cpu") is ALONE
