"""Checkpoints: whole or absent, and one line for one that is damaged, foreign, locked, or does not fit on the disk."""

import json
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from dipp_core.training import checkpoint
from dipp_core.training.parts import CheckpointError

SETTINGS = {"alpha_rew": 10.0, "betas": (0.0, 0.99), "alpha_cfg": torch.tensor([1.0, 2.0])}


class Tied(nn.Module):
    """Two names for one tensor, a part of a larger one, and a transposed one."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(3, 4, bias=False)
        self.head = nn.Linear(3, 4, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("whole", torch.randn(6))
        self.register_buffer("begin", self.whole[:3])
        self.register_buffer("across", torch.randn(2, 3).T)


def new_parts(seed=0, size=3):
    torch.manual_seed(seed)
    gen = nn.Linear(size, 2)
    optimizer = torch.optim.Adam(gen.parameters(), lr=0.1)
    gen(torch.randn(5, size)).sum().backward()
    optimizer.step()
    return {"gen": gen, "gen_optimizer": optimizer, "tied": Tied(), "noise": torch.Generator().manual_seed(seed)}


def save(folder, step, parts=None, **more):
    return checkpoint.save(folder, step, parts or new_parts(step), SETTINGS, **more)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def one_line(folder, parts=None, settings=SETTINGS, said=None):
    with pytest.raises(CheckpointError) as caught:
        checkpoint.resume(folder, parts or new_parts(9), settings, (said if said is not None else []).append)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def same(one, two):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def test_what_was_saved_comes_back(tmp_path):
    parts, fresh = new_parts(1), new_parts(2)
    save(tmp_path, 7, parts, facts={"seconds": 1.5})
    found = checkpoint.resume(tmp_path, fresh, SETTINGS)
    assert (found.step, found.facts, found.settings["alpha_cfg"]) == (7, {"seconds": 1.5}, [1.0, 2.0])
    assert same(parts["gen"], fresh["gen"])
    assert same(parts["tied"], fresh["tied"])
    assert fresh["tied"].head.weight is fresh["tied"].embed.weight
    assert torch.equal(parts["noise"].get_state(), fresh["noise"].get_state())
    moments = [p["gen_optimizer"].state_dict()["state"][0]["exp_avg_sq"] for p in (parts, fresh)]
    assert torch.equal(*moments)


def test_an_empty_folder_is_a_beginning(tmp_path):
    assert checkpoint.resume(tmp_path, new_parts(), SETTINGS) is None


def test_there_is_no_pickle_and_others_may_read_the_files(tmp_path):
    path = save(tmp_path, 1)
    assert {file.suffix for file in path.iterdir()} == {".json", ".safetensors"}
    assert len({file.stat().st_mode & 0o444 for file in path.iterdir()}) == 1
    json.loads((path / "manifest.json").read_text())


def test_the_last_ones_and_every_nth_stay(tmp_path):
    for step in range(1, 9):
        save(tmp_path, step, keep_last=2, keep_every=3)
    assert names(tmp_path) == ["step_00000003", "step_00000006", "step_00000007", "step_00000008"]


def test_one_part_can_be_read_alone(tmp_path):
    parts, fresh = new_parts(1), new_parts(2)
    save(tmp_path, 1, parts)
    checkpoint.restore(checkpoint.latest(tmp_path), {"gen": fresh["gen"]})
    assert same(parts["gen"], fresh["gen"])


def damage(path, kept):
    path.write_bytes(path.read_bytes()[:kept])


@pytest.mark.parametrize(
    ("file", "harm", "what"),
    [
        ("gen.safetensors", lambda path: damage(path, 100), "gen.safetensors has 100 bytes instead of"),
        ("gen.safetensors", lambda path: damage(path, 0), "gen.safetensors has 0 bytes instead of"),
        ("gen.safetensors", lambda path: path.unlink(), "gen.safetensors has 0 bytes instead of"),
        (
            "noise.safetensors",
            lambda path: path.write_bytes(path.read_bytes()[:-1] + b"?"),
            "noise.safetensors has changed",
        ),
        ("manifest.json", lambda path: damage(path, 100), "manifest.json is unreadable"),
        ("manifest.json", lambda path: path.unlink(), "manifest.json is missing"),
        (
            "manifest.json",
            lambda path: path.write_text(path.read_text().replace("0.1", "0.2", 1)),
            "manifest.json has changed",
        ),
    ],
)
def test_a_damaged_one_is_named_and_the_one_before_it_used(tmp_path, file, harm, what):
    save(tmp_path, 1)
    harm(save(tmp_path, 2) / file)
    parts, said = new_parts(9), []
    assert checkpoint.resume(tmp_path, parts, SETTINGS, said.append).step == 1
    assert same(parts["gen"], new_parts(1)["gen"])
    assert len(said) == 1
    assert f"step_00000002 is damaged: {what}" in said[0]
    assert said[0].endswith("; using step_00000001 instead")


def test_a_damaged_one_is_replaced_when_its_step_comes_again(tmp_path):
    save(tmp_path, 1)
    damage(save(tmp_path, 2) / "gen.safetensors", 50)
    save(tmp_path, 2)
    assert checkpoint.latest(tmp_path).step == 2
    assert names(tmp_path) == ["step_00000001", "step_00000002"]


def test_without_an_intact_one_the_run_is_not_silently_begun_again(tmp_path):
    damage(save(tmp_path, 2) / "gen.safetensors", 50)
    said = []
    assert "none before it is intact" in one_line(tmp_path, said=said)
    assert said == []


@pytest.mark.parametrize(
    ("parts", "settings", "what"),
    [
        ({}, SETTINGS | {"alpha_rew": 15.0}, "alpha_rew = 10.0 there, 15.0 here"),
        ({}, SETTINGS | {"seed": 3}, "seed = None there, 3 here"),
        ({"gen": nn.Linear(4, 2)}, SETTINGS, "gen has weight: float32 (2, 3) there, float32 (2, 4) here"),
        ({"gen": nn.Conv2d(3, 2, 1)}, SETTINGS, "gen is a Linear there, a Conv2d here"),
        ({"ema": nn.Linear(1, 1)}, SETTINGS, "it has no ema, only gen, gen_optimizer, tied, noise, random"),
        ({"gen_optimizer": torch.optim.SGD(nn.Linear(3, 2).parameters())}, SETTINGS, "gen_optimizer is a Adam there"),
        ({"gen_optimizer": torch.optim.Adam(nn.Linear(3, 3).parameters())}, SETTINGS, "parameter 0 of group 0"),
    ],
)
def test_one_of_another_run_is_refused_before_anything_changes(tmp_path, parts, settings, what):
    save(tmp_path, 1)
    mine = new_parts(9)
    assert what in one_line(tmp_path, mine | parts, settings)
    assert same(mine["gen"], new_parts(9)["gen"])


def test_one_with_further_parts_is_refused(tmp_path):
    save(tmp_path, 1, new_parts() | {"ema": nn.Linear(1, 1)})
    assert "it has ema as well" in one_line(tmp_path)


def test_a_folder_of_somebody_else_is_refused_although_an_own_one_is_before_it(tmp_path):
    save(tmp_path, 1)
    (tmp_path / "step_00000002").mkdir()
    (tmp_path / "step_00000002/manifest.json").write_text('{"format": "theirs"}')
    assert "step_00000002 is no checkpoint of this project" in one_line(tmp_path)


@pytest.mark.parametrize("value", [{1}, lambda: 0, nn.Linear(1, 1)])
def test_settings_that_are_no_json_are_refused(tmp_path, value):
    with pytest.raises(CheckpointError, match="weight is a"):
        checkpoint.save(tmp_path, 1, new_parts(), {"weight": value})


@pytest.mark.parametrize("name", ["random", "Gen", "a.b", "../up"])
def test_names_that_cannot_be_files_are_refused(tmp_path, name):
    with pytest.raises(CheckpointError, match="cannot be called"):
        checkpoint.save(tmp_path, 1, {name: nn.Linear(1, 1)}, {})


FILL = """
import pathlib, resource, signal, sys, torch
from dipp_core.training import checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder, parts = pathlib.Path(sys.argv[1]), {"small": torch.nn.Linear(2, 2), "large": torch.nn.Linear(300, 300)}
checkpoint.save(folder, 1, parts, {})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    checkpoint.save(folder, 2, parts, {})
except checkpoint.CheckpointError as error:
    print(error)
