"""Long runs: killed at any moment they continue exactly; whatever else stops them is one line and loses nothing.

By hand, with as many kills as wanted:  DIPP_KILLS=20 pytest tests/training/test_train.py -k random
"""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from dipp_core.method.algorithm import StepRecord
from dipp_core.method.staged import NonFiniteError
from dipp_core.training import checkpoint, curves, pictures, train
from dipp_core.training.ema import EMA
from dipp_core.training.parts import CheckpointError

KILLS = int(os.environ.get("DIPP_KILLS", 0))
STEPS = 200 if KILLS else 40


# ----------------------------------------------------------------------------------------------------- kill and resume


class Server:
    """Runs of `long_run.py`, each in a process of its own that can be killed."""

    def __init__(self, process):
        self.process = process

    def start(self, folder, **order):
        print(json.dumps({"folder": str(folder), "steps": STEPS} | order), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())

    def status(self):
        return int(self.process.stdout.readline())

    def run(self, folder, **order):
        self.start(folder, **order)
        return self.status()


@pytest.fixture(scope="module")
def server(checkout):
    command = [sys.executable, str(pathlib.Path(__file__).with_name("long_run.py"))]
    path = {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=os.environ | path, **pipes) as process:
        yield Server(process)
        process.stdin.close()


@pytest.fixture(scope="module")
def unkilled(server, tmp_path_factory):
    """What a run leaves that nothing disturbed."""
    folder = tmp_path_factory.mktemp("runs") / "unkilled"
    assert server.run(folder) == 0
    return result(folder)


def result(folder):
    """All bytes that must not depend on kills: tensors, the rest of the state, curves."""
    last = checkpoint.latest(folder)
    assert last.step == STEPS
    states = json.dumps({name: part["state"] for name, part in last.parts.items()}, sort_keys=True).encode()
    files = {path.name: path.read_bytes() for path in last.path.glob("*.safetensors")}
    return files | {"states": states} | {name: (folder / name).read_bytes() for name in ("curves.jsonl", "curves.csv")}


def difference(one, two):
    return sorted(name for name in one.keys() | two.keys() if one.get(name) != two.get(name))


@pytest.mark.parametrize("number", range(KILLS or 2))
def test_killed_at_a_random_moment_and_resumed_it_is_as_if_never_killed(server, unkilled, tmp_path, number):
    moment, log = random.Random(number), tmp_path / curves.NAME
    process, size = server.start(tmp_path), moment.uniform(0.0, 0.95) * len(unkilled[curves.NAME])
    while not log.exists() or log.stat().st_size < size:
        time.sleep(0.001)
    time.sleep(moment.uniform(0.0, 0.02))  # a step takes about 0.01 seconds, a save as long again
    os.kill(process, signal.SIGKILL)
    assert server.status() == -signal.SIGKILL
    assert server.run(tmp_path) == 0
    assert difference(result(tmp_path), unkilled) == []


def test_killed_at_every_point_of_a_save_it_is_as_if_never_killed(server, unkilled, tmp_path):
    """Before the log and each file is flushed, the new checkpoint renamed, the old one renamed and removed."""
    states = []
    for number in (1, 2, 8, 9, 10, 11, 12, 13, 14):
        assert server.run(tmp_path, die_at=number) == -signal.SIGKILL
        states.append(sorted(path.name.split("_")[0] for path in tmp_path.glob("*step_*")))
        said = []
        checkpoint.latest(tmp_path, said.append)
        assert said == []
    assert {".partial", "step"} == {
        name for state in states for name in state
    }  # some kills did leave half a checkpoint
    assert server.run(tmp_path) == 0
    assert difference(result(tmp_path), unkilled) == []


def test_a_second_run_in_the_folder_is_refused_while_the_first_lives(server, tmp_path):
    process = server.start(tmp_path, steps=100_000)
    while not list(tmp_path.glob("step_*")):
        time.sleep(0.01)
    with pytest.raises(CheckpointError, match=rf"another run works here \(process {process}\)"):
        small_run(tmp_path)
    os.kill(process, signal.SIGKILL)
    assert server.status() == -signal.SIGKILL
    with checkpoint.locked(tmp_path):
        pass


# ---------------------------------------------------------------------------------------------- a run of a few numbers


