"""Blinded votes on pairs of pictures: rounds of pairs, votes kept as they come, the form, win rates, a learned taste.

    votes/NAME/pairs.safetensors   the pictures as they are shown, and which side model a is on
    votes/NAME/votes.json          {"voter": "you", "votes": ["left", "tie", ..]}, for the first pairs in order

The file of votes is written whole at every vote, beside the old one and renamed: a crash loses none, and a later start
goes on from there. It does not say which model was where, so it can be looked at while the round is under way. Any two
exported models can be compared:

    two = blind_round(exported(folder_a, t_star), exported(folder_b, t_star), captions, pairs=40, generator=rng)
    ballot = open_ballot(votes_folder("two"), two, voter="you")
    VoteForm(ballot).widget
"""

import contextlib
import html
import io
import json
import math
import pathlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dipp_core import files
from dipp_core.files import InputError, only_one, read_json, write_whole
from dipp_core.models import folders
from dipp_core.rewards.shapes import PreferenceReward, bradley_terry_loss
from dipp_core.training import watch

SCORES = {"left": 1.0, "tie": 0.5, "right": 0.0}
PAIRS, FILE = "pairs.safetensors", "votes.json"
Painter = Callable[[Sequence[str], int], Tensor]  # (n captions, seed) -> pictures (n, 3, H, W) in [0, 1]


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


def exported(folder: pathlib.Path | str, t_star: int) -> Painter:
    """Draws with a one-step model that `folders.export` wrote, asked at its timestep."""
    world = folders.load(folder)
    gen = world.generator(t_star)
    return lambda captions, seed: world.paint(gen, world.prompts(captions), 1, seed=seed)[:, 0]


def blind_round(
    model_a: Painter,
    model_b: Painter,
    captions: Sequence[str],
    *,
    pairs: int,
    same_noise: bool = True,
    generator: torch.Generator,
) -> Round:
    """Pairs of pictures, one by either model, of one caption each; which side is whose is drawn, half of them each.

    Captions come in random order, none again before all have come. same_noise: both models draw from the same z, so
    that they differ in nothing else; for two pictures by *one* model the noise has to be its own.
    """
    if model_a is model_b and same_noise:
        raise InputError("one model draws the same picture twice from the same noise: give same_noise=False")
    if pairs < 1 or not captions:
        raise InputError(f"{pairs} pairs of {len(captions)} captions are none: give at least one of each")
    times = math.ceil(pairs / len(captions))
    order = torch.cat([torch.randperm(len(captions), generator=generator) for _ in range(times)])[:pairs]
    texts = [captions[row] for row in order.tolist()]
    seeds = torch.randint(2**31, (2,), generator=generator).tolist()
    a, b = model_a(texts, seeds[0]), model_b(texts, seeds[0 if same_noise else 1])
    extra = int(torch.randint(2, (1,), generator=generator))  # who has one more, where the number is odd
    a_left = (torch.arange(pairs) + extra) % 2 == 0
    a_left = a_left[torch.randperm(pairs, generator=generator)]
    a, b = (images.clamp(0, 1).mul(255).round().to(torch.uint8) for images in (a, b))
    side = a_left[:, None, None, None]
    return Round(tuple(texts), torch.where(side, a, b), torch.where(side, b, a), a_left)


class Voted(NamedTuple):
    """Pictures (n, 3, H, W) in [0, 1], n captions, scores (n,): 1 where left is better, 0 where right is, 1/2 a tie."""

    left: Tensor
    right: Tensor
    captions: Sequence[str]
    scores: Tensor


