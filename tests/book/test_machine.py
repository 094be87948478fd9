"""What the machine is said to be."""

import pytest

from dipp_core.book import machine


def test_a_package_is_compared_with_the_lock_and_a_build_tag_is_no_difference(monkeypatch):
    monkeypatch.setattr(machine, "version", {"torch": "2.13.0+cpu", "numpy": "1.0"}.get)
    rows = {row["package"]: row["verdict"] for row in machine.packages(["torch", "numpy", "dvc"])}
    assert rows == {"torch": "as locked", "numpy": "differs from the lock", "dvc": "missing: run `make`"}


@pytest.mark.parametrize(
    ("printed", "found"),
    [
        ("No devices were found", []),
        ("Odd, [N/A]", []),
        ("Small, 8192\nBig, with a comma, 81920\n", [("Small", 8.0), ("Big, with a comma", 80.0)]),
    ],
)
def test_gpus_are_those_that_the_driver_lists(monkeypatch, printed, found):
    monkeypatch.setattr(machine.shutil, "which", lambda name: name)
    monkeypatch.setattr(machine, "command_output", lambda *command: printed)
    assert machine.gpus() == found
    assert machine.describe().endswith(", ".join(name for name, _ in found) or " cores")


def test_a_command_that_fails_or_is_not_there_prints_nothing():
    assert machine.command_output("sh", "-c", "echo the driver is not loaded; exit 9") == ""
    assert machine.command_output("no-such-command-at-all") == ""
