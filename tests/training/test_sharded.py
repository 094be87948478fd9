"""Tensors sharded over processes, here over one: they come back as they were."""

import pytest
import torch
from torch import distributed
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

from dipp_core.training.sharded import kind_of, sharded_like, whole


@pytest.fixture
def mesh():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def test_a_sharded_tensor_is_gathered_and_sharded_again(mesh):
    saved, live = torch.randn(3, 2), distribute_tensor(torch.zeros(3, 2), mesh, [Shard(0)])
    again = sharded_like(saved, live)
    assert type(again) is type(live)
    assert again.placements == live.placements
    assert torch.equal(whole(again), saved)


def test_a_whole_tensor_stays_as_it_is():
    tensor = torch.randn(3)
    assert whole(tensor) is tensor
    assert sharded_like(tensor, torch.zeros(3)) is tensor
    assert sharded_like(tensor, None) is tensor


def test_a_sharded_class_goes_by_its_own_name():
    class FSDPModule:
        pass

    class FSDPLinear(FSDPModule, torch.nn.Linear):
        pass

    assert kind_of(torch.nn.Linear(1, 1)) == kind_of(FSDPLinear(1, 1)) == "Linear"
