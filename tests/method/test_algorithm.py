"""Algorithm 1: each line implemented once; one loop, six settings: what is drawn, what moves, what stops it."""

import ast
import copy
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from worlds.small import relative, rng

from dipp_core.method import algorithm
from dipp_core.method.algorithm import PRESETS, Settings, align, preset
from dipp_core.method.divergences import pseudo_huber
from dipp_core.method.schedule import sigma_power_weight, uniform_time, vp_continuous
from dipp_core.method.staged import NonFiniteError

SCHEDULE = vp_continuous()
PI = uniform_time(0.1, 0.9)
WEIGHT = sigma_power_weight(SCHEDULE, 2)
NUMBERS = {"batch_shape": (8,), "z_shape": (3,), "time_sampler": PI, "weight": WEIGHT, "ta_weight": WEIGHT}
CLAIM = re.compile(r"^ +Algorithm 1, lines? ([0-9a-z, ]+)\.$", re.MULTILINE)


def test_every_line_is_claimed_exactly_once_where_a_reader_looks_for_it():
    claims = []
    for path in sorted(Path(algorithm.__file__).parent.glob("*.py")):
        text, before = path.read_text(encoding="utf-8"), len(claims)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                found = CLAIM.findall(ast.get_docstring(node, clean=False) or "")
                claims += [(lines, node.name) for lines in found]
        assert len(claims) - before == text.count("Algorithm 1, line"), f"a claim with a typo in {path.name}"
    owner = {line: name for lines, name in claims for line in lines.split(", ")}
    assert sorted(line for lines, _ in claims for line in lines.split(", ")) == sorted(algorithm.ALGORITHM_1)
    assert (owner["6"], owner["9"]) == ("assistant_step", "guided_score")
    assert (owner["10a"], owner["10b"]) == ("integral_kl_surrogate", "score_divergence_surrogate")


class Stacked(nn.Module):
    """A tanh network on (x, t, c), one per run when runs is given, each run with the same start."""

    def __init__(self, seed, runs=None):
        super().__init__()
        g = rng(seed)
        shapes = [(5, 16), (16, 3)]
        self.layers = nn.ParameterList(torch.randn(s, generator=g, dtype=torch.float64) / s[0] ** 0.5 for s in shapes)
        if runs:
            self.layers = nn.ParameterList(layer.detach().expand(runs, -1, -1).clone() for layer in self.layers)
        self.seen = []  # of each call: the noisy samples, and whether the parameters were to learn

    def forward(self, xt, t, cond):
        self.seen.append((xt, self.layers[0].requires_grad))
        features = torch.cat([xt, t[..., None].to(xt), cond.to(xt)], -1)
        return torch.tanh(features @ self.layers[0]) @ self.layers[1] - xt


def linear_reward(x0, cond):
    return x0[..., 0] - 0.1 * x0.square().sum(-1)


def draw_cond(shape, generator):
    return torch.rand(*shape, 1, generator=generator, dtype=torch.float64)


class Run:
    """Everything one call of `align` needs, on tiny networks in float64."""

    def __init__(self, name="dipp", runs=None, optimizer=torch.optim.Adam, reward=linear_reward, roles=True, **numbers):
        self.settings = preset(name, **NUMBERS | ({"batch_shape": (runs, 8)} if runs else {}) | numbers)
        self.gen_net, self.ta, self.ref = (Stacked(seed, runs) for seed in (0, 1, 2))
        self.gen_optimizer = optimizer(self.gen_net.parameters(), lr=1e-2)
        self.ta_optimizer = optimizer(self.ta.parameters(), lr=1e-2)
        self.generator, self.reward = rng(5), reward
        if not roles:
            self.ta = self.ref = self.reward = self.ta_optimizer = None

    def gen(self, z, cond):
        return self.gen_net(z, torch.ones(z.shape[:-1]), cond)

    def align(self, steps, **more):
        return align(
            gen=self.gen,
            ta=self.ta,
            ref=self.ref,
            reward=self.reward,
            schedule=SCHEDULE,
            settings=self.settings,
            gen_optimizer=self.gen_optimizer,
            ta_optimizer=self.ta_optimizer,
            draw_cond=draw_cond,
            null_cond=torch.zeros(1, dtype=torch.float64),
            generator=self.generator,
            steps=steps,
            **more,
        )

    def after(self, steps, **more):
        """The generator's weights after some steps."""
        list(self.align(steps, **more))
        return self.weights()

    def weights(self, net=None):
        return torch.cat([p.detach().flatten() for p in (net or self.gen_net).parameters()])


