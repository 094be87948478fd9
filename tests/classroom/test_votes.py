"""Votes: rounds are blind, no vote is lost, the form by mouse and keyboard, win rates, and a taste from few votes."""

import errno
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
from unittest import mock

import pytest
import torch
from PIL import Image
from scipy.stats import binomtest

from dipp_core.classroom import votes
from dipp_core.classroom.votes import FILE, PAIRS, Round, Voted, VoteForm, blind_round, open_ballot
from dipp_core.files import InputError
from dipp_core.models import folders, miniature
from dipp_core.models.miniature import seeded
from dipp_core.rewards.shapes import PreferenceReward
from dipp_core.training import watch
from dipp_core.worlds import shapes

ROOT = pathlib.Path(__file__).resolve().parents[2]

CAPTIONS = [f"caption {i}" for i in range(10)]


def flat(level):
    """A model whose pictures are of one level; the seed shows in the first pixel, the caption in the second."""

    def paint(captions, seed):
        images = torch.full((len(captions), 3, 4, 4), level)
        images[:, :, 0, 0] = (seed % 250) / 255
        images[:, :, 0, 1] = torch.tensor([int(text.split()[1]) / 255 for text in captions])[:, None]
        return images

    return paint


def new_round(pairs=20, seed=0, **how):
    g = torch.Generator().manual_seed(seed)
    return blind_round(flat(0.2), flat(0.8), CAPTIONS, pairs=pairs, generator=g, **how)


@pytest.mark.parametrize("pairs", [1, 7, 20])
def test_either_model_is_on_either_side_equally_often(pairs):
    found, same = new_round(pairs), new_round(pairs)
    assert abs(2 * int(found.a_left.sum()) - pairs) <= 1
    assert torch.equal(found.left[:, 0, 2, 2] == 51, found.a_left)
    assert torch.equal(found.right[:, 0, 2, 2] == 51, ~found.a_left)
    assert (found.captions, found.a_left.tolist()) == (same.captions, same.a_left.tolist())


def test_sides_cannot_be_guessed_from_the_order():
    """Over many rounds every place in the order has its model a on the left half of the time, within 4 sigma."""
    share = torch.stack([new_round(9, seed).a_left for seed in range(400)]).float().mean(0)
    assert (share - 0.5).abs().max() < 4 * 0.5 / 20


def test_pictures_show_the_caption_of_their_pair_and_share_their_noise():
    found = new_round(25)
    assert set(found.captions[:10]) == set(found.captions[10:20]) == set(CAPTIONS)
    named = torch.tensor([int(text.split()[1]) for text in found.captions])
    assert all(torch.equal(side[:, 0, 0, 1].long(), named) for side in (found.left, found.right))
    assert torch.equal(found.left[:, 0, 0, 0], found.right[:, 0, 0, 0])
    found = new_round(12, same_noise=False)
    assert not torch.equal(found.left[:, 0, 0, 0], found.right[:, 0, 0, 0])
    one = flat(0.2)
    with pytest.raises(InputError, match="same_noise=False"):
        blind_round(one, one, CAPTIONS, pairs=3, generator=torch.Generator())
    with pytest.raises(InputError, match="0 pairs of 10 captions"):
        new_round(0)


def test_exported_models_are_compared_from_their_folders(tmp_path):
    """What a folder draws is what its generator draws in memory; two kinds of networks meet in one round."""
    world = folders.load(miniature.build(tmp_path / "w", "unet", words=shapes.vocabulary(), size="tiny"))
    gen = world.generator(625)
    folder = folders.export(tmp_path / "one", world, gen)
    captions = shapes.captions(shapes.split("test")[:3])
    own = world.paint(gen, world.prompts(captions), 1, seed=3)[:, 0]
    torch.testing.assert_close(own, votes.exported(folder, 625)(captions, 3), atol=1e-5, rtol=0)
    dit = miniature.build(tmp_path / "d", "dit", words=shapes.vocabulary(), size="tiny")
    models = (votes.exported(folder, 625), votes.exported(dit, 625))
    found = blind_round(*models, captions, pairs=4, generator=torch.Generator().manual_seed(0))
    assert found.left.dtype == torch.uint8
    assert not torch.equal(found.left, found.right)


