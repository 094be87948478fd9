"""One loop, six settings: what is drawn, what moves, what is recorded, and what stops it."""

import copy

import pytest
import torch
from torch import nn

from dipp_core.method.algorithm import PRESETS, Settings, align, preset
from dipp_core.method.divergences import pseudo_huber
from dipp_core.method.schedule import normalised, sigma_power_weight, uniform_time, vp_continuous
from dipp_core.method.staged import NonFiniteError
from dipp_core.worlds.gaussian import Gaussian, exact_score, noise_levels
from dipp_core.worlds.gaussian_optima import linear_shift_ikl

SCHEDULE = vp_continuous()
PI = uniform_time(0.1, 0.9)
WEIGHT = sigma_power_weight(SCHEDULE, 2)
NUMBERS = {
    "batch_shape": (8,),
    "z_shape": (3,),
    "time_sampler": PI,
    "weight": WEIGHT,
    "ta_weight": WEIGHT,
}


class Stacked(nn.Module):
    """A tanh network on (x, t, c), one per run when runs is given, each run with the same start."""

    def __init__(self, seed, runs=None, n_in=3):
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        shapes = [(n_in + 2, 16), (16, 3)]
        self.layers = nn.ParameterList(torch.randn(s, generator=g, dtype=torch.float64) / s[0] ** 0.5 for s in shapes)
        if runs:
            self.layers = nn.ParameterList(layer.detach().expand(runs, -1, -1).clone() for layer in self.layers)
        self.calls = 0

    def forward(self, xt, t, cond):
        self.calls += 1
        features = torch.cat([xt, t[..., None].to(xt), cond.to(xt)], -1)
        return torch.tanh(features @ self.layers[0]) @ self.layers[1] - xt


def linear_reward(x0, cond):
    return x0[..., 0] - 0.1 * x0.square().sum(-1)


def draw_cond(shape, generator):
    return torch.rand(*shape, 1, generator=generator, dtype=torch.float64)


class Run:
    """Everything one call of `align` needs, on tiny networks in float64."""

    def __init__(self, name="dipp", runs=None, optimizer=torch.optim.Adam, reward=linear_reward, **numbers):
        numbers = NUMBERS | ({"batch_shape": (runs, 8)} if runs else {}) | numbers
        self.settings = preset(name, **numbers)
        self.gen_net, self.ta, self.ref = (Stacked(seed, runs) for seed in (0, 1, 2))
        self.gen_optimizer = optimizer(self.gen_net.parameters(), lr=1e-2)
        self.ta_optimizer = optimizer(self.ta.parameters(), lr=1e-2)
        self.generator = torch.Generator().manual_seed(5)
        self.reward = reward

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

    def weights(self, net=None):
        return torch.cat([p.detach().flatten() for p in (net or self.gen_net).parameters()])


def closeness(a, b):
    return float((a - b).norm() / b.norm())


EXPECTED_TERMS = {
    "diff_instruct": {"divergence"},
    "sim": {"divergence"},
    "dipp": {"reward", "divergence"},
    "distar_in": {"reward", "divergence"},
    "distar_out": {"reward", "divergence", "guidance"},
    "reward_only": {"reward"},
}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_setting_of_the_same_loop(name):
    guided = {} if name == "reward_only" else {"alpha_cfg": 1.5}
    run = Run(name, **guided)
    before = [run.weights(net) for net in (run.gen_net, run.ta, run.ref)]
    records = list(run.align(3))
    assert [record.step for record in records] == [0, 1, 2]
    assert all(set(record.terms) == set(record.x0_grad_norms) == EXPECTED_TERMS[name] for record in records)
    assert all(value.ndim == 0 and not value.requires_grad for r in records for value in r.terms.values())
    assert (records[0].ta_loss is None) == (name == "reward_only")
    moved = [not torch.equal(a, run.weights(n)) for a, n in zip(before, (run.gen_net, run.ta, run.ref), strict=True)]
    assert moved == [True, name != "reward_only", False]


