"""The claims of both papers, each taken apart into questions and tests that were fixed beforehand, and one rule.

A test asks of one measured number whether it lies above or below a bound. It is met or failed only where the whole 95%
interval lies on one side, else open; a number without an interval decides nothing, unless it is exact (an error of
rounding, a count). A question has a test for every network, method and comparator it is asked of:

    yes       all of its tests are met
    no        at least one failed, and none is met
    mixed     some are met, some failed
    open      else

A claim says that all of its questions have the answer yes:

    supported       all are yes
    contradicted    at least one is no
    partly          none is no, and at least one is yes or mixed
    undecided       all are open

No number serves two claims. The claims are data, in data/reported/claims.toml; nothing there or here holds a result.
"""

import itertools
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dipp_core.book.results import MISSING, Book, Number, number
from dipp_core.files import root

MET, FAILED, OPEN = "met", "failed", "open"
YES, NO, MIXED = "yes", "no", "mixed"
SUPPORTED, PARTLY, CONTRADICTED, UNDECIDED = "supported", "partly", "contradicted", "undecided"
NETS = {"unet": "UNet", "dit": "transformer"}
METHODS = {"dipp": "DI++", "distar_in": "DI*"}
CONTROL = {"dipp": "diff_instruct", "distar_in": "sim"}
COMPARATORS = ("steps 1", "steps 2", "steps 4", "steps 15", "guidance 1.5", "guidance 2", "guidance 3")
LAST = "24_miniature_results"
Rule = Literal["above", "below"]


@dataclass(frozen=True)
class Check:
    """A test: what is asked, of which cell (network, method, comparator, ..), and where the number has to lie."""

    about: str
    cell: tuple[str, ...]
    source: str
    rule: Rule
    bound: float = 0.0
    exact: bool = False  # the number has no chance in it

    @property
    def what(self) -> str:
        """The cell in words."""
        return ", ".join(self.cell)


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
    """Where a test has to lie, from params.yaml."""

    identity: float
    near: float
    accuracy: float
    share: float
    settled: float


def outcome(check: Check, found: Number | None) -> str:
    """Whether a number meets its test."""
    if found is None:
        return MISSING
    if found.low is None and not check.exact:
        return OPEN
    low, high = (found.value if end is None else end for end in (found.low, found.high))
    bound = check.bound
    if check.rule == "below":
        low, high, bound = -high, -low, -bound
    return MET if low > bound else FAILED if high < bound or (check.exact and high == bound) else OPEN


def answer(outcomes: Sequence[str]) -> str:
    """The answer to a question, from the outcomes of its tests."""
    if outcomes and all(one == MET for one in outcomes):
        return YES
    if FAILED in outcomes:
        return MIXED if MET in outcomes else NO
    return OPEN


def verdict(answers: Sequence[str]) -> str:
    """The verdict on a claim, from the answers to its questions."""
    if NO in answers:
        return CONTRADICTED
    if answers and all(one == YES for one in answers):
        return SUPPORTED
    return PARTLY if YES in answers or MIXED in answers else UNDECIDED


Evidence = list[tuple[Check, Number | None, str]]


def answers(evidence: Evidence) -> dict[str, str]:
    """The questions of a claim, and their answers."""
    asked = dict.fromkeys(check.about for check, _, _ in evidence)
    return {about: answer([met for check, _, met in evidence if check.about == about]) for about in asked}


def judged(claim: Claim, book: Book, asked: Callable[[Check], bool] = lambda check: True) -> tuple[Evidence, str]:
    """The evidence, test by test, and the verdict; `asked` leaves tests out, to see what hangs on them."""
    found = [(check, number(book, check.source)) for check in claim.checks if asked(check)]
    evidence = [(check, one, outcome(check, one)) for check, one in found]
    return evidence, verdict(list(answers(evidence).values()))


def checks(asked: dict[str, Any], bounds: Bounds) -> list[Check]:
    """The tests that one row of claims.toml stands for: of every network, method and comparator that it names."""
    named = {name: getattr(bounds, name) for name in Bounds.__dataclass_fields__}
    named |= {f"-{name}": -value for name, value in named.items()} | {"1 + share": 1 + bounds.share}
    rule: Rule = "above" if "above" in asked else "below"
    source, bound = asked["source"], named.get(asked[rule], asked[rule])
    every = (("{method}", METHODS), ("{net}", NETS), ("{comparator}", COMPARATORS), ("{weight}", ("one", "sigma2")))
    found = []
    for method, net, comparator, weight in itertools.product(
        *([*names] if key in source else [""] for key, names in every)
    ):
        cell = (asked.get("what", ""), METHODS.get(method), NETS.get(net), comparator, weight and f"w = {weight}")
        keys = {
            "net": net,
            "method": method,
            "control": CONTROL.get(method),
            "comparator": comparator,
            "weight": weight,
        }
        about, where = asked["about"].format(**vars(bounds)), source.format(**keys)
        found.append(Check(about, tuple(filter(None, cell)), where, rule, bound, asked.get("exact", False)))
    return found


def read_claims() -> dict[str, list[dict]]:
    """What the papers claim, what was found beyond, and what does not work."""
    return tomllib.loads((root() / "data" / "reported" / "claims.toml").read_text())


def all_claims(bounds: Bounds) -> list[Claim]:
    """All claims, in the order in which they are told."""
    found = []
    for claim in read_claims()["claims"]:
        asked = tuple(check for row in claim["tests"] for check in checks(row, bounds))
        reported = tuple((label, source) for label, source in claim.get("reported", []))
        found.append(
            Claim(claim["name"], claim["text"], asked, tuple(claim["stages"]), reported, claim.get("note", ""))
        )
    return found
