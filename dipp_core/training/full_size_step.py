"""What a step of Algorithm 1 takes at true size: seconds, memory, whether every gradient is finite; a process each.

    python -m dipp_core.training.full_size_step '{"reference": "stable-diffusion-v1-5/stable-diffusion-v1-5"}'

takes a `full_size.Case` and prints one line of JSON. Everything but the calls to CUDA is the same on a CPU.
"""

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from dipp_core.method import algorithm
from dipp_core.method.staged import Backward, StagedGradient, Term, run_loss
from dipp_core.training import bench, full_scale
from dipp_core.training.full_size import GIB, Case, new_roles


def joint_backward(x0: Tensor, terms: Mapping[str, Term], backward: Backward) -> StagedGradient:
    """What `staged_backward` does, the other way: the graphs of all terms are alive until one backward pass."""
    values = {name: term.value(x0) for name, term in terms.items()}
    backward(sum(run_loss(terms[name].scale * value) for name, value in values.items()), None)
    return StagedGradient({name: value.detach().mean(-1) for name, value in values.items()}, {}, torch.zeros(()))


def look_at_gradients(name: str, optimizer: torch.optim.Optimizer, seen: dict[str, dict[str, int]]) -> None:
    """Before the first update count the tensors that learn, and those whose gradient is finite, and is not zero.

    Looking costs time, so that later steps, which are timed where there is a warm-up, go without.
    """

    def look(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if name in seen:
            return
        learning = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        grads = [parameter.grad for parameter in learning if parameter.grad is not None]
        finite, moves = (sum(bool(f(grad)) for grad in grads) for f in (lambda g: g.isfinite().all(), torch.any))
        seen[name] = {"tensors": len(learning), "finite": finite, "not_zero": moves}

    optimizer.register_step_pre_hook(look)


def new_step(case: Case, roles: bench.Roles, seen: dict[str, dict[str, int]]) -> Callable[[], Any]:
    """A step of `align`, with Adam's state in place before the first; the learning rate is 0, all steps are alike."""
    adam, optimizers = full_scale.adam(eight_bit=case.turned.eight_bit_adam, device=case.device), {}
    for name, learning in (("gen", roles.gen), ("ta", roles.ta)):
        optimizers[name] = adam(learning.parameters(), lr=0.0, betas=(0.0, 0.99))
        for parameter in learning.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizers[name].step()
        optimizers[name].zero_grad(set_to_none=True)
        look_at_gradients(name, optimizers[name], seen)
    steps = algorithm.align(
        gen=roles.gen,
        ta=roles.world.score(roles.ta),
        ref=roles.world.score(),
        reward=roles.reward() if roles.judge else None,
        schedule=roles.world.schedule,
        settings=full_scale.settings_of(case.run(), case.turned, roles.world),
        gen_optimizer=optimizers["gen"],
        ta_optimizer=optimizers["ta"],
        draw_cond=roles.prompts.draw,
        null_cond=roles.prompts.null_cond,
        generator=torch.Generator().manual_seed(0),
        steps=10**9,
    )
    return lambda: next(steps)


def peak(device: str) -> dict[str, float]:
    """In GiB: of a GPU "peak", allocated since `measure` reset it, and "reserved"; else "peak" of the process."""
    if device != "cpu":
        names = {"peak": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
        return {name: size / GIB for name, size in names.items()}
    unit = GIB if sys.platform == "darwin" else 2**20
    return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit}


def timed(function: Callable[[], Any], device: str) -> float:
    """Seconds, with all that was asked of a GPU done."""

    def whole() -> None:
        function()
        if device != "cpu":
            torch.cuda.synchronize()

    if device != "cpu":
        torch.cuda.synchronize()
    return bench.seconds(whole)


def over_passes(case: Case, roles: bench.Roles, step: Callable[[], Any]) -> dict[str, Any]:
    """Time of a step over the sum of its networks' passes, made with the same switches, by turns with it.

    The passes keep more beside them than a step does, so they may run out of memory where it does not.
    """
    needed = [one for one in bench.NEEDED[case.method] if one.role != "judge" or roles.judge]
    try:
        work = {bench.STEP: step} | {one: bench.one_pass(roles, one, case.turned.batch) for one in needed}
        turns = [{what: timed(f, case.device) for what, f in work.items()} for _ in range(1 + case.rounds)]
    except torch.cuda.OutOfMemoryError:
        return {"passes_failed": "out of memory while raw passes were timed"}
    return {"over_passes": bench.step_over_passes(turns[1:])}


def measure(case: Case) -> dict[str, Any]:
    """Seconds a step (median), peak memory over the steps, gradients seen, and the step over its raw passes."""
    if case.threads:
        torch.set_num_threads(case.threads)
    roles, seen = new_roles(case), {}
    averaged = [parameter.detach().clone() for parameter in roles.gen.parameters()]  # as a long run keeps it
    step = new_step(case, roles, seen)
    with mock.patch.object(algorithm, "staged_backward", joint_backward if case.joint else algorithm.staged_backward):
        for _ in range(case.warm_up):
            step()
        if case.device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        begin = time.process_time()
        seconds = statistics.median(timed(step, case.device) for _ in range(case.rounds))
        spent = (time.process_time() - begin) / case.rounds
        found = {"seconds": seconds, "cpu_seconds": spent, "memory": peak(case.device), "gradients": seen}
        found |= {"batch": case.turned.batch, "threads": torch.get_num_threads(), "averaged": len(averaged)}
        return found | (over_passes(case, roles, step) if case.passes else {})


def measured_or_why(case: Case) -> dict[str, Any]:
    """`measure`, or {"failed": why} where memory, or what a switch needs, is not there."""
    try:
        return measure(case)
    except torch.cuda.OutOfMemoryError:
        return {"failed": "out of memory"}
    except full_scale.FullScaleError as error:
        return {"failed": str(error)}


def main() -> None:
    print(json.dumps(measured_or_why(Case(**json.loads(sys.argv[1])))), flush=True)


if __name__ == "__main__":
    main()
