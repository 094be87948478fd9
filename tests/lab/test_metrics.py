"""Sliced Wasserstein distance against cases with a known answer."""

import math

import pytest
import torch

from dipp_core.lab.metrics import sliced_w2


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
