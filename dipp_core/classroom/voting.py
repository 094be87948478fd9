"""The form on which pairs are voted: two pictures, buttons, and a field for those who would rather type."""

import html
import io
import math
import pathlib
import time
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dipp_core.book import config
from dipp_core.classroom.votes import Ballot, VotesError
from dipp_core.training import watch

KEYS = {"l": "left", "r": "right", "t": "tie", "b": "back"}
HELP = (
    "Tab goes from button to button, Space or Enter presses it. Faster: click into the field once and type "
    "<b>l</b> (left), <b>r</b> (right), <b>t</b> (no difference) or <b>b</b> (take the last vote back)."
)


def votes_by(wanted: str) -> str:
    """Who votes: "you" where somebody watches the notebook, else "simulated"; whoever wants that gets it anywhere."""
    return "you" if wanted == "you" and watch.is_live() else "simulated"


def place(name: str) -> pathlib.Path:
    """Where the reader's votes on a round are kept: votes/NAME in the checkout, out of reach of `make clean`."""
    return config.root() / "votes" / name


LABELS = {"left": "left is better", "tie": "no difference", "right": "right is better", "back": "take back"}


@dataclass(frozen=True)
class Form:
    """The form and its controls: two pictures, a button for every vote and for "back", a field, and what is said."""

    widget: Any
    buttons: dict[str, Any]
    field: Any
    caption: Any
    pictures: tuple[Any, Any]
    status: Any


def form(ballot: Ballot, *, pause: float = 0.25) -> Form:
    """A form for the pairs of a ballot that have no vote yet.

    pause: seconds a pair must have been on the screen; what comes sooner, as from a double click, is no vote.
    """
    shown, since = _new_form(), -math.inf

    def update(problem: str = "") -> None:
        nonlocal since
        _show(shown, ballot, problem)
        since = time.monotonic()

    def press(vote: str) -> None:
        if vote != "back" and (ballot.done or time.monotonic() - since < pause):
            return
        try:
            ballot.back() if vote == "back" else ballot.vote(vote)
        except VotesError as error:
            update(str(error))
        else:
            update()

    def typed(change: dict) -> None:
        if change["new"]:
            shown.field.value = ""
            if vote := KEYS.get(change["new"][-1].lower()):
                press(vote)

    for name, button in shown.buttons.items():
        button.on_click(lambda _, name=name: press(name))
    shown.field.observe(typed, names="value")
    update()
    return shown


def _new_form() -> Form:
    """The controls, not yet bound to anything."""
    import ipywidgets as widgets

    buttons = {name: widgets.Button(description=label, tooltip=label) for name, label in LABELS.items()}
    size = {"width": "256px", "height": "256px"}
    canvases = tuple(widgets.Image(format="png", layout=size) for _ in range(2))
    wide = {"description_width": "initial"}
    field = widgets.Text(description="or type l, r, t, b", continuous_update=True, style=wide)
    caption, status = widgets.HTML(), widgets.HTML()
    sides = [widgets.VBox([canvas, buttons[name]]) for canvas, name in zip(canvases, ("left", "right"), strict=True)]
    rows = [widgets.HTML(HELP), caption, widgets.HBox(sides), widgets.HBox([buttons["tie"], buttons["back"]])]
    return Form(widgets.VBox([*rows, field, status]), buttons, field, caption, canvases, status)


def _show(shown: Form, ballot: Ballot, problem: str) -> None:
    """Bring the form to where the ballot is; nothing on it says which model drew what."""
    done, total = len(ballot.answers), len(ballot.round)
    for name, button in shown.buttons.items():
        button.disabled = done == 0 if name == "back" else ballot.done
    words = f"{done} of {total} votes are saved."
    if ballot.done:
        words += " That was the last pair: run the next cell."
        shown.caption.value = "<h3>Thank you.</h3>"
    else:
        shown.caption.value = f"<h3>{html.escape(ballot.round.captions[done])}</h3>"
        for canvas, side in zip(shown.pictures, (ballot.round.left, ballot.round.right), strict=True):
            canvas.value = png(side[done])
    shown.status.value = f'<span role="status" aria-live="polite">{html.escape(problem or words)}</span>'


def png(image: Tensor, pixels: int = 256) -> bytes:
    """A picture (3, H, W) uint8 as PNG, enlarged without smoothing."""
    from PIL import Image

    small = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    buffer = io.BytesIO()
    small.resize((pixels, pixels), Image.Resampling.NEAREST).save(buffer, "PNG")
    return buffer.getvalue()


def fill(ballot: Ballot, votes: list[str]) -> Ballot:
    """Votes of a simulated voter on all pairs that have none yet, given as a person's would be."""
    for vote in votes[len(ballot.answers) :]:
        ballot.vote(vote)
    return ballot


def as_rows(ballot: Ballot) -> list[dict]:
    """The votes as rows of a table, with the voter's name in each, and which side model a was on."""
    sides = ["left" if left else "right" for left in ballot.round.a_left[: len(ballot.answers)].tolist()]
    found = zip(ballot.round.captions, sides, ballot.answers, strict=False)
    return [{"voter": ballot.voter, "caption": text, "a_is": side, "vote": vote} for text, side, vote in found]


def paired(ballot: Ballot) -> tuple[Tensor, Tensor, tuple[str, ...], Tensor]:
    """What a reward learns from: pictures left and right, captions, scores, of all pairs that have a vote."""
    count = len(ballot.answers)
    return (*ballot.round.pictures(count), ballot.round.captions[:count], ballot.scores())
