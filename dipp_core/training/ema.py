"""The averaged generator: a moving average of the parameters along a run, evaluated and exported in their place."""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from dipp_core.training.sharded import sharded_like


class EMA:
    """Exponential moving average of a module's trainable parameters: m <- d m + (1 - d) theta, at every `update`.

    d = decay, with warm-up min(decay, (1 + n) / (10 + n)) at update n = 1, 2, .. so that the start is soon forgotten.
    Averages have the shapes of the parameters and at least float32.
    """

    def __init__(self, module: nn.Module, decay: float, *, warmup: bool = True):
        if not 0 <= decay < 1:
            raise ValueError(f"the decay of an EMA lies in [0, 1), not at {decay}")
        self.module, self.decay, self.warmup, self.updates = module, decay, warmup, 0
        self.average = {
            name: parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32), copy=True)
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }

    @torch.no_grad()
    def update(self) -> None:
        self.updates += 1
        ramp = (1 + self.updates) / (10 + self.updates) if self.warmup else self.decay
        for name, average in self.average.items():
            average.lerp_(self.module.get_parameter(name).to(average), 1 - min(self.decay, ramp))

    @contextlib.contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """Within the context the module has the averaged parameters: to evaluate or to export it."""
        own = {name: self.module.get_parameter(name).detach().clone() for name in self.average}
        try:
            self._put(self.average)
            yield self.module
        finally:
            self._put(own)

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self.module.get_parameter(name).copy_(value)

    def state_dict(self) -> dict:
        return {"updates": self.updates, "average": self.average}

    def load_state_dict(self, state: dict) -> None:
        self.updates = state["updates"]
        for name, average in self.average.items():
            average.copy_(sharded_like(state["average"][name], average))
