"""Long runs: killed at any moment they continue exactly; whatever else stops them is one line and loses nothing.

By hand, with as many kills as wanted:  DIPP_KILLS=20 pytest tests/training/test_run.py -k random
"""

import importlib
import multiprocessing
import os
import pathlib
import random
import resource
import signal
import threading
import time

import pytest
import torch
from torch import nn

from dipp_core.files import InputError
from dipp_core.method.algorithm import StepRecord
from dipp_core.method.staged import NonFiniteError
from dipp_core.training import run as module
from dipp_core.training import watch
from dipp_core.training.run import EMA, Stopped, each, latest, run, save

KILLS = int(os.environ.get("DIPP_KILLS", 2))
STEPS = 40


# ----------------------------------------------------------------------------------------------------- kill and resume


@pytest.fixture(scope="module")
def start(checkout):
    """start(folder, ..) begins a `long_run` in a process that can be killed, forked from one that has imported all."""
    here = pathlib.Path(__file__).parent
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(here)
        patch.setenv("PYTHONPATH", f"{checkout}{os.pathsep}{here}")
        patch.setenv("OMP_NUM_THREADS", "1")
        target = importlib.import_module("long_run").long_run
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["long_run"])

        def begin(folder, steps=STEPS, die_at=None):
            process = context.Process(target=target, args=(folder, steps, die_at))
            process.start()
            return process

        yield begin


def ended(process):
    """The exit status of a process."""
    process.join()
    return process.exitcode


@pytest.fixture(scope="module")
def unkilled(start, tmp_path_factory):
    """What a run leaves that nothing disturbed."""
    folder = tmp_path_factory.mktemp("runs") / "unkilled"
    assert ended(start(folder)) == 0
    return result(folder)


def bits(state):
    """A state in which tensors are bytes, to be compared."""
    if isinstance(state, torch.Tensor):
        return (str(state.dtype), tuple(state.shape), state.contiguous().numpy().tobytes())
    if isinstance(state, dict):
        return {key: bits(value) for key, value in state.items()}
    return type(state)(map(bits, state)) if isinstance(state, (list, tuple)) else state


def result(folder):
    """All bits that must not depend on kills: the state of all parts, random states, curves."""
    content = latest(folder)
    assert content["step"] == STEPS
    curves = {name: (folder / name).read_bytes() for name in ("curves.jsonl", "curves.csv")}
    return curves | {name: bits(content[name]) for name in ("parts", "random", "identity")}


@pytest.mark.parametrize("number", range(KILLS))
def test_killed_at_a_random_moment_and_resumed_it_is_as_if_never_killed(start, unkilled, tmp_path, number):
    moment, log = random.Random(number), tmp_path / "curves.jsonl"
    process, size = start(tmp_path), moment.uniform(0.0, 0.95) * len(unkilled["curves.jsonl"])
    while not log.exists() or log.stat().st_size < size:
        time.sleep(0.001)
    time.sleep(moment.uniform(0.0, 0.02))  # a step takes about 0.01 seconds, a save as long again
    process.kill()
    assert ended(process) == -signal.SIGKILL
    assert ended(start(tmp_path)) == 0
    assert result(tmp_path) == unkilled


def test_killed_at_every_point_of_a_save_it_is_as_if_never_killed(start, unkilled, tmp_path):
    """Before the log and the checkpoint are flushed, before it is renamed, before an old one is removed."""
    for number in (1, 2, 3, 4, 13):
        assert ended(start(tmp_path, die_at=number)) == -signal.SIGKILL
        assert (tmp_path / "partial.pt").exists() == (number in (2, 3))
        said = []
        latest(tmp_path, said.append)
        assert said == []
    assert ended(start(tmp_path)) == 0
    assert result(tmp_path) == unkilled