@pytest.mark.parametrize("name", PRESETS)
def test_in_every_preset_generator_and_assistant_take_turns_and_the_reference_stands(name):
    learns = name != "reward_only"
    run = Run(name, samples_every=2, **{"alpha_cfg": 1.5} if learns else {})
    nets = (run.gen_net, run.ta, run.ref)
    before = [run.weights(net) for net in nets]
    records = list(run.align(3))
    assert [record.step for record in records] == [0, 1, 2]
    assert [record.samples is not None for record in records] == [True, False, True]
    assert not any(value.requires_grad for value in (records[0].samples, *records[0].terms.values()))
    assert (records[0].ta_loss is not None) == learns
    assert [not torch.equal(a, run.weights(net)) for a, net in zip(before, nets, strict=True)] == [True, learns, False]
    assert [learning for _, learning in run.ta.seen] == [True, False] * (3 if learns else 0)  # frozen every other time


@pytest.mark.parametrize("name", PRESETS)
def test_the_generator_step_is_the_gradient_of_the_papers_loss_and_lands_nowhere_else(name):
    """One plain step without assistant updates against the loss written out by hand on the same draws."""
    alpha_rew = PRESETS[name].get("alpha_rew", 2.0)
    alpha_cfg = PRESETS[name].get("alpha_cfg", 1.5)
    run = Run(name, optimizer=torch.optim.SGD, alpha_rew=alpha_rew, alpha_cfg=alpha_cfg, ta_steps=0)
    before, ta_before = run.weights(), run.weights(run.ta)
    g = rng(5)
    cond = draw_cond((8,), g)
    z = torch.randn(8, 3, generator=g, dtype=torch.float64)
    x0 = run.gen(z, cond)
    t = PI((8,), generator=g)
    eps = torch.randn(8, 3, generator=g, dtype=torch.float64)
    a, s = SCHEDULE.alpha(t)[:, None], SCHEDULE.sigma(t)[:, None]
    xt, w = a * x0 + s * eps, SCHEDULE.sigma(t) ** 2
    s_ta, s_c, s_null = run.ta(xt, t, cond), run.ref(xt, t, cond), run.ref(xt, t, torch.zeros(8, 1))
    s_in = s_c + alpha_cfg * (s_c - s_null)
    ikl = (w[:, None] * (s_ta - s_in).detach() * xt).sum(-1)
    y = s_ta - (s_in if name != "distar_out" else s_c)
    huber = -(w[:, None] * y / (y.square().sum(-1, keepdim=True) + 1).sqrt() * (s_ta + eps / s)).sum(-1)
    divergence = {"integral_kl": ikl, "score": huber, "none": 0 * ikl}[run.settings.divergence]
    out = alpha_cfg * (w[:, None] * (s_c - s_null).detach() * xt).sum(-1) if name == "distar_out" else 0
    loss = (divergence - out - alpha_rew * linear_reward(x0, cond)).mean()
    gradient = torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(run.gen_net.parameters()))])
    (record,) = run.align(1)
    assert relative(run.weights() - before, -1e-2 * gradient) <= 1e-10
    torch.testing.assert_close(record.grad_norm, gradient.norm())
    terms = {"reward": alpha_rew, "divergence": name != "reward_only", "guidance": name == "distar_out"}
    assert set(record.terms) == set(record.x0_grad_norms) == {term for term, there in terms.items() if there}
    if alpha_rew:
        torch.testing.assert_close(record.terms["reward"], linear_reward(x0, cond).mean().detach())
    assert all(p.grad is None and p.requires_grad for net in (run.ta, run.ref) for p in net.parameters())
    assert torch.equal(run.weights(run.ta), ta_before)


