"""Guidance in one batch, and networks as score models."""

import pytest
import torch
from worlds.small import randn, rng

from dipp_core.method.schedule import PREDICTIONS, convert_prediction, vp_continuous
from dipp_core.method.scores import (
    alpha_cfg_of,
    guidance_scale,
    guided_score,
    score_model,
    score_pair,
)

SCHEDULE = vp_continuous()


@pytest.mark.parametrize(("batch", "sample"), [((3,), (4, 2, 2)), ((2, 3), (5,))])
@pytest.mark.parametrize("alpha_cfg", [0.0, 1.5, -0.4])
def test_guided_score_in_one_batch_equals_two_passes_in_both_conventions(batch, sample, alpha_cfg):
    calls = []

    def score(xt, t, cond):
        calls.append(tuple(xt.shape))
        extra = cond["text"].mean(-1) + cond["more"][0].mean(-1) + t
        return -xt * extra.reshape(extra.shape + (1,) * (xt.ndim - t.ndim))

    xt, t = randn(*batch, *sample), torch.rand(batch, generator=rng(1), dtype=torch.float64)
    cond = {"text": randn(*batch, 6, seed=2), "more": (randn(*batch, 2, seed=3), None)}
    null = {"text": torch.zeros(6).double(), "more": (torch.ones(*(1,) * len(batch), 2).double(), None)}
    full_null = {"text": torch.zeros_like(cond["text"]), "more": (torch.ones_like(cond["more"][0]), None)}
    found = guided_score(score, xt, t, cond, null, alpha_cfg)
    doubled = (*batch[:-1], batch[-1] * (2 if alpha_cfg else 1), *sample)
    assert calls == [doubled]
    s_cond, s_null = score(xt, t, cond), score(xt, t, full_null)
    torch.testing.assert_close(found, s_cond + alpha_cfg * (s_cond - s_null), rtol=1e-13, atol=1e-13)
    other = s_null + guidance_scale(alpha_cfg) * (s_cond - s_null)
    torch.testing.assert_close(found, other, rtol=1e-12, atol=1e-12)
    assert alpha_cfg_of(guidance_scale(alpha_cfg)) == pytest.approx(alpha_cfg)


def test_a_guidance_per_run_and_a_broadcast_time():
    def score(xt, t, cond):
        return xt * cond.mean(-1, keepdim=True) + t[..., None]

    xt, cond, null = randn(2, 3, 4), randn(2, 3, 5, seed=1), torch.zeros(5, dtype=torch.float64)
    t, alpha_cfg = torch.tensor([[0.3], [0.6]]).double(), torch.tensor([0.0, 2.0])
    found = guided_score(score, xt, t, cond, null, alpha_cfg)
    pair = score_pair(score, xt, t, cond, null)
    torch.testing.assert_close(found[0], pair[0][0])
    torch.testing.assert_close(found[1], 3 * pair[0][1] - 2 * pair[1][1])


def test_guidance_needs_both_conditions():
    with pytest.raises(ValueError, match="null_cond"):
        guided_score(lambda *_: None, torch.zeros(2, 3), torch.zeros(2), torch.zeros(2, 1), None, 1.0)


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_a_network_of_any_kind_is_the_same_score_model(kind):
    xt, t = torch.randn(4, 3, generator=rng()), torch.linspace(0.2, 0.8, 4)
    prediction = convert_prediction(-0.5 * xt, xt=xt, t=t, schedule=SCHEDULE, source="score", target=kind)
    score = score_model(lambda *_: prediction, SCHEDULE, kind)
    torch.testing.assert_close(score(xt, t, None), -0.5 * xt, rtol=1e-4, atol=1e-5)
