"""Tensors that are sharded over processes, as FSDP makes them (DTensors), to and from whole ones."""

from typing import Any

from torch import Tensor


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered from all processes, which must all ask; any other as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def sharded_like(tensor: Tensor, other: Tensor) -> Tensor:
    """A whole tensor sharded as another one is; as it is where the other one is whole too."""
    if not hasattr(other, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements)


def kind_of(part: Any) -> str:
    """The name of a part's class, as it was before it was sharded."""
    return next(cls.__name__ for cls in type(part).__mro__ if not cls.__name__.startswith("FSDP"))
