"""The rule by which a claim of the papers gets its verdict from what was measured here.

A claim is taken apart into checks, each of one number against one bound. A check is met or failed only where the whole
95% interval lies on one side of the bound; else it is open. A number without interval counts as it is. Then

    supported            every check is met
    partly               some are met, some are not
    contradicted         none is met, and at least one failed
    not at this scale    all are open, or nothing was measured

Nothing here holds a result: change a number in reports/metrics, and the verdict may change.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dipp_core.book import paper_numbers
from dipp_core.book.paper_numbers import Book, Number

MET, FAILED, OPEN, MISSING = "met", "failed", "open", "not run here"
SUPPORTED, PARTLY, CONTRADICTED, TOO_SMALL = "supported", "partly", "contradicted", "not at this scale"


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
        found = paper_numbers.number(book, check.source)
        evidence.append((check, found, outcome(check, found)))
    return evidence, verdict([one for _, _, one in evidence])
