"""What the machine is said to be."""

import pytest

from dipp_core.lab import machine


def test_a_package_is_compared_with_the_lock_and_a_build_tag_is_no_difference(monkeypatch):
    monkeypatch.setattr(machine, "version", {"torch": "2.13.0+cpu", "numpy": "1.0"}.get)
    rows = {row["package"]: row["verdict"] for row in machine.packages(["torch", "numpy", "dvc"])}
    assert rows == {"torch": "as locked", "numpy": "differs from the lock", "dvc": "missing: run `make`"}


def test_every_package_named_in_the_first_notebook_is_in_the_lock():
    assert machine.packages(["image-reward"])[0]["locked"] == "1.5"


@pytest.mark.parametrize(
    ("printed", "verdict"),
    [("", "no: no GPU here"), ("Small, 8192\n", "no: 8 GB here"), ("Small, 8192\nBig, 81920\n", "yes")],
)
def test_the_full_scale_needs_a_large_gpu(monkeypatch, printed, verdict):
    monkeypatch.setattr(machine.shutil, "which", lambda name: name)
    monkeypatch.setattr(machine, "command_output", lambda *command: printed)
    assert machine.scales()[-1]["this machine"] == verdict


def test_the_device_is_the_gpu_or_else_the_processor(monkeypatch):
    monkeypatch.setattr(machine, "gpus", lambda: [("Big", 80.0), ("Big", 80.0)])
    assert machine.device() == "Big + Big"
    monkeypatch.setattr(machine, "gpus", list)
    assert machine.device().startswith("CPU, ")


def test_a_command_that_is_not_there_prints_nothing():
    assert machine.command_output("no-such-command-at-all") == ""
