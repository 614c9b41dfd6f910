"""Hot path: the state of one request on its way. Owned by `serve`; nothing keeps it afterwards."""

from collections.abc import Callable
from copy import copy
from typing import TYPE_CHECKING, Protocol

import msgspec

from gateway.core import record
from gateway.core.errors import ApiError
from gateway.core.hints import NO_HINTS, Hints
from gateway.core.operations import Operation
from gateway.core.record import AttemptRecord
from gateway.core.request import Request
from gateway.core.usage import Usage
from gateway.pipeline.served import Route, Served
from gateway.policy.access import Principal
from gateway.policy.limits import Grant
from gateway.store.lease import Holding, Verdict
from gateway.upstream import relay
from gateway.upstream.exchange import Flow
from gateway.upstream.relay import Relay

if TYPE_CHECKING:
    from gateway.pipeline.flight import Flight
    from gateway.store.answers import Answer

Deliver = Callable[[], None]
Headers = tuple[tuple[str, str], ...]

NO_USAGE = Usage()
NO_VERDICT = Verdict()


class Allowance(relay.Allowance, Protocol):
    """A relay's allowance that can say why it refused."""

    spent: ApiError | None


class Client(Protocol):
    """The client's side of a request, as `http` implements it. Header blocks end in CRLF."""

    @property
    def begun(self) -> bool:
        """Tell whether the head of an event stream has been sent."""
        ...

    @property
    def connected(self) -> bool:
        """Tell whether there is anybody to answer."""
        ...

    def reply(self, status: int, content_type: str, headers: bytes, body: bytes) -> None:
        """Send a whole reply."""
        ...

    def start(self, headers: bytes) -> None:
        """Send the head of an event stream, once."""
        ...

    @property
    def chunked(self) -> bool:
        """Tell whether content is framed in chunks, and `write_frame` may be used."""
        ...

    def write(self, data: bytes) -> None:
        """Send content of the stream."""
        ...

    def write_frame(self, frame: bytes) -> None:
        """Send content of the stream that is a chunk already."""
        ...

    def finish(self, data: bytes) -> None:
        """Send the last content and end the stream."""
        ...

    def follow(self, flow: Flow | None) -> None:
        """Pause this source while the client cannot keep up."""
        ...

    def expect(self) -> None:
        """Know that a reply is on its way, though not yet written."""
        ...


class Spent(msgspec.Struct, frozen=True):
    """What attempts before the present one have used, of which the client has had the text."""

    usage: Usage
    microusd: int
    cost: record.Cost


# What an attempt finds out.
_OUTCOME = (
    *("route", "relay", "dropped", "sent_at", "reply_at", "connect_s", "status", "finished"),
    *("outcome", "error", "usage", "usage_source", "cost", "cost_microusd", "price_version"),
    *("before", "continued"),
)


class Call:
    """One request: what came in, what was decided, what it came to. Times are loop seconds."""

    __slots__ = (
        "allowance",
        "attempts",
        "before",
        "body",
        "cache",
        "client",
        "connect_s",
        "continued",
        "cost",
        "cost_microusd",
        "delegated",
        "dropped",
        "error",
        "finished",
        "flight",
        "gated",
        "grants",
        "hints",
        "holding",
        "id",
        "kept",
        "leased",
        "left",
        "likeness",
        "model",
        "operation",
        "outcome",
        "passed_on",
        "price_version",
        "principal",
        "queued_s",
        "refused",
        "relay",
        "reply_at",
        "request",
        "route",
        "saved",
        "secret",
        "sent_at",
        "stale",
        "started_at",
        "status",
        "trace",
        "tries",
        "unsure",
        "usage",
        "usage_source",
        "verdict",
    )

    def __init__(
        self,
        call_id: str,
        operation: Operation,
        body: bytes,
        secret: str | None,
        client: Client,
        started_at: float,
        trace: str = "",
        passed_on: Headers = (),
        hints: Hints = NO_HINTS,
    ) -> None:
        self.id, self.operation, self.body, self.secret = call_id, operation, body, secret
        self.client, self.started_at, self.trace = client, started_at, trace
        self.passed_on = passed_on  # headers of the client's that its provider may want
        self.dropped: tuple[str, ...] = ()
        self.hints = hints
        self.principal: Principal | None = None
        self.request: Request | None = None
        self.model: Served | None = None
        self.holding: Holding | None = None
        self.grants: tuple[Grant, ...] = ()
        self.allowance: Allowance | None = None
        self.leased = self.finished = self.unsure = self.left = self.gated = False
        self.verdict = NO_VERDICT
        self.route: Route | None = None
        self.relay: Relay | None = None
        self.attempts = 0
        self.tries: list[AttemptRecord] = []
        self.before: Spent | None = None
        self.continued = 0
        self.queued_s = self.connect_s = 0.0
        self.sent_at = self.reply_at = 0.0
        self.status = 0
        self.outcome, self.error = record.OK, ""
        self.usage, self.usage_source = NO_USAGE, "none"
        self.cost, self.cost_microusd, self.price_version = record.FREE, 0, ""
        # What the cache has to do with it. Delegated: another call asks, and accounts, for it.
        self.cache, self.saved, self.delegated = "", 0, False
        self.likeness = 0.0  # of the question that was answered, where it is another
        self.flight: Flight | None = None
        self.kept: Answer | None = None
        self.stale: Answer | None = None  # may stand in where no other can be had
        self.refused: ApiError | None = None

    def fork(self, client: Client, attempts: int) -> "Call":
        """Return a call for one attempt at the same request, with a client of its own."""
        other = copy(self)
        other.client, other.tries, other.attempts = client, [], attempts
        return other

    def join(self, other: "Call") -> None:
        """Take over what became of a fork."""
        for name in _OUTCOME:
            setattr(self, name, getattr(other, name))
