"""Guidance in one batch, and networks as score models."""

import pytest
import torch

from dipp_core.method.schedule import convert_prediction, vp_continuous
from dipp_core.method.scores import (
    alpha_cfg_of,
    conditional_score,
    guidance_scale,
    guided_score,
    score_model,
    score_pair,
)

SCHEDULE = vp_continuous()


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


class Recorder:
    """A score that depends on everything it is given and counts its passes."""

    def __init__(self):
        self.calls = []

    def __call__(self, xt, t, cond):
        self.calls.append(tuple(xt.shape))
        text, size = cond["text"], cond["more"][0]
        extra = text.mean(-1) + size.mean(-1) + t
        return -xt * extra.reshape(extra.shape + (1,) * (xt.ndim - t.ndim))


@pytest.mark.parametrize(("batch", "sample"), [((3,), (4, 2, 2)), ((2, 3), (5,))])
@pytest.mark.parametrize("alpha_cfg", [0.0, 1.5, -0.4])
def test_guided_score_in_one_batch_equals_two_passes(batch, sample, alpha_cfg):
    xt = torch.randn(*batch, *sample, generator=rng(), dtype=torch.float64)
    t = torch.rand(batch, generator=rng(1), dtype=torch.float64)
    cond = {
        "text": torch.randn(*batch, 6, generator=rng(2), dtype=torch.float64),
        "more": (torch.rand(*batch, 2, generator=rng(3), dtype=torch.float64), None),
    }
    null = {"text": torch.zeros(6, dtype=torch.float64), "more": (torch.ones(*(1,) * len(batch), 2).double(), None)}
    full_null = {"text": torch.zeros_like(cond["text"]), "more": (torch.ones_like(cond["more"][0]), None)}
    score = Recorder()
    found = guided_score(score, xt, t, cond, null, alpha_cfg)
    axis = len(batch) - 1
    doubled = tuple(n * (2 if k == axis and alpha_cfg else 1) for k, n in enumerate(xt.shape))
    assert score.calls == [doubled]
    s_cond, s_null = score(xt, t, cond), score(xt, t, full_null)
    torch.testing.assert_close(found, s_cond + alpha_cfg * (s_cond - s_null), rtol=1e-13, atol=1e-13)
    other = s_null + guidance_scale(alpha_cfg) * (s_cond - s_null)
    torch.testing.assert_close(found, other, rtol=1e-12, atol=1e-12)
    assert alpha_cfg_of(guidance_scale(alpha_cfg)) == pytest.approx(alpha_cfg)


def test_a_guidance_per_run_and_a_broadcast_time():
    def score(xt, t, cond):
        return xt * cond.mean(-1, keepdim=True) + t[..., None]

    xt = torch.randn(2, 3, 4, generator=rng(), dtype=torch.float64)
    cond, null = torch.rand(2, 3, 5, generator=rng(1), dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    t, alpha_cfg = torch.tensor([[0.3], [0.6]]).double(), torch.tensor([0.0, 2.0])
    found = guided_score(score, xt, t, cond, null, alpha_cfg)
    pair = score_pair(score, xt, t, cond, null)
    torch.testing.assert_close(found[0], pair[0][0])
    torch.testing.assert_close(found[1], 3 * pair[0][1] - 2 * pair[1][1])


def test_guidance_needs_both_conditions():
    with pytest.raises(ValueError, match="null_cond"):
        guided_score(lambda *_: None, torch.zeros(2, 3), torch.zeros(2), torch.zeros(2, 1), None, 1.0)


@pytest.mark.parametrize("kind", ["eps", "x0", "v", "score"])
def test_a_network_of_any_kind_is_the_same_score_model(kind):
    xt, t = torch.randn(4, 3, generator=rng()), torch.linspace(0.2, 0.8, 4)
    truth = -0.5 * xt
    prediction = convert_prediction(truth, xt=xt, t=t, schedule=SCHEDULE, source="score", target=kind)
    score = score_model(lambda *_: prediction, SCHEDULE, kind)
    torch.testing.assert_close(score(xt, t, None), truth, rtol=1e-4, atol=1e-5)


def test_conditional_score_is_the_gradient_of_the_log_density():
    t = torch.tensor([0.3, 0.7]).double()
    x0, eps = (torch.randn(2, 3, generator=rng(s), dtype=torch.float64) for s in (1, 2))
    xt = SCHEDULE.perturb(x0, t, eps).requires_grad_()
    a, s = SCHEDULE.alpha(t)[:, None], SCHEDULE.sigma(t)[:, None]
    log_prob = -0.5 * ((xt - a * x0) / s).square().sum()
    wanted = torch.autograd.grad(log_prob, xt)[0]
    torch.testing.assert_close(conditional_score(eps, t, SCHEDULE), wanted, rtol=1e-10, atol=1e-12)
