"""Votes on blinded pairs of pictures, kept as they come: a crash loses none, and a later start goes on from there.

    votes/NAME/pairs.safetensors   the pictures as they are shown, and which side model a is on
    votes/NAME/votes.jsonl         {"voter": "you"}, then {"pair": 0, "vote": "left", "caption": ".."}, one line a vote

A vote counts once its line is on the disk (fsync). The file of votes does not say which model was where, so it can be
looked at while the round is under way. "back" takes the last vote back.
"""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dipp_core.files import write_whole

VOTES = ("left", "right", "tie")
SCORES = {"left": 1.0, "tie": 0.5, "right": 0.0}
PAIRS, FILE = "pairs.safetensors", "votes.jsonl"
HELD: dict[pathlib.Path, "Ballot"] = {}  # what this process has open: opened again, the newer form takes over


class VotesError(RuntimeError):
    """One line that says why votes cannot be read or kept, and what to do."""


@dataclass(frozen=True)
class Round:
    """Pairs to be voted on: captions (n), pictures left and right (n, 3, H, W) uint8, a_left (n,) bool: the secret."""

    captions: tuple[str, ...]
    left: Tensor
    right: Tensor
    a_left: Tensor

    def __len__(self) -> int:
        return len(self.captions)

    def pictures(self, count: int) -> tuple[Tensor, Tensor]:
        """The first `count` pictures on the left and on the right, (count, 3, H, W) each, in [0, 1]."""
        return self.left[:count].float() / 255, self.right[:count].float() / 255