@pytest.mark.parametrize(("ta_steps", "share", "gen_calls"), [(3, False, 4), (3, True, 1), (0, False, 1)])
def test_k_ta_is_honoured_and_sharing_trains_the_assistant_on_the_generators_own_samples(ta_steps, share, gen_calls):
    """At time about 0 the assistant sees xt = x0: the recorded samples if shared, others if not."""
    still = uniform_time(1e-9, 1e-9)
    run = Run("dipp", ta_steps=ta_steps, share_samples=share, samples_every=1, time_sampler=still)
    taken = []
    run.ta_optimizer.register_step_post_hook(lambda *_: taken.append(1))
    for step, record in enumerate(run.align(2), start=1):
        assert len(taken) == step * ta_steps
        assert len(run.gen_net.seen) == step * gen_calls
        seen = [torch.allclose(xt, record.samples, atol=1e-3) for xt, _ in run.ta.seen[-ta_steps - 1 :]]
        assert seen == [share] * ta_steps + [True]


def test_guidance_in_and_out_are_one_for_dipp_and_options_change_what_is_learned():
    def after(name, **numbers):
        return Run(name, **numbers).after(3)

    outside = Run("dipp", alpha_cfg=1.5)
    outside.settings = Settings(**vars(outside.settings) | {"guidance": "out"})
    assert relative(outside.after(3), after("dipp", alpha_cfg=1.5)) <= 1e-10
    assert not torch.equal(after("distar_in", alpha_cfg=1.5), after("distar_out", alpha_cfg=1.5))
    assert not torch.equal(after("dipp"), after("dipp", per_sample_normaliser=True))
    assert not torch.equal(after("distar_in"), after("distar_in", distance=pseudo_huber(0.1)))


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: preset("diff_instruct", **NUMBERS, alpha_rew=1.0), "diff_instruct means alpha_rew"),
        (lambda: preset("dpo", **NUMBERS), "unknown preset"),
        (lambda: Settings(divergence="kl", **NUMBERS), "unknown divergence"),
        (lambda: Settings(divergence="score", guidance="both", **NUMBERS), "unknown guidance"),
        (lambda: preset("dipp", **NUMBERS | {"batch_shape": 256}), "are tuples"),
        (lambda: preset("dipp", **NUMBERS, share=(0, 3)), "no part 0 of 3 equal ones"),
        (
            lambda: next(Run("dipp", roles=False).align(1)),
            "these settings need ta and ref and reward and ta_optimizer$",
        ),
        (lambda: next(Run("sim", roles=False).align(1)), "these settings need ta and ref and ta_optimizer$"),
    ],
)
def test_settings_that_contradict_and_missing_roles_are_refused_before_the_first_step(make, line):
    with pytest.raises(ValueError, match=line):
        make()


def test_runs_side_by_side_do_not_mix():
    """Changing the scales of run 1 leaves run 0 as it was to the last bit, and changes run 1."""

    def after(alpha_rew, alpha_cfg):
        scales = {"alpha_rew": torch.tensor(alpha_rew), "alpha_cfg": torch.tensor(alpha_cfg)}
        run = Run("distar_out", runs=2, max_grad_norm=0.05, **scales)
        records = list(run.align(3))
        assert all(value.shape == (2,) for r in records for value in (*r.terms.values(), r.ta_loss, r.grad_norm))
        return [layer.detach() for layer in run.gen_net.layers]

    for one, other in zip(after([1.0, 0.0], [0.5, 0.0]), after([1.0, 9.0], [0.5, 2.0]), strict=True):
        torch.testing.assert_close(one[0], other[0], rtol=1e-12, atol=0)
        assert not torch.allclose(one[1], other[1])