@dataclass
class Ballot:
    """A round, and the votes on it so far: answers, one of left, right and tie each, for the first pairs in order."""

    folder: pathlib.Path
    round: Round
    voter: str
    lock: contextlib.ExitStack
    answers: list[str] = field(default_factory=list)
    closed: bool = False

    @property
    def done(self) -> bool:
        return len(self.answers) == len(self.round)

    def vote(self, vote: str) -> None:
        """Keep a vote on the next pair; when this returns it is on the disk."""
        if vote not in SCORES:
            raise InputError(f"{vote!r} is no vote: {', '.join(SCORES)}")
        if self.done:
            raise InputError(f"all {len(self.round)} pairs of {self.folder.name} have their vote")
        self.keep([*self.answers, vote])

    def back(self) -> None:
        """Take the last vote back."""
        self.keep(self.answers[:-1])

    def fill(self, votes: Sequence[str]) -> None:
        """Votes of a simulated voter on all pairs that have none yet."""
        self.keep([*self.answers, *votes[len(self.answers) : len(self.round)]])

    def keep(self, answers: list[str]) -> None:
        """These are the votes; on the disk when this returns, or nothing has changed."""
        if self.closed:
            raise InputError(f"this form of {self.folder.name} is closed, a newer one has taken over: vote there")
        try:
            write_whole(self.folder / FILE, json.dumps({"voter": self.voter, "votes": answers}))
        except OSError as error:
            why = f"the vote was not saved ({error.strerror or error}); cure that and vote again"
            raise InputError(f"{self.folder / FILE}: {why}") from None
        self.answers = answers

    def close(self) -> None:
        """Let go of the folder; another notebook may open it then."""
        self.closed = True
        self.lock.close()

    def voted(self) -> Voted:
        """What a reward learns from, of all pairs that have a vote."""
        count = len(self.answers)
        scores = torch.tensor([SCORES[answer] for answer in self.answers])
        return Voted(*self.round.pictures(count), self.round.captions[:count], scores)

    def scores_of_a(self) -> Tensor:
        """The scores for model a, (votes,): this lifts the blind."""
        scores = self.voted().scores
        return torch.where(self.round.a_left[: len(scores)], scores, 1 - scores)

    def rows(self) -> list[dict]:
        """The votes as rows of a table, with the voter's name in each, and which side model a was on."""
        sides = ["left" if left else "right" for left in self.round.a_left.tolist()]
        found = zip(self.round.captions, sides, self.answers, strict=False)
        return [{"voter": self.voter, "caption": text, "a_is": side, "vote": vote} for text, side, vote in found]


OPEN_BALLOTS: dict[pathlib.Path, Ballot] = {}  # of this process: a round opened again belongs to the newer form


def open_ballot(
    folder: pathlib.Path | str, new_round: Round, *, voter: str, say: Callable[[str], None] = print
) -> Ballot:
    """Begin voting on a round, or go on where it stopped. `voter` says whose votes these are; they are never mixed."""
    folder = pathlib.Path(folder).resolve()
    if earlier := OPEN_BALLOTS.pop(folder, None):
        earlier.close()
    cure = "shut the kernel of the other notebook down, then run this cell again"
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(only_one(folder / ".lock", f"voting in {folder}", cure))
        except OSError as error:
            why = f"votes cannot be kept there ({error.strerror}); free it or choose another"
            raise InputError(f"{folder}: {why}") from None
        ballot = Ballot(folder, new_round, voter, held)
        if answers := _kept_votes(folder / FILE, voter):
            _check_same_pictures(ballot)
            ballot.answers = answers
            say(f"{folder.name}: going on after {len(answers)} of {len(new_round)} votes")
        else:
            _keep_pictures(ballot)
            ballot.keep([])
        ballot.lock = held.pop_all()
    OPEN_BALLOTS[folder] = ballot
    return ballot


def _kept_votes(path: pathlib.Path, voter: str) -> list[str]:
    """The votes of this voter that are there already."""
    if not path.exists():
        return []
    cure = f"rename or remove {path.parent}"
    kept = read_json(path, cure)
    votes = kept.get("votes") if isinstance(kept, dict) else None
    if not isinstance(votes, list) or not set(votes) <= set(SCORES):
        raise InputError(f"{path} holds no votes; {cure}")
    if kept.get("voter") != voter:
        raise InputError(f"{path} holds the votes of {kept.get('voter')!r}, not of {voter!r}; {cure}")
    return votes


def _keep_pictures(ballot: Ballot) -> None:
    """Votes belong to the pictures that were seen: those are kept beside them."""
    from safetensors.torch import save

    pairs = ballot.round
    sides = {"left": pairs.left.contiguous(), "right": pairs.right.contiguous()}
    tensors = sides | {"a_left": pairs.a_left.to(torch.uint8)}
    write_whole(ballot.folder / PAIRS, save(tensors, metadata={"captions": json.dumps(pairs.captions)}))


