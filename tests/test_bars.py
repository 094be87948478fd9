"""The published numbers keep what the book promises; the tests of the method prove the claims anew."""

import json

import pandas as pd
import pytest
import torch

from dipp_core.book.results import look_up
from dipp_core.evaluation import intervals

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
    ("10_distillation_2d", "coverage.worst", 8, 8),
    ("11_alignment_2d", "duality_gap", 0, 0.05),
    ("11_alignment_2d", "distar_threshold.ring_2.over_fisher", 1, None),
    ("11_alignment_2d", "distar_threshold.ring_2.over_gaussian", 0, 1),
    ("12_pareto_2d", "duality_gap", 0, 0.05),
    ("12_pareto_2d", "seeds", 10, None),
    ("12_pareto_2d", "distar_less_dipp_same_weight.sigma2.kl_1.low", 0, None),
    ("13_reward_hacking_2d", "hump_drop.one", 0.3, None),
    ("13_reward_hacking_2d", "hump_drop.sigma2", 0.3, None),
    ("13_reward_hacking_2d", "hump_outside_interval", True, True),
    ("13_reward_hacking_2d", "learned_reward_rises_all_the_way.one", True, True),
    ("13_reward_hacking_2d", "learned_reward_rises_all_the_way.sigma2", True, True),
    ("13_reward_hacking_2d", "correlation_on_data_min", 0.95, 1),
    ("13_reward_hacking_2d", "sick_rows_are_sick", True, True),
    ("14_ablations_2d", "base_reward_rel_err", 0, 0.10),
    ("14_ablations_2d", "base_sw2_worst_seed", 0, 0.20),
    ("14_ablations_2d", "pairing_sd_ratio", 0, 0.2),
    ("14_ablations_2d", "variants.K_TA = 0.seeds_broken", 5, 5),
    ("14_ablations_2d", "variants.assistant stale, 32 steps.seeds_broken", 3, 5),
    ("14_ablations_2d", "variants.lambda = 1.seeds_broken", 3, 5),
    ("20_miniature_world", "classifier_accuracy.clean", 0.99, 1),
    ("20_miniature_world", "classifier_accuracy.mixed", 0.97, 1),
    ("20_miniature_world", "vae_roundtrip_gold.clean, outlined", 0.6, 1),
    ("20_miniature_world", "reward_pair_accuracy.seen", 0.78, 1),
    ("20_miniature_world", "reward_pair_accuracy.held out", 0.75, 1),
    ("20_miniature_world", "climb_gold_lost.pixels", 0.2, 1),
    ("20_miniature_world", "climb_gold_lost.latents", 0.2, 1),
    ("20_miniature_world", "read_back_max_diff", 0, 1e-6),
    ("21_reference", "caption_accuracy.unet", 0.85, 1),
    ("21_reference", "caption_accuracy.dit", 0.80, 1),
    ("21_reference", "pipeline_max_diff.unet", 0, 1e-3),
    ("21_reference", "pipeline_max_diff.dit", 0, 1e-3),
    ("22_distillation", "accuracy_minus_reference.unet", -0.02, None),
    ("22_distillation", "export_max_diff.unet", 0, 1e-3),
    ("22_distillation", "export_max_diff.dit", 0, 1e-3),
    ("23_alignment", "gold_gain_over_control.unet.dipp.value", 0, None),
    ("23_alignment", "gold_gain_over_control.unet.distar_in.value", 0, None),
    ("23_alignment", "gold_gain_over_control.dit.dipp.value", 0, None),
    ("23_alignment", "gold_gain_over_control.dit.distar_in.value", 0, None),
    ("23_alignment", "accuracy_change_over_control.unet.dipp", -0.02, None),
    ("23_alignment", "reward_only_reward_above_aligned.unet", 0, None),
    ("23_alignment", "reward_only_reward_above_aligned.dit", 0, None),
    ("23_alignment", "seeds", 2, None),
    ("24_miniature_results", "style_share.unet.dipp", 0.8, 1),
    ("24_miniature_results", "style_share.unet.distar_in", 0.8, 1),
    ("24_miniature_results", "style_share.dit.control", 0, 0.4),
    ("24_miniature_results", "style_share.dit.dipp", 0.8, 1),
    ("24_miniature_results", "style_share.dit.distar_in", 0.8, 1),
    ("24_miniature_results", "start_over_reference.unet.diversity", 0.75, None),
    ("24_miniature_results", "start_over_reference.dit.diversity", 0.75, None),
    ("24_miniature_results", "export_max_diff.unet", 0, 1e-3),
    ("24_miniature_results", "export_max_diff.dit", 0, 1e-3),
    ("24_miniature_results", "redrawn_gold_max_diff", 0, 1e-3),
    ("24_miniature_results", "seeds", 2, None),
    ("90_exercises", "not_answered_yet", 18, 18),
    ("93_solutions", "right", 18, 18),
]