def test_a_second_run_in_the_folder_is_refused_while_the_first_lives(start, tmp_path):
    process = start(tmp_path, steps=100_000)
    while not list(tmp_path.glob("step_*")):
        time.sleep(0.01)
    with pytest.raises(InputError, match=rf"is already running \(process {process.pid}\)"):
        small_run(tmp_path)
    process.kill()
    process.join()


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
    fit, said = fit or Fit(), [] if said is None else said
    options = {"parts": fit.parts, "settings": {"lr": 0.1}, "steps": fit.steps, "save_steps": 5, "say": said.append}
    run(folder, fit.records, after_step=[fit.ema.update], **options | more)


def steps_kept(folder):
    return [int(path.stem[5:]) for path in sorted(folder.glob("step_*"))]


def one_line(folder, fit=None, kind=InputError, **more):
    with pytest.raises(kind) as caught:
        small_run(folder, fit, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_run_leaves_its_last_checkpoints_curves_and_a_picture(tmp_path):
    fit, again, said = Fit(), Fit(), []
    small_run(tmp_path, fit)
    assert steps_kept(tmp_path) == [10, 12]
    found = watch.read_curves(tmp_path)
    assert found["loss"].step.tolist() == list(range(1, 13))
    assert found["runs"].values.shape == (12, 2)
    assert (tmp_path / "curves.png").is_file()
    assert (tmp_path / "curves.csv").is_file()
    small_run(tmp_path, again, said)  # a complete run gives its result at once
    assert again.seen == []
    assert torch.equal(fit.net.weight, again.net.weight)
    assert said == [f"{tmp_path}: complete at step 12 of 12"]


@pytest.mark.parametrize(("minutes", "kept"), [(0.0, [11, 12]), (10.0, [12])])
def test_checkpoints_come_by_time_and_at_the_end(tmp_path, monkeypatch, minutes, kept):
    monkeypatch.setattr(module, "SAVE_MINUTES", minutes)
    small_run(tmp_path, save_steps=0)
    assert steps_kept(tmp_path) == kept


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_it_finishes_the_step_saves_and_says_how_to_go_on(tmp_path, number):
    before = signal.getsignal(signal.SIGINT)
    whole, fit, said = Fit(), Fit(spoil=lambda step: step == 6 and os.kill(os.getpid(), number)), []
    small_run(tmp_path / "whole", whole)
    line = one_line(tmp_path / "run", fit, Stopped)
    assert line == f"{tmp_path}/run: stopped after step 7 of 12 and saved; run the same to continue"
    assert steps_kept(tmp_path / "run") == [5, 7]
    assert signal.getsignal(signal.SIGINT) is before
    again = Fit()
    small_run(tmp_path / "run", again, said)
    assert said == [f"{tmp_path}/run: continued at step 7 of 12"]
    assert again.seen == list(range(7, 12))
    assert torch.equal(again.ema.average["weight"], whole.ema.average["weight"])
    assert (tmp_path / "run/curves.jsonl").read_bytes() == (tmp_path / "whole/curves.jsonl").read_bytes()


def test_asked_twice_it_stops_at_once(tmp_path):
    def twice(step):
        for _ in range(2 * (step == 6)):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        small_run(tmp_path, Fit(spoil=twice))
    assert steps_kept(tmp_path) == [5]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (NonFiniteError("the term 'reward'", 7), "step 7: the term 'reward' is not finite"),
        (OSError(28, "No space left on device"), "No space left on device"),
    ],
)
@pytest.mark.parametrize(("at", "kept"), [(0, "there is no checkpoint yet"), (7, "step_00000005.pt is kept")])
def test_what_goes_wrong_is_one_line_and_the_good_checkpoint_stays(tmp_path, error, says, at, kept):
    def spoil(step):
        if step == at:
            raise error

    line = one_line(tmp_path, Fit(spoil=spoil))
    assert says in line
    assert kept in line
    assert steps_kept(tmp_path) == [5] * (at > 5)


def test_a_loss_that_is_not_finite_stops_the_run_before_the_average_moves(tmp_path):
    fit = Fit()
    fit.spoil = lambda step: step == 7 and nn.init.constant_(fit.net.bias, float("nan"))
    line = one_line(tmp_path, fit)
    assert line.startswith(f"{tmp_path}: step 7: loss not finite; step_00000005.pt is kept; the same settings lead")
    assert watch.read_curves(tmp_path)["loss"].step[-1] == 7
    assert torch.isfinite(fit.ema.average["weight"]).all()


