"""The measurements at true size, on tiny descriptions: what is built, what is counted, and what a failure leaves."""

import contextlib
import dataclasses
import json
import re
import sys
import types

import pandas
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from dipp_core.method import staged
from dipp_core.models import folders, miniature
from dipp_core.training import bench, bench_gpu, bench_large, footprint, full_size, full_size_step, preflight
from dipp_core.training.full_size import Case
from dipp_core.worlds import shapes

TINY = {"reward": "tiny_judge:brightness", "switches": {"rank": 4}, "threads": 1}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root, words = tmp_path_factory.mktemp("models"), shapes.vocabulary()
    return {kind: miniature.build(root / kind, kind, words=words, size="tiny") for kind in miniature.KINDS}


@pytest.fixture(autouse=True)
def judge(monkeypatch):
    module = types.ModuleType("tiny_judge")
    module.brightness = lambda images, prompts: images.square().mean((1, 2, 3))
    monkeypatch.setitem(sys.modules, "tiny_judge", module)


@pytest.fixture
def reports(tmp_path, monkeypatch):
    monkeypatch.setenv("DIPP_REPORTS", str(tmp_path / "reports"))
    return tmp_path / "reports"


def case(folder, **changes):
    return Case(**({"reference": str(folder)} | TINY | changes))


# ------------------------------------------------------------------------------------------------------------ building


@pytest.mark.parametrize("kind", miniature.KINDS)
def test_a_world_of_a_description_is_the_one_described(places, kind):
    described = folders.describe(places[kind])
    roles = full_size.new_roles(case(places[kind]))
    for name, network in (("denoiser", roles.world.denoiser.network), ("vae", roles.world.vae)):
        ghost = folders.on_meta(described[name])
        assert {k: v.shape for k, v in network.state_dict().items()} == {
            k: v.shape for k, v in ghost.state_dict().items()
        }
        assert not any(parameter.requires_grad for parameter in network.parameters())
    cond = roles.prompts.rows(torch.tensor([0, -1]))
    assert roles.world.denoiser(torch.randn(2, *roles.world.z_shape), torch.full((2,), 0.5), cond).isfinite().all()
    assert ("mask" in cond) == (kind == "dit")
    assert footprint.count(roles.gen.network) == footprint.count(roles.ta) > 0


def test_a_switch_changes_what_is_built(places):
    roles = full_size.new_roles(case(places["unet"], switches={"roles": "full", "tiny_vae": True, "dtype": "bfloat16"}))
    assert type(roles.world.vae).__name__ == "AutoencoderTiny"
    assert {p.dtype for p in roles.world.denoiser.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in roles.gen.parameters()} == {torch.float32}
    assert footprint.count(roles.gen.network) == footprint.count(roles.world.denoiser)


def test_the_plans_are_of_public_models_with_known_switches():
    for one in (*bench_large.PLAN.values(), *bench_gpu.new_plan().values()):
        assert one.reference in folders.PUBLIC
        assert isinstance(one.turned, preflight.Switches)
    for profile in bench_gpu.PROFILES:
        turned = [preflight.switched(profile, change) for change in bench_gpu.turns(profile).values()]
        base = preflight.PROFILES[profile]
        names = [f.name for f in dataclasses.fields(base)]
        assert all(sum(getattr(one, name) != getattr(base, name) for name in names) == 1 for one in turned)


# ----------------------------------------------------------------------------------------------------------- measuring


@pytest.mark.parametrize("method", ["dipp", "distar_in"])
@pytest.mark.parametrize("kind", miniature.KINDS)
def test_a_step_reaches_every_tensor_that_learns(places, kind, method):
    found = full_size_step.measure(case(places[kind], method=method))
    layers = 2 * len(full_size.new_roles(case(places[kind])).gen.network.by_path)
    all_of_them = {"tensors": layers, "finite": layers, "not_zero": layers}
    assert found["gradients"] == {"gen": all_of_them, "ta": all_of_them}
    assert found["seconds"] > 0
    assert found["memory"]["peak"] > 0.1


