"""Several trainings at a time, each on one thread: small networks gain more from that than from more threads."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Job, Result = TypeVar("Job"), TypeVar("Result")


def each(work: Callable[[Job], Result], jobs: Iterable[Job], *, workers: int | None = None) -> list[Result]:
    """work(job) of every job, in their order; `workers` at a time, by default as many as torch has threads.

    Every job runs on one thread, so what it computes does not depend on how many run beside it. It must share no
    generator or network with another. The first error ends all that has not begun, and is raised.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(workers or threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        return [future.result() for future in [pool.submit(work, job) for job in jobs]]
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
