"""The claims of both papers, each taken apart into checks of numbers that the notebooks measured, and the rule.

A check is of one number against one bound. It is met or failed only where the whole 95% interval lies on one side of
the bound; else it is open. A number without interval counts as it is. Then the claim is

    supported            every check is met
    partly               some are met, some are not
    contradicted         none is met, and at least one failed
    not at this scale    all are open, or nothing was measured

Nothing here holds a result: change a number in reports/metrics, and the verdict may change.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from dipp_core.book.results import LESS, METRIC_NAMES, MISSING, SHARE, Book, Number, number

MET, FAILED, OPEN = "met", "failed", "open"
SUPPORTED, PARTLY, CONTRADICTED, TOO_SMALL = "supported", "partly", "contradicted", "not at this scale"
NETS = {"unet": "UNet", "dit": "transformer"}
METHODS = {"dipp": "DI++", "distar_in": "DI*"}
CONTROL = {"dipp": "diff_instruct", "distar_in": "sim"}
LAST = "24_miniature_results"


@dataclass(frozen=True)
class Check:
    """One number and what the claim asks of it. rule: "above" or "below" the bound; slack: how far beyond it."""

    about: str  # what is asked; checks that ask the same stand together
    what: str  # of what
    source: str
    rule: str
    bound: float = 0.0
    slack: float = 0.0


@dataclass(frozen=True)
class Claim:
    """A claim of the papers. reported: (label, source) of what they report for it; stages: notebooks to read."""

    name: str
    text: str
    checks: tuple[Check, ...]
    stages: tuple[str, ...]
    reported: tuple[tuple[str, str], ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Bounds:
    """Where a check has to lie, from params.yaml."""

    identity: float
    near: float
    accuracy: float
    share: float


def outcome(check: Check, found: Number | None) -> str:
    """Whether a number meets its check."""
    if found is None:
        return MISSING
    low, high = (found.value if end is None else end for end in (found.low, found.high))
    if check.rule == "below":
        low, high, bound = -high, -low, -check.bound
    elif check.rule == "above":
        bound = check.bound
    else:
        raise ValueError(f"unknown rule {check.rule!r}: above or below")
    if low > bound + check.slack:
        return MET
    if found.low is None and not check.slack:
        return FAILED
    return FAILED if high < bound - check.slack else OPEN


def verdict(outcomes: Sequence[str]) -> str:
    """The verdict on a claim, from the outcomes of its checks."""
    if outcomes and all(one == MET for one in outcomes):
        return SUPPORTED
    if MET in outcomes:
        return PARTLY
    return CONTRADICTED if FAILED in outcomes else TOO_SMALL


def judged(claim: Claim, book: Book) -> tuple[list[tuple[Check, Number | None, str]], str]:
    """The evidence, check by check, and the verdict."""
    evidence = []
    for check in claim.checks:
        found = number(book, check.source)
        evidence.append((check, found, outcome(check, found)))
    return evidence, verdict([one for _, _, one in evidence])


# The claims, in the order in which they are told


def _each(about: str, key: str, rule: str, *, methods: Sequence[str] = tuple(METHODS)) -> list[Check]:
    """A check of notebook 24 for every method and network; key may use {net}, {method}, {control}."""
    found = []
    for method in methods:
        for net in NETS:
            source = key.format(net=net, method=method, control=CONTROL.get(method, ""), last=f"{LAST}:")
            found.append(Check(about, f"{METHODS.get(method, 'reward only')}, {NETS[net]}", source, rule))
    return found


def _gain(about: str, number: str, rule: str = "above") -> list[Check]:
    return _each(about, f"{{last}}gains.{{net}}.{{method}} over {{control}}.{number}", rule)


def _nets(about: str, key: str, rule: str, bound: float = 0.0) -> list[Check]:
    """A check for both networks; key names the stage too."""
    return [Check(about, name, key.format(net=net), rule, bound) for net, name in NETS.items()]


def _nats(about: str, rule: str, more: float = 0.0, slack: float = 0.0) -> list[Check]:
    """Checks of the divergence from the reference, as a share of the control's; seeds are too few for an interval."""
    share = f"{{last}}nats.{{net}}.{{method}}{SHARE}{{last}}nats.{{net}}.{{control}}"
    return [dataclasses.replace(one, bound=1 + more, slack=slack) for one in _each(about, share, rule)]