def test_records_that_do_not_fit_are_refused(tmp_path):
    assert "the records ended before step 12" in one_line(tmp_path, Fit(8), steps=12)
    with pytest.raises(InputError, match="at step 0, not 5: pass start_step"):
        run(tmp_path, lambda start: [StepRecord(0, {}, {}, torch.ones(()), None)], Fit().parts, {"lr": 0.1}, steps=12)
    small_run(tmp_path / "more", longer := Fit(20), steps=12)
    assert longer.seen == list(range(12))
    assert "12 steps are done, not 9" in one_line(tmp_path / "more", steps=9)


def test_evaluations_become_curves_and_pictures(tmp_path):
    said = []

    def evaluate(done):
        grid = watch.picture_grid(torch.rand(2, 3, 4, 4), 2)
        return {"gold": done / 10, "bad": float("nan") if done == 4 else 0.0, "grid": grid}

    small_run(tmp_path, Fit(10), said, evaluate=evaluate, evaluate_steps=4)
    found = watch.read_curves(tmp_path)
    assert found["eval_gold"].step.tolist() == [0, 4, 8, 10]
    assert found["eval_bad"].step.tolist() == [0, 8, 10]
    assert said == [f"{tmp_path}: eval_bad is not finite after step 4, and left out"]
    made = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert made == [f"grid_{done:08d}.png" for done in (0, 4, 8, 10)]


def test_a_process_that_does_not_write_runs_along_and_leaves_nothing(tmp_path):
    fit, writer = Fit(), Fit()
    small_run(tmp_path / "none", fit, writes=False)
    small_run(tmp_path / "main", writer)
    assert not (tmp_path / "none").exists()
    assert torch.equal(fit.net.weight, writer.net.weight)


def test_progress_shows_rate_and_time_left_on_demand_only(tmp_path, capsys):
    small_run(tmp_path / "quiet")
    assert capsys.readouterr().err == ""
    small_run(tmp_path / "shown", progress=True)
    shown = capsys.readouterr().err
    assert "12/12" in shown
    assert "step/s" in shown


# --------------------------------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("kept", [0, -1, None])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(tmp_path, kept):
    """Empty, cut short, or with one bit that flipped."""
    whole, again, said = Fit(), Fit(), []
    small_run(tmp_path, whole)
    newest = tmp_path / "step_00000012.pt"
    content = newest.read_bytes()
    place = content.index(whole.net.weight.detach().numpy().tobytes())
    flipped = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
    newest.write_bytes(flipped if kept is None else content[:kept])
    small_run(tmp_path, again, said)
    assert said[0] == f"{newest} is damaged; using step_00000010.pt instead"
    assert again.seen == [10, 11]
    assert torch.equal(again.net.weight, whole.net.weight)
    assert steps_kept(tmp_path) == [10, 12]
    for path in tmp_path.glob("step_*"):
        path.write_bytes(b"")
    assert "none before it is intact" in one_line(tmp_path)


