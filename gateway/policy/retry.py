"""What follows a failed attempt, and what the client is told when nothing is left to try. Pure.

This table is the only retry rule. It is asked only while the client has had no byte of content.
"""

from collections.abc import Callable
from datetime import UTC
from email.utils import parsedate_to_datetime
from enum import Enum

import msgspec

from gateway.core.errors import STORE_AWAY, TIMEOUTS, ApiError, Failure, UpstreamError


class Next(Enum):
    """What to do after a failed attempt."""

    RETRY = "retry"  # the next target, and this one again later
    NEXT_TARGET = "next_target"
    GIVE_UP = "give_up"


# A status that another target may not answer with: a refused credential is this target's fault,
# not the client's; the rest is throttling or trouble at the provider.
HANDED_OVER = frozenset({401, 402, 403, 407, 408, 425, 429})
# What may pass by itself: a moment later the same target may answer.
_PASSING_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504, 520, 529})
_PASSING = frozenset(
    (
        *(Failure.CONNECT, Failure.RESET, Failure.STREAM_ERROR, Failure.STREAM_CUT),
        *(Failure.BUSY, Failure.FULL),
    )
)
# Not the target's doing: its breaker does not hear of them.
_NOT_ITS_FAULT = frozenset(
    (
        *(Failure.BUSY, Failure.FULL, Failure.NO_STORE, Failure.TOTAL_TIMEOUT, Failure.SPENT),
        *(Failure.TOO_LARGE, Failure.STALLED),
    )
)


class Rules(msgspec.Struct, frozen=True):
    """`attempts` more than one a target; seconds; `budget` is retries to a request."""

    attempts: int = 1
    backoff: float = 0.25
    longest: float = 4.0
    budget: float = 0.15


class Budget:
    """Bounds what trying again adds to the load: each request earns a part of a retry."""

    __slots__ = ("_level", "_ratio")

    CAPACITY = 10.0

    def __init__(self, ratio: float) -> None:
        self._ratio, self._level = ratio, self.CAPACITY if ratio else 0.0

    def earn(self) -> None:
        """Count a request."""
        level = self._level + self._ratio
        self._level = level if level < self.CAPACITY else self.CAPACITY

    def spend(self) -> bool:
        """Take a retry, if there is one left."""
        if self._level < 1:
            return False
        self._level -= 1
        return True

    def give_back(self) -> None:
        """Have a retry again that was taken for nothing."""
        level = self._level + 1
        self._level = level if level < self.CAPACITY else self.CAPACITY


def decide(error: UpstreamError) -> Next:
    """Hand over on anything that is the target's own trouble; give up on the client's."""
    if error.failure is Failure.TOTAL_TIMEOUT:
        return Next.GIVE_UP
    if error.failure is Failure.STATUS:
        if 400 <= error.status < 500 and error.status not in HANDED_OVER:
            return Next.GIVE_UP
        return Next.RETRY if error.status in _PASSING_STATUSES else Next.NEXT_TARGET
    return Next.RETRY if error.failure in _PASSING else Next.NEXT_TARGET


def counts_against(error: UpstreamError) -> bool:
    """Tell whether a failure says that its target is in trouble."""
    if error.failure in _NOT_ITS_FAULT or is_clients_fault(error):
        return False
    return not (error.failure is Failure.STATUS and error.status == 429)


def wait_seconds(
    error: UpstreamError, tried: int, rules: Rules, chance: Callable[[], float]
) -> float | None:
    """Return how long to wait before the targets are asked again; None where it is too long.

    Full jitter, unless the target itself says how long.
    """
    if error.retry_after is not None:
        return error.retry_after if error.retry_after <= rules.longest else None
    longest: float = min(rules.backoff * 2 ** min(tried, 16), rules.longest)
    return chance() * longest


def retry_after(headers: dict[bytes, bytes], now: float) -> float | None:
    """Read `retry-after-ms`, or `retry-after` as seconds or a date; `now` is Unix seconds."""
    milliseconds = _number(headers.get(b"retry-after-ms", b""))
    if milliseconds is not None:
        return milliseconds / 1000
    value = headers.get(b"retry-after", b"").strip()
    seconds = _number(value)
    if seconds is not None or not value:
        return seconds
    try:
        moment = parsedate_to_datetime(value.decode("ascii"))
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return max(0.0, moment.timestamp() - now)
    except (ValueError, TypeError, OverflowError):
        return None


def _number(value: bytes) -> float | None:
    """Read a plain decimal of sane size."""
    digits = value.strip()
    if not digits or len(digits) > 12 or not digits.replace(b".", b"", 1).isdigit():
        return None
    return float(digits)


def is_clients_fault(error: UpstreamError) -> bool:
    """Tell whether the upstream's own refusal should reach the client unchanged."""
    return (
        error.failure is Failure.STATUS
        and 400 <= error.status < 500
        and error.status not in HANDED_OVER
    )


def client_error(error: UpstreamError, provider: str) -> ApiError:
    """Say what the client is told when the last attempt failed so."""
    if error.failure in TIMEOUTS:
        return ApiError("deadline_exceeded", f"{provider}: {error.message}")
    if error.failure is Failure.BUSY:
        return ApiError("overloaded", f"{provider}: {error.message}", retry_after=1)
    if error.failure is Failure.NO_STORE:
        return ApiError("store_unavailable", STORE_AWAY, retry_after=1)
    if error.failure is Failure.FULL:
        message = f"{provider}: {error.message}"
        return ApiError("rate_limit_exceeded", message, retry_after=error.retry_after)
    if error.failure is Failure.STATUS and error.status == 429:
        message = f"{provider} is limiting the gateway's requests."
        return ApiError("rate_limit_exceeded", message, retry_after=error.retry_after)
    if error.failure is Failure.STATUS and error.status in HANDED_OVER:
        # The upstream's text may quote the gateway's own credential: it stays here.
        message = f"{provider} refused the gateway's request with status {error.status}."
        return ApiError("upstream_failed", message)
    return ApiError("upstream_failed", f"{provider}: {error.message}")