class Fit:
    """Steps of a small regression, with all its parts."""

    def __init__(self, steps=12, spoil=None):
        torch.manual_seed(0)
        self.net, self.steps, self.spoil = nn.Linear(2, 1), steps, spoil
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=0.1)
        self.noise, self.ema, self.seen = torch.Generator().manual_seed(1), EMA(self.net, 0.9), []
        self.parts = {"net": self.net, "optimizer": self.optimizer, "noise": self.noise, "ema": self.ema}

    def records(self, start):
        for step in range(start, self.steps):
            if self.spoil:
                self.spoil(step)
            loss = self.net(torch.randn(4, 2, generator=self.noise)).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.seen.append(step)
            yield {"loss": loss.detach(), "runs": torch.tensor([1.0, step])}


def small_run(folder, fit=None, said=None, **more):
    fit = fit or Fit()
    plan = {"steps": fit.steps, "save_steps": 5, "evaluate_steps": 0} | more.pop("plan", {})
    say = (said if said is not None else []).append
    options = {"settings": {"lr": 0.1}, "after_step": [fit.ema.update], "say": say} | more
    return train.run(folder, fit.records, fit.parts, train.Plan(**plan), **options)


def steps_kept(folder):
    return [int(path.name[5:]) for path in sorted(folder.glob("step_*"))]


