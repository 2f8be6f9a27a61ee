"""What several ranks' ends come to."""

import pytest

from megatron_dpop.runtime import exits
from megatron_dpop.runtime.exits import Word
from megatron_dpop.runtime.local_ranks import End
from megatron_dpop.runtime.verdict import verdict

OURS = End(0, 10, -15, is_ours=True)
LOST = Word(0, "lost", "another rank has ended")

CASES = {
    "all done": ([End(0, 10, 0, False), End(1, 11, 0, False)], [], 0, None),
    "no word": ([End(3, 12, 1, False), OURS], [], exits.FAILED, "rank 3 ended with exit code 1; what it printed"),
    "killed": (
        [End(3, 12, -9, False), OURS],
        [],
        exits.FAILED,
        "rank 3 (process 12) was ended by SIGKILL; where nobody",
    ),
    "killed, then missed": (
        [End(0, 10, 1, False), End(1, 11, -11, False)],
        [LOST],
        exits.FAILED,
        "rank 1 (process 11)",
    ),
    "missed first": (
        [End(0, 10, 1, False), End(1, 11, 1, False)],
        [LOST, Word(1, "failed", "the loss is no number")],
        exits.FAILED,
        "the loss is no number",
    ),
    "another code": ([End(0, 10, 77, False)], [], exits.FAILED, "rank 0 ended with exit code 77"),
    "bad input": (
        [End(0, 10, 2, False), OURS],
        [Word(0, "error", "data.train: no")],
        exits.BAD_INPUT,
        "data.train: no",
    ),
    "bad input and lost": (
        [End(1, 11, 1, False), End(0, 10, 2, False)],
        [LOST, Word(0, "error", "no room")],
        exits.BAD_INPUT,
        "no room",
    ),
    "unhealthy": ([End(0, 10, 3, False)], [Word(0, "unhealthy", "it forgets")], exits.UNHEALTHY, "it forgets"),
    "stopped": ([End(0, 10, 75, False), End(1, 11, 75, False)], [], exits.STOPPED, None),
}


@pytest.mark.parametrize("case", CASES)
def test_one_code_and_one_line(case: str) -> None:
    ends, words, code, line = CASES[case]
    found, message = verdict(ends, words, stop_asked=False)
    assert found == code
    assert (message or "").startswith(line or "") if line else message is None


def test_a_stop_before_a_rank_listens_is_a_stop() -> None:
    ends = [End(0, 10, -15, False), End(1, 11, -10, False)]
    assert verdict(ends, [], stop_asked=True) == (exits.STOPPED, "stopped before it had begun")
    assert verdict(ends, [], stop_asked=False)[0] == exits.FAILED