# Bars with chance in them, from seeds that the published run does not use (data/plane/fresh_seeds.csv, made by
# tests/fresh_seeds.py): a published mean over seeds, and the number of that table. Ten of ten cover all modes there.
FRESH = [
    ("10_distillation_2d", "precision.mean", "outside"),
    ("10_distillation_2d", "sw2.mean", "sw2"),
    ("11_alignment_2d", "dipp_sw2_to_exact_optimum.sigma2.beta_2.mean", "sw2_to_optimum.sigma2.2"),
    ("11_alignment_2d", "dipp_sw2_to_exact_optimum.sigma2.beta_8.mean", "sw2_to_optimum.sigma2.8"),
    ("11_alignment_2d", "dipp_sw2_to_exact_optimum.one.beta_2.mean", "sw2_to_optimum.one.2"),
    ("11_alignment_2d", "dipp_sw2_to_exact_optimum.one.beta_4.mean", "sw2_to_optimum.one.4"),
    ("11_alignment_2d", "exact_tilt_sw2_to_tilted.at_0.5.mean", "sw2_to_tilted.0.5"),
    ("11_alignment_2d", "cfg_sw2_to_cfg_optimum.at_4.mean", "sw2_to_guided_optimum.4"),
    ("11_alignment_2d", "dipp_reward_ratio.sigma2_beta_2", "reward_ratio.sigma2.2"),
    ("11_alignment_2d", "dipp_reward_ratio.sigma2_beta_8", "reward_ratio.sigma2.8"),
    ("11_alignment_2d", "dipp_reward_ratio.one_beta_2", "reward_ratio.one.2"),
    ("11_alignment_2d", "dipp_reward_ratio.one_beta_4", "reward_ratio.one.4"),
]
ALARM = 1e-3  # the chance that a bar is passed although nothing is wrong, each

# what was asked for and is not met: kept as it was asked, and said where the results are; a bar that is met moves up
NOT_MET = [
    ("20_miniature_world", "vae_roundtrip_accuracy.clean", 0.95, 1),
    ("22_distillation", "accuracy_minus_reference.dit", -0.02, None),
    ("23_alignment", "accuracy_change_over_control.unet.distar_in", -0.02, None),
    ("23_alignment", "accuracy_change_over_control.dit.dipp", -0.02, None),
    ("23_alignment", "accuracy_change_over_control.dit.distar_in", -0.02, None),
    ("24_miniature_results", "style_share.unet.control", 0, 0.4),
    ("24_miniature_results", "start_over_reference.unet.frechet", 0, 1.25),
    ("24_miniature_results", "start_over_reference.dit.frechet", 0, 1.25),
]


def published(checkout, stage, key):
    """A published number; one that a reader made at smoke scale promises nothing."""
    if json.loads((checkout / f"reports/manifests/{stage}.json").read_text())["scale"] == "smoke":
        pytest.skip("a reader's run at smoke scale promises nothing")
    return look_up(json.loads((checkout / f"reports/metrics/{stage}.json").read_text()), key)


@pytest.mark.parametrize(("stage", "key", "low", "high"), BARS)
def test_a_published_number_keeps_its_bar(checkout, stage, key, low, high):
    value = published(checkout, stage, key)
    assert value >= low
    assert high is None or value <= high


@pytest.mark.parametrize(("stage", "key", "number"), FRESH)
def test_a_number_with_chance_in_it_is_where_other_seeds_say(checkout, stage, key, number):
    """A ratio, which should be 1, has a bar on either side."""
    fresh = pd.read_csv(checkout / "data/plane/fresh_seeds.csv").query("number == @number")["value"]
    values, seeds = torch.tensor(fresh.to_numpy()), len(published(checkout, "10_distillation_2d", "sw2.per_seed"))
    assert len(values) >= 10
    value = published(checkout, stage, key)
    value = 1 - value if number == "outside" else value
    assert value <= intervals.bar(values, seeds=seeds, alarm=ALARM)
    if "ratio" in number:
        assert 1 / value <= intervals.bar(1 / values, seeds=seeds, alarm=ALARM)


@pytest.mark.xfail(strict=True, reason="asked for and not met; said where the results are")
@pytest.mark.parametrize(("stage", "key", "low", "high"), NOT_MET)
def test_a_bar_that_is_not_met_yet(checkout, stage, key, low, high):
    value = published(checkout, stage, key)
    assert value >= low
    assert high is None or value <= high


# steps at true size, which no notebook makes: `make bench-large`, and `make bench-gpu` where there is a GPU
TRUE_SIZE = [
    ("cpu.sd15.dipp.gradients_finite", True, True),
    ("cpu.sd15.dipp.peak_gib", 0, 14),
    ("cpu.sd15.dipp.estimate_over_peak", 0.85, 1.15),
    ("cpu.pixart.dipp.gradients_finite", True, True),
    ("cpu.pixart.dipp.peak_gib", 0, 14),
    ("cpu.pixart.dipp.estimate_over_peak", 0.85, 1.15),
    ("cpu.sd15.distar_in.gradients_finite", True, True),
    ("cpu.sd15.distar_in.peak_gib", 0, 14),
    ("cpu.sd15.distar_in.estimate_over_peak", 0.85, 1.15),
    ("cpu.sd15.staged_over_joint.dipp", 0, 0.999),
    ("cpu.sd15.staged_over_joint.distar_in_kept", 0, 0.9),
    ("cpu.sd15.distar_in_kept.gradients_finite", True, True),
    ("cpu.sd15.distar_in_kept.peak_gib", 0, 14),
    ("cpu.sd15.distar_in_kept.estimate_over_peak", 0.85, 1.15),
    ("gpu.measured.sd15, gpu24, dipp, nothing.peak_gib", 0, 22),
    ("gpu.measured.sd15, gpu24, dipp, nothing.batch", 4, None),
    ("gpu.measured.sd15, gpu24, dipp, nothing.step_over_passes", 0, 1.10),
]


@pytest.mark.parametrize(("key", "low", "high"), TRUE_SIZE)
def test_a_step_at_true_size_keeps_its_bar(checkout, key, low, high):
    value = json.loads((checkout / "reports/metrics/30_full_scale.json").read_text())
    if key.startswith("gpu.") and not value["gpu"]["run"]:
        pytest.skip("not run here: there was no GPU")
    for part in key.split("."):
        value = value[part]
    assert value >= low
    assert high is None or value <= high
