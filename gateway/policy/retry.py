"""What follows a failed attempt, and what the client is told when nothing is left to try. Pure.

This table is the only retry rule. It is asked only while the client has had no byte of content.
"""

from enum import Enum

from gateway.core.errors import TIMEOUTS, ApiError, Failure, UpstreamError


class Next(Enum):
    """What to do after a failed attempt."""

    NEXT_TARGET = "next_target"
    GIVE_UP = "give_up"


# A status that another target may not answer with: a refused credential is this target's fault,
# not the client's; the rest is throttling or trouble at the provider.
HANDED_OVER = frozenset({401, 402, 403, 407, 408, 425, 429})


def decide(error: UpstreamError) -> Next:
    """Hand over on anything that is the target's own trouble; give up on the client's."""
    if error.failure is Failure.TOTAL_TIMEOUT:
        return Next.GIVE_UP
    if error.failure is Failure.STATUS and error.status < 500 and error.status not in HANDED_OVER:
        return Next.GIVE_UP
    return Next.NEXT_TARGET


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
    if error.failure is Failure.STATUS and error.status == 429:
        message = f"{provider} is limiting the gateway's requests."
        return ApiError("rate_limit_exceeded", message, retry_after=error.retry_after)
    if error.failure is Failure.STATUS and error.status in HANDED_OVER:
        # The upstream's text may quote the gateway's own credential: it stays here.
        message = f"{provider} refused the gateway's request with status {error.status}."
        return ApiError("upstream_failed", message)
    return ApiError("upstream_failed", f"{provider}: {error.message}")
