"""The method in one file: its steps are those of `method`, and it runs to its picture without the package."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dipp_core import one_file
from dipp_core.method.algorithm import ALGORITHM_1, Settings, align, preset
from dipp_core.method.schedule import NoiseSchedule, TimeSampler

SCRIPT = Path(one_file.__file__)
NAMES = [pytest.param(False, id="DI++"), pytest.param(True, id="DI*")]
SCHEDULE = NoiseSchedule(
    "trigonometric", lambda t: (t * torch.pi / 2).cos().log(), lambda t: (t * torch.pi / 2).sin().log()
)
PI = TimeSampler("uniform", lambda u: one_file.T_MIN + (one_file.T_MAX - one_file.T_MIN) * u)


@pytest.fixture(autouse=True)
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def nets():
    """Three networks that have nothing to do with each other."""
    torch.manual_seed(3)
    gen, ta, ref = (one_file.Diffusion(hidden=16) for _ in range(3))
    return gen, ta, ref.requires_grad_(False)


@pytest.fixture(params=["as it is", "sigma squared"])
def weight(request, monkeypatch):
    """The weight of the divergence, and a weight that depends on the time."""
    if request.param == "sigma squared":
        monkeypatch.setattr(one_file, "weight", lambda t: 2 * one_file.sigma(t)[:, 0] ** 2)
    return one_file.weight


def settings_for(distar, weight, *, alpha_rew=1.5, alpha_cfg=0.7, batch=32, ta_steps=1) -> Settings:
    return preset(
        "distar_in" if distar else "dipp",
        alpha_rew=alpha_rew,
        alpha_cfg=alpha_cfg,
        batch_shape=(batch,),
        z_shape=(2,),
        time_sampler=PI,
        weight=weight,
        ta_weight=one_file.ta_weight,
        ta_steps=ta_steps,
    )


def run_method(gen, ta, ref, settings, gen_optimizer, ta_optimizer, *, seed, steps):
    """The same through `method.algorithm.align`."""
    return align(
        gen=gen.generate,
        ta=ta,
        ref=ref,
        reward=one_file.reward,
        schedule=SCHEDULE,
        settings=settings,
        gen_optimizer=gen_optimizer,
        ta_optimizer=ta_optimizer,
        draw_cond=lambda shape, generator: one_file.draw_cond(shape[0], generator),
        null_cond=torch.tensor(one_file.NULL),
        generator=torch.Generator().manual_seed(seed),
        steps=steps,
    )


def flat(tensors):
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


@pytest.mark.parametrize("alpha_cfg", [0.0, 0.7])
@pytest.mark.parametrize("distar", NAMES)
def test_the_generators_gradient_is_that_of_align(nets, weight, distar, alpha_cfg):
    gen, ta, ref = nets
    cond, z, t, eps = one_file.draw(32, torch.Generator().manual_seed(5))
    loss = one_file.generator_loss(
        gen, ta, ref, z=z, cond=cond, t=t, eps=eps, alpha_rew=1.5, alpha_cfg=alpha_cfg, distar=distar
    )
    mine = flat(torch.autograd.grad(loss, list(gen.parameters()), materialize_grads=True))
    before = flat(gen.parameters())
    settings = settings_for(distar, weight, alpha_cfg=alpha_cfg, ta_steps=0)
    next(run_method(gen, ta, ref, settings, torch.optim.SGD(gen.parameters(), lr=1.0), None, seed=5, steps=1))
    theirs = before - flat(gen.parameters())
    assert theirs.norm() > 1e-3
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def test_the_assistants_gradient_is_that_of_align(nets, weight):
    gen, ta, ref = nets
    cond, z, t, eps = one_file.draw(32, torch.Generator().manual_seed(5))
    loss = one_file.assistant_loss(ta, x0=gen.generate(z, cond).detach(), cond=cond, t=t, eps=eps)
    mine = flat(torch.autograd.grad(loss, list(ta.parameters())))
    before = flat(ta.parameters())
    optimizers = torch.optim.SGD(gen.parameters(), lr=0.0), torch.optim.SGD(ta.parameters(), lr=1.0)
    next(run_method(gen, ta, ref, settings_for(False, weight), *optimizers, seed=5, steps=1))
    torch.testing.assert_close(mine, before - flat(ta.parameters()), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("distar", NAMES)
def test_the_whole_loop_is_align(nets, weight, distar):
    """Three steps with two assistant steps each, from the same seed: draws, order and optimisers are the same."""
    gen, ta, ref = nets
    start = {name: value.clone() for name, value in gen.state_dict().items()}
    start_ta = {name: value.clone() for name, value in ta.state_dict().items()}
    one_file.align(
        gen, ta, ref, name="here", steps=3, lr=1e-3, ta_steps=2, batch=32, alpha_rew=1.5, alpha_cfg=0.7,
        distar=distar, rng=torch.Generator().manual_seed(7),
    )  # fmt: skip
    mine = flat([*gen.parameters(), *ta.parameters()])
    gen.load_state_dict(start)
    ta.load_state_dict(start_ta)
    optimizers = [torch.optim.Adam(net.parameters(), lr=lr, betas=(0.0, 0.99)) for net, lr in ((gen, 1e-3), (ta, 2e-3))]
    decay = [torch.optim.lr_scheduler.LambdaLR(o, lambda step: min(1.0, 2 * (1 - step / 3))) for o in optimizers]
    for _ in run_method(gen, ta, ref, settings_for(distar, weight, ta_steps=2), *optimizers, seed=7, steps=3):
        for scheduler in decay:
            scheduler.step()
    torch.testing.assert_close(mine, flat([*gen.parameters(), *ta.parameters()]), rtol=1e-8, atol=1e-11)


def test_the_kl_that_is_printed_is_the_kl():
    """Two normal distributions whose scores are known: N(m, I) against N(0, I), where KL = |m|^2 / 2."""
    mean = torch.tensor([0.6, -0.8])

    class Shifted(one_file.Diffusion):
        def forward(self, xt, t, cond):
            return one_file.alpha(t) * mean - xt

        def generate(self, z, cond):
            return mean + z

    class Standard(one_file.Diffusion):
        def forward(self, xt, t, cond):
            return -xt

    printed = one_file.report(Shifted(), Shifted(), Standard(), n=100_000)
    assert float(printed.split()[-2]) == pytest.approx(0.5, rel=0.01)


def run_script(*flags, cwd):
    """The script far from the package, which cannot be imported: -I leaves PYTHONPATH and the script's folder out."""
    code = f"import sys, runpy; sys.modules['dipp_core'] = None; sys.argv[0] = 'one_file.py'; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"  # noqa: E501
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-I", "-c", code, *flags]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


