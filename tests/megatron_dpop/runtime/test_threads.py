"""Only the thread that trains may use several OpenMP threads; each test runs in a rank, whose threads are its own."""

import sys
from pathlib import Path

import pytest

from tests.distributed import run_ranks

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")


def _threads_of_each() -> dict[str, int]:
    import re
    import threading

    import torch

    from megatron_dpop.runtime.threads import reserve_threads

    def threads() -> list[int]:
        return [int(number) for number in re.findall(r"max_threads\(\) : (\d+)", torch.__config__.parallel_info())]

    torch.set_num_threads(3)
    reserve_threads()
    seen = {"own": threads()}

    def look() -> None:
        torch.zeros(1 << 20).add_(1)  # the first parallel operation of a thread decides on its number
        seen["other"] = threads()

    other = threading.Thread(target=look)
    other.start()
    other.join()
    seen["own afterwards"] = threads()
    return {name: max(numbers) if name == "other" else min(numbers) for name, numbers in seen.items()}


def _threads_started_by_a_large_gather(reserve: bool) -> int:
    import torch
    import torch.distributed as dist

    from megatron_dpop.runtime.threads import reserve_threads

    def count() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    torch.set_num_threads(3)
    if reserve:
        reserve_threads()
    source = torch.zeros(1 << 20) + 1  # starts this thread's own team
    dist.all_gather([torch.empty(1)], torch.ones(1))  # starts gloo's threads
    before = count()
    dist.all_gather([torch.empty_like(source)], source)
    return count() - before


def test_another_thread_gets_one_thread_and_the_caller_keeps_its_own() -> None:
    (seen,) = run_ranks(_threads_of_each, 1)
    assert seen == {"own": 3, "other": 1, "own afterwards": 3}


@pytest.mark.parametrize(("reserve", "started"), [(True, 0), (False, 2)])
def test_gloo_starts_no_team_of_its_own(reserve: bool, started: int) -> None:
    assert run_ranks(_threads_started_by_a_large_gather, 1, reserve) == [started]
