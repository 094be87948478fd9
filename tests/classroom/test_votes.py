"""Votes: what was saved survives kill -9, broken tails are dropped, two notebooks are refused, rounds are not mixed."""

import errno
import json
import os
import pathlib
import signal
import subprocess
import sys
from unittest import mock

import pytest
import torch

from dipp_core.classroom import votes
from dipp_core.classroom.votes import FILE, PAIRS, Round, VotesError, open_ballot

ROOT = pathlib.Path(__file__).resolve().parents[2]


def small_round(n=6, seed=0, shift=0):
    g = torch.Generator().manual_seed(seed)
    left, right = (torch.randint(255, (n, 3, 4, 4), generator=g, dtype=torch.uint8) + shift for _ in range(2))
    return Round(tuple(f"caption {i}" for i in range(n)), left, right, torch.arange(n) % 2 == 0)


@pytest.fixture
def folder(tmp_path):
    yield tmp_path / "first"
    if ballot := votes.HELD.pop((tmp_path / "first").resolve(), None):
        ballot.close()


def again(folder, new_round=None, voter="you"):
    said = []
    ballot = open_ballot(folder, new_round or small_round(), voter=voter, say=said.append)
    return ballot, said


def refused(folder, **how):
    with pytest.raises(VotesError) as caught:
        again(folder, **how)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_votes_are_there_when_the_round_is_opened_again(folder):
    ballot, said = again(folder)
    for vote in ("left", "tie", "right"):
        ballot.vote(vote)
    assert said == []
    ballot, said = again(folder)
    assert ballot.answers == ["left", "tie", "right"]
    assert said == ["first: going on after 3 of 6 votes"]
    assert ballot.scores().tolist() == [1.0, 0.5, 0.0]
    assert ballot.scores_of_a().tolist() == [1.0, 0.5, 0.0]  # a is left, right, left
    ballot.vote("left")
    assert ballot.scores_of_a().tolist() == [1.0, 0.5, 0.0, 0.0]


def test_the_file_of_votes_does_not_lift_the_blind(folder):
    ballot, _ = again(folder)
    ballot.vote("left")
    lines = [json.loads(line) for line in (folder / FILE).read_text().splitlines()]
    assert lines == [{"voter": "you"}, {"pair": 0, "vote": "left", "caption": "caption 0"}]


def test_a_vote_is_taken_back_and_stays_so(folder):
    ballot, _ = again(folder)
    ballot.vote("left")
    ballot.vote("right")
    ballot.back()
    ballot.vote("tie")
    assert again(folder)[0].answers == ["left", "tie"]


def test_more_votes_than_pairs_and_other_words_are_refused(folder):
    ballot, _ = again(folder, small_round(1))
    with pytest.raises(VotesError, match="'up' is no vote"):
        ballot.vote("up")
    ballot.vote("left")
    with pytest.raises(VotesError, match="all 1 pairs"):
        ballot.vote("left")


VOTER = """
import sys, pathlib
sys.path.insert(0, {tests!r})
from test_votes import small_round
from dipp_core.classroom.votes import open_ballot
ballot = open_ballot(sys.argv[1], small_round(4000), voter="you", say=lambda line: None)
print("start", len(ballot.answers), flush=True)
while not ballot.done:
    vote = ("left", "tie", "right")[len(ballot.answers) % 3]
    ballot.vote(vote)
    print(vote, flush=True)
"""


def test_kill_nine_loses_no_vote(folder):
    """Whatever a voter was told is saved is found again, in order; at most the one being written is there beside."""
    code, known = VOTER.format(tests=str(pathlib.Path(__file__).parent)), []
    for count in (7, 40):
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", code, str(folder)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            begun = int(process.stdout.readline().split()[1])
            assert begun - len(known) in (0, 1)
            for _ in range(count):
                process.stdout.readline()
            process.send_signal(signal.SIGKILL)
            rest = process.stdout.read().split()
        known = [("left", "tie", "right")[i % 3] for i in range(begun + count + len(rest))]
    ballot, _ = again(folder, small_round(4000))
    assert ballot.answers[: len(known)] == known
    assert len(ballot.answers) - len(known) in (0, 1)


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_broken_last_line_is_dropped_and_said(folder, cut):
    ballot, _ = again(folder)
    ballot.vote("left")
    ballot.vote("right")
    ballot.close()
    content = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(content[: -cut - 1])
    ballot, said = again(folder)
    assert ballot.answers == ["left"]
    assert "dropped a broken last line" in said[0]
    ballot.vote("tie")
    ballot, said = again(folder)
    assert ballot.answers == ["left", "tie"]
    assert len(said) == 1


