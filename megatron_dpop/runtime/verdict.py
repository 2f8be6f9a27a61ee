"""What the ends of several ranks come to: one exit code, and one line. No torch here."""

import signal
from collections.abc import Sequence

from megatron_dpop.runtime import exits
from megatron_dpop.runtime.exits import Word
from megatron_dpop.runtime.local_ranks import End

# Where ranks end differently, the first of these is the run's: what a person must look at before what a restart clears.
BY_GRAVITY = (exits.BAD_INPUT, exits.UNHEALTHY, exits.STOPPED)
OUT_OF_MEMORY = "; where nobody sent it, the machine had no memory left: see `dmesg`"


def verdict(ends: Sequence[End], words: Sequence[Word], *, stop_asked: bool) -> tuple[int, str | None]:
    """The exit code of `runtime.exits` and the line that explains it; None where nothing needs to be said.

    `ends` and `words` are in the order in which they came, so the first failure is the reason of the others.
    """
    failed = [end for end in ends if end.code and not end.is_ours]
    if stop_asked:  # a rank that was still importing when the signal came has nothing to save
        failed = [end for end in failed if end.code not in (-signal.SIGTERM, -signal.SIGUSR1)]
    if not failed:
        cut_short = any(end.code for end in ends)
        return (exits.STOPPED if cut_short else 0), ("stopped before it had begun" if cut_short else None)
    code = next((code for code in BY_GRAVITY if code in {end.code for end in failed}), exits.FAILED)
    if code == exits.STOPPED:
        return code, None  # rank 0 has said it
    return code, _reason(failed, words, code)


def _reason(failed: Sequence[End], words: Sequence[Word], code: int) -> str:
    kind = {exits.BAD_INPUT: "error", exits.UNHEALTHY: "unhealthy"}.get(code, "failed")
    reasons = [word.message for word in words if word.kind == kind]
    killed = [end for end in failed if end.code < 0 and code == exits.FAILED]
    if killed and not reasons:
        first = killed[0]
        name = signal.Signals(-first.code).name
        more = OUT_OF_MEMORY if first.code == -signal.SIGKILL else ""
        return f"rank {first.rank} (process {first.process_id}) was ended by {name}{more}"
    reasons += [word.message for word in words if word.kind == "lost"]
    if reasons:
        return reasons[0]
    first = next((end for end in failed if end.code == code), failed[0])
    return f"rank {first.rank} ended with exit code {first.code}; what it printed stands above"
