"""Diff-Instruct++ and Diff-Instruct*: aligning one-step text-to-image generators with human preferences.

The library has eight rooms; each imports only those before it (`evaluation` and `book` nothing of `training`). Import
from the file that holds a name: `from dipp_core.method.algorithm import align`.

- `method`, what the papers say: `schedule` (noise levels and weights), `scores` and `guidance`, `divergences` (the two
  losses), `assistant`, `generator`, `staged` (backward in stages) and `algorithm` (Algorithm 1: `preset`, `align`).
- `worlds`, where it is tried: `gaussian` and `gaussian_optima` (closed forms), `plane` (exact optima on a grid),
  `shapes` (captioned pictures with a gold score).
- `rewards`, what is maximised: what a reward is, sums of them, loading by name, and the public scorers.
- `models`, networks and prompts: folders in the format of diffusers as scores and generators, LoRA, the miniature.
- `training`, long runs: distillation and alignment, kept, resumed, watched, from the miniature to PixArt.
- `evaluation`, pictures drawn from a generator, and how they are judged.
- `book`, what the book is made of: parameters, pipeline, reports, results and claims, the site.
- `classroom`, what a reader does: exercises with graders, a playground, votes.

Beside them: `one_file.py`, the whole method in one file that runs; the commands `train.py` and `evaluate.py`;
`description.py`, what a training at full scale is told; `files.py` (`InputError`); `repair.py`, for the set-up.

One run of Diff-Instruct++, in a world where its end is known. The reference is a normal distribution; the generator
adds a mean to its noise and learns only that; the reward is x itself, with beta = 1 / alpha_rew = 2:

    >>> import torch
    >>> from dipp_core.method import algorithm, schedule
    >>> from dipp_core.worlds import gaussian, gaussian_optima
    >>> noise, times = schedule.edm(0.05, 5.0), schedule.uniform_time()
    >>> weight = schedule.normalised(schedule.sigma_power_weight(noise), times)
    >>> mean, eye, rng = torch.zeros(1, requires_grad=True), torch.eye(1), torch.Generator().manual_seed(0)
    >>> score = lambda at: gaussian.exact_score(gaussian.Gaussian(at, eye), noise)
    >>> roles = {"gen": lambda z, cond: mean + z, "ta": lambda *xt_t_c: score(mean.detach())(*xt_t_c)}
    >>> roles |= {"ref": score(torch.zeros(1)), "reward": lambda x0, cond: x0[..., 0], "schedule": noise}
    >>> roles |= {"gen_optimizer": torch.optim.Adam([mean], lr=0.1), "ta_optimizer": None, "generator": rng}
    >>> shapes = {"batch_shape": (256,), "z_shape": (1,), "time_sampler": times, "weight": weight, "ta_weight": weight}
    >>> settings = algorithm.preset("dipp", alpha_rew=0.5, ta_steps=0, **shapes)
    >>> for record in algorithm.align(**roles, settings=settings, draw_cond=lambda *_: None, steps=150): pass
    >>> optimum = gaussian_optima.linear_shift_ikl(1.0, 1.0, 2.0, gaussian.noise_levels(noise, times, weight))
    >>> print(f"mean {mean.item():.1f}, closed form {optimum.item():.1f}, tilted distribution of RLHF {1 / 2.0:.1f}")
    mean 3.8, closed form 3.8, tilted distribution of RLHF 0.5

With networks the assistant learns too (`ta_steps`, `ta_optimizer`): notebook 03. Why it does not end at the tilted
distribution: notebook 06. Text to image: `dipp_core.models.folders.load` and `dipp_core.rewards.public.load`.
"""

__version__ = "0.1.0"
