"""Every check passes on the worked solution and fails, with the right words, on plausible wrong answers.

The solutions are those of notebooks/93_solutions.ipynb, cell by cell; wrong answers are those with something changed.
"""

import ast
import json
import pathlib
import re

import numpy as np
import pytest
import torch

from dipp_core.classroom import checks, exercises, hacking
from dipp_core.classroom.exercises import EXERCISES, OPEN, RIGHT, WRONG, check
from dipp_core.worlds import gaussian_optima
from dipp_core.worlds.gaussian import Gaussian, gaussian_kl

ROOT = pathlib.Path(__file__).resolve().parents[2]

RULE = 'table["beta"].where(known_ground).min() if known_ground.any() else table["beta"].max()'

# (exercise, text of the solution, what stands there instead, words of the feedback)
MISTAKES = [
    (1, "(xt - sigma * eps) / alpha", "xt - sigma * eps", "x0: the division by alpha(t) is missing"),
    (1, "-eps / sigma", "eps / sigma", "score: the sign"),
    (1, "alpha * eps - sigma * x0", "sigma * x0 - alpha * eps", "a sign"),
    (1, "return x0, v, score", "return x0, v", "is to return 3 things"),
    (2, "else n - 1", "else n", "off by one"),
    (2, "s_cond + alpha_cfg *", "s_null + alpha_cfg *", "multiplicative convention"),
    (3, "alpha**2 * m * ref", "alpha * m * ref", "by m: alpha(t) once too few"),
    (3, "alpha**2 * spread * (ref", "0.5 * alpha**2 * (ref", "derivative with respect to the variance"),
    (3, "alpha**2 * spread * (ref", "2 * alpha**2 * spread * (ref", "twice as large"),
    (3, "(ref - own)", "ref", "the term of log det is missing"),
    (4, ".detach()", "", "The scores carry gradient"),
    (4, "gap * xt", "gap * xt.detach()", "xt is detached"),
    (4, "(s_ta - s_ref)", "(s_ref - s_ta)", "The sign"),
    (4, ".sum(-1)", ".sum()", "the whole batch"),
    (4, "return w * (gap * xt).sum(-1)", "return (w * (gap * xt).sum(-1)).mean()", "one value per sample"),
    (4, "w * (gap * xt).sum(-1)", "w[:, None] * gap * xt", "a value per coordinate"),
    (5, "(m**2 + v)", "v", "the variance plus the squared mean"),
    (5, " - 1", "", "part of the generator's own score is missing"),
    (5, "math.sqrt(lam / 2), lam / 2", "0.0, lam", "that is the reference"),
    (5, "math.sqrt(lam / 2), lam / 2", "math.sqrt(2 * lam), -lam", "is no distribution"),
    (5, "math.sqrt(lam / 2), lam / 2", "math.sqrt(lam), lam", "not 0 there"),
    (6, "slope = slope.detach() if", "slope = slope if", "Two letters have the same answer"),
    (6, "x0 = case.x0.clone().requires_grad_()", 'cut = {"s_ta": "s_ref", "s_ref": "s_ta"}.get(cut, cut)\n'
        "    x0 = case.x0.clone().requires_grad_()", "Not right"),
    (7, "return w * ", "return ", "w(t) is missing"),
    (7, "over_cond = guidance_scale - 1", "over_cond = guidance_scale", "counts 1 as off"),
    (7, "over_null = guidance_scale", "over_null = guidance_scale + 1", "one too many"),
    (8, "a / beta / (w / (lam + noise_var)).sum()", "a / beta * (w * (lam + noise_var)).sum()", "forces are averaged"),
    (8, "lam * a / beta", "a / beta", "tilted: lam is missing"),
    (8, "a / beta / (w", "a * beta / (w", "it divides the shift"),
    (9, "1 / noise_var - 1 / (lam + noise_var)", "1 / noise_var", "own precision is missing"),
    (9, "q / (w * (1 / noise_var - 1 / (lam + noise_var))).sum()",
        "(w * (1 / noise_var - 1 / (lam + noise_var))).sum() / q", "the threshold is the inverse"),
    (9, "1 / noise_var - 1 / (lam + noise_var)", "1 / (noise_var * (lam + noise_var))", "lam is missing on top"),
    (10, "abs(a)", "a", "it is |a| that counts"),
    (10, "alpha / (alpha**2", "1 / (alpha**2", "alpha(t) is missing on top"),
    (10, "(w * force).sum()", "(w * force**2).sum()", "k enters once"),
    (11, "torch.log(1 + y.square().sum(-1) / c**2)", "torch.log(1 + y.square() / c**2).sum(-1)",
        "value: |y|^2 is the norm"),
    (11, "y / (1 + y.square().sum(-1, keepdim=True) / c**2)", "y / (1 + y.square() / c**2)",
        "slope: |y|^2 is the norm"),
    (11, "return y / (1 + y.square().sum(-1, keepdim=True) / c**2)",
        "return (y / (1 + y.square().sum(-1, keepdim=True) / c**2)).detach()", "it carries no gradient"),
    (11, "    return c / 2", "    return c", "How large is it there?"),
    (12, "side * ", "", "does not look at the prompt"),
    (12, "torch.tanh(x0[..., 0] / 2)", "torch.sign(x0[..., 0])", "No gradient|steps"),
    (12, "torch.tanh(x0[..., 0] / 2)", "x0[..., 0]", "not bounded"),
    (12, "torch.tanh(x0[..., 0] / 2)", "(x0[..., 0] / 2).clamp(-1, 1)", "Flat at some samples"),
    (12, "torch.tanh(x0[..., 0] / 2)", "torch.tanh(x0[..., 0] / x0[..., 0].std())", "changes with its neighbours"),
    (12, "cond[..., 0] - cond[..., 1]", "cond[..., 1] - cond[..., 0]", "prompts are exchanged"),
    (13, "(k + 1) / len", "k / len", "asked at t = k / T"),
    (13, "network(z, t)", "network(sigma * z, t)", "z was scaled"),
    (13, "return (z - sigma * eps) / alpha", "return z - sigma * eps", "The division by alpha(t*) is missing"),
    (13, "alphas_cumprod[k].sqrt(), (1 - alphas_cumprod[k]).sqrt()", "alphas_cumprod[k], 1 - alphas_cumprod[k]",
        "take roots"),
    (14, "-eps / schedule", "eps / schedule", "The sign of the target"),
    (14, "ta_weight(t) * ", "", "lambda(t) is missing"),
    (14, "x0 = x0.detach()", "x0 = 1.0 * x0", "Gradient reached x0"),
    (14, "    optimizer.zero_grad()\n", "", "Zero them"),
    (14, "    optimizer.step()\n", "", "did not move"),
    (14, "losses.mean().backward()", "losses.sum().backward()", "Sum over the batch"),
    (14, "ta(xt, t)", "ta(x0, t)", "it saw something else"),
    (15, "total = total + grad", "total = grad", "Only the last term arrived"),
    (15, "scale * term", "term", "scales of the terms are missing"),
    (15, "len(leaf) * grad", "grad", "shrink with the batch"),
    (15, ".mean(), leaf)", ".sum(), leaf)", "Sum over the batch"),
    (15, "        total = total + grad", "        x0.backward(grad, retain_graph=True)", "back through the generator"),
    (15, "    x0.backward(total)\n", "", "No gradient reached the generator"),
    (15, "(grad,) = torch.autograd.grad((scale * term(leaf)).mean(), leaf)",
        "leaf.grad = None\n        (scale * term(leaf)).mean().backward()\n        grad = leaf.grad",
        "parameter behind a term"),
    (15, "    return norms\n", "", "Return a dict"),
    (16, "move @ follow", "follow @ move", "The generator moves first"),
    (16, "** ta_steps", "", "K_TA is ignored"),
    (16, "(1 - ta_lr) ** ta_steps", "1 - ta_steps * ta_lr", "are not one of"),
    (16, "max(1, math.ceil(exact))", "exact", "round up"),
    (16, "max(1, math.ceil(exact))", "math.ceil(exact) + 1", "off by one"),
    (17, "[-(1 - beta1), 1 - beta1, beta1]", "[-1.0, 1.0, beta1]", "the factor 1 - beta1 is missing"),
    (17, "[-(1 - beta1), 1 - beta1, beta1]", "[1 - beta1, beta1 - 1, beta1]", "Sign in h"),
    (17, "gen_lr * u", "gen_lr * torch.tensor([0.0, 1.0, 0.0])", "uses the old u"),
    (17, "1 / (1 + gen_lr)", "1 - gen_lr", "go larger"),
    (17, "1 / (1 + gen_lr)", "0.99", "go smaller"),
    (18, RULE, 'table["beta"][table["learned"].idxmax()]', "the highest learned reward"),
    (18, RULE, 'table["beta"][table["five"].idxmax()]', "A mean of five rewards is no witness"),
    (18, RULE, "1.0", "The same beta"),
    (18, RULE, 'int(table["learned"].idxmax())', "must choose one of the betas"),
    (18, "limit=4.0", "limit=1.2", "be bolder"),
]  # fmt: skip


