"""Distances and mode counts against cases with a known answer."""

import math

import pytest
import torch

from dipp_core.evaluation.metrics import coverage, mode_weights, precision, sliced_w2


@pytest.fixture
def cloud():
    return torch.randn(500, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_a_cloud_has_no_distance_to_itself_in_another_order(cloud):
    assert sliced_w2(cloud, cloud.flip(0)) == 0.0


def test_a_shift_by_d_is_seen_as_d_over_root_two(cloud):
    shift = torch.tensor([0.3, -0.4], dtype=torch.float64)
    assert sliced_w2(cloud, cloud + shift) == pytest.approx(0.5 / math.sqrt(2), rel=1e-12)


def test_scaling_a_cloud_moves_every_projected_point_in_proportion(cloud):
    size = cloud.square().sum(-1).mean().sqrt().item()
    assert sliced_w2(cloud, 3 * cloud) == pytest.approx(2 * size / math.sqrt(2), rel=1e-12)


MODES = torch.tensor([[0.0, 0.0], [4.0, 0.0]], dtype=torch.float64)


def test_precision_counts_what_is_near_a_mode():
    samples = torch.tensor([[0.1, 0.0], [3.9, 0.0], [2.0, 0.0], [0.0, 1.1]], dtype=torch.float64)
    assert precision(samples, MODES, radius=1.0).item() == 0.5
    assert precision(torch.stack([samples, samples[:2].repeat(2, 1)]), MODES, radius=1.0).tolist() == [0.5, 1.0]


def test_a_mode_is_covered_when_it_has_its_share(cloud):
    samples = torch.cat([0.1 * cloud[:400], 0.1 * cloud[400:] + MODES[1]])  # a fifth at the second mode
    assert coverage(samples, MODES, torch.tensor([0.5, 0.5]), radius=1.0).item() == 2
    assert coverage(samples, MODES, torch.tensor([0.1, 0.9]), radius=1.0).item() == 1


def test_the_weights_of_the_modes_are_the_shares_nearest_to_them(cloud):
    samples = torch.cat([0.1 * cloud[:400], 0.1 * cloud[400:] + MODES[1]])
    torch.testing.assert_close(mode_weights(samples, MODES), torch.tensor([0.8, 0.2]))
