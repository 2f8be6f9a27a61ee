"""Processes that end with the one that started them. No torch here."""

import ctypes
import os
import signal

PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None, use_errno=True)  # loaded here: nothing may be looked up between fork and exec


def die_with_parent(parent: int) -> None:
    """The kernel sends this process SIGKILL once the thread that started it is gone. Call it first thing in the child.

    `parent` is the process id of who started it, who may have died before this call: then it ends here.
    """
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
