"""Several voters: rounds of their own that can be gone on with, one table, and an interval that holds the truth."""

import pytest
import torch

from dipp_core.classroom import study
from dipp_core.files import InputError

CAPTIONS = [f"caption {k}" for k in range(10)]


def flat(level):
    """A model whose pictures are of one level."""
    return lambda captions, seed: torch.full((len(captions), 3, 4, 4), level)


def opened(folder, voter, **how):
    return study.open_study(
        folder, voter, flat(0.2), flat(0.8), CAPTIONS, pairs=8, seed=0, say=lambda line: None, **how
    )


def test_every_voter_has_a_round_of_their_own_and_goes_on_with_it(tmp_path):
    first, second = opened(tmp_path, "blue heron"), opened(tmp_path, "grey owl")
    assert first.round.captions != second.round.captions
    assert not torch.equal(first.round.a_left, second.round.a_left)
    first.vote("left")
    again = opened(tmp_path, "blue heron")
    assert (again.answers, again.round.captions) == (["left"], first.round.captions)
    with pytest.raises(InputError, match="take no real one"):
        opened(tmp_path, "../elsewhere")


def test_all_votes_stand_in_one_table_and_what_was_taken_back_does_not(tmp_path):
    with pytest.raises(InputError, match="nobody has voted"):
        study.gather(tmp_path)
    for name in ("a", "b"):
        ballot = opened(tmp_path, name)
        for left in ballot.round.a_left.tolist()[:5]:
            ballot.vote("left" if left else "right")
        ballot.vote("tie")
        ballot.back()
    rows = study.gather(tmp_path)
    assert rows.groupby("voter").size().to_dict() == {"a": 5, "b": 5}
    assert (rows["score"] == 1).all()
    assert set(rows["a_is"]) == {"left", "right"}
    assert study.preference(rows)[0] == 1.0
    with pytest.raises(InputError, match="needs two of each"):
        study.preference(rows[rows["voter"] == "a"])


@pytest.mark.parametrize(("taste", "of_voters", "of_captions"), [(0.8, 0.0, 0.0), (0.5, 1.0, 0.5), (0.0, 0.5, 1.0)])
def test_simulated_voters_of_known_taste_are_recovered_and_covered(taste, of_voters, of_captions):
    """8 voters of 25 pairs among 40 captions: the mean is right, and at least 93% of 300 intervals hold the truth."""
    how = {"taste": taste, "of_voters": of_voters, "of_captions": of_captions, "voters": 8, "captions": 40, "pairs": 25}
    found = study.coverage(300, generator=torch.Generator().manual_seed(0), **how)
    assert found["mean"] == pytest.approx(found["truth"], abs=0.02)
    assert 0.93 <= found["held"] <= 1.0
    if taste == 0.0:
        assert found["decided"] <= 0.07
    if of_voters == 0.0:
        assert found["decided"] > 0.9
