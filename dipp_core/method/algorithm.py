"""Algorithm 1 of Diff-Instruct++ and of Diff-Instruct*, which differ in one line only: one loop, six settings.

`ALGORITHM_1` lists it line by line; the docstring of the function that implements a line claims it, each line once.
`align` runs it and knows nothing of files and plots: it yields one record a step, and the caller decides.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dipp_core.method import divergences
from dipp_core.method.assistant import assistant_step
from dipp_core.method.guidance import cfg_reward_surrogate
from dipp_core.method.schedule import NoiseSchedule, TimeSampler, Weighting
from dipp_core.method.scores import Cond, ScoreModel, conditional_score, guided_score, is_zero, map_cond, score_pair
from dipp_core.method.staged import Backward, NonFiniteError, Term, descend, frozen, parameters_of, staged_backward

Generate = Callable[[Tensor, Cond], Tensor]
Reward = Callable[[Tensor, Cond], Tensor]
DrawCond = Callable[[tuple[int, ...], torch.Generator], Cond]

ALGORITHM_1 = {
    "1": "start psi, and theta unless it is distilled already, from the reference diffusion s_ref",
    "2": "repeat until converged:",
    "3": "    repeat K_TA times:",
    "4": "        draw c from the prompts and z ~ p_z;  x0 = sg[g_theta(z, c)]",
    "5": "        draw t ~ pi and eps ~ N(0, I);  xt = alpha(t) x0 + sigma(t) eps",
    "6": "        step psi down  lambda(t) |s_psi(xt|t,c) - grad log p(xt|x0)|^2",
    "7": "    draw fresh c and z;  x0 = g_theta(z, c), with gradient",
    "8": "    draw fresh t and eps;  xt = alpha(t) x0 + sigma(t) eps",
    "9": "    guided reference  s~ = s_ref(xt|t,c) + alpha_cfg [s_ref(xt|t,c) - s_ref(xt|t,null)]",
    "10a": "    DI++:  L = w(t) sg[s_psi(xt|t,c) - s~] . xt",
    "10b": "    DI*:   L = w(t) {-d'(s_psi(xt|t,c) - s~)} . {s_psi(xt|t,c) - grad log p(xt|x0)}",
    "10c": "    guidance out:  s~ = s_ref(xt|t,c),  L -= alpha_cfg w(t) sg[s_ref(xt|t,c) - s_ref(xt|t,null)] . xt",
    "11": "    L -= alpha_rew r(x0, c)",
    "12": "    step theta down L",
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What one run of Algorithm 1 is. The divergence has weight 1, so beta = 1 / alpha_rew.

    batch_shape: (B,) for one run, (E, B) for E runs side by side; z has shape (*batch_shape, *z_shape).
    alpha_rew, alpha_cfg: numbers, or tensors (E,) with one entry per run. alpha_cfg is additive, 0 is off.
    divergence: "integral_kl", "score" or "none"; guidance "in" the divergence's reference or "out" as a reward.
    share_samples: the assistant learns on the very x0 of the generator step (cheaper; a deviation from the papers).
    per_sample_normaliser: scale each sample's divergence by `sample_normaliser` (a deviation as well).
    samples_every: records at multiples of this step keep their x0; 0 keeps none.
    share: (i, n) where n processes compute one run together: each draws the whole batch and takes its i-th part.
    """

    divergence: str
    guidance: str = "in"
    alpha_rew: float | Tensor = 1.0
    alpha_cfg: float | Tensor = 0.0
    batch_shape: tuple[int, ...]
    z_shape: tuple[int, ...]
    time_sampler: TimeSampler
    weight: Weighting
    ta_weight: Weighting
    distance: divergences.Distance = field(default_factory=divergences.pseudo_huber)
    ta_steps: int = 1
    share_samples: bool = False
    per_sample_normaliser: bool = False
    max_grad_norm: float | None = None
    samples_every: int = 0
    share: tuple[int, int] = (0, 1)

    def __post_init__(self):
        if self.divergence not in ("integral_kl", "score", "none"):
            raise ValueError(f"unknown divergence {self.divergence!r}: integral_kl, score or none")
        if self.guidance not in ("in", "out"):
            raise ValueError(f"unknown guidance {self.guidance!r}: in or out")
        if self.ta_steps < 0 or not isinstance(self.batch_shape, tuple) or not isinstance(self.z_shape, tuple):
            raise ValueError("ta_steps must be at least 0; batch_shape and z_shape are tuples, say (256,) and (2,)")
        if not 0 <= self.share[0] < self.share[1] or self.batch_shape[-1] % self.share[1]:
            raise ValueError(f"a batch of {self.batch_shape} has no part {self.share[0]} of {self.share[1]} equal ones")

    def own(self, drawn: Any) -> Any:
        """This process's part of what was drawn for the whole batch."""
        return map_cond(lambda leaf: leaf.chunk(self.share[1], len(self.batch_shape) - 1)[self.share[0]], drawn)