@pytest.mark.parametrize("name", PRESETS)
def test_the_generator_step_is_the_gradient_of_the_papers_loss(name):
    """One plain step without assistant updates against the loss written out by hand on the same draws."""
    alpha_rew = PRESETS[name].get("alpha_rew", 2.0)
    alpha_cfg = PRESETS[name].get("alpha_cfg", 1.5)
    run = Run(name, optimizer=torch.optim.SGD, alpha_rew=alpha_rew, alpha_cfg=alpha_cfg, ta_steps=0)
    before = run.weights()
    g = torch.Generator().manual_seed(5)
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
    assert closeness(run.weights() - before, -1e-2 * gradient) <= 1e-10
    torch.testing.assert_close(record.grad_norm, gradient.norm())
    if alpha_rew:
        torch.testing.assert_close(record.terms["reward"], linear_reward(x0, cond).mean().detach())


def test_no_gradient_lands_in_assistant_or_reference_during_the_generator_step():
    for name in ("dipp", "distar_in", "distar_out"):
        run = Run(name, alpha_cfg=1.5, ta_steps=0)
        before = run.weights(run.ta)
        list(run.align(2))
        assert all(p.grad is None and p.requires_grad for net in (run.ta, run.ref) for p in net.parameters())
        assert torch.equal(run.weights(run.ta), before)


def test_the_assistant_is_frozen_in_the_generator_step_and_only_there():
    run, seen = Run("distar_in"), []
    forward = run.ta.forward
    run.ta.forward = lambda *parts: seen.append(run.ta.layers[0].requires_grad) or forward(*parts)
    list(run.align(2))
    assert seen == [True, False, True, False]


@pytest.mark.parametrize(
    ("ta_steps", "share", "gen_calls"), [(1, False, 2), (3, False, 4), (3, True, 1), (0, False, 1)]
)
def test_k_ta_and_sharing_are_honoured(ta_steps, share, gen_calls):
    run = Run("dipp", ta_steps=ta_steps, share_samples=share)
    taken = []
    run.ta_optimizer.register_step_post_hook(lambda *_: taken.append(1))
    list(run.align(2))
    assert len(taken) == 2 * ta_steps
    assert run.gen_net.calls == 2 * gen_calls
    assert run.ta.calls == 2 * (ta_steps + 1)


def test_sharing_trains_the_assistant_on_the_generators_own_samples():
    """At time about 0 the assistant sees xt = x0: the recorded samples if shared, others if not."""
    for share in (True, False):
        run = Run("dipp", share_samples=share, samples_every=1, time_sampler=uniform_time(1e-9, 1e-9))
        seen, forward = [], run.ta.forward
        run.ta.forward = lambda xt, t, cond, forward=forward, seen=seen: seen.append(xt) or forward(xt, t, cond)
        (record,) = run.align(1)
        assert torch.allclose(seen[0], record.samples, atol=1e-3) == share
        assert not record.samples.requires_grad


def test_samples_are_kept_every_so_often():
    assert [r.samples is not None for r in Run("dipp", samples_every=2).align(4)] == [True, False, True, False]
    assert all(r.samples is None for r in Run("dipp").align(2))


def test_members_of_the_family_coincide_where_they_should():
    def after(name, **numbers):
        run = Run(name, **numbers)
        list(run.align(3))
        return run.weights()

    assert torch.equal(after("diff_instruct"), after("dipp", alpha_rew=0.0))
    assert torch.equal(after("sim", alpha_cfg=1.5), after("distar_in", alpha_rew=0.0, alpha_cfg=1.5))
    assert torch.equal(after("distar_in"), after("distar_out"))
    assert not torch.equal(after("distar_in", alpha_cfg=1.5), after("distar_out", alpha_cfg=1.5))
    inside, outside = after("dipp", alpha_cfg=1.5), Run("dipp", alpha_cfg=1.5)
    outside.settings = Settings(**vars(outside.settings) | {"guidance": "out"})
    list(outside.align(3))
    assert closeness(outside.weights(), inside) <= 1e-10
    assert not torch.equal(after("dipp"), after("dipp", per_sample_normaliser=True))
    assert not torch.equal(after("distar_in"), after("distar_in", distance=pseudo_huber(0.1)))


def test_presets_refuse_to_be_contradicted():
    with pytest.raises(ValueError, match="diff_instruct means alpha_rew"):
        preset("diff_instruct", **NUMBERS, alpha_rew=1.0)
    with pytest.raises(ValueError, match="unknown preset"):
        preset("dpo", **NUMBERS)
    with pytest.raises(ValueError, match="unknown divergence"):
        Settings(divergence="kl", **NUMBERS)
    with pytest.raises(ValueError, match="unknown guidance"):
        Settings(divergence="score", guidance="both", **NUMBERS)


