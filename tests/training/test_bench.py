"""What the bench calls needed is what a step does: every forward and backward pass, its batch, and what it is for."""

import contextlib
import subprocess
import sys
from collections import Counter

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from dipp_core.models import miniature
from dipp_core.training import bench
from dipp_core.training.bench import NEEDED, Pass

BATCH = 3
PASSES = sorted({one for needed in NEEDED.values() for one in needed} | {bench.HALF})


@pytest.fixture(scope="module", params=miniature.KINDS)
def roles(request):
    return bench.new_roles(request.param, "tiny")


@contextlib.contextmanager
def watched(roles):
    """All that is asked of networks and optimisers meanwhile, as passes."""
    seen, backward, decoded, networks = [], [], [], roles.networks()
    owners = {id(next(network.parameters())): role for role, network in networks.items()}

    def note(role):
        def after_forward(network, inputs, output):
            x, learns = inputs[0], any(parameter.requires_grad for parameter in network.parameters())
            work = "forward"
            if output.requires_grad:
                work = {(True, False): "parameters", (False, True): "input"}.get((learns, x.requires_grad), "both")
                output.register_hook(lambda gradient: backward.append(role))
            assert len(x) in (BATCH, 2 * BATCH)
            seen.append(Pass(role, work, pair=len(x) == 2 * BATCH))

        return after_forward

    def after_update(optimizer, *_):
        seen.append(Pass(owners[id(optimizer.param_groups[0]["params"][0])], "update"))

    with contextlib.ExitStack() as stack:
        for role, network in networks.items():
            stack.callback(network.register_forward_hook(note(role)).remove)
        decoder = roles.world.vae.decoder
        stack.callback(decoder.register_forward_hook(lambda *_: decoded.append("judge")).remove)
        stack.callback(register_optimizer_step_post_hook(after_update).remove)
        yield seen
    assert Counter(backward) == Counter(one.role for one in seen if one.work not in ("forward", "update"))
    assert decoded == [one.role for one in seen if one.role == "judge"]


@pytest.mark.parametrize("method", NEEDED)
def test_a_step_does_what_it_needs_and_nothing_else(roles, method):
    step = bench.one_step(roles, method, BATCH)
    for _ in range(2):
        with watched(roles) as seen:
            step()
        assert Counter(seen) == Counter(NEEDED[method])


@pytest.mark.parametrize("one", PASSES, ids=str)
def test_a_pass_is_what_its_name_says(roles, one):
    with watched(roles) as seen:
        bench.one_pass(roles, one, BATCH)()
    assert seen == [one]


@pytest.mark.parametrize("method", ["diff_instruct", "dipp"])
def test_no_gradient_flows_through_assistant_or_reference(roles, method):
    """Where the generator is moved; the assistant's own step is the pass that comes before it."""
    with watched(roles) as seen:
        bench.one_step(roles, method, BATCH)()
    moved = seen[seen.index(Pass("ta", "update")) :]
    assert {one.work for one in moved if one.role in ("ta", "ref")} == {"update", "forward"}
    assert Counter(one.role for one in moved) == Counter(gen=2, ta=2, ref=1, judge=method == "dipp")
    assert all(parameter.grad is None for network in roles.networks().values() for parameter in network.parameters())


def test_guidance_is_one_call_of_twice_the_batch(roles):
    for method in ("diff_instruct", "dipp", "sim", "distar_in"):
        assert [one.pair for one in NEEDED[method] if one.role == "ref"] == [True]


def test_neither_steps_nor_passes_move_a_weight(roles):
    """So that all that is timed is timed on the same networks."""
    before = {name: [p.clone() for p in network.parameters()] for name, network in roles.networks().items()}
    found = bench.measure(roles, batch=BATCH, rounds=2)
    kinds = {method: {bench.STEP, *needed} for method, needed in NEEDED.items()}
    kinds["guidance"] = {bench.ONE_CALL, bench.HALF}
    assert {name: [set(turn) for turn in turns] for name, turns in found.items()} == {
        k: [v] * 2 for k, v in kinds.items()
    }
    assert all(value > 0 for turns in found.values() for turn in turns for value in turn.values())
    for name, network in roles.networks().items():
        assert all(torch.equal(a, b) for a, b in zip(before[name], network.parameters(), strict=True))


def test_ratios_are_those_of_a_round_and_their_median():
    one, other = NEEDED["reward_only"][:2]
    steps = [{bench.STEP: a, one: b, other: c} for a, b, c in ((3.3, 1, 2), (30, 10, 10), (12, 6, 6))]
    assert bench.step_over_passes(steps) == pytest.approx(1.1)
    calls = [{bench.ONE_CALL: a, bench.HALF: b} for a, b in ((1, 1), (18, 10), (12, 6))]
    assert bench.one_call_over_two(calls) == pytest.approx(0.9)
    assert bench.milliseconds(steps + calls, one) == 6000


def test_the_bench_sets_the_threads_on_purpose_and_says_so(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(bench.config, "read", lambda: {"threads": 7})
    monkeypatch.setattr(bench.torch, "set_num_threads", asked.append)
    monkeypatch.setattr(bench.torch, "get_num_threads", lambda: asked[-1])
    monkeypatch.setattr(bench, "keep_memory", lambda: None)
    for name, value in {"SIZE": "tiny", "BATCH": 2, "ROUNDS": 1}.items():
        monkeypatch.setattr(bench, name, value)
    bench.main()
    printed = capsys.readouterr().out
    assert printed.startswith("batch 2, 1 rounds, 7 threads of ")
    for name in (*miniature.KINDS, *NEEDED, *map(str, PASSES)):
        assert printed.count(f"\n{name} ") >= len(miniature.KINDS) - (name in miniature.KINDS)


@pytest.mark.skipif(sys.platform != "linux", reason="the C library is another")
def test_memory_that_is_kept_is_not_handed_out_page_by_page_again():
    code = """
import resource, torch
from dipp_core.training import bench
bench.keep_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    parts = [torch.ones(2**20) for _ in range(25)]
    del parts
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults(), faults())
"""
    first, again = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert int(again) < 0.05 * int(first)
