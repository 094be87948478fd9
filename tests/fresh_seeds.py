"""The numbers that the plane's bars ask for, on seeds that the published run does not use: data/plane/fresh_seeds.csv.

    python tests/fresh_seeds.py distil /tmp/start        trains the starts, as notebook 10 does
    python tests/fresh_seeds.py sigma2 /tmp/start        aligns them, as notebook 11 does; then one, tilt, guidance

Each adds its rows to the table: a number, a seed and a value. Two to four minutes a part, on an idle core.
"""

import csv
import pathlib
import sys

import torch
from safetensors.torch import load_file, save_file

from dipp_core.book.config import section
from dipp_core.files import root
from dipp_core.rewards import plane as rewards
from dipp_core.worlds import plane, plane_optimum, plane_runs
from dipp_core.worlds.plane import coverage, precision, sliced_w2

SEEDS, OFFSET = 10, 1000  # how many, and what is added to the seed of params.yaml
TEN, P = (section(stage, {"scale": "mini"}) for stage in ("10_distillation_2d", "11_alignment_2d"))
WORLD, CLIMB = plane.ring(plane_runs.plane_schedule()), rewards.linear((0.0, 1.0))
MODES, STD = WORLD.law.means.float(), 0.3


def rng(offset: int) -> torch.Generator:
    return torch.Generator().manual_seed(OFFSET + offset)


def distil(stack: plane_runs.Stack) -> dict[str, list[float]]:
    settings = plane_runs.settings_for(WORLD, "diff_instruct", SEEDS, TEN.batch)
    plane_runs.train(stack, WORLD, settings, steps=TEN.steps, gen_lr=TEN.gen_lr, ta_lr=TEN.ta_lr, generator=rng(1))
    parts = []
    for prompt in (0, 1):
        cloud = plane_runs.generate(stack, WORLD, prompt, TEN.test_points, generator=rng(3 + prompt))
        truth, wanted = (
            WORLD.sample(prompt, (TEN.test_points,), generator=rng(5 + prompt)),
            WORLD.prompts[prompt].float(),
        )
        covered, inside = coverage(cloud, MODES, wanted, 4 * STD), precision(cloud, MODES, 3 * STD)
        parts.append(torch.stack([covered.float(), 1 - inside, torch.tensor([sliced_w2(x, truth) for x in cloud])]))
    both = (parts[0] + parts[1]) / 2
    return {"coverage": torch.minimum(parts[0][0], parts[1][0]), "outside": both[1], "sw2": both[2]}


def aligned(
    start: plane_runs.Stack, betas: list[float], preset: str, steps: int, batch: int, **numbers
) -> torch.Tensor:
    """Samples of both prompts after training, (betas * SEEDS, N, 2)."""
    stack, ref = start.pick(list(range(SEEDS)) * len(betas)), numbers.pop("ref", None)
    reward = CLIMB if preset == "dipp" else None
    settings = plane_runs.settings_for(WORLD, preset, stack.runs, batch, **numbers)
    rates = {"gen_lr": P.gen_lr, "ta_lr": P.ta_lr, "generator": rng(1)}
    plane_runs.train(stack, WORLD, settings, reward=reward, ref=ref, steps=steps, **rates)
    return plane_runs.both_prompts(
        lambda prompt: plane_runs.generate(stack, WORLD, prompt, P.test_points, generator=rng(2))
    )


def distances(samples: torch.Tensor, laws: plane_optimum.GridLaws, name: str, knobs: list[float]) -> dict:
    truth = laws.sample((samples.shape[1] // 2,), generator=rng(3)).float()
    groups = zip(samples[:, ::2].split(SEEDS), truth, knobs, strict=True)
    return {f"{name}.{knob:g}": torch.tensor([sliced_w2(x, target) for x in group]) for group, target, knob in groups}


def sweep(start: plane_runs.Stack, weight: str, betas: list[float], steps: int, batch: int) -> dict:
    laws = plane_optimum.solve_on_grid(plane_runs.grids_for(WORLD, 0, CLIMB)[weight], 1 / torch.tensor(betas))
    alpha = 1 / torch.tensor(betas).repeat_interleave(SEEDS)
    samples = aligned(start, betas, "dipp", steps, batch, weight=weight, alpha_rew=alpha)
    ratio = (CLIMB(samples, None).mean(-1).reshape(len(betas), SEEDS) / laws.reward[:, None]).float()
    rewards_found = {f"reward_ratio.{weight}.{beta:g}": row for beta, row in zip(betas, ratio, strict=True)}
    return distances(samples, laws, f"sw2_to_optimum.{weight}", betas) | rewards_found


def tilt(start: plane_runs.Stack, beta: float) -> dict:
    lift, favour = STD**2 / beta * torch.tensor([0.0, 1.0]), (MODES[:, 1] / beta).exp()

    def tilted_score(xt: torch.Tensor, t: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        weights = cond * favour
        return WORLD.ref(xt - lift, t, weights / weights.sum(-1, keepdim=True))

    laws = plane_optimum.tilted_on_grid(plane_runs.grids_for(WORLD, 0, CLIMB)["sigma2"], 1 / torch.tensor([beta]))
    samples = aligned(start, [beta], "diff_instruct", P.steps, P.batch_small, ref=tilted_score)
    return distances(samples, laws, "sw2_to_tilted", [beta])


def guidance(start: plane_runs.Stack, alpha: float) -> dict:
    reference = plane_optimum.mixture_log_reference(
        WORLD.law, WORLD.schedule, WORLD.prompts[0], null_cond=WORLD.null_cond, alpha_cfg=torch.tensor([alpha])
    )
    grid = plane_optimum.plane_grid(reference, CLIMB, plane_runs.levels_for(WORLD, "sigma2"))
    samples = aligned(start, [alpha], "diff_instruct", P.steps, P.batch_small, alpha_cfg=alpha)
    return distances(samples, plane_optimum.solve_on_grid(grid, torch.zeros(1)), "sw2_to_guided_optimum", [alpha])


def main(part: str, kept: str) -> None:
    stack, file = plane_runs.new_stack(WORLD, SEEDS, TEN.hidden, generator=rng(0)), pathlib.Path(kept)
    if part == "distil":
        found = distil(stack)
        save_file(stack.state(), file)
    else:
        stack.load(load_file(file))
        found = {
            "sigma2": lambda: sweep(stack, "sigma2", [2.0, 8.0], P.steps, P.batch),
            "one": lambda: sweep(stack, "one", [2.0, 4.0], P.steps_one, P.batch_one),
            "tilt": lambda: tilt(stack, P.tilt_beta[0]),
            "guidance": lambda: guidance(stack, P.alpha_cfg[-1]),
        }[part]()
    table = root() / "data" / "plane" / "fresh_seeds.csv"
    with open(table, "a", newline="") as out:
        rows = csv.writer(out, lineterminator="\n")
        if not table.stat().st_size:
            rows.writerow(["number", "seed", "value"])
        for name, values in found.items():
            rows.writerows([name, OFFSET + seed, f"{value:.6g}"] for seed, value in enumerate(values.tolist()))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