@dataclass
class Ballot:
    """A round, and the votes on it so far: answers, one of `VOTES` each, for the first pairs in order."""

    folder: pathlib.Path
    round: Round
    voter: str
    answers: list[str] = field(default_factory=list)
    descriptor: int | None = None

    @property
    def done(self) -> bool:
        return len(self.answers) == len(self.round)

    def vote(self, vote: str) -> None:
        """Keep a vote on the next pair; when this returns it is on the disk."""
        if vote not in VOTES:
            raise VotesError(f"{vote!r} is no vote: {', '.join(VOTES)}")
        if self.done:
            raise VotesError(f"all {len(self.round)} pairs of {self.folder.name} have their vote")
        pair = len(self.answers)
        self._keep({"pair": pair, "vote": vote, "caption": self.round.captions[pair]})
        self.answers.append(vote)

    def back(self) -> None:
        """Take the last vote back; what was voted stays in the file."""
        if self.answers:
            self._keep({"pair": len(self.answers) - 1, "vote": "back"})
            self.answers.pop()

    def scores(self) -> Tensor:
        """For every vote 1 where left was better, 0 where right was, 1/2 for a tie, (votes,)."""
        return torch.tensor([SCORES[answer] for answer in self.answers])

    def scores_of_a(self) -> Tensor:
        """The same for model a: this lifts the blind."""
        scores = self.scores()
        return torch.where(self.round.a_left[: len(scores)], scores, 1 - scores)

    def close(self) -> None:
        """Let go of the file; another notebook may open it then."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None

    def _keep(self, line: dict) -> None:
        if self.descriptor is None:
            raise VotesError(f"this form of {self.folder.name} is closed, a newer one has taken over: vote there")
        try:
            _append(self.descriptor, line)
        except OSError as error:
            what = error.strerror or str(error)
            raise VotesError(
                f"{self.folder / FILE}: the vote was not saved ({what}); cure that and vote again"
            ) from None


def open_ballot(
    folder: pathlib.Path | str, new_round: Round, *, voter: str, say: Callable[[str], None] = print
) -> Ballot:
    """Begin voting on a round, or go on where it stopped. `voter` says whose votes these are; they are never mixed."""
    folder = pathlib.Path(folder).resolve()
    if earlier := HELD.pop(folder, None):
        earlier.close()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / FILE, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    except OSError as error:
        raise VotesError(
            f"{folder}: votes cannot be kept there ({error.strerror}); free it or choose another"
        ) from None
    ballot = Ballot(folder, new_round, voter, descriptor=descriptor)
    try:
        _lock(ballot)
        lines = _whole_lines(ballot, say)
        if not lines:
            _append(descriptor, {"voter": voter})
        else:
            _replay(ballot, lines)
        _agree(ballot)
    except BaseException:
        ballot.close()
        raise
    HELD[folder] = ballot
    if ballot.answers:
        say(f"{folder.name}: going on after {len(ballot.answers)} of {len(ballot.round)} votes")
    return ballot


def _append(descriptor: int, line: dict) -> None:
    """One line, on the disk when this returns; what could not be written whole is cut off again."""
    content, size = (json.dumps(line) + "\n").encode(), os.fstat(descriptor).st_size
    try:
        if os.write(descriptor, content) < len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(descriptor)
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, size)
        raise


def _lock(ballot: Ballot) -> None:
    """The lock vanishes with its process, however that ends."""
    try:
        fcntl.flock(ballot.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        what = "is open in another notebook: close that one (shut its kernel down), then run this cell again"
        raise VotesError(f"{ballot.folder / FILE} {what}") from None
    except OSError as error:
        why = f"cannot be locked ({error.strerror}): put it on a disk of this machine"
        raise VotesError(f"{ballot.folder / FILE} {why}") from None


def _whole_lines(ballot: Ballot, say: Callable[[str], None]) -> list[dict]:
    """The lines of the file; a broken last one, which a crash may leave, is dropped and said."""
    path, descriptor = ballot.folder / FILE, ballot.descriptor
    content = path.read_bytes()
    lines, kept = [], 0
    while kept < len(content):
        end = content.find(b"\n", kept) + 1 or len(content)
        try:
            lines.append(_line(content[kept:end]))
        except ValueError:
            if end < len(content):
                raise VotesError(f"{path}, line {len(lines) + 1} cannot be read; repair or remove that line") from None
            say(f"{path}: dropped a broken last line ({end - kept} bytes), which had not been saved whole")
            os.ftruncate(descriptor, kept)
            os.fsync(descriptor)
            return lines
        kept = end
    if content and not content.endswith(b"\n"):  # whole but for its end, as an editor may leave it
        os.write(descriptor, b"\n")
        os.fsync(descriptor)
    return lines


def _line(content: bytes) -> dict:
    found = json.loads(content)
    if not isinstance(found, dict):
        raise ValueError
    return found


def _replay(ballot: Ballot, lines: list[dict]) -> None:
    """The votes that the lines say, in order."""
    path, (head, *votes) = ballot.folder / FILE, lines
    if head.get("voter") != ballot.voter:
        whose = f"holds the votes of {head.get('voter')!r}, not of {ballot.voter!r}"
        raise VotesError(f"{path} {whose}: rename or remove {ballot.folder}")
    for number, line in enumerate(votes, start=2):
        pair, vote, answers = line.get("pair"), line.get("vote"), ballot.answers
        if vote in VOTES and pair == len(answers):
            answers.append(vote)
        elif vote == "back" and answers and pair == len(answers) - 1:
            answers.pop()
        else:
            raise VotesError(f"{path}, line {number} is out of order; repair or remove {ballot.folder}")


def _agree(ballot: Ballot) -> None:
    """Votes belong to the pictures that were seen: those are kept beside them, and others are refused."""
    from safetensors.torch import save

    path, new = ballot.folder / PAIRS, ballot.round
    if ballot.answers:
        ballot.round = kept = _kept_round(path)
        sides = [(getattr(kept, name), getattr(new, name)) for name in ("left", "right", "a_left")]
        same = kept.captions == new.captions and all(a.shape == b.shape for a, b in sides)
        if not same or any((a.int() - b.int()).abs().max() > 1 for a, b in sides[:2]) or not torch.equal(*sides[2]):
            what = "holds votes on other pictures (other models, captions or numbers)"
            raise VotesError(f"{path.parent} {what}: rename it to keep them, or remove it, then run this again")
        return
    tensors = {"left": new.left, "right": new.right, "a_left": new.a_left.to(torch.uint8)}
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    write_whole(path, save(whole, metadata={"captions": json.dumps(new.captions)}))
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def _kept_round(path: pathlib.Path) -> Round:
    """The pairs that were voted on."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            captions = tuple(json.loads(file.metadata()["captions"]))
            left, right, a_left = (file.get_tensor(name) for name in ("left", "right", "a_left"))
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        why = "is missing or broken, so nobody knows what was voted on"
        raise VotesError(f"{path} {why}: rename or remove {path.parent}, then run this again") from None
    return Round(captions, left, right, a_left.bool())
