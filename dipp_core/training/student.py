"""A one-step generator that learns: what `align` needs beside the reference, and a whole run of it that can be resumed.

The miniature and full scale learn here, with the same code and other numbers; in one process, or in several, one a GPU,
on one machine or on many, that `accelerate launch` or torchrun started:

    student = teach(folder, new_student(world, t_star), world, settings, pace, .., group=find_group("cuda"))

All processes draw the whole batch from generators in the same state and take their part of it (`Settings.share`), and
gradients are means over processes: n processes do what one does with n times the batch, but for rounding. Networks are
whole in every process (DDP), or, where `accelerate config` says FSDP version 2, sharded over all of them with their
optimisers and averages. Curves hold means over processes. Checkpoints and exports hold whole networks either way and
are written by process 0, so a run may be resumed by another number of processes with the same whole batch. The folder
of a run must be seen by all. Evaluation is made by every process alike: it takes no longer, and nobody waits. Where one
was asked to stop, all stop after the same step; where one fails, the others cannot go on and the launcher ends them.
"""

import contextlib
import copy
import datetime
import os
import pathlib
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from dipp_core.files import InputError, first_line
from dipp_core.method.algorithm import Reward, Settings, StepRecord, align
from dipp_core.method.generator import OneStepGenerator, trainable_copy
from dipp_core.models.latent import LatentDiffusion
from dipp_core.models.lora import Adapted, in_chunks
from dipp_core.models.prompts import Prompts
from dipp_core.training.run import EMA, run, whole

Adam = Callable[..., torch.optim.Optimizer]  # (parameters, lr, betas) -> optimiser
SLOWEST = datetime.timedelta(hours=1)  # the longest that one process may let the others wait, say while it saves


# ------------------------------------------------------------------------------------------------------------- student


@dataclass
class Student:
    """A one-step generator, and the assistant that tracks its score: a network like the reference's denoiser."""

    gen: OneStepGenerator
    ta: nn.Module

    def _roles(self) -> nn.ModuleDict:
        return nn.ModuleDict({"gen": self.gen, "ta": self.ta})

    def state(self) -> dict[str, Tensor]:
        """All weights by name, to be saved."""
        return self._roles().state_dict()

    def load(self, state: dict[str, Tensor]) -> "Student":
        """Take over saved weights."""
        self._roles().load_state_dict(state)
        return self


