"""Signals that ask a run to save and leave, and the agreement of all ranks on the step after which they do."""

import signal
import time
from collections.abc import Sequence
from types import FrameType

# Sent before the time limit (`sbatch --signal`), and on preemption, requeueing or cancelling.
SIGNALS = (signal.SIGUSR1, signal.SIGTERM)
# A terminal's Ctrl-C reaches a rank itself and once more through torchrun: only a later one is a second one.
SECONDS_OF_ONE_INTERRUPT = 1.0


class StoppedError(Exception):
    """All ranks have agreed to leave, and what they computed is saved: not a failure, but the way out of a run."""


class UnhealthyError(Exception):
    """All ranks have agreed to leave because of what the health monitor saw, and what they computed is saved."""


class StopRequest:
    """Reasons to stop reach ranks at different times, so none acts alone: each tells the others in a step's collective.

    `agreed` and `agreed_unhealthy` are known to all ranks, which leave after the step that they are in.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None  # by this process
        self.is_unhealthy = False  # seen by this process
        self.agreed = False
        self.agreed_unhealthy = False
        self._at_once, self._doing = False, ""
        self._interrupted = 0.0  # monotonic seconds

    def listen(self) -> None:
        """Keeps signals from ending this process from now on. Call it before the imports that take seconds.

        Ctrl-C is such a signal, and the second ends the process; our own launcher keeps both from its ranks.
        """
        for number in SIGNALS:
            signal.signal(number, self._receive)
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
            signal.signal(signal.SIGINT, self._interrupt)

    def leave_at_once(self, doing: str) -> None:
        """Makes signals raise StoppedError from now on: this process works alone, on what can be continued anywhere."""
        self._at_once, self._doing = True, doing
        if self.received is not None:
            raise StoppedError(doing)

    def votes(self) -> list[float]:
        """What this rank adds to sums over all ranks."""
        return [float(self.received is not None), float(self.is_unhealthy)]

    def count(self, votes: Sequence[float]) -> None:
        """Takes in the sums of all ranks' votes."""
        self.agreed = self.agreed or any(votes)
        self.agreed_unhealthy = self.agreed_unhealthy or votes[1] > 0

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._interrupted and now - self._interrupted > SECONDS_OF_ONE_INTERRUPT:
            raise KeyboardInterrupt
        self._interrupted = self._interrupted or now
        self._receive(number, frame)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        if self._at_once:
            raise StoppedError(self._doing)
