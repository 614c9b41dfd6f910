"""Hot path: one timer for a connection's whole life.

It is moved only when its deadline comes nearer, so a busy connection sets no timers; when it goes
off too early, it sets itself again. When a process gets no CPU for longer than a deadline, or its
loop is held up, timers are due before anything is read; so what has come by then is read first.
"""

import asyncio
from collections.abc import Callable
from time import monotonic  # the clock of every event loop, without a call into it

FOREVER = float("inf")
# What is due gets this much more: uvloop counts whole milliseconds, and reads between two of them.
READ_SECONDS = 0.002


class LazyTimer:
    """Calls `expired` once the deadline has passed. Times are loop seconds."""

    __slots__ = ("_deadline", "_expired", "_handle", "_handle_at", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop, expired: Callable[[], None]) -> None:
        self._loop, self._expired = loop, expired
        self._handle: asyncio.TimerHandle | None = None
        self._handle_at = self._deadline = FOREVER

    def set(self, deadline: float) -> None:
        """Expect to be over by then; FOREVER for no deadline."""
        self._deadline = deadline
        if deadline < self._handle_at:
            if self._handle is not None:
                self._handle.cancel()
            self._handle_at = deadline
            self._handle = self._loop.call_at(deadline, self._go_off)

    def clear(self) -> None:
        """Let go of the event loop, and of its owner, for good: they keep each other alive."""
        if self._handle is not None:
            self._handle.cancel()
        self._expired = _nobody
        self._handle, self._handle_at, self._deadline = None, FOREVER, FOREVER

    def _go_off(self) -> None:
        self._handle, self._handle_at = None, FOREVER
        now = monotonic()
        if now < self._deadline:
            self.set(self._deadline)
        else:
            self._handle_at = now + READ_SECONDS
            self._handle = self._loop.call_later(READ_SECONDS, self._expire, now)

    def _expire(self, due: float) -> None:
        self._handle, self._handle_at = None, FOREVER
        if due < self._deadline:
            self.set(self._deadline)
        else:
            self._expired()


def _nobody() -> None:
    """Be told, in place of an owner that has ended."""