def cells(name: str) -> list[dict]:
    found = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())["cells"]
    return [cell | {"source": "".join(cell["source"])} for cell in found if cell["cell_type"] == "code"]


def tagged(tag: str) -> list[str]:
    return [cell["source"] for cell in cells("93_solutions") if tag in cell["metadata"].get("tags", [])]


def number_of(source: str) -> int:
    """The exercise that a cell of the notebook ends by checking."""
    last = ast.parse(source).body[-1]
    assert isinstance(last, ast.Expr)
    assert last.value.func.id == "check"
    return last.value.args[0].value


SOLUTIONS = {number_of(source): source for source in tagged("solution")}


def run(source: str) -> exercises.Verdict:
    """Run a cell of the solutions notebook by itself and return what its check says."""
    *body, last = ast.parse(source).body
    names: dict = {}
    exec(tagged("imports")[0], names)
    exec(compile(ast.Module(body, []), "<answer>", "exec"), names)
    return eval(compile(ast.Expression(last.value), "<answer>", "eval"), names)


@pytest.mark.parametrize("number", sorted(EXERCISES))
def test_the_check_passes_on_the_solution(number):
    assert sum(n == number for n, *_ in MISTAKES) >= 2
    verdict = run(SOLUTIONS[number])
    assert (verdict.number, verdict.state) == (number, RIGHT), verdict