def _check_same_pictures(ballot: Ballot) -> None:
    """Go on with the pictures that were voted on; refuse others, but for the rounding of a pixel."""
    from safetensors import SafetensorError, safe_open

    path, new = ballot.folder / PAIRS, ballot.round
    try:
        with safe_open(path, framework="pt") as file:
            captions = tuple(json.loads(file.metadata()["captions"]))
            left, right, a_left = (file.get_tensor(name) for name in ("left", "right", "a_left"))
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        why = "is missing or broken, so nobody knows what was voted on"
        raise InputError(f"{path} {why}: rename or remove {ballot.folder}, then run this again") from None

    def alike(old: Tensor, now: Tensor) -> bool:
        return old.shape == now.shape and int((old.int() - now.int()).abs().max()) <= 1

    same_pictures = alike(left, new.left) and alike(right, new.right)
    if captions != new.captions or not same_pictures or not torch.equal(a_left.bool(), new.a_left):
        what = "holds votes on other pictures (other models, captions or numbers)"
        raise InputError(f"{ballot.folder} {what}: rename it to keep them, or remove it, then run this again")
    ballot.round = Round(captions, left, right, a_left.bool())


KEYS = {"l": "left", "r": "right", "t": "tie", "b": "back"}
LABELS = {"left": "left is better", "tie": "no difference", "right": "right is better", "back": "take back"}
HELP = (
    "Tab goes from button to button, Space or Enter presses it. Faster: click into the field once and type "
    "<b>l</b> (left), <b>r</b> (right), <b>t</b> (no difference) or <b>b</b> (take the last vote back)."
)


def votes_by(wanted: str) -> str:
    """Who votes: "you" where somebody watches the notebook, else "simulated"; whoever wants that gets it anywhere."""
    return "you" if wanted == "you" and watch.is_live() else "simulated"


def votes_folder(name: str) -> pathlib.Path:
    """Where the reader's votes on a round are kept: votes/NAME in the checkout, out of reach of `make clean`."""
    return files.root() / "votes" / name


class VoteForm:
    """Two pictures, a button for every vote and for "back", a field for those who would rather type, and a status.

    It shows the first pair of the ballot that has no vote yet; nothing on it says which model drew what.
    pause: seconds a pair must have been on the screen; what comes sooner, as from a double click, is no vote.
    """

    def __init__(self, ballot: Ballot, *, pause: float = 0.25):
        import ipywidgets as widgets

        self.ballot, self.pause, self.since = ballot, pause, -math.inf
        self.buttons = {name: widgets.Button(description=label, tooltip=label) for name, label in LABELS.items()}
        size = {"width": "256px", "height": "256px"}
        self.left, self.right = (widgets.Image(format="png", layout=size) for _ in range(2))
        wide = {"description_width": "initial"}
        self.field = widgets.Text(description="or type l, r, t, b", continuous_update=True, style=wide)
        self.caption, self.status = widgets.HTML(), widgets.HTML()
        sides = [widgets.VBox([getattr(self, side), self.buttons[side]]) for side in ("left", "right")]
        others = widgets.HBox([self.buttons["tie"], self.buttons["back"]])
        rows = [widgets.HTML(HELP), self.caption, widgets.HBox(sides), others, self.field, self.status]
        self.widget = widgets.VBox(rows)
        for name, button in self.buttons.items():
            button.on_click(lambda _, name=name: self.press(name))
        self.field.observe(self._typed, names="value")
        self._show()

    def press(self, vote: str) -> None:
        """What a button or a letter does: a vote on the pair that is shown, or "back"."""
        if vote != "back" and (self.ballot.done or time.monotonic() - self.since < self.pause):
            return
        try:
            self.ballot.back() if vote == "back" else self.ballot.vote(vote)
            self._show()
        except InputError as error:
            self._show(str(error))

    def _typed(self, change: Any) -> None:
        if change["new"]:
            self.field.value = ""
            if vote := KEYS.get(change["new"][-1].lower()):
                self.press(vote)

    def _show(self, problem: str = "") -> None:
        """Bring the form to where the ballot is."""
        done, pairs = len(self.ballot.answers), self.ballot.round
        for name, button in self.buttons.items():
            button.disabled = done == 0 if name == "back" else self.ballot.done
        words = f"{done} of {len(pairs)} votes are saved."
        if self.ballot.done:
            words += " That was the last pair: run the next cell."
            self.caption.value = "<h3>Thank you.</h3>"
        else:
            self.caption.value = f"<h3>{html.escape(pairs.captions[done])}</h3>"
            self.left.value, self.right.value = _png(pairs.left[done]), _png(pairs.right[done])
        self.status.value = f'<span role="status" aria-live="polite">{html.escape(problem or words)}</span>'
        self.since = time.monotonic()