def small_round(n=6, seed=0, shift=0):
    g = torch.Generator().manual_seed(seed)
    left, right = (torch.randint(255, (n, 3, 4, 4), generator=g, dtype=torch.uint8) + shift for _ in range(2))
    return Round(tuple(f"<{i}>" for i in range(n)), left, right, torch.arange(n) % 2 == 0)


@pytest.fixture
def folder(tmp_path):
    yield tmp_path / "first"
    for ballot in votes.OPEN_BALLOTS.values():
        ballot.close()
    votes.OPEN_BALLOTS.clear()


def again(folder, pairs=None, voter="you", cast=()):
    """Open the round, vote, and return the ballot and what was said on opening."""
    said = []
    ballot = open_ballot(folder, pairs or small_round(), voter=voter, say=said.append)
    for vote in cast:
        ballot.back() if vote == "back" else ballot.vote(vote)
    return ballot, said


def refused(folder, **how):
    with pytest.raises(InputError) as caught:
        again(folder, **how)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_votes_are_there_when_the_round_is_opened_again_and_the_file_does_not_lift_the_blind(folder):
    assert again(folder, cast=["left", "right", "back", "tie", "right"])[1] == []
    assert json.loads((folder / FILE).read_text()) == {"voter": "you", "votes": ["left", "tie", "right"]}
    ballot, said = again(folder)
    assert ballot.answers == ["left", "tie", "right"]
    assert said == ["first: going on after 3 of 6 votes"]
    ballot.vote("left")
    assert ballot.voted().scores.tolist() == [1.0, 0.5, 0.0, 1.0]
    assert ballot.scores_of_a().tolist() == [1.0, 0.5, 0.0, 0.0]  # a is left, right, left, right


VOTER = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(pathlib.Path(__file__).parent)!r}]
from test_votes import small_round
from dipp_core.classroom.votes import open_ballot
ballot = open_ballot(sys.argv[1], small_round(4000), voter="you", say=print)
while not ballot.done:
    vote = ("left", "tie", "right")[len(ballot.answers) % 3]
    ballot.vote(vote)
    print(vote, flush=True)
