"""The published numbers keep what the book promises; the tests of the method prove the claims anew."""

import json

import pytest

BARS = [
    ("01_scores_and_one_step_generators", "alpha_rel_diff_to_diffusers", 0, 1e-6),
    ("01_scores_and_one_step_generators", "conversion_round_trip_rel_err", 0, 1e-12),
    ("02_integral_kl", "ikl_grad_rel_err_exact", 0, 1e-10),
    ("02_integral_kl", "ikl_grad_rel_err_mc_1e6", 0, 0.02),
    ("03_aligning_with_a_reward", "staged_grad_rel_err", 0, 1e-12),
    ("04_guidance_is_a_reward", "cfg_identity_rel_err", 0, 1e-10),
    ("05_score_divergence", "score_div_l2_grad_rel_err_exact", 0, 1e-10),
    ("05_score_divergence", "pseudo_huber_grad_rel_err_mc_1e6", 0, 0.02),
    ("05_score_divergence", "sid_line_rel_err", 0, 1e-10),
    ("05_score_divergence", "wrong_detach_rel_err.d_prime", 0.1, None),
    ("05_score_divergence", "wrong_detach_rel_err.s_ta", 0.1, None),
    ("05_score_divergence", "wrong_detach_rel_err.xt", 0.1, None),
    ("06_where_is_the_optimum", "optimum_gd_abs_err", 0, 1e-3),
    ("06_where_is_the_optimum", "huber_critical_beta.diverges_below", True, True),
    ("06_where_is_the_optimum", "huber_critical_beta.converges_above", True, True),
]


@pytest.mark.parametrize(("stage", "key", "low", "high"), BARS)
def test_a_published_number_keeps_its_bar(checkout, stage, key, low, high):
    scale = json.loads((checkout / f"reports/manifests/{stage}.json").read_text())["scale"]
    if scale == "smoke":
        pytest.skip("a reader's run at smoke scale promises nothing")
    value = json.loads((checkout / f"reports/metrics/{stage}.json").read_text())
    for part in key.split("."):
        value = value[part]
    assert value >= low
    assert high is None or value <= high