def _png(image: Tensor, pixels: int = 256) -> bytes:
    """A picture (3, H, W) uint8 as PNG, enlarged without smoothing."""
    from PIL import Image

    small = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    buffer = io.BytesIO()
    small.resize((pixels, pixels), Image.Resampling.NEAREST).save(buffer, "PNG")
    return buffer.getvalue()


def warmth(images: Tensor) -> Tensor:
    """Mean red less mean blue; images (n, 3, H, W) -> (n,)."""
    return images[:, 0].mean((1, 2)) - images[:, 2].mean((1, 2))


def vividness(images: Tensor) -> Tensor:
    """Mean over pixels of the largest less the smallest of red, green and blue, (n,)."""
    return (images.amax(1) - images.amin(1)).mean((1, 2))


def brightness(images: Tensor) -> Tensor:
    """Mean of all pixels, (n,)."""
    return images.mean((1, 2, 3))


LIKES = {"warm": warmth, "vivid": vividness, "bright": brightness}


@dataclass(frozen=True)
class SimulatedVoter:
    """A rule with noise that votes like somebody who likes warm, vivid or bright pictures.

    With utility u in units of `unit`, P(left) = sigmoid(sharpness (u_left - u_right)); nearer than `tie`, it is a tie.
    """

    likes: str
    unit: float
    sharpness: float
    tie: float

    @property
    def name(self) -> str:
        return f"simulated voter, likes {self.likes} pictures"

    def gaps(self, left: Tensor, right: Tensor) -> Tensor:
        """u_left - u_right in units, (n,)."""
        utility = LIKES[self.likes]
        return (utility(left) - utility(right)) / self.unit

    def votes(self, left: Tensor, right: Tensor, *, generator: torch.Generator) -> list[str]:
        """Its votes on pictures left, right (n, 3, H, W)."""
        gaps = self.gaps(left, right)
        chance = torch.rand(gaps.shape, generator=generator)
        lefts = (chance < torch.sigmoid(self.sharpness * gaps)).tolist()
        ties = (gaps.abs() < self.tie).tolist()
        return ["tie" if tie else "left" if left else "right" for tie, left in zip(ties, lefts, strict=True)]


def unit_of(likes: str, left: Tensor, right: Tensor) -> float:
    """By how much pictures of one caption differ in what is liked: rms difference over pairs, divided by sqrt 2."""
    utility = LIKES[likes]
    return max(float((utility(left) - utility(right)).square().mean().sqrt()) / 2**0.5, 1e-6)


@dataclass(frozen=True)
class WinRate:
    """(wins + ties / 2) / votes, and the ends of its 95% interval."""

    rate: float
    low: float
    high: float
    votes: int
    wins: int
    ties: int
    losses: int


def wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's score interval of a share among n independent votes: all p with |share - p| <= z sqrt(p (1 - p) / n)."""
    z = 1.959964  # 95%
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def win_rate(scores: Tensor) -> WinRate:
    """The win rate of scores 1, 1/2, 0. A tie is half a win, and the interval is Wilson's for that share.

    With ties it is wider than need be, never narrower: the variance of a score in {0, 1/2, 1} of mean p is at most
    p (1 - p), which is that of a score without ties.
    """
    if not len(scores):
        raise InputError("a win rate needs at least one vote")
    wins, ties, n = int((scores == 1).sum()), int((scores == 0.5).sum()), len(scores)
    rate = (wins + ties / 2) / n
    return WinRate(rate, *wilson(rate, n), n, wins, ties, n - wins - ties)