PRESETS: dict[str, dict[str, Any]] = {
    "diff_instruct": {"divergence": "integral_kl", "guidance": "in", "alpha_rew": 0.0},
    "sim": {"divergence": "score", "guidance": "in", "alpha_rew": 0.0},
    "dipp": {"divergence": "integral_kl", "guidance": "in"},
    "distar_in": {"divergence": "score", "guidance": "in"},
    "distar_out": {"divergence": "score", "guidance": "out"},
    "reward_only": {"divergence": "none", "guidance": "in", "alpha_cfg": 0.0, "ta_steps": 0},
}


def preset(name: str, **numbers: Any) -> Settings:
    """A member of the family by name, a key of `PRESETS`; `numbers` are the other settings and may not contradict."""
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}: one of {', '.join(PRESETS)}")
    for key in PRESETS[name].keys() & numbers.keys():
        if not torch.as_tensor(numbers[key] == PRESETS[name][key]).all():
            raise ValueError(f"{name} means {key} = {PRESETS[name][key]!r}, not {numbers[key]!r}")
    return Settings(**(numbers | PRESETS[name]))


@dataclass(frozen=True)
class StepRecord:
    """One step. Entries are detached tensors of the shape of the runs: 0-dimensional for one run, (E,) for E.

    terms: batch means, unscaled: "reward" is r itself; "divergence" and "guidance" are surrogates, not objectives.
    x0_grad_norms: per term, root mean square over the batch of its scaled gradient at x0.
    grad_norm: the generator's parameter gradient before clipping.
    ta_loss: mean of the K_TA assistant losses, None without assistant steps.
    """

    step: int
    terms: dict[str, Tensor]
    x0_grad_norms: dict[str, Tensor]
    grad_norm: Tensor
    ta_loss: Tensor | None
    samples: Tensor | None = None


def draw_samples(
    gen: Generate, settings: Settings, draw_cond: DrawCond, generator: torch.Generator, like: Tensor
) -> tuple[Tensor, Cond]:
    """c from the prompts, z ~ N(0, I) (*batch_shape, *z_shape) of the dtype of `like`, x0 = g(z, c); returns (x0, c).

    Algorithm 1, lines 4, 7.
    """
    cond = settings.own(draw_cond(settings.batch_shape, generator))
    shape = settings.batch_shape + settings.z_shape
    z = settings.own(torch.randn(shape, generator=generator, device=generator.device, dtype=like.dtype))
    return gen(z.to(like.device), cond), cond


