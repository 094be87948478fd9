"""Several trainings at a time: results in order, whatever runs beside; one thread each; the first error ends it."""

import threading
import time

import pytest
import torch

from dipp_core.training.parallel import each


def train(seed):
    """A small regression, to the bit."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.zeros(40, 40, requires_grad=True)
    adam = torch.optim.Adam([weight])
    for _ in range(20):
        x = torch.randn(64, 40, generator=generator)
        adam.zero_grad()
        (x @ weight - x.flip(-1)).square().mean().backward()
        adam.step()
    return weight.detach()


def test_results_come_in_order_and_do_not_depend_on_how_many_run_beside():
    alone, together = each(train, range(5), workers=1), each(train, range(5), workers=3)
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    assert not torch.equal(alone[0], alone[1])


def test_every_job_has_one_thread_and_the_caller_keeps_his():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert each(lambda _: torch.get_num_threads(), range(4)) == [1] * 4
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_jobs_run_at_the_same_time():
    meeting = threading.Barrier(2, timeout=20)  # breaks unless both are there
    assert sorted(each(lambda _: meeting.wait(), range(2), workers=2)) == [0, 1]


def test_an_error_ends_what_has_not_begun_and_is_raised():
    begun = []

    def work(job):
        begun.append(job)
        if job:
            time.sleep(0.05)  # the others are still waiting when the first has failed
        raise ValueError(f"job {job}")

    with pytest.raises(ValueError, match="job 0"):
        each(work, range(100), workers=1)
    assert len(begun) < 100
