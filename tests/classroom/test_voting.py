"""The form, driven as a person would: buttons, typed letters, double clicks, errors; and who votes."""

import errno
import io
import os
from unittest import mock

import pytest
import torch
from PIL import Image

from dipp_core.classroom import votes, voting
from dipp_core.classroom.votes import Round, open_ballot
from dipp_core.training import watch


@pytest.fixture
def ballot(tmp_path):
    g = torch.Generator().manual_seed(0)
    left, right = (torch.randint(256, (4, 3, 8, 8), generator=g, dtype=torch.uint8) for _ in range(2))
    captions = ("a small <red> circle", "b", "c", "d")
    found = Round(captions, left, right, torch.tensor([True, False, True, False]))
    yield open_ballot(tmp_path / "round", found, voter="you", say=lambda line: None)
    votes.HELD.pop((tmp_path / "round").resolve()).close()


def test_buttons_vote_and_the_next_pair_comes(ballot):
    form = voting.form(ballot, pause=0)
    assert "a small &lt;red&gt; circle" in form.caption.value
    assert form.buttons["back"].disabled
    before = bytes(form.pictures[0].value)
    form.buttons["left"].click()
    assert ballot.answers == ["left"]
    assert "1 of 4 votes are saved" in form.status.value
    assert "<h3>b</h3>" in form.caption.value
    assert bytes(form.pictures[0].value) != before
    form.buttons["tie"].click()
    form.buttons["right"].click()
    form.buttons["back"].click()
    assert ballot.answers == ["left", "tie"]


def test_pictures_are_on_their_sides_in_full(ballot):
    form = voting.form(ballot, pause=0)
    for canvas, side in zip(form.pictures, (ballot.round.left, ballot.round.right), strict=True):
        shown = Image.open(io.BytesIO(canvas.value))
        assert shown.size == (256, 256)
        small = torch.tensor(list(shown.resize((8, 8), Image.Resampling.NEAREST).tobytes()), dtype=torch.uint8)
        assert torch.equal(small.view(8, 8, 3).permute(2, 0, 1), side[0])


def test_typed_letters_vote(ballot):
    form = voting.form(ballot, pause=0)
    for letter in "lxRtb":
        form.field.value = letter
        assert form.field.value == ""
    assert ballot.answers == ["left", "right"]


def test_nothing_on_the_form_says_whose_picture_it_is(ballot):
    """Swapping the secret changes nothing that is shown."""

    def everything(form):
        words = [form.caption.value, form.status.value, *(button.description for button in form.buttons.values())]
        return words, [bytes(canvas.value) for canvas in form.pictures]

    shown = everything(voting.form(ballot))
    ballot.round = Round(ballot.round.captions, ballot.round.left, ballot.round.right, ~ballot.round.a_left)
    assert everything(voting.form(ballot)) == shown


def test_a_double_click_is_one_vote(ballot):
    form = voting.form(ballot, pause=60)
    with mock.patch.object(voting.time, "monotonic", return_value=voting.time.monotonic() + 61):
        form.buttons["left"].click()
        form.buttons["left"].click()
    assert ballot.answers == ["left"]


def test_the_last_vote_ends_the_form_and_may_be_taken_back(ballot):
    form = voting.form(ballot, pause=0)
    for _ in range(5):
        form.buttons["left"].click()
    assert len(ballot.answers) == 4
    assert "run the next cell" in form.status.value
    assert [form.buttons[name].disabled for name in ("left", "tie", "right", "back")] == [True, True, True, False]
    form.buttons["back"].click()
    assert len(ballot.answers) == 3
    assert not form.buttons["left"].disabled


def test_a_vote_that_could_not_be_saved_is_said_and_asked_again(ballot):
    form = voting.form(ballot, pause=0)
    with mock.patch.object(os, "fsync", side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))):
        form.buttons["left"].click()
    assert "was not saved" in form.status.value
    assert ballot.answers == []
    form.buttons["right"].click()
    assert ballot.answers == ["right"]


def test_a_form_goes_on_where_the_ballot_is(ballot):
    ballot.vote("left")
    form = voting.form(ballot)
    assert "<h3>b</h3>" in form.caption.value
    assert not form.buttons["back"].disabled


def test_who_votes():
    with mock.patch.object(watch, "is_live", return_value=False):
        assert voting.votes_by("you") == "simulated"
    with mock.patch.object(watch, "is_live", return_value=True):
        assert voting.votes_by("you") == "you"
        assert voting.votes_by("simulated") == "simulated"


def test_a_simulated_voter_fills_what_is_left(ballot):
    ballot.vote("left")
    voting.fill(ballot, ["right", "tie", "right", "left"])
    assert ballot.answers == ["left", "tie", "right", "left"]
    rows = voting.as_rows(ballot)
    assert rows[1] == {"voter": "you", "caption": "b", "a_is": "right", "vote": "tie"}
    left, right, captions, scores = voting.paired(ballot)
    assert left.shape == right.shape == (4, 3, 8, 8)
    assert float(left.max()) <= 1
    assert captions == ballot.round.captions
    assert scores.tolist() == [1, 0.5, 0, 1]
