"""What a training step costs, as a ratio to the network passes it cannot do without.

    python -m dipp_core.lab.bench

Step and passes are timed alternately in one run, so that a busy machine disturbs both alike; only the ratio means
something. The network is large enough that its passes, not Python, dominate.
"""

import os
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from dipp_core.lab import config
from dipp_core.method import algorithm, schedule, scores, staged
from dipp_core.method.generator import OneStepGenerator, trainable_copy
from dipp_core.worlds import plane

ROUNDS, BATCH, HIDDEN = 7, 2048, 768
NEEDED = {  # passes of one step: ta learns, ref and ta answer, the generator is differentiated, the reward is
    "diff_instruct": ("gen forward", "ta learns", "gen learns", "ta answers", "ref answers"),
    "dipp": ("gen forward", "ta learns", "gen learns", "ta answers", "ref answers", "reward"),
    "distar_in": ("gen forward", "ta learns", "gen learns", "ta input gradient", "ref input gradient", "reward"),
    "reward_only": ("gen learns", "reward"),
}


def networks() -> tuple[schedule.NoiseSchedule, torch.nn.Module, torch.nn.Module, OneStepGenerator]:
    noise, rng = schedule.vp_continuous(), torch.Generator().manual_seed(0)
    ref = plane.StackedNoisePredictor(1, noise, hidden=HIDDEN, cond_size=3, generator=rng).requires_grad_(False)
    start = noise.time_of_noise_ratio(2.5)
    gen = OneStepGenerator(trainable_copy(ref), noise, t_star=start, prediction_type="eps", batch_ndim=2)
    return noise, ref, trainable_copy(ref), gen


def reward(x0: Tensor, cond: Tensor) -> Tensor:
    """A smooth bump in the north-east; its cost is negligible and stands for no real reward model."""
    return -(x0 - 1.0).square().sum(-1)


def raw_passes(ref: torch.nn.Module, ta: torch.nn.Module, gen: OneStepGenerator) -> dict[str, Callable[[], None]]:
    """Every pass alone, on data of the step's shape."""
    rng = torch.Generator().manual_seed(0)
    x, cond = torch.randn(1, BATCH, 2, generator=rng), torch.rand(1, BATCH, 3, generator=rng)
    t = 0.1 + 0.8 * torch.rand(1, BATCH, generator=rng, dtype=torch.float64)
    leaf = torch.randn(1, BATCH, 2, generator=rng).requires_grad_()

    def learn(network: Callable[[], Tensor], parameters: list[Tensor]) -> None:
        torch.autograd.grad(network().square().sum(), parameters)

    def input_gradient(network: torch.nn.Module) -> None:
        with staged.frozen([parameter for parameter in network.parameters() if parameter.requires_grad]):
            torch.autograd.grad(network(leaf, t, cond).square().sum(), leaf)

    quiet = torch.no_grad()
    return {
        "gen forward": quiet(lambda: gen(x, cond)),
        "ta learns": lambda: learn(lambda: ta(x, t, cond), list(ta.parameters())),
        "gen learns": lambda: learn(lambda: gen(x, cond), list(gen.parameters())),
        "ta answers": quiet(lambda: ta(x, t, cond)),
        "ref answers": quiet(lambda: ref(x, t, cond)),
        "ta input gradient": lambda: input_gradient(ta),
        "ref input gradient": lambda: input_gradient(ref),
        "reward": lambda: torch.autograd.grad(reward(leaf, cond).sum(), leaf),
    }


def one_step(name: str, noise: schedule.NoiseSchedule, ref, ta, gen) -> Callable[[], None]:
    """One step of `align` under a preset."""
    weight = schedule.sigma_power_weight(noise)
    settings = algorithm.preset(
        name, batch_shape=(1, BATCH), z_shape=(2,), time_sampler=schedule.uniform_time(0.1, 0.9), weight=weight,
        ta_weight=weight, **({"alpha_rew": 0.1} if name in ("dipp", "distar_in") else {}),
    )  # fmt: skip
    answer, assistant = (scores.score_model(network, noise, "eps") for network in (ref, ta))
    steps = algorithm.align(
        gen=gen, ta=assistant, ref=answer, reward=reward, schedule=noise, settings=settings, steps=10**9,
        gen_optimizer=torch.optim.SGD(gen.parameters(), lr=0.0), ta_optimizer=torch.optim.SGD(ta.parameters(), lr=0.0),
        draw_cond=lambda shape, rng: torch.rand(*shape, 3, generator=rng), generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    return lambda: next(steps)


def seconds(function: Callable[[], None]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure() -> dict[str, dict[str, float]]:
    """Per preset: milliseconds of a step, of its passes, and the ratio; medians over rounds."""
    noise, ref, ta, gen = networks()
    passes = raw_passes(ref, ta, gen)
    steps = {name: one_step(name, noise, ref, ta, gen) for name in NEEDED}
    times: dict[str, list[float]] = {name: [] for name in (*passes, *steps)}
    for number in range(ROUNDS + 2):
        for name, function in (*passes.items(), *steps.items()):
            spent = seconds(function)
            if number >= 2:  # the first rounds warm up
                times[name].append(spent)
    median = {name: 1000 * statistics.median(values) for name, values in times.items()}
    return {
        name: {"step_ms": median[name], "passes_ms": total, "step_over_passes": median[name] / total}
        for name, needed in NEEDED.items()
        for total in [sum(median[part] for part in needed)]
    }


def main() -> None:
    torch.set_num_threads(config.read()["threads"])
    print(f"one step against its passes; {torch.get_num_threads()} threads of {os.cpu_count()} cores, batch {BATCH}")
    print(f"{'method':15} {'step, ms':>10} {'passes, ms':>11} {'ratio':>7}")
    for name, row in measure().items():
        print(f"{name:15} {row['step_ms']:10.1f} {row['passes_ms']:11.1f} {row['step_over_passes']:7.2f}")


if __name__ == "__main__":
    main()