def draw_noise(x0: Tensor, settings: Settings, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """t ~ pi (*batch_shape), float64, and eps ~ N(0, I) of x0's shape; `NoiseSchedule.perturb` makes xt of them.

    Algorithm 1, lines 5, 8.
    """
    t = settings.own(settings.time_sampler(settings.batch_shape, generator=generator, device=x0.device))
    shape = settings.batch_shape + x0.shape[t.ndim :]
    eps = settings.own(torch.randn(shape, generator=generator, device=generator.device, dtype=x0.dtype))
    return t, eps.to(x0.device)


def generator_terms(
    *,
    reward: Reward,
    ta: ScoreModel,
    ref: ScoreModel,
    schedule: NoiseSchedule,
    settings: Settings,
    t: Tensor,
    eps: Tensor,
    cond: Cond,
    null_cond: Cond,
) -> dict[str, Term]:
    """L = -alpha_rew r(x0, c) + divergence - alpha_cfg r_cfg, as terms x0 (*batch, sample) -> (*batch).

    Algorithm 1, line 11.
    """
    inside, outside = (settings.alpha_cfg, 0.0) if settings.guidance == "in" else (0.0, settings.alpha_cfg)
    score_based = settings.divergence == "score"  # then both scores need a graph, through xt; IKL needs only xt's

    def divergence(x0: Tensor) -> Tensor:
        xt = schedule.perturb(x0, t, eps)
        with torch.set_grad_enabled(score_based):
            s_ta, s_ref = ta(xt, t, cond), guided_score(ref, xt, t, cond, null_cond, inside)
        w, scale = settings.weight, None
        if settings.per_sample_normaliser:
            scale = divergences.sample_normaliser(x0=x0, xt=xt, t=t, s_ref=s_ref, schedule=schedule)
        if not score_based:
            return divergences.integral_kl_surrogate(xt=xt, t=t, s_ta=s_ta, s_ref=s_ref, weight=w, normaliser=scale)
        return divergences.score_divergence_surrogate(
            t=t,
            s_ta=s_ta,
            s_ref=s_ref,
            s_cond=conditional_score(eps, t, schedule),
            weight=w,
            distance=settings.distance,
            normaliser=scale,
        )

    def guidance(x0: Tensor) -> Tensor:
        xt = schedule.perturb(x0, t, eps)
        with torch.no_grad():
            s_cond, s_null = score_pair(ref, xt, t, cond, null_cond)
        return cfg_reward_surrogate(xt=xt, t=t, s_cond=s_cond, s_null=s_null, weight=settings.weight)

    terms = {}
    if not is_zero(settings.alpha_rew):
        terms["reward"] = Term(lambda x0: reward(x0, cond), -settings.alpha_rew)
    if settings.divergence != "none":
        terms["divergence"] = Term(divergence)
    if not is_zero(outside):
        terms["guidance"] = Term(guidance, -outside)
    return terms


def _absent(*_: Any) -> Tensor:
    """Stands for a role that the settings do not ask for; never called."""
    raise AssertionError("a role that is not there was asked")


def align(
    *,
    gen: Generate,
    ta: ScoreModel | None,
    ref: ScoreModel | None,
    reward: Reward | None,
    schedule: NoiseSchedule,
    settings: Settings,
    gen_optimizer: torch.optim.Optimizer,
    ta_optimizer: torch.optim.Optimizer | None,
    draw_cond: DrawCond,
    generator: torch.Generator,
    steps: int,
    null_cond: Cond = None,
    start_step: int = 0,
    backward: Backward = torch.autograd.backward,
) -> Iterator[StepRecord]:
    """Run Algorithm 1 for steps start_step .. steps - 1, yielding a record after each.

    gen(z, cond) -> x0; ta and ref are score models (xt, t, cond); reward(x0, cond) -> (*batch_shape);
    draw_cond(batch_shape, generator) -> conditions with these leading axes, or None. The optimisers hold the parameters
    of gen and ta. All state is in the networks, the optimisers and `generator`: restore these, pass
    start_step, and the run continues exactly. `backward(tensor, gradient)` may be replaced, say by Accelerate's.

    A loss or gradient that is not finite raises `NonFiniteError` before the parameters concerned move; in the
    generator's part of a step the assistant has then made its own, finite, updates already.

    Algorithm 1, lines 2, 3.
    """
    needed: dict[str, Any] = {}
    if settings.divergence != "none":
        needed |= {"ta": ta, "ref": ref}
    if not is_zero(settings.alpha_rew):
        needed["reward"] = reward
    if settings.ta_steps:
        needed["ta_optimizer"] = ta_optimizer
    if missing := [name for name, role in needed.items() if role is None]:
        raise ValueError(f"these settings need {' and '.join(missing)}")
    ta = _absent if ta is None else ta
    ref = _absent if ref is None else ref
    reward = _absent if reward is None else reward
    draw = partial(draw_samples, gen, settings, draw_cond, generator, parameters_of(gen_optimizer)[0])
    record = None
    for optimizer in filter(None, (gen_optimizer, ta_optimizer)):
        optimizer.zero_grad(set_to_none=True)
    for step in range(start_step, steps):
        try:
            drawn = draw() if settings.share_samples else None
            ta_losses = []
            for _ in range(settings.ta_steps):
                assert ta_optimizer is not None
                with torch.no_grad():
                    x0, cond = drawn or draw()
                t, eps = draw_noise(x0, settings, generator)
                ta_loss = assistant_step(
                    ta,
                    ta_optimizer,
                    x0=x0,
                    t=t,
                    eps=eps,
                    cond=cond,
                    schedule=schedule,
                    ta_weight=settings.ta_weight,
                    max_grad_norm=settings.max_grad_norm,
                    backward=backward,
                )
                ta_losses.append(ta_loss)
            x0, cond = drawn or draw()
            t, eps = draw_noise(x0, settings, generator)
            terms = generator_terms(
                reward=reward,
                ta=ta,
                ref=ref,
                schedule=schedule,
                settings=settings,
                t=t,
                eps=eps,
                cond=cond,
                null_cond=null_cond,
            )
            with frozen(parameters_of(ta_optimizer)):
                staged = staged_backward(x0, terms, backward)
            grad_norm = descend(gen_optimizer, "generator", run_ndim=t.ndim - 1, max_grad_norm=settings.max_grad_norm)
        except NonFiniteError as error:
            raise NonFiniteError(error.term, step, record) from error
        mean_ta_loss = torch.stack(ta_losses).mean(0) if ta_losses else None
        samples = x0.detach() if settings.samples_every and step % settings.samples_every == 0 else None
        record = StepRecord(step, staged.means, staged.norms, grad_norm, mean_ta_loss, samples)
        yield record
