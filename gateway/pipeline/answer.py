"""Hot path: the gateway's own response headers, as the public contract names them."""

from functools import lru_cache
from math import ceil

from gateway.core.errors import ApiError
from gateway.core.operations import ANTHROPIC
from gateway.pipeline.call import Call
from gateway.pipeline.replay import Entry
from gateway.pipeline.served import answered_by
from gateway.policy.limits import REQUESTS, TOKENS, tightest, until_full

MICROUSD_PER_USD = 1_000_000
MAX_DROPPED_CHARS = 1000
MAX_KEPT_BY = 256


def common_headers(call: Call) -> bytes:
    """Return the headers of every answer: the request's id and where its limits stand."""
    return _common(call).encode()


def _common(call: Call) -> str:
    head = f"x-request-id: {call.id}\r\n"
    if call.operation in ANTHROPIC:
        head += f"request-id: {call.id}\r\n"
    if call.cache:
        head += f"x-sluice-cache: {call.cache}\r\n"
    verdict = call.verdict
    if verdict.levels:
        tight = tightest(verdict.grants, verdict.levels)
        for unit in (REQUESTS, TOKENS):
            if unit in tight:
                level, limit = tight[unit]
                head += (
                    f"x-ratelimit-limit-{unit}: {limit.per_minute}\r\n"
                    f"x-ratelimit-remaining-{unit}: {level if level > 0 else 0}\r\n"
                    f"x-ratelimit-reset-{unit}: {until_full(limit, level)}\r\n"
                )
    return head


def served_headers(call: Call, *, with_cost: bool) -> bytes:
    """Return the common headers and what served the request; a stream's cost is known too late."""
    assert call.route is not None
    cost = _cost(call) if with_cost and call.price_version else ""
    dropped = _dropped(call.dropped) if call.dropped else ""
    head = (
        f"{_common(call)}{call.route.headers}x-sluice-attempts: {call.attempts}\r\n{dropped}{cost}"
    )
    return head.encode("ascii", "replace")


def kept_headers(call: Call, entry: Entry, age: float, *, with_cost: bool = True) -> bytes:
    """Return the common headers and what served the request whose answer is kept."""
    answer = entry.answer
    kept_by = _kept_by(answer.provider, answer.model, answer.dropped)
    likeness = f"x-sluice-cache-likeness: {call.likeness:.3f}\r\n" if call.likeness else ""
    cost = _cost(call) if with_cost and answer.price else ""
    head = f"{_common(call)}age: {int(age)}\r\n{kept_by}{likeness}{cost}"
    return head.encode("ascii", "replace")


@lru_cache(MAX_KEPT_BY)
def _kept_by(provider: str, model: str, dropped: tuple[str, ...]) -> str:
    return f"{answered_by(provider, model)}x-sluice-attempts: 0\r\n{_dropped(dropped)}"


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