def test_tensors_without_a_finite_gradient_are_counted_out():
    one, seen = [torch.nn.Parameter(torch.ones(2)) for _ in range(4)], {}
    optimizer = torch.optim.SGD(one, lr=0.0)
    full_size_step.look_at_gradients("gen", optimizer, seen)
    one[0].grad, one[1].grad, one[2].grad = torch.ones(2), torch.zeros(2), torch.tensor([1.0, torch.nan])
    optimizer.step()
    assert seen == {"gen": {"tensors": 4, "finite": 2, "not_zero": 2}}


@pytest.mark.parametrize("method", ["dipp", "distar_in"])
def test_jointly_or_in_stages_the_gradient_is_the_same(places, method, monkeypatch):
    def gradient(joint):
        one, grads = case(places["unet"], method=method), {}
        roles = full_size.new_roles(one)
        step = full_size_step.new_step(one, roles, {})
        names = {id(p): name for name, p in roles.gen.named_parameters()}

        def keep(optimizer, *_):
            for group in optimizer.param_groups:
                grads.update({names[id(p)]: p.grad.clone() for p in group["params"] if id(p) in names})

        with contextlib.ExitStack() as stack:
            stack.callback(register_optimizer_step_pre_hook(keep).remove)
            with monkeypatch.context() as patch:
                if joint:
                    patch.setattr(full_size_step.algorithm, "staged_backward", full_size_step.joint_backward)
                step()
        return torch.cat([grads[name].flatten() for name in sorted(grads)])

    apart, together = gradient(False), gradient(True)
    assert apart.norm() > 0
    assert (apart - together).norm() <= 1e-4 * apart.norm()


def test_jointly_all_graphs_are_alive_at_once_and_in_stages_one():
    """Two terms that keep 4 MiB each; what is counted are the bytes on the way."""
    terms = {name: staged.Term(lambda x: (x.expand(1, 2**20).exp() * 2).exp().sum(-1)) for name in "ab"}

    def most(backward):
        x0 = torch.zeros(1, 1, requires_grad=True)
        with footprint.LiveBytes() as live:
            backward(x0 * 1, terms, torch.autograd.backward)
        return live.most

    assert most(full_size_step.joint_backward) > 1.3 * most(staged.staged_backward)


def test_the_peak_is_that_of_the_process():
    before = full_size_step.peak("cpu")["peak"]
    large = torch.ones(int((before + 0.2) * 2**28))  # at least 0.2 GiB more than ever before
    assert 0.1 < full_size_step.peak("cpu")["peak"] - before < before + 0.3
    assert len(large)


def test_the_estimate_beside_a_measurement_is_the_preflight_without_what_is_gone_by_then(places):
    one = case(places["unet"], reward="image_reward", switches={})
    parts = preflight.estimate(preflight.Task(reference=one.reference, prompts=2), one.turned, "CPU")
    text = sum(part.memory for part in parts if part.before)
    assert text > 0
    assert full_size.estimate(one) == pytest.approx((sum(part.memory for part in parts) - text) / 2**30)


# ---------------------------------------------------------------------------------------------------------- publishing


def measured(**changes):
    seen = {name: {"tensors": 8, "finite": 8, "not_zero": 8} for name in ("gen", "ta")}
    found = {"seconds": 2.0, "cpu_seconds": 3.0, "threads": 1, "batch": 1, "memory": {"peak": 9.0}, "gradients": seen}
    return found | changes


def test_a_process_of_its_own_measures(places):
    found = bench_large.alone(case(places["dit"], reward=""), least_free=0)
    assert found["gradients"]["gen"]["finite"] == found["gradients"]["gen"]["tensors"] > 0


@pytest.mark.parametrize(
    ("code", "limits", "said"),
    [
        ("print('{}'); raise SystemExit('no room')", {}, "no room"),
        ("import os; os.kill(os.getpid(), 9)", {}, "its process was killed by signal 9"),
        ("import time; time.sleep(60)", {"least_free": 2**60}, r"stopped: \d+\.\d GiB of memory were left, less than "),
        ("import time; time.sleep(60)", {"longest": 0}, "stopped: it took too long"),
    ],
)
def test_a_measurement_that_comes_to_nothing_is_one_line(code, limits, said, monkeypatch, tmp_path):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{code}"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    found = bench_large.alone(case("nowhere"), **({"least_free": 0} | limits))
    assert list(found) == ["failed"]
    assert re.fullmatch(said + r"\d*", found["failed"])