@dataclass(frozen=True)
class Taste:
    """r(x, c) = direction . features(x, c) / scale: pictures (B, 3, 32, 32) and B captions -> (B,), differentiable.

    The features are those of the miniature's learned reward, `judge`, taught by thousands of pairs and frozen here; its
    own verdict goes, since a new voter may like something else. scale, direction (128,), the direction fitted by
    Bradley and Terry's likelihood with a ridge: without votes it is zero, with votes that contradict each other it
    stays small. A difference of rewards is a log odds, as far as the ridge lets it.
    """

    judge: PreferenceReward
    scale: Tensor
    direction: Tensor

    def __call__(self, images: Tensor, captions: Sequence[str]) -> Tensor:
        return (features(self.judge, images, captions) / self.scale) @ self.direction


def features(judge: PreferenceReward, images: Tensor, captions: Sequence[str]) -> Tensor:
    """What the learned reward sees of pictures (B, 3, 32, 32) when it looks for their captions, (B, 128)."""
    return judge.trunk(images, judge.look_for(judge.text(judge.bag(captions))))


def fit_direction(differences: Tensor, scores: Tensor, ridge: float) -> Tensor:
    """The direction w, (d,), of least Bradley-Terry loss and ridge, for differences left - right (n, d):

        - sum_i [s_i log sigmoid(w . d_i) + (1 - s_i) log sigmoid(-w . d_i)] + ridge |w|^2 / 2,

    scores s (n,): 1 for left, 0 for right, 1/2 for a tie, which counts as half a win for either. Convex, by LBFGS.
    """
    direction = torch.zeros(differences.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([direction], max_iter=100, line_search_fn="strong_wolfe", tolerance_grad=1e-6)
    # each pair twice: a decided one with its outcome both times, a tie once with either
    margins, wins = differences.repeat(2, 1), torch.cat([scores > 0.25, scores > 0.75])
    zero = torch.zeros(len(margins))

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = len(differences) * bradley_terry_loss(margins @ direction, zero, wins)
        value = value + ridge * direction.square().sum() / 2
        value.backward()
        return value

    optimizer.step(loss)  # type: ignore[arg-type]  # a closure may return a tensor
    return direction.detach()


def learn_taste(judge: PreferenceReward, voted: Voted, *, ridge: float, least: int) -> Taste:
    """The taste behind votes, at least so many, on pictures of 32 x 32 pixels."""
    differences, scale = _differences(judge, voted, least)
    return Taste(judge, scale, fit_direction(differences, voted.scores, ridge))


def cross_validate(judge: PreferenceReward, voted: Voted, *, ridge: float, least: int) -> Tensor:
    """Of every decided vote, whether a taste learned from the other nine tenths predicts it, (decided,) bool."""
    (differences, _), scores = _differences(judge, voted, least), voted.scores
    fold, margins = torch.arange(len(scores)) % 10, torch.zeros(len(scores))
    for number in fold.unique():
        apart = fold == number
        margins[apart] = differences[apart] @ fit_direction(differences[~apart], scores[~apart], ridge)
    decided = scores != 0.5
    return (margins[decided] > 0) == (scores[decided] > 0.5)


def _differences(judge: PreferenceReward, voted: Voted, least: int) -> tuple[Tensor, Tensor]:
    """Differences of features, left - right, in units of their root mean square, times 128^(-1/2); and that scale."""
    left, right, captions, scores = voted
    if len(scores) < least:
        raise InputError(f"{len(scores)} votes so far, at least {least} are needed: vote on more pairs, then run again")
    if (scores == 0.5).all():
        raise InputError("all votes are ties: nothing is preferred, so there is nothing to learn; decide some pairs")
    with torch.no_grad():
        raw = features(judge, left, captions) - features(judge, right, captions)
    rms = raw.square().mean(0).sqrt()
    scale = rms.clamp(min=1e-3 * float(rms.max())) * raw.shape[1] ** 0.5
    return raw / scale, scale
