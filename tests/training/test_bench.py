"""What the bench calls needed is what a step does: every forward and backward pass, its batch, and what it is for."""

import contextlib
from collections import Counter

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from dipp_core.models import folders, miniature
from dipp_core.training import bench, memory
from dipp_core.training.bench import NEEDED, Case, Pass
from dipp_core.worlds import shapes

BATCH = 3
PASSES = sorted({one for needed in NEEDED.values() for one in needed})


@pytest.fixture(scope="module", params=miniature.KINDS)
def roles(request):
    return bench.small_roles(request.param, "tiny")


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


@pytest.mark.parametrize("one", PASSES, ids=lambda one: "-".join(map(str, one)))
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
    rows = bench.measure_small(roles, batch=BATCH, rounds=1)
    assert [row["method"] for row in rows] == list(NEEDED)
    assert all(row["ms"] > 0 and row["over"] > 0 for row in rows)
    for name, network in roles.networks().items():
        assert all(torch.equal(a, b) for a, b in zip(before[name], network.parameters(), strict=True))


# ------------------------------------------------------------------------------------------------------------ true size


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root, words = tmp_path_factory.mktemp("models"), shapes.vocabulary()
    return {kind: miniature.build(root / kind, kind, words=words, size="tiny") for kind in miniature.KINDS}


@pytest.fixture
def judge(monkeypatch):
    monkeypatch.setattr("builtins.brightness", lambda images, texts: images.square().mean((1, 2, 3)), raising=False)


def case(folder, **changes):
    return Case(**({"reference": str(folder), "reward": "builtins:brightness", "switches": {"rank": 4}} | changes))


def test_a_switch_changes_what_is_built(places, judge):
    switches = {"roles": "full", "tiny_vae": True, "dtype": "bfloat16"}
    roles = bench.large_roles(case(places["unet"], switches=switches))
    assert type(roles.world.vae).__name__ == "AutoencoderTiny"
    assert {p.dtype for p in roles.world.denoiser.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in roles.gen.parameters()} == {torch.float32}


def test_the_cases_are_of_public_models_with_known_switches():
    for device in ("cpu", "cuda"):
        for one in bench.cases(device).values():
            assert one.reference in folders.PUBLIC
            assert isinstance(one.turned, memory.Switches)


@pytest.mark.parametrize("method", ["dipp", "distar_in"])
@pytest.mark.parametrize("kind", miniature.KINDS)
def test_a_step_reaches_every_tensor_that_learns(places, judge, kind, method):
    found = bench.measure_large(case(places[kind], method=method, rounds=2))
    assert found["tensors"] == found["finite"] == found["not_zero"] > 0
    assert all(found[name] > 0 for name in ("seconds", "estimate_gib", "step_over_passes"))
    assert found["peak_gib"] > 0.1


def test_tensors_without_a_finite_gradient_are_counted_out():
    one, seen = [torch.nn.Parameter(torch.ones(2)) for _ in range(4)], {}
    optimizer = torch.optim.SGD(one, lr=0.0)
    bench.look_at_gradients(optimizer, seen)
    one[0].grad, one[1].grad, one[2].grad = torch.ones(2), torch.zeros(2), torch.tensor([1.0, torch.nan])
    optimizer.step()
    assert seen == {"tensors": 4, "finite": 2, "not_zero": 2}


def test_a_process_of_its_own_measures_or_says_in_a_line_why_not(places, monkeypatch):
    reward = "torch:mean"  # fails: it takes other arguments
    assert "\n" not in bench.alone(case(places["unet"], reward=reward))["failed"]
    monkeypatch.setattr(memory, "here", lambda folder, device: memory.Machine("CPU", 1000.0, 1e12))
    assert "GiB are free" in bench.alone(case(places["unet"]))["failed"]


def test_the_command_prints_a_table_and_keeps_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench, "BATCH", 2)
    assert bench.main(["--size", "tiny", "--rounds", "1", "--out", str(tmp_path / "table.csv")]) == 0
    printed = capsys.readouterr().out
    assert all(printed.count(f"\n{method} ") == 2 for method in NEEDED)
    assert len((tmp_path / "table.csv").read_text().splitlines()) == 1 + 2 * len(NEEDED)
    monkeypatch.setattr(bench, "alone", lambda case: {"seconds": 2.0})
    assert bench.main(["--size", "full", "--only", "sd15.dipp"]) == 0
    assert capsys.readouterr().out == "sd15.dipp: seconds 2\n"
    assert bench.main(["--size", "full", "--only", "sd15.dip"]) == 2
    assert "no case 'sd15.dip': sd15.dipp, " in capsys.readouterr().err