def test_what_was_measured_stays_when_the_next_one_fails(places, reports, monkeypatch):
    plan = {
        "sd15.dipp": case(places["unet"]),
        "sd15.dipp_joint": case(places["unet"], joint=True),
        "pixart.dipp": case(places["dit"]),
    }
    found = iter([measured(), measured(memory={"peak": 12.0}), {"failed": "killed"}])
    monkeypatch.setattr(bench_large, "alone", lambda case: next(found))
    said = []
    whole = bench_large.measure_all(plan, list(plan)[:2], said.append)
    assert whole["cpu"]["sd15"]["staged_over_joint"] == {"dipp": 0.75}
    assert whole["cpu"]["sd15"]["dipp"]["gradients_finite"] is True
    table = pandas.read_csv(reports / "tables/30_full_scale/cpu.csv")
    assert list(table["peak, GiB"]) == ["9.0", "12.0", "not run here"]
    bench_large.measure_all(plan, ["pixart.dipp"], said.append)
    table = pandas.read_csv(reports / "tables/30_full_scale/cpu.csv")
    assert list(table["note"].fillna("")) == ["", "", "killed"]
    assert json.loads((reports / "metrics/30_full_scale.json").read_text())["cpu"]["sd15"] == whole["cpu"]["sd15"]
    assert said[-1] == "pixart.dipp: killed"
    assert (reports / "manifests/bench/30_full_scale_cpu.json").exists()


def test_an_unknown_measurement_is_one_line():
    with pytest.raises(SystemExit, match=r"no measurement 'sd15.dip': sd15.dipp, "):
        bench_large.main(["sd15.dip"])


def test_without_a_gpu_the_table_says_so_and_a_measured_one_stays(reports, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    bench_gpu.main()
    assert len(capsys.readouterr().out.splitlines()) == 1
    table = pandas.read_csv(reports / "tables/30_full_scale/gpu.csv")
    assert len(table) == len(bench_gpu.new_plan())
    assert (table[list(bench_gpu.MEASURED)] == "not run here").all(axis=None)
    key = next(iter(bench_gpu.new_plan()))
    bench_gpu.publish(
        bench_large.published(),
        bench_gpu.new_plan(),
        {"run": True, "device": "a card", "measured": {bench_gpu.name_of(key): {"samples_per_second": 0.5}}},
    )
    bench_gpu.main()
    assert "a card" in capsys.readouterr().out
    table = pandas.read_csv(reports / "tables/30_full_scale/gpu.csv")
    assert table["samples a second"][0] == "0.5"


def test_on_a_gpu_every_line_is_measured_or_says_why(places, reports, monkeypatch):
    """On a CPU here: all but the calls to CUDA is the same."""
    plan = {
        ("sd15", "gpu24", "dipp", "nothing"): case(places["unet"], profile="gpu24", passes=True),
        ("sd15", "gpu24", "dipp", "eight_bit_adam = true"): case(places["unet"], switches={"eight_bit_adam": True}),
        ("sd15", "gpu24", "dipp", "dtype = float32"): case(places["unet"], switches={"dtype": "float32"}),
    }
    results = iter(
        [full_size_step.measured_or_why(one) for one in list(plan.values())[:2]] + [{"failed": "out of memory"}]
    )
    monkeypatch.setattr(bench_gpu, "alone", lambda case: next(results))
    bench_gpu.measure_all(plan, "a card", lambda line: None)
    table = pandas.read_csv(reports / "tables/30_full_scale/gpu.csv")
    assert float(table["step over raw passes"][0]) > 0
    assert table["seconds a step"][1] == "eight_bit_adam needs a GPU: set eight_bit_adam = false"
    assert set(table.loc[2, list(bench_gpu.MEASURED)].drop("estimate, GiB")) == {"out of memory"}
    assert float(table["estimate, GiB"][2]) > 0


def test_out_of_memory_is_a_result(places, monkeypatch):
    def full(*_):
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(full_size_step, "new_roles", full)
    assert full_size_step.measured_or_why(case(places["unet"])) == {"failed": "out of memory"}
    monkeypatch.setattr(bench, "one_pass", full)
    one = case(places["unet"])
    assert full_size_step.over_passes(one, full_size.new_roles(one), lambda: None)["passes_failed"]