@pytest.mark.parametrize("name", ["dipp", "distar_out"])
def test_runs_side_by_side_do_not_mix(name):
    """Changing the scales of run 1 leaves run 0 as it was to the last bit, and changes run 1."""

    def after(alpha_rew, alpha_cfg):
        scales = {"alpha_rew": torch.tensor(alpha_rew), "alpha_cfg": torch.tensor(alpha_cfg)}
        run = Run(name, runs=2, max_grad_norm=0.05, **scales)
        records = list(run.align(3))
        assert all(value.shape == (2,) for r in records for value in (*r.terms.values(), r.ta_loss, r.grad_norm))
        return [layer.detach() for layer in run.gen_net.layers]

    for one, other in zip(after([1.0, 0.0], [0.5, 0.0]), after([1.0, 9.0], [0.5, 2.0]), strict=True):
        torch.testing.assert_close(one[0], other[0], rtol=1e-12, atol=0)
        assert not torch.allclose(one[1], other[1])


def test_a_run_side_by_side_is_the_run_alone():
    """Run 0 of a pair, given the draws it had there, takes the step it would take alone."""
    pair = Run("distar_in", runs=2, optimizer=torch.optim.SGD, ta_steps=0, alpha_cfg=1.5)
    draws = {"cond": [], "z": []}
    gen = pair.gen
    pair.gen = lambda z, cond: draws["z"].append(z) or draws["cond"].append(cond) or gen(z, cond)
    (record,) = pair.align(1)
    alone = Run("distar_in", optimizer=torch.optim.SGD, ta_steps=0, alpha_cfg=1.5)
    x0 = alone.gen(draws["z"][0][0], draws["cond"][0][0])
    torch.testing.assert_close(record.terms["reward"][0], linear_reward(x0, None).mean().detach())
    assert not torch.allclose(record.terms["reward"][0], record.terms["reward"][1])


def test_a_reward_that_is_not_finite_stops_before_anything_is_lost():
    calls = []

    def reward(x0, cond):
        calls.append(1)
        return linear_reward(x0, cond) * (float("nan") if len(calls) == 3 else 1.0)

    run = Run("dipp", reward=reward)
    steps = run.align(5)
    _, last = next(steps), next(steps)
    kept = run.weights()
    with pytest.raises(NonFiniteError) as caught:
        next(steps)
    assert (caught.value.step, caught.value.term) == (2, "the term 'reward'")
    assert caught.value.last_record is last
    assert "step 2: the term 'reward' is not finite" in str(caught.value)
    assert "last good step: step 1" in str(caught.value)
    assert torch.equal(run.weights(), kept)


@pytest.mark.parametrize("where", ["reward gradient", "assistant", "parameter gradient"])
def test_other_values_that_are_not_finite(where):
    run = Run("dipp")
    if where == "reward gradient":
        run.reward = lambda x0, cond: (0 * x0.sum(-1)).sqrt()
        name = "the gradient of the term 'reward'"
    elif where == "assistant":
        run.ta.layers[1].data.fill_(float("inf"))
        name = "the assistant's loss"
    else:
        run.gen_net.layers[0].register_hook(lambda gradient: gradient * float("inf"))
        name = "the gradient of the generator"
    before = run.weights()
    with pytest.raises(NonFiniteError) as caught:
        list(run.align(1))
    assert (caught.value.step, caught.value.term, caught.value.last_record) == (0, name, None)
    assert torch.equal(run.weights(), before)


def test_resuming_continues_exactly():
    whole, parts = Run("distar_in", ta_steps=2), Run("distar_in", ta_steps=2)
    list(whole.align(6))
    list(parts.align(3))
    resumed = Run("distar_in", ta_steps=2)
    for name in ("gen_net", "ta", "gen_optimizer", "ta_optimizer"):
        getattr(resumed, name).load_state_dict(copy.deepcopy(getattr(parts, name).state_dict()))
    resumed.generator.set_state(parts.generator.get_state())
    assert [record.step for record in resumed.align(6, start_step=3)] == [3, 4, 5]
    assert torch.equal(whole.weights(), resumed.weights())
    assert torch.equal(whole.weights(whole.ta), resumed.weights(resumed.ta))


def test_a_driver_may_replace_backward():
    seen = []

    def backward(tensor, gradient=None):
        seen.append((tensor.shape, None if gradient is None else gradient.shape))
        tensor.backward(gradient)

    plain, driven = Run("dipp"), Run("dipp")
    list(plain.align(1))
    list(driven.align(1, backward=backward))
    assert seen == [((), None), ((8, 3), (8, 3))]
    assert torch.equal(plain.weights(), driven.weights())


