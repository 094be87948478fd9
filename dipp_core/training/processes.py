"""Processes that compute one run together, one a GPU, on one machine or on many, by Hugging Face Accelerate.

    group = find_group("cuda")                     # alone, unless `accelerate launch` or torchrun started several
    teach(folder, student, world, settings, pace, .., group=group)

All draw the whole batch from generators in the same state and take their part of it (`Settings.share`), and gradients
are means over processes: n processes do what one does with n times the batch, but for rounding. Networks are whole in
every process (DDP), or, where `accelerate config` says FSDP version 2, sharded over all of them with their optimisers
and averages. Curves hold means over processes. Checkpoints and exports hold whole networks either way and are written
by process 0, so a run may be resumed by another number of processes with the same whole batch. The folder of a run
must be seen by all. Evaluation is made by every process alike: it takes no longer, and nobody waits.

What ends one process ends all, after the same step: before every backward pass and after every step they tell each
other whether one was asked to stop or has failed.
"""

import contextlib
import copy
import datetime
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dipp_core.method.algorithm import StepRecord
from dipp_core.models.lora import Adapted
from dipp_core.training.sharded import whole

PATIENCE = 60.0  # seconds for which a process that failed waits to be heard by the others
SLOWEST = datetime.timedelta(hours=1)  # the longest that one process may let the others wait, say while it saves


class ProcessError(RuntimeError):
    """One line that says why processes cannot go on together, and what to do."""


class Group:
    """The processes of a run, as one of them knows them; this one is alone."""

    share: tuple[int, int] = (0, 1)  # see `Settings`

    def spread(self, network: nn.Module) -> None:
        """Shard a network over the processes, in place, where networks are sharded; before its optimiser is made."""

    def joined(self, network: nn.Module) -> Callable[..., Tensor]:
        """The network as a callable whose backward pass gives the mean gradient over processes."""
        return network

    def copied(self, network: nn.Module) -> nn.Module:
        """A whole copy of a network."""
        return copy.deepcopy(network)

    def backward(self, tensor: Tensor, gradient: Tensor | None = None) -> None:
        """The backward pass of all."""
        torch.autograd.backward(tensor, gradient)

    def records(self, start: int, records: Iterable[StepRecord]) -> Iterable[StepRecord]:
        """The records of a run from a step on, with means over processes."""
        return records

    def anywhere(self, here: bool) -> bool:
        """Whether something is so in any of the processes; asked by all of them at once."""
        return here

    def together(self) -> contextlib.AbstractContextManager:
        """Within the context a run is computed; who leaves it by an error ends it for the others."""
        return contextlib.nullcontext()

    def close(self) -> None:
        """Part from the others, when all is done."""


ALONE = Group()


