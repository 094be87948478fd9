"""Diff-Instruct++ and Diff-Instruct* in one file: a diffusion, its one-step generator, and what a reward makes of it.

    python dipp_core/one_file.py             Diff-Instruct++ (arXiv 2410.18881), a minute on two cores
    python dipp_core/one_file.py --distar    Diff-Instruct*  (arXiv 2410.20898)

The world is two moons in the plane, and the prompt c says which. Needs torch alone (matplotlib for the picture). Lines
in comments are those of Algorithm 1, `ALGORITHM_1` in dipp_core/method/algorithm.py, which runs the same at every size.
"""

import argparse
import copy
import math
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

T_MIN, T_MAX, T_STAR = 0.03, 0.97, 0.75  # times that are drawn, and the one at which the generator asks its network
NULL = 2  # the empty prompt; prompts are 0 (upper moon) and 1 (lower moon)


def draw_cond(n: int, rng: torch.Generator) -> Tensor:
    return torch.randint(2, (n,), generator=rng)


def draw_data(cond: Tensor, rng: torch.Generator) -> Tensor:
    """Points (B, 2) of the moon that is asked for, centred and about as wide as N(0, I)."""
    angle = math.pi * torch.rand(len(cond), generator=rng)
    moon = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], -1) * torch.where(cond == 0, 1, -1)[:, None]
    return 1.4 * (moon + 0.08 * torch.randn(len(cond), 2, generator=rng))


def reward(x0: Tensor, cond: Tensor) -> Tensor:
    """r(x0, c): a hill of height 1 on the right, below the middle; it knows nothing of moons."""
    return (-0.5 * (x0 - x0.new_tensor([0.8, -0.7])).square().sum(-1)).exp()


def alpha(t: Tensor) -> Tensor:
    """Diffusion is x_t = alpha(t) x_0 + sigma(t) eps: data at t = 0, noise at t = 1."""
    return (t * math.pi / 2).cos()[:, None]


def sigma(t: Tensor) -> Tensor:
    return (t * math.pi / 2).sin()[:, None]


def draw_time(n: int, rng: torch.Generator) -> Tensor:
    """t ~ pi, uniform on [T_MIN, T_MAX]."""
    return T_MIN + (T_MAX - T_MIN) * torch.rand(n, generator=rng)


def draw(n: int, rng: torch.Generator) -> tuple[Tensor, ...]:
    """What a step of Algorithm 1 draws: c, z, t, eps."""
    cond, z = draw_cond(n, rng), torch.randn(n, 2, generator=rng)
    return cond, z, draw_time(n, rng), torch.randn(n, 2, generator=rng)


def weight(t: Tensor) -> Tensor:
    """w(t) of the divergence, with mean 1. Another choice is 2 sigma^2: it holds less tightly to thin data."""
    return torch.ones_like(t)


def ta_weight(t: Tensor) -> Tensor:
    """lambda(t) of score matching, (sigma / alpha)^2: the error of the score becomes that of v."""
    return (sigma(t) / alpha(t))[:, 0] ** 2