"""


def test_kill_nine_loses_no_vote_and_two_notebooks_are_refused(folder):
    """Whatever a voter was told is saved is found again, in order; at most the one being written is there beside."""
    command = [sys.executable, "-c", VOTER, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        known = [process.stdout.readline().strip() for _ in range(7)]
        said = refused(folder)
        assert f"is already running (process {process.pid}); shut the kernel of the other" in said
        process.send_signal(signal.SIGKILL)
        known += process.stdout.read().split()
    ballot, _ = again(folder, small_round(4000))
    assert ballot.answers[: len(known)] == known == [("left", "tie", "right")[i % 3] for i in range(len(known))]
    assert len(ballot.answers) - len(known) in (0, 1)


@pytest.mark.parametrize("content", ["", "{oops", "[]", '{"voter": "you", "votes": ["up"]}'])
def test_a_broken_file_is_not_guessed_at(folder, content):
    again(folder, cast=["left"])[0].close()
    (folder / FILE).write_text(content)
    assert "rename or remove" in refused(folder)
    assert (folder / FILE).read_text() == content


def test_votes_on_other_pictures_are_refused_and_kept(folder):
    again(folder, small_round(seed=1))
    old, _ = again(folder)  # without a vote, pictures may change
    again(folder, cast=["left"])
    with pytest.raises(InputError, match="a newer one has taken over"):
        old.vote("right")
    for other in (small_round(seed=1), small_round(5), small_round(shift=3)):
        assert "holds votes on other pictures" in refused(folder, pairs=other)
    ballot, _ = again(folder, small_round(shift=1))  # rounding of pixels is no other picture
    assert ballot.answers == ["left"]
    assert torch.equal(ballot.round.left, small_round().left)  # as it was voted on
    assert "holds the votes of 'you', not of 'simulated voter'" in refused(folder, voter="simulated voter")
    (folder / PAIRS).write_bytes(b"nothing")
    assert "missing or broken" in refused(folder)


def full_disk():
    return mock.patch.object(os, "fsync", side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))


def test_a_full_disk_is_said_and_nothing_half_is_left(folder):
    ballot, _ = again(folder, cast=["left"])
    before = (folder / FILE).read_bytes()
    with full_disk(), pytest.raises(InputError, match=r"was not saved \(No space left on device\)"):
        ballot.vote("right")
    assert (folder / FILE).read_bytes() == before
    ballot.vote("tie")
    assert again(folder)[0].answers == ["left", "tie"]
    assert "votes cannot be kept there" in refused(folder / FILE / "first")


def test_what_is_learned_from_and_what_is_published(folder):
    ballot, _ = again(folder, small_round(4), cast=["left"])
    ballot.fill(["right", "tie", "right", "left"])  # a simulated voter fills what is left
    assert ballot.answers == ["left", "tie", "right", "left"]
    assert ballot.rows()[1] == {"voter": "you", "caption": "<1>", "a_is": "right", "vote": "tie"}
    left, right, captions, scores = ballot.voted()
    assert left.shape == right.shape == (4, 3, 4, 4)
    assert float(left.max()) <= 1
    assert captions == ballot.round.captions
    assert scores.tolist() == [1, 0.5, 0, 1]


def test_buttons_vote_and_the_next_pair_comes(folder):
    ballot, _ = again(folder, small_round(3))
    form = VoteForm(ballot, pause=0)
    assert "<h3>&lt;0&gt;</h3>" in form.caption.value
    assert form.buttons["back"].disabled
    for canvas, side in ((form.left, ballot.round.left), (form.right, ballot.round.right)):
        shown = Image.open(io.BytesIO(canvas.value))
        assert shown.size == (256, 256)
        small = torch.tensor(list(shown.resize((4, 4), Image.Resampling.NEAREST).tobytes()), dtype=torch.uint8)
        assert torch.equal(small.view(4, 4, 3).permute(2, 0, 1), side[0])
    before = bytes(form.left.value)
    form.buttons["left"].click()
    assert "1 of 3 votes are saved" in form.status.value
    assert "<h3>&lt;1&gt;</h3>" in form.caption.value
    assert bytes(form.left.value) != before
    with pytest.raises(InputError, match="'up' is no vote"):
        ballot.vote("up")
    for name in ("tie", "right", "right"):
        form.buttons[name].click()
    assert ballot.answers == ["left", "tie", "right"]
    assert "run the next cell" in form.status.value
    assert [form.buttons[name].disabled for name in ("left", "tie", "right", "back")] == [True, True, True, False]
    form.buttons["back"].click()
    assert not form.buttons["left"].disabled
    assert VoteForm(ballot).caption.value == form.caption.value  # a new form goes on where the ballot is


def test_all_pairs_can_be_voted_on_from_the_keyboard(folder):
    ballot, _ = again(folder, small_round(3))
    form = VoteForm(ballot, pause=0)
    for letter in "lxRtlbr":
        form.field.value = letter
        assert form.field.value == ""
    assert ballot.answers == ["left", "right", "right"]
    assert ballot.done


def test_nothing_on_the_form_says_whose_picture_it_is(folder):
    """Swapping the secret changes nothing that is shown."""

    def everything(form):
        words = [form.caption.value, form.status.value, *(button.description for button in form.buttons.values())]
        return words, bytes(form.left.value), bytes(form.right.value)

    ballot, _ = again(folder)
    shown, pairs = everything(VoteForm(ballot)), ballot.round
    ballot.round = Round(pairs.captions, pairs.left, pairs.right, ~pairs.a_left)
    assert everything(VoteForm(ballot)) == shown


def test_a_double_click_is_one_vote_and_one_that_could_not_be_saved_is_said(folder):
    ballot, _ = again(folder)
    form = VoteForm(ballot, pause=60)
    for waited in (61, 0):
        form.since -= waited
        form.buttons["left"].click()
    assert ballot.answers == ["left"]
    form.pause = 0
    with full_disk():
        form.buttons["left"].click()
    assert "was not saved" in form.status.value
    form.buttons["right"].click()
    assert ballot.answers == ["left", "right"]


def test_who_votes():
    for live, wanted, found in ((False, "you", "simulated"), (True, "you", "you"), (True, "simulated", "simulated")):
        with mock.patch.object(watch, "is_live", return_value=live):
            assert votes.votes_by(wanted) == found


def test_a_simulated_voter_follows_its_rule():
    voter = votes.SimulatedVoter("bright", unit=0.1, sharpness=2.0, tie=0.2)
    left = torch.full((4000, 3, 4, 4), 0.5)
    found = voter.votes(left, left - 0.05, generator=torch.Generator().manual_seed(0))
    assert found.count("tie") == 0
    assert found.count("left") / 4000 == pytest.approx(torch.tensor(1.0).sigmoid().item(), abs=0.03)
    assert set(voter.votes(left, left - 0.01, generator=torch.Generator())) == {"tie"}
    red = torch.zeros(1, 3, 4, 4)
    red[:, 0] = 1
    for images, likes in ((red, [1, 1, 1 / 3]), (red.flip(1), [-1, 1, 1 / 3]), (torch.ones_like(red), [0, 0, 1])):
        assert [f(images).item() for f in votes.LIKES.values()] == pytest.approx(likes)
    assert votes.unit_of("warm", red, red.flip(1)) == pytest.approx(2 / 2**0.5)


@pytest.mark.parametrize(("wins", "n"), [(0, 5), (5, 5), (31, 42)])
def test_the_interval_is_wilsons(wins, n):
    theirs = binomtest(wins, n).proportion_ci(method="wilson")
    assert votes.wilson(wins / n, n) == pytest.approx((theirs.low, theirs.high), abs=1e-6)


def test_a_tie_is_half_a_win():
    found = votes.win_rate(torch.tensor([1, 1, 0.5, 0, 0.5]))
    assert (found.wins, found.ties, found.losses, found.votes) == (2, 2, 1, 5)
    assert found.rate == 0.6
    assert (found.low, found.high) == votes.wilson(0.6, 5)
    with pytest.raises(InputError, match="at least one vote"):
        votes.win_rate(torch.tensor([]))


def test_the_direction_is_a_zero_of_the_gradient():
    """sum_i (s_i - sigmoid(w . d_i)) d_i = ridge w at the optimum, for wins, losses and ties alike."""
    g = torch.Generator().manual_seed(0)
    differences, scores = torch.randn(40, 6, generator=g), torch.randint(3, (40,), generator=g) / 2
    w = votes.fit_direction(differences, scores, 0.3)
    residual = (scores - torch.sigmoid(differences @ w)) @ differences - 0.3 * w
    assert residual.abs().max() < 1e-3
    assert w.norm() > 0.1
    nothing = votes.fit_direction(differences, torch.full((40,), 0.5), 0.3)
    contradictions = torch.cat([differences, differences]), torch.cat([torch.ones(40), torch.zeros(40)])
    assert nothing.abs().max() < 1e-4
    assert votes.fit_direction(*contradictions, 0.3).abs().max() < 1e-4


@pytest.fixture(scope="module")
def judge():
    return seeded(PreferenceReward, 0, shapes.vocabulary()).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def voted():
    """Pairs of pictures of which one is clean and one washed out, voted on by somebody who likes the colourful one."""
    g = torch.Generator().manual_seed(1)
    rows = shapes.draw_attributes(shapes.split("train"), 80, generator=g)
    left, right = (shapes.draw_pictures(rows, clean_share=0.0, generator=g) for _ in range(2))
    return Voted(left, right, shapes.captions(rows), (votes.vividness(left) > votes.vividness(right)).float())


def test_a_taste_is_learned_even_through_features_of_random_weights(judge, voted):
    left, right, captions, scores = voted
    some = Voted(*(part[:60] for part in voted))
    learned = votes.learn_taste(judge, some, ridge=0.3, least=10)
    margin = learned(left[60:], captions[60:]) - learned(right[60:], captions[60:])
    assert ((margin > 0) == (scores[60:] > 0.5)).float().mean() >= 0.7
    known = votes.cross_validate(judge, some, ridge=0.3, least=10)
    assert known.shape == (60,)
    assert known.float().mean() > 0.6
    chance = torch.randint(2, (80,), generator=torch.Generator().manual_seed(5)).float()
    known = votes.cross_validate(judge, voted._replace(scores=chance), ridge=0.3, least=10)
    assert known.float().mean() < 0.65
    images = left[:2].clone().requires_grad_()
    learned(images, captions[:2]).sum().backward()
    assert images.grad.abs().max() > 0
    assert all(weight.grad is None for weight in judge.parameters())


def test_too_few_votes_and_nothing_but_ties_are_one_line(judge, voted):
    with pytest.raises(InputError, match="3 votes so far, at least 10 are needed"):
        votes.learn_taste(judge, Voted(*(part[:3] for part in voted)), ridge=0.3, least=10)
    with pytest.raises(InputError, match="all votes are ties"):
        votes.cross_validate(judge, voted._replace(scores=torch.full((80,), 0.5)), ridge=0.3, least=10)