def test_old_gradients_are_not_stepped_on():
    clean, stale = Run("dipp"), Run("dipp")
    for parameter in (*stale.gen_net.parameters(), *stale.ta.parameters()):
        parameter.grad = torch.full_like(parameter, 1e3)
    list(clean.align(1))
    list(stale.align(1))
    assert torch.equal(clean.weights(), stale.weights())


def test_the_loop_lands_on_the_closed_form():
    """Linear generator, exact assistant, linear reward: DI++ moves the mean by slope / beta / E_w[1 / (lam + s^2)]."""
    weight = normalised(WEIGHT, PI)
    mean, scale = nn.Parameter(torch.zeros(2).double()), nn.Parameter(torch.tensor([0.5, 1.5]).double())
    ref = Gaussian(torch.zeros(2).double(), torch.diag(torch.tensor([1.0, 0.25]).double()))
    optimizer = torch.optim.Adam([mean, scale], lr=0.05, betas=(0.0, 0.99))
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, 400)
    steps = align(
        gen=lambda z, cond: mean + scale * z,
        ta=lambda xt, t, cond: exact_score(Gaussian(mean, torch.diag(scale**2)).detach(), SCHEDULE)(xt, t),
        ref=exact_score(ref, SCHEDULE),
        reward=lambda x0, cond: x0[..., 0] + x0[..., 1],
        schedule=SCHEDULE,
        settings=preset(
            "dipp", **NUMBERS | {"batch_shape": (256,), "z_shape": (2,), "weight": weight}, ta_steps=0, alpha_rew=0.5
        ),
        gen_optimizer=optimizer,
        ta_optimizer=None,
        draw_cond=lambda shape, generator: None,
        generator=torch.Generator().manual_seed(0),
        steps=400,
    )
    for _ in steps:
        decay.step()
    wanted = linear_shift_ikl(1.0, ref.cov.diagonal(), 2.0, noise_levels(SCHEDULE, PI, weight))
    torch.testing.assert_close(mean.data, wanted, rtol=0.05, atol=0.02)
    torch.testing.assert_close(scale.data, ref.cov.diagonal().sqrt(), rtol=0.05, atol=0.02)


@pytest.mark.parametrize(
    ("name", "missing"), [("dipp", "ta and ref and reward and ta_optimizer"), ("sim", "ta and ref and ta_optimizer")]
)
def test_missing_roles_are_named_before_the_first_step(name, missing):
    steps = align(
        gen=None, ta=None, ref=None, reward=None, schedule=SCHEDULE, settings=preset(name, **NUMBERS),
        gen_optimizer=None, ta_optimizer=None, draw_cond=draw_cond, generator=None, steps=1,
    )  # fmt: skip
    with pytest.raises(ValueError, match=f"these settings need {missing}$"):
        next(steps)


def test_a_shape_must_be_a_tuple():
    with pytest.raises(ValueError, match="are tuples"):
        preset("dipp", **(NUMBERS | {"batch_shape": 256}))


@pytest.mark.parametrize("ta_steps", [0, 1])
@pytest.mark.parametrize("name", ["dipp", "distar_in", "distar_out"])
def test_the_mean_over_parts_of_a_batch_is_the_whole_batch(name, ta_steps):
    """What processes that share a run rely on: equal generators, disjoint parts, and the mean of their gradients."""

    def move(part, parts):
        run = Run(name, optimizer=torch.optim.SGD, share=(part, parts), alpha_cfg=0.5, ta_steps=ta_steps)
        learns = run.ta if ta_steps else run.gen_net  # the assistant, or the generator where the assistant stands still
        before = run.weights(learns)
        record = next(run.align(steps=1))
        return torch.cat(
            [run.weights(learns) - before, record.terms["divergence"].reshape(1) if not ta_steps else before]
        )

    whole = move(0, 1)
    for parts in (2, 4):
        several = torch.stack([move(part, parts) for part in range(parts)])
        torch.testing.assert_close(several.mean(0), whole, rtol=1e-10, atol=1e-13)
        assert (several[0] - whole).abs().max() > 1e-6


def test_a_batch_is_shared_in_equal_parts():
    with pytest.raises(ValueError, match="no part 0 of 3 equal ones"):
        Run(share=(0, 3))