class Processes(Group):
    """Several processes, of which `accelerator` is this one's handle; sharded: by FSDP, version 2."""

    def __init__(self, accelerator: Any, *, sharded: bool = False):
        self.accelerator, self.sharded = accelerator, sharded
        self.share = (accelerator.process_index, accelerator.num_processes)
        self.exchanging_gradients, self.bare = False, {}

    # -------------------------------------------------------------------------------------------------- networks

    def spread(self, network: nn.Module) -> None:
        from accelerate.utils.fsdp_utils import fsdp2_prepare_model

        if not self.sharded:
            return
        if any(isinstance(module, Adapted) for module in network.modules()):
            cure = "launch without FSDP (accelerate launch --multi_gpu)"
            raise ProcessError(f"FSDP shards whole networks, and adapters of a frozen base are small: {cure}")
        if id(network) not in self.bare:
            self.bare[id(network)] = twin = copy.deepcopy(network)
            for parameter in twin.parameters():
                parameter.data = torch.empty(0, dtype=parameter.dtype)
            # it warns of results that are views, and would be changed in place: none is
            warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view", UserWarning)
            with self._units(network):
                sharded = fsdp2_prepare_model(self.accelerator, network)
            # without this the outermost parameters would stay whole after a pass that no backward pass follows
            sharded.set_reshard_after_forward(True)

    @contextlib.contextmanager
    def _units(self, network: nn.Module) -> Iterator[None]:
        """Where the user named no layers that are gathered one at a time, they are those that diffusers names."""
        plugin = self.accelerator.state.fsdp_plugin
        named = plugin.transformer_cls_names_to_wrap
        wanted = {name for module in network.modules() for name in getattr(module, "_no_split_modules", None) or ()}
        found = {type(module).__name__ for module in network.modules()}
        plugin.transformer_cls_names_to_wrap = named or sorted(wanted & found)
        try:
            yield
        finally:
            plugin.transformer_cls_names_to_wrap = named

    def joined(self, network: nn.Module) -> Callable[..., Tensor]:
        """Wrapped for the passes in which the network learns. Where it is frozen or asked without gradient it is called

        bare: a DDP network that is called waits for gradients of its parameters.
        """
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            wrapped = network if self.sharded else self.accelerator.prepare_model(network)

        def call(*given: Any) -> Tensor:
            learns = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in network.parameters())
            return (wrapped if learns else network)(*given)

        return call

    def copied(self, network: nn.Module) -> nn.Module:
        """A whole copy of a network; of a sharded one in main memory, gathered from all processes."""
        if id(network) not in self.bare:
            return copy.deepcopy(network)
        twin = copy.deepcopy(self.bare[id(network)])
        for own, other in zip(twin.parameters(), network.parameters(), strict=True):
            own.data = whole(other.detach()).cpu()
        return twin

    # ----------------------------------------------------------------------------------- what is told to each other

    def _exchange(self, *, asked: bool = False, failed: bool = False, start: int = 0) -> tuple[bool, bool, float]:
        """(whether any was asked to stop, whether any failed, mean start) over the processes."""
        told = torch.tensor([float(asked), float(failed), float(start)], device=self.accelerator.device)
        try:
            asked_all, failed_all, start_all = self.accelerator.reduce(told.double(), "mean").tolist()
        except RuntimeError as error:
            why = str(error).strip().splitlines()[0][:120]
            raise ProcessError(f"the other processes can no longer be reached ({why}); launch again to go on") from None
        return asked_all > 0, failed_all > 0, start_all

    def _listen(self, **own: Any) -> tuple[bool, bool, float]:
        """Exchange, and stop where another process has failed."""
        heard = self._exchange(**own)
        if heard[1]:
            raise ProcessError("another process of this run failed, and says why; all have stopped")
        return heard

    def anywhere(self, here: bool) -> bool:
        return self._listen(asked=here)[0]

    def backward(self, tensor: Tensor, gradient: Tensor | None = None) -> None:
        self._listen()
        self.exchanging_gradients = True
        self.accelerator.backward(tensor, gradient=gradient)
        self.exchanging_gradients = False

    def records(self, start: int, records: Iterable[StepRecord]) -> Iterator[StepRecord]:
        if self._listen(start=start)[2] != start:
            what = f"this process found a checkpoint of step {start}, another one found none or another"
            raise ProcessError(f"{what}: all machines must see the same folder")
        for record in records:
            yield self._mean(record)

    def _mean(self, record: StepRecord) -> StepRecord:
        """The record of the whole batch: means of values, root mean squares of gradient norms, in one exchange."""
        own = [*record.terms.values(), *(norm.square() for norm in record.x0_grad_norms.values())]
        own += [] if record.ta_loss is None else [record.ta_loss]
        means = iter(self.accelerator.reduce(torch.stack([value.double() for value in own]), "mean")) if own else None
        terms = {name: next(means) for name in record.terms}
        norms = {name: next(means).sqrt() for name in record.x0_grad_norms}
        ta_loss = None if record.ta_loss is None else next(means)
        return StepRecord(record.step, terms, norms, whole(record.grad_norm), ta_loss, record.samples)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        try:
            yield
            self._listen()  # the others may fail yet, in their last words
        except ProcessError:
            raise
        except BaseException as error:
            if type(error) is not KeyboardInterrupt and not self.exchanging_gradients:
                self._announce()
            raise
        finally:
            self.accelerator.free_memory()

    def _announce(self) -> None:
        """Tell the others that this process failed. They may be waiting for something else: then do not wait long."""

        def tell() -> None:
            with contextlib.suppress(Exception):
                self._exchange(failed=True)

        telling = threading.Thread(target=tell, daemon=True)
        telling.start()
        telling.join(PATIENCE)

    def close(self) -> None:
        self.accelerator.end_training()


def find_group(device: str) -> Group:
    """The processes that `accelerate launch` or torchrun started, this one among them; alone where nobody did."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    from accelerate import Accelerator, DistributedDataParallelKwargs, DistributedType, InitProcessGroupKwargs

    handlers = [DistributedDataParallelKwargs(broadcast_buffers=False), InitProcessGroupKwargs(timeout=SLOWEST)]
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision="no", kwargs_handlers=handlers)
    known = (DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)
    if accelerator.distributed_type not in known and not accelerator.is_fsdp2:
        kind = accelerator.distributed_type.value
        raise ProcessError(f"{kind} is not known here: DDP (accelerate launch --multi_gpu), or FSDP of version 2")
    return Processes(accelerator, sharded=accelerator.is_fsdp2)