def one_line(folder, kind, fit=None, **more):
    with pytest.raises(kind) as caught:
        small_run(folder, fit, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def interrupt_at(number, signals=1):
    def spoil(step):
        if step == number:
            for _ in range(signals):
                os.kill(os.getpid(), signal.SIGINT)

    return spoil


def test_a_run_leaves_its_last_checkpoints_curves_and_a_picture(tmp_path):
    fit = Fit()
    outcome = small_run(tmp_path, fit)
    assert (outcome.steps, outcome.resumed_at) == (12, 0)
    assert steps_kept(tmp_path) == [10, 12]
    found = curves.read(tmp_path)
    assert found["loss"].step.tolist() == list(range(1, 13))
    assert found["runs"].values.shape == (12, 2)
    assert (tmp_path / "curves.png").is_file()
    assert (tmp_path / "curves.csv").is_file()


def test_a_complete_run_gives_its_result_at_once(tmp_path):
    fit, again, said = Fit(), Fit(), []
    first = small_run(tmp_path, fit)
    assert small_run(tmp_path, again, said).seconds == first.seconds > 0
    assert again.seen == []
    assert torch.equal(fit.net.weight, again.net.weight)
    assert said == [f"{tmp_path}: complete at step 12 of 12"]


def test_checkpoints_come_by_steps_by_time_and_at_the_end(tmp_path):
    small_run(tmp_path / "steps", plan={"keep_last": 9, "save_steps": 4, "steps": 10}, fit=Fit(10))
    small_run(tmp_path / "time", plan={"keep_last": 99, "save_steps": 0, "save_minutes": 0.0})
    small_run(tmp_path / "end", plan={"save_steps": 0})
    assert steps_kept(tmp_path / "steps") == [4, 8, 10]
    assert steps_kept(tmp_path / "time") == list(range(1, 13))
    assert steps_kept(tmp_path / "end") == [12]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_it_finishes_the_step_saves_and_says_how_to_go_on(tmp_path, number):
    before = signal.getsignal(signal.SIGINT)
    whole, fit, said = Fit(), Fit(spoil=lambda step: step == 6 and os.kill(os.getpid(), number)), []
    small_run(tmp_path / "whole", whole)
    line = one_line(tmp_path / "run", train.Stopped, fit)
    assert line == f"{tmp_path}/run: stopped after step 7 of 12 and saved; run the same to continue"
    assert steps_kept(tmp_path / "run") == [5, 7]
    assert signal.getsignal(signal.SIGINT) is before
    again = Fit()
    assert small_run(tmp_path / "run", again, said).resumed_at == 7
    assert said == [f"{tmp_path}/run: continued at step 7 of 12"]
    assert again.seen == list(range(7, 12))
    assert torch.equal(again.ema.average["weight"], whole.ema.average["weight"])
    assert (tmp_path / "run/curves.jsonl").read_bytes() == (tmp_path / "whole/curves.jsonl").read_bytes()


def test_asked_twice_it_stops_at_once(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        small_run(tmp_path, Fit(spoil=interrupt_at(6, signals=2)))
    assert steps_kept(tmp_path) == [5]


def test_a_loss_that_is_not_finite_stops_the_run_and_the_good_checkpoint_stays(tmp_path):
    fit = Fit()
    fit.spoil = lambda step: step == 7 and nn.init.constant_(fit.net.bias, float("nan"))
    line = one_line(tmp_path, train.TrainError, fit)
    assert line.startswith(f"{tmp_path}: step 7: loss not finite; step_00000005 is kept; the same settings lead there")
    assert steps_kept(tmp_path) == [5]
    assert curves.read(tmp_path)["loss"].step[-1] == 7
    assert torch.isfinite(fit.ema.average["weight"]).all()


def test_what_align_finds_not_finite_is_one_line_too(tmp_path):
    def spoil(step):
        if step == 3:
            raise NonFiniteError("the term 'reward'", step)

    line = one_line(tmp_path, train.TrainError, Fit(spoil=spoil))
    assert "step 3: the term 'reward' is not finite" in line
    assert "there is no checkpoint yet" in line


def test_a_full_disk_stops_the_run_and_the_good_checkpoint_stays(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    fit = Fit(spoil=lambda step: step == 7 and monkeypatch.setattr(curves, "append", full))
    line = one_line(tmp_path, train.TrainError, fit)
    assert line == f"{tmp_path}: No space left on device; step_00000005 is kept; cure that and run the same again"


def test_records_that_ignore_the_start_are_refused(tmp_path):
    def records(start):
        for step in range(12):
            yield StepRecord(step, {}, {}, torch.tensor(1.0), None)

    fit = Fit(spoil=interrupt_at(6))
    with pytest.raises(train.Stopped):
        small_run(tmp_path, fit)
    with pytest.raises(train.TrainError, match="at step 0, not 7: pass start_step on to align"):
        train.run(tmp_path, records, fit.parts, train.Plan(steps=12), {"lr": 0.1})


def test_records_that_end_early_are_refused_and_further_ones_not_asked_for(tmp_path):
    fit = Fit(8)
    assert "the records ended after step 8 of 12" in one_line(
        tmp_path / "early", train.TrainError, fit, plan={"steps": 12}
    )
    fit = Fit(20)
    small_run(tmp_path / "more", fit, plan={"steps": 12})
    assert fit.seen == list(range(12))


def test_a_shorter_plan_than_what_is_done_is_refused(tmp_path):
    small_run(tmp_path)
    line = one_line(tmp_path, train.TrainError, plan={"steps": 9})
    assert line == f"{tmp_path}: 12 steps are done, the plan has 9; use another folder"


def test_other_settings_are_refused_before_anything_changes(tmp_path):
    small_run(tmp_path)
    before = (tmp_path / "curves.jsonl").read_bytes()
    assert "lr = 0.1 there, 0.2 here" in one_line(tmp_path, CheckpointError, settings={"lr": 0.2})
    assert (tmp_path / "curves.jsonl").read_bytes() == before


def test_evaluations_become_curves_and_pictures(tmp_path):
    said = []

    def evaluate(done):
        grid = pictures.picture_grid(torch.rand(2, 3, 4, 4), 2)
        return {"gold": done / 10, "bad": float("nan") if done == 4 else 0.0, "grid": grid}

    small_run(tmp_path, Fit(10), said, evaluate=evaluate, plan={"evaluate_steps": 4})
    found = curves.read(tmp_path)
    assert found["eval_gold"].step.tolist() == [0, 4, 8, 10]
    assert found["eval_bad"].step.tolist() == [0, 8, 10]
    assert said == [f"{tmp_path}: eval_bad is not finite after step 4, and left out"]
    pictures_made = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert pictures_made == [f"grid_{done:08d}.png" for done in (0, 4, 8, 10)]


def test_a_log_may_be_thinned(tmp_path):
    small_run(tmp_path, plan={"log_steps": 5})
    assert curves.read(tmp_path)["loss"].step.tolist() == [5, 10, 12]


def test_a_process_that_does_not_write_runs_along_and_leaves_nothing(tmp_path):
    fit, writer = Fit(), Fit()
    small_run(tmp_path / "none", fit, writes=False)
    small_run(tmp_path / "main", writer)
    assert not (tmp_path / "none").exists()
    assert torch.equal(fit.net.weight, writer.net.weight)


def test_progress_shows_rate_and_time_left_on_demand_only(tmp_path, capsys):
    small_run(tmp_path / "quiet")
    assert capsys.readouterr().err == ""
    small_run(tmp_path / "shown", plan={"progress": True})
    shown = capsys.readouterr().err
    assert "12/12" in shown
    assert "step/s" in shown
