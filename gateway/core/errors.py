"""The one error tree. Foreign exceptions are translated into it once, at the boundary.

SluiceError
├── ConfigError        a configuration that cannot be used: source, line, field
├── ApiError           what a client is told: status, code, message
├── StoreError         Redis did not answer, or answered with an error
└── UpstreamError      one attempt at one target failed: kind, status
"""

from enum import Enum

import msgspec


class SluiceError(Exception):
    """Anything that Sluice itself reports."""


class ConfigError(SluiceError):
    """A configuration that cannot be used; says where and what is wrong."""

    def __init__(self, message: str, source: str = "", line: int = 0, field: str = "") -> None:
        self.message, self.source, self.line, self.field = message, source, line, field
        place = f"{source}:{line}" if line else source
        super().__init__(": ".join(part for part in (place, field, message) if part))


class StoreError(SluiceError):
    """Redis did not answer in time, or answered with an error."""


class NotSent(StoreError):
    """Redis has not been asked."""


class LeaseGone(StoreError):
    """Redis has settled the lease already: its worker was taken for dead."""


class Fault(msgspec.Struct, frozen=True):
    """The status and OpenAI error type that go with an error code."""

    status: int
    type: str


INVALID = "invalid_request_error"
SERVER = "server_error"

# Every code a client can see. DESIGN: bad request 400, key 401, model 403/404, size 413,
# limits 429, upstream 502, overload 503, deadline 504.
FAULTS: dict[str, Fault] = {
    "invalid_json": Fault(400, INVALID),
    "invalid_value": Fault(400, INVALID),
    "missing_required_parameter": Fault(400, INVALID),
    "unsupported_parameter": Fault(400, INVALID),
    "context_length_exceeded": Fault(400, INVALID),
    "invalid_http": Fault(400, INVALID),
    "missing_api_key": Fault(401, "authentication_error"),
    "invalid_api_key": Fault(401, "authentication_error"),
    "admin_key_required": Fault(403, "permission_error"),
    "model_not_allowed": Fault(403, "permission_error"),
    "price_unknown": Fault(403, "permission_error"),
    "model_not_found": Fault(404, INVALID),
    "not_found": Fault(404, INVALID),
    "method_not_allowed": Fault(405, INVALID),
    "request_timeout": Fault(408, INVALID),
    "request_too_large": Fault(413, INVALID),
    "expectation_failed": Fault(417, INVALID),
    "rate_limit_exceeded": Fault(429, "rate_limit_error"),
    "budget_exceeded": Fault(429, "insufficient_quota"),
    "headers_too_large": Fault(431, INVALID),
    "internal_error": Fault(500, SERVER),
    "upstream_failed": Fault(502, SERVER),
    "stream_interrupted": Fault(502, SERVER),
    "overloaded": Fault(503, SERVER),
    "store_unavailable": Fault(503, SERVER),
    "deadline_exceeded": Fault(504, SERVER),
    "not_cached": Fault(504, INVALID),
}


class ApiError(SluiceError):
    """What a client is told, in whatever shape its own API gives to errors.

    `retry_after` is seconds. `retryable` False tells SDKs that trying again cannot help.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after: float | None = None,
        retryable: bool | None = None,
    ) -> None:
        super().__init__(message)
        fault = FAULTS[code]
        self.code, self.message, self.param = code, message, param
        self.status, self.type = fault.status, fault.type
        self.retry_after, self.retryable = retry_after, retryable


STORE_AWAY = "The store that decides over limits cannot be reached."


class Failure(Enum):
    """How an attempt at an upstream failed, before any status arrived or without one."""

    CONNECT = "connect"  # refused, unreachable, name not found
    TLS = "tls"
    CONNECT_TIMEOUT = "connect_timeout"
    FIRST_BYTE_TIMEOUT = "first_byte_timeout"
    FIRST_TOKEN_TIMEOUT = "first_token_timeout"  # noqa: S105  the head came, and then nothing
    IDLE_TIMEOUT = "idle_timeout"
    ATTEMPT_TIMEOUT = "attempt_timeout"  # of what its provider may take in all
    TOTAL_TIMEOUT = "total_timeout"  # of what the request may take, all its attempts together
    STALLED = "stalled"  # a stream that nobody took, until the time was up
    RESET = "reset"  # the connection ended before the reply did
    PROTOCOL = "protocol"  # not HTTP/1.1, or past a cap
    TOO_LARGE = "too_large"  # an event of a stream is past our cap: it is what was asked for
    BUSY = "busy"  # the pool's bounds are reached
    FULL = "full"  # the target has had what it is to have of requests or tokens
    NO_STORE = "no_store"  # Redis cannot say whether it has, and nobody else may
    STATUS = "status"  # a reply that says it failed
    STREAM_ERROR = "stream_error"  # an error event inside a stream
    STREAM_CUT = "stream_cut"  # a stream that ended without its end
    SPENT = "spent"  # the stream may not go on: a budget is spent


TIMEOUTS = frozenset(
    {
        Failure.CONNECT_TIMEOUT,
        Failure.FIRST_BYTE_TIMEOUT,
        Failure.FIRST_TOKEN_TIMEOUT,
        Failure.IDLE_TIMEOUT,
        Failure.ATTEMPT_TIMEOUT,
        Failure.TOTAL_TIMEOUT,
        Failure.STALLED,
    }
)


class UpstreamError(SluiceError):
    """One attempt at one target failed.

    `status`, `body` and `content_type` are the upstream's where it answered; `retry_after` seconds.
    """

    def __init__(
        self,
        failure: Failure,
        message: str,
        *,
        status: int = 0,
        body: bytes = b"",
        content_type: str = "",
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.failure, self.message, self.status = failure, message, status
        self.body, self.content_type, self.retry_after = body, content_type, retry_after
