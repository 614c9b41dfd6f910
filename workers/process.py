"""The supervisor's view of one worker process, and how it is forked."""

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable
from enum import Enum
from typing import NoReturn

from gateway.config.schema import Config
from workers.worker import PING

BOOT_SECONDS = 30.0
PING_SECONDS = 1.0
TURN_SECONDS = 1.0  # twice what a turn of the supervisor takes that finds nothing to do
# A loop that does not turn for so long serves nobody: its streams are silent, its accepts wait.
HUNG_SECONDS = 10.0
ABORT_SECONDS = 3.0  # for the traceback dump after SIGABRT, before SIGKILL


class Phase(Enum):
    """Where a worker is in its life."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    HUNG = "hung"


class Turns:
    """Tells a supervisor that stood still from workers that do: paused together, all are late."""

    def __init__(self, now: float) -> None:
        self._last = now

    def late(self, now: float) -> float:
        """Begin a turn; return by how many seconds it is late."""
        late = now - self._last - TURN_SECONDS
        self._last = now
        return max(0.0, late)


class Process:
    """One forked worker. The supervisor alone changes it.

    `config`: what it was forked with. `replaces`: the one that is to end when this one serves.
    """

    def __init__(
        self,
        slot: int,
        generation: int,
        segment: int,
        config: Config,
        replaces: "Process | None" = None,
    ) -> None:
        self.slot, self.generation, self.segment = slot, generation, segment
        self.config, self.replaces = config, replaces
        self.phase = Phase.STARTING
        self.pid = 0
        self.started_at = self._pinged_at = time.monotonic()
        self._unanswered_since: float | None = None  # when the oldest such ping was sent
        self.deadline = self.started_at + BOOT_SECONDS
        self.channel: socket.socket

    def fork(self, child: Callable[[socket.socket], NoReturn]) -> None:
        """Fork; the child gets its end of the channel and does not return. Raises OSError."""
        ours, theirs = socket.socketpair()
        try:
            pid = os.fork()
        except OSError:
            ours.close()
            theirs.close()
            raise
        if pid == 0:
            try:
                ours.close()
                child(theirs)
            finally:
                os._exit(1)  # whatever happens: the supervisor's code is not the child's
        theirs.close()
        ours.setblocking(False)
        self.channel, self.pid = ours, pid

    def say(self, word: bytes) -> None:
        """Send a word; a worker that is gone hears nothing."""
        with contextlib.suppress(OSError):
            self.channel.send(word)

    def kill(self, signum: signal.Signals) -> None:
        """Send a signal."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signum)

    def heard(self) -> None:
        """Note a sign of life."""
        self._unanswered_since = None

    def excuse(self, seconds: float) -> None:
        """Wait longer for what is due: nobody was there to see it, or none could do it."""
        self.deadline += seconds
        if self._unanswered_since is not None:
            self._unanswered_since += seconds

    def tick(self, now: float) -> str | None:
        """Ask for a sign of life when it is time; return what was done to a worker without one."""
        if self.phase is Phase.HUNG:
            if now >= self.deadline:
                self.kill(signal.SIGKILL)
            return None
        if self.phase is Phase.STARTING:
            return self._abort(now, "did not start") if now >= self.deadline else None
        if self.phase is Phase.DRAINING:
            if now >= self.deadline:
                self.kill(signal.SIGKILL)
            return None
        since = self._unanswered_since
        if since is not None and now - since > HUNG_SECONDS:
            return self._abort(now, f"hung for {HUNG_SECONDS:g} s")
        if now - self._pinged_at >= PING_SECONDS:
            self._pinged_at = now
            self._unanswered_since = now if since is None else since
            self.say(PING)
        return None

    def _abort(self, now: float, why: str) -> str:
        self.phase, self.deadline = Phase.HUNG, now + ABORT_SECONDS
        self.kill(signal.SIGABRT)
        return why