@pytest.mark.parametrize(("number", "old", "new", "words"), MISTAKES)
def test_the_check_says_what_is_wrong(number, old, new, words):
    assert old in SOLUTIONS[number]
    verdict = run(SOLUTIONS[number].replace(old, new))
    assert verdict.state == WRONG
    assert any(word in verdict.message for word in words.split("|")), verdict


@pytest.mark.parametrize("number", sorted(EXERCISES))
def test_the_exercise_asks_for_the_answers_that_the_check_takes_and_begins_open(number):
    call = f"check({number}, {', '.join(EXERCISES[number].answers)})"
    (asked,) = [cell["source"] for cell in cells("90_exercises") if cell["source"].endswith(call)]
    assert SOLUTIONS[number].endswith(call)
    names: dict = {"torch": torch, "check": check, "scene": exercises.scene}
    exec(asked, names)
    verdict = check(number, *(names[name] for name in EXERCISES[number].answers))
    assert verdict.state == OPEN
    assert f"hint({number})" in verdict.message


def test_a_signature_of_the_exercise_is_that_of_its_solution():
    def signatures(sources):
        nodes = [node for source in sources for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
        wanted = {node.name: len(node.args.args) - len(node.args.defaults) for node in nodes}
        return {node.name: [argument.arg for argument in node.args.args[: wanted[node.name]]] for node in nodes}

    asked = signatures(cell["source"] for cell in cells("90_exercises"))
    assert asked == {name: found for name, found in signatures(SOLUTIONS.values()).items() if name in asked}


def test_an_error_in_an_answer_is_one_line_that_shows_where():
    def convert(eps, xt, alpha, sigma):
        return eps / (alpha - alpha), undefined, 1  # noqa: F821

    verdict = check(1, convert)
    assert verdict.state == WRONG
    assert verdict.message.startswith(
        "convert stopped with NameError: name 'undefined' is not defined (in your line `return"
    )


def test_numbers_may_come_in_any_form_and_precision():
    verdicts = [
        check(9, lambda q, lam, s2, w: np.float32(q) / float((w * lam / (s2 * (lam + s2))).sum())),
        check(8, lambda a, lam, b, s2, w: [float(a / b / (w / (lam + s2)).sum()), lam * a / b]),
        check(1, ...),
    ]
    card = exercises.score_card(verdicts)
    assert card["state"].tolist() == [RIGHT, RIGHT, OPEN]
    assert card["notebook"].tolist() == ["06", "06", "01"]


@pytest.mark.parametrize("answer", [..., None, NotImplemented, lambda *a: None, lambda *a: ..., lambda *a: (1.0, ...)])
def test_what_is_not_filled_in_is_not_wrong(answer):
    assert check(3, answer).state == OPEN


def test_what_cannot_be_judged_is_told():
    assert "is to be a function" in check(9, 3.0).message
    assert "not finite" in check(9, lambda q, lam, s2, w: float("nan")).message
    assert "has the shape (2,)" in check(9, lambda q, lam, s2, w: [1.0, 2.0]).message
    assert "not a mere factor" in check(9, lambda q, lam, s2, w: q + lam).message
    assert "is a str" in check(9, lambda q, lam, s2, w: "one").message
    assert "check(2, to_alpha_cfg, guided)" in check(2, lambda n, s: n).message
    assert "exercises 1 to 18" in check(19).message


def test_checks_leave_the_readers_random_numbers_alone():
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    check(14, lambda *arguments: torch.rand(7))
    assert torch.rand(3).equal(wanted)


def test_hints_are_printed_only_when_asked_for(capsys):
    assert set(exercises.HINTS) == set(EXERCISES)
    exercises.hint(3)
    first = capsys.readouterr().out
    exercises.hint(3, 2)
    assert capsys.readouterr().out not in ("", first)
    exercises.hint(99)
    assert "exercises 1 to 18" in capsys.readouterr().out


def test_the_page_for_teachers_uses_every_exercise_and_leads_nowhere_that_is_not_there():
    text = (ROOT / "TEACHING.md").read_text()
    links = {link.split("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("https://")}
    assert sorted(link for link in links if not (ROOT / link).exists()) == []
    week = text[text.index("## One week") : text.index("## What students get wrong")]
    used = {int(n) for row in re.findall(r"^\| \d \|[^|]*\|([^|]*)\|", week, re.M) for n in re.findall(r"\b\d+\b", row)}
    assert set(EXERCISES) <= used


def test_the_learned_reward_rises_where_the_oracle_falls():
    world = hacking.hacking_world(7)
    table, best = world.table, int(world.oracle.argmax())
    assert table["learned"].is_monotonic_increasing
    assert world.oracle[-1] < world.oracle[best]
    assert table["kl"].is_monotonic_increasing
    assert hacking.share_kept(world, best) == 1.0
    assert "oracle" not in table


def test_the_critical_momentum_is_where_the_eigenvalue_leaves_the_circle():
    for gen_lr, ta_lr in ((0.3, 0.2), (0.05, 0.7)):
        for shift in (-1e-3, 1e-3):
            matrix, _ = checks.momentum_matrix(gen_lr, ta_lr, 1 / (1 + gen_lr) + shift)
            assert (torch.linalg.eigvals(matrix).abs().max() < 1) == (shift < 0)


def test_the_matrix_of_the_chase_is_the_loop_of_algorithm_1():
    m, u, gen_lr, ta_lr = 1.3, -0.4, 0.3, 0.2
    state = torch.tensor([m, u], dtype=torch.float64)
    for _ in range(5):
        for _ in range(3):
            u -= ta_lr * (u - m)
        m -= gen_lr * u
        state = checks.chase_matrix(gen_lr, ta_lr, 3)[0] @ state
    assert state.tolist() == pytest.approx([m, u])


def test_the_gradient_of_the_kl_is_that_of_the_library():
    m, spread = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (0.7, 0.5))
    lam, alpha, sigma = 1.5, 0.8, 0.6
    law = Gaussian((alpha * m)[None], (alpha**2 * spread**2 + sigma**2)[None, None])
    ref = Gaussian(torch.zeros(1).double(), torch.tensor([[alpha**2 * lam + sigma**2]]).double())
    by_mean, by_spread = torch.autograd.grad(gaussian_kl(law, ref), (m, spread))
    assert by_mean.item() == pytest.approx(checks.kl_by_mean(m.item(), spread.item(), lam, alpha, sigma)[0])
    assert by_spread.item() == pytest.approx(checks.kl_by_spread(m.item(), spread.item(), lam, alpha, sigma)[0])


def test_where_the_methods_land_is_what_the_library_says():
    for grid in checks.noise_grids():
        found = [
            checks.ikl_shift(-0.6, 2.0, 0.5, grid.noise_var, grid.w),
            checks.collapse_beta(0.4, 0.1, grid.noise_var, grid.w),
            checks.huber_beta(-0.4, 0.1, grid.alpha, grid.sigma, grid.w),
        ]
        wanted = [
            gaussian_optima.linear_shift_ikl(-0.6, 2.0, 0.5, grid),
            gaussian_optima.collapse_beta(0.4, 0.1, grid),
            gaussian_optima.huber_critical_beta(-0.4, 0.1, grid),
        ]
        assert [float(right) for right, _ in found] == pytest.approx([float(x) for x in wanted])