def _pixart(metric: str) -> tuple[tuple[str, str], ...]:
    """What both papers report of one metric for PixArt-alpha."""
    found = []
    for paper, name in {"dipp": "DI++", "distar_v1": "DI*"}.items():
        model = f"{name} (PixArt-alpha)"
        found.append((f"{model}, {METRIC_NAMES[metric]}", f"reported:{paper} / headline / {model} /  /  / {metric}"))
    return tuple(found)


def _ablation(label: str, model: str, alpha_rew: str, alpha_cfg: str) -> tuple[str, str]:
    key = f"{model} / {alpha_rew} / {alpha_cfg} / image_reward"
    return f"{label}, ImageReward (SDXL)", f"reported:distar_readme / table 3 / {key}"


def _closeness(bounds: Bounds) -> Claim:
    free = f"{{last}}gains.{{net}}.reward_only over diff_instruct.frechet_data{LESS}"
    checks = [
        *_gain("learned reward over the control", "reward"),
        *_gain("gold score over the control", "gold"),
        *_nats(f"nats from the reference, at most {bounds.share:.0%} more than the control's", "below", bounds.share),
        *_each(
            "Fréchet distance to the data: growth without a leash less growth with it",
            f"{free}{{last}}gains.{{net}}.{{method}} over diff_instruct.frechet_data",
            "above",
        ),
        *_gain("Fréchet distance to the data does not grow over the control's", "frechet_data", "below"),
    ]
    text = "The reward goes up while the generator stays close to its reference"
    return Claim("reward and leash", text, tuple(checks), ("23_alignment", LAST), _pixart("image_reward"))


def _guidance(bounds: Bounds) -> Claim:
    identity = Check(
        "guidance inside the divergence is a reward: error of the identity, sample by sample",
        "theory",
        "04_guidance_is_a_reward:cfg_identity_rel_err",
        "below",
        bounds.identity,
    )
    optimum = Check(
        "training with guidance ends at the optimum of that reward: distance to it",
        "plane",
        "11_alignment_2d:cfg_sw2_to_cfg_optimum.worst_mean",
        "below",
        bounds.near,
    )
    reported = (
        _ablation("DI++, no reward, no guidance", "DI++-SDXL", "0", "0"),
        _ablation("guidance alone", "DI++-SDXL (= Diff-Instruct)", "0", "7.5"),
        _ablation("guidance and reward", "DI++-SDXL", "100", "7.5"),
    )
    text = "Classifier-free guidance in distillation is RLHF with a hidden reward"
    stages = ("04_guidance_is_a_reward", "11_alignment_2d")
    return Claim("guidance", text, (identity, optimum), stages, reported)


def _convergence(bounds: Bounds) -> Claim:
    ends = f"{{last}}stopping.{{net}}.{{method}}.updates.end{LESS}{{last}}stopping.{{net}}.{{method}}.updates.best"
    checks = [
        *_nets(
            f"one-step accuracy after distillation, less the reference's, above -{bounds.accuracy:g}",
            "22_distillation:minus_reference.diff_instruct.{net}.accuracy",
            "above",
            -bounds.accuracy,
        ),
        *_gain("gold score over the control after all updates", "gold"),
        *_each("updates after the best look at the gold score: has it levelled off?", ends, "above"),
    ]
    return Claim("convergence", "Training converges fast", tuple(checks), ("22_distillation", "23_alignment", LAST))


def _no_pictures() -> Claim:
    about = "modes found by distillation from scores alone, all eight"
    modes = Check(about, "plane, worst seed", "10_distillation_2d:coverage.worst", "above", 7.5)
    checks = (modes, *_gain("gold score over the control, trained on captions alone", "gold"))
    note = "Algorithm 1 takes no pictures. The reference and the reward, which it takes, were trained on some."
    stages = ("10_distillation_2d", "23_alignment")
    return Claim("no pictures", "Alignment needs no image data", checks, stages, note=note)


def _star(bounds: Bounds) -> Claim:
    def pair(number: str) -> list[Check]:
        names = {"gold": "gold score of DI* less that of DI++", "diversity": "diversity of DI* less that of DI++"}
        key = "24_miniature_results:gains.{net}.%s over diff_instruct." + number
        return _nets(names[number], key % "distar_in" + LESS + key % "dipp", "above")

    def plane(kl: str) -> Check:
        place = "12_pareto_2d:reward_at_equal_kl."
        source = f"{place}distar_trained.kl_{kl}{SHARE}{place}dipp_one_trained.kl_{kl}"
        about = f"reward of DI* as a share of that of DI++ at equal KL, open within {bounds.share:g} of 1"
        return Check(about, f"plane, KL = {kl}", source, "above", 1.0, bounds.share)

    checks = (*pair("gold"), *pair("diversity"), plane("0.5"), plane("1"))
    reported = (*_pixart("image_reward"), *_pixart("aesthetic"), *_pixart("hpsv2_0"))
    text = "DI* is better and more diverse than DI++"
    return Claim("DI* over DI++", text, checks, ("12_pareto_2d", LAST), reported)


