"""Blinded rounds: sides are balanced and drawn, noise is shared or not; win rates against scipy and by simulation."""

import pytest
import torch
from scipy.stats import binomtest

from dipp_core.classroom import rounds
from dipp_core.classroom.rounds import SimulatedVoter, blind_round, win_rate
from dipp_core.models import folders, miniature
from dipp_core.worlds import shapes

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
    return blind_round(
        flat(0.2), flat(0.8), CAPTIONS, pairs=pairs, generator=torch.Generator().manual_seed(seed), **how
    )


@pytest.mark.parametrize("pairs", [1, 7, 20])
def test_either_model_is_on_either_side_equally_often(pairs):
    found = new_round(pairs)
    assert abs(2 * int(found.a_left.sum()) - pairs) <= 1
    assert torch.equal(found.left[:, 0, 2, 2] == 51, found.a_left)
    assert torch.equal(found.right[:, 0, 2, 2] == 51, ~found.a_left)


def test_sides_and_order_come_from_the_generator_alone():
    one, same, other = new_round(seed=1), new_round(seed=1), new_round(seed=2)
    assert one.captions == same.captions
    assert torch.equal(one.a_left, same.a_left)
    assert one.captions != other.captions
    assert not torch.equal(one.a_left, other.a_left)


def test_sides_cannot_be_guessed_from_captions_or_order():
    """Over many rounds every place in the order has its model a on the left half of the time, within 4 sigma."""
    share = torch.stack([new_round(9, seed).a_left for seed in range(400)]).float().mean(0)
    assert (share - 0.5).abs().max() < 4 * 0.5 / 20


def test_no_caption_comes_twice_before_all_have_come():
    found = new_round(25)
    assert set(found.captions[:10]) == set(found.captions[10:20]) == set(CAPTIONS)
    assert len(set(found.captions[20:])) == 5


def test_pictures_show_the_caption_of_their_pair_and_share_their_noise():
    found = new_round(12)
    named = torch.tensor([int(text.split()[1]) for text in found.captions])
    for side in (found.left, found.right):
        assert torch.equal(side[:, 0, 0, 1].long(), named)
    assert torch.equal(found.left[:, 0, 0, 0], found.right[:, 0, 0, 0])
    found = new_round(12, same_noise=False)
    assert not torch.equal(found.left[:, 0, 0, 0], found.right[:, 0, 0, 0])


def test_one_model_against_itself_needs_noise_of_its_own():
    one, g = flat(0.2), torch.Generator()
    with pytest.raises(ValueError, match="same_noise=False"):
        blind_round(one, one, CAPTIONS, pairs=3, generator=g)
    blind_round(one, one, CAPTIONS, pairs=3, same_noise=False, generator=g)
    with pytest.raises(ValueError, match="0 pairs of 10 captions"):
        blind_round(one, flat(0.3), CAPTIONS, pairs=0, generator=g)


def test_exported_models_are_compared_from_their_folders(tmp_path):
    """What a folder draws is what its generator draws in memory; two kinds of networks meet in one round."""
    world = folders.load(miniature.build(tmp_path / "w", "unet", words=shapes.vocabulary(), size="tiny"))
    gen = world.generator(625)
    folder = folders.export(tmp_path / "one", world, gen)
    captions = shapes.captions(shapes.split("test")[:3])
    own, read = rounds.painter(world, gen)(captions, 3), rounds.exported(folder, 625)(captions, 3)
    assert own.shape == (3, 3, 32, 32)
    torch.testing.assert_close(own, read, atol=1e-5, rtol=0)
    dit = miniature.build(tmp_path / "d", "dit", words=shapes.vocabulary(), size="tiny")
    models = (rounds.exported(folder, 625), rounds.exported(dit, 625))
    found = blind_round(*models, captions, pairs=4, generator=torch.Generator().manual_seed(0))
    assert found.left.dtype == torch.uint8
    assert not torch.equal(found.left, found.right)


@pytest.mark.parametrize(("wins", "n"), [(0, 5), (5, 5), (1, 2), (31, 42), (500, 1000)])
def test_the_interval_is_wilsons(wins, n):
    theirs = binomtest(wins, n).proportion_ci(method="wilson")
    assert rounds.wilson(wins / n, n) == pytest.approx((theirs.low, theirs.high), abs=1e-6)


def test_a_tie_is_half_a_win():
    found = win_rate(torch.tensor([1, 1, 0.5, 0, 0.5]))
    assert (found.wins, found.ties, found.losses, found.votes) == (2, 2, 1, 5)
    assert found.rate == 0.6
    assert (found.low, found.high) == rounds.wilson(0.6, 5)
    assert str(found).startswith("0.60 (0.23 to 0.88; 2 won, 2 tied, 1 lost)")
    with pytest.raises(ValueError, match="at least one vote"):
        win_rate(torch.tensor([]))


@pytest.mark.parametrize("chances", [(0.5, 0.0), (0.5, 0.3), (0.8, 0.1)])
def test_the_interval_covers_the_truth_and_ties_only_widen_it(chances):
    win, tie = chances
    truth, g, n = win + tie / 2, torch.Generator().manual_seed(0), 40
    draws = torch.rand(2000, n, generator=g)
    scores = torch.where(draws < win, 1.0, torch.where(draws < win + tie, 0.5, 0.0)).mean(-1)
    ends = torch.tensor([rounds.wilson(share, n) for share in scores.tolist()])
    covered = ((ends[:, 0] <= truth) & (truth <= ends[:, 1])).float().mean()
    assert covered > 0.925  # 95%, for a grid of 41 possible shares
    if tie:
        assert covered > 0.955


def test_a_simulated_voter_follows_its_law():
    voter = SimulatedVoter("bright", unit=0.1, sharpness=2.0, tie=0.2)
    left = torch.full((4000, 3, 4, 4), 0.5)
    found = voter.votes(left, left - 0.05, generator=torch.Generator().manual_seed(0))
    assert found.count("tie") == 0
    assert found.count("left") / 4000 == pytest.approx(torch.tensor(1.0).sigmoid().item(), abs=0.03)
    assert set(voter.votes(left, left - 0.01, generator=torch.Generator())) == {"tie"}
    assert voter.name == "simulated voter, likes bright pictures"


def test_what_simulated_voters_like():
    red = torch.zeros(1, 3, 4, 4)
    red[:, 0] = 1
    blue, white = red.flip(1), torch.ones(1, 3, 4, 4)
    assert [f(red).item() for f in rounds.LIKES.values()] == pytest.approx([1, 1, 1 / 3])
    assert [f(blue).item() for f in rounds.LIKES.values()] == pytest.approx([-1, 1, 1 / 3])
    assert [f(white).item() for f in rounds.LIKES.values()] == pytest.approx([0, 0, 1])
    assert rounds.unit_of("warm", red, blue) == pytest.approx(2 / 2**0.5)
