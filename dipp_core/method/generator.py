"""The one-step generator: a diffusion network asked once, at one fixed time, for its x0 prediction."""

import copy

import torch
from torch import Tensor, nn

from dipp_core.method.schedule import NoiseSchedule, convert_prediction
from dipp_core.method.scores import Cond


class OneStepGenerator(nn.Module):
    """g(z, c) = (z - sigma(t*) eps(z, t*, c)) / alpha(t*): the x0 prediction at t*, with z ~ N(0, I) fed as x_t*.

    z is fed as it is, not scaled to the marginal of x_t*; this is the convention of a latent consistency model's first
    step, so the trained network samples as one under an ordinary pipeline. z (*batch, sample) -> x0, same shape.

    network: `(xt, t, cond) -> prediction`, predicting eps, x0 or v as `prediction_type` says.
    batch_ndim: leading axes of z that are batch: 1, or 2 for (runs, B).
    """

    def __init__(
        self, network: nn.Module, schedule: NoiseSchedule, *, t_star: float, prediction_type: str, batch_ndim: int = 1
    ):
        if not 0 < float(t_star) <= 1:
            raise ValueError(f"t_star is a time in (0, 1], not {float(t_star)}; see `NoiseSchedule.time_of_index`")
        super().__init__()
        self.network, self.schedule = network, schedule
        self.t_star, self.prediction_type, self.batch_ndim = float(t_star), prediction_type, batch_ndim

    def forward(self, z: Tensor, cond: Cond = None) -> Tensor:
        t = torch.full(z.shape[: self.batch_ndim], self.t_star, dtype=torch.float64, device=z.device)
        value = self.network(z, t, cond)
        return convert_prediction(
            value, xt=z, t=t, schedule=self.schedule, source=self.prediction_type, target="x0"
        ).to(z.dtype)


def trainable_copy(network: nn.Module) -> nn.Module:
    """A deep copy that learns: how generator and assistant start from the reference diffusion.

    Algorithm 1, line 1.
    """
    return copy.deepcopy(network).requires_grad_(True)