def _looks() -> Claim:
    checks = [
        *_each("layout: centring over the control", "{last}looks_gained.{net}.{method}.centring", "above"),
        *_each("colours: saturation over the control", "{last}looks_gained.{net}.{method}.saturation", "above"),
    ]
    return Claim("looks", "Layout improves and colours grow richer", tuple(checks), (LAST,))


def _one_step(book: Book, bounds: Bounds) -> Claim:
    tables = book.metrics.get(LAST, {}).get("table", {}).get("unet", {})
    teachers = [name for name in tables if name.startswith("reference")]
    start = "22_distillation:minus_reference.diff_instruct.{net}."
    checks = [
        *_nets(
            f"one-step accuracy less the reference's in many steps, above -{bounds.accuracy:g}",
            f"{start}accuracy",
            "above",
            -bounds.accuracy,
        ),
        *_nets("gold score of the one-step start less the reference's in many steps", f"{start}gold", "above"),
        *_nets("diversity of the one-step start less the reference's", f"{start}diversity", "above"),
    ]
    for name in teachers:
        key = f"{LAST}:table.{{net}}."
        about = f"gold score of DI++ in one step less that of the {name.replace('reference', 'reference at guidance')}"
        checks += _nets(about, f"{key}dipp.gold{LESS}{key}{name}.gold", "above")
    table = "reported:distar_readme / table 2 / "
    reported = (
        ("DI*-SDXL, 1 step, HPSv2.1", f"{table}DI*-SDXL (longer training) /  /  / hpsv2_1"),
        ("FLUX-dev, 50 steps, HPSv2.1", f"{table}FLUX-dev /  /  / hpsv2_1"),
    )
    return Claim("one step", "One step rivals many", tuple(checks), ("22_distillation", LAST), reported)


def _hacking() -> Claim:
    free, gain = {"methods": ("reward_only",)}, "{last}gains.{net}.{method} over diff_instruct"
    checks = [
        *_each("without a leash the learned reward rises", f"{gain}.reward", "above", **free),
        *_each("and the gold score falls", f"{gain}.gold", "below", **free),
    ]
    for weight, name in (("one", "w = 1"), ("sigma2", "w ~ sigma^2")):
        about = "with too long a leash, loss of true reward from the best strength to the largest"
        checks.append(Check(about, f"plane, {name}", f"13_reward_hacking_2d:hump.{weight}.largest", "above"))
    text = "Failure: over-alignment to the simulated preference"
    return Claim("over-alignment", text, tuple(checks), ("13_reward_hacking_2d", LAST))


def _drift(bounds: Bounds) -> Claim:
    about = f"nats from the reference as a share of the control's, open within {bounds.share:g} of 1"
    checks = (
        *_nats(about, "above", slack=bounds.share),
        *_gain("Fréchet distance to the data over the control's", "frechet_data"),
        *_gain("diversity over the control's", "diversity", "below"),
    )
    return Claim("drift", "Failure: drift from the reference", checks, (LAST,))


def _unusual() -> Claim:
    checks = []
    for what in ("held out", "reordered", "unknown words"):
        key = f"{LAST}:robust.{{net}}.{what}.dipp.accuracy{LESS}{LAST}:table.{{net}}.dipp.accuracy"
        checks += _nets(f"accuracy of DI++ on captions that are {what}, less that on test captions", key, "below")
    key = f"{{last}}robust_gains.{{net}}.held out.{{method}}.gold{LESS}"
    key += "{last}gains.{net}.{method} over {control}.gold"
    checks += _each("gold gained on held-out combinations less gold gained on test captions", key, "below")
    return Claim("unusual prompts", "Failure: weakness on unusual prompts", tuple(checks), (LAST,))


def all_claims(book: Book, bounds: Bounds) -> list[Claim]:
    """All claims, in the order in which they are told."""
    return [
        _closeness(bounds),
        _guidance(bounds),
        _convergence(bounds),
        _no_pictures(),
        _star(bounds),
        _looks(),
        _one_step(book, bounds),
        _hacking(),
        _drift(bounds),
        _unusual(),
    ]
