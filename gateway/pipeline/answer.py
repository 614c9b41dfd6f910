"""Hot path: the gateway's own response headers, as the public contract names them."""

from math import ceil

from gateway.core.errors import ApiError
from gateway.core.operations import ANTHROPIC
from gateway.pipeline.call import Call
from gateway.policy.limits import REQUESTS, TOKENS, show_duration, tightest
from gateway.store.answers import Answer

MICROUSD_PER_USD = 1_000_000
MAX_DROPPED_CHARS = 1000


def common_headers(call: Call) -> bytes:
    """Return the headers of every answer: the request's id and where its limits stand."""
    head = f"x-request-id: {call.id}\r\n"
    if call.operation in ANTHROPIC:
        head += f"request-id: {call.id}\r\n"
    if call.cache:
        head += f"x-sluice-cache: {call.cache}\r\n"
    standings = call.verdict.standings
    if standings:
        for unit in (REQUESTS, TOKENS):
            tight = tightest(standings, unit)
            if tight is not None:
                left = tight.level if tight.level > 0 else 0
                head += (
                    f"x-ratelimit-limit-{unit}: {tight.limit.per_minute}\r\n"
                    f"x-ratelimit-remaining-{unit}: {left}\r\n"
                    f"x-ratelimit-reset-{unit}: {show_duration(tight.reset_seconds)}\r\n"
                )
    return head.encode()


def served_headers(call: Call, *, with_cost: bool) -> bytes:
    """Return the common headers and what served the request; a stream's cost is known too late."""
    assert call.route is not None
    target = call.route.target
    head = (
        f"x-sluice-provider: {target.provider}\r\n"
        f"x-sluice-model: {target.model}\r\n"
        f"x-sluice-attempts: {call.attempts}\r\n"
    )
    head += _dropped(call.dropped)
    if with_cost and call.price_version:
        head += _cost(call)
    return common_headers(call) + head.encode("ascii", "replace")


def kept_headers(call: Call, answer: Answer, age: float, *, with_cost: bool) -> bytes:
    """Return the common headers and what served the request whose answer is kept."""
    head = (
        f"age: {int(age)}\r\n"
        f"x-sluice-provider: {answer.provider}\r\n"
        f"x-sluice-model: {answer.model}\r\n"
        "x-sluice-attempts: 0\r\n"
    )
    if call.likeness:
        head += f"x-sluice-cache-likeness: {call.likeness:.3f}\r\n"
    head += _dropped(answer.dropped)
    if with_cost and answer.price:
        head += _cost(call)
    return common_headers(call) + head.encode("ascii", "replace")


def _dropped(names: tuple[str, ...]) -> str:
    if not names:
        return ""
    shown = ", ".join([name if name.isprintable() else "?" for name in names])
    return f"x-sluice-dropped: {shown[:MAX_DROPPED_CHARS]}\r\n"


def _cost(call: Call) -> str:
    whole, rest = divmod(call.cost_microusd, MICROUSD_PER_USD)
    return f"x-sluice-cost-usd: {whole}.{rest:06d}\r\n"


def error_headers(call: Call, error: ApiError) -> bytes:
    """Return the headers of an error, with when and whether to try again."""
    head = b""
    if error.retry_after is not None:
        milliseconds = max(1, ceil(error.retry_after * 1000))
        seconds = max(1, ceil(error.retry_after))
        head += b"retry-after: %d\r\nretry-after-ms: %d\r\n" % (seconds, milliseconds)
    if error.retryable is False:
        head += b"x-should-retry: false\r\n"
    if call.attempts and call.route is not None:
        return served_headers(call, with_cost=False) + head
    return common_headers(call) + head