@pytest.mark.parametrize(
    "name",
    ["the term 'reward'", "the gradient of the term 'reward'", "the assistant's loss", "the gradient of the generator"],
)
def test_what_is_not_finite_is_named_with_the_last_good_step_and_moves_nothing(name):
    rewards = {
        "the term 'reward'": lambda x0, cond: linear_reward(x0, cond) * float("nan"),
        "the gradient of the term 'reward'": lambda x0, cond: (0 * x0.sum(-1)).sqrt(),
    }
    chosen = [linear_reward]
    run = Run("dipp", reward=lambda x0, cond: chosen[-1](x0, cond))
    steps = run.align(5)
    _, last = next(steps), next(steps)
    if name in rewards:
        chosen.append(rewards[name])
    elif "assistant" in name:
        run.ta.layers[1].data.fill_(float("inf"))
    else:
        run.gen_net.layers[0].register_hook(lambda gradient: gradient * float("inf"))
    kept = run.weights()
    with pytest.raises(NonFiniteError, match=f"step 2: {name} is not finite; .* last good step: step 1") as caught:
        next(steps)
    assert (caught.value.step, caught.value.term) == (2, name)
    assert caught.value.last_record is last
    assert torch.equal(run.weights(), kept)
    assert all(parameter.grad is None for parameter in run.gen_net.parameters())


def test_resuming_continues_exactly():
    whole, parts, resumed = (Run("distar_in", ta_steps=2) for _ in range(3))
    whole.after(6)
    parts.after(3)
    for name in ("gen_net", "ta", "gen_optimizer", "ta_optimizer"):
        getattr(resumed, name).load_state_dict(copy.deepcopy(getattr(parts, name).state_dict()))
    resumed.generator.set_state(parts.generator.get_state())
    assert [record.step for record in resumed.align(6, start_step=3)] == [3, 4, 5]
    assert torch.equal(whole.weights(), resumed.weights())
    assert torch.equal(whole.weights(whole.ta), resumed.weights(resumed.ta))


def test_a_driver_may_replace_backward_and_old_gradients_are_not_stepped_on():
    seen = []

    def backward(tensor, gradient=None):
        seen.append((tensor.shape, None if gradient is None else gradient.shape))
        tensor.backward(gradient)

    driven, stale, wanted = Run("dipp"), Run("dipp"), Run("dipp").after(1)
    assert torch.equal(driven.after(1, backward=backward), wanted)
    assert seen == [((), None), ((8, 3), (8, 3))]
    for parameter in (*stale.gen_net.parameters(), *stale.ta.parameters()):
        parameter.grad = torch.full_like(parameter, 1e3)
    assert torch.equal(stale.after(1), wanted)


@pytest.mark.parametrize(("name", "ta_steps"), [("dipp", 0), ("distar_in", 0), ("distar_out", 0), ("dipp", 1)])
def test_the_mean_over_parts_of_a_batch_is_the_whole_batch(name, ta_steps):
    """What processes that share a run rely on: equal generators, disjoint parts, and the mean of their gradients."""

    def move(part, parts):
        run = Run(name, optimizer=torch.optim.SGD, share=(part, parts), alpha_cfg=0.5, ta_steps=ta_steps)
        learns = run.ta if ta_steps else run.gen_net  # the assistant, or the generator where the assistant stands still
        before = run.weights(learns)
        record = next(run.align(steps=1))
        more = before if ta_steps else record.terms["divergence"].reshape(1)
        return torch.cat([run.weights(learns) - before, more])

    whole = move(0, 1)
    for parts in (2, 4):
        several = torch.stack([move(part, parts) for part in range(parts)])
        torch.testing.assert_close(several.mean(0), whole, rtol=1e-10, atol=1e-13)
        assert (several[0] - whole).abs().max() > 1e-6