"""


def test_where_the_system_takes_no_more_the_one_before_it_stays(tmp_path):
    """A limit on the size of a file stands for a full disk: the system refuses in the middle of a file."""
    folder = tmp_path / "run"
    done = subprocess.run([sys.executable, "-c", FILL, folder], capture_output=True, text=True, timeout=120)
    expected = f"{folder}/step_00000002 was not written (File too large); step_00000001 is kept"
    assert done.stdout.startswith(expected), done.stderr
    assert done.stdout.count("\n") == 1
    assert names(folder) == ["step_00000001"]
    assert checkpoint.latest(folder).step == 1


def test_a_full_disk_while_flushing_is_one_line_too(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"not written \(No space left on device\); there is none before it"):
        save(tmp_path, 1)
    assert names(tmp_path) == []


def test_leftovers_of_a_killed_run_never_count_and_vanish(tmp_path):
    save(tmp_path, 1)
    (tmp_path / ".partial_step_00000002").mkdir()
    (tmp_path / ".partial_step_00000002/gen.safetensors").write_bytes(b"half")
    assert checkpoint.latest(tmp_path).step == 1
    save(tmp_path, 2)
    assert names(tmp_path) == ["step_00000001", "step_00000002"]


def test_a_second_run_in_the_same_folder_is_refused_until_the_first_ends(tmp_path):
    with (
        checkpoint.locked(tmp_path),
        pytest.raises(CheckpointError, match=rf"another run works here \(process {os.getpid()}\)"),
        checkpoint.locked(tmp_path),
    ):
        pass
    with checkpoint.locked(tmp_path):
        pass
