"""The averaged generator: the average it should be, in shapes that a stack keeps."""

import pytest
import torch
from torch import nn

from dipp_core.training.ema import EMA


def moved(ema, net, values):
    for value in values:
        nn.init.constant_(net.weight, value)
        ema.update()
    return ema.average["weight"]


def test_it_is_the_average_of_its_definition():
    net = nn.Linear(1, 1, bias=False).requires_grad_(True)
    nn.init.constant_(net.weight, 1.0)
    ema = EMA(net, 0.9, warmup=False)
    torch.testing.assert_close(moved(ema, net, [2.0, 3.0]), torch.tensor([[0.9 * (0.9 * 1 + 0.1 * 2) + 0.1 * 3]]))


def test_the_warm_up_forgets_the_start():
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, 1.0)
    first = float(moved(EMA(net, 0.999), net, [2.0]))
    assert first == pytest.approx(2 / 11 * 1 + 9 / 11 * 2)
    assert float(moved(EMA(net, 0.999), net, [5.0] * 100)) == pytest.approx(5.0, abs=1e-6)


def test_frozen_parameters_are_left_out_and_half_precision_is_averaged_in_float32():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).to(torch.bfloat16)
    net[0].requires_grad_(False)
    ema = EMA(net, 0.5)
    ema.update()
    assert set(ema.average) == {"1.weight", "1.bias"}
    assert {value.dtype for value in ema.average.values()} == {torch.float32}


def test_within_averaged_the_module_is_the_average_and_afterwards_itself():
    net = nn.Linear(3, 2)
    ema = EMA(net, 0.5, warmup=False)
    with torch.no_grad():
        net.weight.add_(1.0)
    ema.update()
    own, bias = net.weight.detach().clone(), net.bias.detach().clone()
    with ema.averaged() as averaged:
        assert averaged is net
        torch.testing.assert_close(net.weight, own - 0.5)
    assert torch.equal(net.weight, own)
    assert torch.equal(net.bias, bias)
    assert net.weight.requires_grad


def test_its_state_comes_back():
    net = nn.Linear(3, 2)
    ema, other = EMA(net, 0.9), EMA(nn.Linear(3, 2), 0.9)
    moved(ema, net, [1.0, 2.0])
    other.load_state_dict(ema.state_dict())
    assert other.updates == 2
    assert all(torch.equal(ema.average[name], other.average[name]) for name in ema.average)


@pytest.mark.parametrize("decay", [1.0, -0.1])
def test_a_decay_outside_its_range_is_refused(decay):
    with pytest.raises(ValueError, match="decay"):
        EMA(nn.Linear(1, 1), decay)


def test_a_failure_within_averaged_gives_the_own_parameters_back():
    net = nn.Linear(3, 2)
    ema, own = EMA(net, 0.5), net.weight.detach().clone()
    ema.average["weight"].zero_()
    with pytest.raises(ZeroDivisionError), ema.averaged():
        1 / 0  # noqa: B018
    assert torch.equal(net.weight, own)
