"""What a long run consists of, as tensors and JSON and back again, exactly.

*Parts* are modules, optimisers, learning-rate schedules, an EMA, anything else with `state_dict` and
`load_state_dict`, and `torch.Generator`s, each under a name. Modules that Accelerate or DistributedDataParallel wrapped
are unwrapped by the caller. What is sharded over processes becomes whole, and is sharded again where it is loaded.
"""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dipp_core.training.sharded import kind_of, sharded_like, whole

Parts = Mapping[str, Any]


class CheckpointError(RuntimeError):
    """One line that says what is wrong with a checkpoint and what to do."""


class GlobalRandom:
    """The random states that belong to the process: Python, numpy, torch on the CPU and on every GPU in use."""

    def state_dict(self) -> dict:
        kind, keys, *rest = np.random.get_state()  # noqa: NPY002, libraries draw from it
        numpy = [str(kind), torch.from_numpy(keys.astype(np.int64)), *rest]
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        return {"python": random.getstate(), "numpy": numpy, "torch": torch.get_rng_state(), "cuda": cuda}

    def load_state_dict(self, state: dict) -> None:
        kind, keys, *rest = state["numpy"]
        random.setstate(state["python"])
        np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
        torch.set_rng_state(state["torch"])
        for device, one in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(one, device)


def pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """A state as JSON; its tensors go into `tensors`, under names made of the keys that lead to them."""
    if isinstance(value, Tensor):
        while name in tensors:
            name += "_"
        tensors[name] = whole(value.detach())
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"dict": [[key, pack(inner, f"{name}.{key}".strip("."), tensors)] for key, inner in value.items()]}
    if isinstance(value, (list, tuple)):
        inner = [pack(item, f"{name}.{number}".strip("."), tensors) for number, item in enumerate(value)]
        return {"tuple": inner} if isinstance(value, tuple) else inner
    value = value.item() if isinstance(value, np.generic) else value
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"{name!r} is a {type(value).__name__}")


def unpack(packed: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `pack`."""
    if isinstance(packed, list):
        return [unpack(item, tensors) for item in packed]
    if not isinstance(packed, dict):
        return packed
    ((kind, content),) = packed.items()
    if kind == "dict":
        return {key: unpack(inner, tensors) for key, inner in content}
    return tensors[content] if kind == "tensor" else tuple(unpack(content, tensors))


def state_of(part: Any) -> tuple[Any, dict[str, Tensor]]:
    """The state of a part as JSON, and its tensors by name."""
    tensors = {}
    state = part.get_state() if isinstance(part, torch.Generator) else part.state_dict()
    try:
        return pack(state, "state" if isinstance(state, Tensor) else "", tensors), tensors
    except TypeError as error:
        kind = type(part).__name__
        raise CheckpointError(f"in a {kind}, {error}: a checkpoint holds tensors, numbers and text only") from None


def load_state(part: Any, packed: Any, tensors: Mapping[str, Tensor]) -> None:
    """Put a state back into a part."""
    state = unpack(packed, tensors)
    if isinstance(part, torch.Generator):
        part.set_state(state)
    elif isinstance(part, torch.nn.Module):
        live = part.state_dict()  # knows the versions of its layers, which a plain dict does not
        live.update({name: sharded_like(value, live.get(name)) for name, value in state.items()})
        part.load_state_dict(live)
    elif isinstance(part, torch.optim.Optimizer):
        weights = [weight for group in part.param_groups for weight in group["params"]]
        for number, own in state["state"].items():
            shape = weights[number].shape
            same = {key: value for key, value in own.items() if getattr(value, "shape", None) == shape}
            own.update({key: sharded_like(value, weights[number]) for key, value in same.items()})
        part.load_state_dict(state)
    else:
        part.load_state_dict(state)


def form(part: Any, tensors: Mapping[str, Tensor]) -> dict:
    """What a state must fit: the kind of the part, and the forms of its tensors, as {'bias': 'float32 (4,)'}.

    An optimiser is known by its parameters, group by group: before its first step it has no tensors.
    """
    if isinstance(part, GlobalRandom):
        return {"kind": "GlobalRandom", "tensors": {}}
    if isinstance(part, torch.optim.Optimizer):
        groups = enumerate(group["params"] for group in part.param_groups)
        tensors = {f"parameter {i} of group {g}": value for g, group in groups for i, value in enumerate(group)}
    forms = {name: f"{str(value.dtype)[6:]} {tuple(value.shape)}" for name, value in tensors.items()}
    return {"kind": kind_of(part), "tensors": forms}


def difference(part: Any, saved: dict) -> str | None:
    """The first thing in which a part is not of a saved form, in words; None where it fits."""
    here = form(part, state_of(part)[1])
    if saved["kind"] != here["kind"]:
        return f"is a {saved['kind']} there, a {here['kind']} here"
    theirs, ours = saved["tensors"], here["tensors"]
    for name in [*ours, *theirs]:
        if ours.get(name) != theirs.get(name):
            return f"has {name}: {theirs.get(name, 'nothing')} there, {ours.get(name, 'nothing')} here"
    return None