SHORT = ["--steps", "4", "--batch", "16", "--ta-steps", "2", "--seed", "3"]


def test_it_runs_to_its_picture_without_the_package(tmp_path):
    done = run_script(*SHORT, "--distar", "--alpha-cfg", "0.5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "one_file.png").stat().st_size > 10_000
    assert "DI*" in done.stdout
    assert "KL to the reference" in done.stdout


def test_a_seed_says_the_same_twice(capsys, monkeypatch):
    monkeypatch.setattr(one_file, "picture", lambda *_: None)

    def printed(*flags):
        monkeypatch.setattr(sys, "argv", ["one_file.py", *SHORT, *flags])
        one_file.main()
        return capsys.readouterr().out

    first = printed()
    assert "DI++" in first
    assert first == printed()
    assert first != printed("--seed", "4")


def test_help(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["one_file.py", "--help"])
    with pytest.raises(SystemExit) as stopped:
        one_file.main()
    assert stopped.value.code == 0
    flags = {"--distar", "--alpha-rew", "--alpha-cfg", "--ta-steps", "--steps", "--batch", "--seed", "--out"}
    assert flags <= set(re.findall(r"--[\w-]+", capsys.readouterr().out))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--steps", "0"], "--steps"),
        (["--batch", "many"], "--batch"),
        (["--alpha-rew", "nan"], "--alpha-rew"),
        (["--out", "nowhere/picture.png"], "--out"),
        (["--out", "picture.doc"], "--out"),
        (["--distarr"], "--distarr"),
    ],
)
def test_a_bad_flag_is_one_line(capsys, monkeypatch, flags, says):
    monkeypatch.setattr(sys, "argv", ["one_file.py", *flags])
    with pytest.raises(SystemExit) as stopped:
        one_file.main()
    message = capsys.readouterr().err
    assert stopped.value.code == 2
    assert message.count("\n") == 1
    assert says in message


def test_it_imports_torch_and_the_standard_library_alone():
    nodes = list(ast.walk(ast.parse(SCRIPT.read_text(encoding="utf-8"))))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    packages = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)
    assert packages == {"torch", "matplotlib"}


def test_its_comments_name_lines_of_algorithm_1():
    named = set(re.findall(r"# line (\d+[abc]?)", SCRIPT.read_text(encoding="utf-8")))
    assert named == set(ALGORITHM_1) - {"10c"}, "guidance out is the one line that is left out"
