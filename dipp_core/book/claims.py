"""The claims of both papers, each taken apart into checks of numbers that the notebooks measured, and the rule.

A check is of one number against one bound. It is met or failed only where the whole 95% interval lies on one side of
the bound; else it is open. A number without interval counts as it is. Then the claim is

    supported            every check is met
    partly               some are met, some are not
    contradicted         none is met, and at least one failed
    not at this scale    all are open, or nothing was measured

The claims themselves are data, in data/reported/claims.toml. Nothing there or here holds a result: change a number in
reports/metrics, and the verdict may change.
"""

import itertools
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dipp_core.book.results import MISSING, Book, Number, number
from dipp_core.files import root

MET, FAILED, OPEN = "met", "failed", "open"
SUPPORTED, PARTLY, CONTRADICTED, TOO_SMALL = "supported", "partly", "contradicted", "not at this scale"
NETS = {"unet": "UNet", "dit": "transformer"}
METHODS = {"dipp": "DI++", "distar_in": "DI*"}
CONTROL = {"dipp": "diff_instruct", "distar_in": "sim"}
LAST = "24_miniature_results"
Rule = Literal["above", "below"]


@dataclass(frozen=True)
class Check:
    """One number and what the claim asks of it: to lie above or below the bound, by more than the slack."""

    about: str  # what is asked; checks that ask the same stand together
    what: str  # of what
    source: str
    rule: Rule
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
    bound = check.bound
    if check.rule == "below":
        low, high, bound = -high, -low, -bound
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
    found = [(check, number(book, check.source)) for check in claim.checks]
    evidence = [(check, one, outcome(check, one)) for check, one in found]
    return evidence, verdict([met for _, _, met in evidence])


def checks(asked: dict[str, Any], book: Book, bounds: Bounds) -> list[Check]:
    """The checks that one row of claims.toml stands for: of every network, method and reference that it names."""
    share, accuracy = bounds.share, bounds.accuracy
    named = {"identity": bounds.identity, "near": bounds.near, "share": share}
    named |= {"-accuracy": -accuracy, "1 + share": 1 + share}
    rule: Rule = "above" if "above" in asked else "below"
    bound, slack = (named.get(value, value) for value in (asked[rule], asked.get("slack", 0.0)))
    source, drawn = asked["source"], book.metrics.get(LAST, {}).get("table", {}).get("unet", {})
    guidances = [name.removeprefix("reference ") for name in drawn if name.startswith("reference ")]
    methods, nets = (names if key in source else [""] for key, names in (("{method}", METHODS), ("{net}", NETS)))
    found = []
    for guidance, method, net in itertools.product(guidances if "{guidance}" in source else [""], methods, nets):
        what = asked.get("what", "{method}, {network}" if method else "{network}")
        found.append(
            Check(
                asked["about"].format(share=share, accuracy=accuracy, guidance=guidance),
                what.format(method=METHODS.get(method), network=NETS.get(net)),
                source.format(net=net, method=method, control=CONTROL.get(method), guidance=guidance),
                rule,
                bound,
                slack,
            )
        )
    return found


def read_claims() -> dict[str, list[dict]]:
    """What the papers claim, and what was found beyond."""
    return tomllib.loads((root() / "data" / "reported" / "claims.toml").read_text())


def all_claims(book: Book, bounds: Bounds) -> list[Claim]:
    """All claims, in the order in which they are told."""
    found = []
    for claim in read_claims()["claims"]:
        asked = tuple(check for row in claim["checks"] for check in checks(row, book, bounds))
        reported = tuple((label, source) for label, source in claim.get("reported", []))
        found.append(
            Claim(claim["name"], claim["text"], asked, tuple(claim["stages"]), reported, claim.get("note", ""))
        )
    return found
