"""Rewards at their true size, random weights: a minute and gigabytes each, so only with DIPP_FULL_SIZE=1.

On two cores, float32, one picture, with checkpointing: ImageReward 8 s and 3.9 GiB, HPSv2.1 17 s and 6.0 GiB; the
memory includes the checkpoint, mapped from disk.
"""

import os
import resource
import time

import pytest
import torch

from dipp_core.rewards import public
from dipp_core.training import full_size

pytestmark = pytest.mark.skipif("DIPP_FULL_SIZE" not in os.environ, reason="minutes, 6 GiB: set DIPP_FULL_SIZE=1")


def write_image_reward(folder):
    network = full_size.write_image_reward(folder)
    torch.save(network.state_dict(), folder / "ImageReward.pt")
    return folder


def write_hps(folder):
    network = public.hps_network(public.PUBLISHED).half()
    torch.save({"state_dict": network.state_dict()}, folder / "HPS_v2.1_compressed.pt")
    return folder


@pytest.mark.parametrize(
    ("name", "write", "weights"), [("image_reward", write_image_reward, 446e6), ("hpsv2.1", write_hps, 986e6)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_at_full_size(name, write, weights, dtype, tmp_path, picture, tensor):
    torch.manual_seed(0)
    reward = public.load(name, write(tmp_path), dtype=dtype, checkpointing=True)
    for path in tmp_path.glob("*.pt"):  # gigabytes
        path.unlink()
    assert sum(weight.numel() for weight in reward.parameters()) == pytest.approx(weights, rel=0.01)
    one = picture(224, 224)
    x, begin = tensor(one).requires_grad_(), time.monotonic()
    value = reward(x, ["fox snow boat"])
    (gradient,) = torch.autograd.grad(value.sum(), x)
    took, peak = time.monotonic() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{name} {dtype}: {value.item():.5f}, gradient {gradient.norm():.2e}, {took:.0f} s, peak {peak:.1f} GiB")
    assert gradient.isfinite().all()
    assert gradient.norm() > 0
    if name == "image_reward" and dtype is torch.float32:
        assert reward.network.score("fox snow boat", one) == pytest.approx(value.item(), abs=1e-4)
        assert not reward.network.training