class Diffusion(nn.Module):
    """A network that predicts v = alpha eps - sigma x0 from (xt, t, c); the score and x0 follow from it."""

    def __init__(self, hidden: int = 96):
        super().__init__()
        self.prompt = nn.Embedding(3, 8)
        sizes = [2 + 5 + 8, hidden, hidden, hidden, 2]
        layers = [layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), nn.SiLU())]
        self.body = nn.Sequential(*layers[:-1])

    def v(self, xt: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        a, s = alpha(t), sigma(t)
        return self.body(torch.cat([xt, a, s, a * s, (4 * s).sin(), (4 * a).sin(), self.prompt(cond)], -1))

    def forward(self, xt: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """s(xt | t, c) = -eps / sigma, where eps = sigma xt + alpha v."""
        return -xt - alpha(t) / sigma(t) * self.v(xt, t, cond)

    def generate(self, z: Tensor, cond: Tensor) -> Tensor:
        """g(z, c): the network asked once for x0 = alpha xt - sigma v, with the noise z as its xt at T_STAR."""
        t = torch.full_like(z[:, 0], T_STAR)
        return alpha(t) * z - sigma(t) * self.v(z, t, cond)


def assistant_loss(ta: Diffusion, *, x0: Tensor, cond: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """Denoising score matching: minimal where ta is the score of the distribution that x0 comes from, noise added."""
    xt = alpha(t) * x0 + sigma(t) * eps  # line 5
    return (ta_weight(t) * (ta(xt, t, cond) + eps / sigma(t)).square().sum(-1)).mean()  # line 6


def pseudo_huber_gradient(y: Tensor) -> Tensor:
    """d'(y) of d(y) = sqrt(|y|^2 + 1) - 1: never longer than 1."""
    return y / (y.square().sum(-1, keepdim=True) + 1).sqrt()


def generator_loss(
    gen: Diffusion, ta: Diffusion, ref: Diffusion, *, z: Tensor, cond: Tensor, t: Tensor, eps: Tensor,
    alpha_rew: float, alpha_cfg: float, distar: bool,
) -> Tensor:  # fmt: skip
    """-alpha_rew r + surrogate. The surrogate has the divergence's gradient in theta; its value means nothing."""
    x0 = gen.generate(z, cond)  # line 7
    xt = alpha(t) * x0 + sigma(t) * eps  # line 8
    with torch.set_grad_enabled(distar):  # DI* needs the gradient through xt inside both scores, DI++ needs neither
        s_ta, s_ref = ta(xt, t, cond), ref(xt, t, cond)
        if alpha_cfg:  # guidance, additive: 0 is off. For DI++ this is a second reward, log p_ref(xt|c) / p_ref(xt)
            s_ref = s_ref + alpha_cfg * (s_ref - ref(xt, t, torch.full_like(cond, NULL)))  # line 9
    score_gap = s_ta - s_ref
    if distar:
        surrogate = -(pseudo_huber_gradient(score_gap) * (s_ta + eps / sigma(t))).sum(-1)  # line 10b
    else:
        surrogate = (score_gap * xt).sum(-1)  # line 10a
    return (weight(t) * surrogate - alpha_rew * reward(x0, cond)).mean()  # line 11


def align(
    gen: Diffusion, ta: Diffusion, ref: Diffusion, *, name: str, steps: int, lr: float, ta_steps: int, batch: int,
    alpha_rew: float, alpha_cfg: float, distar: bool, rng: torch.Generator,
) -> None:  # fmt: skip
    """Algorithm 1. With alpha_rew = 0 it distils: Diff-Instruct, or SIM with `distar`."""
    gen_optimizer = torch.optim.Adam(gen.parameters(), betas=(0.0, 0.99))
    ta_optimizer = torch.optim.Adam(ta.parameters(), betas=(0.0, 0.99))
    for step in range(steps):  # line 2
        rate = lr * min(1, 2 * (1 - step / steps))  # falls in the second half
        gen_optimizer.param_groups[0]["lr"], ta_optimizer.param_groups[0]["lr"] = rate, 2 * rate
        for _ in range(ta_steps):  # line 3, K_TA times
            cond, z, t, eps = draw(batch, rng)  # line 4
            ta_optimizer.zero_grad()
            assistant_loss(ta, x0=gen.generate(z, cond).detach(), cond=cond, t=t, eps=eps).backward()
            ta_optimizer.step()

        cond, z, t, eps = draw(batch, rng)
        gen_optimizer.zero_grad()
        generator_loss(
            gen, ta.requires_grad_(False), ref, z=z, cond=cond, t=t, eps=eps,
            alpha_rew=alpha_rew, alpha_cfg=alpha_cfg, distar=distar,
        ).backward()  # fmt: skip
        gen_optimizer.step()  # line 12
        ta.requires_grad_(True)
        if (step + 1) % max(1, steps // 10) == 0:
            print(f"{name:13s}  step {step + 1:5d}   {report(gen, ta, ref)}", flush=True)


def train_reference(*, steps: int, lr: float, batch: int, rng: torch.Generator) -> Diffusion:
    """The reference diffusion: score matching as in line 6, on data; a tenth of the prompts are dropped."""
    ref = Diffusion()
    optimizer = torch.optim.Adam(ref.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        cond = draw_cond(batch, rng)
        x0 = draw_data(cond, rng)
        cond = torch.where(torch.rand(batch, generator=rng) < 0.1, NULL, cond)
        t, eps = draw_time(batch, rng), torch.randn(batch, 2, generator=rng)
        loss = assistant_loss(ref, x0=x0, cond=cond, t=t, eps=eps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % max(1, steps // 4) == 0:
            print(f"reference      step {step + 1:5d}   denoising loss {loss.item():.3f}", flush=True)
    return ref.requires_grad_(False)


@torch.no_grad()
def sample_reference(ref: Diffusion, z: Tensor, cond: Tensor, steps: int = 50) -> Tensor:
    """The many-step sampler (DDIM): x0 and eps from v, then noise again, a little less."""
    times, xt = torch.linspace(T_MAX, T_MIN, steps + 1), z
    for now, then in pairwise(times):
        t, t_next = now.expand(len(z)), then.expand(len(z))
        v = ref.v(xt, t, cond)
        x0, eps = alpha(t) * xt - sigma(t) * v, sigma(t) * xt + alpha(t) * v
        xt = alpha(t_next) * x0 + sigma(t_next) * eps
    return x0


@torch.no_grad()
def report(gen: Diffusion, ta: Diffusion, ref: Diffusion, n: int = 8192) -> str:
    """E[r], and KL(p_theta || p_ref) in nats (mean over prompts), on draws that are the same every time.

    The KL at T_MIN is the integral over t of (pi / 2) (sigma / alpha) E |s_theta - s_ref|^2, since that is -d KL / dt.
    An estimate, no surrogate, and as good as the assistant, which stands for s_theta.
    """
    rng = torch.Generator().manual_seed(1)
    cond, t = draw_cond(n, rng), draw_time(n, rng)
    x0 = gen.generate(torch.randn(n, 2, generator=rng), cond)
    xt = alpha(t) * x0 + sigma(t) * torch.randn(n, 2, generator=rng)
    fisher = (ta(xt, t, cond) - ref(xt, t, cond)).square().sum(-1)
    kl = (T_MAX - T_MIN) * (math.pi / 2 * (sigma(t) / alpha(t))[:, 0] * fisher).mean()
    return f"reward {reward(x0, cond).mean():.3f}   KL to the reference {kl:.3f} nats"


def picture(samples: dict[str, Tensor], cond: Tensor, path: Path) -> None:
    """One panel a distribution, coloured by prompt, over contours of the reward."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no matplotlib, so no picture: pip install matplotlib")
        return
    fig = Figure(figsize=(3.1 * len(samples), 3.1), layout="constrained")
    axes = fig.subplots(1, len(samples), sharey=True)
    axis = torch.linspace(-2.7, 2.7, 80)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
    for ax, (title, x0) in zip(axes, samples.items(), strict=True):
        contours = ax.contour(axis, axis, reward(grid, cond), levels=[0.1, 0.3, 0.5, 0.7, 0.9], cmap="Greys", alpha=0.8)
        for c, color, label in ((0, "tab:blue", "upper moon"), (1, "tab:orange", "lower moon")):
            ax.scatter(*x0[cond == c].T, s=3, alpha=0.4, linewidths=0, color=color, label=f"c = {c}: {label}")
        ax.set_title(f"{title}\nmean reward {reward(x0, cond).mean():.2f}")
        ax.set(xlabel="$x_1$", xlim=(-2.7, 2.7), ylim=(-2.4, 1.8), aspect="equal")
        ax.clabel(contours, fontsize=6)
    axes[0].set_ylabel("$x_2$")
    axes[0].legend(loc="lower left", markerscale=4, fontsize=7, framealpha=0.9)
    fig.savefig(path, dpi=150)
    print(f"wrote {path}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Diff-Instruct++ (or Diff-Instruct*) from nothing, in two dimensions.")
    parser.add_argument("--distar", action="store_true", help="Diff-Instruct*: a score divergence in place of the KL")
    for flag, kind, default, about in (
        ("--alpha-rew", float, 1.0, "the reward's weight, 1 / beta"),
        ("--alpha-cfg", float, 0.0, "guidance, 0 is off"),
        ("--ta-steps", int, 1, "K_TA, steps of the assistant in one step of the generator"),
        ("--steps", int, 1500, "of alignment; twice that for the reference and for distillation"),
        ("--batch", int, 512, "samples a step"),
        ("--seed", int, 0, "of everything that is random"),
        ("--out", Path, Path("one_file.png"), "the picture"),
    ):
        parser.add_argument(flag, type=kind, default=default, help=f"{about} (default: %(default)s)")
    parser.error = lambda message: parser.exit(2, f"one_file.py: {message}\n")  # type: ignore  # one line
    args = parser.parse_args()
    if min(args.ta_steps, args.steps, args.batch) < 1:
        parser.error("--ta-steps, --steps and --batch are whole numbers from 1 on")
    if not (0 <= args.alpha_rew < math.inf and 0 <= args.alpha_cfg < math.inf):
        parser.error("--alpha-rew and --alpha-cfg are numbers from 0 on")
    if not args.out.resolve().parent.is_dir() or args.out.suffix not in (".png", ".pdf", ".svg"):
        parser.error(f"--out is a .png, .pdf or .svg in a folder that exists, not {args.out}")
    return args


def main() -> None:
    args = arguments()
    torch.manual_seed(args.seed)  # the networks' first parameters
    rng = torch.Generator().manual_seed(args.seed)  # everything that is drawn
    ref = train_reference(steps=2 * args.steps, lr=3e-3, batch=args.batch, rng=rng)
    gen, ta = copy.deepcopy(ref).requires_grad_(True), copy.deepcopy(ref).requires_grad_(True)  # line 1
    distilling, aligning = ("SIM", "DI*") if args.distar else ("Diff-Instruct", "DI++")
    run = partial(align, gen, ta, ref, ta_steps=args.ta_steps, batch=args.batch, distar=args.distar, rng=rng)
    run(name=distilling, steps=2 * args.steps, lr=2e-3, alpha_rew=0.0, alpha_cfg=0.0)
    distilled = copy.deepcopy(gen)
    run(name=aligning, steps=args.steps, lr=1e-3, alpha_rew=args.alpha_rew, alpha_cfg=args.alpha_cfg)

    cond, z = draw_cond(3000, rng), torch.randn(3000, 2, generator=rng)
    with torch.no_grad():
        samples = {
            "data": draw_data(cond, rng),
            "reference, 50 steps": sample_reference(ref, z, cond),
            f"{distilling}, 1 step": distilled.generate(z, cond),
            f"{aligning}, 1 step": gen.generate(z, cond),
        }
    picture(samples, cond, args.out)


if __name__ == "__main__":
    main()
