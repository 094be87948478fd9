"""Where a long run is kept: the same run finds its place again, another one finds none."""

import pytest
import torch

from dipp_core.book.workplace import kept, workplace

SETTINGS = {"steps": 3, "rates": [0.1, 0.2]}


@pytest.fixture
def place(small):
    """The workplace of a run of 02_count, from settings and one input."""
    return lambda settings=SETTINGS, value=1.0: workplace("02_count", "run", settings, [torch.full((2,), value)])


def test_the_same_run_finds_its_place_again_and_nothing_is_made_there(small, place):
    first = place()
    assert first == place(dict(reversed(SETTINGS.items())))
    assert first.parent == small.root / ".work/long/02_count"
    assert first.name.startswith("run_")
    assert not first.exists()


def test_prose_and_files_that_are_not_imported_may_change(small, place):
    first = place()
    small.set_cell("02_count", 1, "# Counting, told at length")
    small.edit("dipp_core/alpha.py", "x * x", "x + x")
    assert place() == first


CHANGES = {
    "a setting": lambda small, place: place({"steps": 4, "rates": [0.1, 0.2]}),
    "an input": lambda small, place: place(value=2.0),
    "the notebook's code": lambda small, place: small.set_cell("02_count", 5, "total = 0"),
    "an imported file": lambda small, place: small.edit("dipp_core/beta.py", "range(steps)", "range(steps + 1)"),
    "the name": lambda small, place: workplace("02_count", "other", SETTINGS, [torch.ones(2)]),
    "the notebook": lambda small, place: workplace("01_draw", "run", SETTINGS, [torch.ones(2)]),
}


@pytest.mark.parametrize("what", CHANGES)
def test_another_run_is_elsewhere(small, place, what):
    first = place()
    found = CHANGES[what](small, place) or place()
    assert found != first


def test_the_threads_count_since_they_change_last_digits(place):
    first, threads = place(), torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert place() != first
    finally:
        torch.set_num_threads(threads)


def test_a_result_is_made_once_and_read_again_afterwards(tmp_path):
    made = []
    for _ in range(2):
        found = kept(tmp_path / "runs" / "one.pt", lambda: made.append(1) or {"nats": 2.5, "gold": torch.ones(3)})
        assert found["nats"] == 2.5
        assert torch.equal(found["gold"], torch.ones(3))
    assert made == [1]


def test_a_result_that_fails_leaves_no_file(tmp_path):
    with pytest.raises(ZeroDivisionError):
        kept(tmp_path / "one.pt", lambda: {"nats": 1 / 0})
    assert list(tmp_path.iterdir()) == []
