"""What a client is told when a limit refuses its request."""

from gateway.core.errors import ApiError
from gateway.policy.limits import CALENDAR, CONCURRENCY, MONEY, TOKENS, Limit

MICROUSD_PER_USD = 1_000_000


def limit_error(
    limit: Limit, wait_seconds: float | None, tokens: int = 0, left: int | None = None
) -> ApiError:
    """Return the error; `wait_seconds` is None where waiting does not help.

    `left` is what is left of a budget, as far as is known (micro-dollars, below 0: a debt).
    """
    if limit.unit == MONEY:
        return _budget_error(limit, wait_seconds, left)
    if limit.unit == CONCURRENCY:
        text = f"Limit of {limit.capacity} requests at once reached for this {limit.scope}."
    elif wait_seconds is None:
        text = (
            f"The request needs {tokens} tokens, more than this {limit.scope}'s limit of "
            f"{limit.capacity} a minute ever allows. Lower its maximum of output tokens."
        )
    else:
        unit = "tokens" if limit.unit == TOKENS else "requests"
        text = f"Limit of {limit.per_minute} {unit} a minute reached for this {limit.scope}."
    return ApiError(
        "rate_limit_exceeded",
        text,
        retry_after=wait_seconds,
        retryable=None if wait_seconds is not None else False,
    )


def _budget_error(limit: Limit, wait_seconds: float | None, left: int | None) -> ApiError:
    per = "in total" if limit.per == "total" else f"per {limit.per}"
    text = (
        f"The budget of ${_usd(limit.capacity)} {per} of this {limit.scope} does not cover this "
        "request"
    )
    text += "." if left is None else f": ${_usd(max(0, left))} is left."
    if wait_seconds is not None:
        when = "The period ends" if limit.per in CALENDAR else "The first of it returns"
        text += f" {when} in {wait_seconds:.0f} s."
    return ApiError("budget_exceeded", text, retry_after=wait_seconds, retryable=False)


def _usd(microusd: int) -> str:
    whole, rest = divmod(microusd, MICROUSD_PER_USD)
    return f"{whole}.{rest:06d}".rstrip("0").rstrip(".")