def test_zeros_after_a_power_failure_are_a_broken_last_line(folder):
    again(folder)[0].vote("left")
    with open(folder / FILE, "ab") as file:
        file.write(bytes(30))
    ballot, said = again(folder)
    assert ballot.answers == ["left"]
    assert "30 bytes" in said[0]


def test_a_last_line_without_its_end_counts(folder):
    ballot, _ = again(folder)
    ballot.vote("left")
    ballot.close()
    (folder / FILE).write_bytes((folder / FILE).read_bytes().rstrip())
    ballot, _ = again(folder)
    ballot.vote("tie")
    assert again(folder)[0].answers == ["left", "tie"]


def test_a_broken_line_in_the_middle_is_not_guessed_at(folder):
    ballot, _ = again(folder)
    ballot.vote("left")
    ballot.vote("left")
    ballot.close()
    lines = (folder / FILE).read_text().splitlines()
    before = "\n".join([lines[0], "{oops", lines[2]]) + "\n"
    (folder / FILE).write_text(before)
    assert "line 2 cannot be read" in refused(folder)
    assert (folder / FILE).read_text() == before
    (folder / FILE).write_text("\n".join([lines[0], lines[2]]) + "\n")
    assert "line 2 is out of order" in refused(folder)


def test_two_notebooks_on_one_round_are_refused_and_the_first_goes_on(folder):
    ballot, _ = again(folder)
    ballot.vote("left")
    code = VOTER.format(tests=str(pathlib.Path(__file__).parent))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    other = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, env=environment)
    assert "is open in another notebook" in other.stderr.splitlines()[-1]
    ballot.vote("right")
    assert again(folder)[0].answers == ["left", "right"]


def test_the_cell_run_again_takes_over_from_the_old_form(folder):
    old, _ = again(folder)
    new, _ = again(folder)
    new.vote("left")
    with pytest.raises(VotesError, match="a newer one has taken over"):
        old.vote("right")
    assert again(folder)[0].answers == ["left"]


@pytest.mark.parametrize("other", [small_round(seed=1), small_round(5), small_round(shift=3)])
def test_votes_on_other_pictures_are_refused_and_kept(folder, other):
    again(folder)[0].vote("left")
    assert "holds votes on other pictures" in refused(folder, new_round=other)
    assert again(folder)[0].answers == ["left"]


def test_rounding_of_pixels_is_no_other_picture(folder):
    again(folder)[0].vote("left")
    ballot, _ = again(folder, small_round(shift=1))
    assert torch.equal(ballot.round.left, small_round().left)  # as it was voted on


def test_a_round_without_votes_may_change_its_pictures(folder):
    again(folder)
    again(folder, small_round(seed=1))[0].vote("left")
    assert again(folder, small_round(seed=1))[0].answers == ["left"]


def test_pairs_that_are_lost_or_broken_are_said(folder):
    again(folder)[0].vote("left")
    (folder / PAIRS).write_bytes(b"nothing")
    assert "missing or broken" in refused(folder)
    (folder / PAIRS).unlink()
    assert "missing or broken" in refused(folder)


def test_votes_of_people_and_of_simulations_are_not_mixed(folder):
    again(folder)[0].vote("left")
    assert "holds the votes of 'you', not of 'simulated voter'" in refused(folder, voter="simulated voter")


def test_a_full_disk_is_said_and_nothing_half_is_left(folder):
    ballot, _ = again(folder)
    ballot.vote("left")
    before = (folder / FILE).read_bytes()
    full, said = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), r"was not saved \(No space left on device\)"
    with mock.patch.object(os, "fsync", side_effect=full), pytest.raises(VotesError, match=said):
        ballot.vote("right")
    assert (folder / FILE).read_bytes() == before
    ballot.vote("tie")
    assert again(folder)[0].answers == ["left", "tie"]


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(VotesError, match="votes cannot be kept there"):
        open_ballot(tmp_path / "file" / "first", small_round(), voter="you")