def new_student(world: LatentDiffusion, t_star: int) -> Student:
    """Generator and assistant as Algorithm 1 starts them: both copies of the reference."""
    return Student(world.generator(t_star), trainable_copy(world.denoiser))


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How long and how fast a student learns.

    Adam with `betas` for both networks; rates are constant and fall linearly to 0 from the share `flat` of the steps
    on. ema: decay of the averaged generator, which is what is kept.
    """

    steps: int
    gen_lr: float
    ta_lr: float
    betas: tuple[float, float] = (0.0, 0.99)
    flat: float = 0.5
    ema: float = 0.99

    def rate(self, step: int) -> float:
        """The share of the highest rate at a step."""
        return min(1.0, (1 - step / self.steps) / (1 - self.flat))


# ----------------------------------------------------------------------------------------------------------- processes


class Group:
    """The processes of a run, as one of them knows them: `accelerator` is its handle, None where it is alone.

    sharded: by FSDP, version 2, instead of DDP.
    """

    def __init__(self, accelerator: Any = None, *, sharded: bool = False):
        self.accelerator, self.sharded = accelerator, sharded
        # which part of the batch is ours, see `Settings`
        self.share = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
        self.bare: dict[int, nn.Module] = {}  # of each sharded network one without weights, to be filled by `copied`

    def spread(self, network: nn.Module) -> None:
        """Shard a network over the processes, in place, where networks are sharded; before its optimiser is made."""
        if not self.sharded or id(network) in self.bare:
            return
        from accelerate.utils.fsdp_utils import fsdp2_prepare_model

        if any(isinstance(module, Adapted) for module in network.modules()):
            cure = "launch without FSDP (accelerate launch --multi_gpu)"
            raise InputError(f"FSDP shards whole networks, and adapters of a frozen base are small: {cure}")
        self.bare[id(network)] = twin = copy.deepcopy(network)
        for parameter in twin.parameters():
            parameter.data = torch.empty(0, dtype=parameter.dtype)
        # where the user named no layers that are gathered one at a time, they are those that diffusers names
        plugin = self.accelerator.state.fsdp_plugin
        named = plugin.transformer_cls_names_to_wrap
        wanted = {name for module in network.modules() for name in getattr(module, "_no_split_modules", None) or ()}
        found = {type(module).__name__ for module in network.modules()}
        plugin.transformer_cls_names_to_wrap = named or sorted(wanted & found)
        # it warns of results that are views, and would be changed in place: none is
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view", UserWarning)
        fsdp2_prepare_model(self.accelerator, network)
        # without this the outermost parameters would stay whole after a pass that no backward pass follows
        network.set_reshard_after_forward(True)  # type: ignore[operator]
        plugin.transformer_cls_names_to_wrap = named

    def joined(self, network: Any) -> Any:
        """The network as a callable whose backward pass gives the mean gradient over processes.

        Where it is frozen or asked without gradient it is called bare: a DDP network waits for its gradients.
        """
        if not self.accelerator:
            return network
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            wrapped = network if self.sharded else self.accelerator.prepare_model(network)
        self.accelerator.free_memory()  # it need not remember the network, which lives as long as this run

        def call(*given: Any) -> Tensor:
            learns = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in network.parameters())
            return (wrapped if learns else network)(*given)

        return call

    def copied(self, network: nn.Module) -> Any:
        """A whole copy of a network; of a sharded one in main memory, gathered from all processes."""
        twin = copy.deepcopy(self.bare.get(id(network), network))
        if id(network) in self.bare:
            for own, other in zip(twin.parameters(), network.parameters(), strict=True):
                own.data = whole(other.detach()).cpu()
        return twin

    @contextlib.contextmanager
    def _reaching(self) -> Iterator[None]:
        """One line where the others are gone: what ended them they say themselves."""
        try:
            yield
        except RuntimeError as error:
            if "gloo" not in str(error) and not isinstance(error, torch.distributed.DistError):
                raise
            why = first_line(error)
            raise InputError(f"the other processes can no longer be reached ({why}); launch again to go on") from None

    def backward(self, tensor: Tensor, gradient: Tensor | None = None) -> None:
        """The backward pass of all."""
        if not self.accelerator:
            return torch.autograd.backward(tensor, gradient)
        with self._reaching():
            self.accelerator.backward(tensor, gradient=gradient)

    def _means(self, values: list[Tensor]) -> list[Tensor]:
        """Means over the processes."""
        together = torch.stack([value.double() for value in values]).to(self.accelerator.device)
        with self._reaching():
            return list(self.accelerator.reduce(together, "mean"))

    def _mean(self, value: float) -> float:
        return self._means([torch.tensor(float(value))])[0].item()

    def anywhere(self, here: bool) -> bool:
        """Whether something is so in any of the processes; asked by all of them at once."""
        return self._mean(here) > 0 if self.accelerator else here

    def records(self, start: int, records: Iterable[StepRecord]) -> Iterator[StepRecord]:
        """The records of a run from a step on, with means over processes."""
        if not self.accelerator:
            yield from records
            return
        if self._mean(start) != start:
            what = f"this process found a checkpoint of step {start}, another one found none or another"
            raise InputError(f"{what}: all machines must see the same folder")
        for record in records:  # means of values, root mean squares of gradient norms
            squares = [norm.square() for norm in record.x0_grad_norms.values()]
            losses = [] if record.ta_loss is None else [record.ta_loss]
            means = iter(self._means([*record.terms.values(), *squares, *losses]))
            yield replace(
                record,
                terms={name: next(means) for name in record.terms},
                x0_grad_norms={name: next(means).sqrt() for name in record.x0_grad_norms},
                grad_norm=whole(record.grad_norm),
                ta_loss=next(means, None),
            )

    def close(self) -> None:
        """Part from the others, when all is done."""
        if self.accelerator:
            self.accelerator.end_training()


ALONE = Group()


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
        raise InputError(f"{kind} is not known here: DDP (accelerate launch --multi_gpu), or FSDP of version 2")
    return Group(accelerator, sharded=accelerator.is_fsdp2)


# ------------------------------------------------------------------------------------------------------------ learning


def described(settings: Settings) -> dict[str, Any]:
    """What tells one member of the family from another, as JSON; weights are functions, and not among it."""
    plain = "divergence guidance batch_shape z_shape ta_steps share_samples per_sample_normaliser max_grad_norm"
    found = {name: getattr(settings, name) for name in plain.split()}
    found |= {name: torch.as_tensor(getattr(settings, name)).tolist() for name in ("alpha_rew", "alpha_cfg")}
    return found | {"time_sampler": settings.time_sampler.name, "distance": settings.distance.name}


def teach(
    folder: str | pathlib.Path,
    student: Student,
    world: LatentDiffusion,
    settings: Settings,
    pace: Pace,
    *,
    prompts: Prompts,
    reward: Reward | None = None,
    seed: int,
    save_steps: int = 1000,
    evaluate_steps: int = 0,
    evaluate: Callable[[int, Student], dict] | None = None,
    progress: bool | None = None,
    group: Group = ALONE,
    micro: int = 0,
    adam: Adam = torch.optim.Adam,
    facts: dict | None = None,
    say: Callable[[str], None] = print,
) -> Student:
    """Let a student learn, in place, and return it with the averaged generator; resumed if the folder has begun it.

    reward(x0, cond): see `LatentDiffusion.reward`. save_steps, evaluate_steps, progress: see `run`.
    evaluate(step, student): with the averaged generator. micro: see `in_chunks`. facts: JSON that tells this run from
    others.
    """
    parts: dict[str, Any] = {}

    def learner(role: str, network: nn.Module, lr: float) -> torch.optim.Optimizer:
        """Adam and its rate for one network; all three are parts of the run."""
        group.spread(network)
        optimizer = adam((weight for weight in network.parameters() if weight.requires_grad), lr, pace.betas)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, pace.rate)
        parts.update({role: network, f"{role}_adam": optimizer, f"{role}_rate": schedule})
        return optimizer

    gen_adam = learner("gen", student.gen, pace.gen_lr)
    ta_adam = learner("ta", student.ta, pace.ta_lr) if settings.ta_steps else None
    ema, draws = EMA(student.gen, pace.ema), torch.Generator().manual_seed(seed)
    parts |= {"ema": ema, "draws": draws}
    gen = group.joined(in_chunks(student.gen, micro))
    ta = world.score(group.joined(in_chunks(student.ta, micro))) if ta_adam else None
    ref: Any = in_chunks(world.denoiser, micro)

    def records(start: int) -> Iterable[StepRecord]:
        for schedule in (part for name, part in parts.items() if name.endswith("_rate")):
            for rates, highest in zip(schedule.optimizer.param_groups, schedule.base_lrs, strict=True):
                rates["lr"] = highest * pace.rate(
                    start
                )  # as the checkpoint has it, unless more steps are asked for now
        steps = align(
            gen=gen,
            ta=ta,
            ref=world.score(ref),
            reward=in_chunks(reward, micro),
            schedule=world.schedule,
            settings=replace(settings, share=group.share),
            gen_optimizer=gen_adam,
            ta_optimizer=ta_adam,
            draw_cond=prompts.draw,
            null_cond=prompts.null_cond,
            generator=draws,
            steps=pace.steps,
            start_step=start,
            backward=group.backward,
        )
        return group.records(start, steps)

    def of_average(step: int) -> dict:
        assert evaluate is not None
        with ema.averaged():
            return evaluate(step, student)

    run(
        folder,
        records,
        parts,
        {"pace": asdict(pace) | {"steps": "any"}, "seed": seed, "settings": described(settings)} | (facts or {}),
        steps=pace.steps,
        save_steps=save_steps,
        after_step=[*(part.step for name, part in parts.items() if name.endswith("_rate")), ema.update],
        evaluate=of_average if evaluate else None,
        evaluate_steps=evaluate_steps,
        progress=progress,
        writes=group.share[0] == 0,
        anywhere=group.anywhere,
        say=say,
    )
    with ema.averaged():
        return Student(group.copied(student.gen), student.ta)
