"""States as tensors and JSON, and back: nothing changes on the way."""

import json
import random

import numpy as np
import pytest
import torch
from torch import nn

from dipp_core.training import parts


def there_and_back(part):
    """The packed state through JSON, as a checkpoint stores it."""
    state, tensors = parts.state_of(part)
    return json.loads(json.dumps(state)), {name: tensor.clone() for name, tensor in tensors.items()}


class Holder:
    """A part with any state."""

    def __init__(self, state):
        self.state = state

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state


def test_every_kind_of_value_keeps_its_type():
    state = {"a": [1, 2.5, None, True, "x"], 3: (0.1, (float("inf"), [])), "np": np.float32(0.5), "empty": {}}
    copy = Holder(None)
    parts.load_state(copy, *there_and_back(Holder(state)))
    assert copy.state == state
    assert [type(key) for key in copy.state] == [str, int, str, str]
    assert isinstance(copy.state[3], tuple)


def test_tensors_of_nested_keys_never_share_a_name():
    state = {"a.b": torch.tensor(1), "a": {"b": torch.tensor(2)}, "x": torch.zeros(2, 0, dtype=torch.bfloat16)}
    copy = Holder(None)
    parts.load_state(copy, *there_and_back(Holder(state)))
    assert (copy.state["a.b"], copy.state["a"]["b"]) == (1, 2)
    assert copy.state["x"].dtype == torch.bfloat16


def test_what_is_no_state_is_one_line():
    with pytest.raises(parts.CheckpointError, match=r"in a Holder, 'a\.b' is a set") as caught:
        parts.state_of(Holder({"a": {"b": {1}}}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["Adam", "AdamW", "SGD", "Adafactor", "RMSprop"])
def test_an_optimiser_goes_on_as_before(kind):
    def steps(net, optimizer, seeds):
        for seed in seeds:
            optimizer.zero_grad()
            net(torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))).square().sum().backward()
            optimizer.step()

    make, more = getattr(torch.optim, kind), {"momentum": 0.9} if kind == "SGD" else {}
    net = nn.Linear(3, 2)
    optimizer = make([{"params": [net.weight], "lr": 0.01}, {"params": [net.bias], "lr": 1 / 3}], **more)
    steps(net, optimizer, range(3))
    copy = nn.Linear(3, 2)
    other = make([{"params": [copy.weight]}, {"params": [copy.bias]}], lr=9.0, **more)
    for part, source in ((copy, net), (other, optimizer)):
        assert parts.difference(part, parts.form(source, parts.state_of(source)[1])) is None
        parts.load_state(part, *there_and_back(source))
    steps(net, optimizer, range(3, 6))
    steps(copy, other, range(3, 6))
    assert torch.equal(net.weight, copy.weight)
    assert torch.equal(net.bias, copy.bias)


@pytest.mark.parametrize("name", ["CosineAnnealingLR", "OneCycleLR", "SequentialLR"])
def test_a_schedule_of_learning_rates_goes_on_as_before(name):
    def make():
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
        lr = torch.optim.lr_scheduler
        if name == "CosineAnnealingLR":
            return optimizer, lr.CosineAnnealingLR(optimizer, 9)
        if name == "OneCycleLR":
            return optimizer, lr.OneCycleLR(optimizer, 0.3, 20)
        parts_of = [lr.LinearLR(optimizer, 0.1, total_iters=3), lr.ExponentialLR(optimizer, 0.9)]
        return optimizer, lr.SequentialLR(optimizer, parts_of, milestones=[3])

    def rates(optimizer, schedule, count):
        found = []
        for _ in range(count):
            optimizer.step()
            schedule.step()
            found.append(optimizer.param_groups[0]["lr"])
        return found

    pair = make()
    rates(*pair, 4)
    copy = make()
    for part, source in zip(copy, pair, strict=True):
        parts.load_state(part, *there_and_back(source))
    assert rates(*copy, 5) == rates(*pair, 5)


def test_random_states_go_on_as_before():
    own, everywhere = torch.Generator().manual_seed(3), parts.GlobalRandom()
    saved = there_and_back(own), there_and_back(everywhere)

    def draws():
        return random.gauss(0, 1), np.random.randn(), float(torch.randn(())), float(torch.randn((), generator=own))  # noqa: NPY002

    first = draws()
    assert draws() != first
    for part, state in zip((own, everywhere), saved, strict=True):
        parts.load_state(part, *state)
    assert draws() == first


def test_a_difference_is_named():
    def against(part, other):
        return parts.difference(part, parts.form(other, parts.state_of(other)[1]))

    net = nn.Linear(3, 2)
    assert against(net, nn.Linear(3, 2)) is None
    assert against(net, nn.Linear(4, 2)) == "has weight: float32 (2, 4) there, float32 (2, 3) here"
    assert against(net, nn.Linear(3, 2).double()) == "has weight: float64 (2, 3) there, float32 (2, 3) here"
    assert against(net, nn.Linear(3, 2, bias=False)) == "has bias: nothing there, float32 (2,) here"
    assert against(net, torch.Generator()) == "is a Generator there, a Linear here"
    one, two = (torch.optim.Adam(net.parameters()), torch.optim.Adam([net.weight]))
    assert against(one, two) == "has parameter 1 of group 0: nothing there, float32 (2,) here"