class Evil:
    """What would run code when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("evil",)


def test_no_code_in_a_checkpoint_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"step": 1, "identity": Evil()}, tmp_path / "step_00000001.pt")
    assert "step_00000001.pt is no checkpoint" in one_line(tmp_path)
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    ("parts", "settings", "what"),
    [
        ({}, {"lr": 0.2}, "lr = 0.1 there, 0.2 here"),
        ({"net": nn.Linear(3, 1)}, {}, "net.weight = float32 (1, 2) there, float32 (1, 3) here"),
        ({"net": nn.Conv2d(2, 1, 1)}, {}, "net.kind = Linear there, Conv2d here"),
        ({"more": nn.Linear(1, 1)}, {}, "more.kind = None there, Linear here"),
        ({"optimizer": torch.optim.SGD(nn.Linear(2, 1).parameters())}, {}, "optimizer.kind = Adam there, SGD here"),
    ],
)
def test_a_folder_of_another_run_is_refused_before_anything_changes(tmp_path, parts, settings, what):
    small_run(tmp_path)
    before, fit = (tmp_path / "curves.jsonl").read_bytes(), Fit()
    own = fit.net.weight.detach().clone()
    line = one_line(tmp_path, fit, parts=fit.parts | parts, settings={"lr": 0.1} | settings)
    assert what in line
    assert "restore the settings or use another folder" in line
    assert (tmp_path / "curves.jsonl").read_bytes() == before
    assert torch.equal(fit.net.weight, own)


def test_a_state_that_cannot_be_kept_is_refused(tmp_path):
    class Strange:
        def state_dict(self):
            return {"what": Fit()}

    assert "step_00000005.pt was not written (" in one_line(tmp_path, parts={"strange": Strange()})
    assert not list(tmp_path.glob("*.pt"))


def test_where_the_system_takes_no_more_the_one_before_it_stays(tmp_path):
    """A limit on the size of a file stands for a full disk: the system refuses in the middle of a file."""
    parts, limits = {"large": nn.Linear(300, 300)}, resource.getrlimit(resource.RLIMIT_FSIZE)
    save(tmp_path, 1, parts, {})
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(InputError) as caught:
            save(tmp_path, 2, parts, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(caught.value).startswith(f"{tmp_path}/step_00000002.pt was not written (")
    assert "; step_00000001.pt is kept; cure that" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001.pt"]


# ------------------------------------------------------------------------------------------------- average and threads


def test_the_average_is_that_of_its_definition_and_warm_up_forgets_the_start():
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, 1.0)
    ema, exact = EMA(net, 0.25), 1.0
    for decay, value in ((2 / 11, 2.0), (3 / 12, 3.0), (0.25, 4.0)):
        nn.init.constant_(net.weight, value)
        ema.update()
        exact = decay * exact + (1 - decay) * value
        assert float(ema.average["weight"]) == pytest.approx(exact)
    with pytest.raises(InputError, match="decay"):
        EMA(net, 1.0)


def test_frozen_parameters_are_left_out_and_half_precision_is_averaged_in_float32():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).to(torch.bfloat16)
    net[0].requires_grad_(False)
    ema = EMA(net, 0.5)
    ema.update()
    assert set(ema.average) == {"1.weight", "1.bias"}
    assert {value.dtype for value in ema.average.values()} == {torch.float32}


def test_within_averaged_the_module_is_the_average_and_afterwards_itself():
    net = nn.Linear(3, 2)
    ema, own = EMA(net, 0.5), net.weight.detach().clone()
    ema.average["weight"].zero_()
    with pytest.raises(ZeroDivisionError), ema.averaged():  # even a failure gives the own parameters back
        1 / int(net.weight.any())
    assert torch.equal(net.weight, own)
    assert net.weight.requires_grad


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def train(seed):
    """A small regression, to the bit."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.zeros(40, 40, requires_grad=True)
    adam = torch.optim.Adam([weight])
    for _ in range(20):
        x = torch.randn(64, 40, generator=generator)
        adam.zero_grad()
        (x @ weight - x.flip(-1)).square().mean().backward()
        adam.step()
    return weight.detach()


def test_each_gives_results_in_order_which_do_not_depend_on_how_many_run_beside(threads):
    alone, beside = [each(train, [seed])[0] for seed in range(3)], each(train, range(3))
    assert all(torch.equal(a, b) for a, b in zip(alone, beside, strict=True))
    assert not torch.equal(alone[0], alone[1])
    meeting = threading.Barrier(threads, timeout=20)  # breaks unless all are there
    assert sorted(each(lambda _: meeting.wait(), range(threads))) == list(range(threads))
    assert each(lambda _: torch.get_num_threads(), range(2)) == [1] * 2
    assert torch.get_num_threads() == threads


def test_an_error_ends_what_has_not_begun_and_is_raised():
    begun = []

    def work(job):
        begun.append(job)
        if job:
            time.sleep(0.05)  # the others are still waiting when the first has failed
        raise ValueError(f"job {job}")

    with pytest.raises(ValueError, match="job 0"):
        each(work, range(100))
    assert len(begun) < 100
